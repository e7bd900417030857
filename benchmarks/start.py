"""How long until the agent has scored its first window, and how much memory does it hold after a minute?

The real `edge-agent run`, from the start of the process: interpreter, imports, compiling the model, connecting the
source, then the first window has to pass and close. Beside it, in the same round, the floor that no agent in Python
with these libraries gets under: an interpreter that imports them and ends. Memory is what the kernel counts as
resident; the floor's is that of the same interpreter.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import machine, site
from benchmarks.result import Findings

MEMORY_S = 60.0
_FLOOR = "import av, cv2, numpy, openvino, resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
_MB = 1024.0


def measure(options: site.Options, findings: Findings) -> None:
    with tempfile.TemporaryDirectory(prefix="tectum-bench-") as name:
        folder = Path(name)
        clip = site.find_clip(options.clip, folder)
        findings.note(f"camera: {clip.label}; memory after {MEMORY_S:g} s")
        asked_ms = 1e3 * site.ASKED_S
        findings.note(f"first window: asked for every {asked_ms:g} ms; its own 500 ms and what it waits are in it")
        kinds = {
            "synthetic": ("simulated site", *site.simulated("quiet")),
            "camera": ("one camera", *site.cameras(clip, 1)),
            "four": ("four cameras", *site.cameras(clip, 4)),
        }
        for number in range(options.repeat):
            floor_s, floor_mb = _imports()
            findings.add("imports", floor_s, "s", "python that only imports the libraries: start to end")
            findings.add("imports_rss", floor_mb, "MB", "its memory")
            for kind, (text, sources, scenes) in kinds.items():
                path = site.write_config(folder / f"{kind}{number}", sources, scenes)
                _add(kind, text, path, floor_s, findings)


def _add(kind: str, text: str, config: Path, floor_s: float, findings: Findings) -> None:
    began = time.monotonic()
    with site.agent(config) as process:
        site.until_scoring(process)
        first_s = time.monotonic() - began
        started = machine.usage(process.process.pid)
        findings.add(f"{kind}_first", first_s, "s", f"{text}: start to first scored window")
        findings.add(f"{kind}_first_cpu", started.cpu_s, "CPU s", f"{text}: CPU until then")
        findings.add(f"{kind}_first_ratio", first_s / floor_s, "x imports", f"{text}: over the imports alone")
        site.sleep_until(began + MEMORY_S)
        now = machine.usage(process.process.pid)
        findings.add(f"{kind}_rss", now.rss_mb, "MB", f"{text}: memory after {MEMORY_S:g} s")
        findings.add(f"{kind}_peak", now.peak_mb, "MB", f"{text}: most memory until then")
        findings.add(f"{kind}_threads", now.threads, "threads", f"{text}: threads")


def _imports() -> tuple[float, float]:
    """Wall time and memory of an interpreter with the agent's libraries."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _FLOOR], check=True, capture_output=True, text=True, timeout=120, env=os.environ
    )
    return time.monotonic() - began, int(done.stdout) / _MB
