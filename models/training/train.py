"""Training of the four graphs: three encoders by themselves, then the fusion head on cached embeddings.

Everything is drawn from one seed and computed by one thread with deterministic kernels: the same command on the
same machine gives the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edge_agent.contract.event import MODALITIES
from edge_agent.core.records import F32
from models.config import ALONE, Preset, Run, Schedule
from models.data import augment
from models.data.compose import Composer, Windows
from models.data.media import Log
from models.data.traces import PRESENCE, QUIET, WRONG, minute, trace
from models.network.fusion import FusionHead
from models.network.graphs import SensorGraph
from models.training.terms import Batch, Learner, supervised


def deterministic(seed: int) -> None:
    """One thread, fixed seeds, deterministic kernels."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)


def fit(
    title: str,
    module: nn.Module,
    schedule: Schedule,
    batches: Iterator[tuple[Tensor, ...]],
    loss: Callable[..., Tensor],
    *,
    run: Run = ALONE,
    judge: Callable[[], float] | None = None,
) -> None:
    """AdamW on a one-cycle schedule; the module ends with the moving average of its weights, in evaluation mode.

    `batches` is endless and drawn from a seed, `loss` takes the parts of one batch. `run` says where checkpoints and
    logs go, how precise and in how many processes (each then takes its share of the rows of every batch). `judge`
    gives a figure of the averaged weights, higher is better, every `run.look_steps`: the best of them are kept.
    """
    # Lightning takes seconds to import: retraining a head from verdicts, and `--help`, do without it.
    from models.training import trainer

    trainer.train(title, module, schedule, batches, loss, run=run, judge=judge)


def train_sensors(
    graph: SensorGraph, preset: Preset, tables: list[Log], simulated: list[tuple[F32, float]], seed: int
) -> None:
    """Generated traces, recorded minutes (presence is weak evidence) and windows of the simulated site."""
    pool = [*sensor_pool(preset, tables, seed), *simulated]

    def loss(readings: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(graph(readings)[1], target)

    def batches() -> Iterator[tuple[Tensor, ...]]:
        rng = np.random.default_rng([seed, 13])
        while True:
            chosen = [pool[int(i)] for i in rng.integers(0, len(pool), preset.sensors.batch)]
            readings = np.stack([augment.dropped(augment.drifted(window, rng), rng) for window, _ in chosen])
            yield torch.from_numpy(readings), torch.tensor([target for _, target in chosen])

    fit("sensors", graph, preset.sensors, batches(), loss, run=preset.run)


def sensor_pool(preset: Preset, tables: list[Log], seed: int) -> list[tuple[F32, float]]:
    """(window, target): as many as four batches' worth per ten steps, so that each is seen a few times."""
    rng = np.random.default_rng([seed, 14])
    steps, step_s = preset.sensor_spec.steps, preset.step_ms / 1000
    # Both answers must be known: a log that is normal throughout says nothing of presence.
    offices = [table for table in tables if {0, 1} <= set(table.wrong.tolist())]
    found: list[tuple[F32, float]] = []
    for _ in range(preset.sensors.steps * preset.sensors.batch // 8):
        draw = rng.random()
        if offices and draw < 0.25:
            office = offices[int(rng.integers(len(offices)))]
            here = np.flatnonzero(office.wrong == int(rng.random() < 0.5))
            row = int(here[int(rng.integers(len(here)))])
            target = PRESENCE if office.wrong[row] else QUIET
            found.append((minute(rng, office, row, preset.sensor_spec, step_s), target))
            continue
        wrong = str(rng.choice(WRONG)) if draw > 0.6 else None
        made = trace(rng, 2 * steps, step_s, wrong, tables)
        ends = np.flatnonzero(made.active) if wrong else np.arange(steps, 2 * steps)
        end = int(ends[int(rng.integers(len(ends)))]) if len(ends) else 2 * steps - 1
        window = np.ascontiguousarray(made.readings[:, :, end - steps + 1 : end + 1])
        if window[2].any():
            found.append((window, 0.98 if wrong and len(ends) else QUIET))
    return found


def train_fusion(
    head: FusionHead, preset: Preset, composer: Composer, seed: int, teacher: FusionHead | None = None
) -> None:
    """The head on windows drawn from cached embeddings, by the objectives of the preset."""

    def batches() -> Iterator[tuple[Tensor, ...]]:
        rng = np.random.default_rng([seed, 15])
        while True:
            yield fusion_batch(composer.draw(rng, preset.fusion.batch))

    learner = Learner(head, preset.head.terms, preset.head.width, teacher)
    fit("fusion", learner, preset.fusion, batches(), learner.loss, run=preset.run)


def fusion_batch(windows: Windows) -> Batch:
    """Windows as tensors."""
    arrays = [
        *(windows.history[name] for name in MODALITIES),
        windows.mask,
        windows.wrong,
        windows.own,
        windows.classes,
        # Of windows that came with a bundle, or from a verdict, nobody says whether they were composed.
        np.array([shown == "site" for shown in windows.shown] or np.zeros(len(windows.wrong)), np.float32),
    ]
    return Batch(*(torch.from_numpy(array) for array in arrays))


def fusion_loss(head: FusionHead, batch: tuple[Tensor, ...], weight: Tensor | None = None) -> Tensor:
    """The supervised objective of what `fusion_batch` gives."""
    parts = Batch(*batch)
    return supervised(head.fused(*parts.embeddings, parts.mask), parts, weight)
