"""How many events a second does the outbox take in, each durable when `put` returns?

The limit is the disk: the same number of bytes appended to a file and flushed with `fsync`, in the same folder and
the same round. SQLite in WAL mode with `synchronous=FULL` needs one such flush for each commit. Alone: one thread,
one event after the other. Eight threads share commits. In groups of 20: `put_all`, one commit each.

    TMPDIR names the folder; on a tmpfs the figures say nothing.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from benchmarks import site
from benchmarks.result import Findings, spread
from edge_agent.clock import SystemClock
from edge_agent.contract.event import Event
from edge_agent.outbox import Outbox
from tests.parts.cloud import event

ALONE, THREADS, EACH, GROUPS, GROUP = 300, 8, 100, 50, 20


def measure(options: site.Options, findings: Findings) -> None:
    with tempfile.TemporaryDirectory(prefix="tectum-bench-") as folder:
        size = len(msgspec.json.encode(_event(0)))
        findings.note(f"an event of {size} bytes; {_filesystem(Path(folder))}")
        for number in range(options.repeat):
            _round(Path(folder) / str(number), size, findings)


def _round(folder: Path, size: int, findings: Findings) -> None:
    folder.mkdir()
    flushed = _timed_ms(ALONE, _flusher(folder / "plain", size))
    outbox = Outbox(folder / "outbox.db", "box", SystemClock(), "boot", max_bytes=512 << 20, reserve_bytes=0)
    try:
        alone = _timed_ms(ALONE, lambda i: outbox.put(_event(i)))
        before, began = outbox.counters["commits"], time.perf_counter()
        _together(lambda i: outbox.put(_event(ALONE + i)))
        together_s = time.perf_counter() - began
        commits = outbox.counters["commits"] - before
        base = ALONE + THREADS * EACH
        grouped = _timed_ms(GROUPS, lambda i: outbox.put_all([_event(base + i * GROUP + j) for j in range(GROUP)]))
    finally:
        outbox.close()
    findings.add_spread("fsync", flushed, "ms", "append and fsync of the same bytes")
    findings.add_spread("put", alone, "ms", "one event, until it is on disk")
    findings.add("put_ratio", spread(alone)[0] / spread(flushed)[0], "x fsync", "that p50, over fsync alone")
    findings.add("alone", 1e3 * len(alone) / sum(alone), "events/s", "one thread, one event after the other")
    findings.add("together", THREADS * EACH / together_s, "events/s", f"{THREADS} threads at once")
    findings.add("shared", THREADS * EACH / commits, "events/commit", "events that shared a commit then")
    findings.add("grouped", 1e3 * GROUPS * GROUP / sum(grouped), "events/s", f"in groups of {GROUP}")


def _timed_ms(count: int, act: Callable[[int], object]) -> list[float]:
    took = []
    for number in range(count):
        began = time.perf_counter()
        act(number)
        took.append((time.perf_counter() - began) * 1e3)
    return took


def _flusher(path: Path, size: int) -> Callable[[int], None]:
    payload = b"x" * size

    def flush(_: int) -> None:
        with path.open("ab", buffering=0) as file:
            file.write(payload)
            os.fsync(file.fileno())

    return flush


def _together(act: Callable[[int], object]) -> None:
    threads = [
        threading.Thread(target=lambda first=first: [act(first + i) for i in range(EACH)])
        for first in range(0, THREADS * EACH, EACH)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _event(number: int) -> Event:
    """A new one each time, with the trace and heat map that a real one carries."""
    told = event(trace=[(step, 0.5) for step in range(12)], heat=True)
    return msgspec.structs.replace(told, onset_step=number, step=number + 2)


def _filesystem(folder: Path) -> str:
    """Kind of file system, by the longest mount point above `folder`."""
    best = ("", "unknown")
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        _, mount, kind, *_ = line.split()
        if len(mount) > len(best[0]) and folder.resolve().is_relative_to(mount):
            best = (mount, kind)
    return f"on {best[1]}"
