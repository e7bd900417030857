"""Windows for the fusion head, drawn from the cached embeddings of composed episodes and of the simulated site.

A track is what one encoder made of one modality over some seconds, with the steps at which something was wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.event import MODALITIES, Modality
from edge_agent.core.records import F32
from models.config import CLASSES
from models.data import augment
from models.data.mixture import MIXTURE, SHOWN

Rng = np.random.Generator
#: How often an episode is drawn as it was composed rather than paired anew, and of those the share with a cause.
_AS_COMPOSED, _WRONG = 0.5, 0.55
#: How often a window ends where something is wrong, of an episode in which something is.
_CAUGHT = 0.7
#: An anomaly counts until this many steps after its last active one.
_LINGER = 2


Kind = Literal["normal", "wrong", "degraded", "missing", "site"]


@dataclass(frozen=True, slots=True)
class Track:
    """One modality over consecutive steps."""

    embeddings: F32  #: (steps, D)
    active: NDArray[np.int8]  #: (steps,): 1 wrong, 0 normal, −1 neither
    name: str  #: class that an active step is evidence for; empty: none that has a name
    kind: Kind
    mask: F32 | None = None  #: (steps,): 0 where it is missing; None: it is there throughout


@dataclass(frozen=True, slots=True)
class Trio:
    """Three tracks of one place and time."""

    tracks: dict[Modality, Track]
    shown: str  #: one of SHOWN, `nothing` or `site`


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
    """Draws windows from the tracks of one split: of episodes as they were composed, of their tracks paired anew (a
    background of one with the cause of another, which costs nothing once both are encoded), of the simulated site."""

    episodes: Sequence[Trio]
    sites: Sequence[Trio]
    history: int
    kinds: dict[tuple[Modality, Kind], list[Track]]

    @classmethod
    def of(cls, episodes: Sequence[Trio], sites: Sequence[Trio], history: int) -> Composer:
        kinds: dict[tuple[Modality, Kind], list[Track]] = {}
        for trio in episodes:
            for name, track in trio.tracks.items():
                kinds.setdefault((name, track.kind), []).append(track)
        return cls(episodes, sites, history, kinds)

    def draw(self, rng: Rng, count: int, *, site: float = 0.3, missing: float = 0.15) -> Windows:
        """`count` windows; `site` of them from the simulated site, each modality dropped in `missing` of them."""
        rows: list[_Row] = []
        while len(rows) < count:
            if self.sites and rng.random() < site:
                row = self._whole(rng, self.sites)
            elif rng.random() < _AS_COMPOSED:
                row = self._whole(rng, self.episodes)
            else:
                row = self._paired(rng)
            rows.append(self._window(rng, row[0], row[1], missing))
        return _stack(rows)

    def _paired(self, rng: Rng) -> tuple[list[tuple[Track, int]], str]:
        shown = SHOWN[int(rng.choice(len(SHOWN), p=MIXTURE.shown))] if rng.random() < _WRONG else "nothing"
        several = rng.permutation(3)[: int(rng.integers(2, 4))]
        chosen = []
        for index, name in enumerate(MODALITIES):
            wrong = shown == name or (shown == "several" and index in several)
            kind: Kind = "wrong" if wrong else "degraded" if rng.random() < 0.1 else "normal"
            pool = self.kinds.get((name, kind)) or self.kinds.get((name, "normal")) or self.kinds[name, "missing"]
            track = pool[int(rng.integers(len(pool)))]
            chosen.append((track, self._end(rng, track, wrong)))
        return chosen, shown

    def _end(self, rng: Rng, track: Track, wrong: bool) -> int:
        steps = np.arange(self.history - 1, len(track.active))
        good = steps[track.active[steps] == 1] if wrong else steps
        good = good if len(good) else steps
        return int(good[int(rng.integers(len(good)))])

    def _whole(self, rng: Rng, trios: Sequence[Trio]) -> tuple[list[tuple[Track, int]], str]:
        trio = trios[int(rng.integers(len(trios)))]
        steps = np.arange(self.history - 1, len(trio.tracks["vision"].active))
        wrong = np.any([track.active[steps] == 1 for track in trio.tracks.values()], axis=0)
        # Most of an episode is normal, and there are normal ones enough.
        if trio.shown in SHOWN and wrong.any() and rng.random() < _CAUGHT:
            steps = steps[wrong]
        return [(trio.tracks[name], int(steps[int(rng.integers(len(steps)))])) for name in MODALITIES], trio.shown

    def _window(self, rng: Rng, chosen: list[tuple[Track, int]], shown: str, missing: float) -> _Row:
        mask = augment.modalities_dropped(np.ones((self.history, 3), np.float32), rng, missing)
        embeddings, own, classes = [], np.full(3, -1.0, np.float32), np.zeros(len(CLASSES), np.float32)
        unclear = False
        for index, (track, end) in enumerate(chosen):
            part = slice(end - self.history + 1, end + 1)
            if track.mask is not None:
                mask[:, index] *= track.mask[part]
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
