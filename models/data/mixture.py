"""What composed episodes are made of, decided before anything was trained on them, and the manifest that says it.

No public set has camera, microphone and sensors together, so fused episodes are composed from parts of one split. A
`Mixture` is frozen: whoever changes one gives it another version, and its hash stands on the model card. A manifest
is JSON lines, one `Entry` an episode: which recordings, from where, how loud, how far apart, what is missing or lies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from msgspec import Struct

from edge_agent.contract.event import MODALITIES, Modality
from edge_agent.errors import ConfigError
from models.config import CLASSES, SOUNDS
from models.data import balance
from models.data.records import NORMAL, Recording
from models.data.traces import WRONG

Rng = np.random.Generator
#: Where the cause of an episode shows: in one modality alone, or in several.
SHOWN: tuple[str, ...] = (*MODALITIES, "several")
State = Literal["well", "missing", "noisy", "frozen", "contradicting"]
#: Things that look, sound or feel like something and are nothing, and where they show.
HARD: dict[str, tuple[Modality, ...]] = {
    "thunder": ("vision", "audio"),
    "shadow": ("vision",),
    "door_slam": ("audio", "sensors"),
    "dropped_sensor": ("sensors",),
}
#: Labels of recordings that are causes, by the modality that shows them.
_CAUSES: dict[Modality, tuple[str, ...]] = {
    "vision": ("fire", "unusual"),
    "audio": SOUNDS[1:],
    "sensors": (),
}
#: What a generated cause is evidence for.
_MEANT = {"fire": "fire", "smoulder": "fire", "blast": "explosion"}
#: What is generated rather than recorded has a name that starts so.
MADE = "made:"
#: A kind with fewer recordings than this is drawn less often, in proportion: one film is no variety.
_ENOUGH = 8
#: A burning fireplace is no threat, a burning room sounds like one; people's own films carry music and voices.
_UNCLEAR = ("fire_crackling",)


class Mixture(Struct, frozen=True):
    """Shares and ranges of everything that is drawn. Seconds, decibels, shares of episodes."""

    version: int = 1
    steps: int = 16  #: of 500 ms
    wrong: float = 0.5  #: episodes in which something is wrong
    #: of those, where it shows: SHOWN
    shown: tuple[float, ...] = (0.25, 0.25, 0.25, 0.25)
    hard: float = 0.5  #: of the others, those with a hard negative
    missing: float = 0.1  #: of each modality that is not the only one to show the cause
    noisy: float = 0.05
    frozen: float = 0.05
    contradicting: float = 0.05  #: from some moment on, of another place
    onset_s: tuple[float, float] = (1.0, 4.0)
    length_s: tuple[float, float] = (2.0, 8.0)
    apart_s: float = 1.0  #: how far the same cause is apart in two modalities, at most
    gain_db: tuple[float, float] = (-12.0, 6.0)
    snr_db: tuple[float, float] = (0.0, 20.0)  #: of a cause in sound over its background
    #: pictures: staged flames, recorded fires, recorded unusual behaviour, pseudo-anomalies
    seen: tuple[tuple[str, float], ...] = (("made:fire", 0.3), ("fire", 0.3), ("unusual", 0.3), ("made:odd", 0.1))
    felt: tuple[str, ...] = WRONG  #: causes in sensors are generated over recorded levels
    seeds: tuple[tuple[str, int], ...] = (("train", 101), ("dev", 202), ("test", 303))

    @property
    def digest(self) -> str:
        """Hex SHA-256 of all of it."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()


#: Frozen on 2026-11-22, before the first training on it.
MIXTURE = Mixture()


class Part(Struct, frozen=True, forbid_unknown_fields=True):
    """One modality of an episode."""

    modality: Modality
    state: State
    background: str  #: key of a recording; empty: generated
    offset_s: float  #: share of the way into it, 0..1, at which the episode begins
    gain_db: float  #: of the whole: loudness, or light
    cause: str  #: key of a recording or `made:<what>`; empty: nothing
    wrong: bool  #: the cause is wrong, not a hard negative
    label: str  #: class that it is evidence for; empty: none with a name
    at_s: float  #: when it begins
    length_s: float
    snr_db: float
    seed: int  #: of everything else in it


class Entry(Struct, frozen=True, forbid_unknown_fields=True):
    """One line of a manifest."""

    name: str
    split: str
    mixture: str  #: digest of the mixture
    shown: str  #: one of SHOWN, or `nothing`
    hard: str  #: one of HARD, or empty
    parts: tuple[Part, ...]

    @property
    def wrong(self) -> bool:
        return self.shown != "nothing"


def key(recording: Recording) -> str:
    """How a manifest names a recording."""
    return f"{recording.source}/{recording.item}@{recording.split}"


class Shelf:
    """The recordings of one split by what they can be in an episode. Those with no use are left out."""

    def __init__(self, recordings: Iterable[Recording]) -> None:
        self.by_key: dict[str, Recording] = {}
        self.normal: dict[Modality, list[str]] = {name: [] for name in MODALITIES}
        #: modality → kind (`fire`, `unusual`, one of SOUNDS) → keys
        self.causes: dict[Modality, dict[str, list[str]]] = {name: {} for name in MODALITIES}
        for recording in recordings:
            for modality in recording.modalities:
                self._place(recording, modality)

    def _place(self, recording: Recording, modality: Modality) -> None:
        kind = recording.label or (recording.spans[0].label if recording.spans else "")
        name = key(recording)
        if kind in _CAUSES[modality]:
            self.causes[modality].setdefault(kind, []).append(name)
        elif (
            (modality == "vision" and kind == NORMAL)
            or (modality == "audio" and recording.pictures is None and kind not in _UNCLEAR)
            or modality == "sensors"
        ):
            self.normal[modality].append(name)
        else:
            return
        self.by_key[name] = recording

    def recordings(self, names: Iterable[str]) -> list[Recording]:
        """The recordings of these keys."""
        return [self.by_key[name] for name in names]


