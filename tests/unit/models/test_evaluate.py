"""Figures: known answers."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="pip install torch==2.13.0")

from models.evaluate import auc, average_precision, interval


def test_auc_of_known_orders():
    label = np.array([0, 0, 1, 1])
    assert auc(label, np.array([1, 2, 3, 4])) == 1.0
    assert auc(label, np.array([4, 3, 2, 1])) == 0.0
    assert auc(label, np.array([1, 1, 1, 1])) == 0.5
    assert auc(label, np.array([1, 3, 2, 4])) == 0.75


def test_average_precision_of_a_known_order():
    assert average_precision(np.array([1, 0, 1, 0]), np.array([4, 3, 2, 1])) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(np.zeros(3), np.arange(3)) == 0.0


def test_the_interval_holds_the_figure_and_grows_with_groups():
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], 60)
    score = label + rng.normal(0, 1, 120)
    low, high = interval(label, score, None, np.random.default_rng(1))
    assert low < auc(label, score) < high
    grouped = interval(label, score, [str(i // 20) for i in range(120)], np.random.default_rng(1))
    assert grouped != (low, high)
