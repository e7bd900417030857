"""The normal memory: what covers a scene, what is new to it, and what may not teach it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_agent.core.memory import AN_HOUR, CAPACITY, FIRST, HOURS, TRUSTED, Memory, coreset
from edge_agent.core.records import F32

SIZE = 8
#: Windows that an hour shows.
SHOWN = 60


def scene(rng: np.random.Generator, count: int, places: int = 6) -> F32:
    """Normal windows: a few states of a scene, and noise."""
    centres = np.random.default_rng(7).normal(size=(places, SIZE))
    return np.asarray(centres[rng.integers(0, places, count)] + 0.1 * rng.normal(size=(count, SIZE)), np.float32)


def odd(rng: np.random.Generator, count: int) -> F32:
    """Windows of something else."""
    return np.asarray(9.0 + 0.1 * rng.normal(size=(count, SIZE)), np.float32)


def grown(hours: int = 12, seed: int = 1) -> Memory:
    rng, memory = np.random.default_rng(seed), Memory(SIZE)
    for hour in range(hours):
        for vector in scene(rng, SHOWN):
            memory.learn(vector, hour)
    return memory


def test_a_coreset_covers_what_it_was_chosen_from() -> None:
    vectors = scene(np.random.default_rng(3), 500)
    chosen = coreset(vectors, 6)
    apart = np.linalg.norm(vectors[:, None] - vectors[chosen][None], axis=2).min(1)
    assert len(set(chosen)) == 6
    assert apart.max() < 1.0  # every state of the scene has one
    assert len(coreset(np.ones((9, SIZE), np.float32), 6)) == 1


def test_it_begins_with_what_it_is_shown_first() -> None:
    rng, memory = np.random.default_rng(3), Memory(SIZE)
    for vector in scene(rng, TRUSTED - 1):
        memory.learn(vector, 0)
    assert not memory.ready
    assert memory.novelty(odd(rng, 1)[0]) == 0.0
    memory.learn(scene(rng, 1)[0], 0)
    assert memory.ready
    assert len(memory) == FIRST


def test_what_is_normal_is_near_and_what_is_not_is_far() -> None:
    rng, memory = np.random.default_rng(4), grown()
    normal = [memory.novelty(vector) for vector in scene(rng, 300)]
    assert np.quantile(normal, 0.99) < 6
    assert memory.novelty(odd(rng, 1)[0]) > 30


def test_recorded_footage_fills_it_at_once() -> None:
    rng, memory = np.random.default_rng(4), Memory(SIZE)
    memory.fill(scene(rng, 2000))
    assert len(memory) == CAPACITY
    assert memory.novelty(odd(rng, 1)[0]) > 30


def test_a_new_normal_is_learned_in_three_hours_and_not_before() -> None:
    rng, memory = np.random.default_rng(5), grown()
    novelty = []
    for hour in range(12, 12 + HOURS):
        for vector in odd(rng, SHOWN):
            memory.learn(vector, hour)
        novelty.append(memory.novelty(odd(rng, 1)[0]))
    assert min(novelty[:-1]) > 30
    assert novelty[-1] < 6


@given(st.integers(0, 2**32 - 1), st.sampled_from(["one thing", "anything", "creeping"]))
@settings(max_examples=12, deadline=None)
def test_no_hour_teaches_it_more_than_a_few_percent(seed: int, kind: str) -> None:
    rng, memory = np.random.default_rng(seed), grown(seed=seed % 5)
    for hour in range(12, 15):
        before = {vector.tobytes() for vector in memory.to_arrays()["known"]}
        for index in range(200):
            vector = {
                "one thing": odd(rng, 1)[0],
                "anything": rng.normal(0, 9, SIZE).astype(np.float32),
                "creeping": np.float32(0.045 * (index + 200 * (hour - 12))) * np.ones(SIZE, np.float32),
            }[kind]
            memory.learn(vector, hour)
        after = {vector.tobytes() for vector in memory.to_arrays()["known"]}
        assert len(after - before) <= AN_HOUR <= 0.04 * CAPACITY
        assert len(before - after) <= AN_HOUR
    assert np.quantile([memory.novelty(vector) for vector in scene(rng, 50)], 0.9) < 6


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=8, deadline=None)
def test_it_stays_bounded_and_goes_on_from_a_snapshot_as_if_nothing_had_been(seed: int) -> None:
    rng, memory = np.random.default_rng(seed), Memory(SIZE)
    again = memory
    for hour in range(60):
        for vector in rng.choice([0.5, 5.0]) * rng.normal(size=(20, SIZE)).astype(np.float32).round(
            int(rng.integers(2))
        ):
            memory.learn(vector, hour)
            if again is not memory:
                again.learn(vector, hour)
        if hour == 30:
            again = Memory.from_arrays(SIZE, memory.to_arrays())
    arrays = memory.to_arrays()
    assert len(arrays["known"]) <= CAPACITY
    assert len(arrays["waiting"]) <= TRUSTED
    for name, array in again.to_arrays().items():
        np.testing.assert_array_equal(array, arrays[name])
    probe = rng.normal(size=SIZE).astype(np.float32)
    assert again.novelty(probe) == memory.novelty(probe)


def test_a_full_memory_forgets_what_was_not_seen_for_two_weeks() -> None:
    rng, memory = np.random.default_rng(6), Memory(SIZE)
    memory.fill(np.asarray(rng.normal(size=(CAPACITY, SIZE)), np.float32))
    for hour in (400, 401, 402):
        for vector in odd(rng, SHOWN):
            memory.learn(vector, hour)
    assert len(memory) == CAPACITY
    assert memory.novelty(odd(rng, 1)[0]) < 6


def test_a_blind_camera_is_no_trouble() -> None:
    memory = Memory(SIZE)
    for hour in range(5):
        for _ in range(SHOWN):
            memory.learn(np.zeros(SIZE, np.float32), hour)
    assert memory.novelty(np.zeros(SIZE, np.float32)) <= 0
    assert memory.novelty(np.ones(SIZE, np.float32)) > 6


@pytest.mark.parametrize(
    "damage",
    [
        {"known": np.zeros((2, SIZE + 1), np.float32)},
        {"known": np.full((2, SIZE), np.nan, np.float32)},
        {"known": np.zeros((CAPACITY + 1, SIZE), np.float32)},
        {"hit": np.zeros(1, np.int64)},
        {"hit": np.zeros(FIRST, np.float64)},
        {"seen": np.full((0, 3), 1, np.int64)},
        {"hour": np.array([-1, 0])},
    ],
)
def test_what_is_no_memory_is_refused(damage: dict[str, NDArray[Any]]) -> None:
    memory = grown(2)
    with pytest.raises(ValueError, match="memory"):
        Memory.from_arrays(SIZE, {**memory.to_arrays(), **damage})
