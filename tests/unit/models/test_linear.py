"""The small head: finds what is there, ignores what does not vary, and needs both classes."""

from __future__ import annotations

import numpy as np
import pytest

from models.training.linear import logistic


def test_separates_by_the_feature_that_tells() -> None:
    rng = np.random.default_rng(0)
    label = np.arange(200) % 2
    x = rng.normal(0, 1, (200, 5))
    x[:, 2] += 3 * label
    x[:, 4] = 7.0  # never varies
    found = logistic(x, label, 0.01)
    assert int(np.abs(found.weight).argmax()) == 2
    assert found.weight[4] == 0
    assert ((found(x) > 0) == label).mean() > 0.9


def test_is_where_the_gradient_vanishes() -> None:
    """Against the definition: at the solution, no weight can be moved for the better."""
    rng = np.random.default_rng(1)
    x, label = rng.normal(0, 1, (60, 3)), (rng.random(60) < 0.3).astype(float)
    found = logistic(x, label, 0.1)
    share = 0.5 * np.where(label > 0.5, 1 / label.sum(), 1 / (1 - label).sum())
    mean = (share[:, None] * x).sum(0)
    scale = np.sqrt((share[:, None] * np.square(x - mean)).sum(0))

    def loss(weight: np.ndarray, bias: float) -> float:
        odds = (x - mean) / scale @ weight + bias
        return float((share * np.logaddexp(0, np.where(label > 0.5, -odds, odds))).sum() + 0.05 * weight @ weight)

    own, bias = found.weight * scale, found.bias + float(found.weight @ mean)
    least = loss(own, bias)
    for axis in range(3):
        for step in (-0.01, 0.01):
            moved = own.copy()
            moved[axis] += step
            assert loss(moved, bias) > least


def test_rare_rows_weigh_as_much_as_the_rest() -> None:
    x = np.concatenate([np.full((95, 1), -1.0), np.full((5, 1), 1.0)])
    found = logistic(x, (x[:, 0] > 0).astype(float), 0.1)
    assert found.bias == pytest.approx(0.0, abs=1e-3)


def test_one_class_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="both classes"):
        logistic(np.zeros((4, 2)), np.zeros(4), 1.0)
