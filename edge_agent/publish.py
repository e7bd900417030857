"""Rows of the outbox → MQTT v5, until the cloud itself says that it has them.

PUBACK only means that a broker has read a message: Mosquitto with its default persistence lost 5000 of 5000 PUBACKed
messages on `kill -9`. So a row leaves by the cloud's `down/ack`, and what was not acknowledged is sent again: at once
if the broker has forgotten the session or never confirmed the message, after a minute otherwise.

The MQTT client runs without a thread of its own: `Publisher.run` turns its socket, so that callbacks come on the
publishing thread, one after another, and there is nothing to lock, to hang in or to die unseen.
"""

from __future__ import annotations

import contextlib
import logging
import random
import selectors
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edge_agent.clock import Clock
from edge_agent.contract import topics, wire
from edge_agent.contract.event import Ack
from edge_agent.contract.identity import Broker, Identity, is_loopback
from edge_agent.contract.status import Desired, Health, State
from edge_agent.errors import ConfigError, DeliveryError, WireError
from edge_agent.outbox import Outbox, Row

_log = logging.getLogger(__name__)

#: What `Publisher.counters` counts. `unheard`: the broker took a message and had no subscriber for it.
COUNTERS = (
    "connects",
    "failures",
    "watchdog",
    "messages",
    "rows",
    "acks",
    "refused",
    "quarantined",
    "unheard",
    "down_refused",
)
WINDOW = 64  #: messages that wait for the cloud's acknowledgement
WINDOW_ROWS = 2048  #: rows in them: what the cloud commits in one go after a long silence must stay short
BATCH_ROWS = 256
KEEPALIVE_S = 20  #: the last will comes one and a half of these after a silent death
SESSION_EXPIRY_S = 24 * 3600
CONNECT_TIMEOUT_S = 3.0  #: for TCP and again for TLS; a stop waits for it
ANSWER_TIMEOUT_S = 10.0  #: for CONNACK and SUBACK
RESEND_S = 60.0
FLUSH_S = 2.0
GOODBYE_S = 0.5
BACKOFF_CAP_S = 30.0
MAX_REFUSALS = 5
_MAX_HELD = 1024  #: refused rows that wait for another try; no new ones are sent beyond
_MAX_RESEND_S = 600.0  #: while nothing at all is acknowledged
_TURN_S = 0.2  #: how long a stop may go unnoticed
_BATCH_BYTES = 256 * 1024  #: of JSON: about 40 kB in a frame
_TOPIC_OVERHEAD = 16  #: bytes of a PUBLISH beside topic and payload
_NOBODY_LISTENS = 0x10
_NOT_AUTHORISED = 0x87
_QUOTA_EXCEEDED = 0x97
#: Ends of a connection that a message may have caused: malformed, protocol error, topic, too large, payload format.
#: Mosquitto 2.0 says "too large" in a PUBACK, where MQTT knows no such code: paho takes it for a protocol error.
_FAULTS = frozenset({0x81, 0x82, 0x90, 0x95, 0x99})


