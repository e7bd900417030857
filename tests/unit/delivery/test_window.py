"""The rules of what is on its way: no broker, no clock."""

from __future__ import annotations

import zlib

import pytest

from edge_agent.contract import wire
from edge_agent.contract.event import Ack
from edge_agent.outbox import Row
from edge_agent.publish import MAX_REFUSALS, Window, packed

STREAM = "0" * 32


def rows(*seqs: int, leaf: str = "event") -> list[Row]:
    return [Row(seq, b'{"seq":%d}' % seq, leaf) for seq in seqs]


def ack(upto: int, *holes: tuple[int, int]) -> Ack:
    return Ack(stream=STREAM, upto=upto, holes=holes)


def seqs(chosen: list[Row]) -> list[int]:
    return [row.seq for row in chosen]


@pytest.fixture
def window() -> Window:
    """Two messages on their way: 1–3 as number 1, taken by the broker, and 4–5 as number 2, not confirmed."""
    made = Window(resend_s=60.0)
    made.sent(1, [1, 2, 3], 0.0)
    made.sent(2, [4, 5], 10.0)
    assert made.taken(1)
    return made


def test_what_is_on_its_way_is_not_sent_again(window: Window) -> None:
    assert window.cursor == 5
    assert seqs(window.sendable(rows(4, 5, 6))) == [6]


def test_a_broker_without_memory_gets_everything_again(window: Window) -> None:
    window.connected(64, session_present=False)
    assert (window.messages, window.cursor) == (0, 0)


def test_a_broker_that_remembers_gets_only_what_it_never_confirmed(window: Window) -> None:
    window.connected(64, session_present=True)
    assert (window.messages, window.cursor) == (1, 3)
    assert seqs(window.sendable(rows(4, 5, 6))) == [4, 5, 6]


def test_numbers_of_an_old_connection_mean_nothing_on_the_next(window: Window) -> None:
    window.connected(64, session_present=True)
    assert not window.taken(1)
    assert window.refused(1) == []


def test_what_waits_too_long_goes_again_and_the_rest_is_left_alone(window: Window) -> None:
    window.tick(60.0)
    assert window.messages == 2
    window.tick(60.1)
    assert (window.messages, window.cursor) == (1, 0)
    assert seqs(window.sendable(rows(1, 2, 3, 4, 5, 6))) == [1, 2, 3, 6]


def test_acknowledged_rows_leave_and_holes_stay(window: Window) -> None:
    assert window.acknowledged(ack(4, (2, 2)))
    assert window.messages == 2
    window.start_over()
    assert window.cursor == 1
    assert not window.acknowledged(ack(4, (2, 2)))


def test_a_word_about_other_rows_is_no_progress(window: Window) -> None:
    assert not window.acknowledged(ack(5, (1, 5)))
    assert window.acknowledged(ack(5))
    assert window.oldest_s is None


def test_it_has_room_for_as_many_messages_as_the_broker_takes() -> None:
    window = Window(60.0)
    window.connected(2, session_present=False)
    for mid in (1, 2):
        assert window.has_room()
        window.sent(mid, [mid], 0.0)
    assert not window.has_room()
    window.acknowledged(ack(1))
    assert window.has_room()


def test_a_backlog_in_batches_is_bounded_by_its_rows() -> None:
    window = Window(60.0)
    for mid in range(8):
        assert window.has_room()
        window.sent(mid, list(range(mid * 256 + 1, mid * 256 + 257)), 0.0)
    assert not window.has_room()
    window.acknowledged(ack(1))
    assert window.has_room()


def test_nothing_acknowledged_means_ever_longer_waits_until_a_word_comes(window: Window) -> None:
    for _ in range(6):
        window.start_over()
    assert window.resend_s == 600.0
    window.sent(3, [1], 0.0)
    window.acknowledged(ack(1))
    assert window.resend_s == 60.0


