"""A recorded session, played again: the same samples in the same order, at once (`samples`) or in time (`Replay`)."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, BinaryIO

import av
import msgspec
import numpy as np
from av.video.reformatter import VideoReformatter
from msgspec import Meta, Struct

from edge_agent.clock import Clock
from edge_agent.contract.event import Name
from edge_agent.core.records import U8, Box, Packet, Reading, Sample
from edge_agent.errors import SourceEnded, SourceError
from edge_agent.sources.recording import (
    MAX_LINE,
    MAX_SIDE,
    VERSION,
    AudioLine,
    Coding,
    FrameLine,
    Line,
    ObjectsLine,
    PacketLine,
    ReadingLine,
    Session,
    from_coded,
)

SECOND = 1_000_000_000
_WAV_HEADER = 44  # bytes before the sound in what `recording` writes
_MAX_MANIFEST = 1 << 20
_decode_line = msgspec.json.Decoder(Line).decode


def session(folder: Path) -> Session:
    """The manifest of a recording. SourceError if there is none, or none that this version can play."""
    path = folder / "manifest.json"
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_MANIFEST + 1)
    except OSError as error:
        raise SourceError(f"no recording in {folder}: {error}. Make one with `edge-agent record`") from error
    if len(data) > _MAX_MANIFEST:
        raise SourceError(f"{path} is larger than any manifest: this is not a recording")
    try:
        version = msgspec.json.decode(data, type=_Versioned).version
        if version != VERSION:
            raise SourceError(
                f"{path}: the recording has version {version}, this agent plays version {VERSION}: "
                "use the agent that made it, or record again"
            )
        return msgspec.json.decode(data, type=Session)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SourceError(f"{path} is damaged ({error}): copy the recording again, or record again") from error


def samples(folder: Path) -> Iterator[Sample]:
    """Every recorded sample as fast as it can be read, with the sources, numbers and times it was recorded with.

    SourceEnded at the end of a recording that was cut off, with what was played; SourceError if it is damaged.
    """
    return (item for item in items(folder) if isinstance(item, Sample))


def items(folder: Path) -> Iterator[Sample | Packet]:
    """As `samples`, packets among them."""
    with _Player(folder) as player:
        yield from player.play()


class _Versioned(Struct):
    version: int


class ReplayOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which recording, and which of its sources."""

    path: Path
    source: Name | None = None  #: of the recording; None: the only one
    speed: Annotated[float, Meta(ge=0, le=1000)] = 1.0  #: times run ahead of the clock with it; 0: as fast as it goes
    loop: bool = False