class Publisher:
    """Sends what the outbox holds, publishes the device's state, hears the cloud's acknowledgements.

    state       what the retained birth message says; asked once a second, a change is published
    on_desired  called on the publishing thread with the cloud's hint; must return at once
    resend_s    how long a message may go unacknowledged before it is sent again and the socket is dropped
    flush_s     how long a stop may take in all; the last half second of it is for saying good-bye

    ConfigError for a broker without TLS off loopback, or a CA that is none.
    """

    def __init__(
        self,
        identity: Identity,
        outbox: Outbox,
        clock: Clock,
        state: Callable[[], State],
        on_desired: Callable[[Desired], None],
        *,
        resend_s: float = RESEND_S,
        flush_s: float = FLUSH_S,
        backoff_cap_s: float = BACKOFF_CAP_S,
    ) -> None:
        self._identity = identity
        self._tls = _tls(identity.broker)
        self._outbox = outbox
        self._clock = clock
        self._state = state
        self._on_desired = on_desired
        self._resend_s = resend_s
        self._flush_s = flush_s
        self._backoff_cap_s = backoff_cap_s
        self._counts: Counter[str] = Counter()
        self._window = Window(resend_s)
        self._stream = ""
        self._heard = False  #: an acknowledgement came on this connection
        self._connected_s = 0.0
        self._progress_s = 0.0  #: when one came last, or the window was last empty
        self._accepted = False  #: the broker took rows on this connection
        self._unheard = 0  #: messages in a row that nobody listened to
        self._pause_s = 0.0  #: until when no rows are sent for that reason
        self._health: Health | None = None
        self._wake_fd: socket.socket | None = None
        self.connected = False
        self.error = ""  #: why the last connection ended
        outbox.listen(self.wake)

    @property
    def counters(self) -> Mapping[str, int]:
        """Totals since start (`COUNTERS`) and `in_flight`: messages that wait for an acknowledgement now."""
        return {**{name: self._counts[name] for name in COUNTERS}, "in_flight": self._window.messages}

    def publish_health(self, health: Health) -> None:
        """Send the heartbeat with the next turn; an older one that has not gone out is replaced. Any thread."""
        self._health = health
        self.wake()

    def wake(self) -> None:
        """Look at the outbox now. Any thread; returns at once."""
        waker = self._wake_fd
        if waker is not None:
            with contextlib.suppress(OSError):  # full: it is awake; closed: it is gone
                waker.send(b"\0")

    def run(self, stop: threading.Event) -> None:
        """Publish until told to stop: then flush for `flush_s`, say that the device is offline, and return.

        StorageError if the outbox can no longer be read or written.
        """
        failures = 0
        self._window = Window(self._resend_s)
        self._stream = self._outbox.stream
        waiting, self._wake_fd = socket.socketpair()
        with waiting, self._wake_fd:
            waiting.setblocking(False)
            self._wake_fd.setblocking(False)
            while not stop.is_set():
                self._heard = self._accepted = False
                try:
                    with _Link(self._identity, self._tls, waiting) as link:
                        self._serve(link, stop)
                except DeliveryError as error:
                    lasted_s = self._now_s() - self._connected_s if self.connected else 0.0
                    failures = 0 if self._heard or lasted_s > BACKOFF_CAP_S else failures + 1
                    self.error = str(error)
                    self._counts["failures"] += 1
                    if isinstance(error, _Severed) and error.code in _FAULTS:
                        self._refuse(self._window.suspects(), str(error))
                    _log.warning("broker %s:%d: %s", self._identity.broker.host, self._identity.broker.port, error)
                    stop.wait(random.uniform(0.0, min(self._backoff_cap_s, 0.25 * 2.0 ** min(failures, 10))))
                finally:
                    self.connected = False
            self._wake_fd = None

    def _serve(self, link: _Link, stop: threading.Event) -> None:
        """One connection, from CONNECT to good-bye. DeliveryError when it breaks."""
        welcome = self._connect(link, stop)
        if welcome is None:
            return
        self.connected, self.error, self._connected_s = True, "", self._now_s()
        self._counts["connects"] += 1
        self._window.connected(min(WINDOW, welcome.receive_maximum), welcome.session_present)
        self._progress_s = self._now_s()
        birth: State | None = None
        looked_s = stop_s = 0.0
        while not stop_s or (self._now_s() < stop_s and self._outbox.counters["rows"]):
            if stop.is_set() and not stop_s:
                stop_s = self._now_s() + max(0.0, self._flush_s - GOODBYE_S)
            if self._now_s() - looked_s >= 1.0:
                looked_s = self._now_s()
                if (state := self._state()) != birth:
                    birth = state
                    link.publish("state", wire.encode(state), retain=True)
            self._ship(link, welcome.maximum_packet)
            for signal in link.turn(0.05 if stop_s else _TURN_S):
                self._take(signal)
            self._watch()
        self._say_goodbye(link)

    def _connect(self, link: _Link, stop: threading.Event) -> _Welcome | None:
        """Connect and subscribe; None if told to stop meanwhile."""
        link.connect()
        welcome: _Welcome | None = None
        deadline_s = self._now_s() + ANSWER_TIMEOUT_S
        subscribed = False
        while not (welcome and subscribed):
            if stop.is_set():
                return None
            if self._now_s() > deadline_s:
                raise DeliveryError(f"no {'SUBACK' if welcome else 'CONNACK'} within {ANSWER_TIMEOUT_S:.0f} s")
            for signal in link.turn(_TURN_S):
                if isinstance(signal, _Welcome):
                    welcome = signal
                subscribed |= isinstance(signal, _Subscribed)
                self._take(signal)
        return welcome

    def _ship(self, link: _Link, maximum_packet: int) -> None:
        if self._outbox.stream != self._stream:  # damage: the old rows are gone, and seq begins again
            self._stream = self._outbox.stream
            self._window.forget()
        health, self._health = self._health, None
        if health is not None:
            link.publish("health", wire.encode(health), qos=0)
        while self._window.has_room() and self._now_s() >= self._pause_s:
            if not self._accepted and self._window.unconfirmed:
                return  # a backlog goes out once the first of it was taken, and somebody listens
            waiting = self._outbox.batch(self._window.cursor, BATCH_ROWS, _BATCH_BYTES)
            if not waiting:
                return
            rows = self._window.sendable(waiting)
            if not rows:  # all of them are on their way; the cursor has moved past them
                continue
            largest = min(maximum_packet - link.overhead(rows[0].leaf), wire.MAX_PAYLOAD)
            payload, taken = packed(rows, largest)
            if payload is None:
                self._quarantine(rows[0].seq, f"larger than the broker's limit of {maximum_packet} bytes")
                continue
            mid = link.publish(rows[0].leaf, payload)
            self._window.sent(mid, [row.seq for row in rows[:taken]], self._now_s())
            self._counts["messages"] += 1
            self._counts["rows"] += taken

    def _take(self, signal: _Signal) -> None:
        if isinstance(signal, _Published):
            self._published(signal)
        elif isinstance(signal, _Arrived):
            try:
                self._arrived(signal)
            except WireError as error:
                self._counts["down_refused"] += 1
                _log.warning("message on %s refused: %s", signal.topic, error)

    def _published(self, signal: _Published) -> None:
        if signal.code == _NOBODY_LISTENS:
            self._wait_for_listeners(self._window.refused(signal.mid))
            return
        if signal.code < 0x80:
            if self._window.taken(signal.mid):
                self._accepted, self._unheard = True, 0
            return
        seqs = self._window.refused(signal.mid)
        if not seqs:
            _log.warning("the broker refuses the device's state: %s. Check its ACL", signal.words)
        elif signal.code in {_NOT_AUTHORISED, _QUOTA_EXCEEDED} and not self._accepted:
            # The broker will have nothing of ours now: no fault of the message, so none may be put away for it.
            self._window.release(seqs)
            raise DeliveryError(
                f"the broker refuses to take events: {signal.words}. Check the device's ACL and quota"
            )
        else:
            self._refuse(seqs, signal.words)

    def _wait_for_listeners(self, seqs: list[int]) -> None:
        """The broker threw the rows away, for the ingest has not come back yet after it lost its memory."""
        if seqs:
            self._window.release(seqs)
            self._accepted = False
            self._counts["unheard"] += 1
            self._pause_s = self._now_s() + random.uniform(
                0.0, min(BACKOFF_CAP_S, 0.5 * 2.0 ** min(self._unheard, 10))
            )
            self._unheard += 1

    def _refuse(self, seqs: list[int], words: str) -> None:
        """Try again later, one by one; put aside what was refused often enough."""
        self._counts["refused"] += bool(seqs)
        for seq in self._window.hold(seqs, self._now_s(), random.random()):
            self._quarantine(seq, words)

    def _arrived(self, signal: _Arrived) -> None:
        leaf = topics.parse(signal.topic).leaf
        if leaf == "desired":
            if signal.payload:  # a retained message is removed by an empty one
                self._on_desired(wire.decode(signal.payload, Desired))
            return
        ack = wire.decode_ack(signal.payload)
        self._counts["acks"] += 1
        self._outbox.acknowledge(ack)
        if ack.stream == self._stream and self._window.acknowledged(ack):
            self._heard = True
            self._progress_s = self._now_s()

    def _quarantine(self, seq: int, reason: str) -> None:
        _log.error("row %d goes to quarantine: %s", seq, reason)
        self._outbox.quarantine(self._stream, seq, reason)
        self._window.drop(seq)
        self._counts["quarantined"] += 1

    def _watch(self) -> None:
        """Drop a connection on which everything seems well and nothing is acknowledged."""
        now_s = self._now_s()
        oldest_s = self._window.oldest_s
        if oldest_s is None:
            self._progress_s = now_s
        elif now_s - max(self._progress_s, oldest_s) > self._window.resend_s:
            self._counts["watchdog"] += 1
            self._window.start_over()
            silent_s = now_s - self._progress_s
            raise DeliveryError(f"nothing was acknowledged for {silent_s:.0f} s. Is `cloud-sync ingest` running?")
        self._window.tick(now_s)

    def _say_goodbye(self, link: _Link) -> None:
        mid = link.publish("state", wire.encode(_offline(self._identity)), retain=True)
        deadline_s = self._now_s() + GOODBYE_S
        while self._now_s() < deadline_s:
            for signal in link.turn(0.05):
                if isinstance(signal, _Published) and signal.mid == mid:
                    return
                self._take(signal)

    def _now_s(self) -> float:
        return self._clock.monotonic_ns() / 1e9