def test_leaves_do_not_share_a_message() -> None:
    chosen = Window(60.0).sendable([*rows(1, 2), *rows(3, leaf="rollout"), *rows(4)])
    assert seqs(chosen) == [1, 2]


class TestRefusal:
    def test_a_refused_batch_goes_again_one_by_one_and_nobody_is_blamed_for_the_others(self) -> None:
        window = Window(60.0)
        window.sent(1, [1, 2], 0.0)
        assert window.hold(window.refused(1), 0.0, draw=1.0) == []
        assert window.sendable(rows(1, 2)) == []
        window.tick(1.1)
        assert seqs(window.sendable(rows(1, 2))) == [1]
        window.sent(2, [1], 1.1)
        assert seqs(window.sendable(rows(1, 2, 3))) == [2]

    def test_five_refusals_of_one_row_are_enough(self) -> None:
        window = Window(60.0)
        now_s = 0.0
        for number in range(1, MAX_REFUSALS + 1):
            window.tick(now_s)
            assert seqs(window.sendable(rows(7))) == [7]
            window.sent(number, [7], now_s)
            given_up = window.hold(window.refused(number), now_s, draw=1.0)
            assert given_up == ([7] if number == MAX_REFUSALS else [])
            now_s += 31.0

    def test_waits_grow_and_are_spread(self) -> None:
        window = Window(60.0)
        waits = []
        for number in range(1, MAX_REFUSALS):
            window.sent(number, [7], 0.0)
            window.hold(window.refused(number), 0.0, draw=0.5)
            waits.append(next(t / 4 for t in range(200) if _released(window, t / 4)))
        assert waits == sorted(waits)
        assert waits[-1] > waits[0]

    def test_what_nobody_is_to_blame_for_goes_again_at_once(self) -> None:
        window = Window(60.0)
        window.sent(1, [1, 2], 0.0)
        window.release(window.refused(1))
        assert seqs(window.sendable(rows(1, 2))) == [1, 2]

    def test_the_message_that_a_connection_broke_over_is_the_oldest_unconfirmed(self, window: Window) -> None:
        window.sent(3, [6], 20.0)
        assert window.suspects() == [4, 5]
        assert window.suspects() == [6]
        assert window.suspects() == []
        assert window.messages == 1

    def test_too_many_refused_rows_stop_the_flow(self) -> None:
        window = Window(60.0)
        window.sent(1, list(range(1, 1025)), 0.0)
        window.hold(window.refused(1), 0.0, draw=1.0)
        assert not window.has_room()


def _released(window: Window, now_s: float) -> bool:
    window.tick(now_s)
    return bool(window.sendable(rows(7)))


class TestPacking:
    def test_a_lone_row_goes_as_it_is(self) -> None:
        assert packed(rows(1), 1000) == (b'{"seq":1}', 1)

    def test_several_share_a_frame(self) -> None:
        frame, taken = packed(rows(1, 2, 3), 1000)
        assert taken == 3
        assert frame is not None
        assert wire.split(frame) == [row.payload for row in rows(1, 2, 3)]

    def test_as_many_as_the_broker_takes(self) -> None:
        noise = [
            Row(n, b'"' + zlib.crc32(b"%d" % n).to_bytes(4, "big").hex().encode() * 40 + b'"', "event")
            for n in range(64)
        ]
        everything, _ = packed(noise, 100_000)
        assert everything is not None
        frame, taken = packed(noise, len(everything) // 2)
        assert frame is not None
        assert len(frame) <= len(everything) // 2
        assert 1 <= taken < 64
        assert wire.split(frame) == [row.payload for row in noise[:taken]]

    def test_a_long_row_may_fit_once_it_is_packed(self) -> None:
        long = [Row(1, b'"' + b"a" * 5000 + b'"', "event")]
        payload, taken = packed(long, 1000)
        assert (wire.split(payload or b""), taken) == ([long[0].payload], 1)

    def test_what_fits_in_no_way(self) -> None:
        assert packed(rows(1), 5) == (None, 1)
