"""The thread of a driver: bounded, called off from anywhere, and its end is told."""

from __future__ import annotations

import threading

import pytest

from edge_agent.errors import SourceEnded, SourceError
from edge_agent.sources.line import Line


def test_items_come_in_order_and_then_the_reason_of_the_end_each_time() -> None:
    line: Line[int] = Line("line", 3)

    def pull() -> SourceError:
        line.connected()
        assert all(line.put(index) for index in range(10))
        return SourceEnded("done")

    line.open(pull, 5)
    assert [line.get(5) for _ in range(10)] == list(range(10))
    for _ in range(2):
        with pytest.raises(SourceEnded, match="done"):
            line.get(5)
    assert line.close(5)


def test_a_full_line_makes_the_thread_wait_and_close_lets_it_go() -> None:
    line: Line[int] = Line("line", 2)
    refused = threading.Event()

    def pull() -> SourceError:
        line.connected()
        while line.put(0):
            pass
        refused.set()
        return SourceError("late")

    line.open(pull, 5)
    assert not refused.wait(0.05)
    assert line.close(5)
    assert refused.is_set()
    with pytest.raises(SourceError, match="closed"):  # the first reason stays, and what was unread is gone
        line.get(0)


def test_a_library_that_never_lets_go_does_not_hold_up_anybody() -> None:
    line: Line[int] = Line("line", 2)
    library = threading.Event()

    def pull() -> SourceError:
        line.connected()
        library.wait()
        return SourceError("late")

    line.open(pull, 5)
    assert line.get(0.01) is None
    assert not line.close(0.01)
    library.set()
    assert line.close(5)


def test_one_that_does_not_connect_fails_to_open() -> None:
    line: Line[int] = Line("line", 2)
    with pytest.raises(SourceError, match="no answer within"):
        line.open(lambda: SourceError("late") if line.closing.wait(5) else SourceError("never"), 0.01)
    assert line.close(5)


def test_one_that_was_closed_first_never_starts() -> None:
    line: Line[int] = Line("line", 2)
    assert line.close(0)
    with pytest.raises(SourceError, match="closed"):
        line.open(lambda: SourceError("ran"), 1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_of_the_driver_itself_ends_the_line_too() -> None:
    line: Line[int] = Line("line", 2)

    def pull() -> SourceError:
        raise ZeroDivisionError

    with pytest.raises(SourceError, match="fault of its own"):
        line.open(pull, 5)
    line.close(5)
