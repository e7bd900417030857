"""One-class novelty in any sensor log, with the sensor graph: the first rows of a run adapt, the rest is judged.

What is what, so that nobody gives the network the statistics' due:

* The *channels* have no names: each is measured in the spread of the run's own first rows and put into a place of the
  graph's input, so any log of at most twelve channels fits, and gain and offset of a sensor fall out.
* The *graph* (the product's SensorGraph: front end and dilated TCN) is trained on normal rows of the train part with
  made-up faults: shifts, ramps, noise, frozen and beating channels, against slow drift as a harmless change. It gives
  an embedding of the last rows. Its logit is not used: faults that are made up rank, but do not set a threshold.
* The *adaptation* is Hotelling's T² on the mean of the last embeddings and, with equal say, on the mean of the last
  rows themselves: mean and covariance from the run's first rows, plus the covariance of how normal rows of other runs
  wander off after their first ones (`drift`), which a few minutes cannot show. It does most of the work: T² on the
  channels, with and without drift, on the graph alone and on an untrained graph stand beside it as baselines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from edge_agent.config import QUANTITIES
from edge_agent.core.records import F32, Engine
from edge_agent.errors import ConfigError
from models.config import Preset, Schedule
from models.data.media import Log
from models.network.frontend import SENSOR_SCALE
from models.network.graphs import SensorGraph
from models.runtime import through
from models.training.train import fit

Rng = np.random.Generator
F64 = NDArray[np.float64]
PLACES = len(QUANTITIES)
#: Units of the front end per spread of a channel; it clips at 4, which is 8 spreads.
_LEVEL = 0.5
#: Rows over which features are averaged; share of the drift's covariance; ridge, as a share of the mean variance.
SMOOTHED, DRIFT, _RIDGE = 20, 0.5, 0.01
#: A row this many spreads out is as far as one can be.
_FARTHEST = 30.0
_SCHEDULE = Schedule(steps=400, batch=64, rate=3e-3)
_POOL = 8000


@dataclass(frozen=True)
class Run:
    """A log in the spread of its own first rows."""

    item: str
    names: tuple[str, ...]
    rows: F64  #: (n, channels); NaN: not measured
    wrong: NDArray[np.int8]  #: (n,): 1, 0, or −1 where nothing is said
    adapt: int  #: rows that adapt

    @property
    def tested(self) -> NDArray[np.intp]:
        """Rows after the first ones of which something is said."""
        return np.flatnonzero((np.arange(len(self.rows)) >= self.adapt) & (self.wrong >= 0))


def run_of(item: str, log: Log, adapt: int) -> Run:
    """Centre and spread of each channel by the median of the first `adapt` rows; a channel that stood still there is
    measured in hundredths of its level. Of more than twelve channels, the twelve that moved most, by their level; one
    that says nothing in the first rows is left out. ConfigError if all are."""
    there = np.flatnonzero(np.isfinite(log.values[:adapt]).any(0))
    if not len(there):
        raise ConfigError(f"{item}: no column holds a number in the first {adapt} rows, which adapt")
    log = Log(log.time_s, tuple(log.names[int(i)] for i in there), log.values[:, there], log.wrong)
    first = log.values[:adapt]
    centre = np.nanmedian(first, axis=0)
    near = 1.4826 * np.nanmedian(np.abs(first - centre), axis=0)
    spread = np.maximum(near, 0.3 * np.nanstd(first, axis=0))
    spread = np.where(spread > 1e-9 * (1 + np.abs(centre)), spread, 0.01 * np.abs(centre) + 1e-6)
    moved = np.argsort(-spread / (np.abs(centre) + spread), kind="stable")[:PLACES]
    kept = np.sort(moved)
    rows = np.clip((log.values[:, kept] - centre[kept]) / spread[kept], -_FARTHEST, _FARTHEST)
    return Run(item, tuple(log.names[int(i)] for i in kept), rows, log.wrong, adapt)


def windows(rows: F64, ends: NDArray[np.intp], steps: int, places: NDArray[np.intp] | None = None) -> F32:
    """float32 (len(ends), 3, 12, steps): the last `steps` rows up to each end, a channel in each place; rows before
    the first are missing. The values are such that the graph's front end sees the spreads themselves."""
    count = rows.shape[1]
    places = np.arange(count) if places is None else places
    index = ends[:, None] - np.arange(steps - 1, -1, -1)
    cut = rows[np.maximum(index, 0)].transpose(0, 2, 1)
    valid = np.isfinite(cut) & (index >= 0)[:, None]
    out = np.zeros((len(ends), 3, PLACES, steps), np.float32)
    level = np.clip(np.where(valid, cut, 0.0) * _LEVEL, -4.0, 4.0)
    for channel, place in enumerate(places):
        offset, scale, logarithmic = SENSOR_SCALE[int(place)]
        value = offset + scale * level[:, channel]
        out[:, 0, place] = np.where(valid[:, channel], np.expm1(value) if logarithmic else value, 0.0)
        out[:, 2, place] = valid[:, channel]
    return out


