"""Sessions for the replay tests: a simulated site, read through its driver, with the host's ticks in between."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent.config import Channel, SceneConfig, SourceConfig
from edge_agent.core.records import CLOCK, Box, Packet, Sample
from edge_agent.sources import create
from edge_agent.sources.recording import Coding, Recorder
from tests.parts.delivery import HandClock

SECOND = 1_000_000_000
SOURCE = SourceConfig(name="site", driver="synthetic")
SCENE = SceneConfig(
    name="yard",
    camera="site",
    microphone="site",
    sensors=(Channel(source="site", channel="smoke", quantity="smoke"),),
)


def simulated(seconds: float, **options: Any) -> Iterator[Sample]:
    """Everything that the pipeline gets in so many seconds; times begin at 10^15 ns."""
    clock = HandClock()
    chosen = {"width": 96, "height": 72, "seed": 12, "speed": 0, "loop_s": 600} | options
    source = create(SourceConfig(name="site", driver="synthetic", options=chosen), clock)
    source.open()
    ticks = 0
    while True:
        sample = source.read(0.0)
        assert isinstance(sample, Sample)
        if sample.captured_ns >= clock.now_ns + seconds * SECOND:
            break
        while clock.now_ns + ticks * SECOND // 20 <= sample.captured_ns:
            yield Sample(CLOCK, "tick", ticks, clock.now_ns + ticks * SECOND // 20)
            ticks += 1
        yield sample
    source.close()


def found(sample: Sample) -> Sample:
    """Objects that a detector might have seen in a frame."""
    boxes = (Box("person", 0.9, 0.1, 0.2, 0.3, 0.9), Box("bag", 0.25, 0.5, 0.5, 0.6, 0.75))
    return Sample("site", "objects", sample.seq, sample.captured_ns, boxes)


def record(folder: Path, items: Iterable[Sample | Packet], pictures: Coding = "lossless") -> Recorder:
    """A closed recording of `items`."""
    recorder = Recorder(folder, created="2026-01-01T00:00:00Z", sources=[SOURCE], scenes=[SCENE], pictures=pictures)
    for item in items:
        recorder.put(item)
    recorder.close()
    return recorder


def same(a: Sample | Packet, b: Sample | Packet) -> bool:
    """Whether two items are equal, pixels and sound included."""
    if isinstance(a, Packet) or isinstance(b, Packet):
        return a == b
    head = (a.source, a.kind, a.seq, a.captured_ns, a.rate_hz) == (b.source, b.kind, b.seq, b.captured_ns, b.rate_hz)
    return head and (np.array_equal(a.data, b.data) if isinstance(a.data, np.ndarray) else a.data == b.data)
