"""A modality that is missing, noisy, frozen or of another place."""

from __future__ import annotations

import numpy as np
import pytest

from edge_agent.contract.event import Modality
from edge_agent.core.records import CLOCK, Reading, Sample
from models.evaluation.disturb import HOWS, KINDS, How, disturbed


def stream(seed: int, count: int = 6) -> list[Sample]:
    rng = np.random.default_rng(seed)
    found: list[Sample] = []
    for i in range(count):
        at_ns = i * 6_000_000_000
        found.append(Sample("camera", "frame", i, at_ns, rng.integers(0, 256, (8, 12, 3), np.uint8)))
        found.append(Sample("camera", "audio", i, at_ns, rng.integers(-999, 999, 80, np.int16), 16_000))
        for k in range(2):
            found.append(Sample("air", "reading", 2 * i + k, at_ns, Reading(f"c{k}", float(rng.normal(20)))))
        found.append(Sample(CLOCK, "tick", i, at_ns))
    return found


def run(modality: Modality, how: How, seed: int = 0) -> list[Sample]:
    return list(disturbed(stream(1), modality, how, np.random.default_rng(seed), stream(2)))


def same(one: Sample, two: Sample) -> bool:
    if isinstance(one.data, np.ndarray):
        return bool(np.array_equal(one.data, two.data))
    return bool(one.data == two.data)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("modality", list(KINDS))
def test_only_that_modality_changes_and_nothing_of_the_input(modality: Modality, how: How) -> None:
    kind, before = KINDS[modality], stream(1)
    given = stream(1)
    after = list(disturbed(given, modality, how, np.random.default_rng(0), stream(2)))
    others = [s for s in after if s.kind != kind]
    assert all(same(a, b) for a, b in zip(others, [s for s in before if s.kind != kind], strict=True))
    assert all(same(a, b) for a, b in zip(given, before, strict=True))
    changed = [s for s in after if s.kind == kind]
    own = [s for s in before if s.kind == kind]
    if how == "missing":
        assert not changed
    else:
        assert [(s.seq, s.captured_ns) for s in changed] == [(s.seq, s.captured_ns) for s in own]
        assert not all(same(a, b) for a, b in zip(changed, own, strict=True))


def test_frozen_repeats_the_first_of_each_channel() -> None:
    values = [s.data for s in run("sensors", "frozen") if s.kind == "reading"]
    assert {v.channel: v.value for v in values[:2]} == {v.channel: v.value for v in values[-2:]}


def test_contradicting_carries_the_other_place() -> None:
    frames = [s.data for s in run("vision", "contradicting") if s.kind == "frame"]
    wanted = [s.data for s in stream(2) if s.kind == "frame"]
    assert all(np.array_equal(a, b) for a, b in zip(frames, wanted, strict=True))


def test_contradicting_needs_a_stream_that_lasts() -> None:
    with pytest.raises(ValueError, match="fewer samples"):
        list(disturbed(stream(1), "audio", "contradicting", np.random.default_rng(0), stream(2, 2)))


def test_the_same_seed_gives_the_same_noise() -> None:
    one, two, three = (run("audio", "noisy", seed) for seed in (3, 3, 4))
    assert all(same(a, b) for a, b in zip(one, two, strict=True))
    assert not all(same(a, b) for a, b in zip(one, three, strict=True))


def test_a_sensor_that_has_dropped_out_there_is_missing_here() -> None:
    other = [s for s in stream(2) if not (s.kind == "reading" and s.data.channel == "c1" and s.captured_ns >= 18e9)]
    after = list(disturbed(stream(1), "sensors", "contradicting", np.random.default_rng(0), other))
    readings = [s for s in after if s.kind == "reading"]
    wanted = [s for s in other if s.kind == "reading"]
    assert [(s.captured_ns, s.data) for s in readings] == [(s.captured_ns, s.data) for s in wanted]
