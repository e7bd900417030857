"""Composed episodes: embedding tracks of the three modalities laid side by side.

No recorded set has camera, microphone and sensors together, so fused episodes are composed from parts of one split.
A track is what one encoder made of one modality over some seconds, with the steps at which something was wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.event import MODALITIES, Modality
from edge_agent.core.records import F32
from models.config import CLASSES

Rng = np.random.Generator
#: Where the cause of an episode shows: a quarter each in one modality alone, a quarter in several.
SHOWN: tuple[str, ...] = (*MODALITIES, "several")
#: An anomaly counts until this many steps after its last active one.
_LINGER = 2


@dataclass(frozen=True, slots=True)
class Track:
    """One modality over consecutive steps."""

    embeddings: F32  #: (steps, D)
    active: NDArray[np.int8]  #: (steps,): 1 wrong, 0 normal, −1 neither
    name: str  #: class that an active step is evidence for; empty: none that has a name
    kind: str  #: normal | wrong | degraded


@dataclass(frozen=True, slots=True)
class Trio:
    """Three tracks of one place and time."""

    tracks: dict[Modality, Track]


@dataclass(frozen=True, slots=True)
class Windows:
    """What the fusion head sees and should say: history (n, H, D) x 3, mask (n, H, 3), targets."""

    history: dict[Modality, F32]
    mask: F32
    wrong: F32  #: (n,)
    own: F32  #: (n, 3); −1 where the modality is missing or unclear
    classes: F32  #: (n, C)
    shown: tuple[str, ...]  #: one of SHOWN, `nothing` or `site`


@dataclass
class Composer:
    """Draws windows from the tracks of one split."""

    tracks: dict[Modality, list[Track]]
    trios: Sequence[Trio]
    history: int
    kinds: dict[tuple[Modality, str], list[Track]]

    @classmethod
    def of(cls, tracks: dict[Modality, list[Track]], trios: Sequence[Trio], history: int) -> Composer:
        kinds = {
            (name, kind): [track for track in tracks[name] if track.kind == kind]
            for name in MODALITIES
            for kind in ("normal", "wrong", "degraded")
        }
        return cls(tracks, trios, history, kinds)

    def draw(self, rng: Rng, count: int, *, site: float = 0.5, missing: float = 0.15) -> Windows:
        """`count` windows; `site` of them from the simulated site, each modality absent in `missing` of them."""
        rows: list[_Row] = []
        while len(rows) < count:
            row = self._site(rng) if self.trios and rng.random() < site else self._composed(rng)
            rows.append(self._window(rng, row[0], row[1], missing))
        return _stack(rows)

    def _composed(self, rng: Rng) -> tuple[list[tuple[Track, int]], str]:
        shown = str(rng.choice(SHOWN)) if rng.random() < 0.55 else "nothing"
        several = rng.permutation(3)[: int(rng.integers(2, 4))]
        chosen = []
        for index, name in enumerate(MODALITIES):
            wrong = shown == name or (shown == "several" and index in several)
            kind = "wrong" if wrong else "degraded" if rng.random() < 0.1 else "normal"
            pool = self.kinds[name, kind] or self.kinds[name, "normal"]
            track = pool[int(rng.integers(len(pool)))]
            chosen.append((track, self._end(rng, track, wrong)))
        return chosen, shown

    def _end(self, rng: Rng, track: Track, wrong: bool) -> int:
        steps = np.arange(self.history - 1, len(track.active))
        good = steps[track.active[steps] == 1] if wrong else steps
        good = good if len(good) else steps
        return int(good[int(rng.integers(len(good)))])

    def _site(self, rng: Rng) -> tuple[list[tuple[Track, int]], str]:
        trio = self.trios[int(rng.integers(len(self.trios)))]
        length = len(trio.tracks["vision"].active)
        end = int(rng.integers(self.history - 1, length))
        return [(trio.tracks[name], end) for name in MODALITIES], "site"

    def _window(self, rng: Rng, chosen: list[tuple[Track, int]], shown: str, missing: float) -> _Row:
        mask = np.ones((self.history, 3), np.float32)
        mask[:, rng.random(3) < missing] = 0
        if rng.random() < 0.2:
            mask *= rng.random((self.history, 3)) < 0.8
        if rng.random() < 0.1:  # a scene that has just begun
            mask[: int(rng.integers(1, self.history))] = 0
        embeddings, own, classes = [], np.full(3, -1.0, np.float32), np.zeros(len(CLASSES), np.float32)
        unclear = False
        for index, (track, end) in enumerate(chosen):
            part = slice(end - self.history + 1, end + 1)
            embeddings.append(track.embeddings[part])
            recent = track.active[part][-_LINGER - 1 :][mask[-_LINGER - 1 :, index] > 0]
            if not mask[:, index].any():
                continue
            if (recent == 1).any():
                own[index] = 1
                if track.name:
                    classes[CLASSES.index(track.name)] = 1
            elif len(recent) == 0 or (recent < 0).any():
                unclear = True
            else:
                own[index] = 0
        wrong = 1.0 if (own == 1).any() else -1.0 if unclear else 0.0
        return _Row(embeddings, mask, wrong, own, classes, shown)


@dataclass(frozen=True, slots=True)
class _Row:
    embeddings: list[F32]
    mask: F32
    wrong: float
    own: F32
    classes: F32
    shown: str


def _stack(rows: Sequence[_Row]) -> Windows:
    return Windows(
        {name: np.stack([row.embeddings[i] for row in rows]) for i, name in enumerate(MODALITIES)},
        np.stack([row.mask for row in rows]),
        np.array([row.wrong for row in rows], np.float32),
        np.stack([row.own for row in rows]),
        np.stack([row.classes for row in rows]),
        tuple(row.shown for row in rows),
    )
