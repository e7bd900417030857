"""The nouns between the stages. Every record is frozen and knows neither its producer nor its consumer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.event import Event
from edge_agent.contract.manifest import Manifest

U8 = NDArray[np.uint8]
I16 = NDArray[np.int16]
F32 = NDArray[np.float32]

Kind = Literal["frame", "audio", "reading", "objects", "tick"]
#: Source name of the host's own ticks.
CLOCK = "clock"


@dataclass(frozen=True, slots=True)
class Reading:
    """One value of one sensor channel, in the unit that the configuration states."""

    channel: str
    value: float


@dataclass(frozen=True, slots=True)
class Box:
    """One detected object; corners in 0..1 of the picture."""

    label: str
    score: float
    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True, slots=True)
class Sample:
    """One reading of a source.

    kind     data
    frame    uint8 (height, width, 3), RGB, full range
    audio    int16 (samples,), mono at `rate_hz`; captured_ns is the time of the first sample
    reading  Reading, finite
    objects  tuple[Box, ...], with the time of the frame they were found in
    tick     None. From `clock`: time itself. From a source: "nothing of mine is older than this and
             still to come" (only sources that stamp on arrival may say so)

    An array belongs to the core once it is pushed: a driver makes a new one for every sample.
    """

    source: str
    kind: Kind
    seq: int  #: rises within (source, kind); a lower one is dropped and counted unless 2 s newer (a restart)
    captured_ns: int  #: monotonic; Python's int, as is `seq`
    data: Any = None
    rate_hz: int = 0


@dataclass(frozen=True, slots=True)
class Packet:
    """A compressed piece of a stream as it came, for evidence. Times are monotonic ns; `data` is what the
    driver's container library muxes (bytes in the codec's stream format)."""

    source: str
    stream: Literal["video", "audio"]
    codec: str  #: h264, hevc, aac …
    captured_ns: int
    decode_ns: int
    duration_ns: int
    key: bool
    data: bytes
    extradata: bytes = b""
    width: int = 0
    height: int = 0
    rate_hz: int = 0
    channels: int = 0


@dataclass(frozen=True, slots=True)
class SensorStep:
    """State of all channels at the end of one step: float32 (channels,) each, in the order of the manifest."""

    value: F32
    age_s: F32
    mask: F32


@dataclass(frozen=True, slots=True)
class Window:
    """The time-aligned samples of one step of one scene."""

    scene: str
    step: int  #: index: covers [step * step_ns, (step + 1) * step_ns) of monotonic time
    end_ns: int
    frames: tuple[U8, U8, U8] | None  #: I(t), I(t − d1), I(t − d2), RGB; None where no camera delivered
    audio: I16 | None  #: PCM that ends with the window; None where less than half of it was heard
    sensors: SensorStep | None
    objects: tuple[Box, ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A window as the graphs want it; a missing modality is None."""

    scene: str
    step: int
    vision: U8 | None  #: (5, height, width)
    audio: I16 | None  #: (samples,)
    sensors: F32 | None  #: (3, channels, steps)


@dataclass(frozen=True, slots=True)
class Scores:
    """Output of the fusion head for one step."""

    scene: str
    step: int
    logit: float
    score: float  #: sigmoid(logit)
    classes: Mapping[str, float]  #: probabilities
    shares: Mapping[str, float]  #: signed Shapley values, logit units, by modality; `none` is the empty head
    modality_logits: Mapping[str, float]
    present: tuple[str, ...]
    embedding: F32  #: fused, (embedding,)
    heat: U8 | None  #: (rows, cols), 0..255


Arrays = Mapping[str, NDArray[Any]]


class Engine(Protocol):
    """Runs the graphs of one bundle. How items are batched is the engine's own affair.

    `graph` is vision | audio | sensors | fusion; an item holds the graph's inputs without the batch axis.
        vision   {"frames": uint8 (5, H, W)}                        -> embedding (D,), heat (h, w) logits, logit ()
        audio    {"pcm": int16 (samples,)}                          -> embedding (D,), logit ()
        sensors  {"readings": float32 (3, channels, steps)}         -> embedding (D,), logit ()
        fusion   {"vision", "audio", "sensors": float32 (history, D), "mask": float32 (history, 3)}
                 -> logit (), classes (C,), modality_logits (3,), embedding (D,)
    All outputs are float32. `classes` are independent logits in the order of the manifest (probability = sigmoid,
    a scene may burn and shout at once); history is oldest first; where the mask is 0 the embedding is zeros.
    """

    def run(self, graph: str, items: Sequence[Arrays]) -> list[dict[str, NDArray[Any]]]:
        """One dict of outputs per item, in order. Thread-safe is not promised."""

    def close(self) -> None:
        """Free everything. May be called twice."""


@dataclass(frozen=True, slots=True)
class Model:
    """A bundle that is ready to run: `edge_agent.engine.load` makes one."""

    manifest: Manifest
    hash: str  #: hex SHA-256 of the manifest file
    engine: Engine


class Source(Protocol):
    """A camera, microphone or sensor driver. The host reconnects, counts and drops; a driver only reads."""

    def open(self) -> None:
        """Connect. SourceError if it is not there; a failed open leaves nothing behind."""

    def read(self, timeout_s: float) -> Sample | Packet | None:
        """The next sample or packet; None if nothing came in time. SourceError when the line is gone,
        SourceEnded when a finite source is through."""

    def close(self) -> None:
        """Let go. From any thread, twice, and after a failed open."""


__all__ = [
    "CLOCK",
    "Arrays",
    "Box",
    "Engine",
    "Event",
    "F32",
    "I16",
    "Kind",
    "Model",
    "Packet",
    "Prepared",
    "Reading",
    "Sample",
    "Scores",
    "SensorStep",
    "Source",
    "U8",
    "Window",
]
