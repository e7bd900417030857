"""What was recorded comes back; what is broken says where, and what to do."""

from __future__ import annotations

import dataclasses
import json
import re
import tracemalloc
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.config import SceneConfig, SourceConfig
from edge_agent.core.records import Packet, Reading, Sample
from edge_agent.errors import SourceEnded, SourceError, StorageError
from edge_agent.sources import create
from edge_agent.sources.recording import Recorder
from edge_agent.sources.replay import items, samples, session
from tests.parts.delivery import HandClock
from tests.replay.sessions import SCENE, SECOND, SOURCE, found, record, same, simulated


def packet(n: int, extradata: bytes = b"\x01config") -> Packet:
    when = 10**15 + n * SECOND // 10
    return Packet(
        "site", "video", "h264", when + 5, when, SECOND // 10, n % 10 == 0, bytes([n]) * (n + 1), extradata, 96, 72
    )


def played(stream: Iterator[Any]) -> tuple[list[Any], SourceError | None]:
    """What came before a stream ended, and the reason if it gave one."""
    back: list[Any] = []
    try:
        for item in stream:
            back.append(item)
    except SourceError as error:
        return back, error
    return back, None


def put_all(recorder: Recorder, stream: Iterable[Sample | Packet]) -> None:
    for item in stream:
        recorder.put(item)


def mixed(seconds: float = 4.0) -> list[Sample | Packet]:
    """Every kind there is."""
    out: list[Sample | Packet] = []
    for sample in simulated(seconds):
        out.append(sample)
        if sample.kind == "frame":
            out += [found(sample), packet(sample.seq, b"\x01later" if sample.seq > 20 else b"\x01config")]
    return out


def test_everything_comes_back_in_its_order(tmp_path: Path) -> None:
    given = mixed()
    recorder = record(tmp_path, given)
    back = list(items(tmp_path))
    assert len(back) == len(given)
    assert all(same(a, b) for a, b in zip(given, back, strict=True))
    assert {getattr(item, "kind", "packet") for item in back} == {
        "frame", "audio", "reading", "objects", "tick", "packet",
    }  # fmt: skip
    assert recorder.counters["refused"] == 0
    assert [s for s in samples(tmp_path) if isinstance(s, Packet)] == []


def test_the_manifest_says_what_it_is_and_no_secret(tmp_path: Path) -> None:
    secret = SourceConfig(name="site", driver="camera", options={"url": "rtsp://user:hunter2@cam/1"})
    recorder = Recorder(tmp_path, created="2026-01-01T00:00:00Z", sources=[secret], scenes=[SCENE])
    recorder.close()
    told = session(tmp_path)
    assert told.version == 1
    assert told.complete
    assert [(source.name, source.driver) for source in told.sources] == [("site", "camera")]
    assert told.scenes == (SCENE,)
    assert told.pictures == "lossless"
    assert "hunter2" not in (tmp_path / "manifest.json").read_text()


def test_lossy_pictures_are_near_and_everything_else_is_exact(tmp_path: Path) -> None:
    given = list(simulated(3.0, width=320, height=240))
    record(tmp_path, given, "high")
    for a, b in zip(given, samples(tmp_path), strict=True):
        if a.kind == "frame":
            assert np.abs(a.data.astype(int) - b.data).mean() < 3
            assert abs(a.data.mean() - b.data.mean()) < 0.7, "no shift of colour range"
        else:
            assert same(a, b)


def test_a_source_that_comes_back_in_another_shape_gets_other_files(tmp_path: Path) -> None:
    small, large = list(simulated(1.0)), list(simulated(1.0, width=128, height=96, rate_hz=8000))
    given = small + [dataclasses.replace(s, seq=s.seq + 1000, captured_ns=s.captured_ns + 2 * SECOND) for s in large]
    record(tmp_path, given)
    assert all(same(a, b) for a, b in zip(given, samples(tmp_path), strict=True))
    assert len(list((tmp_path / "media").glob("site-frames-*.mkv"))) == 2


def test_what_could_not_come_back_is_refused_and_counted(tmp_path: Path) -> None:
    bad = [
        Sample("site", "reading", 0, 5, Reading("smoke", float("nan"))),
        Sample("site", "frame", 0, 5, np.zeros((4, 4), np.uint8)),
        Sample("site", "audio", 0, 5, np.zeros(4, np.float32), 16_000),
    ]
    recorder = record(tmp_path, bad)
    assert recorder.counters["refused"] == 3
    assert list(samples(tmp_path)) == []