def embedded(engine: Engine, run: Run, steps: int) -> F64:
    """The graph's embedding at every row: (n, D)."""
    found = []
    for start in range(0, len(run.rows), 1024):
        ends = np.arange(start, min(start + 1024, len(run.rows)))
        found.append(through(engine, "sensors", windows(run.rows, ends, steps), 128)["embedding"])
    return np.concatenate(found).astype(np.float64)


def held(run: Run) -> F64:
    """The rows themselves as features: the last known value where one is missing."""
    rows = run.rows.copy()
    for channel in rows.T:
        known = np.isfinite(channel)
        last = np.maximum.accumulate(np.where(known, np.arange(len(channel)), 0))
        channel[:] = np.nan_to_num(channel[last])
    return rows


def smoothed(features: F64, count: int) -> F64:
    """Mean of the last `count` rows of each column; of fewer at the beginning."""
    total = np.cumsum(np.vstack([np.zeros(features.shape[1]), features]), 0)
    end = np.arange(1, len(features) + 1)
    begin = np.maximum(end - count, 0)
    return np.asarray((total[end] - total[begin]) / (end - begin)[:, None])


def offsets(run: Run, features: F64, count: int, settled: int) -> F64:
    """Smoothed features less their mean over the run's first rows, of which the first `settled` are not yet whole."""
    mean = smoothed(features, count)
    return np.asarray(mean - mean[min(settled, run.adapt // 2) : run.adapt].mean(0))


@dataclass(frozen=True)
class Drift:
    """Covariance of where normal rows lie after a run's first ones."""

    names: tuple[str, ...]  #: of its columns; empty where every run has the same ones
    covariance: F64

    def of(self, names: Sequence[str]) -> F64:
        """For columns of these names (n, n); one that nobody knows drifts as the middle one of the known."""
        if not self.names:
            return self.covariance
        own = np.diag(self.covariance)
        out = np.diag(np.full(len(names), float(np.median(own)) if len(own) else 0.0))
        here = [i for i, name in enumerate(names) if name in self.names]
        there = [self.names.index(names[i]) for i in here]
        out[np.ix_(here, here)] = self.covariance[np.ix_(there, there)]
        return out


def drift(found: Sequence[tuple[tuple[str, ...], Run, F64]]) -> Drift:
    """The drift of some runs, given with the names and the offsets of their features; every run counts alike.

    Normal are the rows before a run's first fault: behind it, a machine that was stopped and mended is another one.
    Two columns that never stood in one run are taken to drift each for itself.
    """
    names = tuple(sorted({name for known, _, _ in found for name in known}))
    size = len(names) if names else found[0][2].shape[1] if found else 0
    total, count = np.zeros((size, size)), np.zeros((size, size))
    for known, run, offset in found:
        normal = (np.arange(len(offset)) >= run.adapt) & ~np.logical_or.accumulate(run.wrong > 0)
        if normal.any():
            place = [names.index(name) for name in known] if names else list(range(size))
            total[np.ix_(place, place)] += offset[normal].T @ offset[normal] / int(normal.sum())
            count[np.ix_(place, place)] += 1
    return Drift(names, total / np.maximum(count, 1))


def surprise(run: Run, offset: F64, wander: F64 | None, settled: int) -> F64:
    """log T² of every row (n,), in units of what the run's own first rows and the drift of others explain."""
    first = offset[min(settled, run.adapt // 2) : run.adapt]
    own = np.atleast_2d(np.cov(first.T))
    size = len(own)
    covariance = own + (_RIDGE * np.trace(own) / size + 1e-9) * np.eye(size)
    if wander is not None:
        covariance = covariance + DRIFT * wander
    return np.asarray(np.log(np.einsum("ij,ij->i", offset @ np.linalg.inv(covariance), offset) / size + 1e-9))


def train(
    preset: Preset, runs: Sequence[Run], seed: int, schedule: Schedule = _SCHEDULE, pool: int = _POOL
) -> SensorGraph:
    """A sensor graph that has seen normal rows of `runs`, and made-up faults in them."""
    torch.manual_seed(seed)
    graph = SensorGraph(preset)
    rng = np.random.default_rng([seed, 52])
    stretches = [part for run in runs for part in normal_stretches(run, preset.sensor_spec.steps)]
    made = [_sample(rng, stretches, preset.sensor_spec.steps) for _ in range(pool)]
    readings = np.stack([window for window, _ in made])
    target = np.array([wrong for _, wrong in made], np.float32)

    def batches() -> Iterator[tuple[Tensor, ...]]:
        while True:
            chosen = rng.integers(0, pool, schedule.batch)
            yield torch.from_numpy(readings[chosen]), torch.from_numpy(target[chosen])

    def loss(batch: Tensor, wrong: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(graph(batch)[1], wrong * 0.96 + 0.02)

    fit("novelty", graph, schedule, batches(), loss)
    return graph


def normal_stretches(run: Run, steps: int) -> list[F64]:
    """Parts of a run without a row that is labelled wrong, each at least one window long."""
    wrong = np.flatnonzero(np.concatenate([[True], run.wrong > 0, [True]]))
    return [run.rows[a : b - 1] for a, b in pairwise(wrong) if b - 1 - a >= steps]


def _sample(rng: Rng, stretches: Sequence[F64], steps: int) -> tuple[F32, float]:
    rows = stretches[int(rng.integers(len(stretches)))]
    begin = int(rng.integers(0, len(rows) - steps + 1))
    rows = rows[begin : begin + steps].copy() * np.exp(rng.normal(0, 0.1, rows.shape[1]))
    channels = rows.shape[1]
    if rng.random() < 0.5:  # slow drift is nobody's fault
        for channel in rng.choice(channels, int(rng.integers(1, min(channels, 2) + 1)), False):
            rows[:, channel] += rng.normal(0, 1.0) + np.linspace(0, 1, steps) * rng.normal(0, 0.3)
    wrong = float(rng.random() < 0.55)
    if wrong:
        _fault(rng, rows)
    elif rng.random() < 0.5:
        rows[:, rng.random(channels) < 0.2] = np.nan
    places = rng.permutation(PLACES)[:channels]
    sign = rng.choice([-1.0, 1.0], channels)
    return windows(rows * sign, np.array([steps - 1]), steps, places)[0], wrong


def _fault(rng: Rng, rows: F64) -> None:
    """Something is wrong in one to three channels, from before the window or from within it."""
    steps, channels = rows.shape
    kind = str(rng.choice(["shift", "shift", "ramp", "noise", "frozen", "beats"]))
    onset = 0 if rng.random() < 0.6 else int(rng.integers(0, steps - 12))
    after = np.arange(steps - onset)
    for channel in rng.choice(channels, min(int(rng.choice([1, 1, 2, 3])), channels), False):
        size = float(rng.choice([-1, 1]) * np.exp(rng.uniform(np.log(1.2), np.log(10))))
        part = rows[onset:, channel]
        if kind == "shift":
            part += size
        elif kind == "ramp":
            part += size * np.minimum(after / rng.uniform(8, 40), 1)
        elif kind == "noise":
            part += (part - np.nanmean(part)) * rng.uniform(1, 4) if np.isfinite(part).any() else 0.0
        elif kind == "frozen":
            part[:] = part[0]
        else:
            part += 0.6 * size * (rng.random(len(part)) < 0.3)


def best_threshold(
    score: Sequence[F64], wrong: Sequence[NDArray[np.int8]], figure: Callable[[F64, F64], float]
) -> float:
    """The threshold with the highest figure(label, said) over all rows, among a hundred quantiles of the scores."""
    every, label = np.concatenate(score), np.concatenate(wrong).astype(np.float64)
    tried = np.quantile(every, np.linspace(0.01, 0.995, 100))
    return float(tried[int(np.argmax([figure(label, (every > level).astype(np.float64)) for level in tried]))])
