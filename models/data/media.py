"""Pictures, sound and readings of a recording, decoded when they are asked for and not before.

Every container that FFmpeg opens is read (mp4, avi, flac, wav, ogg, mp3 …), at any size, rate and number of channels;
what comes out is always RGB frames, int16 mono at the rate asked for, and columns over seconds.
"""

from __future__ import annotations

import csv
import math
import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

from edge_agent.contract.manifest import VisionSpec
from edge_agent.core import prepare
from edge_agent.core.records import I16, U8
from edge_agent.errors import ConfigError

Box = tuple[float, float, float, float]  #: x0, y0, x1, y1 in 0..1
STILLS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
#: Frames a second of the pictures that train; longest piece of film that is kept in memory.
RATE_HZ, _MOST_FRAMES = 10.0, 800
_KEPT_BYTES = 1 << 30


class _Kept:
    """Decoded arrays, the least recently used let go above `_KEPT_BYTES`."""

    def __init__(self) -> None:
        self._arrays: OrderedDict[Hashable, NDArray[Any]] = OrderedDict()
        self._bytes = 0

    def get(self, key: Hashable, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        if key in self._arrays:
            self._arrays.move_to_end(key)
            return self._arrays[key]
        array = make()
        self._arrays[key] = array
        self._bytes += array.nbytes
        while self._bytes > _KEPT_BYTES and len(self._arrays) > 1:
            self._bytes -= self._arrays.popitem(last=False)[1].nbytes
        return array


_KEPT = _Kept()


@dataclass(frozen=True, eq=False)
class Sound:
    """A sound track: a file, or samples that are there already."""

    path: Path | None = None
    held: I16 | None = None  #: int16 mono at `held_hz`, instead of a file
    held_hz: int = 16_000
    start_s: float = 0.0
    end_s: float = math.inf

    def pcm(self, rate_hz: int) -> I16:
        """int16 (samples,) mono. ConfigError if the file cannot be read or holds no sound."""
        if self.held is not None and self.held_hz == rate_hz:
            return self.held[_slice(self.start_s, self.end_s, rate_hz)]
        return np.asarray(_KEPT.get((self, rate_hz), lambda: self._decoded(rate_hz)), np.int16)

    @property
    def length_s(self) -> float:
        """Seconds, as the container says; nothing is decoded."""
        whole_s = len(self.held) / self.held_hz if self.held is not None else _told_length(self.path)
        return max(min(whole_s, self.end_s) - self.start_s, 0.0)

    def _decoded(self, rate_hz: int) -> I16:
        whole = (
            _resampled(self.held, self.held_hz, rate_hz) if self.path is None else decode_sound(self.path, rate_hz)
        )
        return np.ascontiguousarray(whole[_slice(self.start_s, self.end_s, rate_hz)])


@dataclass(frozen=True, eq=False)
class Pictures:
    """A film, a folder of numbered frames, a still, or frames that are there already."""

    path: Path | None = None
    held: U8 | None = None  #: uint8 (n, H, W, 3) RGB at `rate_hz`, instead of a file
    rate_hz: float | None = None  #: of held frames and of folders; None: as the film says
    start_s: float = 0.0
    end_s: float = math.inf
    boxes: Mapping[int, tuple[Box, ...]] = field(default_factory=dict)  #: index of a frame in the file → what burns

    def stream(self, rate_hz: float | None = None) -> Iterator[tuple[int, float, U8]]:
        """(index in the file, s since `start_s`, RGB (h, w, 3) as recorded); every frame, or `rate_hz` a second.

        A frame is repeated where the film has fewer. ConfigError if nothing can be decoded.
        """
        taken = 0
        for index, time_s, frame in self._every():
            if time_s < self.start_s - 1e-6:
                continue
            if time_s >= self.end_s - 1e-6:
                return
            since_s = time_s - self.start_s
            if rate_hz is None:
                yield index, since_s, frame
                continue
            while taken / rate_hz <= since_s + 1e-3:
                yield index, taken / rate_hz, frame
                taken += 1

    def frames(self, spec: VisionSpec, most: int = _MOST_FRAMES) -> U8:
        """uint8 (n, H, W, 3), RATE_HZ a second, in the model's size by the device's own resize; kept in memory."""
        return self._small(spec, most)[0]

    def marks(self, spec: VisionSpec, most: int = _MOST_FRAMES) -> list[tuple[Box, ...]]:
        """The boxes of each of `frames`."""
        return [self.boxes.get(int(index), ()) for index in self._small(spec, most)[1]] if self.boxes else []

    @property
    def length_s(self) -> float:
        """Seconds, as the container says; nothing is decoded. A still has none."""
        rate_hz = self.rate_hz or RATE_HZ
        if self.held is not None:
            whole_s = len(self.held) / rate_hz
        elif self.path is None or self.path.suffix.lower() in STILLS:
            return 0.0
        elif self.path.is_dir():
            whole_s = sum(p.suffix.lower() in STILLS for p in self.path.iterdir()) / rate_hz
        else:
            whole_s = film_length(self.path)[1]
        return max(min(whole_s, self.end_s) - self.start_s, 0.0)

    def _small(self, spec: VisionSpec, most: int) -> tuple[U8, NDArray[np.int64]]:
        if self.held is not None and self.held.shape[1:3] == (spec.height, spec.width) and not self.start_s:
            return self.held[:most], np.arange(len(self.held))[:most]
        key = (self, spec.height, spec.width, most)
        index: NDArray[np.int64] = np.zeros(0, np.int64)

        def make() -> U8:
            nonlocal index
            numbers, frames = [], []
            for number, _, frame in self.stream(RATE_HZ):
                numbers.append(number)
                frames.append(small(frame, spec))
                if len(frames) == most:
                    break
            if not frames:
                raise ConfigError(f"{self.path} holds no frame between {self.start_s} and {self.end_s} s")
            index = np.array(numbers)
            return np.stack(frames)

        found = np.asarray(_KEPT.get(key, make), np.uint8)
        return found, np.asarray(_KEPT.get((*key, "index"), lambda: index))

    def _every(self) -> Iterator[tuple[int, float, U8]]:
        if self.held is not None:
            rate_hz = self.rate_hz or RATE_HZ
            yield from ((index, index / rate_hz, frame) for index, frame in enumerate(self.held))
        elif self.path is None:
            raise ConfigError("pictures without a file and without frames")
        elif self.path.is_dir() or self.path.suffix.lower() in STILLS:
            yield from _stills(self.path, self.rate_hz or RATE_HZ)
        else:
            yield from decode_film(self.path, self.rate_hz)


@dataclass(frozen=True, eq=False)
class Log:
    """Sensor readings: one row a reading, in the agent's units where a name is one of its quantities."""

    time_s: NDArray[np.float64]  #: (n,) since the first row
    names: tuple[str, ...]
    values: NDArray[np.float64]  #: (n, names)
    wrong: NDArray[np.int8]  #: (n,): 1 labelled wrong (or occupied), 0 not, −1 nothing said

    def row(self, index: int) -> dict[str, float]:
        """One row by name."""
        return dict(zip(self.names, map(float, self.values[index]), strict=True))

    def part(self, rows: slice | NDArray[Any]) -> Log:
        """Some of the rows."""
        return Log(self.time_s[rows], self.names, self.values[rows], self.wrong[rows])


@dataclass(frozen=True)
class Layout:
    """How a table is read. `columns` maps a name to (column, scale, offset): value * scale + offset."""

    columns: Mapping[str, tuple[str, float, float]] | None = None  #: None: every column of numbers
    time: str | None = None  #: column of ISO times or seconds; None: one row every `period_s`
    period_s: float = 1.0
    wrong: str | None = None  #: column of labels, above 0.5 is wrong
    separator: str = ","
    decimal_comma: bool = False  #: 1,5 is one and a half


@dataclass(frozen=True, eq=False)
class Readings:
    """A sensor log: a table, or rows that are there already."""

    path: Path | None = None
    layout: Layout = field(default_factory=Layout)
    held: Log | None = None
    windows: tuple[tuple[str, str], ...] | None = None  #: first and last time, as text, of what is wrong
    rows: slice = field(default_factory=lambda: slice(None))

    def log(self) -> Log:
        """All rows. ConfigError names the file and the column that is missing."""
        if self.held is not None:
            return self.held.part(self.rows)
        if self.path is None:
            raise ConfigError("readings without a table and without rows")
        return _table(self.path, self.layout, self.windows).part(self.rows)


def small(frame: U8, spec: VisionSpec) -> U8:
    """The frame as the model sees it, resized by the device's own code: uint8 (H, W, 3)."""
    return np.ascontiguousarray(prepare.vision((frame, frame, frame), spec)[:3].transpose(1, 2, 0))


def decode_sound(path: Path, rate_hz: int) -> I16:
    """int16 mono at `rate_hz`; of more than two channels (microphone arrays) the first."""
    parts: list[I16] = []
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise ConfigError(f"{path} holds no sound")
            stream = container.streams.audio[0]
            resampler = av.AudioResampler(format="s16", layout="mono", rate=rate_hz)
            for frame in container.decode(stream):
                heard = frame if stream.channels <= 2 else _first_channel(frame)
                parts += [part.to_ndarray()[0] for part in resampler.resample(heard)]
            parts += [part.to_ndarray()[0] for part in resampler.resample(None)]
    except (FFmpegError, OSError, ValueError) as error:
        raise ConfigError(f"cannot read sound {path}: {error}") from error
    return np.concatenate(parts).astype(np.int16) if parts else np.zeros(0, np.int16)


def _first_channel(frame: av.AudioFrame) -> av.AudioFrame:
    """FFmpeg mixes arrays of microphones by loudspeaker layouts that they do not have."""
    array = frame.to_ndarray()
    one: NDArray[Any] = array[:1] if frame.format.is_planar else array[:, :: frame.layout.nb_channels]
    made = av.AudioFrame.from_ndarray(np.ascontiguousarray(one), format=frame.format.name, layout="mono")
    made.sample_rate, made.pts, made.time_base = frame.sample_rate, frame.pts, frame.time_base
    return made


def has_sound(path: Path) -> bool:
    """Whether a film holds a sound track at all."""
    try:
        with av.open(str(path)) as container:
            return bool(container.streams.audio)
    except (FFmpegError, OSError) as error:
        raise ConfigError(f"cannot open film {path}: {error}") from error


def decode_film(path: Path, rate_hz: float | None = None) -> Iterator[tuple[int, float, U8]]:
    """(index, s, RGB frame) of every frame; times as if there were `rate_hz` a second where it is given."""
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ConfigError(f"{path} holds no pictures")
            stream = container.streams.video[0]
            rate = rate_hz or float(stream.average_rate or RATE_HZ)
            for index, frame in enumerate(container.decode(stream)):
                yield index, index / rate, frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
    except (FFmpegError, OSError, ValueError) as error:
        raise ConfigError(f"cannot read film {path}: {error}") from error


def film_length(path: Path) -> tuple[float, float]:
    """(frames a second, seconds), as the container says."""
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            rate = float(stream.average_rate or RATE_HZ)
            told_s = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
            return rate, stream.frames / rate if stream.frames else told_s
    except (FFmpegError, OSError, IndexError) as error:
        raise ConfigError(f"cannot open film {path}: {error}") from error


def _stills(path: Path, rate_hz: float) -> Iterator[tuple[int, float, U8]]:
    """The pictures of a folder in the order of their names, or one picture."""
    names = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix.lower() in STILLS)
    for index, name in enumerate(names):
        picture = cv2.imread(str(name), cv2.IMREAD_COLOR)
        if picture is None:
            raise ConfigError(f"cannot read picture {name}")
        yield index, index / rate_hz, cv2.cvtColor(picture, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)


