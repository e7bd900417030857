"""What the benchmarks look at, and the real agent that looks: clip, configuration, process."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import msgspec

from tests.conftest import data_folder
from tests.parts.agent import AgentProcess

_INSTALLED = Path("/usr/share/doc/opencv-doc/examples/data/vtest.avi")
_SETTLE_S = 60.0
#: Between two questions for the agent's figures, which cost it a few milliseconds each.
ASKED_S = 0.1


@dataclass(frozen=True, slots=True)
class Clip:
    """A file that is played."""

    path: Path
    frames: int
    fps: float
    width: int
    height: int
    codec: str

    @property
    def label(self) -> str:
        """For notes."""
        size = f"{self.width}x{self.height} at {self.fps:g} frames/s"
        return f"{self.path.name}, {size}, {self.codec}, {self.frames} frames"


@dataclass(frozen=True, slots=True)
class Options:
    """How a benchmark is run."""

    repeat: int = 3
    seconds: float = 30.0  #: that one measurement lasts, where it has a length
    clip: Path | None = None


def find_clip(wanted: Path | None, folder: Path) -> Clip:
    """`wanted`, else the evaluation sets' pedestrians, else Debian's, else a test picture made in `folder`.

    FileNotFoundError if there is none and no ffmpeg to make one.
    """
    data = data_folder()
    places = [wanted] if wanted else [data / "sample_videos" / "opencv_vtest.mp4"] if data else []
    if not wanted:
        places.append(_INSTALLED)
    found = next((place for place in places if place and place.is_file()), None)
    return _described(found or _made(folder, wanted))


def _described(path: Path) -> Clip:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = stream.frames or sum(1 for _ in container.decode(stream))
        context = stream.codec_context
        rate = float(stream.average_rate or 10)
        return Clip(path.resolve(), frames, rate, context.width, context.height, context.codec.canonical_name)


def _made(folder: Path, wanted: Path | None) -> Path:
    if wanted or not shutil.which("ffmpeg"):
        raise FileNotFoundError(f"no clip: {wanted or 'set TECTUM_DATA, or apt install opencv-doc or ffmpeg'}")
    path = folder / "made.mp4"
    picture = "testsrc2=size=320x240:rate=10:duration=60,noise=alls=8:allf=t"
    command = [
        "ffmpeg",
        "-v",
        "error",
        "-f",
        "lavfi",
        "-i",
        picture,
        "-c:v",
        "libx264",
        "-pix_fmt",
        "yuv420p",
        str(path),
    ]
    subprocess.run(command, check=True, timeout=300)
    return path


def cameras(clip: Clip, count: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Sources and scenes of so many cameras that all play one file, again and again, in real time.

    Without its sound: the peer does not listen, and the agent's count of samples is then one of frames.
    """
    options = {"url": str(clip.path), "loop": True, "fps": clip.fps, "audio": False}
    sources = [{"name": f"cam{i}", "driver": "camera", "options": options} for i in range(count)]
    return sources, [{"name": f"scene{i}", "camera": f"cam{i}"} for i in range(count)]


def simulated(episodes: object = "demo") -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Source and scene of a simulated site with picture, sound and every sensor."""
    quantities = ("temperature", "humidity", "smoke", "co2", "light", "vibration", "door")
    source = {"name": "sim", "driver": "synthetic", "options": {"seed": 3, "episodes": episodes}}
    sensors = [{"source": "sim", "channel": name, "quantity": name} for name in quantities]
    return [source], [{"name": "hall", "camera": "sim", "microphone": "sim", "sensors": sensors}]


def write_config(folder: Path, sources: list[dict[str, Any]], scenes: list[dict[str, Any]], **rest: Any) -> Path:
    """A site's file without identity and evidence, unless `rest` says otherwise."""
    tree = {
        "version": 1,
        "data_dir": "data",
        "evidence": {"enabled": False},
        "health": {"port": 0},
        "log": {"format": "json"},
        "sources": sources,
        "scenes": scenes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "site.yaml"
    path.write_bytes(msgspec.yaml.encode(tree | rest))
    return path


@contextmanager
def agent(config: Path) -> Iterator[AgentProcess]:
    """`edge-agent run` of that file; stopped at the end."""
    with AgentProcess(config) as process:
        yield process
        process.stop()


def until_scoring(process: AgentProcess, steps: int = 1) -> None:
    """Wait for so many scored windows. AssertionError if they do not come."""
    process.until_said("metrics on http", _SETTLE_S)

    def scored() -> bool:
        time.sleep(ASKED_S)
        return metrics(process).get("tectum_steps_total", 0) >= steps

    process.until(scored, _SETTLE_S)


def metrics(process: AgentProcess) -> dict[str, float]:
    """The agent's own figures; a series with labels under `name{labels}` and summed up under `name`."""
    found: dict[str, float] = {}
    for name, labels, value in re.findall(r"^(\w+)(\{.*\})? (\S+)$", process.get("/metrics"), re.MULTILINE):
        found[name + labels] = float(value)
        if labels and not name.endswith("_bucket"):
            found[name] = found.get(name, 0.0) + float(value)
    return found


def sleep_until(moment: float) -> None:
    """Wait for a moment of time.monotonic()."""
    time.sleep(max(0.0, moment - time.monotonic()))
