"""Embeddings are made once, shares are exact, and what is not finite does not spread."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.core import infer
from edge_agent.core.infer import History
from edge_agent.core.records import Prepared
from tests.parts.engines import EMBEDDING, HISTORY, FakeEngine, fake_model

PICTURE = np.full((5, 24, 32), 10, np.uint8)
SOUND = np.full(16_000, 20, np.int16)
READINGS = np.full((3, 12, 6), 30, np.float32)

Present = tuple[bool, bool, bool]


def history(present: Present, now: Present | None = None) -> History:
    mask = np.zeros((HISTORY, 3), np.float32)
    mask[3] = present
    mask[-1] = present if now is None else now
    return History("yard", 9, np.ones((HISTORY, 3, EMBEDDING), np.float32) * mask[..., None], mask, None)


def weigh(vision: float, audio: float, sensors: float, both: float) -> FakeEngine:
    def head(present: Present) -> float:
        sees, hears, feels = present
        return -4.0 + vision * sees + audio * hears + sensors * feels + both * (sees and hears)

    return FakeEngine(head)


@given(*[st.floats(-20, 20)] * 4, st.tuples(*[st.booleans()] * 3))
def test_shares_sum_to_the_difference_that_the_modalities_make(
    vision: float, audio: float, sensors: float, both: float, present: Present
) -> None:
    model = fake_model(weigh(vision, audio, sensors, both))
    (scores,) = infer.score(model, [history(present)])
    assert scores is not None
    modalities = [scores.shares[name] for name in ("vision", "audio", "sensors")]
    assert sum(modalities) == pytest.approx(scores.logit - scores.shares["none"], abs=1e-9)
    for share, there in zip(modalities, present, strict=True):
        if not there:
            assert share == 0.0


def test_what_two_make_together_is_shared_between_them() -> None:
    (scores,) = infer.score(fake_model(weigh(1, 2, 3, 4)), [history((True, True, True))])
    assert scores is not None
    assert scores.shares == pytest.approx({"vision": 3, "audio": 4, "sensors": 3, "none": -4})
    assert scores.score == pytest.approx(1 / (1 + np.exp(-6)))


@given(st.lists(st.floats(-50, 50), min_size=8, max_size=8))
def test_shapley_is_the_mean_over_all_orders(logits: list[float]) -> None:
    subsets = [frozenset(c) for size in range(4) for c in itertools.combinations(range(3), size)]
    values = dict(zip(subsets, logits, strict=True))
    orders = list(itertools.permutations(range(3)))
    for player in range(3):
        gains = []
        for order in orders:
            before = frozenset(order[: order.index(player)])
            gains.append(values[before | {player}] - values[before])
        assert infer.shapley(values, range(3))[player] == pytest.approx(sum(gains) / len(orders), abs=1e-9)


def test_one_call_of_the_head_for_all_scenes_and_masks() -> None:
    engine = FakeEngine()
    found = infer.score(fake_model(engine), [history((True, True, True)), history((False, True, False))])
    assert engine.calls == [("fusion", 8 + 2)]
    assert len(found) == 2


def test_a_masked_modality_reaches_the_head_as_zeros() -> None:
    engine = FakeEngine()
    infer.score(fake_model(engine), [history((True, True, True))])
    for item in engine.seen["fusion"]:
        for column, name in enumerate(("vision", "audio", "sensors")):
            assert bool(item[name].any()) == bool(item["mask"][:, column].any())


def test_present_is_what_the_last_window_had() -> None:
    (scores,) = infer.score(fake_model(), [history((True, True, True), now=(False, True, False))])
    assert scores is not None
    assert scores.present == ("audio",)
    assert set(scores.modality_logits) == {"vision", "audio", "sensors"}


def test_windows_of_several_scenes_are_encoded_in_one_call_per_modality() -> None:
    engine = FakeEngine()
    windows = [
        Prepared("a", 1, PICTURE, SOUND, None),
        Prepared("b", 1, PICTURE, None, READINGS),
        Prepared("c", 1, None, None, None),
    ]
    encoded = infer.encode(fake_model(engine), windows)
    assert engine.calls == [("vision", 2), ("audio", 1), ("sensors", 1)]
    assert [code.mask.tolist() for code in encoded] == [[1, 1, 0], [1, 0, 1], [0, 0, 0]]
    assert encoded[0].embeddings[:, 0].tolist() == [10, 20, 0]
    assert encoded[1].embeddings[:, 0].tolist() == [10, 0, 30]
    assert encoded[0].heat is not None
    assert encoded[0].heat.tolist() == [[0, 128, 255]]
    assert encoded[2].heat is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_embedding_that_is_not_finite_counts_as_missing(bad: float) -> None:
    readings = READINGS.copy()
    readings[0, 0, 0] = bad
    (code,) = infer.encode(fake_model(), [Prepared("a", 1, PICTURE, None, readings)])
    assert code.mask.tolist() == [1, 0, 0]
    assert np.isfinite(code.embeddings).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_logit_that_is_not_finite_is_no_score(bad: float) -> None:
    model = fake_model(FakeEngine(lambda present: bad))
    assert infer.score(model, [history((True, False, False))]) == [None]


def test_nothing_to_do_calls_nothing() -> None:
    engine = FakeEngine()
    assert infer.encode(fake_model(engine), []) == []
    assert infer.score(fake_model(engine), []) == []
    assert engine.calls == []


@pytest.mark.parametrize(("logit", "probability"), [(0, 0.5), (1e9, 1.0), (-1e9, 0.0), (2, 0.880797)])
def test_a_sigmoid_takes_any_logit(logit: float, probability: float) -> None:
    assert infer.sigmoid(logit) == pytest.approx(probability, abs=1e-6)
