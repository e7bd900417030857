"""What a scene usually looks, sounds and feels like: a few embeddings that cover the rest; how far a new one lies.

A greedy coreset (k-centre, as in PatchCore, Roth et al. 2022) of at most `CAPACITY` embeddings of one modality; the
novelty of a window is its distance to the nearest of them (SPADE, Cohen and Hoshen 2020), standardised by the
distances within the memory, each to its nearest other one. Nothing is trained.

Who can stand in front of the camera could teach it. Therefore an embedding that is far from everything known waits
until its like was seen in `HOURS` different hours; at most `AN_HOUR` enter within any hour, so no hour can replace
more than 3 % of the memory; and only quiet windows are shown to it at all. The first `TRUSTED` are taken on trust.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.records import F32

CAPACITY = 256
#: Embeddings that the first coreset is chosen from, and its size.
TRUSTED, FIRST = 64, 32
AN_HOUR = 8
HOURS = 3
_WAITING = 64
#: An embedding that was nobody's nearest for so many hours may be forgotten: two weeks.
_STALE_HOURS = 14 * 24
#: Distances below this share of an embedding's length are rounding: int8 gives equal windows equal embeddings.
_SMALLEST = 1e-3


def coreset(vectors: F32, count: int) -> NDArray[np.intp]:
    """Indices of at most `count` of the vectors (n, D) such that the farthest of the others is near: greedy k-centre,
    within twice of the best. Starts from the one nearest to the mean; equal ones are taken once."""
    nearest = np.square(vectors - vectors.mean(0)).sum(1)
    chosen = [int(nearest.argmin())]
    nearest = np.square(vectors - vectors[chosen[0]]).sum(1)
    while len(chosen) < min(count, len(vectors)) and nearest.max() > 0:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.square(vectors - vectors[chosen[-1]]).sum(1))
    return np.array(chosen, np.intp)


class Memory:
    """Normal embeddings of one modality of a scene. Its hours are hours of the scene's own windows."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._known = np.zeros((0, size), np.float32)
        self._hit = np.zeros(0, np.int64)  # newest hour in which it was somebody's nearest
        self._waiting = np.zeros((0, size), np.float32)
        self._seen = np.zeros((0, 2), np.int64)  # of those that wait: newest hour, number of hours
        self._hour = np.zeros(2, np.int64)  # the present one, and how many entered in it
        self._spread = (0.0, 1.0)
        self._half_square = np.zeros(0, np.float32)

    def __len__(self) -> int:
        return len(self._known)

    @property
    def ready(self) -> bool:
        """Whether it can say what is novel."""
        return len(self._known) >= 2

    def fill(self, vectors: F32) -> None:
        """Take normal embeddings (n, D) on trust, a coreset of them at most: an adaptation on recorded footage."""
        vectors = np.asarray(vectors, np.float32)
        self._known = vectors[coreset(vectors, CAPACITY)]
        self._hit = np.full(len(self._known), self._hour[0])
        self._measure()

    def novelty(self, vector: F32) -> float:
        """Distance to the nearest known, in standard deviations above what is usual within the memory; 0 while it is
        not ready."""
        if not self.ready:
            return 0.0
        return (self._nearest(vector)[1] - self._spread[0]) / self._spread[1]

    def learn(self, vector: F32, hour: int) -> None:
        """Show a quiet window. `hour` never falls but to start anew."""
        vector = np.asarray(vector, np.float32)
        if hour != self._hour[0]:
            self._hour[:] = hour, 0
        if not self.ready:
            self._begin(vector, hour)
            return
        at, distance = self._nearest(vector)
        if distance <= self._spread[0]:
            self._hit[at] = hour
        else:
            self._wait(vector, hour, distance)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Everything as arrays."""
        return {
            "known": self._known.copy(),
            "hit": self._hit.copy(),
            "waiting": self._waiting.copy(),
            "seen": self._seen.copy(),
            "hour": self._hour.copy(),
        }

    @classmethod
    def from_arrays(cls, size: int, arrays: dict[str, NDArray[Any]]) -> Memory:
        """What `to_arrays` gave, checked: ValueError or KeyError unless it is that."""
        memory = cls(size)
        for name, most in (("known", CAPACITY), ("waiting", TRUSTED)):
            array = arrays[name]
            if array.ndim != 2 or array.shape[1] != size or len(array) > most or array.dtype != np.float32:
                raise ValueError(f"memory: {name} is {array.dtype} {array.shape}")
            if not (np.abs(array) < 1e6).all():
                raise ValueError(f"memory: {name} holds what no encoder gives")
        memory._known, memory._waiting = arrays["known"].copy(), arrays["waiting"].copy()
        shapes = {"hit": (len(memory._known),), "seen": (len(memory._waiting), 2), "hour": (2,)}
        for name, shape in shapes.items():
            array = arrays[name]
            if array.shape != shape or array.dtype != np.int64 or (array < 0).any():
                raise ValueError(f"memory: {name} is {array.dtype} {array.shape}")
            setattr(memory, f"_{name}", array.copy())
        memory._measure()
        return memory

    def _begin(self, vector: F32, hour: int) -> None:
        self._waiting = np.concatenate([self._waiting, vector[None]])
        self._seen = np.concatenate([self._seen, [[hour, 1]]])
        if len(self._waiting) >= TRUSTED:
            self._known = self._waiting[coreset(self._waiting, FIRST)]
            if len(self._known) < 2:  # a blind camera: every window is the same
                self._known = np.repeat(self._known, 2, 0)
            self._hit = np.full(len(self._known), hour)
            self._waiting, self._seen = self._waiting[:0], self._seen[:0]
            self._measure()

    def _wait(self, vector: F32, hour: int, distance: float) -> None:
        """Note an embedding that is far from what is known; let it in if it has been seen often enough."""
        if len(self._waiting):
            apart = np.sqrt(np.square(self._waiting - vector).sum(1))
            at = int(apart.argmin())
            if apart[at] <= self._spread[0]:
                if self._seen[at, 0] != hour:
                    self._seen[at] = hour, self._seen[at, 1] + 1
                if self._seen[at, 1] >= HOURS and self._hour[1] < AN_HOUR:
                    self._admit(self._waiting[at].copy(), hour, distance)
                    self._leave(at)
                return
        if len(self._waiting) >= _WAITING:
            self._leave(int(self._seen[:, 0].argmin()))
        self._waiting = np.concatenate([self._waiting, vector[None]])
        self._seen = np.concatenate([self._seen, [[hour, 1]]])

    def _leave(self, at: int) -> None:
        self._waiting = np.delete(self._waiting, at, 0)
        self._seen = np.delete(self._seen, at, 0)

    def _admit(self, vector: F32, hour: int, distance: float) -> None:
        """Append, or take the place of one that is forgotten or, if the newcomer is farther off, doubled."""
        if len(self._known) < CAPACITY:
            self._known = np.concatenate([self._known, vector[None]])
            self._hit = np.append(self._hit, hour)
        else:
            at = int(self._hit.argmin())
            if self._hit[at] > hour - _STALE_HOURS:
                apart = self._apart()
                at = int(apart.argmin())
                if apart[at] >= distance:
                    return
            self._known[at], self._hit[at] = vector, hour
        self._hour[1] += 1
        self._measure()

    def _nearest(self, vector: F32) -> tuple[int, float]:
        at = int((self._half_square - self._known @ vector).argmin())
        off = self._known[at] - vector
        return at, math.sqrt(float(off @ off))

    def _apart(self) -> NDArray[np.float64]:
        """Distance of each known embedding to its nearest other one, float64 (n,)."""
        known = self._known.astype(np.float64)
        square = np.square(known).sum(1)
        apart = square[:, None] + square[None] - 2 * known @ known.T
        np.fill_diagonal(apart, np.inf)
        return np.asarray(np.sqrt(np.maximum(apart.min(1), 0.0)))

    def _measure(self) -> None:
        """Mean and deviation of the distances within the memory, which novelty is held against."""
        self._half_square = np.square(self._known).sum(1) / 2
        if not self.ready:
            return
        apart = self._apart()
        least = _SMALLEST * (float(np.sqrt(2 * self._half_square.mean())) + 1e-6)
        middle = float(np.median(apart))
        deviation = 1.4826 * float(np.median(np.abs(apart - middle)))
        self._spread = max(middle, least), max(deviation, 0.1 * middle, least)
