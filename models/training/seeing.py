"""Training of the vision encoder that ships: where something is wrong, whether, and whether it burns.

From staged pictures (filmed or made-up backgrounds with and without fire, or something odd) and frames of the
simulated site. Two things were tried together beside the labels and left out, for they cost fire in photographs (AUC
0.84 instead of 0.88 on the fire images): cut-outs of sample films as `training.oneclass` makes them,
and the features of an ImageNet trunk to be told from those of the encoder (FitNets, Romero et al., ICLR 2015).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edge_agent.core.records import F32, U8
from models.config import Preset
from models.data.staging import Picture, Stage, Wrong
from models.network.graphs import VisionGraph
from models.training.oneclass import cell_loss
from models.training.train import fit

Rng = np.random.Generator
#: How often a staged picture holds nothing, a fire, something odd.
MIX: tuple[tuple[Wrong, float], ...] = (("nothing", 0.42), ("fire", 0.38), ("odd", 0.20))
#: Share of a batch from the simulated site; pictures that are kept; how often one is replaced by a new one.
_SIMULATED, _POOL, _FRESH = 0.2, 600, 0.25


def train_vision(graph: VisionGraph, preset: Preset, stage: Stage, simulated: list[Picture], seed: int) -> None:
    """Train `graph` on the pictures of `stage` and of the simulated site; it ends in evaluation mode."""
    teach(graph, preset, batches(stage, simulated, preset.vision.batch, seed))


def teach(graph: VisionGraph, preset: Preset, drawn: Iterator[tuple[Tensor, ...]]) -> None:
    """Train `graph` on what `batch` gives; it ends in evaluation mode."""
    encoder = graph.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(frames: Tensor, cells: Tensor, wrong: Tensor, fire: Tensor) -> Tensor:
        x = graph.front(frames).contiguous(memory_format=torch.channels_last)
        _, heat, logit, flame = encoder(x)
        # A window whose anomaly is too small for one whole cell says nothing about the window.
        # One whose place nobody marked (−1 everywhere) speaks for the window alone.
        most = cells.flatten(1).amax(1)
        clear = (wrong < 0.5) | (most > 0.5) | (most < 0)
        whether = (F.binary_cross_entropy_with_logits(logit, wrong * 0.96 + 0.02, reduction="none") * clear).mean()
        what = (F.binary_cross_entropy_with_logits(flame, fire * 0.96 + 0.02, reduction="none") * clear).mean()
        return 2.0 * cell_loss(heat, cells) + 0.5 * whether + 0.3 * what

    fit("vision", graph, preset.vision, drawn, loss, run=preset.run)


def batches(stage: Stage, simulated: list[Picture], count: int, seed: int) -> Iterator[tuple[Tensor, ...]]:
    """Endless, as `batch` gives them. A staged picture costs as much as its training step, so each is used about four
    times."""
    rng = np.random.default_rng([seed, 11])
    pool: list[Picture] = []
    while True:
        pictures = []
        for _ in range(count):
            if simulated and rng.random() < _SIMULATED:
                pictures.append(simulated[int(rng.integers(len(simulated)))])
            else:
                pictures.append(_staged(rng, stage, pool))
        yield batch(rng, pictures)


def batch(rng: Rng, pictures: Sequence[Picture]) -> tuple[Tensor, ...]:
    """Frames, cells, wrong, fire: the pictures turned and relit."""
    turned = [_turned(rng, picture) for picture in pictures]
    return (
        torch.from_numpy(np.stack([frames for frames, _ in turned])),
        torch.from_numpy(np.stack([cells for _, cells in turned])),
        torch.tensor([float(p.wrong != "nothing") for p in pictures]),
        torch.tensor([float(p.wrong == "fire") for p in pictures]),
    )


def _staged(rng: Rng, stage: Stage, pool: list[Picture]) -> Picture:
    """A picture that was used before or a new one, which takes a place in the pool."""
    if len(pool) >= _POOL and rng.random() >= _FRESH:
        return pool[int(rng.integers(_POOL))]
    names, weights = zip(*MIX, strict=True)
    made = stage.picture(stage.script(rng, names[int(rng.choice(len(names), p=weights))]))
    if len(pool) < _POOL:
        pool.append(made)
    else:
        pool[int(rng.integers(_POOL))] = made
    return made


def _turned(rng: Rng, picture: Picture) -> tuple[U8, F32]:
    """Mirrored in half of the cases, in another light in most."""
    frames, cells = picture.frames, picture.cells
    if rng.random() < 0.5:
        frames, cells = frames[:, :, ::-1], cells[:, ::-1]
    light = np.arange(256) * rng.uniform(0.8, 1.2) + rng.uniform(-15, 15)
    table = np.clip(light, 0, 255).astype(np.uint8)
    return table[frames], np.ascontiguousarray(cells)
