"""The threads around the core: what is bounded, counted, restarted, swapped and kept."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from edge_agent import engine
from edge_agent.config import SceneConfig
from edge_agent.contract.event import Event, Message
from edge_agent.core.records import CLOCK, Arrays, Model, Packet, Reading, Sample
from edge_agent.errors import BundleError, SourceEnded, SourceError, StorageError
from edge_agent.health import Metrics
from edge_agent.services import (
    HANG_S,
    WAITING,
    ClockService,
    ConsoleSink,
    Mailbox,
    PipelineService,
    SourceService,
)
from tests.parts.bundle import tiny_bundle
from tests.unit.agent.footage import ORIGIN, SECOND, FakeClock

SCENE = SceneConfig(name="hall", microphone="mic")


def until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "did not come true in time"
        threading.Event().wait(0.005)


def reading(seq: int, at_ns: int = ORIGIN) -> Sample:
    return Sample("air", "reading", seq, at_ns, Reading("t", 1.0))


# --- mailbox ---


def test_the_mailbox_keeps_order_and_drops_the_oldest_of_the_same_source_and_kind() -> None:
    box = Mailbox()
    frame = np.zeros((2, 2, 3), np.uint8)
    for seq in range(WAITING["frame"] + 3):
        box.put(Sample("cam", "frame", seq, ORIGIN, frame))
        box.put(Sample(CLOCK, "tick", seq, ORIGIN))
    taken = box.take(0.0)
    assert [s.seq for s in taken if s.kind == "frame"] == list(range(3, WAITING["frame"] + 3))
    assert [s.seq for s in taken if s.kind == "tick"] == list(range(WAITING["frame"] + 3))
    assert [s.seq for s in taken[:3]] == [0, 1, 2]
    assert box.dropped == {"cam": 3}
    assert box.take(0.0) == []


def test_the_mailbox_is_bounded_whatever_comes() -> None:
    box = Mailbox()
    for seq in range(5000):
        for kind in WAITING:
            box.put(Sample("a", kind, seq, ORIGIN))
    assert len(box) == sum(WAITING.values())


def test_the_clock_ticks_and_its_numbers_rise_over_restarts() -> None:
    box, clock = Mailbox(), FakeClock()
    service = ClockService(clock, box)
    for _ in range(2):
        stop = threading.Event()
        thread = threading.Thread(target=service.run, args=(stop,))
        thread.start()
        before = len(box)
        until(lambda: len(box) >= before + 2)  # noqa: B023 - called before `before` changes
        stop.set()
        thread.join()
    seqs = [sample.seq for sample in box.take(0.0)]
    assert seqs == sorted(set(seqs))
    assert len(seqs) >= 4


# --- sources ---


class Script:
    """A source that plays what it is given: samples, None, errors, or functions to call in `read`."""

    def __init__(self, *items: object, arrival: bool = False) -> None:
        self.items = list(items)
        self.stamps_on_arrival = arrival
        self.opened = self.closed = 0

    def open(self) -> None:
        self.opened += 1

    def read(self, timeout_s: float) -> Sample | Packet | None:
        item = self.items.pop(0) if self.items else SourceEnded("script is over")
        if isinstance(item, Exception):
            raise item
        if callable(item):
            item()
            return None
        assert item is None or isinstance(item, Sample | Packet)
        return item

    def close(self) -> None:
        self.closed += 1


def service_for(
    script: Script, clock: FakeClock | None = None
) -> tuple[SourceService, Mailbox, list[Sample | Packet]]:
    box, kept = Mailbox(), []
    return SourceService("air", script, clock or FakeClock(), box, kept.append), box, kept


def test_a_source_delivers_to_pipeline_and_evidence_and_ends() -> None:
    packet = Packet("air", "video", "h264", 0, 0, 0, True, b"x")
    script = Script(reading(0), packet, reading(1))
    service, box, kept = service_for(script)
    service.run(threading.Event())
    assert [sample.seq for sample in box.take(0.0)] == [0, 1]
    assert kept == [reading(0), packet, reading(1)]
    assert service.status().state == "ended"
    assert service.status().samples == 2
    assert script.closed == 1


def test_numbers_rise_over_reconnects() -> None:
    script = Script(
        reading(0), reading(1), SourceError("cut"), reading(0), reading(1), SourceError("cut"), reading(9)
    )
    service, box, _ = service_for(script)
    for _ in range(2):
        with pytest.raises(SourceError, match="cut"):
            service.run(threading.Event())
        assert service.status().state == "down"
        assert service.status().error == "cut"
    service.run(threading.Event())
    assert [sample.seq for sample in box.take(0.0)] == [0, 1, 2, 3, 9]
    assert script.opened == script.closed == 3


def test_a_quiet_sensor_feed_reports_progress() -> None:
    clock = FakeClock()

    def wait() -> None:
        clock.now_ns += SECOND

    service, box, _ = service_for(Script(wait, reading(0, ORIGIN + SECOND), wait, arrival=True), clock)
    service.run(threading.Event())
    taken = box.take(0.0)
    assert [(s.source, s.kind, s.seq) for s in taken] == [
        ("air", "tick", 0),
        ("air", "reading", 0),
        ("air", "tick", 1),
    ]
    assert [s.captured_ns for s in taken if s.kind == "tick"] == [ORIGIN + SECOND, ORIGIN + 2 * SECOND]


def test_a_source_is_live_late_and_down() -> None:
    clock = FakeClock()
    seen: list[tuple[str, float]] = []

    def look(after_s: float) -> Callable[[], None]:
        def act() -> None:
            clock.now_ns += int(after_s * SECOND)
            status = service.status()
            seen.append((status.state, status.rate_hz))

        return act

    steady = [item for i in range(50) for item in (look(0.1), reading(i))]
    service, _, _ = service_for(Script(*steady, look(0.1), look(2.5), look(30.0)), clock)
    assert service.status().state == "down"
    service.run(threading.Event())
    assert seen[-3][0] == "live"
    assert seen[-3][1] == pytest.approx(10.0, rel=0.1)
    assert [state for state, _ in seen[-2:]] == ["late", "late"]
    assert seen[-1][1] < 1.0


def test_a_read_that_does_not_return_counts_as_hanging_and_is_closed_from_outside() -> None:
    clock, free = FakeClock(), threading.Event()

    class Hanging(Script):
        def close(self) -> None:
            super().close()
            free.set()

    def hang() -> None:
        free.wait(20)
        raise SourceError("closed")

    script = Hanging(hang)
    service, _, _ = service_for(script, clock)
    failed: list[SourceError] = []

    def run() -> None:
        try:
            service.run(threading.Event())
        except SourceError as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: script.opened)
    assert not service.stalled()
    clock.now_ns += int((HANG_S + 1) * SECOND)
    until(service.stalled)
    assert service.status().state == "down"
    service.unblock()
    thread.join(20)
    assert str(failed[0]) == "closed"


# --- pipeline ---


@dataclass
class Kept:
    """A sink that remembers, and can be out of room."""

    events: list[Event] = field(default_factory=list)
    full: bool = False
    sink: ConsoleSink = field(default_factory=lambda: ConsoleSink(FakeClock(), "boot", io.StringIO()))

    def put_all(self, events: Sequence[Event]) -> list[Message]:
        if self.full:
            raise StorageError("disk full")
        self.events += events
        return self.sink.put_all(events)

    def attach(self, *_: object) -> object:
        return None

    @property
    def phases(self) -> list[str]:
        return [event.phase for event in self.events if event.phase != "update"]


class Broken:
    """An engine that has had enough."""

    def __init__(self, good: object, error: Exception) -> None:
        self.good, self.error, self.closed = good, error, 0

    def run(self, graph: str, items: Sequence[Arrays]) -> list[dict[str, object]]:
        raise self.error

    def close(self) -> None:
        self.closed += 1


class Feed:
    """A scene's sound and time, half-second by half-second."""

    def __init__(self, box: Mailbox) -> None:
        self.box = box
        self.blocks = self.ticks = 0

    def half(self, loud: bool) -> None:
        for _ in range(5):
            t = np.arange(1600) / 16_000
            wave = (20_000 if loud else 100) * np.sin(2 * np.pi * 800 * t)
            at_ns = ORIGIN + self.blocks * SECOND // 10
            self.box.put(Sample("mic", "audio", self.blocks, at_ns, wave.astype(np.int16), rate_hz=16_000))
            self.blocks += 1
        self.ticks += 1
        self.box.put(Sample(CLOCK, "tick", self.ticks, ORIGIN + self.blocks * SECOND // 10))


@dataclass
class Rig:
    service: PipelineService
    feed: Feed
    kept: Kept
    metrics: Metrics
    stop: threading.Event = field(default_factory=threading.Event)
    error: list[BaseException] = field(default_factory=list)

    def step(self, loud: bool) -> None:
        """Feed half a second and wait until it is scored."""
        before = self.metrics.steps
        self.feed.half(loud)
        until(lambda: self.metrics.steps > before or self.error)


@contextmanager
def running(service: PipelineService, feed: Feed, kept: Kept, metrics: Metrics) -> Iterator[Rig]:
    rig = Rig(service, feed, kept, metrics)

    def run() -> None:
        try:
            service.run(rig.stop)
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            rig.error.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield rig
    finally:
        rig.stop.set()
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundles")


def model(folder: Path, seed: int = 0) -> Model:
    return engine.load(tiny_bundle(folder, seed=seed), "onnxruntime")


def pipeline(folder: Path, tmp_path: Path, first: Model | None = None) -> tuple[PipelineService, Feed, Kept, Metrics]:
    box, kept, metrics = Mailbox(), Kept(), Metrics()
    service = PipelineService(
        (SCENE,),
        first or model(folder),
        lateness_ms=200,
        mailbox=box,
        sink=kept,
        told=(),
        metrics=metrics,
        clock=FakeClock(ORIGIN + 100 * SECOND),
        state=tmp_path / "scenes.npz",
    )
    return service, Feed(box), kept, metrics


def test_samples_become_events_and_the_stop_ends_what_is_open(folder: Path, tmp_path: Path) -> None:
    with running(*pipeline(folder, tmp_path)) as rig:
        for loud in (False, False, True, True, True, True):
            rig.step(loud)
        until(lambda: rig.kept.phases == ["new"])
        rig.feed.half(loud=True)  # what waits when the stop comes is scored too
    assert not rig.error
    assert rig.kept.phases == ["new", "end"]
    assert rig.metrics.steps == 7
    assert rig.metrics.step_ms(0.99) >= 0.0
    assert (tmp_path / "scenes.npz").is_file()
    assert not (tmp_path / "scenes.npz.part").exists()


def test_the_scenes_state_lives_over_a_restart_and_a_damaged_one_is_left_out(folder: Path, tmp_path: Path) -> None:
    with running(*pipeline(folder, tmp_path)) as rig:
        rig.step(False)
    whole = (tmp_path / "scenes.npz").read_bytes()
    with np.load(tmp_path / "scenes.npz", allow_pickle=False) as arrays:
        assert any(name.startswith("hall/") for name in arrays.files)
    for damaged in (whole[: len(whole) // 2], b"", b"PK\x03\x04 nonsense"):
        (tmp_path / "scenes.npz").write_bytes(damaged)
        with running(*pipeline(folder, tmp_path)) as rig:
            rig.step(False)
        assert not rig.error


def test_a_pipeline_that_breaks_aborts_what_was_open(folder: Path, tmp_path: Path) -> None:
    first = model(folder)
    with running(*pipeline(folder, tmp_path, first)) as rig:
        for loud in (False, True, True, True):
            rig.step(loud)
        until(lambda: rig.kept.phases == ["new"])
        first.engine.close()  # the next run of a graph raises
        rig.feed.half(loud=True)
        until(lambda: rig.error)
    assert rig.kept.phases == ["new", "aborted"]
    assert rig.kept.events[-1].revision > rig.kept.events[0].revision
    assert rig.kept.events[-1].onset_step == rig.kept.events[0].onset_step


def test_an_event_that_finds_no_room_is_counted_and_the_scoring_goes_on(folder: Path, tmp_path: Path) -> None:
    with running(*pipeline(folder, tmp_path)) as rig:
        rig.kept.full = True
        for loud in (False, True, True, True, True):
            rig.step(loud)
        until(lambda: rig.service.counters["refused"] >= 1)
        rig.step(True)
    assert not rig.error


def test_a_swap_is_done_when_the_new_model_has_scored_and_loses_no_window(folder: Path, tmp_path: Path) -> None:
    old, new = model(folder), model(folder, seed=1)
    with running(*pipeline(folder, tmp_path, old)) as rig:
        for loud in (False, True, True, True):
            rig.step(loud)
        done = rig.service.request_swap(new)
        assert not done.done()
        rig.step(True)
        done.result(10)
        assert rig.service.model is new
        for loud in (True, False, False, False, False, False):
            rig.step(loud)
        with pytest.raises(ValueError, match="closed"):
            old.engine.run("audio", [{"pcm": np.zeros(16_000, np.int16)}])
    assert not rig.error
    assert rig.kept.phases == ["new", "end"]  # one event, over both models
    assert rig.kept.events[0].bundle == old.hash
    assert rig.kept.events[-1].bundle == new.hash
    steps = [point.step for event in rig.kept.events for point in event.trace]
    assert sorted(set(steps)) == list(range(min(steps), max(steps) + 1))


@pytest.mark.parametrize("error", [BundleError("bad graph"), ValueError("NaN"), RuntimeError("vendor")])
def test_a_model_that_does_not_run_leaves_the_old_one_running(folder: Path, tmp_path: Path, error: Exception) -> None:
    old, good = model(folder), model(folder, seed=1)
    bad = Model(good.manifest, good.hash, Broken(good.engine, error))
    with running(*pipeline(folder, tmp_path, old)) as rig:
        rig.step(False)
        done = rig.service.request_swap(bad)
        with pytest.raises(BundleError, match=str(error)):
            done.result(10)
        for loud in (True, True, True, False):
            rig.step(loud)
        assert rig.service.model is old
        until(lambda: rig.kept.phases == ["new"])
    assert not rig.error


def test_a_second_request_takes_the_place_of_the_first(folder: Path, tmp_path: Path) -> None:
    old, second, third = model(folder), model(folder, seed=1), model(folder, seed=2)
    with running(*pipeline(folder, tmp_path, old)) as rig:
        rig.step(False)
        first: Future[None] = rig.service.request_swap(second)
        last = rig.service.request_swap(third)
        with pytest.raises(BundleError, match="another model"):
            first.result(10)
        rig.step(False)
        last.result(10)
        assert rig.service.model is third


def test_going_back_before_the_new_model_has_scored_keeps_the_old_engine_open(folder: Path, tmp_path: Path) -> None:
    old, new = model(folder), model(folder, seed=1)
    with running(*pipeline(folder, tmp_path, old)) as rig:
        rig.step(False)
        tried = rig.service.request_swap(new)
        until(lambda: rig.service.model is new)  # no window comes: nothing is proven
        back = rig.service.request_swap(old)
        with pytest.raises(BundleError, match="another model"):
            tried.result(10)
        rig.step(False)
        back.result(10)
        assert rig.service.model is old
        rig.step(False)
    assert not rig.error


def test_a_stop_cancels_a_swap_that_has_not_been_proven(folder: Path, tmp_path: Path) -> None:
    with running(*pipeline(folder, tmp_path)) as rig:
        rig.step(False)
        done = rig.service.request_swap(model(folder, seed=1))
        until(lambda: rig.service.model.manifest.name == "tiny-1")
    assert done.cancelled(), "an error would say that the model is bad"


# --- console ---


def test_the_console_says_what_happened_in_one_line() -> None:
    out = io.StringIO()
    kept = Kept(sink=ConsoleSink(FakeClock(), "boot", out))
    event = Event(
        scene="hall",
        label="fire",
        phase="new",
        onset_step=4,
        step=5,
        step_ms=500,
        revision=1,
        score=0.93,
        peak=0.95,
        threshold=0.6,
    )
    (first,) = kept.put_all([event])
    (last,) = kept.put_all(
        [Event(**{name: getattr(event, name) for name in event.__struct_fields__} | {"phase": "end"})]
    )
    assert first.id == last.id
    line = out.getvalue().splitlines()[0]
    assert line.split()[:4] == ["NEW", "fire", "in", "hall"]
    assert "score 0.93 of 0.60" in line
    assert "vision +0.0" in line
