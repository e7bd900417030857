"""Parts of the cloud for tests and benchmarks: messages as devices send them, and a store with devices in it."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import argon2

from cloud_sync.broker import Delivery
from cloud_sync.enrol import token_hash
from cloud_sync.store import Store, open_store
from cloud_sync.store.tables import Device
from edge_agent.contract import topics, wire
from edge_agent.contract.event import Body, Event, Evidence, Heat, Message, Phase, ScorePoint, Shares

STREAM = "0123456789abcdef" * 2
WALL_NS = 1_700_000_000_000_000_000
#: Argon2id for tests: what it costs is no matter here.
CHEAP = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
_mids = itertools.count(1)


def event_id(number: int) -> str:
    """The same id for the same number."""
    return str(uuid.UUID(int=(0x7 << 76) | (0b10 << 62) | number))


def event(
    phase: Phase = "new",
    revision: int = 1,
    *,
    score: float = 0.8,
    step: int = 100,
    label: str = "fire",
    heat: bool = False,
    rule: str | None = None,
    scene: str = "yard",
    trace: Sequence[tuple[int, float]] = (),
) -> Event:
    """An event of scene `yard` with onset step 98, 500 ms each."""
    return Event(
        scene=scene,
        label=label,
        phase=phase,
        onset_step=98,
        step=step,
        step_ms=500,
        revision=revision,
        score=score,
        peak=score,
        threshold=0.5,
        origin="rule" if rule else "model",
        rule=rule,
        classes={label: score},
        shares=Shares(vision=1.5, audio=0.25, sensors=-0.5, none=-2.0),
        trace=tuple(ScorePoint(step=at, score=value) for at, value in trace),
        heat=Heat(rows=2, cols=3, values=bytes(range(6))) if heat else None,
        bundle="b" * 64,
    )


def evidence(sha256: str, size: int, role: str = "clip") -> Evidence:
    """A file of scene `yard`."""
    kinds = {"clip": "video/mp4", "snapshot": "image/jpeg", "trace": "application/json", "spectrogram": "image/png"}
    return Evidence(
        scene="yard",
        role=role,  # type: ignore[arg-type]
        sha256=sha256,
        size=size,
        media_type=kinds[role],  # type: ignore[arg-type]
        start_ns=44_000_000_000,
        end_ns=54_000_000_000,
    )


def message(seq: int, body: Body | None = None, *, device: str = "cam", stream: str = STREAM, of: int = 1) -> Message:
    """Row `seq` of the device's outbox, about event number `of`; made `seq` seconds after WALL_NS."""
    return Message(
        device=device,
        stream=stream,
        seq=seq,
        boot="boot",
        id=event_id(of),
        wall_ns=WALL_NS + seq * 1_000_000_000,
        wall_quality="ntp",
        monotonic_ns=seq * 1_000_000_000,
        body=body or event(),
    )


def delivery(
    payload: bytes | Message, leaf: str = "event", *, device: str = "cam", site: str = "home", retained: bool = False
) -> Delivery:
    """As the broker hands it over."""
    data = payload if isinstance(payload, bytes) else wire.encode(payload)
    return Delivery(topics.up(site, device, leaf), data, retained, 1, next(_mids), 1)


def add_devices(store: Store, *names: str, site: str = "home") -> None:
    """Enrolled devices; the upload token of `cam` is `token-cam`."""
    with store.write() as session:
        for name in names:
            session.add(Device(name=name, site=site, token_hash=token_hash(f"token-{name}"), enrolled_ns=WALL_NS))


@contextmanager
def sqlite_store(folder: Path) -> Iterator[Store]:
    """A migrated store in a file."""
    store = open_store(f"sqlite:///{folder / 'cloud.db'}")
    try:
        store.migrate()
        yield store
    finally:
        store.close()
