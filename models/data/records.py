"""The noun of training data: a recording with whatever modalities it has, and what is known to be wrong in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.event import Modality
from edge_agent.contract.manifest import VisionSpec
from edge_agent.core.records import I16, U8
from edge_agent.errors import ConfigError
from models.data.media import Box, Log, Pictures, Readings, Sound

Split = Literal["train", "dev"]
SPLITS: tuple[Split, ...] = ("train", "dev")
#: Label of a recording in which somebody said that nothing is wrong. An empty label: nobody said anything.
NORMAL = "normal"


@dataclass(frozen=True, slots=True)
class Span:
    """Something is wrong from `start_s` until `end_s` of a recording."""

    start_s: float
    end_s: float
    label: str


@dataclass(frozen=True, eq=False)
class Recording:
    """One item of a set. Modalities that it lacks are None; nothing is decoded before it is asked for."""

    source: str  #: name of the set
    item: str  #: name within the set, as its table has it
    split: str  #: train | dev | test …, as the table says; empty where the set has none
    group: str  #: recordings of one group are one source: they never stand in two splits
    label: str = ""  #: of the whole: NORMAL, a class, or empty
    spans: tuple[Span, ...] = ()  #: where in it; empty for all of it
    pictures: Pictures | None = None
    sound: Sound | None = None
    readings: Readings | None = None
    ships: bool = False  #: its licence lets it train what ships
    facts: Mapping[str, str] = field(default_factory=dict)  #: the row of the table it comes from

    @property
    def modalities(self) -> tuple[Modality, ...]:
        parts: tuple[tuple[Modality, object], ...] = (
            ("vision", self.pictures),
            ("audio", self.sound),
            ("sensors", self.readings),
        )
        return tuple(name for name, part in parts if part is not None)

    def pcm(self, rate_hz: int) -> I16:
        """int16 (samples,) mono; ConfigError if there is no sound."""
        if self.sound is None:
            raise ConfigError(f"{self.source}/{self.item} holds no sound")
        return self.sound.pcm(rate_hz)

    def frames(self, spec: VisionSpec) -> U8:
        """uint8 (n, H, W, 3) at 10 a second in the model's size; ConfigError if there are no pictures."""
        if self.pictures is None:
            raise ConfigError(f"{self.source}/{self.item} holds no pictures")
        return self.pictures.frames(spec)

    def marks(self, spec: VisionSpec) -> list[tuple[Box, ...]]:
        """The boxes of each of `frames`; none where nobody boxed."""
        return [] if self.pictures is None else self.pictures.marks(spec)

    def log(self) -> Log:
        """Its sensor rows; ConfigError if there are none."""
        if self.readings is None:
            raise ConfigError(f"{self.source}/{self.item} holds no readings")
        return self.readings.log()

    def length_s(self, modality: Modality) -> float:
        """Seconds of one modality; 0 for one that it lacks, and for a still."""
        if modality == "vision":
            return self.pictures.length_s if self.pictures is not None else 0.0
        if modality == "audio":
            return self.sound.length_s if self.sound is not None else 0.0
        if self.readings is None:
            return 0.0
        times = self.readings.log().time_s
        return float(times[-1] - times[0]) if len(times) else 0.0

    def wrong(self, times_s: Sequence[float] | NDArray[np.float64]) -> NDArray[np.int8]:
        """(n,): 1 where something is wrong at that time, 0 where not, −1 where nothing is said."""
        times = np.asarray(times_s, np.float64)
        if not self.label and not self.spans:
            return np.full(len(times), -1, np.int8)
        if not self.spans:
            return np.full(len(times), int(self.label != NORMAL), np.int8)
        inside = [(span.start_s <= times) & (times < span.end_s) for span in self.spans]
        return np.asarray(np.any(inside, axis=0), np.int8)


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
