"""Which rows train and which are tested, by one rule for every set.

* Train: rows of the train root whose split is `train` or `dev`.
* Test, another root: every labelled row under the test root, whatever its split says.
* Test, the same root: the rows of split `dev`; then only those of split `train` train. A set that has a usual
  cross-validation (esc10's folds, fight_surv's sources) joins train and test again where `roots.same`, and folds.

A table may name files that are not there: those rows are left out and counted. Rows that stand under both roots, the
split aside, are tested and do not train.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_agent.errors import ConfigError
from models.benchmark.record import Roots

TRAIN, DEV = "train", "dev"
Row = dict[str, str]


@dataclass(frozen=True)
class Parts:
    """Rows of a set's table, by what they are for."""

    train: list[Row]
    test: list[Row]
    split: str  #: in words, for the report
    absent: int  #: rows whose files are not there, of both roots
    doubled: int  #: rows of the train root that are tested, and so do not train

    @property
    def notes(self) -> list[str]:
        """What the report must say of the rows that are not used."""
        told = []
        if self.absent:
            told.append(f"{self.absent} rows of the tables name files that are not there: left out")
        if self.doubled:
            told.append(f"{self.doubled} rows of the train root are tested too: they did not train")
        return told


def parts(
    roots: Roots,
    table: str,
    column: str,
    file: Callable[[Row], str],
    *,
    wrong: str | None = None,
    also: Sequence[str] = (),
) -> Parts:
    """The rows of `table` (a path below each root) that train and that are tested.

    column: where a row's split stands (`split`, `use`). file: path of a row's file, below the root. wrong: column of
    labels, 0 or 1; rows in which it is empty are left out. also: other columns that rows must have. ConfigError for a
    root without the table, for a table that lacks a column or holds another label, without a row to train or to test,
    and where `wrong` is given and all rows that train are of one class. Rows of other splits than train and dev never
    train.
    """
    known, absent = _present(roots.train, table, file, wrong, also)
    if roots.same:
        train = [row for row in known if row.get(column) == TRAIN]
        test = [row for row in known if row.get(column) == DEV]
        words = f"trained on split train, tested on split dev of {table}"
        return Parts(_both(train, roots.train, table, wrong), _some(test, roots.test, table), words, absent, 0)
    test, more = _present(roots.test, table, file, wrong, also)
    tested = {_identity(row, column) for row in test}
    allowed = [row for row in known if row.get(column) in (TRAIN, DEV)]
    train = [row for row in allowed if _identity(row, column) not in tested]
    words = f"trained on splits train and dev of the train root, tested on every row of {table} under the test root"
    doubled = len(allowed) - len(train)
    return Parts(
        _both(train, roots.train, table, wrong), _some(test, roots.test, table), words, absent + more, doubled
    )


def _present(
    root: Path, table: str, file: Callable[[Row], str], wrong: str | None, also: Sequence[str]
) -> tuple[list[Row], int]:
    try:
        with (root / table).open(newline="", encoding="utf-8-sig") as opened:
            every = list(csv.DictReader(opened))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"cannot read the label table {root / table}: {error}") from error
    for name in (*also, *([wrong] if wrong else [])):
        if any(row.get(name) is None for row in every):
            raise ConfigError(f"{root / table} has no column {name!r} in every row; there are {', '.join(every[0])}")
    if wrong is not None:
        every = [row for row in every if row[wrong].strip()]
        strange = next((row[wrong] for row in every if row[wrong].strip() not in ("0", "1", "0.0", "1.0")), None)
        if strange is not None:
            raise ConfigError(f"{root / table}: {strange!r} in column {wrong!r} is no label: 0, 1 or nothing")
    there = [row for row in every if (root / file(row)).is_file()]
    return there, len(every) - len(there)


def _identity(row: Row, column: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, value) for name, value in row.items() if name != column))


def _both(found: list[Row], root: Path, table: str, wrong: str | None) -> list[Row]:
    if wrong is not None and len({row[wrong].strip() for row in _some(found, root, table)}) < 2:
        raise ConfigError(f"{root / table}: all {len(found)} rows that train are of one class; it takes both")
    return _some(found, root, table)


def _some(found: list[Row], root: Path, table: str) -> list[Row]:
    if not found:
        raise ConfigError(f"{root / table} names no row of the wanted split whose file is there")
    return found


def folds(groups: Sequence[str], count: int, seed: int) -> list[int]:
    """Fold 0 … count − 1 of every item, whole groups together, folds of about equal size.

    The largest groups are placed first, each into the smallest fold; the seed breaks ties. ConfigError for fewer
    groups than folds.
    """
    sizes = dict.fromkeys(groups, 0)
    if len(sizes) < count:
        raise ConfigError(f"{len(sizes)} groups cannot make {count} folds")
    for name in groups:
        sizes[name] += 1
    rng = np.random.default_rng([seed, 41])
    order = [sorted(sizes)[int(i)] for i in rng.permutation(len(sizes))]
    order.sort(key=lambda name: -sizes[name])
    filled, place = [0] * count, {}
    for name in order:
        fold = filled.index(min(filled))
        place[name] = fold
        filled[fold] += sizes[name]
    return [place[name] for name in groups]
