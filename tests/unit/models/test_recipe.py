"""The whole way in small: simulated parts alone, from nothing to a bundle that a device opens."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch", reason="pip install torch==2.13.0")

import torch
from torch import nn

from edge_agent.contract.manifest import GRAPHS
from edge_agent.engine import load, selftest
from edge_agent.errors import ConfigError
from models import bundle, card, config, recipe
from models.compression.footprint import latencies
from models.config import CLASSES, Run, preset
from models.data.corpus import Corpus
from models.data.media import Sound
from models.data.records import Recording
from models.evaluation import weight
from models.network.graphs import build


def test_the_card_claims_what_recordings_taught_and_nothing_else(monkeypatch):
    figures = {"preset": "first", "seed": 0, "sets": ["site"], "int8": {}}
    told = card.write({**figures, "learned": ["casual", "gunshot", "other"]})
    assert "Event classes claimed: gunshot; everything" in told
    assert "synthesised (explosion, siren, fire, glass_break, alarm, fight, intrusion) is not claimed" in told
    assert "No real fire trained the eyes" in told
    monkeypatch.setattr(card, "CLASSES", (*CLASSES, "glass_break"))
    told = card.write({**figures, "sets": ["fire_video"], "learned": ["fire", "glass_break"]})
    assert "Event classes claimed: fire, glass_break; everything" in told
    assert "glass_break, alarm" not in told
    assert "One real fire film" in told


def test_a_leak_ends_the_run_before_anything_is_trained(tmp_path):
    pcm = np.random.default_rng(0).normal(0, 3000, 64_000).astype(np.int16)
    clips = [Recording("site", s, s, s, "casual", sound=Sound(held=pcm.copy())) for s in ("train", "dev")]
    with pytest.raises(ConfigError, match=r"1 leaks between splits: .* hold the same"):
        recipe.make(preset("tiny"), None, tmp_path / "out", seed=0, own=Corpus(clips=tuple(clips)))
    assert not list((tmp_path / "out").glob("*"))


_DRAWN = """
import hashlib
import numpy as np
from models.config import preset
from models.data.corpus import Corpus
from models.data.mixture import Shelf, plan
from models.data.staging import Stage
from models.data.traces import WRONG, trace
from models.training.seeing import batches
shape, found = preset("tiny"), hashlib.sha256()
for index, wrong in enumerate((None, *WRONG) * 5):
    found.update(trace(np.random.default_rng(index), 128, 0.5, wrong).readings.tobytes())
for part in next(batches(Stage([], [], shape.vision_spec, 0, 3), [], 4, 0)):
    found.update(part.numpy().tobytes())
found.update(repr(plan(Shelf([]), "train", 40)).encode())
print(found.hexdigest())
"""


def test_what_is_drawn_from_a_seed_is_the_same_in_every_process():
    """Names are hashed anew in each process: a draw for each name of a set would make another bundle of every run."""
    told = set()
    for seed in ("1", "2"):
        own = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", _DRAWN], env=own, capture_output=True, text=True, timeout=100, check=True
        )
        told.add(done.stdout)
    assert len(told) == 1


@pytest.mark.timeout(600)
def test_without_any_data_set_there_is_still_a_valid_bundle(tmp_path, monkeypatch):
    out, work = tmp_path / "out", tmp_path / "work"
    figures = recipe.make(replace(preset("tiny"), run=Run(work, logger="none")), None, out, seed=1)
    assert selftest(load(out), out).worst <= bundle.TOLERANCE
    assert load(out).manifest.classes == CLASSES
    assert "simulated parts alone" in (out / bundle.CARD).read_text(encoding="utf-8")
    assert "recorded" not in figures
    assert "Event classes claimed: none;" in (out / bundle.CARD).read_text(encoding="utf-8")
    assert figures["sets"] == []
    teacher = work / recipe.TEACHER
    assert selftest(load(teacher), teacher).worst < 1e-3
    network = build(config.teacher(preset("tiny")), seed=9)
    bundle.load_weights(teacher / bundle.NETWORK, nn.ModuleDict(network.graphs()))
    frames = bundle.load_arrays(teacher / bundle.GOLDEN)["frames"]
    wanted = network.vision.eval()(torch.from_numpy(frames))[0].detach().numpy()
    found = load(teacher).engine.run("vision", [{"frames": frame} for frame in frames])
    np.testing.assert_allclose(np.stack([output["embedding"] for output in found]), wanted, rtol=1e-2, atol=1e-2)
    monkeypatch.setattr(weight, "latencies", lambda ways: latencies(ways, rounds=1, calls=1))
    monkeypatch.setattr(weight.tensorrt, "installed", lambda: ())
    weighed = weight.report(out, teacher)
    graphs = [teacher / f"{graph}.onnx" for graph in GRAPHS]
    assert weighed["total"]["teacher_bytes"] == sum(path.stat().st_size for path in graphs)
    assert weighed["total"]["teacher_over_int8"] > 8
    assert weighed["vision_int8_over_teacher"] > 0


def test_an_encoder_owes_nothing_to_what_was_trained_before_it():
    parts = recipe.Parts("train", Corpus(), preset("tiny"), 3)
    together = recipe.learned(recipe.Lesson(("sensors", "vision"), parts, None))
    alone = recipe.learned(recipe.Lesson(("vision",), parts, None))
    assert [encoder.name for encoder in together] == ["sensors", "vision"]
    assert together[1].graph == alone[0].graph
    assert together[1].graph != together[0].graph
