"""What the delivery tests share: events, a clock to turn, a way to look at an outbox between two statements."""

from __future__ import annotations

import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from edge_agent.contract import topics, wire
from edge_agent.contract.event import Ack, Event, Evidence, Phase, Priority, ScorePoint, WallQuality
from edge_agent.contract.identity import Broker, Cloud, Identity
from edge_agent.lifecycle import Service
from edge_agent.outbox import Outbox


@dataclass
class HandClock:
    """A clock that stands still until a test moves it."""

    now_ns: int = 10**15

    def monotonic_ns(self) -> int:
        return self.now_ns

    def wall_ns(self) -> int:
        return 1_790_000_000_000_000_000 + self.now_ns

    def wall_quality(self) -> WallQuality:
        return "ntp"

    def forward(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)


def event(
    phase: Phase = "new",
    onset: int = 1,
    *,
    label: str = "fire",
    scene: str = "yard",
    priority: Priority = "normal",
    revision: int = 1,
    points: int = 4,
) -> Event:
    """A message of an event; `points` makes it longer."""
    return Event(
        scene=scene,
        label=label,
        phase=phase,
        onset_step=onset,
        step=onset + revision,
        step_ms=500,
        revision=revision,
        score=0.8,
        peak=0.9,
        threshold=0.6,
        priority=priority,
        trace=tuple(ScorePoint(step=onset + i, score=0.5) for i in range(points)),
    )


def evidence(sha256: str, size: int = 3) -> Evidence:
    """A snapshot."""
    return Evidence(
        scene="yard", role="snapshot", sha256=sha256, size=size, media_type="image/jpeg", start_ns=0, end_ns=1
    )


@dataclass
class Tap:
    """Opens databases whose every statement is announced before and after it runs.

    `on_statement` may copy the files (that is what a crash at this moment leaves) or raise (a disk that fails).
    """

    on_statement: Callable[[str], None] = field(default=lambda sql: None)

    def __call__(self, path: Path) -> sqlite3.Connection:
        tap = self

        class Tapped(sqlite3.Connection):
            def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
                tap.on_statement(sql)
                cursor = super().execute(sql, *values)
                tap.on_statement(sql)
                return cursor

        return sqlite3.connect(path, isolation_level=None, check_same_thread=False, factory=Tapped)


def image(path: Path, place: Path) -> Path:
    """A copy of an outbox as it lies on the disk at this moment: what a killed process leaves behind."""
    place.mkdir(parents=True)
    for suffix in ("", "-wal"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            shutil.copyfile(part, place / part.name)
    return place / path.name


def outbox(
    path: Path,
    clock: HandClock | None = None,
    *,
    max_bytes: int = 1 << 20,
    reserve_bytes: int = 0,
    tap: Tap | None = None,
) -> Outbox:
    """An outbox of the device `porch`."""
    return Outbox(
        path,
        "porch",
        clock or HandClock(),
        "boot-1",
        max_bytes=max_bytes,
        reserve_bytes=reserve_bytes,
        connect=tap or Tap(),
    )


def identity(port: int, *, url: str = "http://127.0.0.1:9", tls: bool = False, ca_pem: str = "") -> Identity:
    """The device `porch` of the site `home`, at a broker on loopback."""
    return Identity(
        site="home",
        device="porch",
        broker=Broker(host="127.0.0.1", port=port, username="porch", password="secret", tls=tls, ca_pem=ca_pem),
        cloud=Cloud(url=url, token="token", ca_pem=ca_pem),
    )


@dataclass
class Acknowledger:
    """As much of an ingest as a publisher needs: keeps what came, and says so on `down/ack` unless told to be silent.

    It keeps no order and commits nothing; `cloud-sync ingest` is the real one.
    """

    port: int
    silent: bool = False
    got: dict[tuple[str, int], bytes] = field(default_factory=dict)  #: by (stream, seq)
    arrivals: list[tuple[str, int]] = field(default_factory=list)  #: with duplicates
    status: list[tuple[str, bytes, bool]] = field(default_factory=list)  #: (leaf, payload, retained)
    payloads: list[bytes] = field(default_factory=list)  #: of messages, as they came
    _client: mqtt.Client | None = None

    def __enter__(self) -> Acknowledger:
        ready = threading.Event()
        client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="ingest", protocol=mqtt.MQTTv5)
        client.username_pw_set("ingest", "secret")
        client.on_connect = lambda client, *_: client.subscribe("tectum/v1/+/+/up/#", qos=1)
        client.on_subscribe = lambda *_: ready.set()
        client.on_message = self._arrived
        client.reconnect_delay_set(1, 1)
        client.connect("127.0.0.1", self.port, clean_start=True)
        client.loop_start()
        self._client = client
        assert ready.wait(10), "no SUBACK"
        return self

    def __exit__(self, *_error: object) -> None:
        assert self._client is not None
        self._client.disconnect()
        self._client.loop_stop()

    def seqs(self, stream: str) -> list[int]:
        """What came of a stream, rising."""
        return sorted(seq for name, seq in self.got if name == stream)

    def acknowledge(self, stream: str) -> None:
        """Say what came of a stream."""
        seqs = self.seqs(stream)
        holes = tuple((a + 1, b - 1) for a, b in zip([0, *seqs], seqs, strict=False) if b > a + 1)
        self.send("ack", wire.encode(Ack(stream=stream, upto=seqs[-1], holes=holes)))

    def send(self, leaf: str, payload: bytes) -> None:
        """Publish on one of the device's down-topics."""
        assert self._client is not None
        self._client.publish(topics.down("home", "porch", leaf), payload, qos=1)

    def _arrived(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        leaf = topics.parse(message.topic).leaf
        if leaf in {"state", "health"}:
            self.status.append((leaf, message.payload, message.retain))
            return
        self.payloads.append(message.payload)
        streams = set()
        for raw in wire.split(message.payload):
            found = wire.decode_message(raw, "porch")
            key = (found.stream, found.seq)
            assert self.got.setdefault(key, raw) == raw
            self.arrivals.append(key)
            streams.add(found.stream)
        if not self.silent:
            for stream in streams:
                self.acknowledge(stream)


@contextmanager
def running(service: Service) -> Iterator[threading.Event]:
    """The service on a thread of its own; told to stop, and waited for, at the end. Its failure fails the test."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            service.run(stop)
        except BaseException as error:
            failures.append(error)
            raise

    thread = threading.Thread(target=run, name="service")
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join(15)
    assert not thread.is_alive(), "the service did not stop"
    assert not failures, failures


def eventually(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait until the condition holds; fail if it does not within the time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
