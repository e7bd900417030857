"""What a device tells the cloud durably: one envelope (`Message`) and the bodies that travel in it.

Every message goes through the device's outbox and is acknowledged by the cloud's own `Ack`. Records only
grow by optional fields; every example ever released stays in `tests/contract/golden/`.
"""

from __future__ import annotations

from typing import Annotated, Literal, Union

from msgspec import Meta, Struct

VERSION = 1

Phase = Literal["new", "update", "end", "aborted"]
WallQuality = Literal["ntp", "unsynced"]
Modality = Literal["vision", "audio", "sensors"]
#: Order of the modalities in every mask, share and array of the project.
MODALITIES: tuple[Modality, ...] = ("vision", "audio", "sensors")
#: Delivery class: `critical` rows are committed at once and evicted last.
Priority = Literal["critical", "normal", "bulk"]

Name = Annotated[str, Meta(pattern=r"^[a-z0-9]([a-z0-9_-]{0,62}[a-z0-9])?$")]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
Uuid = Annotated[str, Meta(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$")]
Count = Annotated[int, Meta(ge=0)]
#: SQLite and JSON readers alike hold signed 64-bit integers: nothing larger may come in.
Int63 = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Probability = Annotated[float, Meta(ge=0.0, le=1.0)]


class Shares(Struct, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """Signed Shapley value of each modality, in logit units; they sum to score(all) − score(none)."""

    vision: float = 0.0
    audio: float = 0.0
    sensors: float = 0.0
    none: float = 0.0  #: the head's logit with every modality masked


class ScorePoint(Struct, frozen=True, array_like=True):
    """One scored step: step index and anomaly score (probability)."""

    step: Int63
    score: Probability


class Heat(Struct, frozen=True, kw_only=True):
    """Where in the picture: row-major probabilities as bytes 0..255, `rows` x `cols`."""

    rows: Annotated[int, Meta(ge=1, le=256)]
    cols: Annotated[int, Meta(ge=1, le=256)]
    values: Annotated[bytes, Meta(max_length=65536)]


class Quality(Struct, frozen=True, kw_only=True):
    """What the score rests on: modalities present, and samples lost per source since start."""

    present: tuple[Modality, ...] = ()
    dropped: dict[str, Count] = {}


class Event(Struct, frozen=True, kw_only=True, tag_field="kind", tag="event"):
    """An anomaly with a life. The core keys it by (scene, label, onset_step); one is open per (scene, label)."""

    scene: Name
    label: Name
    phase: Phase
    onset_step: Int63  #: index of the step that opened it: monotonic time // step
    step: Int63  #: index of the step that this message speaks of
    step_ms: Annotated[int, Meta(gt=0, le=60_000)]
    revision: Annotated[int, Meta(ge=1)]  #: 1, 2, 3 … within the event
    score: Probability  #: fused anomaly score of `step`
    peak: Probability  #: highest score since onset
    threshold: Probability  #: what the score was held against
    origin: Literal["model", "rule"] = "model"
    rule: str | None = None  #: name of the rule, where origin is `rule`
    classes: dict[str, Probability] = {}
    shares: Shares = Shares()
    quality: Quality = Quality()
    trace: tuple[ScorePoint, ...] = ()  #: scores since the last message; before onset too in `new`
    heat: Heat | None = None
    bundle: str = ""  #: hash of the bundle's manifest
    calibrating: bool = False  #: the bundle's threshold rules, not yet the scene's own
    #: How likely five minutes of the scene's normal life reach such a score (conformal); None while calibrating.
    p_value: Probability | None = None
    priority: Priority = "normal"


class Evidence(Struct, frozen=True, kw_only=True, tag_field="kind", tag="evidence"):
    """A file that belongs to an event, uploaded under its hash. The message may arrive before the bytes."""

    scene: Name
    role: Literal["clip", "snapshot", "trace", "spectrogram"]
    sha256: Sha256
    size: Int63  #: bytes
    media_type: Literal["video/mp4", "image/jpeg", "image/png", "application/json"]
    start_ns: Int63  #: monotonic time of the first picture or reading
    end_ns: Int63


class Gap(Struct, frozen=True, kw_only=True, tag_field="kind", tag="gap"):
    """Rows that the outbox had to give up: the loss is reported, never silent.

    Only the rows in `ranges` are gone; others between `first` and `last` may still come. The cloud takes exactly
    `ranges` out of its holes, or the device would be told to delete a row that never arrived. With reason
    `damaged` the loss was in the stream before this one: `first`, `last` and `count` are 0 and `ranges` is empty.
    """

    first: Int63
    last: Int63
    count: Int63  #: rows in `ranges`
    priority: Priority
    reason: Literal["full", "damaged", "refused"]
    #: Inclusive runs of seq that will never come.
    ranges: Annotated[tuple[tuple[Int63, Int63], ...], Meta(max_length=1024)] = ()


class Rollout(Struct, frozen=True, kw_only=True, tag_field="kind", tag="rollout"):
    """How an update goes on this device."""

    bundle: Sha256
    state: Literal["offered", "downloaded", "verified", "staged", "selftested", "committed", "rolled_back", "refused"]
    reason: str = ""


Body = Union[Event, Evidence, Gap, Rollout]  # noqa: UP007 (msgspec reads the tagged union)

#: Leaf of the up-topic that each body travels on.
LEAF: dict[type[Struct], str] = {Event: "event", Evidence: "event", Gap: "event", Rollout: "rollout"}


class Message(Struct, frozen=True, kw_only=True):
    """Envelope of everything durable. (device, stream, seq) names it once and for all."""

    v: int = VERSION
    device: Name
    stream: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}$")]  #: random id made with the outbox file
    seq: Annotated[int, Meta(ge=1, le=2**63 - 1)]  #: gap-free within the stream
    boot: Annotated[str, Meta(max_length=64)]
    id: Uuid  #: UUIDv7 of the event that the body speaks of (RFC 9562)
    wall_ns: Int63  #: when the row was made, UTC
    wall_quality: WallQuality
    monotonic_ns: Int63  #: the same moment on the clock that samples are stamped with
    body: Body


class Ack(Struct, frozen=True, kw_only=True):
    """The cloud has committed every seq ≤ `upto` of `stream` except those in `holes` (first, last)."""

    v: int = VERSION
    stream: str
    upto: Int63
    holes: tuple[tuple[Int63, Int63], ...] = ()


def priority_of(body: Body) -> Priority:
    """Delivery class of a body: an event's own, `critical` for reports of loss, else `normal`."""
    if isinstance(body, Event):
        return body.priority
    return "critical" if isinstance(body, Gap) else "normal"
