"""Who did what, in a chain: each row holds the hash of the one before, so that none can be changed unseen."""

from __future__ import annotations

import hashlib
import json

import sqlalchemy as sa
from sqlalchemy.orm import Session

from cloud_sync.store import raise_counter
from cloud_sync.store.tables import Audit

GENESIS = "0" * 64


def record(session: Session, actor: str, action: str, subject: str, at_ns: int) -> str:
    """Append a row in the caller's transaction and return its hash. `actor` is a user, a device or `console`."""
    # The counter's row lock makes one appender wait for the other: without it two could name the same previous row.
    raise_counter(session, "audit")
    last = session.execute(sa.select(Audit.hash).order_by(Audit.id.desc()).limit(1)).scalar()
    row = Audit(at_ns=at_ns, actor=actor, action=action, subject=subject, previous=last or GENESIS, hash="")
    row.hash = _hash(row)
    session.add(row)
    session.flush()
    return row.hash


def broken_at(session: Session) -> int | None:
    """Id of the first row that does not follow from the one before it; None if the whole chain holds."""
    previous = GENESIS
    for row in session.execute(sa.select(Audit).order_by(Audit.id)).scalars():
        if row.previous != previous or row.hash != _hash(row):
            return row.id
        previous = row.hash
    return None


def _hash(row: Audit) -> str:
    text = json.dumps([row.previous, row.at_ns, row.actor, row.action, row.subject], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
