"""Stream time on the monotonic clock: what jitters, drifts, jumps and wraps still comes out right."""

from __future__ import annotations

import random

import pytest

from edge_agent.sources.timeline import SECOND, Live, Paced

MS = 1_000_000


def run(
    live: Live, frames: int, *, offset_ns: int, drift: float = 0.0, jitter_ms: float = 20.0, start: int = 0
) -> list[float]:
    """Error in ms of each picture: a sender whose clock starts at offset and runs (1 + drift) as fast as ours."""
    chance = random.Random(7)
    errors = []
    for index in range(start, start + frames):
        seen_ns = index * 100 * MS
        media_ns = offset_ns + round(seen_ns * (1 + drift))
        arrival_ns = seen_ns + 5 * MS + round(chance.expovariate(1 / jitter_ms) * MS)
        live.arrived("video", media_ns, arrival_ns, media_ns)
        errors.append((live.captured_ns("video", media_ns) - seen_ns) / MS)
    return errors


def test_jitter_is_taken_out() -> None:
    errors = run(Live(), 600, offset_ns=-(10**15))
    assert max(errors[100:]) - min(errors[100:]) < 3
    assert all(5 <= error < 10 for error in errors[100:])


@pytest.mark.parametrize("drift", [-100e-6, 100e-6])
def test_a_clock_that_runs_wrong_is_followed(drift: float) -> None:
    live = Live()
    errors = run(live, 36_000, offset_ns=0, drift=drift, jitter_ms=10)  # an hour: 360 ms of drift
    assert all(-5 < error < 20 for error in errors[600:])
    assert live.jumps == 0


def test_nothing_is_dated_after_it_arrived() -> None:
    live, chance = Live(), random.Random(3)
    for index in range(500):
        arrival_ns = index * 40 * MS + chance.randrange(200 * MS)
        live.arrived("video", index * 40 * MS, arrival_ns)
        assert live.captured_ns("video", index * 40 * MS) <= arrival_ns


def test_picture_and_sound_share_one_clock() -> None:
    live = Live()
    for index in range(200):
        media_ns = index * 100 * MS
        live.arrived("video", media_ns, media_ns + 300 * MS)  # encoded slowly
        live.arrived("audio", media_ns, media_ns + 40 * MS, media_ns + 20 * MS)
    assert live.captured_ns("video", SECOND) == live.captured_ns("audio", SECOND)


@pytest.mark.parametrize(
    "by_s", [-95_443.7, 95_443.7, -3.0]
)  # a wrap of MPEG's 33 bits, and a camera that set its clock
def test_a_jump_of_the_sender_is_counted_once_per_stream_and_changes_nothing(by_s: float) -> None:
    live = Live()
    before = 0
    for index in range(400):
        seen_ns = index * 50 * MS
        media_ns = seen_ns + (round(by_s * SECOND) if index >= 200 else 0) + 10**15
        for stream in ("video", "audio"):
            live.arrived(stream, media_ns, seen_ns + 10 * MS)
            captured_ns = live.captured_ns(stream, media_ns)
            assert abs(captured_ns - seen_ns - 10 * MS) < 2 * MS
            assert captured_ns >= before
            before = captured_ns - 2 * MS
    assert live.jumps == 2


def test_a_stall_of_the_network_is_no_jump() -> None:
    live = Live()
    for index in range(100):
        live.arrived("video", index * 100 * MS, index * 100 * MS)
    for index in range(100, 150):  # five seconds come at once
        live.arrived("video", index * 100 * MS, 15 * SECOND)
        assert live.captured_ns("video", index * 100 * MS) == index * 100 * MS
    assert live.jumps == 0


def test_a_server_that_sends_its_buffer_first_settles_without_a_jump() -> None:
    live = Live()
    for index in range(20):  # two seconds of old pictures, at once
        live.arrived("video", index * 100 * MS, 0)
    for index in range(20, 120):
        live.arrived("video", index * 100 * MS, (index - 20) * 100 * MS + 1)
    assert live.jumps == 0
    assert live.captured_ns("video", 10 * SECOND) < 8 * SECOND + 200 * MS


def test_a_file_begins_now_and_goes_on_where_it_ended() -> None:
    paced = Paced(7 * SECOND)
    for index in range(10):
        paced.arrived("video", 3 * SECOND + index * 100 * MS, 0, 3 * SECOND + (index + 1) * 100 * MS)
        assert paced.captured_ns("video", 3 * SECOND + index * 100 * MS) == 7 * SECOND + index * 100 * MS
    paced.rewind()
    paced.arrived("video", 3 * SECOND, 0)
    assert paced.captured_ns("video", 3 * SECOND) == 8 * SECOND
    assert paced.jumps == 0


@pytest.mark.parametrize("to_s", [0.0, 5000.0])
def test_times_that_jump_inside_a_file_do_not_make_it_wait_or_race(to_s: float) -> None:
    paced = Paced(0)
    for index in range(20):
        paced.arrived("video", 100 * SECOND + index * 100 * MS, 0)
    paced.arrived("video", round(to_s * SECOND), 0)
    assert paced.captured_ns("video", round(to_s * SECOND)) == pytest.approx(1.9 * SECOND, abs=0.2 * SECOND)
    assert paced.jumps == 1


def test_a_file_that_was_held_up_goes_on_from_now() -> None:
    paced = Paced(0)
    paced.arrived("video", 0, 0)
    paced.arrived("video", 100 * MS, 3600 * SECOND)  # the machine slept
    assert paced.captured_ns("video", 100 * MS) == 3600 * SECOND
