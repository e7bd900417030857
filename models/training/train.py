"""Training of the four graphs: three encoders by themselves, then the fusion head on cached embeddings.

Everything is drawn from one seed and computed by one thread with deterministic kernels: the same command on the
same machine gives the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

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


def exact(run: Run) -> Run:
    """The same in full precision: for what is too small to gain by less of it, or learns to round."""
    return replace(run, precision="fp32")


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


#: Draws below the first are of recorded offices; above the second something goes wrong.
_OFFICES, _CALM = 0.15, 0.55
#: Share of each batch from simulated sites; of windows whose sensors read badly; of calm ones in which a gateway
#: begins to deliver another room.
_SIMULATED, _MISREAD, _SWAPPED = 0.12, 0.12, 0.08


def train_sensors(
    graph: SensorGraph, preset: Preset, tables: list[Log], simulated: list[tuple[F32, float]], seed: int
) -> None:
    """Generated traces, recorded minutes (presence is weak evidence) and windows of the simulated site."""
    pool = sensor_pool(preset, tables, seed)

    def loss(readings: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(graph(readings)[1], target)

    def batches() -> Iterator[tuple[Tensor, ...]]:
        rng = np.random.default_rng([seed, 13])
        while True:
            sites = int(rng.binomial(preset.sensors.batch, _SIMULATED)) if simulated else 0
            chosen = [simulated[int(i)] for i in rng.integers(0, len(simulated), sites)]
            chosen += [pool[int(i)] for i in rng.integers(0, len(pool), preset.sensors.batch - sites)]
            readings = np.stack([_spoilt(window, rng) for window, _ in chosen])
            yield torch.from_numpy(readings), torch.tensor([target for _, target in chosen])

    fit("sensors", graph, preset.sensors, batches(), loss, run=exact(preset.run))


def _spoilt(window: F32, rng: np.random.Generator) -> F32:
    spoilt = augment.dropped(augment.drifted(window, rng), rng)
    return augment.misread(spoilt, rng) if rng.random() < _MISREAD else spoilt


def sensor_pool(preset: Preset, tables: list[Log], seed: int) -> list[tuple[F32, float]]:
    """(window, target): half as many as are drawn, for each is seen in two disturbed forms or so."""
    rng = np.random.default_rng([seed, 14])
    # Both answers must be known: a log that is normal throughout says nothing of presence.
    offices = [table for table in tables if {0, 1} <= set(table.wrong.tolist())]
    found: list[tuple[F32, float]] = []
    for _ in range(preset.sensors.steps * preset.sensors.batch // 2):
        draw = rng.random()
        if offices and draw < _OFFICES:
            found.append(_office(rng, offices, preset))
            continue
        window, target = _made(rng, str(rng.choice(WRONG)) if draw > _CALM else None, tables, preset)
        if window[2].any():
            found.append((window, target))
    return found


def _office(rng: np.random.Generator, offices: list[Log], preset: Preset) -> tuple[F32, float]:
    office = offices[int(rng.integers(len(offices)))]
    here = np.flatnonzero(office.wrong == int(rng.random() < 0.5))
    row = int(here[int(rng.integers(len(here)))])
    target = PRESENCE if office.wrong[row] else QUIET
    return minute(rng, office, row, preset.sensor_spec, preset.step_ms / 1000), target


def _made(rng: np.random.Generator, wrong: str | None, tables: list[Log], preset: Preset) -> tuple[F32, float]:
    """A generated window. In half of the cases all sites report alike and the moment is known, so that nothing but
    what happens tells wrong from normal; a slam, or sensors that fall silent, then stand against it."""
    steps, step_s = preset.sensor_spec.steps, preset.step_ms / 1000
    spell, hard = None, ""
    if rng.random() < 0.5:
        spell = (float(rng.uniform(1.0, 1.9) * steps * step_s), float(rng.uniform(2.0, 12.0)))
        hard = "" if wrong else str(rng.choice(("", "", "door_slam", "dropped_sensor")))
    made = trace(rng, 2 * steps, step_s, wrong, tables, spell, hard)
    ends = np.flatnonzero(made.active) if wrong else np.arange(steps, 2 * steps)
    if spell is not None and hard:
        at = int(spell[0] / step_s)
        ends = np.arange(at, min(at + steps // 4, 2 * steps))
    end = int(ends[int(rng.integers(len(ends)))]) if len(ends) else 2 * steps - 1
    window = np.ascontiguousarray(made.readings[:, :, end - steps + 1 : end + 1])
    if wrong is None and rng.random() < _SWAPPED:
        window = augment.swapped(window, trace(rng, steps, step_s, None, tables).readings, rng)
    return window, 0.98 if wrong and len(ends) else QUIET


def train_fusion(
    head: FusionHead, preset: Preset, composer: Composer, seed: int, teacher: FusionHead | None = None
) -> None:
    """The head on windows drawn from cached embeddings, by the objectives of the preset."""

    def batches() -> Iterator[tuple[Tensor, ...]]:
        rng = np.random.default_rng([seed, 15])
        while True:
            yield fusion_batch(composer.draw(rng, preset.fusion.batch))

    learner = Learner(head, preset.head.terms, preset.head.width, teacher)
    fit("fusion", learner, preset.fusion, batches(), learner.loss, run=exact(preset.run))


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
