"""Devices in and out: what a device needs to be believed, and how it is cut off."""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import msgspec
import sqlalchemy as sa

from cloud_sync.broker import Users
from cloud_sync.config import Config
from cloud_sync.errors import BrokerError, CloudError, ConfigError, NotFound
from cloud_sync.store import Store, audit
from cloud_sync.store.tables import Device
from edge_agent.contract import topics
from edge_agent.contract.identity import Broker, Cloud, Identity


def enrol(config: Config, store: Store, users: Users, *, device: str, site: str, out: Path, now_ns: int) -> Identity:
    """Enrol a device and write its identity to `out` (mode 0600). The secrets in it are kept nowhere else.

    A revoked device may be enrolled again, with new secrets. CloudError for a name that is taken or malformed,
    BrokerError if the broker does not take its user: then nothing was done.
    """
    for kind, name in (("device", device), ("site", site)):
        if not topics.is_name(name):
            raise CloudError(f"{kind} name {name!r} may hold a-z 0-9 _ - only, at most 64 characters")
    with store.read() as session:
        known = session.get(Device, device)
        if known is not None and known.revoked_ns is None:
            raise CloudError(f"device {device!r} is enrolled already; `cloud-sync revoke {device}` first")
    token, password = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    identity = Identity(
        site=site,
        device=device,
        broker=Broker(
            host=config.broker.public_host or config.broker.host,
            port=config.broker.public_port or config.broker.port,
            username=device,
            password=password,
            tls=config.broker.tls,
            ca_pem=_pem(config.broker.ca, "broker.ca"),
        ),
        cloud=Cloud(url=config.url, token=token, ca_pem=_pem(config.ca, "ca")),
        tuf_root=_tuf_root(config.tuf_dir / "metadata"),
    )
    with _private_file(out) as file:  # first of all: a folder that cannot be written must not cost the secrets
        file.write(msgspec.yaml.encode(identity))
        users.add(site, device, password)
        with store.write() as session:
            session.merge(
                Device(
                    name=device,
                    site=site,
                    token_hash=token_hash(token),
                    enrolled_ns=now_ns,
                    revoked_ns=None,
                    online=False,
                )
            )
            audit.record(session, "console", "device.enrol", f"{site}/{device}", now_ns)
    return identity


def revoke(store: Store, users: Users, device: str, now_ns: int) -> None:
    """Cut a device off: its messages are refused, its token is void, its connection ends.

    NotFound if it is not enrolled. BrokerError if the broker could not be told: the cloud refuses the device all
    the same; run it again.
    """
    with store.write() as session:
        row = session.get(Device, device)
        if row is None:
            raise NotFound(f"there is no device {device!r}")
        row.revoked_ns = row.revoked_ns or now_ns
        row.online = False
        site = row.site
        audit.record(session, "console", "device.revoke", f"{site}/{device}", now_ns)
    try:
        users.remove(site, device)
    except BrokerError as error:
        raise BrokerError(
            f"{device} is revoked here, but its broker user is left ({error}); run this again"
        ) from error


def device_of(store: Store, token: str) -> str | None:
    """Name of the device that an upload token belongs to; None if there is none, or it was revoked."""
    if not token or len(token) > 128:
        return None
    with store.read() as session:
        query = sa.select(Device.name).where(Device.token_hash == token_hash(token), Device.revoked_ns.is_(None))
        return session.execute(query).scalar()


def token_hash(token: str) -> str:
    """What the database holds of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def _pem(path: Path | None, key: str) -> str:
    if path is None:
        return ""
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}", key) from error


def _tuf_root(metadata: Path) -> str:
    """The newest root that this installation signed; empty if it signs no updates yet."""
    roots = [path for path in metadata.glob("*.root.json") if path.name.partition(".")[0].isdigit()]
    newest = max(roots, key=lambda path: int(path.name.partition(".")[0]), default=None)
    return "" if newest is None else newest.read_text(encoding="utf-8")


@contextmanager
def _private_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that only the owner can read, in place when the block ends, and nowhere if it raises."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise CloudError(f"cannot write {path}: {error}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
