"""Two immutable folders for bundles, and one SQLite row that says which of them runs.

A slot is `<folder>/<hash of the manifest>/`. Files and folder are synced to disk before the row flips, so a power cut
at any moment leaves the old slot running. What boots is the committed slot; a trial that the device does not survive
is tried again from there, three times at most, and then never.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from edge_agent.errors import StorageError

MAX_ATTEMPTS = 3

_SCHEMA = """
CREATE TABLE IF NOT EXISTS slot (
  id INTEGER PRIMARY KEY CHECK (id = 1),
  running TEXT NOT NULL DEFAULT '', previous TEXT NOT NULL DEFAULT '',
  candidate TEXT NOT NULL DEFAULT '', attempts INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS refused (bundle TEXT PRIMARY KEY, reason TEXT NOT NULL);
INSERT OR IGNORE INTO slot (id) VALUES (1);
"""


@dataclass(frozen=True, slots=True)
class Row:
    """The one row: hashes of manifests, empty where there is none (the shipped bundle runs)."""

    running: str
    previous: str
    candidate: str
    attempts: int


class Slots:
    """The slots of one device. One thread at a time."""

    def __init__(self, folder: Path) -> None:
        """Open or make the folder and its row. StorageError if the disk refuses or the row is damaged."""
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(folder / "slots.db", isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise StorageError(
                f"slots in {folder} cannot be used: {error}. Delete the folder to start over"
            ) from error

    def row(self) -> Row:
        """The row as it is on disk."""
        return Row(*self._db.execute("SELECT running, previous, candidate, attempts FROM slot").fetchone())

    def path(self, bundle: str) -> Path:
        """Folder of a bundle, whether it is there or not."""
        return self.folder / bundle

    def refused(self) -> frozenset[str]:
        """Bundles that failed here and are never tried again."""
        return frozenset(row[0] for row in self._db.execute("SELECT bundle FROM refused"))

    def refuse(self, bundle: str, reason: str) -> None:
        """Remember that `bundle` failed; forget it as a candidate and free its folder."""
        with self._db:
            self._db.execute("INSERT OR REPLACE INTO refused VALUES (?, ?)", (bundle, reason))
            self._db.execute("UPDATE slot SET candidate = '', attempts = 0 WHERE candidate = ?", (bundle,))
        self._prune()

    def stage(self, bundle: str, files: Path) -> Path:
        """Make the verified folder `files` the slot of `bundle`, durably, and note it as the candidate."""
        target = self.path(bundle)
        for file in files.iterdir():
            _sync(file)
        _sync(files)
        if target.exists():
            shutil.rmtree(target)
        os.replace(files, target)
        _sync(self.folder)
        with self._db:
            self._db.execute("UPDATE slot SET candidate = ?, attempts = 0", (bundle,))
        return target

    def attempt(self, bundle: str) -> int:
        """Count an attempt at `bundle`, before it is made; how many there were with this one."""
        with self._db:
            self._db.execute("UPDATE slot SET attempts = attempts + 1 WHERE candidate = ?", (bundle,))
        return self.row().attempts

    def forgive(self, bundle: str) -> None:
        """Take back an attempt in which nothing was found out about `bundle`."""
        with self._db:
            self._db.execute("UPDATE slot SET attempts = max(attempts - 1, 0) WHERE candidate = ?", (bundle,))

    def commit(self, bundle: str) -> None:
        """`bundle` runs from now on, after every restart too; the one before it stays to go back to."""
        with self._db:
            self._db.execute(
                "UPDATE slot SET previous = running, running = ?, candidate = '', attempts = 0", (bundle,)
            )
        self._prune()

    def fall_back(self, reason: str) -> None:
        """The running slot is damaged: the previous one runs, or the shipped bundle."""
        row = self.row()
        with self._db:
            if row.running:
                self._db.execute("INSERT OR REPLACE INTO refused VALUES (?, ?)", (row.running, reason))
            self._db.execute("UPDATE slot SET running = previous, previous = ''")
        self._prune()

    def staging(self, bundle: str) -> Path:
        """An empty or half-filled folder to download `bundle` into; it survives a restart."""
        folder = self.folder / "staging" / bundle
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def close(self) -> None:
        """Close the row's file. May be called twice."""
        self._db.close()

    def _prune(self) -> None:
        row = self.row()
        keep = {row.running, row.previous, row.candidate}
        for folder in self.folder.iterdir():
            if folder.is_dir() and len(folder.name) == 64 and folder.name not in keep:
                shutil.rmtree(folder, ignore_errors=True)
        staging = self.folder / "staging"
        if not row.candidate and staging.is_dir():
            shutil.rmtree(staging, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
