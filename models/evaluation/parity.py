"""The same score everywhere: the device's against the trainer's, engine against engine, on every clip of a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.evaluation.sessions import Played
from models.evaluation.variants import TORCH, Variant

Array = NDArray[np.float64]
#: How far a score (probability) may be off. One float32 file: rounding and the order of additions, anywhere.
FLOAT_TOLERANCE = 0.01
#: One int8 file on two engines: a value near the edge of a step falls to either side, and the head may amplify it.
INT8_TOLERANCE = 0.15


@dataclass(frozen=True)
class Pair:
    """Two forms that should say the same, and by how much their scores differ in each clip at worst."""

    name: str
    tolerance: float | None  #: None: they need not agree; it is told what separates them
    worst: dict[str, Array]  #: by kind of clip: the largest difference within each
    every: Array  #: all differences of the first kind

    def row(self) -> dict[str, Any]:
        """For a table."""
        whole = np.concatenate(list(self.worst.values()))
        return {
            "clips": len(whole),
            **{f"worst, {kind}": float(found.max()) for kind, found in self.worst.items()},
            "p99_of_steps": float(np.percentile(self.every, 99)),
            "mean_of_steps": float(self.every.mean()),
            "tolerance": self.tolerance,
            "clips_within": None if self.tolerance is None else int((whole <= self.tolerance).sum()),
        }


def pairs(variants: Sequence[Variant], played: Mapping[str, Mapping[str, Sequence[Array]]]) -> list[Pair]:
    """`played`: by the name of a variant and the kind of clip, scores (probabilities) of each clip.

    The engines of one form against the first of it (torch, where it is there); the bundle against its float32 self
    and against the trainer's network in torch.
    """
    first = variants[0]
    wanted: list[tuple[Variant, Variant, float | None]] = []
    for title in dict.fromkeys(variant.title for variant in variants):
        group = [variant for variant in variants if variant.title == title]
        tolerance = INT8_TOLERANCE if title == first.title else FLOAT_TOLERANCE
        wanted += [(variant, group[0], tolerance) for variant in group[1:]]
    wanted += [(first, v, None) for v in variants if v.as_float and v.engine == first.engine]
    wanted += [(first, v, None) for v in variants if v.engine == TORCH]
    return [_pair(one, other, tolerance, played) for one, other, tolerance in wanted]


def _pair(
    one: Variant, other: Variant, tolerance: float | None, played: Mapping[str, Mapping[str, Sequence[Array]]]
) -> Pair:
    off = {
        kind: [np.abs(a - b) for a, b in zip(clips, played[other.name][kind], strict=True) if len(a)]
        for kind, clips in played[one.name].items()
    }
    against = f"{one.name} against {other.engine if one.title == other.title else other.name}"
    worst = {kind: np.array([part.max() for part in parts]) for kind, parts in off.items()}
    return Pair(against, tolerance, worst, np.concatenate(next(iter(off.values()))))


def scores(played: Sequence[Played]) -> list[Array]:
    """(steps,) probabilities of each session."""
    return [np.array([scores.score for scores in one.scores]) for one in played]
