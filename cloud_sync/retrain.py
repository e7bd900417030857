"""Verdicts → a better bundle. Training is another program in its own environment, started and read from here."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from cloud_sync import dataset
from cloud_sync.errors import ReleaseError
from cloud_sync.release import FAMILY, Repository
from cloud_sync.store import Store

TIMEOUT_S = 3600.0
_KEPT_LINES = 20  #: of the training's words, for the error


def retrain(
    store: Store,
    path_of: Callable[[str], Path],
    repository: Repository,
    work: Path,
    *,
    python: str = sys.executable,
    say: Callable[[str], None] = print,
) -> Path:
    """Train on every verdict so far, starting from the release in force; the folder of the new bundle.

    `path_of` gives the file of a SHA-256; `python` is the interpreter that has the `train` extra. ReleaseError if
    nobody has judged an event yet, or with the training's last words if it fails.
    """
    with store.read() as session:
        rows = dataset.labelled(session, path_of)
    if not any(row.verdict != "unsure" for row in rows):
        raise ReleaseError("nobody has judged an alert of the model yet: press “real” or “false alarm” on some first")
    run = work / time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    run.mkdir(parents=True, exist_ok=True)
    dataset.export(rows, run / "verdicts.jsonl")
    command = [python, "-m", "models", "train", "--preset", "first", "--verdicts", str(run / "verdicts.jsonl")]
    newest = repository.newest(FAMILY)
    if newest is not None:
        command += ["--start", str(repository.checkout(newest, run / "start"))]
    bundle = run / "bundle"
    say(f"training on {len(rows)} judged events: {' '.join(command)} --out {bundle}")
    _watch([*command, "--out", str(bundle)], say)
    if not (bundle / "manifest.json").is_file():
        raise ReleaseError(f"the training ended well but left no bundle in {bundle}")
    return bundle


def _watch(command: list[str], say: Callable[[str], None]) -> None:
    """Run the training, passing its words on; ReleaseError with the last of them if it fails."""
    last: list[str] = []
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
    except OSError as error:
        hint = "Name an interpreter with the `train` extra by --python"
        raise ReleaseError(f"{command[0]} cannot be started: {error}. {hint}") from error
    limit = threading.Timer(TIMEOUT_S, process.kill)  # a training that hangs says nothing, so reading cannot time it
    limit.start()
    try:
        with process:
            assert process.stdout is not None
            for line in process.stdout:
                say(line.rstrip())
                last = [*last[-_KEPT_LINES + 1 :], line.rstrip()]
    finally:
        limit.cancel()
        process.kill()
    if process.returncode != 0:
        hint = " (pip install 'tectum[train]')" if any("No module named" in line for line in last) else ""
        raise ReleaseError(f"the training ended with {process.returncode}{hint}:\n" + "\n".join(last))