@dataclass(slots=True)
class _Shipment:
    seqs: list[int]  #: not acknowledged yet
    sent_s: float
    mid: int | None  #: None after the connection it was sent on
    taken: bool = False  #: PUBACK came


class Window:
    """What is on its way: which rows may be sent, when they must be sent again. Rules without I/O; times in s."""

    def __init__(self, resend_s: float) -> None:
        self.size = WINDOW
        self.resend_s = resend_s
        self.cursor = 0  #: rows up to here were sent, are held, or are gone
        self._first_resend_s = resend_s
        self._shipments: list[_Shipment] = []
        self._flying: set[int] = set()
        self._refusals: dict[int, int] = {}  #: by seq; such a row travels alone
        self._held: dict[int, float] = {}  #: refused seq → when to try again

    @property
    def messages(self) -> int:
        """Messages that wait for the cloud."""
        return len(self._shipments)

    @property
    def unconfirmed(self) -> int:
        """Those that the broker has not confirmed either."""
        return sum(not shipment.taken for shipment in self._shipments)

    @property
    def oldest_s(self) -> float | None:
        """When the oldest of them was sent."""
        return min((shipment.sent_s for shipment in self._shipments), default=None)

    def has_room(self) -> bool:
        """Whether another message may be sent now."""
        return len(self._shipments) < self.size and len(self._flying) < WINDOW_ROWS and len(self._held) < _MAX_HELD

    def connected(self, size: int, session_present: bool) -> None:
        """A new connection: without a session the broker has forgotten everything, so all of it goes again.
        With one, only what the broker never confirmed does."""
        self.size = max(1, size)
        self._return([s for s in self._shipments if not (session_present and s.taken)])
        for shipment in self._shipments:
            shipment.mid = None

    def forget(self) -> None:
        """Start again with another stream."""
        self._shipments, self._flying, self._refusals, self._held, self.cursor = [], set(), {}, {}, 0

    def sendable(self, rows: Sequence[Row]) -> list[Row]:
        """The first rows that may go now in one message: of one leaf; a row that was refused before goes alone."""
        chosen: list[Row] = []
        for row in rows:
            if row.seq in self._flying or row.seq in self._held:
                if not chosen:
                    self.cursor = row.seq
                continue
            alone = row.seq in self._refusals
            if chosen and (alone or row.leaf != chosen[0].leaf):
                break
            chosen.append(row)
            if alone:
                break
        return chosen

    def sent(self, mid: int, seqs: list[int], now_s: float) -> None:
        """The rows left as message `mid`."""
        self._shipments.append(_Shipment(seqs, now_s, mid))
        self._flying.update(seqs)
        self.cursor = seqs[-1]

    def taken(self, mid: int) -> bool:
        """PUBACK: the broker has the message. Whether it was one of ours."""
        found = next((s for s in self._shipments if s.mid == mid), None)
        if found is not None:
            found.taken = True
        return found is not None

    def refused(self, mid: int) -> list[int]:
        """The broker will not have the message; its rows, which are no longer on their way."""
        found = [s for s in self._shipments if s.mid == mid]
        self._remove(found)
        return [seq for shipment in found for seq in shipment.seqs]

    def suspects(self) -> list[int]:
        """The rows of the message that the connection broke over: brokers take messages in order, so it was the
        oldest that was not confirmed. They are no longer on their way."""
        oldest = [s for s in self._shipments if s.mid is not None and not s.taken][:1]
        self._remove(oldest)
        return [seq for shipment in oldest for seq in shipment.seqs]

    def hold(self, seqs: Sequence[int], now_s: float, draw: float) -> list[int]:
        """Let refused rows wait, and travel alone from now on; those refused often enough are returned instead.

        `draw` in 0..1 spreads the wait (full jitter, doubling from 1 s, at most 30 s).
        """
        given_up = []
        for seq in seqs:
            # A batch says nothing of its rows: each is only blamed for what it was refused for alone.
            count = self._refusals.get(seq, 0) + (len(seqs) == 1)
            self._refusals[seq] = count
            if count >= MAX_REFUSALS:
                given_up.append(seq)
            else:
                self._held[seq] = now_s + draw * min(BACKOFF_CAP_S, 2.0**count)
        return given_up

    def release(self, seqs: Sequence[int]) -> None:
        """Rows that did not get out go again with the next turn."""
        self.cursor = min([self.cursor, *(seq - 1 for seq in seqs)])

    def drop(self, seq: int) -> None:
        """A row that is no longer in the outbox."""
        self._refusals.pop(seq, None)
        self._held.pop(seq, None)

    def acknowledged(self, ack: Ack) -> bool:
        """Whether the cloud's word covers anything that was on its way."""
        done = []
        moved = False
        for shipment in self._shipments:
            left = _uncovered(ack, shipment.seqs)
            if len(left) == len(shipment.seqs):
                continue
            moved = True
            self._flying.difference_update(shipment.seqs)
            self._flying.update(left)
            shipment.seqs = left
            if not left:
                done.append(shipment)
        self._remove(done)
        if moved:
            self.resend_s = self._first_resend_s
            for seq in [seq for seq in self._refusals if not _uncovered(ack, [seq])]:
                self.drop(seq)
        return moved

    def tick(self, now_s: float) -> None:
        """Take back what has waited too long, and what was held long enough."""
        self._return([s for s in self._shipments if now_s - s.sent_s > self.resend_s])
        due = [seq for seq, at_s in self._held.items() if at_s <= now_s]
        for seq in due:
            del self._held[seq]
        self.release(due)

    def start_over(self) -> None:
        """Nothing at all is acknowledged: send everything again, once, and wait twice as long the next time,
        for what nobody takes only fills the broker's queues."""
        self._return(self._shipments)
        self.resend_s = min(_MAX_RESEND_S, 2 * self.resend_s)

    def _return(self, shipments: Sequence[_Shipment]) -> None:
        self.release([shipment.seqs[0] for shipment in shipments])
        self._remove(list(shipments))

    def _remove(self, shipments: Iterable[_Shipment]) -> None:
        for shipment in shipments:
            self._shipments.remove(shipment)
            self._flying.difference_update(shipment.seqs)


