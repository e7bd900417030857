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
from models.ablate import encoders, heads, table  # noqa: E402
from models.config import Fusion, Schedule, preset  # noqa: E402
from models.data.staging import Picture  # noqa: E402
from models.network.graphs import build, fusion_head  # noqa: E402
from models.training.pretrain import pretrain  # noqa: E402
from models.training.regimes import endless, rows, train_one_class, train_semi, train_weak  # noqa: E402
from models.training.terms import Batch  # noqa: E402
from models.training.train import deterministic  # noqa: E402

SHIPPED = Path(__file__).resolve().parents[3] / "edge_agent" / "bundle"
SHAPE = replace(preset("tiny"), fusion=Schedule(steps=8, batch=32, rate=2e-3))


@pytest.fixture(scope="module")
def windows() -> heads.Embedded:
    """Embeddings that really were made: a retraining's replay, of the bundle that ships."""
    replay = bundle.load_arrays(SHIPPED / bundle.REPLAY)

    def batch(split: str) -> Batch:
        names = ("vision", "audio", "sensors", "mask", "wrong", "own", "classes")
        found = [torch.from_numpy(np.asarray(replay[f"{split}_{name}"], np.float32)) for name in names]
        return Batch(*found, torch.ones(len(found[0])))

    return heads.Embedded(batch("train"), batch("dev"), "replay")


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
    first = heads.work(row, SHAPE, windows, tmp_path, quick=True)
    assert 0 < first["figures"]["ap"]["mean"] <= 1
    assert first["parameters"] == sum(p.numel() for p in fusion_head(replace(SHAPE, head=row.fusion)).parameters())

    def again(*parts):
        raise RuntimeError("trained again")

    monkeypatch.setattr(heads, "trained", again)
    assert heads.work(row, SHAPE, windows, tmp_path, quick=True) == first
    with pytest.raises(RuntimeError, match="again"):
        heads.work(replace(row, fusion=Fusion(width=16)), SHAPE, windows, tmp_path, quick=True)
    assert table.write(tmp_path, [row.key, "not done"]) == 1
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

    figures = heads.judged(score, windows.dev)
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
    before = heads.judged(lambda batch: head(*batch[:4])[0], windows.train)["ap"]
    train_weak(head, shape, windows.train, 0)
    assert heads.judged(lambda batch: head(*batch[:4])[0], windows.train)["ap"] > before + 0.1


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


def _changed(change: str, modality: str):
    shape = encoders.quarter(preset("first"))
    graph = build(shape, 0).graphs()[modality]
    encoders.CHANGES[change](graph, shape)
    return graph.eval()


def _frames():
    return torch.randint(0, 256, (2, 5, 160, 240), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@pytest.mark.parametrize(("change", "blind"), [("still", (3, 4)), ("one difference", (4,))])
def test_an_encoder_without_motion_does_not_see_the_frames_before(change, blind):
    graph, frames, other = _changed(change, "vision"), _frames(), _frames()
    for plane in range(5):
        other[:, plane] = 255 - frames[:, plane]
        assert torch.equal(graph(frames)[2], graph(other)[2]) == (plane in blind)
        other[:, plane] = frames[:, plane]


def test_a_gray_encoder_sees_light_alone():
    red, green, blue = _changed("gray", "vision").front(_frames())[:, :3].unbind(1)
    torch.testing.assert_close(red, green)
    torch.testing.assert_close(red, blue)
    assert red.std() > 0.1


def test_separable_blocks_and_plain_means_give_what_the_encoder_gives():
    plain = build(encoders.quarter(preset("first")), 0).vision.eval()
    for change in ("separable", "mean"):
        changed = _changed(change, "vision")
        assert [part.shape for part in changed(_frames())] == [part.shape for part in plain(_frames())]
    assert sum(p.numel() for p in _changed("separable", "vision").parameters()) < 22_000
    _, heat, logit = changed(_frames())
    torch.testing.assert_close(logit, heat.mean((1, 2)), atol=1e-4, rtol=1e-4)  # linear all the way


def test_two_bands_are_heard_as_one():
    graph = _changed("32 bands", "audio")
    x = torch.randn(2, 1, 64, 96)
    swapped = x.view(2, 1, 32, 2, 96).flip(3).reshape(2, 1, 64, 96)
    torch.testing.assert_close(graph.encoder(x)[2], graph.encoder(swapped)[2])


def test_sensors_without_ages_do_not_see_them():
    readings = torch.ones(1, 3, 12, 64)
    older = readings.clone()
    older[:, 1] = 50.0
    assert torch.equal(_changed("no age", "sensors")(readings)[1], _changed("no age", "sensors")(older)[1])
    assert not torch.equal(_changed("no mask", "sensors")(readings)[1], _changed("no mask", "sensors")(older)[1])


def test_a_row_of_an_encoder_is_trained_judged_and_kept(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)

    def picture(wrong):
        frames = rng.integers(0, 256, (5, 160, 240)).astype(np.uint8)
        return Picture(frames, np.full((20, 30), float(wrong != "nothing"), np.float32), wrong)

    parts = encoders.Parts(tmp_path, preset("first"), None, quick=True)
    pictures = [picture(wrong) for wrong in ("nothing", "fire", "odd") * 6]
    parts.__dict__["pictures"] = {"train": pictures, "dev": pictures}
    (tmp_path / encoders.PICTURES).write_bytes(b"these")
    row = encoders.Row("vision", "gray", "gray")
    found = encoders.work(row, parts, tmp_path)
    assert set(found["figures"]) == {"fire AUC", "odd AUC"}
    assert found["ms"]["int8"] > 0
    monkeypatch.setattr(encoders, "build", None)
    assert encoders.work(row, parts, tmp_path) == found
    assert table.write(tmp_path, [row.key]) == 1
    assert "| vision encoder | fire AUC | odd AUC |" in (tmp_path / "ablations.md").read_text(encoding="utf-8")
    (tmp_path / encoders.PICTURES).write_bytes(b"others")
    with pytest.raises(TypeError):
        encoders.work(row, parts, tmp_path)
    with pytest.raises(ConfigError, match="judged on recorded sets"):
        encoders.work(encoders.Row("audio", "quarter size"), parts, tmp_path)
