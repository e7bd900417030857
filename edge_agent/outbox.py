"""The durable queue between the pipeline and the network: what `put` returned survives kill -9, a power cut and a
broker that forgets.

One SQLite file, WAL, `synchronous=FULL`. Callers on any thread hand a piece of work to whichever of them holds the
writer's lock; it commits everything that came while the commit before was running (group commit without a timer,
so a lone event is on disk after one fsync and nobody waits longer than one commit in progress).

Rows leave by the cloud's acknowledgement, by eviction or by quarantine. The last two write a `Gap` in the same
transaction, which is delivered like everything else.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import sqlite3
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from edge_agent.clock import Clock
from edge_agent.contract import wire
from edge_agent.contract.event import LEAF, Ack, Body, Event, Evidence, Gap, Message, Priority, Rollout, priority_of
from edge_agent.errors import StorageError, WireError

_log = logging.getLogger(__name__)

#: Eviction order, lowest first. Gaps stand above `critical`: they are folded, never evicted.
LEVELS: tuple[Priority, ...] = ("bulk", "normal", "critical")
#: What `Outbox.counters` counts.
COUNTERS = (
    "accepted",
    "acknowledged",
    "evicted",
    "gaps",
    "quarantined",
    "turned_away",
    "damaged",
    "disk_full",
    "commits",
    "acks_foreign",
    "acks_refused",
    "uploads_given_up",
    "uploads_dropped",
)
_CRITICAL = 2
_GAP = 3
_MAX_RUNS = 1000  #: runs of seq in one Gap: about 20 kB, far from the wire's limit
_MAX_UPLOADS = 10_000
_MAX_QUARANTINED = 1000
_BITE_ROWS = 512  #: acknowledged rows that leave in one transaction
_BITE_BYTES = 1 << 20  #: evicted in one go
_MAX_GROUP = 1024  #: pieces of work in one transaction
_KEPT_DAMAGED = 2  #: damaged files kept for a person to look at
_RESERVE_RETRY_NS = 10_000_000_000
_NOTHING_FREE = 1 << 20  #: bytes; a disk with less is full
_FORMAT = 1

_SCHEMA = """
CREATE TABLE state (id INTEGER PRIMARY KEY CHECK (id = 1), stream TEXT NOT NULL, seq INTEGER NOT NULL);
CREATE TABLE row (seq INTEGER PRIMARY KEY, level INTEGER NOT NULL, leaf TEXT NOT NULL, size INTEGER NOT NULL,
                  payload BLOB NOT NULL);
CREATE INDEX row_level ON row (level, seq, size);
CREATE TABLE open_event (scene TEXT NOT NULL, label TEXT NOT NULL, onset_step INTEGER NOT NULL, id TEXT NOT NULL,
                         body BLOB NOT NULL, PRIMARY KEY (scene, label));
CREATE TABLE upload (n INTEGER PRIMARY KEY, sha256 TEXT NOT NULL UNIQUE, path TEXT NOT NULL, size INTEGER NOT NULL,
                     media_type TEXT NOT NULL, error TEXT NOT NULL DEFAULT '');
CREATE TABLE quarantine (seq INTEGER PRIMARY KEY, reason TEXT NOT NULL, payload BLOB NOT NULL);
"""

Result = TypeVar("Result")
Connect = Callable[[Path], sqlite3.Connection]


@dataclass(frozen=True, slots=True)
class Row:
    """A message that waits for the cloud: `payload` is what `wire.encode` made, for the up-topic `leaf`."""

    seq: int
    payload: bytes
    leaf: str


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that waits to be stored in the cloud under its hash. The outbox knows its path, never its bytes."""

    sha256: str
    path: Path
    size: int
    media_type: str


def uuid7(wall_ns: int) -> str:
    """A UUIDv7 (RFC 9562 §5.7): 48 bits of Unix milliseconds, then 74 random bits."""
    random = int.from_bytes(os.urandom(10), "big")
    value = (wall_ns // 1_000_000 & (1 << 48) - 1) << 80
    value |= 0x7 << 76 | (random >> 62 & 0xFFF) << 64
    value |= 0b10 << 62 | random & (1 << 62) - 1
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def connect(path: Path) -> sqlite3.Connection:
    """A connection that commits when told to and never waits for another process."""
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)