def packed(rows: Sequence[Row], largest: int) -> tuple[bytes | None, int]:
    """A payload of at most `largest` bytes with as many of the rows as fit, and how many those are; None where not
    even the first does. A lone row goes as it is, several as a zstd frame."""
    count = len(rows)
    while count > 1:
        with contextlib.suppress(WireError):  # too much for one frame
            frame = wire.encode_batch([row.payload for row in rows[:count]])
            if len(frame) <= largest:
                return frame, count
        count //= 2
    if len(rows[0].payload) <= largest:
        return rows[0].payload, 1
    frame = wire.encode_batch([rows[0].payload])
    return (frame, 1) if len(frame) <= largest else (None, 1)


def _uncovered(ack: Ack, seqs: list[int]) -> list[int]:
    """Those of the rising `seqs` that the acknowledgement does not cover."""
    if seqs[0] > ack.upto:
        return seqs
    holes = [(first, last) for first, last in ack.holes if last >= seqs[0] and first <= seqs[-1]]
    if not holes and seqs[-1] <= ack.upto:
        return []
    return [seq for seq in seqs if seq > ack.upto or any(first <= seq <= last for first, last in holes)]


@dataclass(frozen=True, slots=True)
class _Welcome:
    session_present: bool
    receive_maximum: int
    maximum_packet: int  #: bytes


