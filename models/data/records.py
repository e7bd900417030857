"""The nouns of training data, and where recorded sets are found."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edge_agent.core.records import I16, U8
from edge_agent.errors import ConfigError

Split = Literal["train", "dev"]
SPLITS: tuple[Split, ...] = ("train", "dev")


@dataclass(frozen=True, slots=True)
class Clip:
    """A recorded sound: int16 mono at the rate of the model's audio specification."""

    source: str  #: name of the set
    split: Split
    group: str  #: clips of one group are one recording: they never stand in two splits
    label: str  #: one of `config.SOUNDS`
    pcm: I16


@dataclass(frozen=True, slots=True)
class Footage:
    """A recorded picture sequence: uint8 (n, H, W, 3) RGB at 10 frames a second, in the model's size."""

    name: str
    split: Split
    frames: U8
    #: Of each frame, boxes (x0, y0, x1, y1) in 0..1 that hold fire; empty where nobody boxed.
    boxes: tuple[tuple[tuple[float, float, float, float], ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """A recorded sensor log: one row per reading, values in the units of `config.UNITS`."""

    name: str
    split: Split
    rows: tuple[dict[str, float], ...]  #: quantity → value
    labels: tuple[int, ...]  #: 1: someone is there; −1: nothing is said


@dataclass(frozen=True, slots=True)
class Corpus:
    """All recorded parts that may train what ships. Empty where there is no data root."""

    clips: tuple[Clip, ...] = ()
    footage: tuple[Footage, ...] = ()
    fires: tuple[Footage, ...] = ()
    tables: tuple[Table, ...] = ()
    sets: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        check_groups((clip.source + "/" + clip.group, clip.split) for clip in self.clips)


def check_groups(members: Iterable[tuple[str, str]]) -> None:
    """ConfigError if one group stands in two splits: the figures would lie."""
    seen: dict[str, str] = {}
    for group, split in members:
        if seen.setdefault(group, split) != split:
            raise ConfigError(
                f"group {group} stands in two splits ({seen[group]} and {split}): nothing can be measured"
            )


def folder(root: Path, name: str) -> Path:
    """The folder of one recorded set; ConfigError says what is missing and what goes without it."""
    path = root / name
    if not path.is_dir():
        raise ConfigError(
            f"no data set {name!r} in {root}. Point --data (or TECTUM_DATA) at a folder that holds it, or give "
            "`--data none` to train on simulated parts alone"
        )
    return path


def rows(path: Path) -> Iterator[dict[str, str]]:
    """Rows of a comma-separated table with a header; ConfigError if it is not there."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            yield from csv.DictReader(file)
    except OSError as error:
        raise ConfigError(f"cannot read the label table {path}: {error}") from error
