"""A camera by libav: one clock for picture and sound, true colours, and a line that may die in any way."""

from __future__ import annotations

import itertools
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from edge_agent.clock import SystemClock
from edge_agent.core.records import Packet, Sample
from edge_agent.errors import SourceEnded, SourceError
from edge_agent.sources.camera import Camera, CameraOptions
from tests.parts.rtsp import clip, rtsp_server

CLOCK = SystemClock()
SECOND = 1_000_000_000
pytestmark = pytest.mark.needs("ffmpeg")


@contextmanager
def watching(**options: object) -> Iterator[Camera]:
    camera = Camera("yard", CameraOptions(**options), CLOCK)  # type: ignore[arg-type]
    camera.open()
    try:
        yield camera
    finally:
        camera.close()


def collect(camera: Camera, *, seconds: float = 60, frames: int = 10**6) -> list[Sample | Packet]:
    """What comes, until it ends."""
    items: list[Sample | Packet] = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and sum(isinstance(i, Sample) and i.kind == "frame" for i in items) < frames:
        try:
            item = camera.read(0.2)
        except SourceEnded:
            break
        if item is not None:
            items.append(item)
    return items


def samples(items: list[Sample | Packet], kind: str) -> list[Sample]:
    return [item for item in items if isinstance(item, Sample) and item.kind == kind]


def packets(items: list[Sample | Packet], stream: str) -> list[Packet]:
    return [item for item in items if isinstance(item, Packet) and item.stream == stream]