@dataclass(frozen=True, slots=True)
class _Subscribed:
    pass


@dataclass(frozen=True, slots=True)
class _Lost:
    words: str


@dataclass(frozen=True, slots=True)
class _Published:
    mid: int
    code: int
    words: str


@dataclass(frozen=True, slots=True)
class _Arrived:
    topic: str
    payload: bytes


_Signal = _Welcome | _Subscribed | _Lost | _Published | _Arrived


class _Severed(DeliveryError):
    """A connection is gone; `code` is MQTT's reason."""

    def __init__(self, words: str, code: int) -> None:
        super().__init__(words)
        self.code = code


class _Link:
    """One connection to the broker, turned by hand. Callbacks only append to `_signals`, which every turn empties:
    paho reads at most one packet per message in flight in a turn, so the list is bounded by the window."""

    def __init__(self, identity: Identity, tls: ssl.SSLContext | None, waker: socket.socket) -> None:
        self._identity = identity
        self._signals: list[_Signal] = []
        self._waker = waker
        self._selector = selectors.PollSelector()
        self._selector.register(waker, selectors.EVENT_READ)
        self._why, self._code = "the connection is gone", 0
        # A client for each connection: paho would send again on its own, out of our sight.
        self._client = client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=identity.device,
            protocol=mqtt.MQTTv5,
            reconnect_on_failure=False,
        )
        client.username_pw_set(identity.broker.username, identity.broker.password)
        client.connect_timeout = CONNECT_TIMEOUT_S
        # The window is ours (at most ReceiveMaximum); paho's own default of 20 would hold messages back.
        client.max_inflight_messages_set(65_535)
        if tls is not None:
            client.tls_set_context(tls)
        client.will_set(self._topic("state"), wire.encode(_offline(identity)), qos=1, retain=True)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_publish = self._on_publish
        client.on_message = self._on_message

    def __enter__(self) -> _Link:
        return self

    def __exit__(self, *_error: object) -> None:
        """Part in order if the line allows it (then no last will is sent), and close in any case."""
        self._client.disconnect()
        left = self._client.socket()
        if left is not None:
            left.close()
        self._selector.close()

    def connect(self) -> None:
        """Send CONNECT. DeliveryError if nobody is there; blocks for a name look-up and twice CONNECT_TIMEOUT_S."""
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = SESSION_EXPIRY_S
        properties.MaximumPacketSize = 2 * wire.MAX_PAYLOAD
        broker = self._identity.broker
        try:
            self._client.connect(
                broker.host, broker.port, keepalive=KEEPALIVE_S, clean_start=False, properties=properties
            )
        except (OSError, ValueError) as error:
            raise DeliveryError(f"cannot connect: {error}") from error
        sock = self._client.socket()
        if sock is None:
            raise DeliveryError(self._why)
        self._selector.register(sock, selectors.EVENT_READ)

    def publish(self, leaf: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> int:
        """Hand a message to the socket; its number, which a `_Published` will carry. DeliveryError if it is gone."""
        info = self._client.publish(self._topic(leaf), payload, qos=qos, retain=retain)
        if info.rc != mqtt.MQTT_ERR_SUCCESS:
            raise _Severed(f"{self._why} ({mqtt.error_string(info.rc)})", self._code)
        return info.mid

    def overhead(self, leaf: str) -> int:
        """Bytes of a packet beside its payload."""
        return len(self._topic(leaf)) + _TOPIC_OVERHEAD

    def turn(self, timeout_s: float) -> list[_Signal]:
        """Wait for the socket or a wake, read and write what is there; what has happened. DeliveryError at the end
        of the connection."""
        sock = self._client.socket()
        if sock is None:
            raise _Severed(self._why, self._code)
        # What TLS has decrypted already does not show on the socket.
        pending = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._client.want_write() else 0)
        self._selector.modify(sock, wanted)
        ready = {key.fileobj: events for key, events in self._selector.select(0.0 if pending else timeout_s)}
        if self._waker in ready:
            with contextlib.suppress(BlockingIOError):
                while self._waker.recv(4096):
                    pass
        events = ready.get(sock, 0)
        if pending or events & selectors.EVENT_READ:
            self._client.loop_read()
        if events & selectors.EVENT_WRITE:
            self._client.loop_write()
        self._client.loop_misc()  # keepalive
        signals, self._signals = self._signals, []
        for signal in signals:
            if isinstance(signal, _Lost):
                raise DeliveryError(signal.words)
        return signals

    def _topic(self, leaf: str) -> str:
        return topics.up(self._identity.site, self._identity.device, leaf)

    def _on_connect(
        self, client: mqtt.Client, _data: object, flags: mqtt.ConnectFlags, code: ReasonCode, found: Properties | None
    ) -> None:
        if code.is_failure:
            self._signals.append(_Lost(f"the broker refuses the device: {code}. Is it enrolled?"))
            return
        receive_maximum = getattr(found, "ReceiveMaximum", 65_535)
        self._signals.append(
            _Welcome(bool(flags.session_present), receive_maximum, getattr(found, "MaximumPacketSize", 268_435_455))
        )
        site, device = self._identity.site, self._identity.device
        client.subscribe([(topics.down(site, device, leaf), 1) for leaf in topics.DOWN_LEAVES])

    def _on_subscribe(
        self, _client: mqtt.Client, _data: object, _mid: int, codes: list[ReasonCode], _found: Properties | None
    ) -> None:
        refused = [leaf for leaf, code in zip(topics.DOWN_LEAVES, codes, strict=False) if code.is_failure]
        if "ack" in refused:
            self._signals.append(_Lost("the broker does not let the device hear its acknowledgements. Check its ACL"))
        else:
            self._signals.append(_Subscribed())

    def _on_publish(
        self, _client: mqtt.Client, _data: object, mid: int, code: ReasonCode, _found: Properties | None
    ) -> None:
        self._signals.append(_Published(mid, code.value, str(code)))

    def _on_message(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        self._signals.append(_Arrived(message.topic, bytes(message.payload)))

    def _on_disconnect(
        self,
        _client: mqtt.Client,
        _data: object,
        _flags: mqtt.DisconnectFlags,
        code: ReasonCode,
        _found: Properties | None,
    ) -> None:
        self._why, self._code = f"the connection is gone: {code}", code.value


def _offline(identity: Identity) -> State:
    return State(device=identity.device, online=False)


def _tls(broker: Broker) -> ssl.SSLContext | None:
    """What to trust; None for a plain connection, which may not leave this machine."""
    if not broker.tls:
        if is_loopback(broker.host):
            return None
        raise ConfigError(
            f"TLS is required for {broker.host}: passwords and pictures would travel in the clear", "broker.tls"
        )
    try:
        return ssl.create_default_context(cadata=broker.ca_pem or None)
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(f"no PEM certificate: {error}", "broker.ca_pem") from error
