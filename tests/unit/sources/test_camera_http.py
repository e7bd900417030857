"""A camera over HTTP: MJPEG, files, HLS, and servers that lead astray."""

from __future__ import annotations

import itertools
import ssl
import statistics
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import pytest

from edge_agent.clock import SystemClock
from edge_agent.core.records import Sample
from edge_agent.errors import SourceEnded, SourceError
from edge_agent.sources.camera import Camera, CameraOptions
from tests.parts.rtsp import clip

CLOCK = SystemClock()
pytestmark = pytest.mark.needs("ffmpeg")


class Site(ThreadingHTTPServer):
    """Files of a folder, /live (MJPEG for ever), /stall (begins, then says no more), /away (leads elsewhere)."""

    daemon_threads = False
    folder: Path
    pictures: list[bytes]
    ending: threading.Event
    asked: list[str]


class Answers(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        file = self.server.folder / self.path.lstrip("/")
        if self.path in ("/live", "/stall"):
            self._stream(stall=self.path == "/stall")
        elif self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "/clip.mp4")
            self.end_headers()
        elif file.is_file():
            data = file.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        else:
            self.send_error(404)

    def _stream(self, stall: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        index = 0
        while not self.server.ending.wait(0.1):
            picture = self.server.pictures[index % len(self.server.pictures)]
            index += 1
            if stall and index > 20:
                continue
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n".encode()
            try:
                self.wfile.write(head + picture + b"\r\n")
            except OSError:
                return

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("site")
    clip(path / "clip.mp4", seconds=1, extra=("-movflags", "faststart"))
    clip(path / "live.m3u8", seconds=3, extra=("-f", "hls", "-hls_time", "1", "-hls_list_size", "0"))
    source = ["-f", "lavfi", "-i", "testsrc=size=160x120:rate=10", "-frames:v", "10", "-q:v", "4"]
    subprocess.run(["ffmpeg", "-v", "error", *source, str(path / "%d.jpg")], check=True)
    return path


@pytest.fixture
def site(folder: Path) -> Iterator[Site]:
    with Site(("127.0.0.1", 0), Answers) as server:
        server.folder, server.ending, server.asked = folder, threading.Event(), []
        server.pictures = [(folder / f"{index}.jpg").read_bytes() for index in range(1, 11)]
        serving = threading.Thread(target=server.serve_forever, args=(0.05,), name="site")
        serving.start()
        try:
            yield server
        finally:
            server.ending.set()
            server.shutdown()
            serving.join()


@contextmanager
def watching(site: Site, path: str, scheme: str = "http", **options: object) -> Iterator[Camera]:
    url = f"{scheme}://127.0.0.1:{site.server_port}{path}"
    camera = Camera("yard", CameraOptions(url=url, allow_local=True, **options), CLOCK)  # type: ignore[arg-type]
    camera.open()
    try:
        yield camera
    finally:
        camera.close()


def frames(camera: Camera, count: int) -> list[Sample]:
    found: list[Sample] = []
    while len(found) < count:
        item = camera.read(5)
        assert item is not None, "nothing came"
        if isinstance(item, Sample) and item.kind == "frame":
            found.append(item)
    return found


def test_mjpeg_is_a_live_stream(site: Site) -> None:
    with watching(site, "/live", timeout_s=5.0) as camera:
        seen = frames(camera, 15)
    assert seen[0].data.shape == (120, 160, 3)
    times = [sample.captured_ns for sample in seen]
    assert times == sorted(times)
    steps_ms = [(after - before) / 1e6 for before, after in itertools.pairwise(times[5:])]
    assert statistics.median(steps_ms) == pytest.approx(100, abs=40)  # its own rhythm, not the 25 a second of libav


@pytest.mark.parametrize("path", ["/clip.mp4", "/live.m3u8"])
def test_a_recording_is_played_in_real_time_and_ends(site: Site, path: str) -> None:
    began_ns = CLOCK.monotonic_ns()
    with watching(site, path) as camera, pytest.raises(SourceEnded):
        frames(camera, 1000)
    assert CLOCK.monotonic_ns() - began_ns > 0.9e9


def test_a_stream_that_stalls_is_an_error(site: Site) -> None:
    with watching(site, "/stall", timeout_s=2.0) as camera, pytest.raises(SourceError, match="nothing came for 2 s"):
        frames(camera, 1000)


def test_a_redirect_is_not_followed(site: Site) -> None:
    with pytest.raises(SourceError), watching(site, "/away"):
        pass
    assert "/clip.mp4" not in site.asked


def test_a_libav_that_would_follow_redirects_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(av.library_versions, "libavformat", (62, 3, 100))
    with pytest.raises(SourceError, match=r"PyAV 17\.1"), watching(site, "/live"):
        pass
    assert not site.asked


def test_a_missing_page_says_so(site: Site) -> None:
    with pytest.raises(SourceError, match="404"), watching(site, "/none"):
        pass


@pytest.mark.parametrize(
    ("options", "trusted"),
    [({}, False), ({"verify_tls": False}, True), ({"ca": "own"}, True), ({"ca": "none"}, False)],
)
def test_https_asks_for_a_certificate_that_the_site_trusts(
    site: Site, certificates: tuple[Path, Path, Path], options: dict[str, object], trusted: bool
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates[1], certificates[2])
    site.socket = context.wrap_socket(site.socket, server_side=True)
    if "ca" in options:
        options = {"ca": certificates[0] if options["ca"] == "own" else Path("/nowhere/ca.pem")}
    if trusted:
        with watching(site, "/live", "https", **options) as camera:
            assert frames(camera, 1)
    else:
        with pytest.raises(SourceError), watching(site, "/live", "https", **options):
            pass
        assert not site.asked
