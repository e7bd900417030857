"""What is stored of an event shows its onset, hides what is masked, plays anywhere and stays within its limit."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import threading
from collections.abc import Iterable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from edge_agent.config import Channel, EvidenceConfig, SceneConfig
from edge_agent.contract.event import Evidence, Message
from edge_agent.core.records import Packet, Reading, Sample
from edge_agent.errors import StorageError
from edge_agent.evidence import EvidenceStore
from edge_agent.evidence.rings import Ring
from tests.unit.agent import footage
from tests.unit.agent.footage import ORIGIN, SECOND, FakeClock, flash_and_click, message

SCENE = SceneConfig(
    name="hall",
    camera="cam",
    microphone="mic",
    sensors=(Channel(source="air", channel="t", quantity="temperature", scale=0.5, offset=1.0),),
)
LEFT_HALF = (((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0)),)


class Made:
    """Files that were promised, by role."""

    def __init__(self) -> None:
        self.files: dict[str, tuple[Evidence, Path]] = {}
        self.sent: set[str] = set()
        self.order: list[str] = []

    def attach(self, event_id: str, evidence: Evidence, path: Path) -> None:
        self.files[evidence.role] = (evidence, path)
        self.order.append(evidence.sha256)

    def pending(self) -> list[str]:
        return [sha256 for sha256 in self.order if sha256 not in self.sent]

    def path(self, role: str) -> Path:
        return self.files[role][1]


def store_in(
    folder: Path, made: Made, clock: FakeClock, scene: SceneConfig = SCENE, config: EvidenceConfig | None = None
) -> EvidenceStore:
    config = config or EvidenceConfig(pre_s=2.0, post_s=1.0)
    return EvidenceStore(folder, config, (scene,), clock, attach=made.attach, pending=made.pending)


def stopped(store: EvidenceStore) -> None:
    """Run the service to its stop; with the stop set from the start it makes everything that is open."""
    stop = threading.Event()
    stop.set()
    store.run(stop)


def tell(
    tmp_path: Path,
    items: Iterable[Sample | Packet],
    *,
    scene: SceneConfig = SCENE,
    config: EvidenceConfig | None = None,
    story: tuple[Message, ...] = (message("new", 5.5, 5.0), message("end", 7.0, 5.0)),
) -> Made:
    """Nine seconds with an event at 5 s, all evidence of it made by a running service."""
    made, clock = Made(), FakeClock()
    store = store_in(tmp_path / "evidence", made, clock, scene, config)
    for item in items:
        store.add(item)
    for entry in story:
        store.note(entry)
    clock.now_ns = ORIGIN + 60 * SECOND
    stop = threading.Event()
    service = threading.Thread(target=store.run, args=(stop,))
    service.start()
    while store.counters["open"]:
        assert service.is_alive()
        stop.wait(0.01)
    stop.set()
    service.join(30)
    assert store.counters["failed"] == 0
    assert store.counters["ring_bytes"] < 20 << 20
    return made


def all_of(seconds: float = 9.0, event_s: float = 5.0) -> list[Sample | Packet]:
    readings = [Sample("air", "reading", i, ORIGIN + i * SECOND, Reading("t", float(i))) for i in range(int(seconds))]
    return [*footage.frames("cam", seconds, event_s), *footage.sound("mic", seconds, event_s), *readings]


def check_clip(made: Made, *, event_s: float = 5.0) -> Evidence:
    evidence, path = made.files["clip"]
    flash, click = flash_and_click(path)
    assert flash is not None
    assert click is not None
    assert abs(evidence.start_ns + flash * SECOND - (ORIGIN + event_s * SECOND)) < 0.06 * SECOND
    assert abs(flash - click) < 0.06
    assert hashlib.sha256(path.read_bytes()).hexdigest() == evidence.sha256 == path.name
    assert path.stat().st_size == evidence.size
    return evidence


def check_plays(path: Path) -> None:
    """H.264 4:2:0 in a profile and AAC-LC, and the index in front."""
    with av.open(str(path)) as source:
        video, sound = source.streams.video[0].codec_context, source.streams.audio[0].codec_context
        assert video.name == "h264"
        assert video.pix_fmt == "yuv420p"
        assert video.profile in ("Baseline", "Constrained Baseline", "Main", "High")
        assert sound.name == "aac"
    data = path.read_bytes()
    assert 0 < data.find(b"moov") < data.find(b"mdat")


def test_pictures_and_sound_become_a_clip_that_contains_the_onset(tmp_path: Path) -> None:
    made = tell(tmp_path, all_of())
    evidence = check_clip(made)
    check_plays(made.path("clip"))
    assert evidence.start_ns == ORIGIN + 3 * SECOND
    # The event's last step ends at 7.5 s; one more second, and the last picture before it.
    assert ORIGIN + 8.3 * SECOND < evidence.end_ns <= ORIGIN + 8.5 * SECOND


def test_a_camera_stream_is_remuxed_without_loss(tmp_path: Path) -> None:
    packets = footage.stream("cam", 9.0, 5.0)
    made = tell(tmp_path, [*packets, *footage.sound("mic", 9.0, 5.0)])
    check_clip(made)
    check_plays(made.path("clip"))
    with av.open(str(made.path("clip"))) as clip:
        tails = [bytes(packet)[-8:] for packet in clip.demux(video=0) if packet.size]
    # Start codes become lengths, the rest stays as it was: nothing was encoded anew.
    assert tails == [p.data[-8:] for p in packets if 3.0 <= (p.captured_ns - ORIGIN) / SECOND < 8.5]


def test_packets_of_an_mp4_with_b_frames_and_aac_are_remuxed(tmp_path: Path) -> None:
    scene = SceneConfig(name="hall", camera="cam", microphone="cam")
    made = tell(tmp_path, footage.in_mp4("cam", 9.0, 5.0), scene=scene)
    check_clip(made)
    check_plays(made.path("clip"))


def test_packets_that_come_at_once_after_a_connection_are_remuxed(tmp_path: Path) -> None:
    # While the estimate of the camera's clock still sinks, its times stand: they rise by a nanosecond.
    scene = SceneConfig(name="hall", camera="cam", microphone="cam")
    items = footage.in_mp4("cam", 9.0, 5.0)
    sound = [item for item in items if isinstance(item, Packet) and item.stream == "audio"]
    sound = [packet for packet in sound if 3.2 < (packet.captured_ns - ORIGIN) / SECOND < 4]
    late = {id(after): before for before, after in zip(sound[::2], sound[1::2], strict=False)}
    assert late
    crowded = [
        dataclasses.replace(item, captured_ns=late[id(item)].captured_ns + 1, decode_ns=late[id(item)].decode_ns + 1)
        if isinstance(item, Packet) and id(item) in late
        else item
        for item in items
    ]
    made = tell(tmp_path, crowded, scene=scene)
    check_clip(made)
    check_plays(made.path("clip"))


@pytest.mark.parametrize("codec", ["libx265", "mpeg4"])
def test_a_stream_that_browsers_do_not_play_is_encoded(tmp_path: Path, codec: str) -> None:
    made = tell(tmp_path, [*footage.stream("cam", 9.0, 5.0, codec=codec), *footage.sound("mic", 9.0, 5.0)])
    check_clip(made)
    check_plays(made.path("clip"))


@pytest.mark.parametrize("packets", [True, False])
def test_a_mask_is_burned_into_everything_that_shows(tmp_path: Path, packets: bool) -> None:
    seen = footage.stream("cam", 9.0, 5.0) if packets else list(footage.frames("cam", 9.0, 5.0))
    scene = SceneConfig(name="hall", camera="cam", masks=LEFT_HALF)
    made = tell(tmp_path, seen, scene=scene)
    with av.open(str(made.path("clip"))) as clip:
        pictures = [picture.to_ndarray(format="gray") for picture in clip.decode(video=0)]
    assert max(int(picture[:, :156].max()) for picture in pictures) < 24  # video's black is 16
    assert max(float(picture[:, 170:].mean()) for picture in pictures) > 200
    still = cv2.imread(str(made.path("snapshot")))
    assert still is not None
    assert int(still[:, :150].max()) < 24
    assert still[:, 170:].mean() > 20


def test_the_snapshot_shows_the_peak(tmp_path: Path) -> None:
    made = tell(
        tmp_path,
        all_of(event_s=5.7),
        story=(
            message("new", 5.5, 5.0, score=0.95),
            message("end", 7.0, 5.0, score=0.2),
        ),
    )
    evidence, path = made.files["snapshot"]
    assert evidence.start_ns == ORIGIN + int(5.75 * SECOND)
    still = cv2.imread(str(path))
    assert still is not None
    assert still.mean() > 200


def test_the_trace_has_values_in_units_and_only_of_the_clip(tmp_path: Path) -> None:
    tree = json.loads(tell(tmp_path, all_of()).path("trace").read_bytes())
    (channel,) = tree["channels"]
    assert (tree["v"], tree["start_ns"]) == (1, ORIGIN + 3 * SECOND)
    assert (channel["channel"], channel["quantity"], channel["unit"]) == ("air/t", "temperature", "°C")
    assert channel["points"] == [
        [0.0, 2.5],
        [1000.0, 3.0],
        [2000.0, 3.5],
        [3000.0, 4.0],
        [4000.0, 4.5],
        [5000.0, 5.0],
    ]


def test_the_spectrogram_shows_when_and_how_high_it_sounded(tmp_path: Path) -> None:
    picture = cv2.imread(str(tell(tmp_path, all_of()).path("spectrogram")))
    assert picture is not None
    bright = picture.astype(int).sum(axis=2)
    row, column = (axis.mean() for axis in np.nonzero(bright == bright.max()))
    height, width = bright.shape
    assert abs(column / width - 2.05 / 5.5) < 0.03  # 5 s, in a clip of 3 to 8.5 s
    mel = 2595 * np.log10(1 + np.array([60, 1000, 8000]) / 700)
    assert abs((1 - row / height) - (mel[1] - mel[0]) / (mel[2] - mel[0])) < 0.05


def test_sound_alone_becomes_a_clip(tmp_path: Path) -> None:
    scene = SceneConfig(name="hall", microphone="mic")
    made = tell(tmp_path, footage.sound("mic", 9.0, 5.0), scene=scene)
    evidence, path = made.files["clip"]
    _, click = flash_and_click(path)
    assert click is not None
    assert abs(evidence.start_ns / SECOND + click - (ORIGIN / SECOND + 5.0)) < 0.06
    assert "snapshot" not in made.files


def test_sensors_alone_give_a_trace_and_nothing_else(tmp_path: Path) -> None:
    scene = SceneConfig(name="hall", sensors=SCENE.sensors)
    assert set(tell(tmp_path, all_of(), scene=scene).files) == {"trace"}


def test_sound_with_a_hole_stays_with_the_picture(tmp_path: Path) -> None:
    heard = [block for block in footage.sound("mic", 9.0, 5.0) if not 35 <= block.seq < 45]
    check_clip(tell(tmp_path, [*footage.frames("cam", 9.0, 5.0), *heard]))


def test_a_stream_that_came_back_in_another_size_gives_the_part_with_the_onset(tmp_path: Path) -> None:
    before = footage.stream("cam", 4.0, 99.0)
    resized = [
        Packet(p.source, p.stream, p.codec, p.captured_ns, p.decode_ns, p.duration_ns, p.key, p.data, b"", 640, 480)
        for p in before
    ]
    after = [p for p in footage.stream("cam", 9.0, 5.0) if p.captured_ns >= ORIGIN + 4 * SECOND]
    made = tell(tmp_path, [*resized, *after, *footage.sound("mic", 9.0, 5.0)])
    assert check_clip(made).start_ns == ORIGIN + 4 * SECOND


def test_a_damaged_stream_costs_its_clip_and_nothing_else(tmp_path: Path) -> None:
    made, clock = Made(), FakeClock()
    store = store_in(tmp_path, made, clock)
    for packet in footage.stream("cam", 9.0, 5.0):
        store.add(
            Packet(
                "cam", "video", "h264", packet.captured_ns, packet.decode_ns, 0, packet.key, b"\0\0\1\x65" + b"?" * 60
            )
        )
    for block in footage.sound("mic", 9.0, 5.0):
        store.add(block)
    store.note(message("new", 5.5, 5.0))
    clock.now_ns = ORIGIN + 9 * SECOND
    stopped(store)
    assert "spectrogram" in made.files
    assert not list((tmp_path / "tmp").iterdir())


def test_a_full_outbox_costs_the_file_that_it_refused_and_nothing_else(tmp_path: Path) -> None:
    class Full(Made):
        def attach(self, event_id: str, evidence: Evidence, path: Path) -> None:
            if evidence.role == "snapshot":
                raise StorageError("no room")
            super().attach(event_id, evidence, path)

    made, clock = Full(), FakeClock()
    store = store_in(tmp_path / "evidence", made, clock)
    for item in all_of():
        store.add(item)
    store.note(message("new", 5.5, 5.0))
    store.note(message("end", 7.0, 5.0))
    clock.now_ns = ORIGIN + 60 * SECOND
    stopped(store)
    assert set(made.files) == {"clip", "trace", "spectrogram"}
    assert (store.counters["made"], store.counters["failed"]) == (3, 1)


def test_a_long_event_gives_its_clip_while_it_is_still_open(tmp_path: Path) -> None:
    config = EvidenceConfig(pre_s=2.0, post_s=1.0, max_clip_s=4.0)
    made = tell(tmp_path, all_of(), config=config, story=(message("new", 5.5, 5.0),))
    evidence = check_clip(made)
    assert evidence.end_ns <= ORIGIN + 7 * SECOND


def test_the_stop_makes_what_is_open_and_its_onset_is_in_it(tmp_path: Path) -> None:
    made, clock = Made(), FakeClock(ORIGIN + int(6.5 * SECOND))
    store = store_in(tmp_path, made, clock)
    for item in all_of(6.5):
        store.add(item)
    store.note(message("new", 5.5, 5.0))
    store.note(message("end", 6.0, 5.0))
    stopped(store)
    assert check_clip(made).start_ns == ORIGIN + 4 * SECOND
    assert set(made.files) == {"clip", "snapshot", "trace", "spectrogram"}


def test_left_overs_of_a_crash_are_removed(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp" / "7.part").write_bytes(b"half a clip")
    (tmp_path / ("a" * 64)).write_bytes(b"whole")
    store = store_in(tmp_path, Made(), FakeClock())
    stopped(store)
    assert list((tmp_path / "tmp").iterdir()) == []
    assert (store.counters["files"], store.counters["bytes"]) == (1, 5)


def test_the_disk_limit_evicts_what_was_uploaded_first_then_the_oldest(tmp_path: Path) -> None:
    made, clock = Made(), FakeClock()
    config = EvidenceConfig(pre_s=2.0, post_s=1.0, disk_mb=1)
    store = store_in(tmp_path, made, clock, SceneConfig(name="hall", camera="cam"), config)
    stopped(store)
    old = [hashlib.sha256(bytes([i])).hexdigest() for i in range(4)]
    for i, digest in enumerate(old):
        (tmp_path / digest).write_bytes(bytes(262_000))
        made.order.append(digest)
        os.utime(tmp_path / digest, (i, i))
    made.sent = {old[2]}
    for item in footage.frames("cam", 9.0, 5.0):
        store.add(item)
    store.note(message("new", 5.5, 5.0))
    clock.now_ns = ORIGIN + 9 * SECOND
    stopped(store)
    left = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert old[2] not in left
    assert old[3] in left
    assert sum(path.stat().st_size for path in tmp_path.iterdir() if path.is_file()) <= 1 << 20
    assert store.counters["evicted"] >= 1
    assert {made.files["clip"][1].name, made.files["snapshot"][1].name} <= left


def test_a_ring_is_bounded_in_time_and_bytes() -> None:
    ring = Ring(keep_ns=5 * SECOND, most_ns=20 * SECOND, limit_bytes=200_000)
    for block in footage.sound("mic", 4.0, 99.0):
        ring.add(block)
    assert ring.bytes == 40 * 3200
    for i in range(40, 400):
        ring.add(Sample("mic", "audio", i, ORIGIN + i * SECOND // 10, np.zeros(1600, np.int16), rate_hz=16_000))
        assert ring.bytes <= 200_000
        assert len(ring) <= 51
    assert ring.dropped == 0


def test_a_ring_that_is_held_grows_to_its_byte_limit_and_counts_what_it_lost() -> None:
    ring = Ring(keep_ns=5 * SECOND, most_ns=200 * SECOND, limit_bytes=200_000)
    ring.hold("event", ORIGIN)
    for i in range(200):
        ring.add(Sample("mic", "audio", i, ORIGIN + i * SECOND // 10, np.zeros(1600, np.int16), rate_hz=16_000))
    assert ring.bytes <= 200_000
    assert ring.dropped == 200 - 200_000 // 3200
    ring.release("event")


def test_a_ring_of_packets_starts_with_a_keyframe() -> None:
    ring = Ring(keep_ns=2 * SECOND, most_ns=20 * SECOND)
    packets = footage.stream("cam", 9.0, 99.0)
    for packet in packets[3:]:
        ring.add(packet)
        cut = ring.cut(packet.captured_ns - 2 * SECOND, packet.captured_ns + 1).video
        assert not cut or cut[0].key
    assert ring.cut(ORIGIN + int(7.3 * SECOND), ORIGIN + 9 * SECOND).video[0].captured_ns == ORIGIN + 7 * SECOND
    assert len(ring) <= 32
