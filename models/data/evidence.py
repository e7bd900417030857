"""The evidence of an event (clip.mp4 with sound, trace.json) back into the windows that a device would have made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import msgspec
import numpy as np
from av.error import FFmpegError
from msgspec import Struct
from numpy.typing import NDArray

from edge_agent.contract.event import MODALITIES, Modality
from edge_agent.core import prepare
from edge_agent.core.records import F32, I16, U8, Engine, SensorStep
from edge_agent.errors import ConfigError
from models.config import Preset
from models.data.media import small

#: Longest clip that is read, and how often a picture of it is kept.
_LONGEST_S, _PERIOD_S = 120.0, 0.1
_STALE_S = 120.0
_MOST_BYTES = 16 << 20


class _Channel(Struct, frozen=True):
    channel: str
    quantity: str
    points: list[tuple[float, float]]


class _Trace(Struct, frozen=True):
    v: int
    channels: list[_Channel]


@dataclass(frozen=True, slots=True)
class Steps:
    """Embeddings of every step of the evidence, `time_s` after its start."""

    time_s: NDArray[np.float64]  #: end of each step
    embeddings: dict[Modality, F32]  #: (steps, D); zero where missing
    mask: F32  #: (steps, 3)


@dataclass(frozen=True, slots=True)
class _Clip:
    times_s: list[float]
    frames: list[U8]  #: already in the model's size
    sound: I16  #: empty where there is none
    sound_start_s: float


def embed(clip: Path | None, trace: Path | None, engine: Engine, preset: Preset) -> Steps | None:
    """What the encoders make of the evidence; None if nothing of it can be used.

    ConfigError for a file that is named but cannot be read.
    """
    film = None if clip is None else _decode(clip, preset)
    channels = [] if trace is None else _read_trace(trace)
    step_s = preset.step_ms / 1000
    length_s = max(
        film.times_s[-1] if film and film.times_s else 0.0,
        max((c.points[-1][0] / 1000 for c in channels if c.points), default=0.0),
    )
    count = int(min(length_s, _LONGEST_S) / step_s)
    if count == 0:
        return None
    time_s = (np.arange(count) + 1) * step_s
    embeddings = {name: np.zeros((count, preset.embedding), np.float32) for name in MODALITIES}
    mask = np.zeros((count, len(MODALITIES)), np.float32)
    sensed = [_sensor_step(channels, float(t), preset) for t in time_s]
    for index, t_s in enumerate(time_s):
        inputs: dict[str, dict[str, NDArray[Any]]] = {}
        picture = None if film is None else _picture(film, float(t_s), preset)
        pcm = None if film is None else _sound(film, float(t_s), preset)
        if picture is not None:
            inputs["vision"] = {"frames": picture}
        if pcm is not None:
            inputs["audio"] = {"pcm": pcm}
        if sensed[index].mask.any():
            inputs["sensors"] = {"readings": prepare.sensors(sensed[: index + 1], preset.sensor_spec)}
        for column, name in enumerate(MODALITIES):
            if name in inputs:
                embeddings[name][index] = engine.run(name, [inputs[name]])[0]["embedding"]
                mask[index, column] = 1
    return Steps(time_s.astype(np.float64), embeddings, mask) if mask.any() else None


def _decode(path: Path, preset: Preset) -> _Clip:
    times: list[float] = []
    frames: list[U8] = []
    sound: list[I16] = []
    sound_start_s = -1.0
    resampler = av.AudioResampler(format="s16", layout="mono", rate=preset.audio_spec.rate_hz)
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(*_streams(container)):
                t_s = float(frame.time or 0.0)
                if t_s > _LONGEST_S:
                    break
                if isinstance(frame, av.VideoFrame):
                    if not times or t_s - times[-1] >= _PERIOD_S * 0.9:
                        times.append(t_s)
                        frames.append(
                            small(frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False), preset.vision_spec)
                        )
                elif isinstance(frame, av.AudioFrame):
                    sound_start_s = t_s if sound_start_s < 0 else sound_start_s
                    sound += [part.to_ndarray()[0].astype(np.int16) for part in resampler.resample(frame)]
    except (FFmpegError, OSError, ValueError) as error:
        raise ConfigError(f"cannot read evidence {path}: {error}") from error
    pcm = np.concatenate(sound) if sound else np.zeros(0, np.int16)
    return _Clip(times, frames, pcm, max(sound_start_s, 0.0))


def _streams(container: Any) -> list[Any]:
    return [*container.streams.video[:1], *container.streams.audio[:1]]


def _picture(film: _Clip, t_s: float, preset: Preset) -> U8 | None:
    looks = [t_s, *(t_s - past / 1000 for past in preset.vision_spec.past_ms)]
    index = [int(np.searchsorted(film.times_s, look + 1e-6, "right")) - 1 for look in looks]
    if not film.frames or index[0] < 0 or t_s - film.times_s[index[0]] > 2 * preset.step_ms / 1000:
        return None
    return prepare.vision([film.frames[max(i, 0)] for i in index], preset.vision_spec)


def _sound(film: _Clip, t_s: float, preset: Preset) -> I16 | None:
    spec = preset.audio_spec
    end = int((t_s - film.sound_start_s) * spec.rate_hz)
    part = film.sound[max(end - spec.samples, 0) : max(end, 0)]
    # As on the device: less than half of a window is no window.
    return prepare.audio(part, spec) if len(part) >= spec.samples // 2 else None


def _read_trace(path: Path) -> list[_Channel]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ConfigError(f"evidence {path} is larger than {_MOST_BYTES} bytes")
        found = msgspec.json.decode(path.read_bytes(), type=_Trace)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"cannot read evidence {path}: {error}") from error
    return [c for c in found.channels if all(np.isfinite(value) for _, value in c.points)]


def _sensor_step(channels: list[_Channel], t_s: float, preset: Preset) -> SensorStep:
    quantities = preset.sensor_spec.quantities
    value, age, mask = (np.zeros(len(quantities), np.float32) for _ in range(3))
    for channel in channels:
        past = [point for point in channel.points if point[0] / 1000 <= t_s]
        if channel.quantity in quantities and past and t_s - past[-1][0] / 1000 <= _STALE_S:
            index = quantities.index(channel.quantity)
            value[index], age[index], mask[index] = past[-1][1], t_s - past[-1][0] / 1000, 1.0
    return SensorStep(value, age, mask)
