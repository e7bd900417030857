"""What people ask of the store: alerts, one alert whole, devices; and what they answer: verdicts.

Every query takes the `Viewer` who asks: what lies outside that person's sites does not exist for them. The API
and the dashboard both read through here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.orm import Session

from cloud_sync.accounts import Viewer
from cloud_sync.errors import AccessRefused, CloudError, NotFound
from cloud_sync.fleet import DeviceView, devices
from cloud_sync.store import audit, raise_counter
from cloud_sync.store.tables import Alert, Counter, Device, EvidenceFile, Point, Verdict

__all__ = [
    "AlertDetail",
    "AlertRow",
    "DeviceView",
    "EvidenceView",
    "Facets",
    "Filters",
    "VerdictView",
    "alert",
    "alerts",
    "conditions",
    "devices",
    "evidence",
    "facets",
    "give_verdict",
    "latest_change",
    "visible",
]

Judgement = Literal["real", "false", "unsure"]
JUDGEMENTS: tuple[Judgement, ...] = ("real", "false", "unsure")
MAX_LIMIT = 200
MAX_POINTS = 20_000  #: 2.7 hours of steps of 500 ms
MAX_NOTE = 2000  #: characters


@dataclass(frozen=True)
class Filters:
    """Which alerts; None means any. Times are UTC nanoseconds, of the alert's start."""

    site: str | None = None
    device: str | None = None
    scene: str | None = None
    label: str | None = None
    open: bool | None = None  #: True: not ended yet
    verdict: Judgement | Literal["none"] | None = None  #: "none": nobody has judged it
    since_ns: int | None = None
    until_ns: int | None = None


@dataclass(frozen=True)
class AlertRow:
    """An alert in a list. `shares` and `classes` are of its highest-scored message; shares are in logit units."""

    id: str
    change: int  #: pass the highest one as `after_change` to learn what is newer
    cursor: str  #: pass as `before` to get older ones
    site: str
    device: str
    scene: str
    label: str
    phase: str
    revision: int
    started_ns: int
    ended_ns: int | None
    wall_quality: str
    score: float
    peak: float
    threshold: float
    origin: str
    rule: str | None
    calibrating: bool
    bundle: str
    shares: dict[str, float]
    classes: dict[str, float]
    present: tuple[str, ...]  #: modalities that the shares rest on
    verdict: str | None  #: the newest one that anybody gave
    evidence: tuple[str, ...]  #: roles whose bytes are here


@dataclass(frozen=True)
class EvidenceView:
    """A file that belongs to an alert; `stored` once its bytes are here."""

    role: str
    sha256: str
    size: int
    media_type: str
    start_ns: int  #: on the device's monotonic clock, like `AlertDetail.started_monotonic_ns`
    end_ns: int
    stored: bool


@dataclass(frozen=True)
class VerdictView:
    """What one person says of an alert now."""

    user: str
    verdict: str
    note: str
    bundle: str
    given_ns: int


@dataclass(frozen=True)
class AlertDetail:
    """An alert whole."""

    row: AlertRow
    started_monotonic_ns: int  #: onset on the device's clock: places the event inside the clip
    step_ms: int
    onset_step: int
    body: dict[str, Any]  #: newest `Event` without trace and heat
    best: dict[str, Any]  #: the same of the highest-scored message
    heat: dict[str, Any] | None  #: {rows, cols, values: base64 of bytes 0..255 row by row, score}
    points: tuple[tuple[int, float], ...]  #: (step, score), rising
    evidence: tuple[EvidenceView, ...]
    verdicts: tuple[VerdictView, ...]  #: newest of each person, newest first
    bundle_name: str  #: what the device calls the bundle, while it still runs it; else ""


@dataclass(frozen=True)
class Facets:
    """What there is to filter by."""

    sites: tuple[str, ...]
    devices: tuple[str, ...]
    scenes: tuple[str, ...]
    labels: tuple[str, ...]


_NEWEST_VERDICT = (
    sa.select(Verdict.verdict)
    .where(Verdict.event_id == Alert.id)
    .order_by(Verdict.id.desc())
    .limit(1)
    .correlate(Alert)
    .scalar_subquery()
)


