"""Kernel ridge: learns what no plane separates, weighs rows, ignores what does not vary, and needs every class."""

from __future__ import annotations

import numpy as np
import pytest

from models.training.kernel import kernel_ridge


def _rings(count: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """Points in the plane, named by how far they are from the middle; a third feature never varies."""
    rng = np.random.default_rng(seed)
    angle, ring = rng.uniform(0, 2 * np.pi, count), np.arange(count) % 3
    radius = ring + rng.normal(0, 0.15, count)
    x = np.stack([radius * np.cos(angle), radius * np.sin(angle), np.full(count, 4.0)], 1)
    return x, [("in", "on", "out")[i] for i in ring]


def test_tells_apart_what_no_plane_does() -> None:
    x, label = _rings(240, 0)
    found = kernel_ridge(x, label, ("in", "on", "out"), penalty=0.1, width=3.0)
    asked, wanted = _rings(120, 1)
    said = [found.names[i] for i in found(asked).argmax(1)]
    assert np.mean([a == b for a, b in zip(said, wanted, strict=True)]) > 0.95


def test_solves_the_system_that_it_says() -> None:
    """Without a penalty every row is answered as it is named: 1 for its class, −1 for the others."""
    x, label = _rings(30, 2)
    found = kernel_ridge(x, label, ("in", "on", "out"), penalty=1e-9, width=3.0)
    target = np.where(np.array(label)[:, None] == np.array(found.names), 1.0, -1.0)
    assert np.allclose(found(x), target, atol=1e-3)


def test_a_row_of_twice_the_weight_is_a_row_that_is_there_twice() -> None:
    x, label = _rings(30, 3)
    x -= x.mean(0)  # the mean of the features does not count weights
    double = kernel_ridge(np.concatenate([x, x]), label * 2, ("in", "on", "out"), penalty=0.2, width=1.0)
    heavy = kernel_ridge(x, label, ("in", "on", "out"), penalty=0.2, width=1.0, weight=np.full(30, 2.0))
    assert np.allclose(double(x), heavy(x), atol=1e-4)


def test_a_class_without_a_row_is_named() -> None:
    x, label = _rings(30, 4)
    with pytest.raises(ValueError, match="gone"):
        kernel_ridge(x, label, ("in", "on", "out", "gone"), penalty=0.1, width=1.0)
