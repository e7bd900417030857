"""Counts, neighbours, courses and losses: what is counted, and for whom."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud_sync import overview
from cloud_sync.accounts import Viewer
from cloud_sync.errors import AccessRefused
from cloud_sync.review import Filters
from edge_agent.contract.event import Gap
from tests.browser.showcase import Incident, S, Showcase, uuid7

ADA = Viewer("ada", "admin")
OLGA = Viewer("olga", "operator")
ELSA = Viewer("elsa", "operator", frozenset({"elsewhere"}))
DAY_S = 86_400


@pytest.fixture
def showcase(tmp_path: Path) -> Iterator[Showcase]:
    made = Showcase(tmp_path)
    made.enrol("edge-1")
    yield made
    made.close()


def incident(ago_s: float, **more: object) -> Incident:
    given = {"label": "alarm", "seed": 1, "device": "edge-1", "scene": "hall", "evidence": (), **more}
    return Incident(ago_s=ago_s, shares={"audio": 4.0}, **given)  # type: ignore[arg-type]


def test_counts_are_of_thirty_days_and_of_the_newest_verdict(showcase: Showcase) -> None:
    showcase.add(incident(60, phase="update"))
    showcase.add(incident(3000, verdicts=(("olga", "real", ""), ("piet", "false", ""))))
    showcase.add(incident(5 * DAY_S, verdicts=(("olga", "real", ""),)))
    showcase.add(incident(31 * DAY_S))
    with showcase.store.read() as session:
        counts = overview.overview(session, OLGA, showcase.started_ns)
    assert (counts.total, counts.live) == (3, 1)
    assert counts.verdicts == {"real": 1, "false": 1, "unsure": 0, "none": 1}


def test_hours_end_with_the_one_that_runs_now(showcase: Showcase) -> None:
    hour_ns = 3600 * S
    now_ns = (showcase.started_ns // hour_ns) * hour_ns + 600 * S  # ten minutes past
    into_s = (showcase.started_ns - now_ns) / S
    for ago_s in (30, 500, 3000, 23.9 * 3600, 24.5 * 3600):
        showcase.send_many([incident(into_s + ago_s)])
    with showcase.store.read() as session:
        hours = overview.overview(session, OLGA, now_ns).hours
    assert len(hours) == 24
    assert hours[-2:] == (1, 2)
    assert sum(hours) == 3  # the last two began before the first of the 24 hours did


def test_neighbours_lie_within_the_filters(showcase: Showcase) -> None:
    newest, other, middle, oldest = showcase.send_many(
        [incident(10), incident(20, label="fire"), incident(30), incident(40)]
    )
    with showcase.store.read() as session:
        started_ns = showcase.started_ns - 30 * S

        def around(viewer: Viewer, filters: Filters) -> tuple[str | None, str | None]:
            return overview.neighbours(session, viewer, started_ns, middle, filters)

        assert around(OLGA, Filters()) == (other, oldest)
        assert around(OLGA, Filters(label="alarm")) == (newest, oldest)
        assert around(OLGA, Filters(label="fire")) == (other, None)
        assert around(ELSA, Filters()) == (None, None)


def test_a_course_tells_first_and_last_message(showcase: Showcase) -> None:
    id = showcase.add(incident(100))
    with showcase.store.read() as session:
        course = overview.course(session, OLGA, id)
        assert overview.course(session, OLGA, uuid7(1, "no such event")) is None
        assert overview.course(session, ELSA, id) is None
    assert course is not None
    assert (course.messages, course.last_phase) == (3, "end")
    assert course.first_received_ns - course.first_sent_ns == 340_000_000
    assert course.last_sent_ns > course.first_sent_ns


def test_nothing_of_another_site_is_counted_or_shown(showcase: Showcase) -> None:
    id = showcase.add(incident(60))
    gap = Gap(first=50, last=52, count=3, priority="bulk", reason="full")
    showcase.send("edge-1", uuid7(1, "gap"), gap, showcase.started_ns)
    with showcase.store.read() as session:
        assert overview.overview(session, ELSA, showcase.started_ns).total == 0
        assert sum(overview.overview(session, ELSA, showcase.started_ns).hours) == 0
        assert overview.change_of(session, ELSA, id) is None
        assert overview.change_of(session, OLGA, id) is not None
        assert overview.losses(session, ELSA) == {}
        assert [loss.count for loss in overview.losses(session, OLGA)["edge-1"]] == [3]


def test_dead_letters_are_for_admins(showcase: Showcase) -> None:
    for payload in (b"{", b"{", b'{"v":9}'):
        showcase.publish("edge-1", "event", payload)
    with showcase.store.read() as session:
        found = overview.dead_letters(session, ADA)
        assert sum(found.values()) == 3
        assert next(iter(found.values())) == 2
        with pytest.raises(AccessRefused):
            overview.dead_letters(session, OLGA)
