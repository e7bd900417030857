"""Sensor readings from a CSV file, replayed in time: recorded data as if it came in now."""

from __future__ import annotations

import csv
import threading
from collections import deque
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Literal, TextIO

from msgspec import Meta, Struct

from edge_agent.clock import Clock
from edge_agent.core.records import Reading, Sample
from edge_agent.errors import ConfigError, SourceEnded, SourceError
from edge_agent.sources import readings
from edge_agent.sources.readings import Unusable

SECOND = 1_000_000_000
MAX_ROW = 64 * 1024  #: characters
_BAD_ROWS = 100  # in a row: the file is not what the options say


class CsvOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of rows, and which of its columns are readings. Its first line names the columns."""

    path: Path
    channels: Annotated[dict[str, str], Meta(min_length=1, max_length=64)]  #: channel → column
    time: str | None = None  #: column of the time; None: rows come at `rate_hz`
    time_format: str = "iso"  #: iso | s | ms (numbers since any start) | a strptime format
    rate_hz: Annotated[float, Meta(gt=0, le=1000)] | None = None
    speed: Annotated[float, Meta(gt=0, le=1e6)] = 1.0  #: 60 plays an hour in a minute
    loop: bool = False
    separator: Literal[",", ";", "\t", "|", " "] = ","
    decimal: Literal[".", ","] = "."
    encoding: Literal["utf-8", "latin-1", "utf-16"] = "utf-8"


class Csv:
    """One Reading per channel per row, when it is due. An empty cell is no reading and no fault.

    Counters: `bad_rows` (too short, without a usable time, or back in time), `bad_values` (cells that are no finite
    number). `last_fault` says where the last one was.
    """

    Options = CsvOptions
    stamps_on_arrival = True

    def __init__(self, name: str, options: CsvOptions, clock: Clock) -> None:
        """ConfigError if it is not said when the rows are due."""
        if (options.time is None) == (options.rate_hz is None):
            raise ConfigError("give either `time` (a column) or `rate_hz`", "time")
        if options.separator == options.decimal:
            raise ConfigError("separator and decimal sign cannot be the same", "decimal")
        self.counters = {"bad_rows": 0, "bad_values": 0}
        self.last_fault = ""
        self._name = name
        self._options = options
        self._clock = clock
        self._playing: _Playing | None = None
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._seq = -1

    def open(self) -> None:
        """Begin to play. SourceError if the file is not there or lacks a column."""
        with self._lock:
            if self._playing is not None:
                raise SourceError(f"{self._name}: open already; close it first")
            self._closing.clear()
            self._playing = _Playing(self._name, self._options, self._clock.monotonic_ns(), self._note)

    def read(self, timeout_s: float) -> Sample | None:
        """The next reading, once it is due."""
        deadline_ns = self._clock.monotonic_ns() + round(timeout_s * SECOND)
        with self._lock:
            playing = self._playing
            if playing is None:
                raise SourceError(f"{self._name}: not open")
            due_ns = playing.due_ns()
        wait_ns = min(due_ns, deadline_ns) - self._clock.monotonic_ns()
        if wait_ns > 0:
            self._closing.wait(wait_ns / SECOND)
        with self._lock:
            if self._playing is not playing:
                raise SourceError(f"{self._name}: closed")
            now_ns = self._clock.monotonic_ns()
            if due_ns > now_ns:
                return None
            self._seq += 1
            return Sample(self._name, "reading", self._seq, now_ns, playing.take())

    def close(self) -> None:
        """Let go of the file."""
        self._closing.set()
        with self._lock:
            playing, self._playing = self._playing, None
            if playing is not None:
                playing.close()

    def _note(self, counter: str, fault: str) -> None:
        self.counters[counter] += 1
        self.last_fault = fault


class _Playing:
    """One open file, and the readings of its current row."""

    def __init__(self, name: str, options: CsvOptions, start_ns: int, note: Callable[[str, str], None]) -> None:
        self._options = options
        self._label = f"{name}: {options.path}"
        self._note = note
        self._waiting: deque[Reading] = deque()
        self._due_ns = start_ns
        self._step_ns = 0  # between the last two rows
        self._in_row = 0  # bad rows in a row
        self._file = self._opened()
        try:
            self._begin()
        except SourceError:
            self._file.close()
            raise

    def due_ns(self) -> int:
        """When the next reading is due. SourceEnded behind the last row, SourceError if the rest cannot be read."""
        while not self._waiting:
            try:
                row = next(self._rows, None)
            except (csv.Error, OSError, UnicodeError) as error:
                raise SourceError(f"{self._label}: line {self._rows.line_num}: {error}") from error
            if row is not None:
                self._take_row(row)
            elif self._options.loop and self._any:
                self._file.seek(0)
                self._due_ns += self._step_ns
                self._begin()
            else:
                raise SourceEnded(f"{self._label} has been played")
        return self._due_ns

    def take(self) -> Reading:
        return self._waiting.popleft()

    def close(self) -> None:
        self._file.close()

    def _opened(self) -> TextIO:
        try:
            return self._options.path.open(encoding=self._options.encoding, newline="")
        except OSError as error:
            raise SourceError(f"{self._label} cannot be opened: {error}") from error

    def _begin(self) -> None:
        """Read the names of the columns; the next row is due at `_due_ns`."""
        self._first_s: float | None = None
        self._start_ns = self._last_ns = self._due_ns
        self._count = 0
        self._any = False
        # A line is taken in pieces of MAX_ROW, so that a file without line ends cannot fill the memory.
        lines = iter(lambda: self._file.readline(MAX_ROW), "")
        self._rows = csv.reader(lines, delimiter=self._options.separator)
        try:
            names = [name.strip().lstrip("\ufeff") for name in next(self._rows, [])]
        except (csv.Error, OSError, UnicodeError) as error:
            raise SourceError(f"{self._label}: the first line cannot be read: {error}") from error
        wanted = {*self._options.channels.values(), *([self._options.time] if self._options.time else [])}
        absent = sorted(wanted - set(names))
        if absent:
            there = ", ".join(map(repr, names[:20]))
            raise SourceError(f"{self._label}: no column {', '.join(map(repr, absent))}; there are {there}")
        self._column = {name: names.index(name) for name in wanted}

    def _take_row(self, row: list[str]) -> None:
        if not row:
            return
        try:
            due_ns = self._due_of(row)
        except Unusable as error:
            self._note("bad_rows", f"line {self._rows.line_num}: {error}")
            self._in_row += 1
            if self._in_row >= _BAD_ROWS:
                raise SourceError(f"{self._label}: {self._in_row} unusable rows in a row; {error}") from error
            return
        self._in_row = 0
        self._any = True
        self._step_ns, self._last_ns, self._due_ns = due_ns - self._last_ns, due_ns, due_ns
        for channel, column in self._options.channels.items():
            cell = row[self._column[column]].strip()
            try:
                if cell:
                    self._waiting.append(Reading(channel, readings.number(cell, decimal=self._options.decimal)))
            except Unusable as error:
                self._note("bad_values", f"line {self._rows.line_num}, column {column!r}: {error}")

    def _due_of(self, row: list[str]) -> int:
        if len(row) <= max(self._column.values()):
            raise Unusable("malformed", f"{len(row)} cells")
        options = self._options
        if options.time is None:
            assert options.rate_hz is not None
            elapsed_s = self._count / options.rate_hz
        else:
            at_s = _seconds(row[self._column[options.time]].strip(), options)
            self._first_s = at_s if self._first_s is None else self._first_s
            elapsed_s = at_s - self._first_s
        due_ns = self._start_ns + round(elapsed_s / options.speed * SECOND)
        if due_ns < self._last_ns:
            raise Unusable("malformed", "its time lies before the row above")
        self._count += 1
        return due_ns


def _seconds(cell: str, options: CsvOptions) -> float:
    """A time as seconds since some start; without a zone it is taken as UTC."""
    if options.time_format in ("s", "ms"):
        value = readings.number(cell, decimal=options.decimal)
        return value / 1000 if options.time_format == "ms" else value
    try:
        if options.time_format == "iso":
            moment = datetime.fromisoformat(cell[:-1] + "+00:00" if cell.endswith(("Z", "z")) else cell)
        else:
            moment = datetime.strptime(cell, options.time_format)
    except ValueError as error:
        raise Unusable("malformed", f"{cell[:40]!r} is no time of format {options.time_format!r}") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
