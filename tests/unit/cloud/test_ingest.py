"""The ingest through its front door: deliveries in, rows and acknowledgements out."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa
from sqlalchemy import event as sqlalchemy_event

from cloud_sync import ingest
from cloud_sync.broker import Delivery
from cloud_sync.config import IngestConfig
from cloud_sync.errors import BrokerError, StoreBusy
from cloud_sync.ingest import Ingest, Intake, Settled, read
from cloud_sync.store import Store
from cloud_sync.store.tables import (
    Alert,
    Blob,
    Counter,
    DeadLetter,
    Device,
    Effect,
    EvidenceFile,
    Loss,
    Point,
    Received,
    Stream,
)
from edge_agent.contract import wire
from edge_agent.contract.event import Ack, Gap, Rollout
from edge_agent.contract.status import Health, State
from tests.parts.cloud import STREAM, WALL_NS, add_devices, delivery, event, event_id, evidence, message, sqlite_store

NOW_NS = WALL_NS + 10**12


@pytest.fixture
def store(any_store: Store) -> Store:
    add_devices(any_store, "cam", "other")
    return any_store


@pytest.fixture
def intake(store: Store) -> Intake:
    return Intake(store, IngestConfig(dead_letters=5, losses=5), now_ns=lambda: NOW_NS)


def take(intake: Intake, *deliveries: Delivery) -> list[Settled]:
    return intake.take([piece for one in deliveries for piece in read(one)])


def rows(store: Store, table: type) -> list:
    with store.read() as session:
        return list(session.execute(sa.select(table)).scalars())


def count(store: Store, table: type) -> int:
    return len(rows(store, table))


def the_alert(store: Store) -> Alert:
    (alert,) = rows(store, Alert)
    return alert


class TestExactlyOnce:
    def test_a_message_becomes_one_row_and_is_acknowledged(self, store: Store, intake: Intake) -> None:
        (settled,) = take(intake, delivery(message(1)))
        assert settled == Settled("home", "cam", Ack(stream=STREAM, upto=1), 1)
        (row,) = rows(store, Received)
        assert (row.device, row.stream, row.seq, row.kind, row.event_id) == ("cam", STREAM, 1, "event", event_id(1))
        assert msgspec.json.decode(row.body)["seq"] == 1

    @pytest.mark.parametrize("together", [True, False])
    def test_the_same_message_again_changes_nothing_and_is_acknowledged_again(
        self, store: Store, intake: Intake, together: bool
    ) -> None:
        first, second = delivery(message(1)), delivery(message(1))
        settled = take(intake, first, second) if together else take(intake, first) + take(intake, second)
        assert settled[-1].ack == Ack(stream=STREAM, upto=1)
        assert (count(store, Received), count(store, Alert), count(store, Effect)) == (1, 1, 1)
        assert (count(store, Loss), intake.counts["duplicates"]) == (0, 1)

    @pytest.mark.parametrize("together", [True, False])
    def test_the_same_key_with_another_body_is_kept_as_a_conflict(
        self, store: Store, intake: Intake, together: bool
    ) -> None:
        first, second = delivery(message(1)), delivery(message(1, event(score=0.9)))
        settled = take(intake, first, second) if together else take(intake, first) + take(intake, second)
        assert settled[-1].ack.upto == 1
        (loss,) = rows(store, Loss)
        assert (loss.reason, loss.first, loss.last, loss.count) == ("stream_conflict", 1, 1, 1)
        assert loss.payload == second.payload
        assert the_alert(store).score == 0.8

    def test_holes_are_told_until_they_close(self, intake: Intake) -> None:
        (settled,) = take(intake, delivery(message(1)), delivery(message(4)), delivery(message(6)))
        assert settled.ack == Ack(stream=STREAM, upto=6, holes=((2, 3), (5, 5)))
        (settled,) = take(intake, delivery(message(5)))
        assert settled.ack == Ack(stream=STREAM, upto=6, holes=((2, 3),))
        (settled,) = take(intake, delivery(message(2)), delivery(message(3)))
        assert settled.ack == Ack(stream=STREAM, upto=6)

    def test_a_gap_takes_exactly_its_ranges_out_of_the_holes(self, store: Store, intake: Intake) -> None:
        gap = Gap(first=2, last=7, count=4, priority="bulk", reason="full", ranges=((2, 3), (6, 7)))
        (settled,) = take(intake, delivery(message(1)), delivery(message(9, gap)))
        assert settled.ack == Ack(stream=STREAM, upto=9, holes=((4, 5), (8, 8)))
        (loss,) = rows(store, Loss)
        assert (loss.first, loss.last, loss.count, loss.priority, loss.reason) == (2, 7, 4, "bulk", "full")

    @pytest.mark.parametrize("ranges", [((5, 2),), ((0, 3),), ((8, 12),), ((2, 2**63 - 1),)])
    def test_a_gap_cannot_speak_of_rows_that_are_yet_to_come(
        self, intake: Intake, ranges: tuple[tuple[int, int], ...]
    ) -> None:
        gap = Gap(first=1, last=2, count=1, priority="bulk", reason="full", ranges=ranges)
        (settled,) = take(intake, delivery(message(9, gap)))
        assert settled.ack == Ack(stream=STREAM, upto=9, holes=((1, 8),))

    def test_streams_and_devices_are_told_apart(self, store: Store, intake: Intake) -> None:
        other = message(1, device="other", of=2)
        second = message(1, stream="f" * 32, of=3)
        settled = take(intake, delivery(message(1)), delivery(other, device="other"), delivery(second))
        assert {(one.device, one.ack.stream) for one in settled} == {
            ("cam", STREAM),
            ("other", STREAM),
            ("cam", "f" * 32),
        }
        assert (count(store, Received), count(store, Stream)) == (3, 3)

    def test_a_batch_is_its_members(self, store: Store, intake: Intake) -> None:
        frame = wire.encode_batch([wire.encode(message(seq, of=seq)) for seq in range(1, 51)])
        (settled,) = take(intake, delivery(frame))
        assert (settled.ack.upto, settled.count) == (50, 50)
        assert (count(store, Received), count(store, Alert)) == (50, 50)


class TestAlerts:
    MESSAGES = (
        message(1, event("new", 1, score=0.7, step=100, heat=True, trace=((99, 0.6), (100, 0.7)))),
        message(2, event("update", 2, score=0.95, step=101, trace=((101, 0.95),))),
        message(3, event("update", 3, score=0.8, step=102, heat=True, trace=((102, 0.8),))),
        message(4, event("end", 4, score=0.3, step=103, trace=((103, 0.3),))),
    )

    @pytest.mark.parametrize("seed", range(6))
    def test_any_order_of_arrival_gives_the_same_alert(self, store: Store, intake: Intake, seed: int) -> None:
        deliveries = [delivery(one) for one in self.MESSAGES]
        random.Random(seed).shuffle(deliveries)
        for start in range(0, 4, 1 + seed % 2):
            take(intake, *deliveries[start : start + 1 + seed % 2])
        alert = the_alert(store)
        assert (alert.phase, alert.revision, alert.score, alert.peak) == ("end", 4, 0.3, 0.95)
        assert alert.started_ns == WALL_NS + 10**9
        assert alert.ended_ns == WALL_NS + 4 * 10**9
        assert alert.started_monotonic_ns == 98 * 500 * 10**6
        assert alert.best["score"] == 0.95
        assert alert.body["revision"] == 4
        assert "trace" not in alert.body
        assert "heat" not in alert.body
        assert alert.heat == {"rows": 2, "cols": 3, "values": "AAECAwQF", "score": 0.8}
        points = sorted((point.step, point.score) for point in rows(store, Point))
        assert points == [(99, 0.6), (100, 0.7), (101, 0.95), (102, 0.8), (103, 0.3)]
        assert count(store, Effect) == 1

    def test_aborted_with_the_last_revision_ends_it(self, store: Store, intake: Intake) -> None:
        take(intake, delivery(self.MESSAGES[0]), delivery(message(2, event("aborted", 1))))
        alert = the_alert(store)
        assert (alert.phase, alert.ended_ns) == ("aborted", WALL_NS + 2 * 10**9)

    def test_every_write_gets_a_change_of_its_own(self, store: Store, intake: Intake) -> None:
        take(intake, delivery(message(1)), delivery(message(2, of=2)))
        changes = {alert.id: alert.change for alert in rows(store, Alert)}
        assert sorted(changes.values()) == [1, 2]
        take(intake, delivery(message(3, event("update", 2))))
        assert {alert.id: alert.change for alert in rows(store, Alert)}[event_id(1)] == 3

    def test_another_device_cannot_write_into_an_alert(self, store: Store, intake: Intake) -> None:
        take(intake, delivery(message(1)))
        foreign = delivery(message(1, event("end", 9), device="other"), device="other")
        (settled,) = take(intake, foreign)
        assert settled.ack.upto == 1
        assert the_alert(store).phase == "new"
        (dead,) = rows(store, DeadLetter)
        assert (dead.reason, dead.payload) == ("device", foreign.payload)

    def test_numbers_at_the_edge_of_the_contract_are_held(self, store: Store, intake: Intake) -> None:
        most = 2**63 - 1
        body = msgspec.structs.replace(event(), onset_step=most, step=most, step_ms=60_000, revision=most)
        take(intake, delivery(msgspec.structs.replace(message(most, body), wall_ns=most, monotonic_ns=most)))
        alert = the_alert(store)
        assert (alert.started_monotonic_ns, alert.started_ns) == (most, most)

    @pytest.mark.parametrize(
        "words", ["\x00", "a\x00b", "\ud800".encode("utf-8", "surrogatepass").decode("utf-8", "replace")]
    )
    def test_text_that_a_database_finds_hard_is_taken(self, store: Store, intake: Intake, words: str) -> None:
        body = msgspec.structs.replace(event(rule=words), bundle=words)
        (settled,) = take(intake, delivery(message(1, body)))
        assert settled.ack.upto == 1
        assert the_alert(store).body["rule"] == words

    def test_a_heat_map_of_another_size_is_left_out(self, store: Store, intake: Intake) -> None:
        odd = msgspec.structs.replace(event(heat=True), heat=msgspec.structs.replace(event(heat=True).heat, rows=5))
        take(intake, delivery(message(1, odd)))
        assert the_alert(store).heat is None


class TestEvidence:
    SHA = "ab" * 32

    def test_a_promise_waits_for_its_bytes(self, store: Store, intake: Intake) -> None:
        take(intake, delivery(message(1)), delivery(message(2, evidence(self.SHA, 10))))
        (file,) = rows(store, EvidenceFile)
        assert (file.event_id, file.device, file.role, file.sha256) == (event_id(1), "cam", "clip", self.SHA)
        assert (file.size, file.media_type, file.stored) == (10, "video/mp4", False)

    def test_bytes_may_be_here_before_the_promise(self, store: Store, intake: Intake) -> None:
        with store.write() as session:
            session.add(Blob(sha256=self.SHA, device="cam", size=10, stored_ns=0))
        take(intake, delivery(message(2, evidence(self.SHA, 10))))
        assert rows(store, EvidenceFile)[0].stored
        assert rows(store, Blob)[0].promised

    def test_bytes_of_another_device_do_not_count(self, store: Store, intake: Intake) -> None:
        with store.write() as session:
            session.add(Blob(sha256=self.SHA, device="other", size=10, stored_ns=0))
        take(intake, delivery(message(2, evidence(self.SHA, 10))))
        assert not rows(store, EvidenceFile)[0].stored

    def test_evidence_moves_its_alert_up_the_changes(self, store: Store, intake: Intake) -> None:
        take(intake, delivery(message(1)))
        take(intake, delivery(message(2, evidence(self.SHA, 10))))
        assert the_alert(store).change == 2


class TestRefusals:
    @pytest.mark.parametrize(
        ("payload", "reason"),
        [
            (b"{", "malformed"),
            (b"", "malformed"),
            (b"\xff\xfe", "malformed"),
            (b"[" * 1000, "depth"),
            (b"x" * 200_000, "oversize"),
            (b"\x28\xb5\x2f\xfdgarbage", "compression"),
            (b'{"v":2}', "version"),
            (b'{"v":1}', "schema"),
        ],
    )
    def test_what_cannot_be_read_is_kept_with_its_bytes(
        self, store: Store, intake: Intake, payload: bytes, reason: str
    ) -> None:
        assert take(intake, delivery(payload)) == []
        (dead,) = rows(store, DeadLetter)
        assert (dead.reason, dead.payload, dead.received_ns) == (reason, payload, NOW_NS)
        assert dead.topic == "tectum/v1/home/cam/up/event"

    @pytest.mark.parametrize("topic", ["x", "tectum/v1/home/cam/down/ack", "tectum/v2/home/cam/up/event", "a\ud800"])
    def test_a_topic_that_is_none_of_ours_is_kept(self, store: Store, intake: Intake, topic: str) -> None:
        take(intake, Delivery(topic, b"{}", False, 1, 1, 1))
        assert rows(store, DeadLetter)[0].reason == "topic"

    def test_a_row_that_cannot_be_read_is_acknowledged_once_it_is_kept(self, store: Store, intake: Intake) -> None:
        raw = wire.encode(message(1)).replace(b'"v":1', b'"v":2')
        (settled,) = take(intake, delivery(raw))
        assert settled.ack == Ack(stream=STREAM, upto=1)
        take(intake, delivery(raw))  # sent again: the ack was lost
        assert count(store, DeadLetter) == 1
        assert count(store, Alert) == 0

    def test_a_bad_member_of_a_batch_does_not_hold_up_the_others(self, store: Store, intake: Intake) -> None:
        good = [wire.encode(message(seq, of=seq)) for seq in (1, 3)]
        bad = wire.encode(message(2)).replace(b'"phase":"new"', b'"phase":"odd"')
        (settled,) = take(intake, delivery(wire.encode_batch([good[0], bad, good[1]])))
        assert settled.ack == Ack(stream=STREAM, upto=3)
        assert (count(store, Alert), [dead.reason for dead in rows(store, DeadLetter)]) == (2, ["schema"])

    @pytest.mark.parametrize("device", ["stranger", "cam"])
    def test_a_device_that_is_not_enrolled_or_was_revoked_is_refused(
        self, store: Store, intake: Intake, device: str
    ) -> None:
        with store.write() as session:
            session.get_one(Device, "cam").revoked_ns = 1
        assert take(intake, delivery(message(1, device=device), device=device)) == []
        assert (count(store, Received), rows(store, DeadLetter)[0].reason) == (0, "device")

    @pytest.mark.parametrize(
        "spoofed",
        [delivery(message(1, device="other")), delivery(message(1), site="elsewhere")],
        ids=["device", "site"],
    )
    def test_a_message_that_is_not_of_its_topic_is_refused(
        self, store: Store, intake: Intake, spoofed: Delivery
    ) -> None:
        assert take(intake, spoofed) == []
        assert (count(store, Received), rows(store, DeadLetter)[0].reason) == (0, "device")

    def test_dead_letters_are_bounded_and_what_went_is_counted(self, store: Store, intake: Intake) -> None:
        for number in range(12):
            take(intake, delivery(b"bad %d" % number))
        assert [dead.payload for dead in rows(store, DeadLetter)] == [b"bad %d" % number for number in range(7, 12)]
        with store.read() as session:
            assert session.get_one(Counter, "dead_letter_evicted").value == 7

    def test_a_message_that_the_database_will_not_hold_does_not_stop_the_others(
        self, store: Store, intake: Intake
    ) -> None:
        poison = message(2, of=2)

        @sqlalchemy_event.listens_for(store.engine, "before_cursor_execute")
        def refuse(_connection, _cursor, _statement, parameters, _context, _many) -> None:  # type: ignore[no-untyped-def]
            if poison.id in repr(parameters):
                raise sa.exc.DataError("insert", None, Exception("no such character"))

        (*_, last) = take(intake, delivery(message(1)), delivery(poison), delivery(message(3, of=3)))
        assert last.ack == Ack(stream=STREAM, upto=3)
        assert count(store, Alert) == 2
        (dead,) = rows(store, DeadLetter)
        assert (dead.reason, dead.payload) == ("refused", wire.encode(poison))


class TestDevices:
    STATE = State(device="cam", online=True, boot="b", bundle="c" * 64, scenes=("yard",))

    def test_birth_and_will_are_what_the_device_is(self, store: Store, intake: Intake) -> None:
        take(intake, delivery(wire.encode(self.STATE), "state"))
        device = next(row for row in rows(store, Device) if row.name == "cam")
        assert (device.online, device.seen_ns) == (True, NOW_NS)
        assert device.state["bundle"] == "c" * 64
        will = State(device="cam", online=False)
        take(intake, delivery(wire.encode(will), "state"))
        assert not next(row for row in rows(store, Device) if row.name == "cam").online

    def test_what_the_broker_remembered_is_no_sign_of_life(self, store: Store, intake: Intake) -> None:
        take(intake, delivery(wire.encode(self.STATE), "state", retained=True))
        device = next(row for row in rows(store, Device) if row.name == "cam")
        assert (device.online, device.seen_ns) == (True, None)

    def test_health_is_kept_and_says_that_it_lives(self, store: Store, intake: Intake) -> None:
        health = Health(
            device="cam", boot="b", bundle="", uptime_s=1, rss_bytes=2**70, cpu_share=0.1, steps=1, step_p50_ms=1,
            step_p99_ms=1, outbox_rows=0, outbox_bytes=0, evicted=0, wall_quality="ntp",
        )  # fmt: skip
        take(intake, delivery(wire.encode(health), "health"))
        device = next(row for row in rows(store, Device) if row.name == "cam")
        assert (device.online, device.health_ns, device.health["steps"]) == (True, NOW_NS, 1)

    def test_a_state_about_another_device_is_refused(self, store: Store, intake: Intake) -> None:
        take(intake, delivery(wire.encode(self.STATE), "state", device="other"))
        assert rows(store, DeadLetter)[0].reason == "device"

    def test_a_rollout_report_is_kept_and_a_late_one_does_not_undo_it(self, store: Store, intake: Intake) -> None:
        done, begun = (Rollout(bundle="c" * 64, state=state) for state in ("committed", "offered"))
        take(intake, delivery(message(2, done), "rollout"))
        take(intake, delivery(message(1, begun), "rollout"))
        device = next(row for row in rows(store, Device) if row.name == "cam")
        assert (device.rollout["state"], device.rollout["bundle"]) == ("committed", "c" * 64)
        assert device.rollout_ns == WALL_NS + 2 * 10**9


@dataclass
class FakeLink:
    """Gives out batches of deliveries, then tells the ingest to stop."""

    batches: list[list[Delivery]]
    stop: threading.Event
    acknowledged: list[Delivery] = field(default_factory=list)
    published: list[tuple[str, Ack]] = field(default_factory=list)
    failure: BaseException | None = None
    log: list[str] = field(default_factory=list)

    def collect(self, timeout_s: float, limit: int, until: float) -> list[Delivery]:
        if not self.batches:
            self.stop.set()
            return []
        return self.batches.pop(0)

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        self.log.append("puback")
        self.acknowledged += deliveries

    def publish(self, topic: str, payload: bytes) -> bool:
        self.log.append("ack")
        self.published.append((topic, wire.decode_ack(payload)))
        return True


@dataclass
class StubbornIntake:
    """Fails with StoreBusy as often as it is told, then takes."""

    intake: Intake
    failures: int

    @property
    def counts(self) -> object:
        return self.intake.counts

    def take(self, pieces: Sequence[ingest.Piece]) -> list[Settled]:
        if self.failures:
            self.failures -= 1
            raise StoreBusy("database is locked")
        return self.intake.take(pieces)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(ingest, "RETRY_S", (0.001, 0.001))
    return


def test_a_full_disk_keeps_nothing_and_the_next_try_keeps_all(tmp_path: Path) -> None:
    with sqlite_store(tmp_path) as store:
        add_devices(store, "cam")
        with store.engine.connect() as connection:  # the pool's only one: what it may grow to stays with it
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        intake = Intake(store, IngestConfig())
        frame = delivery(wire.encode_batch([wire.encode(message(seq, of=seq)) for seq in range(1, 101)]))
        with pytest.raises(StoreBusy, match="full"):
            take(intake, frame)
        assert count(store, Received) == 0
        with store.engine.connect() as connection:
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages * 100}")
        assert take(intake, frame)[0].ack.upto == 100
        assert count(store, Received) == 100


class TestLoop:
    CONFIG = IngestConfig()

    def run(self, intake: object, link: FakeLink) -> None:
        Ingest(intake, link, self.CONFIG).run(link.stop)  # type: ignore[arg-type]

    def test_puback_and_ack_come_after_the_commit(self, store: Store, intake: Intake) -> None:
        link = FakeLink([[delivery(message(1)), delivery(b"bad")]], threading.Event())
        commits: list[int] = []
        sqlalchemy_event.listen(store.engine, "commit", lambda _: (commits.append(1), link.log.append("commit")))
        self.run(intake, link)
        assert link.log == ["commit", "puback", "ack"]
        assert [one.payload for one in link.acknowledged][1] == b"bad"
        assert link.published == [("tectum/v1/home/cam/down/ack", Ack(stream=STREAM, upto=1))]

    def test_a_transaction_is_bounded_by_rows_and_each_is_acknowledged(
        self, store: Store, intake: Intake, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ingest, "ROWS_MAX", 3)
        batches = [[message(seq) for seq in seqs] for seqs in ((1, 2), (3, 4), (5,), (6,))]
        payloads = [wire.encode_batch([wire.encode(one) for one in batch]) for batch in batches]
        link = FakeLink([[delivery(payload) for payload in payloads]], threading.Event())
        commits: list[int] = []
        sqlalchemy_event.listen(store.engine, "commit", lambda _: (commits.append(1), link.log.append("commit")))
        self.run(intake, link)
        assert link.log[:2] == ["commit", "puback"]
        assert link.log.count("commit") == 2
        assert len(link.acknowledged) == 4
        assert link.published[-1] == ("tectum/v1/home/cam/down/ack", Ack(stream=STREAM, upto=6))

    def test_nothing_is_acknowledged_while_the_database_is_away(
        self, intake: Intake, quick: None, store: Store
    ) -> None:
        link = FakeLink([[delivery(message(1))]], threading.Event())
        stubborn = StubbornIntake(intake, failures=5)
        self.run(stubborn, link)
        assert link.log == ["puback", "ack"]
        assert count(store, Received) == 1

    def test_told_to_stop_while_the_database_is_away_it_stops_without_acknowledging(self, intake: Intake) -> None:
        link = FakeLink([[delivery(message(1))]], threading.Event())

        class StopsIt(StubbornIntake):
            def take(self, pieces: Sequence[ingest.Piece]) -> list[Settled]:
                link.stop.set()
                raise StoreBusy("disk full")

        self.run(StopsIt(intake, 1), link)
        assert link.log == []

    def test_a_database_that_stays_away_ends_it(
        self, intake: Intake, quick: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ingest, "GIVE_UP_S", 0.01)
        link = FakeLink([[delivery(message(1))]], threading.Event())
        with pytest.raises(StoreBusy):
            self.run(StubbornIntake(intake, 10**9), link)
        assert link.acknowledged == []

    def test_a_broken_link_ends_it(self, intake: Intake) -> None:
        link = FakeLink([], threading.Event(), failure=RuntimeError("callback"))
        with pytest.raises(BrokerError, match="callback"):
            self.run(intake, link)

    def test_acks_are_cumulative_and_not_sent_for_every_message(self, intake: Intake) -> None:
        batches = [[delivery(message(seq, of=seq))] for seq in range(1, 31)]
        link = FakeLink(batches, threading.Event())
        self.run(intake, link)
        assert link.published[-1][1].upto == 30
        assert len(link.published) < 30

    def test_sixty_four_messages_do_not_wait_for_the_clock(self) -> None:
        published: list[tuple[str, bytes]] = []
        acks = ingest.Acks(lambda topic, payload: not published.append((topic, payload)))
        one = Settled("home", "cam", Ack(stream=STREAM, upto=1), 1)
        acks.note([one])
        acks.flush(0.0)
        acks.note([Settled("home", "cam", Ack(stream=STREAM, upto=64), 63)])
        acks.flush(0.01)
        assert len(published) == 1
        acks.note([Settled("home", "cam", Ack(stream=STREAM, upto=65), 1)])
        acks.flush(0.01)
        assert len(published) == 2

    def test_an_ack_that_is_not_due_is_sent_when_it_is(self) -> None:
        published: list[bytes] = []
        acks = ingest.Acks(lambda _topic, payload: not published.append(payload))
        acks.note([Settled("home", "cam", Ack(stream=STREAM, upto=1), 1)])
        acks.flush(0.0)
        acks.note([Settled("home", "cam", Ack(stream=STREAM, upto=2), 1)])
        assert acks.wait_s(0.04, 1.0) == pytest.approx(0.06)
        acks.flush(0.04)
        assert len(published) == 1
        acks.flush(0.11)
        assert wire.decode_ack(published[-1]).upto == 2
        assert acks.wait_s(0.12, 1.0) == 1.0

    def test_an_ack_that_the_link_refuses_is_kept(self) -> None:
        answers = [False, True]
        published: list[bytes] = []
        acks = ingest.Acks(lambda _topic, payload: not published.append(payload) and answers.pop(0))
        acks.note([Settled("home", "cam", Ack(stream=STREAM, upto=1), 1)])
        acks.flush(0.0)
        acks.flush(0.0)
        acks.flush(0.0)
        assert len(published) == 2
