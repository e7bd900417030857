"""Logistic regression in numpy: the small head on features that somebody else made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.records import F32

Array = NDArray[Any]
_STEPS, _SETTLED = 50, 1e-6


@dataclass(frozen=True)
class Linear:
    """Log odds = x @ weight + bias, on features as they come: how they were standardised is in the weights."""

    weight: F32  #: (D,)
    bias: float

    def __call__(self, x: Array) -> F32:
        """(n, D) → (n,) log odds."""
        return np.asarray(x @ self.weight + self.bias, np.float32)


def logistic(x: Array, label: Array, penalty: float, weight: Array | None = None) -> Linear:
    """Least balanced log loss + penalty / 2 · |w|² on standardised features, by Newton's method.

    x (n, D); label (n,) 0 or 1; weight (n,) of the rows, 1 each by default. Both classes weigh the same in all; a
    feature that never varies gets no weight. ValueError unless both classes are there.
    """
    own = np.ones(len(label)) if weight is None else np.asarray(weight, np.float64)
    positive = label > 0.5
    if not (own[positive].sum() > 0 and own[~positive].sum() > 0):
        raise ValueError("a logistic regression needs rows of both classes")
    share = 0.5 * np.where(positive, own / own[positive].sum(), own / own[~positive].sum())
    mean = (share[:, None] * x).sum(0)
    spread = np.sqrt((share[:, None] * np.square(x - mean)).sum(0))
    scale = np.where(spread > 1e-8, spread, np.inf)
    z = np.concatenate([(x - mean) / scale, np.ones((len(x), 1))], 1)
    ridge = np.full(z.shape[1], penalty)
    ridge[-1] = 1e-9  # the bias is free; the least bit keeps the matrix regular
    solution = np.zeros(z.shape[1])
    for _ in range(_STEPS):
        chance = 1 / (1 + np.exp(-np.clip(z @ solution, -30, 30)))
        slope = z.T @ (share * (chance - positive)) + ridge * solution
        curve = (z * (share * chance * (1 - chance))[:, None]).T @ z + np.diag(ridge)
        step = np.linalg.solve(curve, slope)
        solution -= step
        if np.abs(step).max() < _SETTLED:
            break
    found = solution[:-1] / scale
    return Linear(found.astype(np.float32), float(solution[-1] - found @ mean))
