"""The one home of what is remembered of a scene between two windows, and its plain form for a file.

`to_arrays` gives numbers and one JSON text, nothing pickled: the shell may keep them as .npz. What comes back from a
file is checked like bytes from outside; what does not fit is left out, and the scene starts cold.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Mapping
from copy import copy
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from edge_agent.contract.event import MODALITIES, Int63, Name, Probability
from edge_agent.contract.manifest import Manifest
from edge_agent.core.infer import Encoded, History
from edge_agent.core.normal import Normal
from edge_agent.core.records import U8, Model, Prepared, SensorStep

#: Scored steps that a track keeps: the lead of a new event and what an update may have to tell.
TRACK_POINTS = 160

Arrays = Mapping[str, NDArray[Any]]


class OpenEvent(Struct):
    """An event that has begun and not ended."""

    label: Name
    track: str  #: "" for the model, else the rule's name
    onset_step: Int63
    revision: Annotated[int, Meta(ge=1)]
    score: Probability
    peak: Probability
    told_peak: Probability
    told_step: int  #: newest step that has been told of; may lie before 0 in a scene that has just begun
    below: Annotated[int, Meta(ge=0)] = 0  #: steps in a row under the lower threshold


class Track(Struct):
    """One score over time: the model's or a rule's."""

    above: Annotated[int, Meta(ge=0)] = 0  #: steps in a row at or over the upper threshold
    label: str = ""  #: what the last step would have been called
    same_label: Annotated[int, Meta(ge=0)] = 0  #: steps in a row that it was, over the threshold
    points: Annotated[list[tuple[Int63, Probability]], Meta(max_length=TRACK_POINTS)] = []


class Course(Struct):
    """What `decide` remembers of a scene."""

    tracks: dict[str, Track] = {}
    open: dict[str, OpenEvent] = {}  #: by label
    cooling: dict[str, Int63] = {}  #: label → first step at which it may open again


class _Plain(Struct):
    """What of a scene's state is no array."""

    bundle: str
    prepare: str
    last_step: Int63 | None
    steps: Annotated[int, Meta(ge=0)]
    course: Course


