"""A real RTSP camera without a camera: GStreamer's server, in a process of its own, plays a file in a loop."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.parts.mosquitto import free_port

_SYSTEM_PYTHON = "/usr/bin/python3"  # python3-gi belongs to the distribution's Python
_SERVER = Path(__file__).with_name("rtsp_process.py")
_PACKAGES = (
    "gir1.2-gst-rtsp-server-1.0 python3-gi gstreamer1.0-plugins-good gstreamer1.0-plugins-bad gstreamer1.0-libav"
)


def missing() -> str | None:
    """None if the server can be run here, else what to do."""
    check = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    try:
        done = subprocess.run([_SYSTEM_PYTHON, "-c", check], capture_output=True, timeout=60, check=False)
    except OSError:
        done = None
    return None if done is not None and done.returncode == 0 else f"not installed: apt install {_PACKAGES}"


@dataclass
class RtspServer:
    """Plays `file` at `url`; `stop` and `start` keep the port. `freeze` stalls it without closing a socket."""

    file: Path
    port: int
    user: str | None = None
    password: str | None = None
    _process: subprocess.Popen[str] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """Without credentials."""
        return f"rtsp://127.0.0.1:{self.port}/live"

    def start(self) -> None:
        """Run it and wait until it takes connections."""
        assert self._process is None, "the server runs already"
        command = [_SYSTEM_PYTHON, str(_SERVER), str(self.file), str(self.port)]
        if self.user is not None and self.password is not None:
            command += [self.user, self.password]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != "ready":
            assert self._process.stderr is not None
            said = self._process.stderr.read()
            self.stop()
            raise RuntimeError(f"the RTSP server did not start ({missing() or 'see below'}): {said[-2000:]}")

    def stop(self) -> None:
        """SIGKILL, as a camera that loses its power. May be called twice."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait(10)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()

    def freeze(self) -> None:
        """It neither sends nor hangs up any more."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


@contextmanager
def rtsp_server(
    file: Path, *, user: str | None = None, password: str | None = None, port: int | None = None
) -> Iterator[RtspServer]:
    """A server that plays `file` (MP4 of H.264 or H.265, with AAC or without sound) in a loop until the end."""
    server = RtspServer(file.resolve(), port or free_port(), user, password)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def clip(
    path: Path,
    *,
    seconds: float = 5,
    size: str = "320x240",
    fps: int = 10,
    tone_hz: int | None = 880,
    picture: str | None = None,
    codec: str = "libx264",
    before_output: tuple[str, ...] = (),
    extra: tuple[str, ...] = (),
) -> Path:
    """A demonstration clip by ffmpeg: a test picture and a tone, no B-frames, a key frame a second. Needs `ffmpeg`.

    picture  a lavfi source instead of `testsrc` of `size` and `fps`
    before_output  further inputs of ffmpeg, and what belongs to them
    extra    further output options of ffmpeg
    """
    program = shutil.which("ffmpeg")
    if program is None:
        raise RuntimeError("not installed: apt install ffmpeg")
    command = [program, "-v", "error", "-y", "-f", "lavfi", "-i", picture or f"testsrc=size={size}:rate={fps}"]
    if tone_hz is not None:
        command += ["-f", "lavfi", "-i", f"sine=frequency={tone_hz}:sample_rate=44100", "-c:a", "aac"]
    encode = f"-t {seconds} -c:v {codec} -pix_fmt yuv420p -bf 0 -g {fps}".split()
    command += [*before_output, *encode, *extra, str(path)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return path
