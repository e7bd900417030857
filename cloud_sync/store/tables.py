"""Tables of the cloud, one class each. Times are UTC nanoseconds since 1970 unless a name says otherwise."""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import JSON, BigInteger, Boolean, Float, ForeignKey, Index, Integer, LargeBinary, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# SQLite autoincrements INTEGER only; PostgreSQL wants 64 bits.
BigKey = BigInteger().with_variant(Integer, "sqlite")


class Base(DeclarativeBase):
    """Declarative base."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {int: BigInteger, dict[str, Any]: JSON, list[Any]: JSON}


class Device(Base):
    """An enrolled device. `token_hash` is SHA-256 of its upload token; `revoked_ns` ends everything."""

    __tablename__ = "device"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    site: Mapped[str] = mapped_column(String(64))
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    enrolled_ns: Mapped[int]
    revoked_ns: Mapped[int | None]
    online: Mapped[bool] = mapped_column(Boolean, default=False)
    seen_ns: Mapped[int | None]
    state: Mapped[dict[str, Any] | None]  #: last `state` message
    health: Mapped[dict[str, Any] | None]  #: last `health` message
    rollout: Mapped[dict[str, Any] | None]  #: last `rollout` body


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
    received_ns: Mapped[int]
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
    revision: Mapped[int] = mapped_column(Integer)
    started_ns: Mapped[int] = mapped_column(index=True)  #: wall time of the first message
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
    heat: Mapped[dict[str, Any] | None]  #: {rows, cols, values (base64)} of the best message that had one


class Point(Base):
    """Score over time of one event."""

    __tablename__ = "point"
    event_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    score: Mapped[float] = mapped_column(Float)


class EvidenceFile(Base):
    """A file that a device promised; `stored` once its bytes are here and hash to their name."""

    __tablename__ = "evidence"
    event_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    role: Mapped[str] = mapped_column(String(16), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    device: Mapped[str] = mapped_column(String(64))
    size: Mapped[int]
    media_type: Mapped[str] = mapped_column(String(32))
    start_ns: Mapped[int]
    end_ns: Mapped[int]
    stored: Mapped[bool] = mapped_column(Boolean, default=False)


class User(Base):
    """A person. `role` is admin | operator | viewer; the password hash is Argon2id."""

    __tablename__ = "user"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    password_hash: Mapped[str] = mapped_column(Text)
    role: Mapped[str] = mapped_column(String(16))
    created_ns: Mapped[int]
    must_change: Mapped[bool] = mapped_column(Boolean, default=False)


class Session(Base):
    """A login; the row holds SHA-256 of the cookie's token. `once` is a login link that works one time."""

    __tablename__ = "session"
    token_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    user: Mapped[str] = mapped_column(ForeignKey("user.name"))
    expires_ns: Mapped[int]
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
    id: Mapped[int] = mapped_column(BigKey, primary_key=True, autoincrement=True)
    kind: Mapped[str] = mapped_column(String(32))
    event_id: Mapped[str] = mapped_column(String(36))
    made_ns: Mapped[int]
    done_ns: Mapped[int | None] = mapped_column(index=True)


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
    previous: Mapped[str] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64))


Index("ix_alert_started_scene", Alert.started_ns, Alert.scene)