class SceneState:
    """Histories and open events of one scene under one bundle."""

    def __init__(self, scene: str, model: Model) -> None:
        manifest = model.manifest
        self.scene = scene
        self.bundle = model.hash
        self.last_step: int | None = None
        self.steps = 0  #: windows scored
        self.course = Course()
        self.normal = Normal(manifest)
        self._normal_of = model.hash  # not always `bundle`: of another's snapshot nothing normal is taken
        self.retired: tuple[str, Normal] | None = None  #: what was known under the bundle before, should it come back
        self.sensors: deque[SensorStep] = deque(maxlen=manifest.sensors.steps)
        self._prepare = _prepare_key(manifest)
        self._prepared: deque[Prepared] = deque(maxlen=manifest.history)
        self._embeddings = np.zeros((manifest.history, len(MODALITIES), manifest.embedding), np.float32)
        self._mask = np.zeros((manifest.history, len(MODALITIES)), np.float32)
        self._heat: U8 | None = None

    def copy(self) -> SceneState:
        """A state that can be changed without this one; course and normal are shared."""
        twin = copy(self)
        twin.sensors, twin._prepared = self.sensors.copy(), self._prepared.copy()
        twin._embeddings, twin._mask = self._embeddings.copy(), self._mask.copy()
        return twin

    def skip(self, steps: int, channels: int) -> None:
        """Let `steps` windows pass in which nothing was known; none if not positive."""
        for _ in range(min(steps, self._mask.shape[0])):
            self._shift()
            self._prepared.append(Prepared(self.scene, 0, None, None, None))
        for _ in range(min(steps, self.sensors.maxlen or 0)):
            self.sensors.append(unknown(channels))

    def append(self, prepared: Prepared, encoded: Encoded) -> None:
        """Take a window into the history."""
        self._put(prepared, encoded)
        self.last_step = prepared.step
        self.steps += 1

    def history(self) -> History:
        """The history as the fusion head wants it."""
        return History(self.scene, self.last_step or 0, self._embeddings.copy(), self._mask.copy(), self._heat)

    def forget_time(self) -> None:
        """Start cold: time went back (another boot), so what was open then cannot be continued."""
        self._embeddings[:] = 0
        self._mask[:] = 0
        self._prepared.clear()
        self.sensors.clear()
        self.course = Course()
        self.normal.forget_time()
        self.last_step = None

    def prepared_for(self, manifest: Manifest) -> list[Prepared]:
        """The windows of the history, oldest first; none if another bundle would have prepared them otherwise."""
        if self._prepare != _prepare_key(manifest):
            return []
        return [window for window in self._prepared if _fits(window, manifest)]

    def succeed(self, old: SceneState, windows: list[Prepared], encoded: list[Encoded]) -> None:
        """Take over from the state of another bundle: open events as they are, `windows` as encoded anew.

        What is normal is learned anew, for another bundle gives other scores and embeddings, unless the bundle is
        the one before `old`'s: a model that was tried and taken back costs nothing.
        """
        self.last_step, self.steps, self.course = old.last_step, old.steps, old.course
        for window, code in zip(windows, encoded, strict=True):
            self._put(window, code)
        if windows:
            self.sensors.extend(old.sensors)
        if old.retired is not None and old.retired[0] == self.bundle:
            self.normal = old.retired[1]
        if old._normal_of == old.bundle:
            self.retired = old.bundle, old.normal

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Everything as arrays; `plain` is JSON as bytes."""
        plain = _Plain(self.bundle, self._prepare, self.last_step, self.steps, self.course)
        arrays: dict[str, NDArray[Any]] = {
            "plain": np.frombuffer(msgspec.json.encode(plain), np.uint8).copy(),
            "embeddings": self._embeddings.copy(),
            "mask": self._mask.copy(),
            **self.normal.to_arrays(),
        }
        if self.sensors:
            arrays["steps"] = np.stack([np.stack([step.value, step.age_s, step.mask]) for step in self.sensors])
        for modality in MODALITIES:
            held = [(row, getattr(window, modality)) for row, window in enumerate(self._prepared)]
            known = [(row, array) for row, array in held if array is not None]
            arrays[f"{modality}_rows"] = np.array([row for row, _ in known], np.int64)
            if known:
                arrays[modality] = np.stack([array for _, array in known])
        arrays["windows"] = np.array([window.step for window in self._prepared], np.int64)
        return arrays

    @classmethod
    def from_arrays(cls, scene: str, model: Model, arrays: Arrays) -> SceneState | None:
        """The state that `to_arrays` gave, whichever bundle it was of; None if it is damaged.

        `bundle` tells whose it is. If it is not `model`'s, only `succeed` may take from it.
        """
        state = cls(scene, model)
        try:
            plain = msgspec.json.decode(arrays["plain"].astype(np.uint8).tobytes(), type=_Plain)
            state.bundle, state._prepare = plain.bundle, plain.prepare
            state.last_step, state.steps, state.course = plain.last_step, plain.steps, plain.course
            state._prepared.extend(_windows(scene, arrays))
            state.sensors.extend(_sensor_steps(arrays))
            if plain.bundle == model.hash:
                state._embeddings[:] = _finite(arrays["embeddings"], state._embeddings.shape)
                state._mask[:] = _finite(arrays["mask"], state._mask.shape)
                if "normal" in arrays:  # else from before a scene learned anything
                    state.normal = Normal.from_arrays(model.manifest, arrays)
                if any(step.value.shape != (len(model.manifest.sensors.quantities),) for step in state.sensors):
                    return None
        except (KeyError, ValueError, TypeError, msgspec.MsgspecError):
            return None
        return state

    def _put(self, prepared: Prepared, encoded: Encoded) -> None:
        self._prepared.append(prepared)
        self._shift()
        self._embeddings[-1] = encoded.embeddings
        self._mask[-1] = encoded.mask
        self._heat = encoded.heat

    def _shift(self) -> None:
        self._embeddings[:-1] = self._embeddings[1:]
        self._mask[:-1] = self._mask[1:]
        self._embeddings[-1] = 0
        self._mask[-1] = 0
        self._heat = None


def unknown(channels: int) -> SensorStep:
    """A sensor step of which no channel is known."""
    nothing = np.zeros(channels, np.float32)
    return SensorStep(nothing, nothing, nothing)


def _prepare_key(manifest: Manifest) -> str:
    text = msgspec.json.encode((*manifest.prepare_spec(), manifest.step_ms))
    return hashlib.sha256(text).hexdigest()


def _windows(scene: str, arrays: Arrays) -> list[Prepared]:
    found: dict[str, dict[int, NDArray[Any]]] = {}
    for modality in MODALITIES:
        rows = [int(row) for row in arrays[f"{modality}_rows"]]
        found[modality] = dict(zip(rows, arrays[modality], strict=True)) if rows else {}
    return [
        Prepared(scene, int(number), found["vision"].get(row), found["audio"].get(row), found["sensors"].get(row))
        for row, number in enumerate(arrays["windows"])
    ]


def _sensor_steps(arrays: Arrays) -> list[SensorStep]:
    stacked = arrays.get("steps")
    if stacked is None:
        return []
    steps = _finite(stacked, (len(stacked), 3, stacked.shape[-1])).astype(np.float32)
    return [SensorStep(value, age_s, mask) for value, age_s, mask in steps]


def _finite(array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if array.shape != shape or array.dtype.kind != "f" or not np.isfinite(array).all():
        raise ValueError(f"expected finite numbers {shape}, got {array.dtype} {array.shape}")
    return array


def _fits(window: Prepared, manifest: Manifest) -> bool:
    """Whether the arrays are what the graphs take: a file may hold anything."""
    wanted = (
        (window.vision, "uint8", (5, manifest.vision.height, manifest.vision.width)),
        (window.audio, "int16", (manifest.audio.samples,)),
        (window.sensors, "float32", (3, len(manifest.sensors.quantities), manifest.sensors.steps)),
    )
    return all(
        array is None or (array.dtype == dtype and array.shape == shape and bool(np.isfinite(array).all()))
        for array, dtype, shape in wanted
    )
