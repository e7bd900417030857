"""Messages in: each becomes its rows exactly once, is committed, and only then acknowledged.

    broker → collect → read (no I/O) → one transaction → PUBACK → cumulative `down/ack`

QoS 1 delivers at least once and devices send again what they saw no `down/ack` for, so duplicates are normal: the
key (device, stream, seq) finds them. What cannot be read is kept with its bytes and acknowledged: no poison loop.
"""

from __future__ import annotations

import hashlib
import logging
import random
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Protocol

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from cloud_sync.broker import MAX_PACKET, Delivery
from cloud_sync.config import IngestConfig
from cloud_sync.errors import BrokerError, StoreBusy
from cloud_sync.progress import Progress
from cloud_sync.store import Store, raise_counter
from cloud_sync.store.tables import (
    Alert,
    Blob,
    DeadLetter,
    Device,
    Effect,
    EvidenceFile,
    Loss,
    Point,
    Received,
    Stream,
)
from edge_agent.contract import topics, wire
from edge_agent.contract.event import Ack, Event, Evidence, Gap, Message, Rollout
from edge_agent.contract.status import Health, State
from edge_agent.errors import WireError

log = logging.getLogger(__name__)

GIVE_UP_S = 60.0  #: a database that is away this long: end with an error, so that the supervisor starts us afresh
RETRY_S = (0.05, 2.0)  #: first and longest wait for the database, before jitter
ROWS_MAX = 1024  #: a transaction takes no further payload once it has so many rows
ACK_EVERY_S = 0.1  #: at most one ack per stream in this time …
ACK_EVERY = 64  #: … unless so many messages wait for theirs
SEEN_EVERY_NS = 5_000_000_000  #: a device's sign of life is written this often: a write less for most messages
TELL_S = 60.0  #: counts go to the log this often
_INT63 = 2**63 - 1
_ENDS = ("end", "aborted")
#: What a database or its driver says to a value that it cannot hold: the message is at fault, not the store.
_POISON = (SQLAlchemyError, ValueError, OverflowError)


@dataclass(frozen=True)
class Item:
    """A durable message that could be read."""

    topic: topics.Topic
    raw: bytes
    message: Message
    hash: str


@dataclass(frozen=True)
class Status:
    """What a device says of itself."""

    topic: topics.Topic
    record: State | Health
    retained: bool


@dataclass(frozen=True)
class Refused:
    """A payload, or a member of a batch, that is kept as a dead letter.

    `topic` is None if it is none of ours. `stream` and `seq` are set if the device can be told that it need not send
    the row again.
    """

    topic_text: str
    reason: str
    detail: str
    payload: bytes
    topic: topics.Topic | None = None
    stream: str = ""
    seq: int = 0


Piece = Item | Status | Refused


@dataclass(frozen=True)
class Settled:
    """How far a stream has come after a commit, and by how many messages in it."""

    site: str
    device: str
    ack: Ack
    count: int


class _Envelope(msgspec.Struct):
    """As much of a message as tells the device which row is meant, whatever else is wrong with it."""

    device: str
    stream: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}$")]
    seq: Annotated[int, msgspec.Meta(ge=1, le=_INT63)]


def read(delivery: Delivery) -> list[Piece]:
    """What is in a delivery; never raises, for whatever is wrong becomes a `Refused`."""
    try:
        topic = topics.parse(delivery.topic)
        if topic.direction != "up":
            raise WireError("topic", f"{delivery.topic!r} is the cloud's to publish on")
        if topic.leaf in ("state", "health"):
            return [_status(delivery, topic)]
        members = wire.split(delivery.payload)
    except WireError as error:
        return [Refused(delivery.topic, error.reason, error.detail, delivery.payload)]
    return [_message(delivery.topic, topic, raw) for raw in members]


def _status(delivery: Delivery, topic: topics.Topic) -> Status:
    kind: type[State | Health] = State if topic.leaf == "state" else Health
    record = wire.decode(delivery.payload, kind)
    if record.device != topic.device:
        raise WireError("device", f"topic says {topic.device!r}, message says {record.device!r}")
    return Status(topic, record, delivery.retained)


