"""Signing bundles into the TUF repository that the fleet trusts (python-tuf; TUF specification 1.0).

Roles: root and targets need 2 of their 3 keys and can be kept offline; `models-<family>` needs both of its keys;
snapshot and timestamp are online. No key ships: `cloud-sync keys init` makes those of this installation.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import sqlalchemy as sa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

from cloud_sync.errors import ReleaseError
from cloud_sync.store import Store, audit
from cloud_sync.store.tables import Device, Release
from edge_agent.contract import topics, wire
from edge_agent.contract.manifest import GRAPHS, Manifest, bundle_hash
from edge_agent.contract.status import Desired

log = logging.getLogger(__name__)

FAMILY = "tectum-default"
#: Role → keys made and signatures needed.
KEYS = {"root": (3, 2), "targets": (3, 2), "models": (2, 2), "snapshot": (1, 1), "timestamp": (1, 1)}
RENEW_EVERY_S = 3600.0
LIFETIME_DAYS = {"root": 730, "targets": 730, "models": 365, "snapshot": 30, "timestamp": 14}


@dataclass(frozen=True, slots=True)
class Released:
    """A bundle that the fleet may now fetch."""

    bundle: str
    family: str
    name: str
    counter: int


class Repository:
    """The signed repository below `folder` (`metadata/`, `targets/`), with its private keys in `keys`."""

    def __init__(self, folder: Path, keys: Path) -> None:
        self._metadata = folder / "metadata"
        self._targets = folder / "targets"
        self._keys = keys

    def init(self, family: str = FAMILY) -> list[Path]:
        """Make keys and an empty repository; the key files made. ReleaseError if there are some already."""
        if self._keys.exists() and any(self._keys.iterdir()):
            raise ReleaseError(f"{self._keys} holds keys already; a second set would lock out every enrolled device")
        for folder in (self._metadata, self._targets, self._keys):
            folder.mkdir(parents=True, exist_ok=True)
        self._keys.chmod(0o700)
        signers = {role: [CryptoSigner.generate_ed25519() for _ in range(count)] for role, (count, _) in KEYS.items()}
        made = [self._store(f"{role}-{i + 1}", s) for role, group in signers.items() for i, s in enumerate(group)]
        root = Root(expires=_expiry("root"), consistent_snapshot=True)
        for role in ("root", "targets", "snapshot", "timestamp"):
            for signer in signers[role]:
                root.add_key(signer.public_key, role)
            root.roles[role].threshold = KEYS[role][1]
        targets = Targets(expires=_expiry("targets"))
        models = DelegatedRole(
            name=_role(family), keyids=[], threshold=KEYS["models"][1], terminating=True,
            paths=[f"bundles/{family}/*", f"bundles/{family}/*/*", "blobs/*"],
        )  # fmt: skip
        targets.delegations = Delegations(keys={}, roles={models.name: models})
        for signer in signers["models"]:
            targets.add_key(signer.public_key, models.name)
        self._write(Metadata(root), "1.root", signers["root"])
        self._write(Metadata(targets), "1.targets", signers["targets"])
        self._write(Metadata(Targets(expires=_expiry("models"))), f"1.{models.name}", signers["models"])
        self._publish({"targets": 1, models.name: 1})
        return made

    def root(self) -> bytes:
        """The newest root metadata: what an enrolled device is given to trust."""
        return self._newest("root").read_bytes()

    def release(self, bundle: Path) -> Released:
        """Sign the bundle in the folder `bundle`. ReleaseError names what is wrong with it; nothing is signed then.

        Files come first and the timestamp last, so that a kill at any moment leaves the old release in force.
        """
        data, manifest = _checked(bundle)
        with self._alone():
            return self._release(bundle, data, manifest)

    def _release(self, bundle: Path, data: bytes, manifest: Manifest) -> Released:
        digest = bundle_hash(data)
        role = _role(manifest.family)
        models = self._load(role)
        newest = self.newest(manifest.family)
        if newest is not None and manifest.counter <= newest.counter:
            raise ReleaseError(
                f"bundle counts as release {manifest.counter}, but {newest.counter} is out: it must be higher"
            )
        base = f"bundles/{manifest.family}"
        current = json.dumps({"v": 1, "bundle": digest, "counter": manifest.counter}).encode()
        files = {f"{base}/{digest}/manifest.json": data, f"{base}/current.json": current}
        files |= {f"blobs/{ref.sha256}": (bundle / name).read_bytes() for name, ref in manifest.files.items()}
        for path, content in files.items():
            models.signed.targets[path] = TargetFile.from_data(path, content, ["sha256"])
            self._place(path, content)
        models.signed.version += 1
        models.signed.expires = _expiry("models")
        self._write(models, f"{models.signed.version}.{role}", self._signers("models"))
        self._publish({role: models.signed.version})
        return Released(bundle=digest, family=manifest.family, name=manifest.name, counter=manifest.counter)

    def newest(self, family: str = FAMILY) -> Released | None:
        """The release in force, None before the first."""
        target = self._load(_role(family)).signed.targets.get(f"bundles/{family}/current.json")
        if target is None:
            return None
        current = json.loads((self._targets / _hashed(target)).read_bytes())
        manifest = msgspec.json.decode(self.file(family, current["bundle"], "manifest.json"), type=Manifest)
        return Released(current["bundle"], family, manifest.name, manifest.counter)

    def file(self, family: str, bundle: str, name: str) -> bytes:
        """The bytes of a released file, by its name in the bundle. ReleaseError if it was never released."""
        signed = self._load(_role(family)).signed.targets
        manifest = signed.get(f"bundles/{family}/{bundle}/manifest.json")
        if manifest is None:
            raise ReleaseError(f"{bundle} was never released")
        data = (self._targets / _hashed(manifest)).read_bytes()
        if name == "manifest.json":
            return data
        refs = msgspec.json.decode(data, type=Manifest).files
        if name not in refs:
            raise ReleaseError(f"release {bundle[:12]} has no file {name!r}")
        return (self._targets / _hashed(signed[f"blobs/{refs[name].sha256}"])).read_bytes()

    def checkout(self, released: Released, folder: Path) -> Path:
        """A released bundle as a folder again: where the next training starts."""
        folder.mkdir(parents=True, exist_ok=True)
        data = self.file(released.family, released.bundle, "manifest.json")
        for name in msgspec.json.decode(data, type=Manifest).files:
            (folder / name).write_bytes(self.file(released.family, released.bundle, name))
        (folder / "manifest.json").write_bytes(data)
        return folder

    def renew(self) -> bool:
        """Sign snapshot and timestamp anew if the timestamp is past half its life; whether it was."""
        timestamp = self._metadata / "timestamp.json"
        if not timestamp.exists():
            return False  # this installation signs no updates
        half = dt.timedelta(days=LIFETIME_DAYS["timestamp"] / 2)
        with self._alone():
            if Metadata[Timestamp].from_file(str(timestamp)).signed.expires - _now() > half:
                return False
            self._publish({})
        return True

    def keep_renewed(self, stop: threading.Event) -> None:
        """Renew until `stop`: an expired timestamp would block updates, though never the models that run."""
        while not stop.is_set():
            try:
                if self.renew():
                    log.info("release metadata signed anew for %d days", LIFETIME_DAYS["timestamp"])
            except (ReleaseError, OSError) as error:
                log.error(
                    "release metadata cannot be renewed, devices will refuse updates once it expires: %s", error
                )
            stop.wait(RENEW_EVERY_S)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One signer at a time: `serve` renews while an operator releases."""
        if not self._keys.is_dir():
            raise ReleaseError(f"there are no keys in {self._keys}: run `cloud-sync keys init` first")
        handle = os.open(self._keys, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _publish(self, versions: dict[str, int]) -> None:
        """A new snapshot with `versions` changed, and the timestamp that puts it in force."""
        try:
            snapshot = self._load("snapshot")
            snapshot.signed.version += 1
            timestamp = Metadata[Timestamp].from_file(str(self._metadata / "timestamp.json"))
            timestamp.signed.version += 1
        except ReleaseError:
            snapshot = Metadata(Snapshot())
            timestamp = Metadata(Timestamp())
        for role, version in versions.items():
            snapshot.signed.meta[f"{role}.json"] = MetaFile(version=version)
        snapshot.signed.expires = _expiry("snapshot")
        timestamp.signed.expires = _expiry("timestamp")
        timestamp.signed.snapshot_meta = MetaFile(version=snapshot.signed.version)
        self._write(snapshot, f"{snapshot.signed.version}.snapshot", self._signers("snapshot"))
        self._write(timestamp, "timestamp", self._signers("timestamp"))

    def _load(self, role: str) -> Metadata:  # type: ignore[type-arg]
        return Metadata.from_file(str(self._newest(role)))

    def _newest(self, role: str) -> Path:
        found = [p for p in self._metadata.glob(f"*.{role}.json") if p.name.partition(".")[0].isdigit()]
        if not found:
            raise ReleaseError(f"no {role} metadata in {self._metadata}: run `cloud-sync keys init` first")
        return max(found, key=lambda path: int(path.name.partition(".")[0]))

    def _write(self, metadata: Metadata, name: str, signers: Iterable[CryptoSigner]) -> None:  # type: ignore[type-arg]
        metadata.signatures.clear()
        for signer in signers:
            metadata.sign(signer, append=True)
        _replace(self._metadata / f"{name}.json", metadata.to_bytes(JSONSerializer(compact=True)))

    def _place(self, path: str, content: bytes) -> None:
        target = self._targets / path
        target = target.with_name(f"{hashlib.sha256(content).hexdigest()}.{target.name}")
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            _replace(target, content)

    def _store(self, name: str, signer: CryptoSigner) -> Path:
        path = self._keys / f"{name}.pem"
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(signer.private_bytes)
        return path

    def _signers(self, role: str) -> list[CryptoSigner]:
        paths = sorted(self._keys.glob(f"{role}-*.pem"))
        if len(paths) < KEYS[role][1]:
            raise ReleaseError(
                f"{KEYS[role][1]} keys {role}-*.pem are needed in {self._keys}; there are {len(paths)}"
            )
        return [CryptoSigner(load_pem_private_key(path.read_bytes(), None)) for path in paths]


def note(store: Store, released: Released, now_ns: int) -> None:
    """Write a release down: what the dashboard calls it, and who signed what when."""
    with store.write() as session:
        session.merge(
            Release(
                hash=released.bundle,
                family=released.family,
                name=released.name,
                counter=released.counter,
                released_ns=now_ns,
            )
        )
        audit.record(session, "console", "release", f"{released.family} {released.counter} {released.bundle}", now_ns)


def hints(store: Store, released: Released) -> list[tuple[str, bytes]]:
    """Topic and payload of the retained hint for every device that is enrolled."""
    payload = wire.encode(Desired(bundle=released.bundle))
    with store.read() as session:
        enrolled = session.execute(sa.select(Device.site, Device.name).where(Device.revoked_ns.is_(None))).all()
    return [(topics.down(site, name, "desired"), payload) for site, name in enrolled]


def _checked(bundle: Path) -> tuple[bytes, Manifest]:
    """The manifest of a folder whose files are all there and hash to what it says."""
    try:
        data = (bundle / "manifest.json").read_bytes()
        manifest = msgspec.json.decode(data, type=Manifest)
    except OSError as error:
        raise ReleaseError(f"{bundle} is not a bundle: {error}. Make one with `python -m models train`") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ReleaseError(f"{bundle}/manifest.json cannot be read: {error}") from error
    lacking = [f"{graph}.onnx" for graph in GRAPHS if f"{graph}.onnx" not in manifest.files]
    if lacking or "golden.npz" not in manifest.files:
        raise ReleaseError(f"{bundle} lacks {', '.join([*lacking, 'golden.npz'][:5])}")
    for name, ref in manifest.files.items():
        path = bundle / name
        if "/" in name or name.startswith(".") or not path.is_file() or path.is_symlink():
            raise ReleaseError(f"{bundle}: file {name!r} is not a plain file of the bundle")
        if hashlib.sha256(path.read_bytes()).hexdigest() != ref.sha256:
            raise ReleaseError(f"{path} was changed after the bundle was made: its hash differs from the manifest")
    return data, manifest


def _role(family: str) -> str:
    return f"models-{family}"


def _hashed(target: TargetFile) -> str:
    folder, _, name = target.path.rpartition("/")
    return f"{folder}/{target.hashes['sha256']}.{name}"


def _now() -> dt.datetime:
    return dt.datetime.now(dt.timezone.utc)


def _expiry(role: str) -> dt.datetime:
    return (_now() + dt.timedelta(days=LIFETIME_DAYS[role])).replace(microsecond=0)


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.part")
    with partial.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, path)
