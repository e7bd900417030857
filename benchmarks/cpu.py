"""How much of one core do one and four cameras cost, and what does Debian's `motion` take for the same clip?

The real `edge-agent run` (decode, align, prepare, infer, decide; no identity, no evidence) plays a recorded clip in
real time. CPU is what the kernel accounts to the process, all threads, over a stretch after it has begun to score.
`motion` runs on the same clip in the same round, everything but detection switched off. It paces files its own way,
so both are given per second of *clip*: CPU seconds over (frames processed / frames per second of the clip).

    python -m benchmarks.cpu CLIP SECONDS     the camera driver alone, as a child of `measure`
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import machine, site
from benchmarks.result import Findings
from edge_agent.clock import SystemClock
from edge_agent.core.records import Sample
from edge_agent.sources.camera import Camera, CameraOptions

SCENES = (1, 4)
_WARM_STEPS = 8
_WARM_S = 5.0


@dataclass(frozen=True, slots=True)
class Spent:
    """A stretch of one process."""

    cpu_s: float
    wall_s: float
    frames: float  #: decoded, of all cameras

    def per_clip_s(self, clip: site.Clip) -> float:
        """CPU per second of clip and camera, in percent."""
        return 100.0 * self.cpu_s * clip.fps / self.frames


def measure(options: site.Options, findings: Findings) -> None:
    with tempfile.TemporaryDirectory(prefix="tectum-bench-") as name:
        folder = Path(name)
        clip = site.find_clip(options.clip, folder)
        findings.note(f"clip: {clip.label}; {options.seconds:g} s each, in {options.repeat} rounds")
        if not shutil.which("motion"):
            findings.note("`motion` is not installed (apt install motion): no peer")
        for number in range(options.repeat):
            _round(folder / str(number), clip, options.seconds, findings)


def _round(folder: Path, clip: site.Clip, seconds: float, findings: Findings) -> None:
    alone = _driver_alone(clip, seconds)
    findings.add("decode_share", alone.per_clip_s(clip), "% of a core", "camera driver alone, one camera")
    for count in SCENES:
        word = {1: "one", 4: "four"}[count]
        ours, dropped = _agent(folder / f"agent{count}", clip, count, seconds)
        share = ours.per_clip_s(clip)
        findings.add(f"{word}_share", share * count, "% of a core", f"edge-agent, {word} scene{'s' * (count > 1)}")
        rate = ours.frames / ours.wall_s / count
        findings.add(f"{word}_fps", rate, "frames/s", f"frames taken in per camera, {word} at once")
        findings.add(f"{word}_dropped", dropped, "frames", f"frames dropped, {word} at once")
        if count == 1:
            findings.add(
                "decode_part", 100 * alone.per_clip_s(clip) / share, "%", "camera driver alone, of one scene's CPU"
            )
        if shutil.which("motion"):
            theirs = _motion(folder / f"motion{count}", clip, count, seconds)
            peer = theirs.per_clip_s(clip)
            findings.add(f"{word}_motion_share", peer * count, "% of a core", f"motion, {word} at once")
            findings.add(f"{word}_ratio", share / peer, "x motion", f"edge-agent over motion, {word} at once")
            findings.add(f"{word}_motion_fps", theirs.frames / theirs.wall_s / count, "frames/s", f"motion, {word}")


def _agent(folder: Path, clip: site.Clip, count: int, seconds: float) -> tuple[Spent, float]:
    """A stretch of the agent, and the frames it dropped meanwhile."""
    with site.agent(site.write_config(folder, *site.cameras(clip, count))) as process:
        site.until_scoring(process, _WARM_STEPS * count)
        before, began, counted = machine.usage(process.process.pid), time.monotonic(), site.metrics(process)
        site.sleep_until(began + seconds)
        after, ended, total = machine.usage(process.process.pid), time.monotonic(), site.metrics(process)
        frames = total["tectum_samples_total"] - counted["tectum_samples_total"]
        dropped = total["tectum_drops_total"] - counted["tectum_drops_total"]
        return Spent(after.cpu_s - before.cpu_s, ended - began, frames), dropped


def _driver_alone(clip: site.Clip, seconds: float) -> Spent:
    command = [sys.executable, "-m", "benchmarks.cpu", str(clip.path), str(seconds), str(clip.fps)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 120)
    return Spent(**json.loads(done.stdout))


def play(path: str, seconds: float, fps: float) -> Spent:
    """Read the camera driver for so long and throw away what it gives."""
    camera = Camera("cam", CameraOptions(url=path, loop=True, fps=fps, audio=False), SystemClock())
    camera.open()
    _read(camera, _WARM_S)
    cpu_s, began = time.process_time(), time.monotonic()
    frames = _read(camera, seconds)
    spent = Spent(time.process_time() - cpu_s, time.monotonic() - began, frames)
    camera.close()
    return spent


def _read(camera: Camera, seconds: float) -> int:
    frames, until = 0, time.monotonic() + seconds
    while time.monotonic() < until:
        item = camera.read(0.2)
        frames += isinstance(item, Sample) and item.kind == "frame"
    return frames


# --- the peer ------------------------------------------------------------------------------------------------------

_MOTION = """
daemon off
log_level 6
target_dir {folder}
picture_output off
movie_output off
stream_port 0
webcontrol_port 0
text_left
text_right
"""
_MOTION_CAMERA = """
camera_id {number}
camera_name cam{number}
netcam_url file://{path}
netcam_params capture_rate={fps}
width {width}
height {height}
framerate {fps}
"""


def _motion(folder: Path, clip: site.Clip, count: int, seconds: float) -> Spent:
    """A stretch of `motion` that looks for motion, and does nothing about it.

    It says nowhere how many frames it has seen. Its thread for a file (`ncN`) sleeps once for each, and that the
    kernel counts: one pass of 795 frames was 791 sleeps.
    """
    with _running(folder, clip, count) as process:
        time.sleep(2 * _WARM_S)
        before, began, slept = machine.usage(process.pid), time.monotonic(), _frames(process.pid)
        site.sleep_until(began + seconds)
        after, ended = machine.usage(process.pid), time.monotonic()
        return Spent(after.cpu_s - before.cpu_s, ended - began, _frames(process.pid) - slept)


@contextmanager
def _running(folder: Path, clip: site.Clip, count: int) -> Iterator[subprocess.Popen[bytes]]:
    folder.mkdir(parents=True)
    fps = round(clip.fps)
    files = []
    for number in range(1, count + 1):
        files.append(folder / f"camera{number}.conf")
        files[-1].write_text(
            _MOTION_CAMERA.format(number=number, path=clip.path, fps=fps, width=clip.width, height=clip.height)
        )
    config = folder / "motion.conf"
    config.write_text(_MOTION.format(folder=folder) + "".join(f"camera {file}\n" for file in files))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["motion", "-n", "-c", str(config)], stdout=log, stderr=log, cwd=folder)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _frames(pid: int) -> int:
    return sum(count for name, count in machine.naps(pid).items() if name.startswith("nc"))


def main() -> None:
    path, seconds, fps = sys.argv[1:]
    spent = play(path, float(seconds), float(fps))
    print(json.dumps({"cpu_s": spent.cpu_s, "wall_s": spent.wall_s, "frames": spent.frames}))


if __name__ == "__main__":
    main()
