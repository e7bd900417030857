"""Figures of merit, in numpy alone. Labels are 1 (wrong, a threat, occupied …) and 0; a higher score means 1.

Every function takes whole arrays and has a stated answer where a class is missing. None rescales a score by the clip
it stands in: what needs to know a clip's own maximum cannot run live.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rng = np.random.Generator
Array = NDArray[Any]
_RESAMPLES = 1000


def auc(label: Array, score: Array) -> float:
    """Area under the ROC curve, ties counting half (Mann and Whitney 1947); 0.5 where one class is missing."""
    wrong, right = score[label > 0.5], score[label <= 0.5]
    if not len(wrong) or not len(right):
        return 0.5
    order = np.sort(right)
    below = np.searchsorted(order, wrong, "left") + np.searchsorted(order, wrong, "right")
    return float(below.mean() / 2 / len(right))


def average_precision(label: Array, score: Array) -> float:
    """Area under precision over recall, in steps (no interpolation, as scikit-learn); 0 without positives."""
    hits = label[np.argsort(-score, kind="stable")] > 0.5
    if not hits.any():
        return 0.0
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precision[hits].mean())


def accuracy(label: Array, said: Array) -> float:
    """Share of items that were called what they are; labels and answers of any one type. 0 without items."""
    return float((np.asarray(label) == np.asarray(said)).mean()) if len(label) else 0.0


def frame_auc_micro(label: Sequence[Array], score: Sequence[Array]) -> float:
    """One AUC over the frames of all clips laid end to end, scores as they are.

    The usual frame figure of video anomaly detection (Mahadevan et al., CVPR 2010; named "micro" by Georgescu et al.,
    TPAMI 2021). Many papers rescale each clip's scores to 0..1 first; this does not.
    """
    return auc(np.concatenate(label), np.concatenate(score)) if len(label) else 0.5


def frame_auc_macro(label: Sequence[Array], score: Sequence[Array]) -> float:
    """Mean AUC of the clips that hold both classes (Georgescu et al., TPAMI 2021); 0.5 if none does."""
    found = [auc(a, b) for a, b in zip(label, score, strict=True) if 0 < (a > 0.5).sum() < len(a)]
    return float(np.mean(found)) if found else 0.5


def f1_far(label: Array, said: Array) -> tuple[float, float]:
    """F1 of the class 1 and the false-alarm rate FP / (FP + TN), both as shares, as SKAB's leaderboard defines them
    for outliers (Katser and Kozitsin 2020): every row of every run in one count. 0 where nothing can be counted."""
    wrong, raised = label > 0.5, said > 0.5
    hit, false = int((wrong & raised).sum()), int((~wrong & raised).sum())
    missed, right = int((wrong & ~raised).sum()), int((~wrong & ~raised).sum())
    f1 = 2 * hit / (2 * hit + false + missed) if wrong.any() or raised.any() else 0.0
    return f1, false / (false + right) if false + right else 0.0


def threshold_at_recall(label: Array, score: Array, recall: float) -> float:
    """The highest threshold at which `score >= threshold` finds that share of the positives; +inf without any."""
    wrong = np.sort(score[label > 0.5])[::-1]
    if not len(wrong):
        return float("inf")
    return float(wrong[max(int(np.ceil(recall * len(wrong) - 1e-9)), 1) - 1])


def alarm_share_at_recall(label: Array, score: Array, recall: float, other: Array | None = None) -> float:
    """Share of negatives that raise an alarm at the threshold that finds `recall` of the positives.

    `other` are scores of negatives from elsewhere (unseen background): they are counted instead of the label's own.
    """
    against = score[label <= 0.5] if other is None else other
    return float((against >= threshold_at_recall(label, score, recall)).mean()) if len(against) else 0.0


def resampled(
    count: int, group: Sequence[str] | None, rng: Rng, figure: Callable[[NDArray[np.int64]], float]
) -> Array:
    """`figure` of 1000 bootstrap samples (row numbers); whole groups are drawn where there are groups."""
    names = np.asarray(group if group is not None else np.arange(count))
    _, member = np.unique(names, return_inverse=True)
    rows = [np.flatnonzero(member == i) for i in range(member.max() + 1)]
    return np.array(
        [
            figure(np.concatenate([rows[int(i)] for i in rng.integers(0, len(rows), len(rows))]))
            for _ in range(_RESAMPLES)
        ]
    )


def interval(label: Array, score: Array, group: Sequence[str] | None, rng: Rng) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the AUC (Efron 1979); whole groups are drawn where there are groups.

    (0, 1) where one class is missing: nothing is known."""
    if len(np.unique(label > 0.5)) < 2:
        return 0.0, 1.0
    found = resampled(len(label), group, rng, lambda rows: auc(label[rows], score[rows]))
    low, high = np.percentile(found, (2.5, 97.5))
    return float(low), float(high)


def gain_interval(
    label: Array, score: Array, other: Array, group: Sequence[str] | None, rng: Rng
) -> tuple[float, float]:
    """95 % bootstrap interval of AUC(score) − AUC(other) on the same rows: paired, so shared luck cancels.

    (−1, 1) where one class is missing."""
    if len(np.unique(label > 0.5)) < 2:
        return -1.0, 1.0
    found = resampled(
        len(label), group, rng, lambda rows: auc(label[rows], score[rows]) - auc(label[rows], other[rows])
    )
    low, high = np.percentile(found, (2.5, 97.5))
    return float(low), float(high)


def expected_error(probability: Array, truth: Array, bins: int = 15) -> float:
    """Expected calibration error (Guo et al., ICML 2017): |share that was so − mean probability| over bins of equal
    width, weighted by their items. 0 without any."""
    place = np.minimum((probability * bins).astype(int), bins - 1)
    off = np.abs(np.bincount(place, truth - probability, bins))
    return float(off.sum() / max(len(truth), 1))