@pytest.fixture(scope="module")
def flashes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A white flash and a beep together, every second, 100 ms each."""
    moment = "lt(mod(t,1),0.1)"
    path = tmp_path_factory.mktemp("clips") / "flashes.mp4"
    picture = f"color=c=black:s=160x120:r=20,drawbox=enable='{moment}':color=white:t=fill"
    beep = ("-f", "lavfi", "-i", f"aevalsrc='0.7*sin(2*PI*1000*t)*{moment}':s=44100", "-c:a", "aac", "-shortest")
    return clip(path, seconds=6, fps=20, tone_hz=None, picture=picture, before_output=beep)


def onsets(items: list[Sample | Packet]) -> tuple[list[int], list[int]]:
    """Times at which the picture turns white, and at which the beep begins."""
    lit = [(sample.captured_ns, sample.data.mean() > 128) for sample in samples(items, "frame")]
    seen = [later for (_, before), (later, after) in itertools.pairwise(lit) if after and not before]
    heard: list[int] = []
    for sample in samples(items, "audio"):
        loud = np.flatnonzero(np.abs(sample.data) > 4000)
        if loud.size:
            at_ns = sample.captured_ns + int(loud[0]) * SECOND // sample.rate_hz
            if not heard or at_ns - heard[-1] > SECOND // 2:
                heard.append(at_ns)
    return seen, heard


def offsets_ms(items: list[Sample | Packet]) -> list[float]:
    seen, heard = onsets(items)
    assert len(seen) >= 3
    return [(at - min(heard, key=lambda beep: abs(beep - at))) / 1e6 for at in seen]


def test_flash_and_beep_of_a_file_are_one_moment(flashes: Path) -> None:
    with watching(url=str(flashes), fps=20.0) as camera:
        offsets = offsets_ms(collect(camera))
    assert max(map(abs, offsets)) < 50, offsets


@pytest.mark.needs("gst-rtsp")
def test_flash_and_beep_of_a_stream_are_one_moment(flashes: Path) -> None:
    with rtsp_server(flashes) as server, watching(url=server.url, fps=20.0, allow_local=True) as camera:
        offsets = offsets_ms(collect(camera, seconds=5))
        assert camera.counters["jumps"] == 0
    assert max(map(abs, offsets)) < 50, offsets


def test_a_file_is_played_in_real_time_and_ends(tmp_path: Path) -> None:
    path = clip(tmp_path / "clip.mp4", seconds=2, fps=10)
    began = time.monotonic()
    with watching(url=str(path)) as camera:
        items = collect(camera)
    took = time.monotonic() - began
    frames, sound = samples(items, "frame"), samples(items, "audio")
    assert len(frames) == 20
    assert np.diff([frame.captured_ns for frame in frames]) == pytest.approx(SECOND / 10, abs=2e6)
    assert took > 1.8  # not faster than it was recorded
    heard = np.concatenate([sample.data for sample in sound])
    assert heard.size / 16000 == pytest.approx(2, abs=0.1)
    spectrum = np.abs(np.fft.rfft(heard))
    assert np.argmax(spectrum) * 16000 / heard.size == pytest.approx(880, abs=5)
    for before, after in itertools.pairwise(sound):
        assert after.captured_ns - before.captured_ns == pytest.approx(before.data.size * SECOND / 16000, abs=2e6)


def test_a_looped_file_goes_on_with_one_rising_time(tmp_path: Path) -> None:
    path = clip(tmp_path / "clip.mp4", seconds=1, fps=10)
    with watching(url=str(path), loop=True) as camera:
        frames = samples(collect(camera, frames=25), "frame")
        assert camera.counters["jumps"] == 0
    assert np.diff([frame.captured_ns for frame in frames]) == pytest.approx(SECOND / 10, abs=50e6)


@pytest.mark.parametrize(("fps", "expected"), [(5.0, 10), (10.0, 20), (25.0, 50), (60.0, 50)])
def test_at_most_fps_pictures_are_given(tmp_path: Path, fps: float, expected: int) -> None:
    path = clip(tmp_path / "clip.mp4", seconds=2, fps=25, size="64x48", tone_hz=None)
    with watching(url=str(path), fps=fps) as camera:
        items = collect(camera)
    assert len(samples(items, "frame")) == pytest.approx(expected, abs=1)
    assert len(packets(items, "video")) == 50  # evidence keeps all of them


@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
@pytest.mark.parametrize("full_range", [False, True])
def test_colours_are_those_of_the_scene_whatever_the_stream_calls_them(
    tmp_path: Path, matrix: str, full_range: bool
) -> None:
    size = "1280x720" if matrix == "bt709" else "320x240"
    wanted = (200, 60, 30)
    name = "smpte170m" if matrix == "bt601" else "bt709"
    kind = "pc" if full_range else "tv"
    colour = f"color=c=0x{bytes(wanted).hex()}:s={size}:r=5,format=rgb24"
    convert = f"{colour},scale=out_color_matrix={matrix}:out_range={kind},format=yuv420p"
    tags = ("-colorspace", name, "-color_primaries", name, "-color_trc", name, "-color_range", kind, "-qp", "1")
    path = clip(tmp_path / "clip.mp4", seconds=1, fps=5, tone_hz=None, picture=convert, extra=tags)
    with watching(url=str(path)) as camera:
        frame = samples(collect(camera, frames=1), "frame")[0]
    middle = frame.data[frame.data.shape[0] // 2, frame.data.shape[1] // 2]
    assert np.abs(middle.astype(int) - wanted).max() <= 4


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_packets_make_a_clip_again(tmp_path: Path, codec: str) -> None:
    path = clip(tmp_path / "clip.mp4", seconds=2, fps=10, codec=codec, extra=("-bf", "2"))
    with watching(url=str(path)) as camera:
        items = collect(camera)
    video, audio = packets(items, "video"), packets(items, "audio")
    assert video[0].key
    assert video[0].codec == {"libx264": "h264", "libx265": "hevc"}[codec]
    assert (video[0].width, video[0].height) == (320, 240)
    assert audio[0].codec == "aac"
    assert (audio[0].rate_hz, audio[0].channels) == (44100, 1)
    assert audio[0].extradata
    assert video[0].extradata
    decode = [packet.decode_ns for packet in video]
    assert decode == sorted(set(decode))
    assert all(packet.captured_ns >= packet.decode_ns for packet in video)
    assert sum(packet.duration_ns for packet in video) == pytest.approx(2 * SECOND, rel=0.1)
    frames = [sample.captured_ns for sample in samples(items, "frame")]
    assert set(frames) <= {packet.captured_ns for packet in video}  # a frame has the time of its packet


@pytest.mark.needs("gst-rtsp")
def test_a_stream_can_be_shown_from_its_first_picture_on(tmp_path: Path) -> None:
    # B-frames, and one key picture in ten seconds: libav gives it no time over RTSP.
    path = clip(tmp_path / "clip.mp4", seconds=10, fps=10, extra=("-bf", "3", "-g", "100"))
    with rtsp_server(path) as server, watching(url=server.url, allow_local=True) as camera:
        items = collect(camera, frames=15)
        assert camera.counters["undated"] == 0
    video = packets(items, "video")
    assert video[0].key
    assert video[0].captured_ns == min(packet.captured_ns for packet in video)
    decode = [packet.decode_ns for packet in video]
    assert decode == sorted(set(decode))
    frames = [sample.captured_ns for sample in samples(items, "frame")]
    assert video[0].captured_ns < min(frames)  # it is shown before whatever was decoded first


def test_a_damaged_file_is_counted_and_played_on(tmp_path: Path) -> None:
    path = clip(tmp_path / "clip.ts", seconds=3, fps=10)
    data = bytearray(path.read_bytes())
    chance = np.random.default_rng(1)
    for at in chance.integers(len(data) // 10, len(data), len(data) // 400):
        data[at] ^= 0xFF
    path.write_bytes(data)
    with watching(url=str(path)) as camera:
        items = collect(camera)
        assert camera.counters["corrupt"] > 0
    assert len(samples(items, "frame")) > 3


def test_sound_alone_and_picture_alone(tmp_path: Path) -> None:
    path = clip(tmp_path / "clip.mp4", seconds=1)
    with watching(url=str(path), audio=False) as camera:
        assert {item.kind if isinstance(item, Sample) else item.stream for item in collect(camera)} == {
            "frame",
            "video",
        }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Invalid data"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "Invalid|whitelist"),
        (b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", "Invalid"),
    ],
)
def test_a_file_that_is_no_recording_or_points_elsewhere_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=message), watching(url=str(path)):
        pass


def test_a_folder_or_device_is_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/zero")):
        with pytest.raises(SourceError, match="no such file"), watching(url=str(path)):
            pass


@pytest.mark.needs("gst-rtsp")
def test_a_killed_server_is_an_error_and_the_same_camera_opens_again(tmp_path: Path) -> None:
    path = clip(tmp_path / "clip.mp4", seconds=2)
    with rtsp_server(path) as server, watching(url=server.url, allow_local=True, timeout_s=4.0) as camera:
        before = samples(collect(camera, frames=3), "frame")
        server.stop()
        with pytest.raises(SourceError) as caught:
            collect(camera, seconds=10)
        assert not isinstance(caught.value, SourceEnded)
        camera.close()
        with pytest.raises(SourceError, match="refused"):
            camera.open()
        server.start()
        camera.open()
        after = samples(collect(camera, frames=3), "frame")
        assert after[0].seq > before[-1].seq
        assert after[0].captured_ns > before[-1].captured_ns


@pytest.mark.needs("gst-rtsp")
def test_a_server_that_stalls_is_an_error_in_time(tmp_path: Path) -> None:
    path = clip(tmp_path / "clip.mp4", seconds=2)
    with rtsp_server(path) as server, watching(url=server.url, allow_local=True, timeout_s=2.0) as camera:
        collect(camera, frames=2)
        server.freeze()
        began = time.monotonic()
        with pytest.raises(SourceError, match="nothing came for 2 s"):
            collect(camera, seconds=10)
        assert time.monotonic() - began < 8
        server.thaw()


@pytest.mark.needs("gst-rtsp")
def test_close_does_not_wait_for_a_server_that_stalls(tmp_path: Path) -> None:
    path = clip(tmp_path / "clip.mp4", seconds=2)
    with rtsp_server(path) as server, watching(url=server.url, allow_local=True, timeout_s=60.0) as camera:
        collect(camera, frames=2)
        server.freeze()
        began = time.monotonic()
        camera.close()
        assert time.monotonic() - began < 20  # not the 60 s it may be silent
        server.thaw()


@contextmanager
def silent_server() -> Iterator[tuple[int, socket.socket]]:
    """Port and socket of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        yield server.getsockname()[1], server


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_a_server_that_never_answers_fails_to_open_in_time(scheme: str) -> None:
    with silent_server() as (port, _):
        camera = Camera(
            "yard", CameraOptions(url=f"{scheme}://127.0.0.1:{port}/x", allow_local=True, timeout_s=2.0), CLOCK
        )
        began = time.monotonic()
        with pytest.raises(SourceError):
            camera.open()
        assert time.monotonic() - began < 8


