"""The training loop: broken off and taken up again, in two processes, stopped early, refused."""

from __future__ import annotations

import ast
import itertools
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")
pytest.importorskip("lightning", reason="pip install lightning")

from edge_agent.errors import BundleError, ConfigError  # noqa: E402
from models.config import ALONE, Run, Schedule  # noqa: E402
from models.training.train import fit  # noqa: E402

SCHEDULE = Schedule(steps=12, batch=8, rate=1e-2)


class _Broken(RuntimeError):
    pass


def _batches(stop_after: int | None = None, seed: int = 5):
    generator = torch.Generator().manual_seed(seed)
    for index in itertools.count():
        if index == stop_after:
            raise _Broken
        x = torch.randn(8, 4, generator=generator)
        yield x, (x[:, :1] > 0).float()


def _fitted(run=ALONE, schedule=SCHEDULE, judge=None, *, stop_after=None, seed=0, data=5):
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    given = judge and (lambda: judge(net))
    fit("task", net, schedule, _batches(stop_after, data), lambda x, y: _loss(net, x, y), run=run, judge=given)
    return net.state_dict()


def _loss(net, x, y):
    return torch.nn.functional.binary_cross_entropy_with_logits(net(x), y)


def _same(a, b) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_a_broken_run_taken_up_again_ends_with_the_same_weights(tmp_path):
    run = Run(folder=tmp_path, look_steps=5)
    with pytest.raises(_Broken):
        _fitted(run, stop_after=8)
    assert _same(_fitted(run), _fitted())


def test_what_is_finished_is_not_trained_again(tmp_path):
    run = Run(folder=tmp_path, look_steps=5)
    done = _fitted(run)
    assert _same(done, _fitted(run, stop_after=1))


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    run = Run(folder=tmp_path, look_steps=5)
    _fitted(run)
    for other in ({"seed": 1}, {"data": 6}, {"schedule": replace(SCHEDULE, steps=13)}):
        with pytest.raises(ConfigError, match="another training"):
            _fitted(run, **other)
    (tmp_path / "task.ckpt").write_bytes(b"half a fi")
    with pytest.raises(ConfigError, match="cannot be read"):
        _fitted(run)


def test_two_processes_learn_what_one_learns(tmp_path):
    """Each takes half the rows of every batch, and gradients are averaged: the same but for rounding."""
    alone, both = _fitted(), _fitted(Run(processes=2))
    for name, tensor in alone.items():
        torch.testing.assert_close(both[name], tensor, rtol=1e-3, atol=1e-5)


def test_mixed_precision_learns_nearly_the_same_and_keeps_float32_weights():
    alone, mixed = _fitted(), _fitted(Run(precision="bf16"))
    assert not _same(alone, mixed)
    for name, tensor in alone.items():
        assert mixed[name].dtype is torch.float32
        torch.testing.assert_close(mixed[name], tensor, rtol=0.2, atol=0.05)


def test_an_early_stop_keeps_the_weights_that_were_judged_best():
    seen = []

    def judge(net):
        seen.append({name: tensor.clone() for name, tensor in net.state_dict().items()})
        return -abs(len(seen) - 2)  # the second look is the best

    ended = _fitted(Run(look_steps=2, patience=2), replace(SCHEDULE, steps=40), judge)
    assert len(seen) == 4
    assert _same(ended, seen[1])


def test_a_loss_that_is_no_number_ends_the_training():
    net = torch.nn.Linear(4, 1)
    with pytest.raises(BundleError, match="diverged"):
        fit("task", net, SCHEDULE, _batches(), lambda x, y: net(x).sum() * math.nan)


def test_a_logger_whose_package_is_missing_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install mlflow"):
        _fitted(Run(folder=tmp_path, logger="mlflow"))


def test_mlflow_gets_a_run_of_every_training_in_a_database_of_the_folder(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="pip install mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    _fitted(Run(folder=tmp_path, logger="mlflow", look_steps=4))
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("tectum").experiment_id])
    assert run.info.run_name == "task"
    assert [entry.step for entry in client.get_metric_history(run.info.run_id, "task/loss")] == [4, 8, 12]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere:///")
    with pytest.raises(ConfigError, match="mlflow refused the run"):
        _fitted(Run(folder=tmp_path / "other", logger="mlflow"))


#: In a process of its own: wandb leaves threads, and keeps the account that it found first.
_TO_WANDB = """
import itertools, pathlib, sys, torch
from models.config import Run, Schedule
from models.training.train import fit
net = torch.nn.Linear(2, 1)
batches = ((torch.ones(4, 2),) for _ in itertools.count())
fit("task", net, Schedule(8, 4, 1e-2), batches, lambda x: net(x).square().mean(),
    run=Run(folder=pathlib.Path(sys.argv[1]), logger="wandb", look_steps=4))
"""


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_wandb_writes_beside_the_checkpoints_or_says_what_it_lacks(mode, tmp_path):
    pytest.importorskip("wandb", reason="pip install wandb")
    own = {**os.environ, "WANDB_MODE": mode, "HOME": str(tmp_path), "NETRC": str(tmp_path / "none")}
    own.pop("WANDB_API_KEY", None)
    command = [sys.executable, "-c", _TO_WANDB, str(tmp_path / "work")]
    done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=100, check=False)
    if mode == "online":
        assert "ConfigError: --logger: wandb refused the run" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert list((tmp_path / "work" / "wandb").glob("offline-run-*/*.wandb"))


def test_tensorboard_gets_the_loss_of_every_look(tmp_path):
    _fitted(Run(folder=tmp_path, logger="tensorboard", look_steps=4))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [entry.step for entry in found.Scalars("task/loss")] == [4, 8, 12]


def test_nobody_pays_for_lightning_who_does_not_train():
    """Importing it takes seconds: retraining a head from verdicts must not wait for it, so `fit` alone imports it."""
    root = Path(__file__).resolve().parents[3] / "models"
    for path in root.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            origin = node.module if isinstance(node, ast.ImportFrom) else ""
            eager = "models.training.trainer" in (origin, *names) or (origin == "models" and "trainer" in names)
            assert not eager, f"{path} imports models.training.trainer when it is imported itself"
