"""What the dashboard shows beside the alerts themselves: counts, an alert's neighbours and course, losses.

Like `review`, every query takes the `Viewer` who asks and stays inside that person's sites.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import sqlalchemy as sa
from sqlalchemy.orm import Session

from cloud_sync.accounts import Viewer
from cloud_sync.errors import AccessRefused
from cloud_sync.review import Filters, conditions, visible
from cloud_sync.store.tables import Alert, DeadLetter, Device, Loss, Received, Release, Verdict

WINDOW_DAYS = 30  #: counts look back this far: beyond it a number tells nobody what to do
HOURS = 24
MAX_MESSAGES = 500  #: of one event that are read to tell its course
MAX_LOSSES = 20
_HOUR_NS = 3600 * 1_000_000_000


@dataclass(frozen=True)
class Overview:
    """Counts of the last `WINDOW_DAYS` days, and alerts per hour, the current hour last."""

    total: int
    live: int
    verdicts: dict[str, int]  #: real, false, unsure, and `none` for what nobody has judged
    hours: tuple[int, ...]


@dataclass(frozen=True)
class Course:
    """How an event came in. Times are UTC nanoseconds, `sent` on the device's clock, `received` on the cloud's."""

    messages: int
    first_sent_ns: int
    first_received_ns: int
    last_phase: str
    last_sent_ns: int
    last_received_ns: int


@dataclass(frozen=True)
class LossView:
    """Messages that a device says it had to give up."""

    count: int
    reason: str
    priority: str
    received_ns: int


class _Body(msgspec.Struct):
    phase: str = ""


class _Sent(msgspec.Struct):
    wall_ns: int
    body: _Body


def overview(session: Session, viewer: Viewer, now_ns: int) -> Overview:
    """Counts for the head of the list; one pass over the window by the index on the start."""
    newest = sa.select(sa.func.max(Verdict.id).label("id")).group_by(Verdict.event_id).subquery()
    said = sa.select(Verdict.event_id, Verdict.verdict).join(newest, Verdict.id == newest.c.id).subquery()
    live = Alert.ended_ns.is_(None)
    query = (
        sa.select(said.c.verdict, live, sa.func.count())
        .select_from(Alert)
        .outerjoin(said, said.c.event_id == Alert.id)
        .where(visible(viewer), Alert.started_ns >= now_ns - WINDOW_DAYS * 24 * _HOUR_NS)
        .group_by(said.c.verdict, live)
    )
    verdicts = {"real": 0, "false": 0, "unsure": 0, "none": 0}
    open_count = 0
    for verdict, is_open, count in session.execute(query):
        verdicts[verdict or "none"] += count
        open_count += count if is_open else 0
    return Overview(sum(verdicts.values()), open_count, verdicts, _hours(session, viewer, now_ns))


def _hours(session: Session, viewer: Viewer, now_ns: int) -> tuple[int, ...]:
    first = now_ns // _HOUR_NS - HOURS + 1
    # One bounded count per hour would be 24 queries; the integer division is the same in both databases.
    hour = (Alert.started_ns - Alert.started_ns % _HOUR_NS).label("hour")
    query = (
        sa.select(hour, sa.func.count()).where(visible(viewer), Alert.started_ns >= first * _HOUR_NS).group_by(hour)
    )
    counts = {int(start) // _HOUR_NS: count for start, count in session.execute(query)}
    return tuple(counts.get(first + index, 0) for index in range(HOURS))


def change_of(session: Session, viewer: Viewer, id: str) -> int | None:
    """The newest change of one alert, cheap enough to ask every second; None if there is no such alert."""
    return session.execute(sa.select(Alert.change).where(Alert.id == id, visible(viewer))).scalar()


def neighbours(
    session: Session, viewer: Viewer, started_ns: int, id: str, filters: Filters
) -> tuple[str | None, str | None]:
    """Ids of the next newer and the next older alert among those that `filters` asks for."""
    key = sa.tuple_(Alert.started_ns, Alert.id)
    here = sa.tuple_(sa.literal(started_ns, sa.BigInteger), sa.literal(id))
    base = sa.select(Alert.id).where(visible(viewer), *conditions(filters)).limit(1)
    newer = session.execute(base.where(key > here).order_by(Alert.started_ns, Alert.id)).scalar()
    older = session.execute(base.where(key < here).order_by(Alert.started_ns.desc(), Alert.id.desc())).scalar()
    return newer, older


def course(session: Session, viewer: Viewer, id: str) -> Course | None:
    """How the messages of an event came in; None where none of them is kept."""
    query = (
        sa.select(Received.received_ns, Received.body)
        .join(Alert, (Alert.id == Received.event_id) & (Alert.device == Received.device))
        .where(Alert.id == id, visible(viewer), Received.kind == "event")
        .order_by(Received.received_ns, Received.seq)
        .limit(MAX_MESSAGES)
    )
    sent = [(at, msgspec.json.decode(body, type=_Sent)) for at, body in session.execute(query)]
    if not sent:
        return None
    first_at, first = min(sent, key=lambda item: item[1].wall_ns)
    last_at, last = max(sent, key=lambda item: item[1].wall_ns)
    return Course(len(sent), first.wall_ns, first_at, last.body.phase, last.wall_ns, last_at)


def release_name(session: Session, bundle: str) -> str:
    """Name and counter under which a bundle was released here, or nothing."""
    row = session.get(Release, bundle)
    return f"{row.name} (release {row.counter})" if row else ""


def losses(session: Session, viewer: Viewer) -> dict[str, list[LossView]]:
    """The newest losses of each device, at most `MAX_LOSSES` in all."""
    query = sa.select(Loss).join(Device, Device.name == Loss.device).order_by(Loss.id.desc()).limit(MAX_LOSSES)
    if viewer.sites is not None:
        query = query.where(Device.site.in_(viewer.sites))
    found: dict[str, list[LossView]] = {}
    for row in session.execute(query).scalars():
        found.setdefault(row.device, []).append(LossView(row.count, row.reason, row.priority, row.received_ns))
    return found


def dead_letters(session: Session, viewer: Viewer) -> dict[str, int]:
    """Refused payloads by reason, most first. AccessRefused 403 for anyone but an admin: they may hold anything."""
    if not viewer.may("admin"):
        raise AccessRefused(403, f"{viewer.name} may not see refused messages")
    count = sa.func.count()
    query = sa.select(DeadLetter.reason, count).group_by(DeadLetter.reason).order_by(count.desc())
    return dict(session.execute(query).all())
