"""Kernel ridge classification in numpy: few examples, many features that somebody else made.

Least squares on −1 and 1 with a Gaussian kernel (regularised least-squares classification, Rifkin et al. 2003): one
linear system, no search, the same answer every time. On some thousand rows it is as good as a support vector machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.records import F32

Array = NDArray[Any]


@dataclass(frozen=True)
class Kernel:
    """Says of a row of features how much it is of each class: about 1 for the own one, −1 for the others."""

    names: tuple[str, ...]
    known: Array  #: (n, D) standardised rows that it learned from
    mean: Array
    scale: Array
    weight: Array  #: (n, K)
    bias: Array  #: (K,)
    width: float

    def __call__(self, x: Array) -> F32:
        """(m, D) → (m, K), in the order of `names`."""
        z = (np.asarray(x, np.float64) - self.mean) / self.scale
        return np.asarray(_gaussian(z, self.known, self.width) @ self.weight + self.bias, np.float32)


def kernel_ridge(
    x: Array, label: Sequence[str], names: Sequence[str], *, penalty: float, width: float, weight: Array | None = None
) -> Kernel:
    """Fit on rows x (n, D) with their classes, each with a weight (n,), 1 by default.

    The kernel is exp(−width · mean of the squared differences) of standardised features; `penalty` is that of a row
    of weight 1. ValueError for a class that no row has.
    """
    told = np.array(label)
    if missing := [name for name in names if name not in set(label)]:
        raise ValueError(f"a kernel ridge needs rows of every class: none is {', '.join(missing)}")
    own = np.ones(len(told)) if weight is None else np.asarray(weight, np.float64)
    mean, spread = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    scale = np.where(spread > 1e-8, spread, np.inf)  # what never varies says nothing
    known = (np.asarray(x, np.float64) - mean) / scale
    target = np.where(told[:, None] == np.array(names), 1.0, -1.0)
    bias = (own[:, None] * target).sum(0) / own.sum()
    matrix = _gaussian(known, known, width) + np.diag(penalty / own)
    return Kernel(tuple(names), known, mean, scale, np.linalg.solve(matrix, target - bias), bias, width)


def _gaussian(a: Array, b: Array, width: float) -> Array:
    """(m, D), (n, D) → (m, n)."""
    distance = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * (a @ b.T)
    return np.asarray(np.exp(-width / a.shape[1] * np.maximum(distance, 0.0)))
