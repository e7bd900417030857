"""Sensor logs of a benchmark: which files there are below a root, read whatever their separator and columns are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_agent.errors import ConfigError
from models.benchmark.record import Roots
from models.data.media import Layout, Log, Readings, rows

#: Columns that are no channel of the machine: numbers of rows, labels, and what is derived from labels.
_TIMES = ("time", "timestamp", "datetime", "date", "time_s", "seconds")
_LABELS = ("anomaly", "occupancy", "label", "wrong", "is_anomaly", "attack", "fire alarm")
_NO_CHANNEL = ("changepoint", "split", "group", "source", "")


@dataclass(frozen=True)
class Table:
    """One file."""

    item: str  #: path below the set's folder
    split: str
    log: Log


@dataclass(frozen=True)
class Tables:
    """The files that train and those that are tested."""

    train: list[Table]
    test: list[Table]
    split: str
    notes: list[str]


def read(path: Path, item: str, split: str, row_s: float | None = None) -> Table:
    """A table of sensors: `,`, `;` or tabulators between its columns, numbers that are not labels are channels.

    A value that is no number is NaN; a column without any number is no channel; a row without a label is −1. `row_s`:
    seconds from row to row where no column holds times; None: times are not looked at, rows follow each other.
    ConfigError names a file that cannot be read, that holds no row or no number, or a label that is none.
    """
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            first = file.readline()
    except OSError as error:
        raise ConfigError(f"cannot read the table {path}: {error}") from error
    separator = max((";", ",", "\t"), key=first.count)
    header = next(iter(rows(path, separator)), {})
    known = {name.strip().lower(): name for name in header if name is not None}  # None: cells beyond the header
    time = next((known[name] for name in _TIMES if name in known), None)
    label = next((known[name] for name in _LABELS if name in known), None)
    columns = {
        name: (name, 1.0, 0.0)
        for lower, name in known.items()
        if lower not in (*_NO_CHANNEL, *_TIMES, *_LABELS) and not lower.startswith("unnamed")
    }
    if not columns:
        raise ConfigError(f"{path} holds no column of readings; there are {', '.join(map(str, header)) or 'no rows'}")
    layout = Layout(
        columns,
        time=None if row_s is None else time,
        period_s=row_s or 1.0,
        wrong=label,
        separator=separator,
        decimal_comma=separator != ",",
    )
    log = Readings(path, layout).log()
    measured: NDArray[np.bool_] = np.asarray(np.isfinite(log.values).any(0))
    if not measured.any():
        raise ConfigError(f"{path}: no cell of {', '.join(columns)} is a number; is {separator!r} its separator?")
    names = tuple(name for name, there in zip(log.names, measured.tolist(), strict=True) if there)
    return Table(item, split, Log(log.time_s, names, log.values[:, measured], log.wrong))


def labelled(table: Table) -> bool:
    """Whether anything is said about its rows."""
    return bool((table.log.wrong >= 0).any())


def tables(roots: Roots, find: Callable[[Path], list[Table]], words: str) -> Tables:
    """The rule of `splits` for whole files.

    Of one root, split train trains and split dev is tested; of two, train and dev of the one train and every labelled
    file of the other is tested. A file of both is tested and does not train."""
    known = find(roots.train)
    if roots.same:
        train = [table for table in known if table.split == "train"]
        test = [table for table in known if table.split == "dev" and labelled(table)]
        return Tables(_some(train, words), _some(test, words), f"{words}: trained on split train, tested on dev", [])
    test = [table for table in find(roots.test) if labelled(table)]
    tested = {table.item for table in test}
    allowed = [table for table in known if table.split in ("train", "dev")]
    train = [table for table in allowed if table.item not in tested]
    notes = []
    if len(train) < len(allowed):
        notes.append(f"{len(allowed) - len(train)} files of the train root are tested too: they did not train")
    split = f"{words}: trained on train and dev of the train root, tested on {len(test)} files of the test root"
    return Tables(_some(train, words), _some(test, words), split, notes)


def _some(found: list[Table], words: str) -> list[Table]:
    if not found:
        raise ConfigError(f"{words}: no file is left to train on or to test; are both roots laid out as documented?")
    return found