def _message(topic_text: str, topic: topics.Topic, raw: bytes) -> Piece:
    try:
        return Item(topic, raw, wire.decode_message(raw, topic.device), hashlib.sha256(raw).hexdigest())
    except WireError as error:
        refused = Refused(topic_text, error.reason, error.detail, raw, topic)
        if error.reason in ("oversize", "depth"):  # not to be parsed, not even for its envelope
            return refused
        try:
            envelope = msgspec.json.decode(raw, type=_Envelope)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return refused
        if envelope.device != topic.device:
            return refused
        return replace(refused, stream=envelope.stream, seq=envelope.seq)


class Intake:
    """Pieces into rows, one transaction for many of them."""

    def __init__(self, store: Store, config: IngestConfig, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._store = store
        self._config = config
        self._now_ns = now_ns
        self.counts: Counter[str] = Counter()

    def take(self, pieces: Sequence[Piece]) -> list[Settled]:
        """Commit the pieces and say how far their streams have come. StoreBusy: nothing was kept.

        A piece that the database itself will not hold is set aside as a dead letter; the others are not held up.
        """
        try:
            return self._commit(pieces)
        except _POISON as error:
            if len(pieces) > 1:
                return [settled for piece in pieces for settled in self.take([piece])]
            log.error("the database refuses a message: %s", error)
            return self._commit([_unstorable(pieces[0], error)])

    def _commit(self, pieces: Sequence[Piece]) -> list[Settled]:
        # Rows are written once, at the end: nothing asked in between has to see them.
        with self._store.write() as session, session.no_autoflush:
            transaction = _Transaction(session, self._store, self._config, self._now_ns())
            settled = transaction.run(pieces)
        self.counts.update(transaction.counts)
        return settled


class _Transaction:
    """What one transaction does, from looking up the devices to trimming the tables."""

    def __init__(self, session: Session, store: Store, config: IngestConfig, now_ns: int) -> None:
        self._session = session
        self._store = store
        self._config = config
        self._now_ns = now_ns
        self._devices: dict[str, Device] = {}
        self._alerts: dict[str, Alert] = {}
        self._changed: dict[str, None] = {}  # ids of alerts, in order
        self._dead: list[dict[str, Any]] = []
        self._losses: list[dict[str, Any]] = []
        self._points: list[dict[str, Any]] = []
        self._effects: list[dict[str, Any]] = []
        self.counts: Counter[str] = Counter()

    def run(self, pieces: Sequence[Piece]) -> list[Settled]:
        known = self._admit(pieces)
        rows = [piece for piece in known if not isinstance(piece, Status) and _row_of(piece)[2]]
        new, settled = self._receive(rows)
        self._load_alerts(new)
        for piece in known:
            if isinstance(piece, Status):
                self._status(piece)
            elif isinstance(piece, Refused) and (not piece.stream or id(piece) in new):
                self._bury(piece)
        for piece in new.values():
            if isinstance(piece, Item):
                self._body(piece)
        progress = self._progress(settled, [piece for piece in new.values() if isinstance(piece, Item)])
        self._write()
        return progress

    def _admit(self, pieces: Sequence[Piece]) -> list[Piece]:
        """Pieces of enrolled devices; the rest is buried. What no device is named for is buried later."""
        names = {piece.topic.device for piece in pieces if piece.topic is not None}
        self._store.lock_devices(self._session, names)
        found = self._session.execute(sa.select(Device).where(Device.name.in_(names))).scalars()
        self._devices = {device.name: device for device in found}
        known: list[Piece] = []
        for piece in pieces:
            problem = "" if piece.topic is None else self._problem(piece.topic)
            if problem:
                self._bury(_refuse(piece, "device", problem))
            else:
                known.append(piece)
            if piece.topic is not None and not problem and not (isinstance(piece, Status) and piece.retained):
                self._seen(self._devices[piece.topic.device])
        return known

    def _seen(self, device: Device) -> None:
        if device.seen_ns is None or self._now_ns - device.seen_ns >= SEEN_EVERY_NS:
            device.seen_ns = self._now_ns

    def _problem(self, topic: topics.Topic) -> str:
        device = self._devices.get(topic.device)
        if device is None:
            return f"device {topic.device!r} is not enrolled"
        if device.revoked_ns is not None:
            return f"device {topic.device!r} was revoked"
        return "" if device.site == topic.site else f"device {topic.device!r} belongs to site {device.site!r}"

    def _receive(self, rows: Sequence[Item | Refused]) -> tuple[dict[int, Item | Refused], list[Item | Refused]]:
        """The rows that were not here before, by id(), and all that may be acknowledged."""
        first: dict[tuple[str, str, int], Item | Refused] = {}
        again: list[Item | Refused] = []
        for piece in rows:
            if first.setdefault(_row_of(piece), piece) is not piece:
                again.append(piece)
        inserted: set[tuple[str, str, int]] = set()
        if first:
            statement = self._store.insert(Received).on_conflict_do_nothing()
            keys = statement.returning(Received.device, Received.stream, Received.seq)
            values = [self._received(piece) for piece in first.values()]
            inserted = {(device, stream, seq) for device, stream, seq in self._session.execute(keys, values)}
        again += [piece for key, piece in first.items() if key not in inserted]
        self._compare(again)
        self.counts["received"] += len(inserted)
        new = {id(piece): piece for key, piece in first.items() if key in inserted}
        return new, list(rows)

    def _received(self, piece: Item | Refused) -> dict[str, Any]:
        device, stream, seq = _row_of(piece)
        row = {"device": device, "stream": stream, "seq": seq, "received_ns": self._now_ns}
        if isinstance(piece, Item):
            kind = type(piece.message.body).__name__.lower()
            return {**row, "body_hash": piece.hash, "event_id": piece.message.id, "kind": kind, "body": piece.raw}
        body_hash = hashlib.sha256(piece.payload).hexdigest()
        return {**row, "body_hash": body_hash, "event_id": "", "kind": "refused", "body": b""}

    def _compare(self, again: Sequence[Item | Refused]) -> None:
        """The same key must mean the same bytes; if not, both are kept."""
        held = self._held(again)
        for piece in again:
            device, stream, seq = _row_of(piece)
            payload = piece.raw if isinstance(piece, Item) else piece.payload
            if held[device, stream, seq] == hashlib.sha256(payload).hexdigest():
                self.counts["duplicates"] += 1
                continue
            self.counts["conflicts"] += 1
            self._lose(device, stream, "stream_conflict", first=seq, last=seq, count=1, payload=payload)

    def _held(self, pieces: Sequence[Item | Refused]) -> dict[tuple[str, str, int], str]:
        """Hashes of the rows that are here, by their keys; one question for each stream."""
        seqs: dict[tuple[str, str], list[int]] = {}
        for piece in pieces:
            device, stream, seq = _row_of(piece)
            seqs.setdefault((device, stream), []).append(seq)
        held: dict[tuple[str, str, int], str] = {}
        for (device, stream), wanted in seqs.items():
            query = sa.select(Received.seq, Received.body_hash).where(
                Received.device == device, Received.stream == stream, Received.seq.in_(wanted)
            )
            held |= {(device, stream, seq): body_hash for seq, body_hash in self._session.execute(query)}
        return held

    def _load_alerts(self, new: dict[int, Item | Refused]) -> None:
        ids = {piece.message.id for piece in new.values() if isinstance(piece, Item)}
        if ids:
            found = self._session.execute(sa.select(Alert).where(Alert.id.in_(ids))).scalars()
            self._alerts = {alert.id: alert for alert in found}

    def _status(self, piece: Status) -> None:
        device = self._devices[piece.topic.device]
        record = msgspec.to_builtins(piece.record)
        if isinstance(piece.record, State):
            device.state = record
            device.online = piece.record.online
        else:
            device.health = record
            device.health_ns = self._now_ns
            device.online = True  # whatever will of an earlier connection was heard in between

    def _body(self, item: Item) -> None:
        body = item.message.body
        if isinstance(body, Gap):
            self._lose(
                item.message.device,
                item.message.stream,
                body.reason,
                first=body.first,
                last=body.last,
                count=body.count,
                priority=body.priority,
            )
        elif isinstance(body, Rollout):
            self._rollout(item.message, body)
        else:
            alert = self._alerts.get(item.message.id)
            if alert is not None and alert.device != item.message.device:
                self._bury(_refuse(item, "device", f"event {alert.id} belongs to another device"))
            elif isinstance(body, Event):
                self._event(item, body, alert)
            else:
                self._evidence(item.message, body)

    def _event(self, item: Item, event: Event, alert: Alert | None) -> None:
        if alert is None:
            alert = new_alert(item.topic.site, item.message, event)
            self._session.add(alert)
            self._alerts[alert.id] = alert
            row = {"kind": "alert", "event_id": alert.id, "made_ns": self._now_ns, "attempts": 0, "error": ""}
            self._effects.append(row)
        else:
            merge(alert, item.message, event)
        self._changed[alert.id] = None
        self._points += [{"event_id": alert.id, "step": point.step, "score": point.score} for point in event.trace]
        self._points.append({"event_id": alert.id, "step": event.step, "score": event.score})

    def _evidence(self, message: Message, body: Evidence) -> None:
        blob = self._session.get(Blob, (body.sha256, message.device))
        if blob is not None:
            blob.promised = True
        key = {"event_id": message.id, "device": message.device, "role": body.role}
        values = {name: getattr(body, name) for name in ("sha256", "size", "media_type", "start_ns", "end_ns")}
        values["stored"] = blob is not None
        self._session.execute(
            self._store.insert(EvidenceFile)
            .values(**key, **values)
            .on_conflict_do_update(index_elements=["event_id", "device", "role"], set_=values)
        )
        self._changed[message.id] = None

    def _rollout(self, message: Message, body: Rollout) -> None:
        device = self._devices[message.device]
        last = device.rollout or {}
        if last.get("stream") == message.stream and int(last.get("seq", 0)) > message.seq:
            return  # sent again, late
        device.rollout = {**msgspec.to_builtins(body), "stream": message.stream, "seq": message.seq}
        device.rollout_ns = message.wall_ns

    def _progress(self, settled: Sequence[Item | Refused], new: Sequence[Item]) -> list[Settled]:
        """Move the streams on, and say what each may be told."""
        seqs: dict[tuple[str, str], list[int]] = {}
        for piece in settled:
            device, stream, seq = _row_of(piece)
            seqs.setdefault((device, stream), []).append(seq)
        gaps = [item for item in new if isinstance(item.message.body, Gap)]
        return [
            self._advance(device, stream, found, [gap for gap in gaps if gap.message.stream == stream])
            for (device, stream), found in seqs.items()
        ]

    def _advance(self, device: str, stream: str, seqs: Sequence[int], gaps: Sequence[Item]) -> Settled:
        row = self._session.get(Stream, (device, stream))
        if row is None:
            row = Stream(device=device, stream=stream, upto=0, holes=[])
            self._session.add(row)
        progress = Progress(row.upto, row.holes)
        fresh = sorted(set(seqs))
        for seq in fresh:
            progress.settle(seq, seq)
        for item in gaps:
            for first, last in _given_up(item):
                progress.settle(first, last)
        progress.squeeze(fresh)
        if row.upto != progress.upto:
            row.upto = progress.upto
        if row.holes != progress.holes:
            row.holes = progress.holes
        ack = Ack(stream=stream, upto=progress.upto, holes=progress.as_tuples())
        return Settled(self._devices[device].site, device, ack, len(seqs))

    def _bury(self, refused: Refused) -> None:
        self.counts["dead"] += 1
        self._dead.append(
            {
                "topic": _text(refused.topic_text, 512),
                "reason": refused.reason,
                "detail": _text(refused.detail, 500),
                "payload": refused.payload[:MAX_PACKET],
                "received_ns": self._now_ns,
            }
        )

    def _lose(
        self,
        device: str,
        stream: str,
        reason: str,
        *,
        first: int,
        last: int,
        count: int,
        priority: str = "normal",
        payload: bytes | None = None,
    ) -> None:
        row = {"device": device, "stream": stream, "reason": reason, "first": first, "last": last, "count": count}
        self._losses.append({**row, "priority": priority, "payload": payload, "received_ns": self._now_ns})

    def _write(self) -> None:
        if self._points:
            self._session.execute(self._store.insert(Point).on_conflict_do_nothing(), self._points)
        if self._dead:
            self._session.execute(sa.insert(DeadLetter), self._dead)
            self._trim(DeadLetter, self._config.dead_letters, "dead_letter_evicted")
        if self._losses:
            self._session.execute(sa.insert(Loss), self._losses)
            self._trim(Loss, self._config.losses, "loss_evicted")
        if self._effects:
            self._session.execute(self._store.insert(Effect).on_conflict_do_nothing(), self._effects)
        # Last of all: the counter's row is locked until commit, for every other writer too.
        changed = [self._alerts[id] for id in self._changed if id in self._alerts]
        if changed:
            last = raise_counter(self._session, "change", len(changed))
            for change, alert in enumerate(changed, start=last - len(changed) + 1):
                alert.change = change
        self._session.flush()

    def _trim(self, table: type[DeadLetter] | type[Loss], limit: int, counter: str) -> None:
        newest = self._session.execute(sa.select(sa.func.max(table.id))).scalar() or 0
        stale = sa.delete(table).where(table.id <= newest - limit).returning(table.id)
        evicted = len(self._session.execute(stale).all())
        if evicted:
            raise_counter(self._session, counter, evicted)


def new_alert(site: str, message: Message, event: Event) -> Alert:
    """The alert that a message opens, whatever its phase: an earlier one may come later, or never."""
    body = _plain(event)
    alert = Alert(
        id=message.id,
        change=0,
        site=site,
        device=message.device,
        scene=event.scene,
        label=event.label,
        phase="",
        revision=0,
        started_ns=message.wall_ns,
        started_monotonic_ns=min(event.onset_step * event.step_ms * 1_000_000, _INT63),
        ended_ns=None,
        peak=event.peak,
        best=body,
        body=body,
    )
    merge(alert, message, event)
    return alert


def merge(alert: Alert, message: Message, event: Event) -> None:
    """Bring a message into its alert. Only a newer revision changes what is now; an older one fills in the past."""
    alert.started_ns = min(alert.started_ns, message.wall_ns)
    alert.peak = max(alert.peak, event.peak)
    if event.score > float(alert.best["score"]):
        alert.best = _plain(event)
    heat = event.heat
    whole = heat is not None and len(heat.values) == heat.rows * heat.cols
    if whole and (alert.heat is None or event.score > float(alert.heat["score"])):
        alert.heat = {**msgspec.to_builtins(heat), "score": event.score}
    # `aborted` may repeat the revision that the device remembered last; an end beats what it ends.
    if (event.revision, event.phase in _ENDS) <= (alert.revision, alert.phase in _ENDS):
        return
    alert.phase = event.phase
    alert.revision = event.revision
    alert.wall_quality = message.wall_quality
    alert.score = event.score
    alert.threshold = event.threshold
    alert.origin = event.origin
    alert.calibrating = event.calibrating
    alert.bundle = _text(event.bundle, 64)
    alert.body = _plain(event)
    alert.ended_ns = message.wall_ns if event.phase in _ENDS else None


def _plain(event: Event) -> dict[str, Any]:
    body: dict[str, Any] = msgspec.to_builtins(event)
    for name in ("trace", "heat"):
        body.pop(name, None)
    return body


def _given_up(item: Item) -> Iterable[tuple[int, int]]:
    """Runs of rows that a gap says will never come. A gap can only speak of rows made before it."""
    body = item.message.body
    if isinstance(body, Gap):
        for first, last in body.ranges:
            if 1 <= first <= last < item.message.seq:
                yield first, last


def _row_of(piece: Item | Refused) -> tuple[str, str, int]:
    """Key of the row in the device's outbox; seq 0 if none is known."""
    if isinstance(piece, Item):
        return piece.message.device, piece.message.stream, piece.message.seq
    return (piece.topic.device if piece.topic else ""), piece.stream, piece.seq


def _refuse(piece: Piece, reason: str, detail: str) -> Refused:
    if isinstance(piece, Refused):
        return Refused(piece.topic_text, reason, detail, piece.payload, piece.topic)
    payload = piece.raw if isinstance(piece, Item) else msgspec.json.encode(piece.record)
    return Refused(str(piece.topic), reason, detail, payload, piece.topic)


def _unstorable(piece: Piece, error: Exception) -> Refused:
    refused = _refuse(piece, "refused", f"the database will not hold it: {error}")
    if isinstance(piece, Item):
        return replace(refused, stream=piece.message.stream, seq=piece.message.seq)
    return refused


def _text(words: str, limit: int) -> str:
    """What every database holds as text: no NUL (PostgreSQL), no lone surrogate (SQLite), not endless."""
    return words.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()[:limit]


class Wire(Protocol):
    """What the ingest needs of `broker.Link`."""

    failure: BaseException | None

    def collect(self, timeout_s: float, limit: int, until: float) -> list[Delivery]: ...

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None: ...

    def publish(self, topic: str, payload: bytes) -> bool: ...


class Acks:
    """Acknowledgements on their way: the newest of each stream, not more often than devices need them."""

    def __init__(self, publish: Callable[[str, bytes], bool]) -> None:
        self._publish = publish
        self._pending: OrderedDict[tuple[str, str], Settled] = OrderedDict()
        self._sent: dict[tuple[str, str], float] = {}  # monotonic; entries older than ACK_EVERY_S are dropped

    def note(self, settled: Iterable[Settled]) -> None:
        """A commit moved these streams on."""
        for one in settled:
            key = (one.device, one.ack.stream)
            before = self._pending.get(key)
            self._pending[key] = replace(one, count=one.count + (before.count if before else 0))

    def flush(self, now_s: float, *, everything: bool = False) -> None:
        """Send what is due. One that the link refuses stays until the next time."""
        self._sent = {key: at_s for key, at_s in self._sent.items() if now_s - at_s < ACK_EVERY_S}
        for key, one in list(self._pending.items()):
            if not everything and one.count < ACK_EVERY and key in self._sent:
                continue
            if self._publish(topics.down(one.site, one.device, "ack"), wire.encode(one.ack)):
                del self._pending[key]
                self._sent[key] = now_s

    def wait_s(self, now_s: float, longest_s: float) -> float:
        """How long until something is due."""
        dues = [self._sent.get(key, now_s - ACK_EVERY_S) + ACK_EVERY_S - now_s for key in self._pending]
        return min([longest_s, *(max(0.0, due) for due in dues)])


class Ingest:
    """The service: runs until told to stop; raises when the database stays away or the link breaks."""

    def __init__(self, intake: Intake, link: Wire, config: IngestConfig) -> None:
        self._intake = intake
        self._link = link
        self._config = config
        self._acks = Acks(link.publish)

    def run(self, stop: threading.Event) -> None:
        """Take messages in. Blocking; StoreBusy after a minute without a database, BrokerError on a broken link."""
        committed_s = told_s = time.monotonic()
        while not stop.is_set():
            if self._link.failure is not None:
                raise BrokerError(f"the link to the broker broke: {self._link.failure!r}") from self._link.failure
            # After a quiet time a message is committed at once; under load every `group_ms`, all that came.
            deliveries = self._link.collect(
                self._acks.wait_s(time.monotonic(), 0.25),
                self._config.group_max,
                committed_s + self._config.group_ms / 1000,
            )
            if deliveries:
                if not self._take(deliveries, stop):
                    break
                committed_s = time.monotonic()
            self._acks.flush(time.monotonic())
            if time.monotonic() - told_s >= TELL_S:
                told_s = time.monotonic()
                self._tell()
        self._acks.flush(time.monotonic(), everything=True)
        self._tell()

    def _take(self, deliveries: Sequence[Delivery], stop: threading.Event) -> bool:
        """Commit the deliveries and acknowledge them; False if told to stop before all was committed.

        A delivery may be a batch of hundreds of rows, so a transaction is bounded by rows: after a long silence the
        database was locked for half a minute, and devices sent again what they heard nothing of.
        """
        taken: list[Delivery] = []
        pieces: list[Piece] = []
        for number, delivery in enumerate(deliveries, start=1):
            taken.append(delivery)
            pieces += read(delivery)
            if len(pieces) < ROWS_MAX and number < len(deliveries):
                continue
            settled = self._persist(pieces, stop)
            if settled is None:
                return False
            self._link.acknowledge(taken)
            self._acks.note(settled)
            self._acks.flush(time.monotonic())
            taken, pieces = [], []
        return True

    def _persist(self, pieces: Sequence[Piece], stop: threading.Event) -> list[Settled] | None:
        """Commit, however often it takes; None if told to stop before it worked (nothing is acknowledged then)."""
        give_up_s = time.monotonic() + GIVE_UP_S
        wait_s = RETRY_S[0]
        while True:
            try:
                return self._intake.take(pieces)
            except StoreBusy as error:
                if time.monotonic() > give_up_s:
                    raise
                log.warning("%s; %d messages wait for it", error, len(pieces))
            if stop.wait(random.uniform(0.0, wait_s)):
                return None
            wait_s = min(2 * wait_s, RETRY_S[1])

    def _tell(self) -> None:
        if self._intake.counts:
            log.info(
                "so far: %s", ", ".join(f"{count} {name}" for name, count in sorted(self._intake.counts.items()))
            )