def test_nothing_behind_a_mask_is_stored(tmp_path: Path) -> None:
    left, right = ((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0)), ((0.9, 0.0), (1.0, 0.0), (1.0, 1.0))
    scenes = [SceneConfig(name=name, camera="site", masks=(mask,)) for name, mask in (("a", left), ("b", right))]
    recorder = Recorder(tmp_path, created="2026-01-01T00:00:00Z", sources=[SOURCE], scenes=scenes)
    given = [Sample("site", "frame", n, n * SECOND, np.full((40, 60, 3), 200, np.uint8)) for n in range(3)]
    put_all(recorder, [*given, packet(0), dataclasses.replace(packet(1), stream="audio", codec="aac")])
    recorder.close()
    *frames, sound = items(tmp_path)
    assert isinstance(sound, Packet)
    assert sound.stream == "audio", "what is heard has no mask"
    assert recorder.counters["masked"] == 1
    for frame in frames:
        assert (frame.data[:, :30] == 0).all()
        assert (frame.data[:20, 58:] == 0).all()
        assert (frame.data[:, 32:50] == 200).all()


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data")
    with pytest.raises(StorageError, match="is not empty: name a new folder"):
        Recorder(tmp_path, created="2026-01-01T00:00:00Z")
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_a_full_recording_stops_and_what_it_has_can_be_played(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, created="2026-01-01T00:00:00Z", max_bytes=300_000)
    with pytest.raises(StorageError, match="reached its limit of 300000 bytes"):
        put_all(recorder, simulated(60.0))
    recorder.close()
    assert sum(1 for _ in samples(tmp_path)) >= 256


def test_memory_does_not_grow_with_the_recording(tmp_path: Path) -> None:
    given = list(simulated(4.0, width=64, height=48))
    recorder = Recorder(tmp_path, created="2026-01-01T00:00:00Z")
    tracemalloc.start()
    sizes = []
    for turn in range(12):
        for sample in given:
            moved = dataclasses.replace(
                sample, seq=sample.seq + 1000 * turn, captured_ns=sample.captured_ns + 4 * turn * SECOND
            )
            recorder.put(moved)
        sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    recorder.close()
    assert sizes[-1] - sizes[1] < 200_000


# --- cut off and damaged --------------------------------------------------------------------------------------------


def crashed(folder: Path, given: Iterable[Sample | Packet]) -> Recorder:
    """A recording whose process was killed: never closed. The recorder is returned so that it lives on."""
    recorder = Recorder(folder, created="2026-01-01T00:00:00Z", pictures="lossless")
    for item in given:
        recorder.put(item)
    return recorder


def test_a_crash_loses_the_last_moments_only_and_says_so(tmp_path: Path) -> None:
    given = list(simulated(8.0))
    recorder = crashed(tmp_path, given)
    back, reason = played(items(tmp_path))
    recorder.close()
    assert re.search(r"was cut off: played \d+ lines, then", str(reason))
    assert isinstance(reason, SourceEnded)
    assert all(same(a, b) for a, b in zip(given, back, strict=False))
    assert len(back) > len(given) / 2


@pytest.mark.parametrize("damage", ["line", "media"])
def test_what_is_torn_replays_up_to_the_tear(tmp_path: Path, damage: str) -> None:
    given = mixed(3.0)
    record(tmp_path, given)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"complete": False}))
    torn = tmp_path / "samples.jsonl" if damage == "line" else next((tmp_path / "media").glob("*.mkv"))
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size * 2 // 3])
    back, reason = played(items(tmp_path))
    assert "was cut off" in str(reason)
    assert isinstance(reason, SourceEnded)
    assert len(back) > len(given) / 3
    assert all(same(a, b) for a, b in zip(given, back, strict=False))


def corrupt_line(folder: Path) -> None:
    lines = (folder / "samples.jsonl").read_bytes().split(b"\n")
    lines[6] = b'{"k":"frame","s":"site","q":'
    (folder / "samples.jsonl").write_bytes(b"\n".join(lines))


def climbing_line(folder: Path) -> None:
    lines = (folder / "samples.jsonl").read_bytes().split(b"\n")
    lines[6] = b'{"k":"frame","s":"site","q":0,"t":5,"media":"../../etc/passwd.mkv","n":0}'
    (folder / "samples.jsonl").write_bytes(b"\n".join(lines))


def missing_media(folder: Path) -> None:
    next((folder / "media").glob("*.mkv")).unlink()


def other_media(folder: Path) -> None:
    next((folder / "media").glob("*.mkv")).write_bytes(b"no pictures here" * 99)


def short_media(folder: Path) -> None:
    wav = next((folder / "media").glob("*.wav"))
    wav.write_bytes(wav.read_bytes()[:5000])


