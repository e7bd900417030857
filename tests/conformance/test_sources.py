"""What every source keeps to, whatever it reads: one suite over all drivers that ship."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from edge_agent.clock import SystemClock
from edge_agent.config import SourceConfig
from edge_agent.core.records import Packet, Reading, Sample, Source
from edge_agent.errors import SourceEnded, SourceError
from edge_agent.sources import create
from edge_agent.sources.recording import Recorder
from tests.parts.mosquitto import free_port, mosquitto
from tests.parts.pulse import DEVICE, pulse_sink
from tests.parts.rtsp import clip, rtsp_server

CLOCK = SystemClock()
SECOND = 1_000_000_000


def source(driver: str, **options: object) -> Source:
    return create(SourceConfig(name="under-test", driver=driver, options=dict(options)), CLOCK)


@dataclass(frozen=True)
class Case:
    """A driver in use: what it needs, how it is made, and a source of it that cannot be opened."""

    name: str
    kinds: frozenset[str]
    working: Callable[[Path], AbstractContextManager[Source]]
    broken: Callable[[Path], Source]
    needs: tuple[str, ...] = ()
    finite: bool = False

    def __str__(self) -> str:
        return self.name


@contextlib.contextmanager
def file_camera(folder: Path) -> Iterator[Source]:
    yield source("camera", url=str(clip(folder / "clip.mp4", seconds=1)))


@contextlib.contextmanager
def rtsp_camera(folder: Path) -> Iterator[Source]:
    with rtsp_server(clip(folder / "clip.mp4", seconds=2)) as server:
        yield source("camera", url=server.url, allow_local=True)


@contextlib.contextmanager
def microphone(_: Path) -> Iterator[Source]:
    with pulse_sink() as sink:
        sink.play((8000 * np.sin(np.arange(60 * 16000) * 2 * np.pi * 880 / 16000)).astype(np.int16))
        yield source("microphone", device=DEVICE)


@contextlib.contextmanager
def sensors(folder: Path) -> Iterator[Source]:
    """A broker, and a thermometer that speaks ten times a second."""
    with mosquitto(folder / "broker") as broker:
        client = paho.Client(CallbackAPIVersion.VERSION2)
        client.connect(broker.host, broker.port)
        stop = threading.Event()

        def speak() -> None:
            while not stop.wait(0.1):
                client.publish("room/climate", '{"temperature": 21.5}')

        speaker = threading.Thread(target=speak, name="thermometer")
        client.loop_start()
        speaker.start()
        try:
            feed = {"topic": "room/climate", "fields": {"temperature": "temperature"}}
            yield source("mqtt", host=broker.host, port=broker.port, feeds=[feed])
        finally:
            stop.set()
            speaker.join()
            client.disconnect()
            client.loop_stop()


def table(folder: Path, rows: int = 20) -> Path:
    path = folder / "climate.csv"
    path.write_text("temperature\n" + "".join(f"{20 + row / 10}\n" for row in range(rows)))
    return path


@contextlib.contextmanager
def csv_table(folder: Path) -> Iterator[Source]:
    yield source("csv", path=str(table(folder)), channels={"temperature": "temperature"}, rate_hz=20.0)


@contextlib.contextmanager
def simulated(_: Path) -> Iterator[Source]:
    yield source("synthetic", seed=3, width=64, height=48)


@contextlib.contextmanager
def recorded(folder: Path) -> Iterator[Source]:
    """A second of a yard, recorded before."""
    described = SourceConfig(name="yard", driver="camera")
    with contextlib.closing(
        Recorder(folder / "session", created="2026-01-01T00:00:00Z", sources=[described])
    ) as recorder:
        for index in range(10):
            at_ns = 5 * SECOND + index * SECOND // 10
            picture = np.full((48, 64, 3), 20 * index, np.uint8)
            recorder.put(Sample("yard", "frame", index, at_ns, picture))
            recorder.put(Sample("yard", "audio", index, at_ns, np.full(1600, index, np.int16), 16000))
            recorder.put(Sample("yard", "reading", index, at_ns, Reading("temperature", 20.0 + index)))
    yield source("replay", path=str(folder / "session"))


MEDIA = frozenset({"frame", "audio"})
CASES = (
    Case(
        "camera-file",
        MEDIA,
        file_camera,
        lambda folder: source("camera", url=str(folder / "absent.mp4")),
        ("ffmpeg",),
        finite=True,
    ),
    Case(
        "camera-rtsp",
        MEDIA,
        rtsp_camera,
        lambda _: source("camera", url=f"rtsp://127.0.0.1:{free_port()}/x", allow_local=True, timeout_s=2.0),
        ("ffmpeg", "gst-rtsp"),
    ),
    Case(
        "microphone",
        frozenset({"audio"}),
        microphone,
        lambda _: source("microphone", device="no such device"),
        ("pulseaudio",),
    ),
    Case(
        "mqtt",
        frozenset({"reading"}),
        sensors,
        lambda _: source(
            "mqtt", host="127.0.0.1", port=free_port(), feeds=[{"shape": "number", "topic": "a"}], timeout_s=1.0
        ),
        ("mosquitto",),
    ),
    Case(
        "csv",
        frozenset({"reading"}),
        csv_table,
        lambda folder: source("csv", path=str(folder / "absent.csv"), channels={"a": "a"}, rate_hz=1.0),
        finite=True,
    ),
    Case(
        "replay",
        MEDIA | {"reading"},
        recorded,
        lambda folder: source("replay", path=str(folder / "absent")),
        finite=True,
    ),
    Case("synthetic", MEDIA | {"reading"}, simulated, lambda _: pytest.skip("a simulated site is always there")),
)
WORKING = [pytest.param(case, id=case.name, marks=[pytest.mark.needs(part) for part in case.needs]) for case in CASES]
BREAKABLE = [each for each, case in zip(WORKING, CASES, strict=True) if case.name != "synthetic"]
ENDING = [each for each, case in zip(WORKING, CASES, strict=True) if case.finite]


def read_until(
    device: Source, done: Callable[[list[Sample | Packet]], bool], limit_s: float = 20
) -> list[Sample | Packet]:
    """Items until there are enough."""
    items: list[Sample | Packet] = []
    deadline = time.monotonic() + limit_s
    while not done(items):
        assert time.monotonic() < deadline, f"only {len(items)} items came"
        item = device.read(0.2)
        if item is not None:
            items.append(item)
    return items


def has_kinds(kinds: frozenset[str], each: int) -> Callable[[list[Sample | Packet]], bool]:
    def done(items: list[Sample | Packet]) -> bool:
        found = [item.kind for item in items if isinstance(item, Sample)]
        return all(found.count(kind) >= each for kind in kinds)

    return done


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def check_data(sample: Sample) -> None:
    if sample.kind == "frame":
        assert sample.data.dtype == np.uint8
        assert sample.data.ndim == 3
        assert sample.data.shape[2] == 3
    elif sample.kind == "audio":
        assert sample.data.dtype == np.int16
        assert sample.data.ndim == 1
        assert sample.rate_hz == 16000
        assert 0.01 <= sample.data.size / sample.rate_hz <= 0.1
    else:
        assert isinstance(sample.data, Reading)
        assert np.isfinite(sample.data.value)


@pytest.mark.parametrize("case", WORKING)
def test_gives_ordered_samples_with_the_time_of_now(case: Case, tmp_path: Path) -> None:
    with case.working(tmp_path) as device:
        device.open()
        began_ns = CLOCK.monotonic_ns()
        try:
            items = read_until(device, has_kinds(case.kinds, 5))
        finally:
            device.close()
        for kind in case.kinds:
            samples = [item for item in items if isinstance(item, Sample) and item.kind == kind]
            assert all(before.seq < after.seq for before, after in itertools.pairwise(samples))
            times = [sample.captured_ns for sample in samples]
            assert times == sorted(times)
            assert times[0] > began_ns - 5 * SECOND
            assert times[-1] < CLOCK.monotonic_ns() + SECOND // 10
            for sample in samples:
                assert sample.source == "under-test"
                check_data(sample)


@pytest.mark.parametrize("case", WORKING)
def test_opens_again_and_its_numbers_go_on(case: Case, tmp_path: Path) -> None:
    with case.working(tmp_path) as device:
        last: dict[str, int] = {}
        for _ in range(2):
            device.open()
            try:
                items = read_until(device, has_kinds(case.kinds, 2))
            finally:
                device.close()
            for item in items:
                if isinstance(item, Sample):
                    assert item.seq > last.get(item.kind, -1), "the pipeline would drop it as seen before"
                    last[item.kind] = item.seq


@pytest.mark.parametrize("case", WORKING)
def test_a_read_that_finds_nothing_gives_none(case: Case, tmp_path: Path) -> None:
    with case.working(tmp_path) as device:
        device.open()
        try:
            deadline = time.monotonic() + 10
            while device.read(0.0) is not None:
                assert time.monotonic() < deadline, "a source in real time has pauses"
        finally:
            device.close()


@pytest.mark.parametrize("case", WORKING)
def test_close_may_come_twice_and_a_read_behind_it_fails(case: Case, tmp_path: Path) -> None:
    with case.working(tmp_path) as device:
        device.close()
        device.open()
        device.close()
        device.close()
        with pytest.raises(SourceError):
            device.read(0.1)


@pytest.mark.parametrize("case", WORKING)
def test_close_from_another_thread_ends_a_waiting_read(case: Case, tmp_path: Path) -> None:
    with case.working(tmp_path) as device:
        device.open()
        ended: list[Exception] = []
        reading = threading.Event()

        def read() -> None:
            try:
                while True:
                    device.read(30)
                    reading.set()
            except SourceError as error:
                ended.append(error)

        reader = threading.Thread(target=read, name="reader")
        reader.start()
        assert reading.wait(10)
        device.close()
        reader.join(3)
        device.close()
        assert not reader.is_alive()
        assert ended


@pytest.mark.parametrize("case", BREAKABLE)
def test_a_failed_open_leaves_nothing_behind(case: Case, tmp_path: Path) -> None:
    device = case.broken(tmp_path)
    with pytest.raises(SourceError):  # once before counting: libraries keep files of their own from first use
        device.open()
    files, threads = open_files(), threading.active_count()
    for _ in range(3):
        with pytest.raises(SourceError) as caught:
            device.open()
        said = str(caught.value)
        assert "under-test" in said or str(tmp_path) in said, "the message names the source, or what it was to open"
    device.close()
    assert threading.active_count() == threads
    assert open_files() == files


@pytest.mark.parametrize("case", WORKING)
def test_opening_and_closing_leaks_no_thread_and_no_file(case: Case, tmp_path: Path) -> None:
    with case.working(tmp_path) as device:
        counts = []
        for _ in range(4):
            device.open()
            read_until(device, bool)
            device.close()
            counts.append((open_files(), threading.active_count()))
        assert counts[1] == counts[2] == counts[3]


@pytest.mark.parametrize("case", ENDING)
def test_a_finite_source_says_that_it_has_ended(case: Case, tmp_path: Path) -> None:
    with case.working(tmp_path) as device:
        device.open()
        try:
            with pytest.raises(SourceEnded):
                read_until(device, lambda _: False, limit_s=15)
            with pytest.raises(SourceEnded):
                device.read(0.1)
        finally:
            device.close()
