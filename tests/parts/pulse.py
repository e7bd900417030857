"""A microphone without a microphone: a PulseAudio of its own with a null sink, whose monitor is the source.

Tests play sound into the sink; the driver under test reads ALSA's device `pulse`, which is this server while
the context is open (PULSE_SERVER points at it).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

#: Name of the ALSA device that a microphone driver opens while the context is open.
DEVICE = "pulse"


def missing() -> str | None:
    """None if a sound server can be run here, else what to do."""
    plugin = list(Path("/usr/lib").glob("*/alsa-lib/libasound_module_pcm_pulse.so"))
    if plugin and all(shutil.which(program) for program in ("pulseaudio", "pacat", "pactl")):
        return None
    return "not installed: apt install pulseaudio pulseaudio-utils libasound2-plugins"


@dataclass
class PulseSink:
    """A null sink. `play` puts sound in; it runs in real time beside the caller."""

    folder: Path
    _server: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _players: list[subprocess.Popen[bytes]] = field(default_factory=list, repr=False)

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to reach this server."""
        own = {"PULSE_SERVER": f"unix:{self.folder}/native", "PULSE_RUNTIME_PATH": str(self.folder)}
        return {**own, "XDG_RUNTIME_DIR": str(self.folder), "HOME": str(self.folder)}

    def start(self) -> None:
        """Run the server and wait for its sink."""
        assert self._server is None, "the sound server runs already"
        (self.folder / "native").unlink(missing_ok=True)
        modules = (
            f"module-native-protocol-unix auth-anonymous=1 socket={self.folder}/native",
            "module-null-sink sink_name=tectum rate=48000 channels=2",
        )
        loads = [f"--load={module}" for module in modules]
        command = ["pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", "--use-pid-file=no", *loads]
        log = (self.folder / "pulse.log").open("ab")
        with log:
            self._server = subprocess.Popen(
                command, env={**os.environ, **self.environment}, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 15
        while self._pactl("set-default-source", "tectum.monitor") != 0:
            if self._server.poll() is not None or time.monotonic() > deadline:
                said = (self.folder / "pulse.log").read_text(errors="replace")
                self.stop()
                raise RuntimeError(f"pulseaudio did not start ({missing() or 'see below'}): {said[-2000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """The server and all players end. May be called twice."""
        self.silence()
        server, self._server = self._server, None
        if server is not None:
            server.kill()
            server.wait(10)

    def play(self, sound: NDArray[np.int16] | Path, rate_hz: int = 16000) -> None:
        """Start to play a mono array, or a WAV file, into the sink; returns at once."""
        if isinstance(sound, Path):
            with wave.open(str(sound), "rb") as file:
                rate_hz, channels, data = file.getframerate(), file.getnchannels(), file.readframes(-1)
        else:
            channels, data = 1, sound.astype("<i2").tobytes()
        take = self.folder / f"take-{len(self._players)}.raw"
        take.write_bytes(data)
        command = ["pacat", "--playback", "--device=tectum", "--format=s16le", f"--rate={rate_hz}"]
        self._players.append(
            subprocess.Popen(
                [*command, f"--channels={channels}", "--raw", str(take)],
                env={**os.environ, **self.environment},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )

    def silence(self) -> None:
        """Stop whatever plays."""
        for player in self._players:
            player.kill()
            player.wait()

    def _pactl(self, *words: str) -> int:
        return subprocess.run(
            ["pactl", *words], env={**os.environ, **self.environment}, capture_output=True, timeout=10, check=False
        ).returncode


@contextmanager
def pulse_sink() -> Iterator[PulseSink]:
    """A running sound server. PULSE_SERVER of this process (and its children) names it inside the context."""
    folder = Path(tempfile.mkdtemp(prefix="pulse-"))  # short: a socket's path may have 107 bytes, tmp_path is longer
    sink = PulseSink(folder)
    before = os.environ.get("PULSE_SERVER")
    try:
        sink.start()
        os.environ["PULSE_SERVER"] = sink.environment["PULSE_SERVER"]
        yield sink
    finally:
        if before is None:
            os.environ.pop("PULSE_SERVER", None)
        else:
            os.environ["PULSE_SERVER"] = before
        sink.stop()
        shutil.rmtree(folder, ignore_errors=True)
