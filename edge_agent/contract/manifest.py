"""The bundle's manifest: how to prepare a window, which files belong together, what was promised.

A bundle is a folder: `manifest.json` beside the files that it names by SHA-256. Its hash is the SHA-256 of the
manifest's bytes; slots are folders with that name. Nothing in a bundle is executable and nothing is unpickled.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

from msgspec import Meta, Struct

from edge_agent.contract.event import VERSION, Name, Probability, Sha256

GRAPHS = ("vision", "audio", "sensors", "fusion")
Positive = Annotated[int, Meta(gt=0, le=1 << 20)]


class VisionSpec(Struct, frozen=True, kw_only=True):
    """Frames in: uint8 (5, height, width) = R, G, B of I(t), luma of I(t−d1), luma of I(t−d2)."""

    width: Positive
    height: Positive
    resize: Literal["area"] = "area"
    colour: Literal["rgb-full"] = "rgb-full"
    luma: Literal["bt601-full"] = "bt601-full"
    past_ms: tuple[Positive, Positive] = (100, 300)  #: d1, d2; nearest frame not newer than t − d


class AudioSpec(Struct, frozen=True, kw_only=True):
    """PCM in: int16 (samples,), mono, ending with the window; the log-mel front end is in the graph."""

    rate_hz: Positive = 16_000
    samples: Positive = 16_000


class SensorSpec(Struct, frozen=True, kw_only=True):
    """Readings in: float32 (3, channels, steps) = value in the quantity's unit, age in s, mask; newest last."""

    quantities: tuple[str, ...]
    units: tuple[str, ...]
    steps: Positive = 64


class FileRef(Struct, frozen=True, kw_only=True):
    """A file of the bundle."""

    sha256: Sha256
    size: Annotated[int, Meta(ge=0, le=1 << 30)]


class Thresholds(Struct, frozen=True, kw_only=True):
    """Rules that hold until a scene has blocks of its own. Scores are probabilities."""

    on: Probability  #: an event opens when the score stays ≥ on for `on_steps`
    off: Probability  #: and ends when it stays < off for `off_steps`
    on_steps: Positive = 2
    off_steps: Positive = 4
    cooldown_steps: Annotated[int, Meta(ge=0)] = 20
    classes: dict[str, Probability] = {}  #: a class names the event if its probability reaches this


class Manifest(Struct, frozen=True, kw_only=True):
    """Everything the device needs to know of a bundle before it opens a graph."""

    v: int = VERSION
    family: Name
    name: str
    counter: Annotated[int, Meta(ge=0)]  #: release counter; an equal or lower one is never installed over it
    created: str  #: RFC 3339
    min_agent: str = "0.1.0"
    step_ms: Positive = 500
    history: Positive = 8  #: embeddings of each modality that the fusion head sees
    embedding: Positive = 64
    classes: tuple[Name, ...]
    vision: VisionSpec
    audio: AudioSpec
    sensors: SensorSpec
    thresholds: Thresholds
    files: dict[str, FileRef]  #: `vision.onnx` …, `golden.npz`, `card.md`
    tolerance: float = 0.02  #: largest |score − golden score| an engine may show (probability)

    def prepare_spec(self) -> tuple[object, ...]:
        """What decides whether windows prepared for one bundle fit another."""
        return (self.step_ms, self.vision, self.audio, self.sensors)


def bundle_hash(manifest: bytes) -> str:
    """Name of a bundle: hex SHA-256 of its manifest file."""
    return hashlib.sha256(manifest).hexdigest()
