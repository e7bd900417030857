"""Tables of the cloud, one class each. Times are UTC nanoseconds since 1970 unless a name says otherwise."""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# SQLite autoincrements INTEGER only; PostgreSQL wants 64 bits.
BigKey = BigInteger().with_variant(Integer, "sqlite")
# An absent document is SQL NULL, not the JSON text `null`.
Document = JSON(none_as_null=True)


class Base(DeclarativeBase):
    """Declarative base."""

    # Every constraint has a name, so that a later migration can speak of it.
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {int: BigInteger, dict[str, Any]: Document, list[Any]: Document}


class Counter(Base):
    """A number that only rises, a row each: `change` (of alerts), `audit`, `dead_letter_evicted`, `loss_evicted`."""

    __tablename__ = "counter"
    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    value: Mapped[int] = mapped_column(default=0)


class Device(Base):
    """An enrolled device. `token_hash` is SHA-256 of its upload token; `revoked_ns` ends everything."""

    __tablename__ = "device"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    site: Mapped[str] = mapped_column(String(64))
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    enrolled_ns: Mapped[int]
    revoked_ns: Mapped[int | None]
    online: Mapped[bool] = mapped_column(Boolean, default=False)
    seen_ns: Mapped[int | None]  #: when it last said anything, on the cloud's clock
    state: Mapped[dict[str, Any] | None]  #: last `state` message
    health: Mapped[dict[str, Any] | None]  #: last `health` message
    health_ns: Mapped[int | None]  #: when that came
    rollout: Mapped[dict[str, Any] | None]  #: last `rollout` body
    rollout_ns: Mapped[int | None]  #: when the device made that


class Stream(Base):
    """High-water mark and holes of one outbox file."""

    __tablename__ = "stream"
    device: Mapped[str] = mapped_column(String(64), primary_key=True)
    stream: Mapped[str] = mapped_column(String(32), primary_key=True)
    upto: Mapped[int] = mapped_column(default=0)
    holes: Mapped[list[Any]] = mapped_column(default=list)  #: [[first, last], …] missing at or below upto


