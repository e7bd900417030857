"""Vision from normal footage alone: the product's graph, trained to find pseudo-anomalies made of a site's own film.

Needs no label and no anomaly, so it serves a benchmark and a site alike. The heat map is what is trained; the score
of a moment is its hottest neighbourhood, followed over time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from edge_agent.contract.manifest import VisionSpec
from edge_agent.core import prepare
from edge_agent.core.records import F32, U8
from models.config import Schedule
from models.data.cutouts import KINDS, UNKNOWN, Cutouts, Kind, Sample
from models.data.lens import Lens, seen
from models.data.staging import STRIDE
from models.network.graphs import VisionGraph
from models.training.train import fit

Rng = np.random.Generator
T = TypeVar("T")
SCHEDULE = Schedule(steps=1400, batch=16, rate=3e-3, decay=1e-3)
#: Size of the windows that are trained on: half of the picture costs half and shows as much that is new.
WINDOW = (112, 160)
#: How much of a cell makes it odd; below the second it is normal, between them nothing is said.
_ODD, _CLEAR = 0.2, 0.03
_UNKNOWN = 0.1
_FROZEN = 0.04  #: share of samples without motion, as the first frame of a film or a stalled camera gives
_ZOOM, _ZOOMED = 1.15, 0.5  #: largest enlargement, and how often there is any
#: What of the last smoothed score stays with each frame.
KEEP = 0.8


def train(
    graph: VisionGraph,
    cutouts: Cutouts,
    schedule: Schedule = SCHEDULE,
    seed: int = 0,
    *,
    kinds: Sequence[Kind] = KINDS,
    size: tuple[int, int] = WINDOW,
) -> None:
    """Train the heat map of `graph` on samples of `cutouts`; it ends in evaluation mode."""
    encoder = graph.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(frames: Tensor, cells: Tensor) -> Tensor:
        x = graph.front(frames).contiguous(memory_format=torch.channels_last)
        return cell_loss(encoder(x)[1], cells)

    with closing(ahead(batches(cutouts, schedule.batch, seed, kinds, size))) as drawn:
        fit("one-class vision", graph, schedule, drawn, loss)


def ahead(made: Iterator[T], most: int = 4) -> Generator[T]:
    """The items of an endless iterator, up to `most` made in a thread while earlier ones are used; to be closed."""
    with ThreadPoolExecutor(1, "batches") as pool:
        waiting = deque(pool.submit(next, made) for _ in range(most))
        while True:
            item = waiting.popleft().result()
            waiting.append(pool.submit(next, made))
            yield item


def batches(
    cutouts: Cutouts, batch: int, seed: int, kinds: Sequence[Kind] = KINDS, size: tuple[int, int] = WINDOW
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (frames uint8 (batch, 5, *size), cells float (batch, *size / 8) in {0, 1, −1 unknown})."""
    rng = np.random.default_rng([seed, 51])
    while True:
        drawn = [window(rng, cutouts.sample(rng, kinds), size) for _ in range(batch)]
        yield torch.from_numpy(np.stack([a for a, _ in drawn])), torch.from_numpy(np.stack([b for _, b in drawn]))


def window(rng: Rng, sample: Sample, size: tuple[int, int]) -> tuple[U8, F32]:
    """Part of a sample as the graph's input, in `size` (height, width), and the cells it should answer with.

    At times enlarged, as of a camera that was hung anew; in another light, through another lens and codec.
    """
    zoom = rng.uniform(1.0, _ZOOM) if rng.random() < _ZOOMED else 1.0
    part = []
    for whole, wanted in zip(sample.odd.shape, size, strict=True):
        length = round(wanted / zoom)
        start = int(rng.integers(0, whole - length + 1))
        part.append(slice(start, start + length))
    flip = slice(None, None, -1 if rng.random() < 0.5 else 1)
    views, odd = sample.views[:, part[0], part[1]][:, :, flip], sample.odd[part[0], part[1]][:, flip]
    if rng.random() < _FROZEN:
        views, odd = np.repeat(views[:1], 3, 0), np.where(odd > 0, UNKNOWN, odd).astype(np.float32)
    through = _lens(rng)
    shown = [seen(np.ascontiguousarray(view), through, rng) for view in views]
    spec = VisionSpec(width=size[1], height=size[0])
    return prepare.vision(shown, spec), cells_of(
        odd[np.ix_(*(_nearest(*pair) for pair in zip(size, odd.shape, strict=True)))]
    )


def _lens(rng: Rng) -> Lens:
    """What may differ between two recordings of one camera: light, focus, noise, compression."""

    def often(share: float) -> bool:
        return bool(rng.random() < share)

    light = float(rng.uniform(0.75, 1.3))
    return Lens(
        gain=(light, light, light),
        offset=float(rng.uniform(-12, 12)),
        gamma=float(np.exp(rng.normal(0, 0.15))) if often(0.5) else 1.0,
        blur=float(rng.uniform(0.3, 0.9)) if often(0.2) else 0.0,
        noise=float(rng.uniform(0, 4)) if often(0.25) else 0.0,
        quality=int(rng.integers(35, 90)) if often(0.3) else 100,
    )


def _nearest(wanted: int, given: int) -> NDArray[np.int64]:
    """Index of the nearest of `given` pixels for each of `wanted`."""
    return ((np.arange(wanted) + 0.5) * given / wanted).astype(np.int64)


def cells_of(odd: F32) -> F32:
    """A mask (H, W) in {0, 1, −1 unknown} as cells of the heat map: 1, 0, or −1 where it is not clear."""
    height, width = odd.shape
    blocks = odd.reshape(height // STRIDE, STRIDE, width // STRIDE, STRIDE)
    wrong, unknown = (blocks > 0.5).mean((1, 3)), (blocks < 0).mean((1, 3))
    clear = (wrong <= _CLEAR) & (unknown <= _UNKNOWN)
    return np.where(wrong >= _ODD, 1.0, np.where(clear, 0.0, UNKNOWN)).astype(np.float32)


def cell_loss(heat: Tensor, cells: Tensor) -> Tensor:
    """Cross-entropy of heat logits (N, h, w) over the cells that are known; odd ones, which are few, count twice."""
    known = (cells >= 0).float()
    each = F.binary_cross_entropy_with_logits(
        heat, cells.clamp(min=0), reduction="none", pos_weight=torch.tensor(2.0)
    )
    return (each * known).sum() / known.sum().clamp(min=1.0)


def hottest(heat: F32) -> F32:
    """(n,) highest mean of a 3x3 neighbourhood of heat logits (n, h, w)."""
    return np.asarray(neighbourhoods(heat).reshape(len(heat), -1).max(1), np.float32)


def neighbourhoods(heat: F32) -> F32:
    """Mean of each cell's 3x3 neighbourhood, (n, h, w) both; cells beyond the border do not count."""
    ones = np.ones((1, *heat.shape[1:]), np.float32)
    total, count = (_sum3(np.pad(plane, ((0, 0), (1, 1), (1, 1)))) for plane in (heat, ones))
    return np.asarray(total / count, np.float32)


def _sum3(plane: F32) -> F32:
    rows = plane[:, :-2] + plane[:, 1:-1] + plane[:, 2:]
    return np.asarray(rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:], np.float32)


def followed(scores: F32, keep: float = KEEP) -> F32:
    """Scores (n,) of consecutive frames, each blended with what came before it; causal."""
    out = np.array(scores, np.float32)
    for index in range(1, len(out)):
        out[index] = keep * out[index - 1] + (1 - keep) * out[index]
    return out
