"""One training run on Lightning: what `train.fit` does. Imported only by those who train, for it costs seconds.

The module learns from a plain iterator of batches, which is drawn from a seed: nothing is sampled or shuffled here.
That makes a run repeatable, and a broken one resumable: the batches already seen are drawn again and left out.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import math
import os
import pickle  # for the name of its error: nothing is unpickled but by torch's `weights_only`
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from edge_agent.errors import BundleError, ConfigError
from models.config import Run, Schedule
from models.progress import Progress

#: What each logger raises where its service refuses; the first part is the package that it needs beside Lightning.
_REFUSALS = {
    "tensorboard": "tensorboard.errors.PublicError",
    "mlflow": "mlflow.exceptions.MlflowException",
    "wandb": "wandb.errors.Error",
}
_OURS = "tectum"
#: Norm that the gradient is cut to.
_GRADIENT = 5.0


class _Stream:
    """One look's worth of an endless iterator; it has a length, so that Lightning fetches no batch ahead of use."""

    def __init__(self, batches: Iterator[tuple[Tensor, ...]], length: int) -> None:
        self._batches, self._length = batches, length
        self.rank, self.processes = 0, 1

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for _ in range(self._length):
            batch = next(self._batches)
            yield batch if self.processes == 1 else tuple(part[self.rank :: self.processes] for part in batch)

    def skip(self, count: int) -> None:
        """Leave out batches that an earlier part of this run has seen."""
        for _ in range(count):
            next(self._batches)


