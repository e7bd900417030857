"""Verdicts → the labelled set that a training reads: one JSON object a line, with paths of the evidence."""

from __future__ import annotations

from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import msgspec
import sqlalchemy as sa
from msgspec import Struct
from sqlalchemy.orm import Session

from cloud_sync.store.tables import Alert, EvidenceFile, Verdict

#: One person's verdicts weigh at most as much as this many events: a stolen or careless account cannot teach alone.
USER_CAP = 50.0


class Labelled(Struct, frozen=True, kw_only=True):
    """One judged event. Times are of the device's monotonic clock, in ns; paths are empty where nothing came."""

    event_id: str
    scene: str
    label: str
    verdict: str  #: real | false | unsure
    bundle: str  #: model that raised the event
    started_ns: int  #: onset
    start_ns: int  #: first picture or reading of the evidence
    end_ns: int
    clip: str
    trace: str
    weight: float


def labelled(session: Session, path_of: Callable[[str], Path]) -> list[Labelled]:
    """Every judged event of the model, oldest first. The newest verdict of each person counts, the majority decides,
    a tie is `unsure`. Events of a rule are left out: no training changes a rule."""
    votes = _votes(session)
    load = Tally(user for given in votes.values() for user, _ in given)
    query = sa.select(Alert).where(Alert.id.in_(votes), Alert.origin == "model").order_by(Alert.started_ns)
    return [_labelled(session, alert, votes[alert.id], load, path_of) for alert in session.execute(query).scalars()]


def export(rows: list[Labelled], file: Path) -> None:
    """Write the set as JSON lines."""
    file.write_bytes(msgspec.json.Encoder().encode_lines(rows))


def _votes(session: Session) -> dict[str, list[tuple[str, str]]]:
    newest = sa.select(sa.func.max(Verdict.id)).group_by(Verdict.event_id, Verdict.user)
    query = sa.select(Verdict.event_id, Verdict.user, Verdict.verdict).where(Verdict.id.in_(newest))
    votes: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for event_id, user, verdict in session.execute(query):
        votes[event_id].append((user, verdict))
    return votes


def _labelled(
    session: Session, alert: Alert, given: list[tuple[str, str]], load: Tally[str], path_of: Callable[[str], Path]
) -> Labelled:
    tally = Tally(verdict for _, verdict in given)
    (first, count), *rest = tally.most_common()
    tied = bool(rest) and rest[0][1] == count
    stored = sa.select(EvidenceFile).where(
        EvidenceFile.event_id == alert.id, EvidenceFile.device == alert.device, EvidenceFile.stored
    )
    files = {file.role: file for file in session.execute(stored).scalars()}
    clip, trace = files.get("clip"), files.get("trace")
    span = [file for file in (clip, trace) if file is not None]
    return Labelled(
        event_id=alert.id,
        scene=alert.scene,
        label=alert.label,
        verdict="unsure" if tied else first,
        bundle=alert.bundle,
        started_ns=alert.started_monotonic_ns,
        start_ns=min((file.start_ns for file in span), default=alert.started_monotonic_ns),
        end_ns=max((file.end_ns for file in span), default=alert.started_monotonic_ns),
        clip=str(path_of(clip.sha256)) if clip else "",
        trace=str(path_of(trace.sha256)) if trace else "",
        weight=max(min(1.0, USER_CAP / load[user]) for user, _ in given),
    )