def test_close_calls_off_an_open_that_hangs() -> None:
    with silent_server() as (port, server):
        camera = Camera(
            "yard", CameraOptions(url=f"rtsp://127.0.0.1:{port}/x", allow_local=True, timeout_s=6.0), CLOCK
        )
        failed = threading.Event()

        def open_camera() -> None:
            try:
                camera.open()
            except SourceError:
                failed.set()

        opener = threading.Thread(target=open_camera, name="opener")
        opener.start()
        with server.accept()[0]:  # libav has connected, and waits for an answer
            camera.close()
            assert failed.wait(2)  # not the seconds it may take
            opener.join()


@pytest.mark.needs("gst-rtsp")
def test_credentials_open_the_door_and_never_show(tmp_path: Path) -> None:
    path = clip(tmp_path / "clip.mp4", seconds=1)
    secret = "p@ss:w/rd%"
    with rtsp_server(path, user="viewer", password=secret) as server:
        with watching(url=server.url, username="viewer", password=secret, allow_local=True) as camera:
            collect(camera, frames=1)
        camera = Camera(
            "yard", CameraOptions(url=server.url, username="viewer", password="wr0ng", allow_local=True), CLOCK
        )
        with pytest.raises(SourceError, match="401") as caught:
            camera.open()
    shown = f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__cause__}"
    assert "wr0ng" not in shown
    assert "viewer" not in shown


@pytest.mark.needs("gst-rtsp")
def test_times_of_a_stream_are_steady(tmp_path: Path) -> None:
    path = clip(tmp_path / "clip.mp4", seconds=2, fps=10)
    with rtsp_server(path) as server, watching(url=server.url, allow_local=True) as camera:
        frames = samples(collect(camera, frames=30), "frame")
    steps_ms = [(after.captured_ns - before.captured_ns) / 1e6 for before, after in itertools.pairwise(frames[10:])]
    assert statistics.median(steps_ms) == pytest.approx(100, abs=1)
    assert max(steps_ms) < 150  # the sound of the clip is a little longer than its picture: a seam at every loop
