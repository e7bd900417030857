"""The outbox as a state machine: whatever is done to it, and wherever it is cut off, no row is lost, doubled or
unaccounted for.

The one law that is checked after every step: each seq from 1 to the highest is either in the outbox, or was covered
by an acknowledgement, or stands in the ranges of a Gap; and never in two of these.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from edge_agent.contract.event import Ack, Body, Event, Evidence, Gap, Message, Phase, Priority
from edge_agent.errors import StorageError
from edge_agent.outbox import Outbox, Row, uuid7
from tests.parts.delivery import Tap, event, evidence, image, outbox

MAX_BYTES = 24 * 1024

phases = st.sampled_from(["new", "update", "end"])
labels = st.sampled_from(["fire", "glass", "siren"])
priorities = st.sampled_from(["bulk", "normal", "critical"])
points = st.integers(0, 60)


class OutboxMachine(RuleBasedStateMachine):
    """Drives an outbox and keeps books of its own."""

    def __init__(self) -> None:
        super().__init__()
        # What is tested is the order of statements; a disk in memory does thousands of commits a second.
        self.folder = Path(tempfile.mkdtemp(prefix="outbox-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self.lives = 0
        self.tap = Tap()
        self.bodies: dict[int, Body] = {}  #: everything ever seen in the outbox, by seq
        self.payloads: dict[int, bytes] = {}
        self.acknowledged: set[int] = set()
        self.accepted: set[int] = set()  #: seqs that a returning call promised
        self.onset = 0
        self.box: Outbox

    @initialize()
    def start(self) -> None:
        self.box = outbox(self.folder / "0" / "outbox.db", max_bytes=MAX_BYTES, tap=self.tap)

    def teardown(self) -> None:
        self.tap.on_statement = lambda sql: None
        self.box.close()
        shutil.rmtree(self.folder)

    @rule(phase=phases, label=labels, priority=priorities, size=points)
    def put(self, phase: Phase, label: str, priority: Priority, size: int) -> None:
        self.onset += phase == "new"
        with contextlib.suppress(StorageError):
            message = self.box.put(event(phase, self.onset, label=label, priority=priority, points=size))
            self.promised([message])

    @rule(count=st.integers(1, 30), priority=priorities, size=points)
    def put_all(self, count: int, priority: Priority, size: int) -> None:
        events = [event("end", self.onset + n, label="many", priority=priority, points=size) for n in range(count)]
        with contextlib.suppress(StorageError):
            self.promised(self.box.put_all(events))

    @rule(number=st.integers(0, 30))
    def attach(self, number: int) -> None:
        digest = f"{number:064x}"
        with contextlib.suppress(StorageError):
            self.promised([self.box.attach(uuid7(0), evidence(digest), self.folder / digest)])
            assert digest in [upload.sha256 for upload in self.box.uploads()]

    @rule(share=st.floats(0, 1), holes=st.lists(st.tuples(st.integers(1, 400), st.integers(0, 9)), max_size=4))
    def acknowledge(self, share: float, holes: list[tuple[int, int]]) -> None:
        upto = int(share * self.highest)
        ack = Ack(stream=self.box.stream, upto=upto, holes=tuple((first, first + more) for first, more in holes))
        covered = {
            seq for seq in self.live() if seq <= upto and not any(first <= seq <= last for first, last in ack.holes)
        }
        assert self.box.acknowledge(ack) == len(covered)
        self.acknowledged |= covered

    @rule(ahead=st.integers(1, 5), foreign=st.booleans())
    def acknowledge_nonsense(self, ahead: int, foreign: bool) -> None:
        stream, upto = ("f" * 32, self.highest) if foreign else (self.box.stream, self.highest + ahead)
        assert self.box.acknowledge(Ack(stream=stream, upto=upto)) == 0

    @rule(share=st.floats(0, 1))
    def quarantine(self, share: float) -> None:
        rows = sorted(self.live())
        if rows:
            seq = rows[int(share * (len(rows) - 1))]
            refused_gap = isinstance(self.bodies[seq], Gap)
            self.box.quarantine(self.box.stream, seq, "refused")
            if refused_gap:  # the one thing that leaves without a report: it would be refused in turn
                self.acknowledged.add(seq)

    @rule(share=st.floats(0, 1), priority=priorities, label=labels, count=st.integers(1, 6))
    def die_while_putting(self, share: float, priority: Priority, label: str, count: int) -> None:
        """Cut the process off before any statement of a transaction: all of it is there afterwards, or nothing."""
        events = [event("new", self.onset + 1 + n, label=label, priority=priority, points=30) for n in range(count)]
        self.onset += count
        before = self.live()
        self.cut(share, lambda box: box.put_all(events))
        self.check_law()
        fresh = [row for row in self.rows() if row.seq not in before]
        new = [body for body in (self.bodies[row.seq] for row in fresh) if isinstance(body, Event)]
        arrived = [body for body in new if body.phase == "new"]
        assert arrived == events[len(events) - len(arrived) :]  # its own first rows may have been pushed out

    @rule(share=st.floats(0, 1), upto=st.floats(0, 1))
    def die_while_acknowledging(self, share: float, upto: float) -> None:
        seq = int(upto * self.highest)
        ack = Ack(stream=self.box.stream, upto=seq)
        before = self.live()
        self.cut(share, lambda box: box.acknowledge(ack))
        gone = before - {row.seq for row in self.rows()} - self.given_up()
        assert gone in (set(), {old for old in before if old <= seq} - self.given_up())
        self.acknowledged |= gone
        self.check_law()

    @rule()
    def restart(self) -> None:
        self.box.close()
        self.box = outbox(self.folder / str(self.lives) / "outbox.db", max_bytes=MAX_BYTES, tap=self.tap)

    @rule()
    def fail_to_write(self) -> None:
        """A disk that is full and stays so: refused, and nothing else changes."""

        def fail(sql: str) -> None:
            if sql == "COMMIT":
                raise sqlite3.OperationalError("database or disk is full")

        before = self.rows()
        self.tap.on_statement = fail
        try:
            self.box.put(event("end", 10**6))
        except StorageError:
            pass
        else:
            raise AssertionError("accepted on a full disk")
        finally:
            self.tap.on_statement = lambda sql: None
        assert self.rows() == before

    @invariant()
    def check_law(self) -> None:
        if not hasattr(self, "box"):
            return
        rows = self.rows()
        seqs = [row.seq for row in rows]
        assert seqs == sorted(set(seqs))
        live, gone = set(seqs), self.given_up()
        assert not live & gone
        assert not live & self.acknowledged
        assert live | gone | self.acknowledged >= set(range(1, self.highest + 1))
        assert self.accepted <= live | gone | self.acknowledged
        counters = self.box.counters
        assert counters["rows"] == len(rows)
        assert counters["bytes"] <= MAX_BYTES
        for body in self.bodies.values():
            if isinstance(body, Gap):
                assert body.count == sum(last - first + 1 for first, last in body.ranges)
                assert (body.first, body.last) == (body.ranges[0][0], body.ranges[-1][1])

    @invariant()
    def check_uploads(self) -> None:
        if hasattr(self, "box"):
            promised = {body.sha256 for body in self.bodies.values() if isinstance(body, Evidence)}
            assert {upload.sha256 for upload in self.box.uploads()} <= promised

    @property
    def highest(self) -> int:
        return max(self.bodies, default=0)

    def rows(self) -> list[Row]:
        """What is in the outbox now; a row never changes."""
        rows = self.box.batch(0, 10_000, 1 << 30)
        for row in rows:
            assert self.payloads.setdefault(row.seq, row.payload) == row.payload
            message = msgspec.json.decode(row.payload, type=Message)
            assert (message.seq, message.stream) == (row.seq, self.box.stream)
            self.bodies[row.seq] = message.body
        return rows

    def live(self) -> set[int]:
        return {row.seq for row in self.rows()}

    def given_up(self) -> set[int]:
        """Every seq in the ranges of any Gap that was ever seen."""
        ranges = [run for body in self.bodies.values() if isinstance(body, Gap) for run in body.ranges]
        return {seq for first, last in ranges for seq in range(first, last + 1)}

    def promised(self, messages: list[Message]) -> None:
        live = self.live()
        for message in messages:
            self.accepted.add(message.seq)
            # A large group may push its own first rows out again; then they are reported.
            assert message.seq in live | self.given_up()
            self.bodies.setdefault(message.seq, message.body)

    def cut(self, share: float, act: Callable[[Outbox], object]) -> None:
        """Run `act` on a copy to count its statements, then take the files as they are at one of them, and go on with
        those."""
        path = self.folder / str(self.lives) / "outbox.db"
        count = [0]

        def tell(sql: str) -> None:
            count[0] += 1

        rehearsal = outbox(image(path, self.folder / f"rehearsal-{self.lives}"), max_bytes=MAX_BYTES, tap=self.tap)
        self.tap.on_statement = tell
        with contextlib.suppress(StorageError):
            act(rehearsal)
        self.tap.on_statement = lambda sql: None
        rehearsal.close()
        left = int(share * count[0])
        self.lives += 1
        place = self.folder / str(self.lives)
        steps = [0]

        def snapshot(sql: str) -> None:
            if steps[0] == left:
                image(path, place)
            steps[0] += 1

        self.tap.on_statement = snapshot
        with contextlib.suppress(StorageError):
            act(self.box)
        self.tap.on_statement = lambda sql: None
        if not place.exists():  # fewer statements than in the rehearsal: it died just after
            image(path, place)
        self.box.close()
        self.box = outbox(place / "outbox.db", max_bytes=MAX_BYTES, tap=self.tap)


TestOutbox = OutboxMachine.TestCase
TestOutbox.settings = settings(
    max_examples=int(os.environ.get("TECTUM_EXAMPLES", "60")), stateful_step_count=40, deadline=None
)
