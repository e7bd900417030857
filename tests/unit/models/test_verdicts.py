"""Learning from verdicts: evidence back into windows, a head that moves, and everything that is refused."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="pip install torch==2.13.0")
av = pytest.importorskip("av", reason="pip install av")

from edge_agent.contract.manifest import GRAPHS  # noqa: E402
from edge_agent.engine import load, open_bundle  # noqa: E402
from edge_agent.errors import BundleError, ConfigError  # noqa: E402
from edge_agent.simulate import Site, demo  # noqa: E402
from models import bundle  # noqa: E402
from models.__main__ import main  # noqa: E402
from models.config import preset  # noqa: E402
from models.data.evidence import embed  # noqa: E402
from models.verdicts import read, retrain  # noqa: E402

SHIPPED = Path(__file__).resolve().parents[3] / "edge_agent" / "bundle"
SECONDS, RATE_HZ, FPS = 8, 16_000, 5


#: Training and compiling on a machine that does other things too.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def place() -> Site:
    return Site(21, demo(21, 40.0, first_s=4.0), width=160, height=120)


@pytest.fixture(scope="module")
def clip(place, tmp_path_factory) -> Path:
    """Eight seconds of a site as MP4 with sound; a fire starts at 4 s."""
    path = tmp_path_factory.mktemp("evidence") / "clip.mp4"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FPS)
        video.width, video.height, video.pix_fmt = place.width, place.height, "yuv420p"
        sound = container.add_stream("aac", rate=RATE_HZ, layout="mono")
        for index in range(SECONDS * FPS):
            frame = av.VideoFrame.from_ndarray(place.frame(index / FPS), format="rgb24")
            container.mux(video.encode(frame))
        for start in range(0, SECONDS * RATE_HZ, 1024):
            heard = av.AudioFrame.from_ndarray(place.sound(start, 1024)[None], format="s16", layout="mono")
            heard.sample_rate, heard.pts, heard.time_base = RATE_HZ, start, Fraction(1, RATE_HZ)
            container.mux(sound.encode(heard))
        container.mux(video.encode(None))
        container.mux(sound.encode(None))
    return path


@pytest.fixture(scope="module")
def trace(place, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("evidence") / "trace.json"
    points: dict[str, list[list[float]]] = {}
    for second in range(SECONDS):
        for reading in place.readings(second):
            points.setdefault(reading.channel, []).append([second * 1000, reading.value])
    channels = [{"channel": k, "quantity": k, "unit": "", "points": v} for k, v in points.items()]
    path.write_text(json.dumps({"v": 1, "start_ns": 0, "channels": channels}))
    return path


def _line(verdict: str, clip: Path | str = "", trace: Path | str = "", **changes) -> dict[str, object]:
    return {
        "event_id": "0190a0a0-0000-7000-8000-000000000001",
        "scene": "hall",
        "label": "anomaly",
        "verdict": verdict,
        "bundle": "",
        "started_ns": 14_000_000_000,
        "start_ns": 10_000_000_000,
        "end_ns": 18_000_000_000,
        "clip": str(clip),
        "trace": str(trace),
        "weight": 1.0,
        **changes,
    }


def _file(path: Path, *lines: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_evidence_becomes_windows_of_all_three(clip, trace):
    steps = embed(clip, trace, load(SHIPPED).engine, preset("first"))
    assert steps is not None
    assert len(steps.time_s) >= 2 * SECONDS - 2
    assert steps.mask[1:].all()
    assert np.isfinite(steps.embeddings["vision"]).all()


def test_evidence_without_a_trace_has_no_sensors(clip):
    steps = embed(clip, None, load(SHIPPED).engine, preset("first"))
    assert steps is not None
    assert not steps.mask[:, 2].any()
    assert not steps.embeddings["sensors"].any()


def test_a_false_alarm_lowers_its_score_and_only_the_head_learns(clip, trace, tmp_path):
    out = tmp_path / "new"
    figures = retrain(_file(tmp_path / "v.jsonl", _line("false", clip, trace)), SHIPPED, out, 0)
    heat = figures["temperatures"]["score"]
    before, after = (figures["judged"][when]["false"] for when in ("before", "after"))
    # In units of the bare head: another temperature alone is no learning.
    assert heat["after"] * np.log(after / (1 - after)) < heat["before"] * np.log(before / (1 - before))
    old, new = open_bundle(SHIPPED), open_bundle(out)
    assert new.manifest.counter == old.manifest.counter + 1
    same = {name: new.manifest.files[f"{name}.onnx"] == old.manifest.files[f"{name}.onnx"] for name in GRAPHS}
    assert same == {"vision": True, "audio": True, "sensors": True, "fusion": False}
    assert "Retrained from verdicts" in (out / bundle.CARD).read_text(encoding="utf-8")
    assert heat["after"] != heat["before"]
    scale = bundle.load_arrays(out / bundle.WEIGHTS)["scale.logit"].item()
    assert scale == pytest.approx(1 / heat["after"], rel=1e-3)
    # And the result can be the start of the next one.
    again = retrain(_file(tmp_path / "w.jsonl", _line("real", clip, trace)), out, tmp_path / "newer", 0)
    assert again["start"] == new.hash
    assert open_bundle(tmp_path / "newer").manifest.counter == old.manifest.counter + 2


def test_the_same_verdicts_give_the_same_weights(clip, trace, tmp_path):
    verdicts = _file(tmp_path / "v.jsonl", _line("real", clip, trace, label="fire"))
    weights = []
    for name in ("a", "b"):
        retrain(verdicts, SHIPPED, tmp_path / name, 5)
        weights.append(bundle.load_arrays(tmp_path / name / bundle.WEIGHTS))
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_unsure_and_evidence_that_never_came_teach_nothing(clip, tmp_path):
    verdicts = _file(tmp_path / "v.jsonl", _line("unsure", clip), _line("false"))
    with pytest.raises(ConfigError, match="0 of 1 judged events"):
        retrain(verdicts, SHIPPED, tmp_path / "new", 0)
    assert not (tmp_path / "new").exists()


def test_a_line_that_is_wrong_is_named(tmp_path):
    path = _file(tmp_path / "v.jsonl", _line("false"), _line("perhaps"))
    with pytest.raises(ConfigError, match="line 2"):
        read(path)


def test_a_clip_that_is_no_film_is_refused(tmp_path):
    broken = tmp_path / "clip.mp4"
    broken.write_bytes(b"not a film")
    with pytest.raises(ConfigError, match=r"clip\.mp4"):
        retrain(_file(tmp_path / "v.jsonl", _line("false", broken)), SHIPPED, tmp_path / "new", 0)


def test_a_bundle_without_its_weights_cannot_be_continued(clip, tmp_path):
    start = tmp_path / "start"
    start.mkdir()
    manifest = json.loads((SHIPPED / "manifest.json").read_text())
    del manifest["files"][bundle.WEIGHTS]
    for name in manifest["files"]:
        (start / name).write_bytes((SHIPPED / name).read_bytes())
    (start / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=bundle.WEIGHTS):
        retrain(_file(tmp_path / "v.jsonl", _line("false", clip)), start, tmp_path / "new", 0)


def test_the_command_refuses_with_a_reason(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("TECTUM_DATA", raising=False)
    assert main(["train", "--out", str(tmp_path / "x")]) == 1
    assert "--data none" in capsys.readouterr().err
    assert main(["train", "--out", str(tmp_path / "x"), "--verdicts", str(tmp_path / "none.jsonl")]) == 1
    assert "cannot read verdicts" in capsys.readouterr().err
