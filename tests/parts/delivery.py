"""What the delivery tests share: events, a clock to turn, a way to look at an outbox between two statements."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_agent.contract.event import Event, Evidence, Phase, Priority, ScorePoint, WallQuality
from edge_agent.outbox import Outbox


@dataclass
class HandClock:
    """A clock that stands still until a test moves it."""

    now_ns: int = 10**15

    def monotonic_ns(self) -> int:
        return self.now_ns

    def wall_ns(self) -> int:
        return 1_790_000_000_000_000_000 + self.now_ns

    def wall_quality(self) -> WallQuality:
        return "ntp"

    def forward(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)


def event(
    phase: Phase = "new",
    onset: int = 1,
    *,
    label: str = "fire",
    scene: str = "yard",
    priority: Priority = "normal",
    revision: int = 1,
    points: int = 4,
) -> Event:
    """A message of an event; `points` makes it longer."""
    return Event(
        scene=scene,
        label=label,
        phase=phase,
        onset_step=onset,
        step=onset + revision,
        step_ms=500,
        revision=revision,
        score=0.8,
        peak=0.9,
        threshold=0.6,
        priority=priority,
        trace=tuple(ScorePoint(step=onset + i, score=0.5) for i in range(points)),
    )


def evidence(sha256: str, size: int = 3) -> Evidence:
    """A snapshot."""
    return Evidence(
        scene="yard", role="snapshot", sha256=sha256, size=size, media_type="image/jpeg", start_ns=0, end_ns=1
    )


@dataclass
class Tap:
    """Opens databases whose every statement is announced before and after it runs.

    `on_statement` may copy the files (that is what a crash at this moment leaves) or raise (a disk that fails).
    """

    on_statement: Callable[[str], None] = field(default=lambda sql: None)

    def __call__(self, path: Path) -> sqlite3.Connection:
        tap = self

        class Tapped(sqlite3.Connection):
            def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
                tap.on_statement(sql)
                cursor = super().execute(sql, *values)
                tap.on_statement(sql)
                return cursor

        return sqlite3.connect(path, isolation_level=None, check_same_thread=False, factory=Tapped)


def image(path: Path, place: Path) -> Path:
    """A copy of an outbox as it lies on the disk at this moment: what a killed process leaves behind."""
    place.mkdir(parents=True)
    for suffix in ("", "-wal"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            shutil.copyfile(part, place / part.name)
    return place / path.name


def outbox(
    path: Path,
    clock: HandClock | None = None,
    *,
    max_bytes: int = 1 << 20,
    reserve_bytes: int = 0,
    tap: Tap | None = None,
) -> Outbox:
    """An outbox of the device `porch`."""
    return Outbox(
        path,
        "porch",
        clock or HandClock(),
        "boot-1",
        max_bytes=max_bytes,
        reserve_bytes=reserve_bytes,
        connect=tap or Tap(),
    )