class Replay:
    """One source of a recording, under the name of this one, as if it happened now. Clock ticks are not replayed."""

    Options = ReplayOptions
    stamps_on_arrival = False

    def __init__(self, name: str, options: ReplayOptions, clock: Clock) -> None:
        self.counters = {"played": 0}
        self._name, self._options, self._clock = name, options, clock
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._player: _Player | None = None
        self._items: Iterator[Sample | Packet] = iter(())
        self._waiting: Sample | Packet | None = None
        self._shift_ns = 0  # recorded time → time of this run
        self._start_ns = 0
        self._last_ns = 0
        self._seq: Counter[str] = Counter()

    def open(self) -> None:
        """Begin to play. SourceError if the recording cannot be played or does not say which source is meant."""
        with self._lock:
            if self._player is not None:
                raise SourceError(f"{self._name}: open already; close it first")
            source = self._chosen(session(self._options.path))
            self._closing.clear()
            self._start_ns = self._clock.monotonic_ns()
            self._begin(source, self._start_ns)

    def read(self, timeout_s: float) -> Sample | Packet | None:
        """The next sample or packet once it is due. SourceEnded after the last one, or where the recording breaks."""
        with self._lock:
            player = self._player
            if player is None:
                raise SourceError(f"{self._name}: not open")
            due_ns = self._due(player)
            player = self._player  # a loop begins with a new one
        if self._options.speed:
            early_ns = due_ns - self._clock.monotonic_ns()
            if early_ns > 0:
                self._closing.wait(min(timeout_s, early_ns / SECOND))
                if self._clock.monotonic_ns() < due_ns and not self._closing.is_set():
                    return None
        with self._lock:
            if self._player is not player or self._waiting is None:
                raise SourceError(f"{self._name}: closed")
            item, self._waiting = self._waiting, None
            self.counters["played"] += 1
            return self._renamed(item)

    def close(self) -> None:
        """Let go of the files."""
        self._closing.set()
        with self._lock:
            player, self._player, self._waiting = self._player, None, None
            if player is not None:
                player.close()

    def _chosen(self, recorded: Session) -> str:
        names = [source.name for source in recorded.sources]
        wanted = self._options.source
        if wanted is None and len(names) == 1:
            return names[0]
        if wanted not in names:
            asked = f"no source {wanted!r}" if wanted else "several sources; say which with `source`"
            raise SourceError(f"{self._name}: {self._options.path} has {asked}: {', '.join(names) or 'none'}")
        return wanted

    def _begin(self, source: str, start_ns: int) -> None:
        player = _Player(self._options.path, only=source)
        try:
            first_ns = player.first_ns()
        except SourceError:
            player.close()
            raise
        self._player, self._items = player, player.play()
        self._shift_ns = start_ns - first_ns

    def _due(self, player: _Player) -> int:
        """When the next item is to be handed out. Whatever ends a recording ends it for good: never retried."""
        if self._waiting is None:
            try:
                self._waiting = next(self._items, None)
                if self._waiting is None and self._options.loop and self._last_ns:
                    player.close()
                    self._begin(player.only, self._last_ns + SECOND // 10)
                    self._waiting = next(self._items, None)
            except SourceError as error:
                raise SourceEnded(str(error)) from error
        if self._waiting is None:
            raise SourceEnded(f"{self._name}: {self._options.path} has been played")
        since_ns = self._waiting.captured_ns + self._shift_ns - self._start_ns
        return self._start_ns + round(since_ns / (self._options.speed or 1.0))

    def _renamed(self, item: Sample | Packet) -> Sample | Packet:
        captured_ns = item.captured_ns + self._shift_ns
        self._last_ns = max(self._last_ns, captured_ns)
        if isinstance(item, Packet):
            return Packet(
                self._name,
                item.stream,
                item.codec,
                captured_ns,
                item.decode_ns + self._shift_ns,
                item.duration_ns,
                item.key,
                item.data,
                extradata=item.extradata,
                width=item.width,
                height=item.height,
                rate_hz=item.rate_hz,
                channels=item.channels,
            )
        seq = self._seq[item.kind]
        self._seq[item.kind] += 1
        return Sample(self._name, item.kind, seq, captured_ns, item.data, item.rate_hz)


class _Player:
    """Reads one recording from its first line to its last, files opened as the lines name them."""

    def __init__(self, folder: Path, only: str = "") -> None:
        self.only = only
        self._folder = folder
        self._session = session(folder)
        self._counts: Counter[str] = Counter()
        self._media: dict[str, _Pictures | BinaryIO] = {}
        self._extradata: dict[str, bytes] = {}
        try:
            self._file = (folder / "samples.jsonl").open("rb")
        except OSError as error:
            raise SourceError(f"the recording in {folder} has no samples.jsonl ({error}): copy it again") from error

    def __enter__(self) -> _Player:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for media in self._media.values():
            media.close()
        self._media.clear()
        self._file.close()

    def first_ns(self) -> int:
        """Time of the recording's first line, whichever source it is of: what several sources share."""
        line = self._file.readline(MAX_LINE)
        self._file.seek(0)
        if not line.endswith(b"\n"):
            raise SourceError(f"the recording in {self._folder} is empty: record again")
        return int(self._parsed(line, 1).t)

    def play(self) -> Iterator[Sample | Packet]:
        """Everything, in order."""
        number = 0
        while raw := self._file.readline(MAX_LINE):
            number += 1
            if not raw.endswith(b"\n"):
                raise self._cut(number, "its last line is not whole")
            line = self._parsed(raw, number)
            self._counts[str(line.__struct_config__.tag)] += 1
            if self.only and line.s != self.only:
                continue
            try:
                item = self._item(line)
            except _Missing as error:
                raise self._cut(number, str(error)) from error
            except (OSError, av.FFmpegError) as error:
                raise self._damaged(number, str(error)) from error
            yield item
        self._check_end(number)

    def _parsed(self, raw: bytes, number: int) -> Any:
        try:
            return _decode_line(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self._damaged(number, str(error)) from error

    def _item(self, line: Line) -> Sample | Packet:
        if isinstance(line, FrameLine):
            return Sample(line.s, "frame", line.q, line.t, self._pictures(line.media).at(line.n))
        if isinstance(line, AudioLine):
            data = self._bytes(line.media, _WAV_HEADER + 2 * line.n, 2 * line.size)
            return Sample(line.s, "audio", line.q, line.t, np.frombuffer(data, "<i2").astype(np.int16), line.rate_hz)
        if isinstance(line, ReadingLine):
            return Sample(line.s, "reading", line.q, line.t, Reading(line.channel, line.value))
        if isinstance(line, ObjectsLine):
            return Sample(line.s, "objects", line.q, line.t, tuple(Box(*box) for box in line.boxes))
        if isinstance(line, PacketLine):
            return self._packet(line)
        return Sample(line.s, "tick", line.q, line.t)

    def _packet(self, line: PacketLine) -> Packet:
        data = self._bytes(line.media, line.n, line.extra + line.size)
        if line.extra:
            self._extradata[line.media] = data[: line.extra]
        return Packet(
            line.s,
            line.stream,
            line.codec,
            line.t,
            line.decode_ns,
            line.duration_ns,
            line.key,
            data[line.extra :],
            extradata=self._extradata.get(line.media, b""),
            width=line.width,
            height=line.height,
            rate_hz=line.rate_hz,
            channels=line.channels,
        )

    def _pictures(self, name: str) -> _Pictures:
        media = self._media.get(name)
        if media is None:
            media = self._media[name] = _Pictures(self._path(name), self._session.pictures)
        if not isinstance(media, _Pictures):
            raise _Missing(f"media/{name} holds no pictures")
        return media

    def _bytes(self, name: str, first: int, size: int) -> bytes:
        media = self._media.get(name)
        if media is None:
            media = self._media[name] = self._path(name).open("rb")
        if isinstance(media, _Pictures):
            raise _Missing(f"media/{name} holds pictures")
        media.seek(first)
        data = media.read(size)
        if len(data) < size:
            raise _Missing(f"media/{name} ends before it")
        return data

    def _path(self, name: str) -> Path:
        path = self._folder / "media" / name
        if not path.is_file():
            raise _Missing(f"media/{name} is not there")
        return path

    def _check_end(self, lines: int) -> None:
        if not self._session.complete:
            raise self._cut(lines + 1, "it was never closed")
        counts = {kind: count for kind, count in self._session.counts.items() if count}
        if counts != dict(self._counts):
            raise SourceError(
                f"the recording in {self._folder} holds {dict(self._counts)}, its manifest says {counts}: "
                "the folder was changed after recording; copy it again"
            )

    def _cut(self, number: int, why: str) -> SourceError:
        """A recording that was not closed ends where it was cut; in one that was closed, something has gone."""
        if self._session.complete:
            return self._damaged(number, why)
        return SourceEnded(f"the recording in {self._folder} was cut off: played {number - 1} lines, then {why}")

    def _damaged(self, number: int, why: str) -> SourceError:
        return SourceError(
            f"{self._folder / 'samples.jsonl'} line {number}: {why}. The recording is damaged: copy it again, or "
            f"delete everything from that line on and set `complete` to false to play what is left"
        )


class _Missing(Exception):
    """What a line points at is not there."""


class _Pictures:
    """Pictures of one file by number, which only rises."""

    def __init__(self, path: Path, coding: Coding) -> None:
        self._name = path.name
        self._coding = coding
        self._reformatter = VideoReformatter()
        self._container = av.open(str(path), "r", format="matroska", metadata_errors="replace")
        if not self._container.streams.video:
            self._container.close()
            raise _Missing(f"media/{path.name} holds no pictures")
        stream = self._container.streams.video[0]
        stream.codec_context.thread_count = 1
        context = stream.codec_context
        if max(context.width, context.height) > MAX_SIDE:
            self._container.close()
            raise _Missing(f"media/{path.name} holds pictures of {context.width}x{context.height}")
        self._frames = self._container.decode(stream)
        self._next = 0

    def at(self, number: int) -> U8:
        """uint8 (height, width, 3), RGB."""
        if number < self._next:
            raise _Missing(f"picture {number} of media/{self._name} is asked for after picture {self._next - 1}")
        frame: av.VideoFrame | None = None
        while self._next <= number:
            frame = next(self._frames, None)
            if frame is None:
                break
            self._next += 1
        if frame is None:
            raise _Missing(f"media/{self._name} ends at picture {self._next}")
        return from_coded(self._reformatter, frame, self._coding)

    def close(self) -> None:
        self._container.close()