def _told_length(path: Path | None) -> float:
    if path is None:
        return 0.0
    try:
        with av.open(str(path)) as container:
            return (container.duration or 0) / av.time_base
    except (FFmpegError, OSError) as error:
        raise ConfigError(f"cannot open {path}: {error}") from error


def _slice(start_s: float, end_s: float, rate_hz: int) -> slice:
    return slice(int(start_s * rate_hz), None if math.isinf(end_s) else int(end_s * rate_hz))


def _resampled(pcm: I16 | None, from_hz: int, to_hz: int) -> I16:
    if pcm is None:
        raise ConfigError("sound without a file and without samples")
    frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
    frame.sample_rate = from_hz
    resampler = av.AudioResampler(format="s16", layout="mono", rate=to_hz)
    parts = [part.to_ndarray()[0] for part in (*resampler.resample(frame), *resampler.resample(None))]
    return np.concatenate(parts).astype(np.int16)


def rows(path: Path, separator: str = ",") -> Iterator[dict[str, str]]:
    """Rows of a table with a header; ConfigError if it is not there."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            yield from csv.DictReader(file, delimiter=separator)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"cannot read the table {path}: {error}") from error


def _table(path: Path, layout: Layout, windows: tuple[tuple[str, str], ...] | None) -> Log:
    lines = list(rows(path, layout.separator))
    if not lines:
        raise ConfigError(f"{path} holds no rows")
    columns = layout.columns or {
        name: (name, 1.0, 0.0)
        for name in lines[0]
        if name not in (layout.time, layout.wrong) and name and any(_is_number(line[name]) for line in lines)
    }
    if not columns:
        raise ConfigError(f"{path} has no column of numbers; there are {', '.join(map(str, lines[0]))}")
    needed = [column for column, _, _ in columns.values()] + ([layout.time] if layout.time else [])
    lost = [column for column in needed if column not in lines[0]]
    if lost:
        raise ConfigError(f"{path} has no column {lost[0]!r}; there are {', '.join(map(str, lines[0]))}")
    read = _with_comma if layout.decimal_comma else _number
    values = np.array(
        [[read(line[column]) * scale + offset for column, scale, offset in columns.values()] for line in lines],
        np.float64,
    )
    wrong = np.full(len(lines), -1, np.int8)
    if layout.wrong is not None and layout.wrong in lines[0]:
        wrong = np.array([_label(path, line[layout.wrong], number) for number, line in enumerate(lines, 2)], np.int8)
    moments = np.arange(len(lines)) * layout.period_s
    if layout.time is not None:
        moments = np.array([_seconds(path, line[layout.time]) for line in lines], np.float64)
    if windows is not None and (layout.wrong is None or layout.wrong not in lines[0]):
        bounds = [(_seconds(path, first), _seconds(path, last)) for first, last in windows]
        wrong = np.array([any(a <= moment <= b for a, b in bounds) for moment in moments], np.int8)
    # Exports that begin with the newest row are common.
    order = np.argsort(moments, kind="stable")
    return Log(moments[order] - moments.min(), tuple(columns), values[order], wrong[order])


def _seconds(path: Path, text: str | None) -> float:
    try:
        return float(text or "") if _is_number(text) else datetime.fromisoformat(text or "").timestamp()
    except ValueError as error:
        raise ConfigError(f"{path}: {text!r} is no time: ISO 8601, or seconds") from error


def _is_number(text: str | None) -> bool:
    try:
        return math.isfinite(float(text or ""))
    except ValueError:
        return False


def _number(text: str | None) -> float:
    return float(text) if text and _is_number(text) else math.nan


def _with_comma(text: str | None) -> float:
    return _number(text and text.replace(",", "."))


def _label(path: Path, text: str | None, line: int) -> int:
    """1 above a half, 0 below, −1 for an empty cell; true and false are taken for what they are."""
    said = (text or "").strip().lower()
    value = {"": -1.0, "true": 1.0, "false": 0.0}.get(said, _number(said.replace(",", ".")))
    if math.isnan(value):
        raise ConfigError(f"{path}, line {line}: the label {text!r} is neither 0 nor 1 nor empty")
    return -1 if not said else int(value > 0.5)


def told(text: str) -> None:
    """One line about the data on stderr."""
    sys.stderr.write(f"data: {text}\n")