def missing_lines(folder: Path) -> None:
    lines = (folder / "samples.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "samples.jsonl").write_bytes(b"".join(lines[:-3]))


def endless_line(folder: Path) -> None:
    (folder / "samples.jsonl").write_bytes(b"[" * 1_000_000)


def changed(**values: Any) -> Any:
    def change(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | values))

    return change


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (corrupt_line, r"samples.jsonl line 7: .*The recording is damaged: copy it again"),
        (climbing_line, r"line 7: .*media"),
        (missing_media, r"site-frames-1.mkv is not there.*damaged"),
        (other_media, r"damaged"),
        (short_media, r"site-sound-1.wav ends before it.*damaged"),
        (missing_lines, r"the folder was changed after recording; copy it again"),
        (endless_line, r"line 1: .*damaged"),
        (
            changed(version=2),
            r"has version 2, this agent plays version 1: use the agent that made it, or record again",
        ),
        (changed(pictures="jpeg"), r"manifest.json is damaged"),
        (changed(version="one"), r"manifest.json is damaged"),
        (lambda folder: (folder / "manifest.json").unlink(), r"no recording in .*Make one with `edge-agent record`"),
        (lambda folder: (folder / "samples.jsonl").unlink(), r"has no samples.jsonl"),
        (lambda folder: (folder / "manifest.json").write_bytes(b"[" * 200_000), r"manifest.json is damaged"),
    ],
)
def test_a_bad_recording_says_what_is_wrong_and_what_to_do(tmp_path: Path, damage: Any, says: str) -> None:
    record(tmp_path, simulated(1.5))
    damage(tmp_path)
    with pytest.raises(SourceError, match=says) as caught:
        list(samples(tmp_path))
    assert not isinstance(caught.value, SourceEnded)


# --- as a source ----------------------------------------------------------------------------------------------------


def replay(clock: HandClock, folder: Path, **options: Any) -> Any:
    return create(SourceConfig(name="again", driver="replay", options={"path": str(folder)} | options), clock)


def test_a_recording_plays_as_a_source_with_times_of_now(tmp_path: Path) -> None:
    given = [item for item in mixed(2.0) if getattr(item, "source", "") == "site"]
    record(tmp_path, given)
    clock = HandClock(5 * 10**15)
    source = replay(clock, tmp_path)
    source.open()

    def reads() -> Iterator[Any]:
        while True:
            item = source.read(0.0)
            if item is None:
                clock.forward(0.01)
            else:
                assert item.captured_ns <= clock.now_ns
                yield item

    back, reason = played(reads())
    source.close()
    assert isinstance(reason, SourceEnded)
    assert "has been played" in str(reason)
    shift_ns = back[0].captured_ns - given[0].captured_ns
    assert back[0].captured_ns == 5 * 10**15
    assert len(back) == len(given)
    for a, b in zip(given, back, strict=True):
        assert b.source == "again"
        assert b.captured_ns == a.captured_ns + shift_ns
        assert isinstance(b, Packet) or (b.kind == a.kind and b.rate_hz == a.rate_hz)  # type: ignore[union-attr]


def test_it_loops_with_rising_times_and_numbers(tmp_path: Path) -> None:
    record(tmp_path, simulated(1.0))
    source = replay(HandClock(), tmp_path, loop=True, speed=0)
    source.open()
    back = [source.read(0.0) for _ in range(200)]
    source.close()
    frames = [item for item in back if item.kind == "frame"]
    assert len(frames) > 20
    assert all(b.captured_ns > a.captured_ns and b.seq > a.seq for a, b in pairwise(frames))


def test_clock_ticks_stay_in_the_recording(tmp_path: Path) -> None:
    record(tmp_path, simulated(1.0))
    source = replay(HandClock(), tmp_path, speed=0)
    source.open()
    back, _ = played(iter(lambda: source.read(0.0), None))
    source.close()
    assert sum(1 for item in back if item.kind == "tick") == 9, "the source's own, ten times a second"


def test_a_damaged_recording_ends_and_is_not_tried_for_ever(tmp_path: Path) -> None:
    record(tmp_path, simulated(1.5))
    corrupt_line(tmp_path)
    source = replay(HandClock(), tmp_path, speed=0)
    source.open()
    _, reason = played(iter(lambda: source.read(0.0), None))
    source.close()
    assert isinstance(reason, SourceEnded)
    assert "line 7" in str(reason)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"source": "door"}, "has no source 'door': site"),
        ({"path": "/nowhere/at/all"}, "no recording in /nowhere/at/all"),
    ],
)
def test_it_says_why_it_cannot_be_opened(tmp_path: Path, options: dict[str, str], says: str) -> None:
    record(tmp_path, simulated(0.5))
    source = replay(HandClock(), tmp_path, **options)
    with pytest.raises(SourceError, match=says):
        source.open()
    source.close()


def test_of_several_sources_one_has_to_be_named(tmp_path: Path) -> None:
    two = [SourceConfig(name=name, driver="camera") for name in ("front", "back")]
    recorder = Recorder(tmp_path, created="2026-01-01T00:00:00Z", sources=two)
    for n, name in enumerate(("front", "back")):
        recorder.put(Sample(name, "reading", 0, 10 + n, Reading("smoke", float(n))))
    recorder.close()
    unsure, sure = replay(HandClock(), tmp_path), replay(HandClock(), tmp_path, source="back", speed=0)
    with pytest.raises(SourceError, match="several sources; say which with `source`: front, back"):
        unsure.open()
    sure.open()
    item = sure.read(0.0)
    sure.close()
    assert item.data == Reading("smoke", 1.0)
    assert item.captured_ns == 10**15 + 1, "sources of one recording keep their distance in time"
