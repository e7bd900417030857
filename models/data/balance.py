"""How much of what there is: a table per split, class and modality, and the weights that even it out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.event import Modality
from models.data.records import Recording


@dataclass(frozen=True, slots=True)
class Row:
    """What one split holds of one class in one modality."""

    split: str
    label: str
    modality: Modality
    count: int
    hours: float


def table(recordings: Sequence[Recording]) -> list[Row]:
    """Sorted by split, modality and class; unlabelled recordings count as `unlabelled`."""
    counts: Counter[tuple[str, Modality, str]] = Counter()
    seconds: Counter[tuple[str, Modality, str]] = Counter()
    for recording in recordings:
        label = recording.label or (recording.spans[0].label if recording.spans else "unlabelled")
        for modality in recording.modalities:
            key = (recording.split or "none", modality, label)
            counts[key] += 1
            seconds[key] += recording.length_s(modality)  # type: ignore[assignment]
    return [Row(key[0], key[2], key[1], counts[key], seconds[key] / 3600) for key in sorted(counts)]


def markdown(rows: Sequence[Row]) -> list[str]:
    """The table for a card."""
    lines = ["| split | modality | class | recordings | hours |", "| --- | --- | --- | --- | --- |"]
    return lines + [f"| {r.split} | {r.modality} | {r.label} | {r.count} | {r.hours:.2f} |" for r in rows]


def weights(labels: Sequence[str], power: float = 0.5) -> NDArray[np.float64]:
    """Odds of drawing each item, summing to one: a class of n items weighs n^(1 − power) instead of n.

    0 leaves things as they are, 1 makes classes equal; between them rare classes are not learnt by heart.
    """
    counts = Counter(labels)
    odds = np.array([counts[label] ** -power for label in labels], np.float64)
    return np.asarray(odds / max(float(odds.sum()), 1e-12))
