"""The simulated site as a source: paced by the clock, complete, and the same every time."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest

from edge_agent.config import SourceConfig
from edge_agent.core.records import Sample
from edge_agent.errors import ConfigError, SourceError
from edge_agent.simulate import Episode, Site
from edge_agent.sources import create
from tests.parts.delivery import HandClock

SECOND = 1_000_000_000


def source(clock: HandClock, **options: Any) -> Any:
    small = {"width": 64, "height": 48, "seed": 5} | options
    return create(SourceConfig(name="site", driver="synthetic", options=small), clock)


def take(opened: Any, count: int) -> list[Sample]:
    return list(itertools.islice(iter(lambda: opened.read(0.0), None), count))


def until(opened: Any, clock: HandClock, seconds: float) -> list[Sample]:
    """What a host gets that reads as fast as it can while the clock goes on."""
    found: list[Sample] = []
    for _ in range(round(seconds * 100)):
        while (sample := opened.read(0.0)) is not None:
            found.append(sample)
        clock.forward(0.01)
    return found


def test_all_three_kinds_come_in_real_time_with_their_own_times() -> None:
    clock = HandClock()
    opened = source(clock)
    opened.open()
    found = until(opened, clock, 3.0)
    counts = Counter(sample.kind for sample in found)
    assert counts["frame"] == 30
    assert counts["audio"] == counts["tick"] == 29
    assert counts["reading"] in range(18, 22), "seven channels a second, less what dropped out"
    since = {kind: [s.captured_ns - 10**15 for s in found if s.kind == kind] for kind in counts}
    assert since["frame"][:3] == [0, SECOND // 10, 2 * SECOND // 10]
    assert since["audio"][:2] == [0, SECOND // 10]
    assert since["reading"][-1] == 2 * SECOND
    assert all(b.seq > a.seq for kind in counts for a, b in itertools.pairwise(s for s in found if s.kind == kind))


def test_samples_are_those_of_the_site() -> None:
    clock = HandClock()
    opened = source(clock, speed=0, episodes=[{"label": "fire", "start_s": 1, "end_s": 20, "modalities": ["vision"]}])
    opened.open()
    site = Site(5, [Episode("fire", 1, 20, ("vision",))], width=64, height=48)
    found = take(opened, 120)
    frames = [sample for sample in found if sample.kind == "frame"]
    assert all(np.array_equal(frame.data, site.frame(n / 10)) for n, frame in enumerate(frames))
    wave = np.concatenate([sample.data for sample in found if sample.kind == "audio"])
    assert np.array_equal(wave, site.sound(0, len(wave)))


def test_a_tick_comes_after_everything_it_speaks_of() -> None:
    opened = source(HandClock(), speed=0)
    opened.open()
    told_ns = 0
    for sample in take(opened, 400):
        end_ns = sample.captured_ns + (len(sample.data) * SECOND // sample.rate_hz if sample.kind == "audio" else 0)
        if sample.kind == "tick":
            told_ns = sample.captured_ns
        else:
            assert end_ns >= told_ns


@pytest.mark.parametrize("muted", [["vision"], ["audio"], ["sensors"], ["vision", "sensors"]])
def test_a_muted_modality_is_not_given(muted: list[str]) -> None:
    opened = source(HandClock(), speed=0, mute=muted)
    opened.open()
    kinds = {sample.kind for sample in take(opened, 200)}
    names = {"vision": "frame", "audio": "audio", "sensors": "reading"}
    assert kinds == {"tick"} | {kind for name, kind in names.items() if name not in muted}


def test_a_machine_that_is_too_slow_skips_and_counts() -> None:
    clock = HandClock()
    opened = source(clock)
    opened.open()
    assert take(opened, 12)
    clock.forward(10.0)
    later = opened.read(0.0)
    assert later.captured_ns >= clock.now_ns - SECOND
    assert opened.counters["skipped"] > 150


def test_the_site_begins_again_after_its_loop_and_time_goes_on() -> None:
    opened = source(HandClock(), speed=0, loop_s=10, fps=2.0, mute=["audio"])
    opened.open()
    found = take(opened, 400)
    frames = [sample for sample in found if sample.kind == "frame"]
    assert np.array_equal(frames[3].data, frames[23].data)
    assert frames[23].captured_ns - frames[3].captured_ns == 10 * SECOND


def test_numbers_go_on_after_it_was_opened_again() -> None:
    opened = source(HandClock(), speed=0)
    opened.open()
    before = take(opened, 50)
    opened.close()
    opened.open()
    after = take(opened, 50)
    for kind in ("frame", "audio", "reading", "tick"):
        assert min(s.seq for s in after if s.kind == kind) > max(s.seq for s in before if s.kind == kind)


def test_it_is_read_only_while_it_is_open() -> None:
    opened = source(HandClock())
    with pytest.raises(SourceError, match=r"not open; call open\(\) first"):
        opened.read(0.0)
    opened.open()
    opened.close()
    opened.close()
    with pytest.raises(SourceError, match="not open"):
        opened.read(0.0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mute": ["vision", "audio", "sensors"]}, "every modality is muted"),
        ({"episodes": "loud"}, "options.episodes"),
        (
            {"episodes": [{"label": "flood", "start_s": 1, "end_s": 2, "modalities": ["vision"]}]},
            "no episode is called",
        ),
        ({"width": 8}, "options.width"),
        ({"sed": 3}, "sed"),
    ],
)
def test_wrong_options_are_refused_with_their_name(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        source(HandClock(), **options)
