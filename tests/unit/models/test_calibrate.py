"""Temperatures: the likeliest, inside the graph, and no ranking changed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edge_agent.contract.event import MODALITIES
from models import calibrate
from models.config import CLASSES, preset
from models.data.compose import Windows
from models.network.graphs import fusion_head

PRESET = preset("tiny")


def draws(factor: float, count: int = 20_000, seed: int = 1) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logits that are `factor` times too sure, and truths."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(0, 2, count)
    truth = (rng.random(count) < 1 / (1 + np.exp(-honest))).astype(np.float64)
    return factor * honest, truth


class Drawn:
    """A composer of windows whose answers are random."""

    def draw(self, rng: np.random.Generator, count: int) -> Windows:
        shape = (count, PRESET.history, PRESET.embedding)
        return Windows(
            history={name: rng.normal(size=shape).astype(np.float32) for name in MODALITIES},
            mask=np.ones((count, PRESET.history, 3), np.float32),
            wrong=rng.integers(-1, 2, count).astype(np.float32),
            own=rng.integers(-1, 2, (count, 3)).astype(np.float32),
            classes=rng.integers(0, 2, (count, len(CLASSES))).astype(np.float32),
            shown=("nothing",) * count,
        )


@pytest.mark.parametrize("factor", [0.25, 1.0, 4.0])
def test_the_scale_undoes_what_was_too_sure_or_too_shy(factor: float) -> None:
    logit, truth = draws(factor)
    found = calibrate.scale(logit, truth)
    assert found == pytest.approx(1 / factor, rel=0.05)
    assert calibrate.error(found * logit, truth) < 0.015
    if factor != 1:
        assert calibrate.error(logit, truth) > 0.05
        assert calibrate.likelihood_loss(found * logit, truth) < calibrate.likelihood_loss(logit, truth)


def test_answers_of_one_kind_say_nothing() -> None:
    assert calibrate.scale(np.arange(4.0), np.ones(4)) == 1.0
    assert calibrate.scale(np.arange(4.0), np.zeros(4)) == 1.0


def test_a_score_that_is_always_right_is_scaled_by_a_bound_and_no_more() -> None:
    assert calibrate.scale(np.array([-1.0, 1.0]), np.array([0.0, 1.0])) == pytest.approx(20, rel=0.01)


def test_temperatures_are_in_the_graph_and_keep_every_ranking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "_WINDOWS", 1000)
    torch.manual_seed(0)
    head = fusion_head(PRESET).eval()
    windows = Drawn().draw(np.random.default_rng(3), 50)
    before = calibrate.outputs(head, windows)
    found = calibrate.temperatures(head, Drawn(), 1)  # type: ignore[arg-type]
    after = calibrate.outputs(head, windows)
    assert found.keys() == {"score", *MODALITIES, *CLASSES}
    for name, (logit, _) in after.items():
        np.testing.assert_allclose(logit * found[name]["temperature"], before[name][0], rtol=0.02, atol=1e-4)
        assert (np.argsort(logit, kind="stable") == np.argsort(before[name][0], kind="stable")).all()
        assert found[name]["nll"] <= found[name]["nll_before"] + 0.02
    again = calibrate.temperatures(head, Drawn(), 1)  # type: ignore[arg-type]
    assert again == found  # from the bare head, not from what was fitted before


def test_a_head_that_became_too_sure_is_cooled_by_as_much_and_no_further_than_twice() -> None:
    torch.manual_seed(0)
    start = fusion_head(PRESET).eval()
    windows = Drawn().draw(np.random.default_rng(3), 80)
    logit, _ = calibrate.outputs(start, windows)["score"]
    factor = float(1.7 / abs(logit.mean()))
    start.scale.logit.fill_(factor)
    # Truths that its answers are likely for: few windows, and still the ratio is exact.
    windows.wrong[windows.wrong >= 0] = np.random.default_rng(4).random(len(logit)) < 1 / (
        1 + np.exp(-factor * logit)
    )
    sure = fusion_head(PRESET).eval()
    sure.load_state_dict(start.state_dict())
    sure.scale.logit.fill_(factor * 1.6)  # the same head, 1.6 times too sure
    found = calibrate.refit(sure, start, windows)
    assert found["score"]["after"] == pytest.approx(1 / factor, rel=0.01)
    assert found["score"]["nll"] < found["score"]["nll_before"]
    assert found["audio"]["after"] == found["audio"]["before"]
    sure.scale.logit.fill_(factor * 7)
    assert calibrate.refit(sure, start, windows)["score"]["after"] == pytest.approx(2 / 7 / factor, rel=0.01)


def test_a_class_names_where_it_is_right_nine_times_of_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    probability = rng.random(4000)
    logit = np.log(probability / (1 - probability))
    sure = (rng.random(4000) < 0.5 + probability / 2).astype(float)  # shy: 0.8 is right nine times of ten at 0.6
    never = np.zeros(4000)
    pairs = {name: (logit, sure if name == "fire" else never) for name in CLASSES}
    monkeypatch.setattr(calibrate, "outputs", lambda head, windows: pairs)
    levels = calibrate.class_levels(fusion_head(PRESET), Drawn(), 1)  # type: ignore[arg-type]
    assert levels["fire"] in (0.6, 0.7)
    assert levels["siren"] == 0.5
