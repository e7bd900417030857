"""Chance that can be asked about any moment: every draw is a hash of the seed and what it is for.

Nothing here has a state that moves on, so a value does not depend on what was asked before.
"""

from __future__ import annotations

import math
import zlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import numpy as np

_MASK = (1 << 64) - 1
T = TypeVar("T")


def mix(*keys: int | str) -> int:
    """64 bits that name this combination of keys (splitmix64 over the keys in order)."""
    state = 0x9E3779B97F4A7C15
    for key in keys:
        number = zlib.crc32(key.encode()) if isinstance(key, str) else key
        state = (state ^ (number & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state


def unit(*keys: int | str) -> float:
    """A number in [0, 1)."""
    return (mix(*keys) >> 11) / (1 << 53)


def between(low: float, high: float, *keys: int | str) -> float:
    """A number in [low, high)."""
    return low + (high - low) * unit(*keys)


def generator(*keys: int | str) -> np.random.Generator:
    """A generator of its own for one thing that needs many draws at once."""
    return np.random.Generator(np.random.Philox(key=mix(*keys)))


def drift(t_s: float, period_s: float, *keys: int | str) -> float:
    """A smooth wander in [-1, 1] that takes a new direction about every `period_s`."""
    place = t_s / period_s
    cell = math.floor(place)
    part = place - cell
    ease = part * part * (3.0 - 2.0 * part)
    here, there = unit(*keys, cell), unit(*keys, cell + 1)
    return 2.0 * (here + (there - here) * ease) - 1.0


class Cache(Generic[T]):
    """The last `limit` things made, by key. What fell out is made again, byte for byte."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: OrderedDict[Hashable, T] = OrderedDict()

    def __len__(self) -> int:
        return len(self._items)

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        if key in self._items:
            self._items.move_to_end(key)
            return self._items[key]
        value = self._items[key] = make()
        if len(self._items) > self._limit:
            self._items.popitem(last=False)
        return value
