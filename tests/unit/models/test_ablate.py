"""The table of ablations, and the ways to train with fewer labels, on windows that come with the bundle."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")
pytest.importorskip("lightning", reason="pip install lightning")

from edge_agent.errors import ConfigError  # noqa: E402
from models import ablate, bundle  # noqa: E402
from models.config import Fusion, Schedule, preset  # noqa: E402
from models.network.graphs import fusion_head  # noqa: E402
from models.training.pretrain import pretrain  # noqa: E402
from models.training.regimes import endless, rows, train_one_class, train_semi, train_weak  # noqa: E402
from models.training.terms import Batch  # noqa: E402
from models.training.train import deterministic  # noqa: E402

SHIPPED = Path(__file__).resolve().parents[3] / "edge_agent" / "bundle"
SHAPE = replace(preset("tiny"), fusion=Schedule(steps=8, batch=32, rate=2e-3))


@pytest.fixture(scope="module")
def windows() -> ablate.Embedded:
    """Embeddings that really were made: a retraining's replay, of the bundle that ships."""
    replay = bundle.load_arrays(SHIPPED / bundle.REPLAY)

    def batch(split: str) -> Batch:
        names = ("vision", "audio", "sensors", "mask", "wrong", "own", "classes")
        found = [torch.from_numpy(np.asarray(replay[f"{split}_{name}"], np.float32)) for name in names]
        return Batch(*found, torch.ones(len(found[0])))

    return ablate.Embedded(batch("train"), batch("dev"), "replay")


def _head(seed: int = 0):
    deterministic(seed)
    return fusion_head(SHAPE)


def _moved(head) -> set[str]:
    start = _head().state_dict()
    return {
        name.split(".")[0] for name, tensor in head.state_dict().items() if not torch.allclose(tensor, start[name])
    }


def test_a_row_is_done_once_and_again_when_it_changes(windows, tmp_path, monkeypatch):
    row = ablate.ROWS[0]
    first = ablate.work(row, SHAPE, windows, tmp_path, quick=True)
    assert 0 < first["figures"]["ap"]["mean"] <= 1
    assert first["parameters"] == sum(p.numel() for p in fusion_head(replace(SHAPE, head=row.fusion)).parameters())

    def again(*parts):
        raise RuntimeError("trained again")

    monkeypatch.setattr(ablate, "trained", again)
    assert ablate.work(row, SHAPE, windows, tmp_path, quick=True) == first
    with pytest.raises(RuntimeError, match="again"):
        ablate.work(replace(row, fusion=Fusion(width=16)), SHAPE, windows, tmp_path, quick=True)
    told = ablate.table(tmp_path)
    assert told["rows"] == 1
    assert "| baseline | naive concatenation |" in (tmp_path / "ablations.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "ablations.json").read_text(encoding="utf-8"))[0]["seeds"] == [0]
    assert (tmp_path / "ablations.svg").stat().st_size > 1000


def test_rows_have_names_of_their_own_and_unknown_ones_are_refused():
    assert len({row.key for row in ablate.ROWS}) == len(ablate.ROWS)
    assert {row.group for row in ablate.select(["space"])} == {"space"}
    assert len(ablate.select([])) == len(ablate.ROWS)
    with pytest.raises(ConfigError, match="no row or group is named luck"):
        ablate.select(["luck"])


def test_a_modality_that_is_the_only_cause_is_not_held_against_its_absence(windows):
    def score(batch: Batch):
        return (batch.own * batch.mask.amax(1)).amax(1)  # knows everything that is there

    figures = ablate.judged(score, windows.dev)
    assert figures["ap"] == 1.0
    assert all(figures[f"lost_{name}"] == 0 for name in ("vision", "audio", "sensors"))


@pytest.mark.parametrize("task", ["masked", "contrastive"])
def test_pretraining_moves_the_towers_alone_and_sees_no_label(windows, task):
    heads = []
    for labels in (windows.train, windows.train._replace(wrong=1 - windows.train.wrong, own=windows.train.own * 0)):
        head = _head()
        pretrain(head, task, SHAPE, SHAPE.fusion, endless(labels, 32, np.random.default_rng(0)))
        heads.append(head.state_dict())
        assert _moved(head) == {"towers"}
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])


def test_an_unknown_pretraining_is_refused(windows):
    with pytest.raises(ConfigError, match="there are masked, contrastive"):
        pretrain(_head(), "luck", SHAPE, SHAPE.fusion, endless(windows.train, 4, np.random.default_rng(0)))


def test_bags_alone_teach_which_windows_are_wrong(windows):
    head = _head()
    shape = replace(SHAPE, fusion=Schedule(steps=40, batch=32, rate=6e-3))
    before = ablate.judged(lambda batch: head(*batch[:4])[0], windows.train)["ap"]
    train_weak(head, shape, windows.train, 0)
    assert ablate.judged(lambda batch: head(*batch[:4])[0], windows.train)["ap"] > before + 0.1


def test_pseudo_labels_look_at_no_label_of_the_rest(windows):
    few, found = rows(windows.train, torch.arange(40)), []
    for rest in (windows.train, windows.train._replace(wrong=1 - windows.train.wrong, own=1 - windows.train.own)):
        head = _head()
        train_semi(head, SHAPE, few, rest, 0)
        found.append(head.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert "score" in _moved(head)


def test_one_class_draws_what_is_normal_to_its_centre(windows):
    head = _head()
    shape = replace(SHAPE, fusion=Schedule(steps=25, batch=32, rate=2e-3))
    centre = train_one_class(head, shape, windows.train, 0)
    normal = rows(windows.train, torch.nonzero(windows.train.wrong == 0)[:, 0])
    with torch.inference_mode():
        near = (head(*normal[:4])[3] - centre).square().sum(1).mean()
        start = (_head()(*normal[:4])[3] - centre).square().sum(1).mean()
    assert near < 0.7 * start