def plan(shelf: Shelf, split: str, count: int, mixture: Mixture = MIXTURE) -> list[Entry]:
    """`count` episodes from one split: the same shelf and mixture give the same episodes, and a longer plan
    begins with a shorter one."""
    seed = dict(mixture.seeds).get(split, 0)
    return [_entry(np.random.default_rng([seed, mixture.version, i]), shelf, split, i, mixture) for i in range(count)]


def _entry(rng: Rng, shelf: Shelf, split: str, index: int, mixture: Mixture) -> Entry:
    wrong = bool(rng.random() < mixture.wrong)
    shown = SHOWN[int(rng.choice(len(SHOWN), p=mixture.shown))] if wrong else "nothing"
    several = [MODALITIES[int(i)] for i in rng.permutation(3)[: int(rng.integers(2, 4))]]
    showing: Sequence[str] = several if shown == "several" else [shown]
    hard = "" if wrong or rng.random() >= mixture.hard else sorted(HARD)[int(rng.integers(len(HARD)))]
    at_s = float(rng.uniform(*mixture.onset_s))
    parts = [_part(rng, shelf, name, name in showing, hard, at_s, mixture) for name in MODALITIES]
    keep = [i for i, part in enumerate(parts) if part.wrong] if wrong else [int(rng.integers(3))]
    states = [_state(rng, mixture, needed=len(keep) == 1 and i == keep[0]) for i in range(3)]
    if wrong and all(states[i] != "well" for i in keep):
        states[keep[0]] = "well"
    parts = [msgspec.structs.replace(part, state=state) for part, state in zip(parts, states, strict=True)]
    return Entry(f"{split}-{index:05d}", split, mixture.digest, shown, hard, tuple(parts))


def _state(rng: Rng, mixture: Mixture, *, needed: bool) -> State:
    draw = float(rng.random())
    shares: tuple[tuple[State, float], ...] = (
        ("missing", mixture.missing),
        ("noisy", mixture.noisy),
        ("frozen", mixture.frozen),
        ("contradicting", mixture.contradicting),
    )
    for state, share in shares:
        if draw < share:
            return "well" if needed else state
        draw -= share
    return "well"


def _part(  # noqa: PLR0917
    rng: Rng, shelf: Shelf, name: Modality, wrong: bool, hard: str, at_s: float, mixture: Mixture
) -> Part:
    cause, label = _cause(rng, shelf, name, mixture) if wrong else ("", "")
    if not wrong and hard and name in HARD[hard]:
        cause = MADE + hard
    normal = shelf.normal[name]
    return Part(
        modality=name,
        state="well",
        background=normal[int(rng.integers(len(normal)))] if normal else "",
        offset_s=float(rng.random()),
        gain_db=float(rng.uniform(*mixture.gain_db)),
        cause=cause,
        wrong=wrong,
        label=label,
        at_s=max(at_s + float(rng.uniform(-0.5, 0.5)) * mixture.apart_s, 0.5),
        length_s=float(rng.uniform(*mixture.length_s)),
        snr_db=float(rng.uniform(*mixture.snr_db)),
        seed=int(rng.integers(1 << 31)),
    )


def _cause(rng: Rng, shelf: Shelf, name: Modality, mixture: Mixture) -> tuple[str, str]:
    """(cause, class it is evidence for)."""
    if name == "sensors":
        kind = mixture.felt[int(rng.integers(len(mixture.felt)))]
        return MADE + kind, _MEANT.get(kind, "")
    causes = shelf.causes[name]
    if name == "audio":
        names = [item for kind in sorted(causes) for item in causes[kind]]
        if not names:  # without any recording, as a simulation has them
            kind = ("gunshot", "explosion")[int(rng.integers(2))]
            return MADE + kind, kind
        odds = balance.weights([kind for kind in sorted(causes) for _ in causes[kind]])
        chosen = names[int(rng.choice(len(names), p=odds))]
        kind = next(kind for kind in causes if chosen in causes[kind])
        return chosen, kind if kind in CLASSES else ""
    shares: Mapping[str, float] = {
        kind: share * (1.0 if kind.startswith(MADE) else min(len(causes.get(kind, [])) / _ENOUGH, 1.0))
        for kind, share in mixture.seen
    }
    weights = np.array([*shares.values()])
    kind = [*shares][int(rng.choice(len(weights), p=weights / weights.sum()))]
    label = "fire" if kind.endswith("fire") else ""
    if kind.startswith(MADE):
        return kind, label
    return causes[kind][int(rng.integers(len(causes[kind])))], label


def write(path: Path, entries: Iterable[Entry]) -> None:
    """A manifest: one entry a line."""
    path.write_bytes(b"".join(msgspec.json.encode(entry) + b"\n" for entry in entries))


def read(path: Path) -> list[Entry]:
    """A manifest. ConfigError for a file or a line that is none."""
    try:
        return [msgspec.json.decode(line, type=Entry) for line in path.read_bytes().splitlines() if line.strip()]
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"cannot read the manifest {path}: {error}") from error
