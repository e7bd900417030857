"""Evidence files, each under its SHA-256: taken in parts that survive an interruption, shown only when whole.

    <folder>/ab/cd/<sha256>                  whole files, hashed before they got this name
    <folder>/incoming/<hash of device>/<sha256>   parts, per device

Only hashes that were checked against a pattern ever become part of a path. A file belongs to the devices that
handed its bytes over: knowing a hash is not enough to have it shown with an alert of one's own.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.orm import Session

from cloud_sync.config import BlobConfig
from cloud_sync.errors import BlobRefused, NotFound
from cloud_sync.store import Store, raise_counter
from cloud_sync.store.tables import Alert, Blob, EvidenceFile

_SHA256 = re.compile(r"[0-9a-f]{64}")
_MB = 1 << 20
PART_S = 7 * 24 * 3600  #: a part that nobody continued for so long is removed


@dataclass(frozen=True)
class Held:
    """What is here of a file of one device."""

    offset: int  #: bytes
    whole: bool


class Blobs:
    """The files of one installation. Methods block on disk and database; safe between threads of one process."""

    def __init__(
        self, folder: Path, store: Store, limits: BlobConfig | None = None, now_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._folder = folder
        self._incoming = folder / "incoming"
        self._incoming.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._store = store
        self._limits = limits or BlobConfig()
        self._now_ns = now_ns
        self._lock = threading.Lock()
        self._owners: dict[Path, Upload] = {}  # who may write a part now; the newest upload wins
        self._checked: set[Path] = set()  # parts that are being hashed: nobody else may touch them

    def path(self, sha256: str) -> Path:
        """Where the bytes of a whole file are. NotFound if they are not here."""
        path = self._place(sha256)
        if not path.is_file():
            raise NotFound(f"there is no file {sha256!r}")
        return path

    def held(self, device: str, sha256: str) -> Held:
        """How much of a file this device has handed over already."""
        part = self._part(device, sha256)
        with self._store.read() as session:
            blob = session.get(Blob, (sha256, device))
        if blob is not None:
            return Held(blob.size, True)
        return Held(_size(part), False)

    def begin(self, device: str, sha256: str, first: int, total: int) -> Upload | None:
        """Take bytes from `first` on of a file of `total` bytes; None if it is here whole already.

        An upload of the same file that is still open is ended: its connection is dead, or this one would not be.
        BlobRefused 409 (other offset), 413 (too large), 422 (not the size that was promised), 507 (no room now).
        """
        part = self._part(device, sha256)
        if not 0 <= first < total:
            raise BlobRefused(400, f"bytes from {first} of {total} make no sense")
        if total > self._limits.file_mb * _MB:
            raise BlobRefused(413, f"{total} bytes; one file may have {self._limits.file_mb} MB")
        with self._store.read() as session:
            if session.get(Blob, (sha256, device)) is not None:
                return None
            self._check_room(session, device, sha256, total)
        part.parent.mkdir(exist_ok=True, mode=0o700)
        upload = Upload(self, device, sha256, part, total)
        with self._lock:
            held = _size(part)
            if part in self._checked or (held != first and held < total):
                raise BlobRefused(409, f"{held} bytes are here, not {first}", offset=held)
            self._owners[part] = upload
        if held < total:
            return upload
        try:  # all of it came, but whoever brought it did not live to see it checked
            upload.finish()
        finally:
            upload.close()
        return None

    def sweep(self) -> int:
        """Remove parts that nobody continued for a week; how many there were."""
        removed = 0
        oldest_s = self._now_ns() / 1e9 - PART_S
        for part in self._incoming.glob("*/*"):
            with self._lock:
                if part.stat().st_mtime < oldest_s and part not in self._owners:
                    part.unlink()
                    removed += 1
        return removed

    def _place(self, sha256: str) -> Path:
        if not _SHA256.fullmatch(sha256):
            raise NotFound("a file is named by 64 hexadecimal digits")
        return self._folder / sha256[:2] / sha256[2:4] / sha256

    def _part(self, device: str, sha256: str) -> Path:
        self._place(sha256)
        return self._incoming / hashlib.sha256(device.encode()).hexdigest()[:32] / sha256

    def _check_room(self, session: Session, device: str, sha256: str, total: int) -> None:
        promised = session.execute(
            sa.select(EvidenceFile.size).where(EvidenceFile.device == device, EvidenceFile.sha256 == sha256).limit(1)
        ).scalar()
        if promised is not None and promised != total:
            raise BlobRefused(422, f"{total} bytes; the message promised {promised}")
        sizes = sa.select(sa.func.coalesce(sa.func.sum(Blob.size), 0)).where(Blob.device == device)
        stored = int(session.execute(sizes).scalar_one())
        if stored + total > self._limits.device_mb * _MB:
            raise BlobRefused(507, f"device {device} has used up its {self._limits.device_mb} MB")
        if promised is None:
            early = int(session.execute(sizes.where(~Blob.promised)).scalar_one())
            parts = sum(
                path.stat().st_size for path in self._part(device, sha256).parent.glob("*") if path.name != sha256
            )
            if early + parts + total > self._limits.early_mb * _MB:
                raise BlobRefused(507, f"{early + parts} bytes wait for their messages; send those first")
        if shutil.disk_usage(self._folder).free < total + self._limits.free_mb * _MB:
            raise BlobRefused(507, "the disk of the cloud is full")

    def _keep(self, device: str, sha256: str, part: Path, size: int) -> None:
        """A part that is whole gets its name, then its row."""
        if _hash_of(part) != sha256:
            part.unlink()
            raise BlobRefused(422, f"the bytes do not hash to {sha256}: start again", offset=0)
        place = self._place(sha256)
        # File before row: a row without its file would be a promise that cannot be kept.
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        part.replace(place)
        for folder in (place.parent, place.parent.parent, self._folder):
            _sync_folder(folder)
        with self._store.write() as session:
            self._store.lock_devices(session, [device])
            files = EvidenceFile.device == device, EvidenceFile.sha256 == sha256
            events = session.execute(sa.select(EvidenceFile.event_id).where(*files)).scalars().all()
            if session.get(Blob, (sha256, device)) is None:
                session.add(
                    Blob(sha256=sha256, device=device, size=size, stored_ns=self._now_ns(), promised=bool(events))
                )
            if events:
                session.execute(sa.update(EvidenceFile).where(*files).values(stored=True))
                _mark_changed(session, events)


class Upload:
    """One upload on its way. `write` in order, then `finish`; without it what was written waits for the rest."""

    def __init__(self, blobs: Blobs, device: str, sha256: str, part: Path, total: int) -> None:
        self._blobs = blobs
        self._device = device
        self._sha256 = sha256
        self._part = part
        self._total = total

    def write(self, data: bytes) -> None:
        """Append. BlobRefused 409 if another upload took over, 413 past the announced size, 507 on a full disk."""
        with self._blobs._lock:
            self._check_owner()
            held = _size(self._part)
            if held + len(data) > self._total:
                raise BlobRefused(413, f"more than the {self._total} bytes that were announced", offset=held)
            try:
                with self._part.open("ab") as file:
                    file.write(data)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise BlobRefused(507, "the disk of the cloud is full", offset=_size(self._part)) from error
                raise

    def finish(self) -> Held:
        """What is here now. If it is all, it was hashed, stored and fsynced. BlobRefused 422 for a wrong hash."""
        with self._blobs._lock:
            self._check_owner()
            held = _size(self._part)
            if held < self._total:
                return Held(held, False)
            self._blobs._checked.add(self._part)
        try:
            self._blobs._keep(self._device, self._sha256, self._part, self._total)
        finally:
            self._blobs._checked.discard(self._part)
        return Held(self._total, True)

    def close(self) -> None:
        """Let go; safe twice."""
        with self._blobs._lock:
            if self._blobs._owners.get(self._part) is self:
                del self._blobs._owners[self._part]

    def _check_owner(self) -> None:
        if self._blobs._owners.get(self._part) is not self:
            raise BlobRefused(409, "another upload of this file has taken over", offset=_size(self._part))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _mark_changed(session: Session, event_ids: Iterable[str]) -> None:
    """Give the alerts a new change number each, so that whoever follows them looks again."""
    ids = session.execute(sa.select(Alert.id).where(Alert.id.in_(set(event_ids)))).scalars().all()
    if ids:
        last = raise_counter(session, "change", len(ids))
        for change, id in enumerate(ids, start=last - len(ids) + 1):
            session.execute(sa.update(Alert).where(Alert.id == id).values(change=change))


def _hash_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_MB):
            digest.update(chunk)
        os.fsync(file.fileno())
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
