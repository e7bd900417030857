"""The outbox through its front door: what is accepted, in which order it goes, what gives way, what is reported."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from edge_agent import outbox as module
from edge_agent.contract.event import Ack, Body, Event, Evidence, Gap, Message, Rollout
from edge_agent.errors import StorageError
from edge_agent.outbox import Outbox, uuid7
from tests.parts.delivery import HandClock, Tap, event, evidence, image, outbox


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.db"


@pytest.fixture
def box(path: Path) -> Iterator[Outbox]:
    opened = outbox(path)
    yield opened
    opened.close()


def messages(box: Outbox) -> list[Message]:
    return [msgspec.json.decode(row.payload, type=Message) for row in box.batch(0, 100_000, 1 << 40)]


def bodies(box: Outbox) -> list[Body]:
    return [message.body for message in messages(box)]


def gaps(box: Outbox) -> list[Gap]:
    return [body for body in bodies(box) if isinstance(body, Gap)]


def seqs(box: Outbox) -> list[int]:
    return [row.seq for row in box.batch(0, 100_000, 1 << 40)]


def fill(box: Outbox, count: int, **how: object) -> list[int]:
    return [box.put(event("end", n, **how)).seq for n in range(count)]  # type: ignore[arg-type]


class TestIdentity:
    def test_the_phases_of_an_event_share_one_id_and_the_next_event_has_another(self, box: Outbox) -> None:
        first = [box.put(event(phase, 7)).id for phase in ("new", "update", "end")]
        assert len(set(first)) == 1
        assert box.put(event("new", 9)).id != first[0]

    def test_labels_and_scenes_are_told_apart(self, box: Outbox) -> None:
        ids = [box.put(event("new", 7, label=label, scene=scene)).id for label in "ab" for scene in "cd"]
        assert len(set(ids)) == 4
        assert box.put(event("update", 7, label="a", scene="d")).id == ids[1]

    def test_an_onset_that_never_ended_is_aborted_by_the_next(self, box: Outbox) -> None:
        old = box.put(event("new", 7, revision=3))
        new = box.put(event("new", 9))
        aborted = messages(box)[1]
        assert (aborted.id, aborted.body.phase, aborted.body.revision) == (old.id, "aborted", 4)  # type: ignore[union-attr]
        assert new.id != old.id
        assert box.counters["open_events"] == 1

    def test_a_phase_whose_beginning_was_turned_away_still_has_an_id_that_lasts(self, box: Outbox) -> None:
        first = box.put(event("update", 7, revision=5))
        assert box.put(event("end", 7, revision=6)).id == first.id

    def test_ids_are_uuid7_of_the_wall_clock(self) -> None:
        # RFC 9562, appendix A.6: 2022-02-22 14:22:22-05:00.
        text = uuid7(0x017F22E279B0 * 1_000_000)
        assert text.startswith("017f22e2-79b0-7")
        assert text[19] in "89ab"
        assert len({uuid7(0) for _ in range(100)}) == 100

    def test_seq_rises_by_one_and_the_stream_stays(self, path: Path) -> None:
        with_one = outbox(path)
        stream = with_one.stream
        assert fill(with_one, 3) == [1, 2, 3]
        with_one.close()
        again = outbox(path)
        assert fill(again, 1) == [4]
        assert again.stream == stream
        assert len(stream) == 32
        again.close()

    def test_the_envelope_is_complete(self, path: Path) -> None:
        clock = HandClock()
        box = outbox(path, clock)
        assert messages(box) == []
        message = box.put(event())
        assert messages(box) == [message]
        assert (message.device, message.boot, message.stream) == ("porch", "boot-1", box.stream)
        assert (message.wall_ns, message.monotonic_ns) == (clock.wall_ns(), clock.monotonic_ns())
        box.close()


class TestDurability:
    def test_what_put_returned_is_in_the_files(self, box: Outbox, path: Path, tmp_path: Path) -> None:
        kept = [box.put(event("end", 1)), box.put(event("end", 2, priority="critical"))]
        left = outbox(image(path, tmp_path / "after"))
        assert messages(left) == kept
        left.close()

    def test_what_was_open_is_aborted_at_the_next_start(self, box: Outbox, path: Path, tmp_path: Path) -> None:
        opened = box.put(event("new", 1))
        box.put(event("update", 1, revision=2))
        box.put(event("new", 5, label="glass"))
        box.put(event("end", 5, label="glass", revision=2))
        left = outbox(image(path, tmp_path / "after"))
        last = messages(left)[-1]
        assert isinstance(last.body, Event)
        assert (last.id, last.body.phase, last.body.revision) == (opened.id, "aborted", 3)
        assert len(seqs(left)) == 5
        left.close()

    def test_an_abort_that_finds_no_room_leaves_no_hole_and_waits(self, path: Path) -> None:
        box = outbox(path, max_bytes=64 * 1024)
        opened = box.put(event("new", 1, label="glass", priority="bulk"))
        while box.counters["bytes"] < 64 * 1024 - 600:
            fill(box, 1, priority="critical")
        before = seqs(box)
        box.close()
        full = outbox(path, max_bytes=64 * 1024)
        assert seqs(full) == before
        assert full.counters["turned_away"] == full.counters["open_events"] == 1
        full.acknowledge(Ack(stream=full.stream, upto=before[-1]))
        full.close()
        emptied = outbox(path, max_bytes=64 * 1024)
        (aborted,) = messages(emptied)
        assert (aborted.id, aborted.seq) == (opened.id, before[-1] + 1)
        emptied.close()

    def test_a_second_process_is_kept_out(self, box: Outbox, path: Path) -> None:
        with pytest.raises(StorageError, match="One agent at a time"):
            outbox(path)
        box.put(event())

    def test_closing_is_final_and_may_be_repeated(self, path: Path) -> None:
        box = outbox(path)
        box.close()
        box.close()
        with pytest.raises(StorageError, match="closed"):
            box.put(event())
        with pytest.raises(StorageError, match="closed"):
            box.batch(0, 1)
        outbox(path).close()

    def test_many_threads_share_commits_and_leave_no_gap(self, path: Path) -> None:
        entered = threading.Barrier(8)
        slow = threading.Event()
        box = outbox(path, tap=Tap(lambda sql: slow.wait(0.01) and None if sql == "COMMIT" else None))
        found: list[int] = []

        def work(number: int) -> None:
            entered.wait()
            for n in range(20):
                found.append(box.put(event("end", n, scene=f"s{number}")).seq)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(found) == list(range(1, 161)) == seqs(box)
        assert box.counters["commits"] < 160
        box.close()

    def test_a_refusal_touches_nobody_else_in_the_same_commit(self, box: Outbox) -> None:
        with pytest.raises(StorageError, match="non_finite"):
            box.put_all([event("end", 1), msgspec.structs.replace(event("end", 2), score=float("nan"))])
        assert seqs(box) == []
        assert fill(box, 1) == [1]
        assert box.counters["turned_away"] == 1

    @pytest.mark.parametrize(
        ("bad", "why"),
        [
            (msgspec.structs.replace(event(), scene="No Name"), "scene"),
            (msgspec.structs.replace(event(), score=1.5), "score"),
            (event(points=20_000), "oversize"),
        ],
    )
    def test_what_the_cloud_would_refuse_is_not_accepted(self, box: Outbox, bad: Event, why: str) -> None:
        with pytest.raises(StorageError, match=why):
            box.put(bad)
        assert box.counters["open_events"] == 0


class TestReading:
    def test_rows_come_in_order_and_in_bites(self, box: Outbox) -> None:
        fill(box, 10)
        assert [row.seq for row in box.batch(4, 3)] == [5, 6, 7]
        size = len(box.batch(0, 1)[0].payload)
        assert len(box.batch(0, 10, size * 3 + 1)) == 3
        assert len(box.batch(0, 10, 1)) == 1
        assert box.batch(10, 5) == []

    def test_leaves_follow_the_body(self, box: Outbox) -> None:
        box.put(event())
        box.report(Rollout(bundle="0" * 64, state="verified"))
        assert [row.leaf for row in box.batch(0, 10)] == ["event", "rollout"]

    def test_listeners_hear_of_new_rows_only(self, box: Outbox) -> None:
        heard: list[int] = []
        box.listen(lambda: heard.append(1))
        box.put(event())
        assert len(heard) == 1
        box.acknowledge(Ack(stream=box.stream, upto=1))
        assert len(heard) == 1


class TestAcknowledgement:
    def test_everything_up_to_but_the_holes_leaves(self, box: Outbox) -> None:
        fill(box, 10)
        assert box.acknowledge(Ack(stream=box.stream, upto=8, holes=((2, 3), (6, 6), (8, 20)))) == 4
        assert seqs(box) == [2, 3, 6, 8, 9, 10]
        assert box.acknowledge(Ack(stream=box.stream, upto=10)) == 6
        assert box.counters["rows"] == box.counters["bytes"] == 0

    def test_unsorted_and_overlapping_holes_keep_what_they_name(self, box: Outbox) -> None:
        fill(box, 10)
        box.acknowledge(Ack(stream=box.stream, upto=10, holes=((7, 8), (2, 5), (4, 6), (9, 3))))
        assert seqs(box) == [2, 3, 4, 5, 6, 7, 8]

    def test_a_foreign_stream_is_ignored(self, box: Outbox) -> None:
        fill(box, 2)
        assert box.acknowledge(Ack(stream="f" * 32, upto=2)) == 0
        assert seqs(box) == [1, 2]
        assert box.counters["acks_foreign"] == 1

    def test_more_than_was_ever_made_is_refused(self, box: Outbox) -> None:
        fill(box, 2)
        assert box.acknowledge(Ack(stream=box.stream, upto=3)) == 0
        assert seqs(box) == [1, 2]
        assert box.counters["acks_refused"] == 1


class TestEviction:
    def test_the_lowest_class_goes_first_and_the_gap_names_every_row(self, path: Path) -> None:
        box = outbox(path, max_bytes=64 * 1024)
        bulk = fill(box, 20, priority="bulk")
        normal = fill(box, 20)
        while not gaps(box):
            normal += fill(box, 1)
        gap = gaps(box)[0]
        gone = [seq for first, last in gap.ranges for seq in range(first, last + 1)]
        assert gone == bulk[: len(gone)]
        assert (gap.first, gap.last, gap.count) == (gone[0], gone[-1], len(gone))
        assert (gap.priority, gap.reason) == ("bulk", "full")
        assert box.counters["evicted"] == len(gone)
        assert set(seqs(box)) >= {*bulk[len(gone) :], *normal}
        box.close()

    def test_a_quarter_is_kept_for_critical_rows(self, path: Path) -> None:
        box = outbox(path, max_bytes=64 * 1024)
        fill(box, 200)
        assert box.counters["bytes"] <= 64 * 1024 * 3 // 4 + 8 * 1024
        normal = len([body for body in bodies(box) if isinstance(body, Event)])
        critical = fill(box, 15, priority="critical")
        assert set(critical) <= set(seqs(box))
        assert len([body for body in bodies(box) if isinstance(body, Event)]) == normal + 15
        box.close()

    def test_critical_rows_push_out_the_others_and_in_the_end_each_other(self, path: Path) -> None:
        box = outbox(path, max_bytes=64 * 1024)
        fill(box, 40)
        critical = fill(box, 300, priority="critical")
        assert {gap.priority for gap in gaps(box)} == {"normal", "critical"}
        assert box.counters["bytes"] <= 64 * 1024
        assert critical[-1] in seqs(box)
        box.close()

    def test_a_lower_class_never_pushes_out_a_higher_one(self, path: Path) -> None:
        box = outbox(path, max_bytes=64 * 1024)
        kept = fill(box, 60, priority="critical")
        while not gaps(box):
            kept += fill(box, 1, priority="critical")
        before = seqs(box)
        with pytest.raises(StorageError, match="no room for a normal row"):
            fill(box, 60)
        assert set(seqs(box)) >= set(before)
        assert box.counters["turned_away"] == 1
        box.close()

    def test_reports_of_loss_are_put_together_before_they_fill_the_file(self, path: Path) -> None:
        box = outbox(path, max_bytes=64 * 1024)
        for n in range(2000):
            with contextlib.suppress(StorageError):  # bulk rows, once the normal ones fill their share
                box.put(event("end", n, priority="bulk" if n % 2 else "normal"))
        left = gaps(box)
        assert len(left) < 20
        gone = [seq for gap in left for first, last in gap.ranges for seq in range(first, last + 1)]
        assert len(gone) == len(set(gone)) == sum(gap.count for gap in left)
        assert sorted([*gone, *seqs(box)]) == list(range(1, max(seqs(box)) + 1))
        box.close()

    def test_a_row_larger_than_the_outbox_is_turned_away(self, path: Path) -> None:
        box = outbox(path, max_bytes=16 * 1024)
        with pytest.raises(StorageError, match="no room"):
            box.put(event("end", points=2000))
        assert fill(box, 1) == [1]
        box.close()

    def test_the_file_stays_near_its_limit(self, path: Path) -> None:
        box = outbox(path, max_bytes=256 * 1024)
        for n in range(3000):
            with contextlib.suppress(StorageError):
                box.put(event("end", n, points=n % 40, priority=("bulk", "normal", "critical")[n % 3]))  # type: ignore[arg-type]
        assert path.stat().st_size < 512 * 1024
        box.close()


class TestQuarantine:
    def test_a_refused_row_is_kept_aside_and_reported(self, box: Outbox, path: Path) -> None:
        fill(box, 3)
        box.quarantine(box.stream, 2, "payload format invalid")
        assert seqs(box) == [1, 3, 4]
        assert gaps(box) == [Gap(first=2, last=2, count=1, priority="normal", reason="refused", ranges=((2, 2),))]
        with sqlite3.connect(path) as database:
            ((seq, reason, payload),) = database.execute("SELECT seq, reason, payload FROM quarantine").fetchall()
        database.close()
        assert (seq, reason) == (2, "payload format invalid")
        assert msgspec.json.decode(payload, type=Message).seq == 2

    def test_a_refused_report_of_loss_begets_no_other(self, box: Outbox) -> None:
        fill(box, 1)
        box.quarantine(box.stream, 1, "no")
        box.quarantine(box.stream, 2, "no")
        assert seqs(box) == []
        assert box.counters["quarantined"] == 2

    def test_rows_of_another_stream_or_gone_already_are_left_alone(self, box: Outbox) -> None:
        fill(box, 1)
        box.quarantine("f" * 32, 1, "no")
        box.quarantine(box.stream, 7, "no")
        assert seqs(box) == [1]

    def test_it_is_bounded(self, box: Outbox, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_MAX_QUARANTINED", 3)
        for seq in fill(box, 6):
            box.quarantine(box.stream, seq, "no")
        with sqlite3.connect(path) as database:
            assert database.execute("SELECT seq FROM quarantine").fetchall() == [(4,), (5,), (6,)]
        database.close()


class TestDamage:
    def damaged(self, path: Path) -> None:
        box = outbox(path, max_bytes=1 << 20)
        fill(box, 300)
        box.close()
        data = bytearray(path.read_bytes())
        middle = len(data) // 2 // 4096 * 4096
        data[middle : middle + 8192] = b"\xa5" * 8192
        path.write_bytes(data)

    def check(self, path: Path, old_stream: str | None) -> None:
        box = outbox(path)
        assert box.stream != old_stream
        assert gaps(box) == [Gap(first=0, last=0, count=0, priority="critical", reason="damaged")]
        assert box.counters["damaged"] == 1
        assert path.with_name("outbox.db.damaged-1").is_file()
        assert fill(box, 1) == [2]
        box.close()
        again = outbox(path)
        assert len(gaps(again)) == 1
        again.close()

    def test_torn_pages_are_found_at_the_next_start(self, path: Path) -> None:
        self.damaged(path)
        self.check(path, None)

    @pytest.mark.parametrize("content", [b"not a database, " * 400, b"SQLite format 3\x00" + b"\xff" * 4096])
    def test_a_file_that_is_none(self, path: Path, content: bytes) -> None:
        path.write_bytes(content)
        self.check(path, None)

    def test_a_file_of_another_format(self, path: Path) -> None:
        box = outbox(path)
        stream = box.stream
        box.close()
        with sqlite3.connect(path) as database:
            database.execute("PRAGMA user_version = 99")
        database.close()
        self.check(path, stream)

    def test_damage_while_running_starts_a_new_stream_and_keeps_on(self, path: Path) -> None:
        tap = Tap()
        box = outbox(path, tap=tap)
        stream = box.stream
        fill(box, 2)
        broken = [True]

        def fail(sql: str) -> None:
            if broken and "INSERT INTO row" in sql:
                broken.clear()
                raise sqlite3.DatabaseError("database disk image is malformed")

        tap.on_statement = fail
        message = box.put(event("end", 9))
        assert box.stream != stream
        assert message.stream == box.stream
        assert [type(body) for body in bodies(box)] == [Gap, Event]
        assert box.counters["damaged"] == 1
        assert box.counters["accepted"] == 3
        box.close()

    def test_damage_that_only_a_reader_meets_is_found_out(self, path: Path) -> None:
        sound = outbox(path)
        fill(sound, 300)
        sound.close()
        box = outbox(path)
        stream = box.stream
        with path.open("r+b") as file:  # rots after the check at the start
            file.seek(4096)
            file.write(b"\xa5" * (path.stat().st_size - 4096))
        assert [type(body) for body in bodies(box)] == [Gap]
        assert box.stream != stream
        assert fill(box, 1) == [2]
        box.close()

    def test_only_the_newest_damaged_files_are_kept(self, path: Path) -> None:
        for _ in range(4):
            path.write_bytes(b"garbage" * 1000)
            outbox(path).close()
        kept = sorted(
            file.name for file in path.parent.glob("*.damaged-*") if file.suffix.rpartition("-")[2].isdigit()
        )
        assert kept == ["outbox.db.damaged-3", "outbox.db.damaged-4"]


class TestFullDisk:
    def full(self, reserve: Path, *, until_freed: bool = True) -> Tap:
        """A disk on which nothing can be written while the reserve is there (or ever)."""

        def fail(sql: str) -> None:
            if sql == "COMMIT" and (reserve.exists() or not until_freed):
                raise sqlite3.OperationalError("database or disk is full")

        return Tap(fail)

    def test_the_reserve_is_given_up_for_what_must_be_committed(self, path: Path) -> None:
        reserve = path.with_name("outbox.db.reserve")
        clock, tap = HandClock(), Tap()
        box = outbox(path, clock, reserve_bytes=1 << 20, tap=tap)
        assert reserve.stat().st_size == 1 << 20
        tap.on_statement = self.full(reserve).on_statement
        message = box.put(event())
        assert messages(box) == [message]
        assert not reserve.exists()
        assert box.counters["disk_full"] == 1
        assert box.counters["ceiling"] < 1 << 20
        tap.on_statement = lambda sql: None
        clock.forward(11)
        box.put(event("end"))
        assert reserve.exists()
        assert box.counters["ceiling"] == 1 << 20
        box.close()

    def test_rows_take_each_others_place_while_the_disk_is_full(self, path: Path) -> None:
        reserve = path.with_name("outbox.db.reserve")
        tap = Tap()
        box = outbox(path, reserve_bytes=16 * 1024, tap=tap)
        fill(box, 100)
        tap.on_statement = self.full(reserve).on_statement
        before = box.counters["bytes"]
        fill(box, 100)
        assert box.counters["bytes"] <= before + 8 * 1024
        assert {gap.reason for gap in gaps(box)} == {"full"}
        box.close()

    def test_a_disk_that_stays_full_turns_away_and_loses_nothing(self, path: Path) -> None:
        tap = Tap()
        box = outbox(path, tap=tap)
        kept = fill(box, 3)
        tap.on_statement = self.full(path, until_freed=False).on_statement
        with pytest.raises(StorageError, match="cannot write"):
            box.put(event("new", 50))
        tap.on_statement = lambda sql: None
        assert seqs(box) == kept
        assert fill(box, 1) == [4]
        box.close()

    def test_other_troubles_of_the_disk_are_told_as_they_are(self, path: Path) -> None:
        tap = Tap()
        box = outbox(path, tap=tap)

        def fail(sql: str) -> None:
            raise sqlite3.OperationalError("disk I/O error")

        tap.on_statement = fail
        with pytest.raises(StorageError, match="disk I/O error"):
            box.put(event())
        tap.on_statement = lambda sql: None
        assert fill(box, 1) == [1]
        assert box.counters["disk_full"] == 0
        box.close()


class TestUploads:
    def test_promise_and_upload_are_one(self, box: Outbox, tmp_path: Path) -> None:
        opened = box.put(event())
        digest = hashlib.sha256(b"abc").hexdigest()
        message = box.attach(opened.id, evidence(digest), tmp_path / "a.jpg")
        assert message.id == opened.id
        assert isinstance(message.body, Evidence)
        (upload,) = box.uploads()
        assert (upload.sha256, upload.path, upload.size) == (digest, tmp_path / "a.jpg", 3)
        box.uploaded(digest)
        assert box.uploads() == []
        assert box.counters["uploads"] == 0
        assert len(seqs(box)) == 2

    def test_the_same_bytes_are_uploaded_once(self, box: Outbox, tmp_path: Path) -> None:
        for number in range(2):
            box.attach(box.put(event("end", number)).id, evidence("a" * 64), tmp_path / f"{number}.jpg")
        assert [upload.path for upload in box.uploads()] == [tmp_path / "0.jpg"]

    def test_given_up_uploads_keep_their_reason(self, box: Outbox, tmp_path: Path) -> None:
        for digit in "ab":
            box.attach(uuid7(0), evidence(digit * 64), tmp_path / digit)
        box.give_up("a" * 64, "413: too large")
        assert [upload.sha256[0] for upload in box.uploads()] == ["b"]
        assert box.given_up() == [("a" * 64, "413: too large")]
        assert box.counters["uploads_given_up"] == 1

    def test_the_list_is_bounded_and_the_given_up_go_first(
        self, box: Outbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_MAX_UPLOADS", 3)
        for digit in "abc":
            box.attach(uuid7(0), evidence(digit * 64), tmp_path / digit)
        box.give_up("b" * 64, "no")
        for digit in "de":
            box.attach(uuid7(0), evidence(digit * 64), tmp_path / digit)
        assert [upload.sha256[0] for upload in box.uploads()] == ["c", "d", "e"]
        assert box.counters["uploads_dropped"] == 2