def alerts(
    session: Session,
    viewer: Viewer,
    *,
    after_change: int | None = None,
    before: str | None = None,
    limit: int = 50,
    filters: Filters = Filters(),
) -> list[AlertRow]:
    """Alerts, newest start first; at most `limit` (1..200), older than the `cursor` given as `before`.

    With `after_change`: those that were written since, in the order of their changes, to follow what happens;
    fewer than `limit` means that nothing else is newer. CloudError for a cursor that is none of ours.
    """
    query = sa.select(Alert, _NEWEST_VERDICT).where(visible(viewer), *conditions(filters))
    if after_change is not None:
        query = query.where(Alert.change > after_change).order_by(Alert.change)
    else:
        query = query.order_by(Alert.started_ns.desc(), Alert.id.desc())
    if before is not None:
        query = query.where(sa.tuple_(Alert.started_ns, Alert.id) < sa.tuple_(*_cursor(before)))
    found = session.execute(query.limit(max(1, min(limit, MAX_LIMIT)))).all()
    roles = _stored_roles(session, [row.id for row, _ in found])
    return [_row(row, verdict, roles.get((row.id, row.device), ())) for row, verdict in found]


def latest_change(session: Session) -> int:
    """The highest change so far; pass it as `after_change`."""
    return session.execute(sa.select(Counter.value).where(Counter.name == "change")).scalar() or 0


def alert(session: Session, viewer: Viewer, id: str) -> AlertDetail:
    """One alert with everything that belongs to it. NotFound if there is none that the viewer may see."""
    row = _seen(session, viewer, id)
    files = session.execute(
        sa.select(EvidenceFile)
        .where(EvidenceFile.event_id == id, EvidenceFile.device == row.device)
        .order_by(EvidenceFile.role)
    ).scalars()
    points = session.execute(
        sa.select(Point.step, Point.score).where(Point.event_id == id).order_by(Point.step).limit(MAX_POINTS)
    )
    verdicts = _verdicts(session, id)
    views = tuple(_evidence(file) for file in files)
    state = session.execute(sa.select(Device.state).where(Device.name == row.device)).scalar() or {}
    return AlertDetail(
        row=_row(row, verdicts[0].verdict if verdicts else None, [view.role for view in views if view.stored]),
        started_monotonic_ns=row.started_monotonic_ns,
        step_ms=int(row.body.get("step_ms", 0)),
        onset_step=int(row.body.get("onset_step", 0)),
        body=row.body,
        best=row.best,
        heat=row.heat,
        points=tuple((step, score) for step, score in points),
        evidence=views,
        verdicts=verdicts,
        bundle_name=str(state.get("bundle_name", "")) if state.get("bundle") == row.bundle else "",
    )


def evidence(session: Session, viewer: Viewer, id: str, role: str) -> EvidenceView:
    """The file of an alert whose bytes may be shown to this viewer. NotFound if there is none, or none yet."""
    row = _seen(session, viewer, id)
    file = session.get(EvidenceFile, (id, row.device, role))
    if file is None or not file.stored:
        raise NotFound(f"alert {id} has no {role} here")
    return _evidence(file)


def give_verdict(
    session: Session, viewer: Viewer, id: str, verdict: Judgement, *, now_ns: int, note: str = ""
) -> VerdictView:
    """Record what the viewer says of an alert (needs a write session); an earlier verdict of theirs stays on record.

    AccessRefused 403 without the right to judge, NotFound for an alert they may not see, CloudError for a word
    that is no verdict or a note that is too long.
    """
    if not viewer.may("judge"):
        raise AccessRefused(403, f"{viewer.name} may look, but not judge")
    if verdict not in JUDGEMENTS:
        raise CloudError(f"verdict {verdict!r} is none of {', '.join(JUDGEMENTS)}")
    if len(note) > MAX_NOTE:
        raise CloudError(f"a note has at most {MAX_NOTE} characters")
    row = _seen(session, viewer, id)
    given = Verdict(
        event_id=id,
        user=viewer.name,
        verdict=verdict,
        # PostgreSQL holds no NUL in text, and nothing holds half a surrogate pair.
        note=note.replace("\x00", "").encode("utf-8", "replace").decode(),
        bundle=row.bundle,
        given_ns=now_ns,
    )
    session.add(given)
    row.change = raise_counter(session, "change")
    audit.record(session, viewer.name, "verdict", f"{id} {verdict}", now_ns)
    return _verdict(given)