class _Training(LightningModule):
    """AdamW on a one-cycle schedule; ends with the moving average of the weights, or the best of those judged."""

    def __init__(
        self,
        title: str,
        module: nn.Module,
        schedule: Schedule,
        loss: Callable[..., Tensor],
        *,
        judge: Callable[[], float] | None,
        mark: str,
    ) -> None:
        super().__init__()
        self.module = module
        self._schedule, self._loss, self._judge, self._mark = schedule, loss, judge, mark
        self._average = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
        self._best: tuple[float, dict[str, Tensor]] | None = None
        self._smooth = math.nan
        self._title = title
        self._shown: Progress | None = None

    def configure_optimizers(self) -> Any:
        schedule = self._schedule
        # In one call for all weights: of a small net's step, a third went into many small operations. (Fused would be
        # faster still, but Lightning allows no clipping with it in mixed precision.)
        parameters = self.module.parameters()
        optimiser = torch.optim.AdamW(parameters, schedule.rate, weight_decay=schedule.decay, foreach=True)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, schedule.rate, schedule.steps + 1, pct_start=0.15)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # everything is on the CPU already: looking for tensors to move costs a tenth of a tiny step

    def on_train_start(self) -> None:
        stream = cast(_Stream, self.trainer.train_dataloader)
        stream.rank, stream.processes = self.global_rank, self.trainer.world_size
        stream.skip(self.trainer.global_step)
        self._shown = Progress(self._title, self._schedule.steps) if self.global_rank == 0 else None

    def training_step(self, batch: tuple[Tensor, ...], index: int) -> Tensor:
        return self._loss(*batch)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = self.trainer.global_step
        _blend(self._average, self.module, min(0.99, (1 + step) / (10 + step)))
        value = float(outputs["loss"])
        if not math.isfinite(value):
            raise BundleError(
                f"training of {self._title} diverged: the loss is {value} at step {step} of {self._schedule.steps}; "
                f"nothing was written. Lower the rate of its schedule ({self._schedule.rate}) or look for bad data"
            )
        self._smooth = value if math.isnan(self._smooth) else 0.97 * self._smooth + 0.03 * value
        if self._shown is not None:
            self._shown.at(step, f"loss {self._smooth:.3f}")

    def on_train_epoch_end(self) -> None:
        """A look: what loggers show and what an early stop goes by."""
        found = {"loss": self._smooth, "rate": self.trainer.optimizers[0].param_groups[0]["lr"]}
        if self._judge is not None:
            found["judged"] = judged = self._judged(self._judge)
            if self._best is None or judged > self._best[0]:
                self._best = (judged, {name: tensor.clone() for name, tensor in self._average.items()})
        self.trainer.callback_metrics.update({name: torch.tensor(value) for name, value in found.items()})
        if self.logger is not None:
            self.logger.log_metrics({f"{self._title}/{k}": v for k, v in found.items()}, self.trainer.global_step)

    def _judged(self, judge: Callable[[], float]) -> float:
        """The judge's figure of the averaged weights; the module then goes on from its own."""
        own = {name: tensor.detach().clone() for name, tensor in self.module.state_dict().items()}
        self.module.load_state_dict(self._average)
        self.module.eval()
        with torch.inference_mode():
            value = judge()
        self.module.load_state_dict(own)
        self.module.train()
        return value

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        best = None if self._best is None else {"judged": self._best[0], "weights": self._best[1]}
        checkpoint[_OURS] = {
            "average": self._average,
            "best": best,
            "smooth": self._smooth,
            "random": torch.get_rng_state(),
            "mark": self._mark,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        ours = checkpoint[_OURS]
        self._average, self._smooth = ours["average"], ours["smooth"]
        self._best = ours["best"] and (ours["best"]["judged"], ours["best"]["weights"])
        torch.set_rng_state(ours["random"])

    def on_train_end(self) -> None:
        self.module.load_state_dict(self._average if self._best is None else self._best[1])


def train(
    title: str,
    module: nn.Module,
    schedule: Schedule,
    batches: Iterator[tuple[Tensor, ...]],
    loss: Callable[..., Tensor],
    *,
    run: Run,
    judge: Callable[[], float] | None,
) -> None:
    """Train `module` in place and leave it in evaluation mode; the arguments are those of `train.fit`.

    ConfigError where a package is missing or a checkpoint belongs to another training; BundleError where the loss
    is no longer finite.
    """
    look = min(run.look_steps, schedule.steps)
    first = next(batches)
    mark = _mark(title, module, schedule, first)
    last = run.folder / f"{title}.ckpt" if run.folder is not None else None
    start = last if last is not None and last.is_file() else None
    if start is not None and _finished(start, module, schedule, mark):
        module.eval()
        return
    training = _Training(title, module, schedule, loss, judge=judge, mark=mark)
    module.train()
    with _quiet():
        trainer = Trainer(
            accelerator="cpu",
            devices=run.processes,
            # Forked: batches and losses are closures over data that is already in memory.
            strategy=DDPStrategy(start_method="fork", process_group_backend="gloo", find_unused_parameters=True)
            if run.processes > 1
            else "auto",
            precision="bf16-mixed" if run.precision == "bf16" else "32-true",
            max_steps=schedule.steps,
            max_epochs=-1,
            gradient_clip_val=_GRADIENT,
            logger=_logger(run, title),
            callbacks=_callbacks(run, title, judged=judge is not None),
            enable_checkpointing=last is not None,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=look,
            use_distributed_sampler=False,
            default_root_dir=run.folder,
        )
        trainer.fit(
            training, _Stream(chain([first], batches), look), ckpt_path=start, weights_only=True if start else None
        )
    module.eval()


def _callbacks(run: Run, title: str, *, judged: bool) -> list[Callback]:
    """One checkpoint, replaced at every look, and the early stop, as the run asks for them."""
    found: list[Callback] = []
    if run.folder is not None:
        found.append(
            ModelCheckpoint(run.folder, title, every_n_epochs=1, save_on_train_epoch_end=True, save_top_k=1,
                            enable_version_counter=False)
        )  # fmt: skip
    if run.patience:
        monitor, mode = ("judged", "max") if judged else ("loss", "min")
        found.append(EarlyStopping(monitor, 0.0, run.patience, mode=mode, check_on_train_epoch_end=True))
    return found


def _mark(title: str, module: nn.Module, schedule: Schedule, first: tuple[Tensor, ...]) -> str:
    """Tells one training from another: what is trained, how long, from which weights and on which data, of which the
    first batch speaks for all."""
    digest = hashlib.sha256(f"{title} {schedule}".encode())
    for tensor in (*module.state_dict().values(), *first):
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _finished(path: Path, module: nn.Module, schedule: Schedule, mark: str) -> bool:
    """Whether the checkpoint is the end of this training, whose weights the module then has."""
    try:
        found = torch.load(path, weights_only=True)
        ours = found[_OURS]
    except (OSError, EOFError, RuntimeError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise ConfigError(f"{path} cannot be read as a checkpoint ({error}): remove it to train anew") from error
    if ours["mark"] != mark:
        raise ConfigError(
            f"{path} belongs to another training (data, preset, seed or schedule differ): remove it, or "
            "name another folder"
        )
    if found["global_step"] < schedule.steps:
        return False
    module.load_state_dict(ours["average"] if ours["best"] is None else ours["best"]["weights"])
    return True


def _logger(run: Run, title: str) -> Logger | bool:
    """ConfigError where its package is missing or its service refuses: before anything is trained."""
    if run.logger == "none" or run.folder is None:
        return False
    module, _, error = _REFUSALS[run.logger].rpartition(".")
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"logger {run.logger!r} needs the package {package}: pip install {package}, or choose another (`none`)",
            "--logger",
        )
    refused: type[Exception] = getattr(importlib.import_module(module), error)
    try:
        logger = _opened(run.logger, run.folder, title)
        if run.processes == 1:  # several are forked, and the first of them opens it: a connection does not bear that
            _ = logger.experiment  # type: ignore[attr-defined]  # of every logger but the base class
    except refused as reason:
        raise ConfigError(f"{run.logger} refused the run: {reason}", "--logger") from reason
    return logger


def _opened(name: str, folder: Path, title: str) -> Logger:
    """TensorBoard writes to the folder, and so does MLflow unless MLFLOW_TRACKING_URI names a server; W&B goes by its
    own variables (WANDB_MODE=offline keeps all of it here)."""
    folder.mkdir(parents=True, exist_ok=True)
    if name == "mlflow":
        # A database: the store of plain files is no longer opened by MLflow 3.
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.resolve()}/mlflow.db"
        return MLFlowLogger("tectum", title, tracking_uri=uri, artifact_location=str(folder.resolve() / "mlflow"))
    if name == "wandb":
        return WandbLogger(project="tectum", save_dir=folder)
    return TensorBoardLogger(folder, name="tensorboard", version="")


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning greets, advises and counts devices: that is not what stderr is for here."""
    logs = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for log, level in zip(logs, levels, strict=True):
                log.setLevel(level)


def _blend(average: dict[str, Tensor], module: nn.Module, keep: float) -> None:
    """Move the average towards the module's weights, in one operation for all of them."""
    now = module.state_dict()
    floats = [name for name, tensor in now.items() if tensor.dtype.is_floating_point]
    torch._foreach_lerp_([average[name] for name in floats], [now[name] for name in floats], 1 - keep)
    for name in now.keys() - set(floats):
        average[name].copy_(now[name])