class Outbox:
    """The device's one durable queue. Every method may be called from any thread; writing blocks for one fsync.

    path           the file; `<path>-wal`, `<path>.lock`, `<path>.reserve` and set-aside files lie beside it
    boot           id of this run of the machine, stamped on every message
    max_bytes      limit on rows; only critical ones may use the last quarter
    reserve_bytes  size of a file that is given up when the disk is full, so that state can still be committed
    connect        how to open the file (a test's way in)

    Opening checks the whole file, sets a damaged one aside (`Gap` with reason `damaged`, new stream) and writes
    `aborted` for every event that was open. StorageError if the file cannot be used, or another process uses it.
    """

    def __init__(
        self,
        path: Path,
        device: str,
        clock: Clock,
        boot: str,
        *,
        max_bytes: int,
        reserve_bytes: int = 0,
        connect: Connect = connect,
    ) -> None:
        self._path = path
        self._clock = clock
        self._reserve = _Reserve(path.with_name(path.name + ".reserve"), reserve_bytes, clock)
        self._envelope = _Envelope(device, boot, clock)
        self._max_bytes = max_bytes
        self._connect = connect
        self._writing = threading.Lock()
        self._reading = threading.Lock()
        self._waiting: deque[_Work] = deque()  # bounded: one piece of work for each calling thread
        self._listeners: list[Callable[[], None]] = []
        self._closed = False
        self._counts: Counter[str] = Counter()  # of this run, over every store it had
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock_fd = _locked(path.with_name(path.name + ".lock"))
        except OSError as error:
            raise StorageError(f"cannot use {path}: {error}. One agent at a time; is the folder writable?") from error
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, self._lock_fd)
            self._store = self._opened()
            undo.callback(self._close_store)
            self._pressed = not self._reserve.restore()  #: the disk is too full for the reserve
            self._abort_open_events()
            undo.pop_all()

    @property
    def stream(self) -> str:
        """Random id made with the file; a new one after damage, with `seq` starting at 1 again."""
        return self._store.stream

    @property
    def counters(self) -> Mapping[str, int]:
        """Totals since the outbox was opened (`COUNTERS`) and present sizes (rows, bytes, ceiling in bytes,
        open_events, uploads)."""
        store = self._store
        tally = store.committed
        totals = self._counts + tally.counts
        return {**{name: totals[name] for name in COUNTERS}, **tally.sizes(), "ceiling": store.ceiling}

    def put(self, event: Event) -> Message:
        """Accept one message of an event; it is on disk when this returns.

        `new` gets a UUIDv7; later phases of the same (scene, label, onset_step) get the same, `end` closes it.
        StorageError if it cannot be accepted: not finite, too large for the wire, no room, disk full.
        """
        return self.put_all((event,))[0]

    def put_all(self, events: Sequence[Event]) -> list[Message]:
        """`put` for several events in one transaction: one fsync, all or none."""
        accepted = self._add(lambda store: [store.put(event) for event in events])
        return [_told(message) for message in accepted]

    def attach(self, event_id: str, evidence: Evidence, file: Path) -> Message:
        """Promise a file of an event: its message and its upload, in one transaction."""
        return _told(self._add(lambda store: store.attach(event_id, evidence, file)))

    def report(self, rollout: Rollout) -> Message:
        """Say how an update goes."""
        return _told(self._add(lambda store: store.append(rollout, uuid7(self._clock.wall_ns()))))

    def batch(self, after_seq: int, limit: int, max_bytes: int = wire.MAX_BATCH) -> list[Row]:
        """Up to `limit` rows with seq > `after_seq`, in order, of at most `max_bytes` together (but at least one)."""
        rows: list[Row] = []
        size = 0
        for seq, payload, leaf in self._read(
            "SELECT seq, payload, leaf FROM row WHERE seq > ? ORDER BY seq LIMIT ?", (after_seq, limit)
        ):
            size += len(payload)
            if rows and size > max_bytes:
                break
            rows.append(Row(seq, payload, leaf))
        return rows

    def acknowledge(self, ack: Ack) -> int:
        """Delete what the cloud has committed; the number of rows that left.

        An acknowledgement of another stream, or beyond the highest seq of this one, deletes nothing and is counted.
        """
        gone = left = self._write(lambda store: store.acknowledge(ack))
        # Bite by bite: a long delete would hold up `put`, and on a full disk its transaction would not fit the WAL.
        while left == _BITE_ROWS:
            left = self._write(lambda store: store.acknowledge(ack))
            gone += left
        return gone

    def quarantine(self, stream: str, seq: int, reason: str) -> None:
        """Take a row that the broker will not have out of the queue, keep its bytes, report it as a Gap."""
        self._write(lambda store: store.quarantine(stream, seq, reason))

    def uploads(self, limit: int = 64) -> list[Upload]:
        """Files that wait for upload, oldest promise first; those given up are not among them."""
        rows = self._read(
            "SELECT sha256, path, size, media_type FROM upload WHERE error = '' ORDER BY n LIMIT ?", (limit,)
        )
        return [Upload(sha256, Path(path), size, media_type) for sha256, path, size, media_type in rows]

    def uploaded(self, sha256: str) -> None:
        """The cloud has the file: forget the upload. The file itself belongs to the evidence store."""
        self._write(lambda store: store.uploaded(sha256))

    def give_up(self, sha256: str, error: str) -> None:
        """Never try this upload again; the reason is kept with it."""
        self._write(lambda store: store.give_up(sha256, error))

    def given_up(self) -> list[tuple[str, str]]:
        """(sha256, reason) of the uploads that were given up, oldest first."""
        rows = self._read("SELECT sha256, error FROM upload WHERE error != '' ORDER BY n", ())
        return [(sha256, error) for sha256, error in rows]

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` after every commit that may have added something, on the thread that committed.
        It must return at once and must not call the outbox."""
        self._listeners.append(listener)

    def close(self) -> None:
        """Let go of the file. May be called twice; writing afterwards raises StorageError."""
        with self._writing, self._reading:
            if not self._closed:
                self._closed = True
                self._close_store()
                os.close(self._lock_fd)

    def _close_store(self) -> None:
        self._store.close()

    def _read(self, sql: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        try:
            return self._fetched(sql, values)
        except sqlite3.OperationalError as error:
            raise StorageError(f"cannot read {self._path}: {error}") from error
        except sqlite3.DatabaseError:
            self._write(lambda store: store.verify())  # sets the file aside if it is damaged indeed
        try:
            return self._fetched(sql, values)
        except sqlite3.Error as error:
            raise StorageError(f"cannot read {self._path}: {error}") from error

    def _fetched(self, sql: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        # A connection of its own: WAL readers neither wait for the writer nor see half a transaction.
        with self._reading:
            if self._closed:
                raise StorageError(f"{self._path} is closed")
            return self._store.reader.execute(sql, values).fetchall()

    def _add(self, task: Callable[[_Store], Result]) -> Result:
        result = self._write(task)
        for listener in self._listeners:
            listener()
        return result

    def _write(self, task: Callable[[_Store], Result]) -> Result:
        work = _Work(task)
        self._waiting.append(work)
        with self._writing:
            while not work.done:  # else whoever held the lock before took it along
                self._commit([self._waiting.popleft() for _ in range(min(len(self._waiting), _MAX_GROUP))])
        if work.error is not None:
            raise work.error
        result: Result = work.result
        return result

    def _commit(self, group: Sequence[_Work]) -> None:
        failed: StorageError | None = StorageError("the transaction that this was part of broke off")
        try:
            if self._closed:
                raise StorageError(f"{self._path} is closed")
            self._attempt(group)
            failed = None
        except StorageError as error:
            failed = error
        finally:  # whatever happens, nobody may wait for ever
            for work in group:
                work.error = work.error or failed
                work.done = True
        if self._pressed and self._reserve.restore():
            self._pressed = False
            self._store.ceiling = self._max_bytes

    def _attempt(self, group: Sequence[_Work]) -> None:
        """Commit the group; once more after making room or after setting a damaged file aside."""
        try:
            self._store.run(group)
        except sqlite3.OperationalError as error:
            if not self._relieved(error):
                raise StorageError(f"cannot write {self._path}: {error}") from error
        except sqlite3.DatabaseError as error:
            self._replace(str(error))
        else:
            return
        try:
            self._store.run(group)
        except sqlite3.Error as error:
            raise StorageError(f"cannot write {self._path}, tried twice: {error}") from error

    def _relieved(self, error: sqlite3.OperationalError) -> bool:
        """Whether the disk was full; then the reserve is given up and rows may only take each other's place."""
        if "full" not in str(error) and shutil.disk_usage(self._path.parent).free > _NOTHING_FREE:
            return False
        room = self._reserve.free()
        self._counts["disk_full"] += 1
        self._pressed = True
        # A quarter of what was freed is for rows; WAL and checkpoints need the rest to commit anything at all.
        self._store.ceiling = min(self._store.ceiling, self._store.tally.total + room // 4)
        self._store.shrink_wal()
        _log.error("disk full at %s: %d bytes of reserve freed; older rows give way to new ones", self._path, room)
        return True

    def _abort_open_events(self) -> None:
        """Close what was open when the device went down, with the last that is known of it."""
        left = self._fetched("SELECT id, body FROM open_event", ())
        group = [_Work(partial(_Store.abort, event_id=event_id, body=body)) for event_id, body in left]
        if group:
            self._commit(group)
        for work in group:
            if work.error is not None:  # no room: it stays open until the next start
                _log.warning("an event stays open: %s", work.error)

    def _opened(self) -> _Store:
        """The file as it is, or a new one in its place if it is damaged."""
        try:
            return self._open()
        except sqlite3.OperationalError as error:
            # On a full disk not even the WAL's index can be made.
            if not self._reserve.free():
                raise StorageError(
                    f"cannot open {self._path}: {error}. Free disk space, check permissions"
                ) from error
            self._counts["disk_full"] += 1
        except sqlite3.DatabaseError as error:
            return self._set_aside(str(error))
        try:
            return self._open()
        except sqlite3.Error as error:
            raise StorageError(f"cannot open {self._path}: {error}. Free disk space") from error

    def _open(self) -> _Store:
        return _Store(self._path, self._connect, self._envelope, self._max_bytes)

    def _replace(self, reason: str) -> None:
        """The same while running; readers wait."""
        with self._reading:
            self._store.close()
            self._counts += self._store.tally.counts
            self._store = self._set_aside(reason)

    def _set_aside(self, reason: str) -> _Store:
        place = _rename_damaged(self._path)
        _log.error("%s is damaged (%s): set aside as %s, a new stream begins", self._path, reason, place)
        self._counts["damaged"] += 1
        try:
            store = self._open()
        except sqlite3.Error as error:
            raise StorageError(f"{self._path} was damaged and set aside as {place}; no new one: {error}") from error
        gap = Gap(first=0, last=0, count=0, priority="critical", reason="damaged")
        store.run([_Work(lambda fresh: fresh.append(gap, uuid7(self._clock.wall_ns())))])
        return store


class _Work:
    """What one caller wants done in a transaction, and what came of it."""

    __slots__ = ("done", "error", "result", "task")

    def __init__(self, task: Callable[[_Store], Any]) -> None:
        self.task = task
        self.result: Any = None
        self.error: StorageError | None = None
        self.done = False


@dataclass(frozen=True, slots=True)
class _Envelope:
    """Everything of a message that is not its body."""

    device: str
    boot: str
    clock: Clock

    def seal(self, stream: str, seq: int, event_id: str, body: Body) -> tuple[Message, bytes]:
        message = Message(
            device=self.device,
            stream=stream,
            seq=seq,
            boot=self.boot,
            id=event_id,
            wall_ns=self.clock.wall_ns(),
            wall_quality=self.clock.wall_quality(),
            monotonic_ns=self.clock.monotonic_ns(),
            body=body,
        )
        try:
            payload = wire.encode(message)
            # msgspec checks types on the way in only, and a row that the cloud must refuse would be sent for ever.
            msgspec.json.decode(payload, type=Message)
        except (WireError, msgspec.ValidationError) as error:
            raise StorageError(f"cannot accept {type(body).__name__.lower()}: {error}") from error
        return message, payload


@dataclass(slots=True)
class _Tally:
    """Sums over the tables, kept in step with the transaction so that nothing is counted by scanning."""

    rows: list[int] = field(default_factory=lambda: [0, 0, 0, 0])  #: by level
    bytes: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    open_events: int = 0
    uploads: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    def copy(self) -> _Tally:
        return _Tally(self.rows[:], self.bytes[:], self.open_events, self.uploads, self.counts.copy())

    @property
    def total(self) -> int:
        return sum(self.bytes)

    def sizes(self) -> dict[str, int]:
        return {
            "rows": sum(self.rows),
            "bytes": self.total,
            "open_events": self.open_events,
            "uploads": self.uploads,
        }


class _Store:
    """The tables and their rules. Knows nothing of threads or full disks; sqlite3's errors come out as they are."""

    def __init__(self, path: Path, connect: Connect, envelope: _Envelope, limit: int) -> None:
        self._open: Callable[[], sqlite3.Connection] = lambda: connect(path)
        self._envelope = envelope
        self._limit = limit
        self.ceiling = limit  #: lower than the limit while the disk is full
        with contextlib.ExitStack() as undo:
            self._db = self._open()
            undo.callback(self._db.close)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            # A WAL of about 2 MB: it must fit in what the reserve leaves, beside the rows.
            self._db.execute("PRAGMA wal_autocheckpoint = 500")
            self._db.execute(f"PRAGMA journal_size_limit = {4 << 20}")
            self._prepare(path)
            _verify(self._db)
            self.reader = self._open()
            undo.callback(self.reader.close)
            self.reader.execute("PRAGMA query_only = ON")
            self.stream: str = self._db.execute("SELECT stream FROM state").fetchone()[0]
            self.tally = self.committed = self._counted()
            undo.pop_all()

    def close(self) -> None:
        for connection in (self.reader, self._db):
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def shrink_wal(self) -> None:
        """Give the WAL's disk space back if that is possible now."""
        with contextlib.suppress(sqlite3.Error):
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def verify(self) -> None:
        """sqlite3.DatabaseError if the file is damaged. Reads all of it, past the caches of the open connections."""
        with contextlib.closing(self._open()) as fresh:
            _verify(fresh)

    def run(self, group: Sequence[_Work]) -> None:
        """Do all work in one transaction. Work that raises StorageError is undone alone; sqlite3.Error undoes all."""
        before = self.tally
        try:
            self._db.execute("BEGIN IMMEDIATE")
            for work in group:
                self._step(work)
            self.tally = self.tally.copy()
            self.tally.counts["commits"] += 1
            self._db.execute("COMMIT")
            self.committed = self.tally
        except BaseException:
            self.tally = before
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _step(self, work: _Work) -> None:
        before = self.tally
        self.tally = before.copy()
        work.result, work.error = None, None
        self._db.execute("SAVEPOINT work")
        try:
            work.result = work.task(self)
        except StorageError as error:
            self._db.execute("ROLLBACK TO work")
            self.tally = before.copy()
            self.tally.counts["turned_away"] += 1
            work.error = error
        self._db.execute("RELEASE work")

    def put(self, event: Event) -> Message:
        found = self._db.execute(
            "SELECT onset_step, id, body FROM open_event WHERE scene = ? AND label = ?", (event.scene, event.label)
        ).fetchone()
        if found and found[0] != event.onset_step:
            # The core keeps one open per (scene, label): it was restarted and never closed the older.
            self.abort(found[1], found[2])
            found = None
        event_id = found[1] if found else uuid7(self._envelope.clock.wall_ns())
        message = self.append(event, event_id)
        if event.phase in {"end", "aborted"}:
            self._forget(event)
        else:
            self._remember(event, event_id, known=bool(found))
        return message

    def append(self, body: Body, event_id: str) -> Message:
        """Give the body its seq and store it, evicting lower classes if it must be."""
        (seq,) = self._db.execute("UPDATE state SET seq = seq + 1 RETURNING seq").fetchone()
        message, payload = self._envelope.seal(self.stream, seq, event_id, body)
        level = _GAP if isinstance(body, Gap) else LEVELS.index(priority_of(body))
        size = _footprint(payload)
        if level < _GAP:
            self._make_room(level, size)
        self._db.execute("INSERT INTO row VALUES (?, ?, ?, ?, ?)", (seq, level, LEAF[type(body)], size, payload))
        self.tally.rows[level] += 1
        self.tally.bytes[level] += size
        self.tally.counts["gaps" if level == _GAP else "accepted"] += 1
        return message

    def attach(self, event_id: str, evidence: Evidence, file: Path) -> Message:
        message = self.append(evidence, event_id)
        values = (evidence.sha256, str(file), evidence.size, evidence.media_type)
        added = self._db.execute(
            "INSERT INTO upload (sha256, path, size, media_type) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", values
        ).rowcount
        self.tally.uploads += added
        if self.tally.uploads > _MAX_UPLOADS:
            self._db.execute("DELETE FROM upload WHERE n = (SELECT n FROM upload ORDER BY error = '', n LIMIT 1)")
            self.tally.uploads -= 1
            self.tally.counts["uploads_dropped"] += 1
        return message

    def uploaded(self, sha256: str) -> None:
        self.tally.uploads -= self._db.execute("DELETE FROM upload WHERE sha256 = ?", (sha256,)).rowcount

    def give_up(self, sha256: str, error: str) -> None:
        changed = self._db.execute(
            "UPDATE upload SET error = ? WHERE sha256 = ? AND error = ''", (error or "unknown", sha256)
        ).rowcount
        self.tally.counts["uploads_given_up"] += changed

    def acknowledge(self, ack: Ack) -> int:
        if ack.stream != self.stream:
            self.tally.counts["acks_foreign"] += 1
            return 0
        (highest,) = self._db.execute("SELECT seq FROM state").fetchone()
        if ack.upto > highest:
            self.tally.counts["acks_refused"] += 1
            _log.error("acknowledgement up to %d, but only %d were ever made: ignored", ack.upto, highest)
            return 0
        gone = 0
        for first, last in _between_holes(ack):
            bite = "seq IN (SELECT seq FROM row WHERE seq BETWEEN ? AND ? LIMIT ?)"
            gone += self._delete(bite, (first, last, _BITE_ROWS - gone))
        self.tally.counts["acknowledged"] += gone
        return gone

    def quarantine(self, stream: str, seq: int, reason: str) -> None:
        if stream != self.stream:
            return
        found = self._db.execute("SELECT level, payload FROM row WHERE seq = ?", (seq,)).fetchone()
        if found is None:  # acknowledged or evicted in the meantime
            return
        level, payload = found
        self._delete("seq = ?", (seq,))
        self._db.execute("INSERT INTO quarantine VALUES (?, ?, ?)", (seq, reason, payload))
        self._db.execute(
            "DELETE FROM quarantine WHERE seq <= (SELECT seq FROM quarantine ORDER BY seq DESC LIMIT 1 OFFSET ?)",
            (_MAX_QUARANTINED,),
        )
        self.tally.counts["quarantined"] += 1
        if level < _GAP:  # a Gap about a refused Gap would be refused in turn
            self._lost([[seq, seq]], LEVELS[level], "refused")

    def _make_room(self, level: int, size: int) -> None:
        while (excess := self._excess(level, size)) > 0:
            if not any(self._evict(victim, excess) for victim in range(level + 1)):
                raise StorageError(
                    f"no room for a {LEVELS[level]} row of {size} bytes: {self.tally.total} of {self.ceiling} bytes "
                    "are taken by rows that may not be evicted for it"
                )

    def _excess(self, level: int, size: int) -> int:
        """Bytes that are too many once `size` more of `level` are in."""
        over = self.tally.total + size - self.ceiling
        if level < _CRITICAL:
            shared = sum(self.tally.bytes[:_CRITICAL])
            over = max(over, shared + size - self._limit * 3 // 4)
        return over

    def _evict(self, level: int, excess: int) -> bool:
        """Evict the oldest rows of one class: a good many at once, or every new row would cost a Gap."""
        target = max(excess, min(self._limit // 32, self.ceiling // 32, _BITE_BYTES))
        runs: list[list[int]] = []
        freed = 0
        oldest = self._db.execute("SELECT seq, size FROM row WHERE level = ? ORDER BY seq", (level,))
        for seq, size in oldest:
            if runs and runs[-1][1] == seq - 1:
                runs[-1][1] = seq
            elif len(runs) < _MAX_RUNS:
                runs.append([seq, seq])
            else:
                break
            freed += size
            if freed >= target:
                break
        oldest.close()
        if not runs:
            return False
        self.tally.counts["evicted"] += self._delete("level = ? AND seq <= ?", (level, runs[-1][1]))
        self._lost(runs, LEVELS[level], "full")
        if self.tally.bytes[_GAP] > self._limit // 16:
            self._fold_gaps()
        return True

    def _lost(self, runs: list[list[int]], priority: Priority, reason: Literal["full", "refused"]) -> None:
        gap = Gap(
            first=runs[0][0],
            last=runs[-1][1],
            count=sum(last - first + 1 for first, last in runs),
            priority=priority,
            reason=reason,
            ranges=tuple((first, last) for first, last in runs),
        )
        self.append(gap, uuid7(self._envelope.clock.wall_ns()))

    def _fold_gaps(self) -> None:
        """Put undelivered Gaps together: a device that is offline for months must not fill up with reports of loss.

        The seqs of the Gaps that are folded are among the ranges of the new one, for they will not come either.
        """
        found: dict[tuple[Priority, str], list[list[int]]] = {}
        for seq, payload in self._db.execute("SELECT seq, payload FROM row WHERE level = ?", (_GAP,)).fetchall():
            gap = msgspec.json.decode(payload, type=Message).body
            if isinstance(gap, Gap) and gap.reason != "damaged":
                runs = found.setdefault((gap.priority, gap.reason), [])
                runs.extend([first, last] for first, last in (*gap.ranges, (seq, seq)))
                self._delete("seq = ?", (seq,))
        for (priority, reason), runs in found.items():
            joined = _joined(runs)
            for start in range(0, len(joined), _MAX_RUNS):
                self._lost(joined[start : start + _MAX_RUNS], priority, "refused" if reason == "refused" else "full")

    def _delete(self, where: str, values: tuple[int, ...]) -> int:
        gone = self._db.execute(f"DELETE FROM row WHERE {where} RETURNING level, size", values).fetchall()
        for level, size in gone:
            self.tally.rows[level] -= 1
            self.tally.bytes[level] -= size
        return len(gone)

    def abort(self, event_id: str, body: bytes) -> None:
        """Close an event with the last that is known of it."""
        last = msgspec.json.decode(body, type=Event)
        self.append(msgspec.structs.replace(last, phase="aborted", revision=last.revision + 1), event_id)
        self._forget(last)

    def _remember(self, event: Event, event_id: str, *, known: bool) -> None:
        # One row for each (scene, label), so the table is as small as the configuration and the model.
        body = msgspec.json.encode(msgspec.structs.replace(event, trace=(), heat=None))
        self._db.execute(
            "INSERT OR REPLACE INTO open_event VALUES (?, ?, ?, ?, ?)",
            (event.scene, event.label, event.onset_step, event_id, body),
        )
        self.tally.open_events += not known

    def _forget(self, event: Event) -> None:
        self.tally.open_events -= self._db.execute(
            "DELETE FROM open_event WHERE scene = ? AND label = ?", (event.scene, event.label)
        ).rowcount

    def _prepare(self, path: Path) -> None:
        """Make the tables in an empty file; sqlite3.DatabaseError for one that is not ours."""
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if version == 0 and tables == 0:
            self._create(path)
        elif version != _FORMAT:
            raise sqlite3.DatabaseError(f"format {version}; this agent knows {_FORMAT}")

    def _create(self, path: Path) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA.split(";"):
            self._db.execute(statement)
        self._db.execute("INSERT INTO state VALUES (1, ?, 0)", (os.urandom(16).hex(),))
        self._db.execute(f"PRAGMA user_version = {_FORMAT}")
        self._db.execute("COMMIT")
        _sync_folder(path.parent)  # the name of a file is not on disk until its folder is

    def _counted(self) -> _Tally:
        tally = _Tally()
        for level, rows, size in self._db.execute("SELECT level, count(*), sum(size) FROM row GROUP BY level"):
            tally.rows[level], tally.bytes[level] = rows, size
        (tally.open_events,) = self._db.execute("SELECT count(*) FROM open_event").fetchone()
        (tally.uploads,) = self._db.execute("SELECT count(*) FROM upload").fetchone()
        return tally


class _Reserve:
    """A file that only takes up room, until the room is needed."""

    def __init__(self, path: Path, size: int, clock: Clock) -> None:
        self._path = path
        self._size = size
        self._clock = clock
        self._tried_ns = -_RESERVE_RETRY_NS

    def free(self) -> int:
        """Give the room back; bytes that were freed."""
        try:
            size = self._path.stat().st_size
            self._path.unlink()
        except OSError:
            return 0
        return size

    def restore(self) -> bool:
        """Whether the room is taken again; the disk must have twice as much to spare. Tried once in ten seconds."""
        now_ns = self._clock.monotonic_ns()
        if now_ns - self._tried_ns < _RESERVE_RETRY_NS:
            return False
        self._tried_ns = now_ns
        try:
            if self._path.exists() and self._path.stat().st_size == self._size:
                return True
            if shutil.disk_usage(self._path.parent).free < max(2 * self._size, _NOTHING_FREE):
                return False
            with self._path.open("wb") as file:
                if self._size:
                    os.posix_fallocate(file.fileno(), 0, self._size)
        except OSError:
            self._path.unlink(missing_ok=True)
            return False
        return True


def _told(message: Message) -> Message:
    """What was accepted, for whoever compares it with what the cloud has: only said once it is on disk."""
    _log.debug("accepted %s/%d: %s %s", message.stream, message.seq, type(message.body).__name__, message.id)
    return message


def _verify(database: sqlite3.Connection) -> None:
    (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise sqlite3.DatabaseError(f"quick_check: {verdict}")


def _footprint(payload: bytes) -> int:
    """Bytes that a row takes in the file: a long one spills into pages of its own."""
    return len(payload) + 40 if len(payload) < 4000 else (len(payload) // 4092 + 1) * 4096


def _between_holes(ack: Ack) -> list[tuple[int, int]]:
    """The runs of seq that the acknowledgement covers."""
    runs = []
    start = 1
    for first, last in sorted(ack.holes):
        if first > ack.upto:
            break
        if start < first:
            runs.append((start, first - 1))
        start = max(start, last + 1)
    if start <= ack.upto:
        runs.append((start, ack.upto))
    return runs


def _joined(runs: list[list[int]]) -> list[list[int]]:
    """The same numbers in as few ascending runs as possible."""
    joined: list[list[int]] = []
    for first, last in sorted(runs):
        if joined and first <= joined[-1][1] + 1:
            joined[-1][1] = max(joined[-1][1], last)
        else:
            joined.append([first, last])
    return joined


def _locked(path: Path) -> int:
    """A held lock on `path`: a second process would abort the first one's open events. OSError if it is taken."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd


def _rename_damaged(path: Path) -> Path:
    """Move the file and its WAL out of the way, under a number; only the newest few are kept."""
    folder = path.parent
    numbers = sorted(
        int(old.name.rpartition("-")[2])
        for old in folder.glob(f"{path.name}.damaged-*")
        if old.name.rpartition("-")[2].isdigit()
    )
    number = numbers[-1] + 1 if numbers else 1
    place = folder / f"{path.name}.damaged-{number}"
    path.replace(place)
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            (folder / (path.name + suffix)).replace(folder / (place.name + suffix))
    for old in (n for n in numbers if n <= number - _KEPT_DAMAGED):
        for suffix in ("", "-wal", "-shm"):
            (folder / f"{path.name}.damaged-{old}{suffix}").unlink(missing_ok=True)
    _sync_folder(folder)
    return place


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