def facets(session: Session, viewer: Viewer) -> Facets:
    """Names that occur in the alerts the viewer may see, sorted; at most 200 of each."""

    def names(column: Any) -> tuple[str, ...]:
        query = sa.select(column).where(visible(viewer)).distinct().order_by(column).limit(MAX_LIMIT)
        return tuple(session.execute(query).scalars())

    return Facets(names(Alert.site), names(Alert.device), names(Alert.scene), names(Alert.label))


def visible(viewer: Viewer) -> sa.ColumnElement[bool]:
    """The condition on `Alert` that keeps a query inside what the viewer may see."""
    return sa.true() if viewer.sites is None else Alert.site.in_(viewer.sites)


def conditions(filters: Filters) -> list[sa.ColumnElement[bool]]:
    """What `filters` asks of `Alert`, to be joined by AND."""
    equal = {"site": Alert.site, "device": Alert.device, "scene": Alert.scene, "label": Alert.label}
    found = [column == getattr(filters, name) for name, column in equal.items() if getattr(filters, name) is not None]
    if filters.open is not None:
        found.append(Alert.ended_ns.is_(None) if filters.open else Alert.ended_ns.is_not(None))
    if filters.verdict is not None:
        wanted = None if filters.verdict == "none" else filters.verdict
        found.append(_NEWEST_VERDICT.is_not_distinct_from(wanted))
    if filters.since_ns is not None:
        found.append(Alert.started_ns >= _int63(filters.since_ns))
    if filters.until_ns is not None:
        found.append(Alert.started_ns < _int63(filters.until_ns))
    return found


def _int63(value: int) -> int:
    return max(0, min(value, 2**63 - 1))  # what a database holds


def _cursor(text: str) -> tuple[int, str]:
    started, _, id = text.partition(".")
    if not (started.isascii() and started.isdigit() and len(started) <= 19 and id):
        raise CloudError(f"cursor {text!r} is none that this list gave out")
    return _int63(int(started)), id


def _seen(session: Session, viewer: Viewer, id: str) -> Alert:
    row = session.execute(sa.select(Alert).where(Alert.id == id, visible(viewer))).scalar()
    if row is None:
        raise NotFound(f"there is no alert {id!r}")
    return row


def _stored_roles(session: Session, ids: Sequence[str]) -> dict[tuple[str, str], list[str]]:
    query = sa.select(EvidenceFile.event_id, EvidenceFile.device, EvidenceFile.role).where(
        EvidenceFile.event_id.in_(ids), EvidenceFile.stored
    )
    roles: dict[tuple[str, str], list[str]] = {}
    for id, device, role in session.execute(query.order_by(EvidenceFile.role)):
        roles.setdefault((id, device), []).append(role)
    return roles


def _verdicts(session: Session, id: str) -> tuple[VerdictView, ...]:
    newest = sa.select(sa.func.max(Verdict.id)).where(Verdict.event_id == id).group_by(Verdict.user)
    query = sa.select(Verdict).where(Verdict.id.in_(newest)).order_by(Verdict.id.desc())
    return tuple(_verdict(row) for row in session.execute(query).scalars())


def _row(row: Alert, verdict: str | None, roles: Sequence[str]) -> AlertRow:
    return AlertRow(
        id=row.id,
        change=row.change,
        cursor=f"{row.started_ns}.{row.id}",
        site=row.site,
        device=row.device,
        scene=row.scene,
        label=row.label,
        phase=row.phase,
        revision=row.revision,
        started_ns=row.started_ns,
        ended_ns=row.ended_ns,
        wall_quality=row.wall_quality,
        score=row.score,
        peak=row.peak,
        threshold=row.threshold,
        origin=row.origin,
        rule=row.body.get("rule"),
        calibrating=row.calibrating,
        bundle=row.bundle,
        shares=dict(row.best.get("shares", {})),
        classes=dict(row.best.get("classes", {})),
        present=tuple(row.best.get("quality", {}).get("present", ())),
        verdict=verdict,
        evidence=tuple(roles),
    )


def _evidence(file: EvidenceFile) -> EvidenceView:
    return EvidenceView(
        role=file.role,
        sha256=file.sha256,
        size=file.size,
        media_type=file.media_type,
        start_ns=file.start_ns,
        end_ns=file.end_ns,
        stored=file.stored,
    )


def _verdict(row: Verdict) -> VerdictView:
    return VerdictView(row.user, row.verdict, row.note, row.bundle, row.given_ns)