class Received(Base):
    """One durable message, exactly once: the primary key is the dedupe."""

    __tablename__ = "received"
    device: Mapped[str] = mapped_column(String(64), primary_key=True)
    stream: Mapped[str] = mapped_column(String(32), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    body_hash: Mapped[str] = mapped_column(String(64))
    event_id: Mapped[str] = mapped_column(String(36), index=True)
    kind: Mapped[str] = mapped_column(String(16))
    received_ns: Mapped[int] = mapped_column(index=True)
    body: Mapped[bytes] = mapped_column(LargeBinary)  #: the message as it came


class Alert(Base):
    """An event as people see it: the newest revision, with what must be sorted and searched in columns."""

    __tablename__ = "alert"
    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    change: Mapped[int] = mapped_column(index=True)  #: rises with every write: the dashboard asks "what is newer"
    site: Mapped[str] = mapped_column(String(64))
    device: Mapped[str] = mapped_column(String(64), index=True)
    scene: Mapped[str] = mapped_column(String(64))
    label: Mapped[str] = mapped_column(String(64))
    phase: Mapped[str] = mapped_column(String(16))
    revision: Mapped[int] = mapped_column(BigInteger)
    started_ns: Mapped[int] = mapped_column(index=True)  #: wall time of the earliest message
    started_monotonic_ns: Mapped[int]  #: of the onset, on the device's clock
    ended_ns: Mapped[int | None]
    wall_quality: Mapped[str] = mapped_column(String(16))
    score: Mapped[float] = mapped_column(Float)
    peak: Mapped[float] = mapped_column(Float)
    threshold: Mapped[float] = mapped_column(Float)
    origin: Mapped[str] = mapped_column(String(8))
    calibrating: Mapped[bool] = mapped_column(Boolean)
    bundle: Mapped[str] = mapped_column(String(64))
    body: Mapped[dict[str, Any]]  #: newest Event body without trace and heat
    best: Mapped[dict[str, Any]]  #: body of the message with the highest score: shares and classes shown to people
    heat: Mapped[dict[str, Any] | None]  #: {rows, cols, values (base64), score} of the best message that had one


class Point(Base):
    """Score over time of one event."""

    __tablename__ = "point"
    event_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    score: Mapped[float] = mapped_column(Float)


class EvidenceFile(Base):
    """A file that a device promised; `stored` once that device's bytes are here and hash to their name.

    The device is part of the key: a file that one device names for another's event is never shown with it.
    """

    __tablename__ = "evidence"
    event_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    device: Mapped[str] = mapped_column(String(64), primary_key=True)
    role: Mapped[str] = mapped_column(String(16), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    size: Mapped[int]
    media_type: Mapped[str] = mapped_column(String(32))
    start_ns: Mapped[int]
    end_ns: Mapped[int]
    stored: Mapped[bool] = mapped_column(Boolean, default=False)


class Blob(Base):
    """Bytes that a device handed over whole. Two devices may own the same file: each has proved to hold it."""

    __tablename__ = "blob"
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    device: Mapped[str] = mapped_column(String(64), primary_key=True)
    size: Mapped[int]
    stored_ns: Mapped[int] = mapped_column(index=True)
    promised: Mapped[bool] = mapped_column(Boolean, default=False)  #: named by an evidence message of that device


class User(Base):
    """A person. `role` is admin | operator | viewer; the password hash is Argon2id."""

    __tablename__ = "user"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    password_hash: Mapped[str] = mapped_column(Text)
    role: Mapped[str] = mapped_column(String(16))
    sites: Mapped[list[Any] | None]  #: names of the sites that may be seen; None: every one
    created_ns: Mapped[int]
    must_change: Mapped[bool] = mapped_column(Boolean, default=False)


class Login(Base):
    """A login; the row holds SHA-256 of the cookie's token. `once` is a login link that works one time."""

    __tablename__ = "login"
    token_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    user: Mapped[str] = mapped_column(ForeignKey("user.name", ondelete="CASCADE"), index=True)
    expires_ns: Mapped[int] = mapped_column(index=True)
    once: Mapped[bool] = mapped_column(Boolean, default=False)


class Verdict(Base):
    """What a person says of an event; the newest of each person counts."""

    __tablename__ = "verdict"
    id: Mapped[int] = mapped_column(BigKey, primary_key=True, autoincrement=True)
    event_id: Mapped[str] = mapped_column(String(36), index=True)
    user: Mapped[str] = mapped_column(String(64))
    verdict: Mapped[str] = mapped_column(String(8))  #: real | false | unsure
    note: Mapped[str] = mapped_column(Text, default="")
    bundle: Mapped[str] = mapped_column(String(64))  #: model that the verdict speaks of
    given_ns: Mapped[int]


class DeadLetter(Base):
    """A payload that was refused, with its bytes and the reason."""

    __tablename__ = "dead_letter"
    id: Mapped[int] = mapped_column(BigKey, primary_key=True, autoincrement=True)
    topic: Mapped[str] = mapped_column(Text)
    reason: Mapped[str] = mapped_column(String(32), index=True)
    detail: Mapped[str] = mapped_column(Text)
    payload: Mapped[bytes] = mapped_column(LargeBinary)
    received_ns: Mapped[int]


class Loss(Base):
    """A gap that a device reported, or a `stream_conflict` (same key, other body)."""

    __tablename__ = "loss"
    id: Mapped[int] = mapped_column(BigKey, primary_key=True, autoincrement=True)
    device: Mapped[str] = mapped_column(String(64), index=True)
    stream: Mapped[str] = mapped_column(String(32))
    first: Mapped[int]
    last: Mapped[int]
    count: Mapped[int]
    priority: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(String(32))
    payload: Mapped[bytes | None] = mapped_column(LargeBinary)
    received_ns: Mapped[int]


class Effect(Base):
    """A side effect to be carried out once after commit (a notification), written in the same transaction."""

    __tablename__ = "effect"
    __table_args__ = (UniqueConstraint("kind", "event_id", name="uq_effect_kind_event"),)
    id: Mapped[int] = mapped_column(BigKey, primary_key=True, autoincrement=True)
    kind: Mapped[str] = mapped_column(String(32))
    event_id: Mapped[str] = mapped_column(String(36))
    made_ns: Mapped[int]
    claimed_ns: Mapped[int | None]  #: taken by a worker; with `done_ns` unset it may or may not have happened
    done_ns: Mapped[int | None] = mapped_column(index=True)
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    error: Mapped[str] = mapped_column(Text, default="")


class Release(Base):
    """A bundle that was signed into the repository."""

    __tablename__ = "release"
    hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    family: Mapped[str] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(128))
    counter: Mapped[int] = mapped_column(Integer)
    released_ns: Mapped[int]
    note: Mapped[str] = mapped_column(Text, default="")


class Audit(Base):
    """Who did what, each row chained to the one before by SHA-256."""

    __tablename__ = "audit"
    id: Mapped[int] = mapped_column(BigKey, primary_key=True, autoincrement=True)
    at_ns: Mapped[int]
    actor: Mapped[str] = mapped_column(String(64))
    action: Mapped[str] = mapped_column(String(64))
    subject: Mapped[str] = mapped_column(Text)
    previous: Mapped[str] = mapped_column(String(64), unique=True)  #: unique: the chain cannot fork
    hash: Mapped[str] = mapped_column(String(64))


Index("ix_alert_started_id", Alert.started_ns, Alert.id)
