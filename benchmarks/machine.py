"""What the kernel says of this machine and of single processes."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.result import Machine

_TICKS = os.sysconf("SC_CLK_TCK")
#: Of /proc/cpuinfo, what the engines choose their kernels by (x86, then Arm).
_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm", "sve")
_PACKAGES = ("tectum", "openvino", "onnxruntime", "av", "opencv-python-headless", "numpy", "msgspec", "paho-mqtt")


def facts(load_before: float) -> Machine:
    """This machine now."""
    cpuinfo = _fields(Path("/proc/cpuinfo"))
    offered = cpuinfo.get("flags", cpuinfo.get("Features", "")).split()
    return Machine(
        cpu=cpuinfo.get("model name", platform.processor() or platform.machine()),
        cores=len(os.sched_getaffinity(0)),
        flags=tuple(flag for flag in _FLAGS if flag in offered),
        memory_gb=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        kernel=platform.release(),
        load_before=round(load_before, 2),
        load_after=round(load(), 2),
    )


def load() -> float:
    """Load average of the last minute."""
    return os.getloadavg()[0]


def versions(packages: Sequence[str] = _PACKAGES) -> dict[str, str]:
    """Of Python and of what of `packages` is installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has used so far."""

    cpu_s: float  #: user and system time of all its threads
    rss_mb: float
    peak_mb: float
    threads: int


def usage(pid: int) -> Usage:
    """By the kernel's own accounts. FileNotFoundError when it is gone."""
    # The name in parentheses may hold anything, spaces included.
    after_name = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    status = _fields(Path(f"/proc/{pid}/status"))
    return Usage(
        cpu_s=(int(after_name[11]) + int(after_name[12])) / _TICKS,
        rss_mb=int(status["VmRSS"].split()[0]) / 1024,
        peak_mb=int(status["VmHWM"].split()[0]) / 1024,
        threads=int(status["Threads"]),
    )


def naps(pid: int) -> dict[str, int]:
    """How often each thread of a process, by name, went to sleep of its own accord."""
    counted: dict[str, int] = {}
    for folder in Path(f"/proc/{pid}/task").iterdir():
        status = _fields(folder / "status")
        name = status["Name"]
        counted[name] = counted.get(name, 0) + int(status["voluntary_ctxt_switches"])
    return counted


def _fields(path: Path) -> dict[str, str]:
    """`name: value` lines; of several with one name the first."""
    found: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    return found
