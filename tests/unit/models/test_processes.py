"""Work on two cores: nothing of the answers may depend on it."""

from __future__ import annotations

import os

from models import processes


def _where(item):
    return item, os.getpid()


def test_answers_come_in_the_order_of_the_items(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    answers = processes.side_by_side(_where, list(range(6)))
    assert [item for item, _ in answers] == list(range(6))
    assert os.getpid() not in {pid for _, pid in answers}


def test_on_one_core_nothing_is_started(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert processes.side_by_side(_where, [1, 2]) == [(1, os.getpid()), (2, os.getpid())]


def test_what_was_dealt_is_interleaved_in_order():
    items = list(range(7))
    for count in (1, 2, 3):
        assert processes.interleaved([items[hand::count] for hand in range(count)]) == items
    assert processes.interleaved([]) == []
