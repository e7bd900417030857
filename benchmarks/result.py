"""What a benchmark gives, how it is kept, and what it is held against."""

from __future__ import annotations

import datetime
import math
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class Figure(Struct, frozen=True, kw_only=True):
    """One number, with what it was in each repetition."""

    name: str
    text: str  #: what was measured, in one line
    unit: str
    value: float  #: the median of `runs`
    runs: tuple[float, ...]


class Machine(Struct, frozen=True, kw_only=True):
    """Where it was measured."""

    cpu: str
    cores: int
    flags: tuple[str, ...]  #: of the CPU, those that inference uses
    memory_gb: float
    kernel: str
    load_before: float  #: load average of the last minute
    load_after: float


class Result(Struct, frozen=True, kw_only=True):
    """One run of one benchmark."""

    v: int = 1
    name: str
    question: str
    command: str
    taken: str  #: UTC, ISO 8601
    took_s: float
    machine: Machine
    versions: Mapping[str, str]
    figures: tuple[Figure, ...]
    notes: tuple[str, ...] = ()  #: what a reader has to know before believing a figure


class Budget(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A limit of one figure, and why it is that."""

    unit: str
    reason: str
    at_most: float | None = None
    at_least: float | None = None

    def __post_init__(self) -> None:
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError("a budget has either at_most or at_least")

    @property
    def limit(self) -> str:
        """For people."""
        return f"≤ {shown(self.at_most)}" if self.at_most is not None else f"≥ {shown(self.at_least or 0.0)}"

    def holds(self, value: float) -> bool:
        """Whether `value` is within it."""
        if self.at_most is not None:
            return value <= self.at_most
        return self.at_least is not None and value >= self.at_least


Budgets = Mapping[str, Mapping[str, Budget]]  #: benchmark → figure → limit


class Findings:
    """What a benchmark notes down while it measures; `figures` are medians over what was noted under one name."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._noted: dict[str, tuple[str, str, list[float]]] = {}

    def add(self, name: str, value: float, unit: str, text: str) -> None:
        """One measurement; those of the same name are repetitions. ValueError if it is not finite."""
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value}")
        self._noted.setdefault(name, (unit, text, []))[2].append(value)

    def add_spread(self, name: str, values: Sequence[float], unit: str, text: str) -> None:
        """p50, p99 and worst of one repetition's values, as three figures."""
        for suffix, words, value in zip(
            ("p50", "p99", "worst"), ("p50", "p99", "worst"), spread(values), strict=True
        ):
            self.add(f"{name}_{suffix}", value, unit, f"{text}, {words} of {len(values)}")

    def note(self, text: str) -> None:
        """Something that a reader has to know; the same once."""
        if text not in self.notes:
            self.notes.append(text)

    def figures(self) -> tuple[Figure, ...]:
        """In the order in which their names were first noted."""
        return tuple(
            Figure(name=name, text=text, unit=unit, value=statistics.median(runs), runs=tuple(runs))
            for name, (unit, text, runs) in self._noted.items()
        )


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """p50, p99 and worst, each a value that occurred. ValueError for none."""
    if not values:
        raise ValueError("nothing was measured")
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2], ordered[math.ceil(0.99 * len(ordered)) - 1], ordered[-1]


def load_budgets(path: Path) -> Budgets:
    """The limits in budgets.toml; ValueError for an entry that is none."""
    try:
        return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), dict[str, dict[str, Budget]])
    except msgspec.ValidationError as error:
        raise ValueError(f"{path}: {error}") from error


def verdicts(result: Result, budgets: Budgets) -> dict[str, bool]:
    """Figure → whether it is within its limit, for those that have one. ValueError where the units differ."""
    limits = budgets.get(result.name, {})
    found: dict[str, bool] = {}
    for figure in result.figures:
        budget = limits.get(figure.name)
        if budget is None:
            continue
        if budget.unit != figure.unit:
            raise ValueError(f"{result.name}.{figure.name} is in {figure.unit}, its budget in {budget.unit}")
        found[figure.name] = budget.holds(figure.value)
    return found


def save(result: Result, folder: Path) -> Path:
    """Write `<name>.json` over the run before."""
    path = folder / f"{result.name}.json"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    return path


def load(path: Path) -> Result:
    """A saved run; msgspec.DecodeError if it is none."""
    return msgspec.json.decode(path.read_bytes(), type=Result)


def load_all(folder: Path, order: Sequence[str]) -> list[Result]:
    """The last run of each benchmark, in that order."""
    paths = (folder / f"{name}.json" for name in order)
    return [load(path) for path in paths if path.is_file()]


def now() -> str:
    """This moment, as a result states it."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


# --- for people ----------------------------------------------------------------------------------------------------


def shown(value: float) -> str:
    """Three significant digits, whole numbers from 100 on."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(result: Result, budgets: Budgets) -> list[str]:
    """A run in Markdown: heading, circumstances, figures, notes."""
    machine, judged, limits = result.machine, verdicts(result, budgets), budgets.get(result.name, {})
    lines = [
        f"### {result.name}",
        "",
        f"{result.question} `{result.command}`, {result.taken}, load average {machine.load_before:.1f} before and "
        f"{machine.load_after:.1f} after.",
        "",
        "| figure | median | lowest – highest | limit | |",
        "|---|---:|---:|---:|---|",
    ]
    for figure in result.figures:
        low, high = min(figure.runs), max(figure.runs)
        every = f"{shown(low)} – {shown(high)}" if len(figure.runs) > 1 else ""
        limit = limits[figure.name].limit if figure.name in limits else ""
        verdict = {True: "within", False: "**over**", None: ""}[judged.get(figure.name)]
        lines.append(f"| {figure.text} | {shown(figure.value)} {figure.unit} | {every} | {limit} | {verdict} |")
    lines += ["", *(f"* {note}" for note in result.notes), *([""] if result.notes else [])]
    return lines


def machines(results: Iterable[Result]) -> list[str]:
    """The distinct machines and versions of several runs, as Markdown list items."""
    lines: dict[str, None] = {}
    for result in results:
        machine = result.machine
        lines[
            f"* {machine.cpu}, {machine.cores} cores, {machine.memory_gb:.1f} GB, Linux {machine.kernel}; "
            f"{' '.join(machine.flags) or 'no vector extensions of note'}"
        ] = None
    versions: dict[str, Any] = {}
    for result in results:
        versions |= result.versions
    return [*lines, "* " + ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))]
