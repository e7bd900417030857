"""A recorded session: a folder that holds every sample, ticks and objects included, so that a run can be had again.

    manifest.json    what it is: version, sources, scenes, how pictures were coded, and how many lines there are
    samples.jsonl    one line per sample or packet, in the order in which the pipeline got them
    media/           pictures (Matroska), sound (WAV) and packets (bytes as they came), which the lines point into

Lines follow their media, and the manifest says `complete` only at the end: after a crash the rest can be replayed.
"""

from __future__ import annotations

import io
import math
import os
import wave
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import av
import msgspec
import numpy as np
from av.container import OutputContainer
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from av.video.stream import VideoStream
from msgspec import Meta, Struct

from edge_agent.config import Polygon, SceneConfig, SourceConfig
from edge_agent.contract.event import Name
from edge_agent.core.prepare import blackened
from edge_agent.core.records import I16, U8, Packet, Sample
from edge_agent.errors import StorageError

VERSION = 1
MAX_STREAMS = 64  #: media files of one session
MAX_LINE = 64 * 1024  #: bytes of one line
#: Longest picture side and largest packet: what a line may ask a reader to hold in memory.
MAX_SIDE, MAX_PACKET = 8192, 16 << 20
_FLUSH_LINES = 64
_CHECK_LINES = 256

MILLISECOND = Fraction(1, 1000)

Coding = Literal["lossless", "high"]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
StreamName = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,90}\.(mkv|wav|packets)$")]


class RecordedSource(Struct, frozen=True, kw_only=True):
    """A source that was recorded. Its options stay behind: they hold addresses and passwords."""

    name: Name
    driver: str


class Session(Struct, frozen=True, kw_only=True):
    """manifest.json."""

    version: int = VERSION
    created: str  #: RFC 3339
    sources: tuple[RecordedSource, ...] = ()
    scenes: tuple[SceneConfig, ...] = ()
    #: `lossless` (FFV1): the same pixels, the same events. `high` (H.264 4:4:4, crf 12) takes a third of the space;
    #: pixels are 1.5 levels off on average, and a model that counts every level scored up to 0.05 off
    pictures: Coding = "lossless"
    complete: bool = False  #: it was closed properly
    counts: dict[str, Count] = {}  #: lines by kind, once complete


class _Line(Struct, frozen=True, kw_only=True, tag_field="k", forbid_unknown_fields=True):
    s: Annotated[str, Meta(max_length=64)]  #: source
    q: Count  #: seq
    t: Count  #: captured_ns


class FrameLine(_Line, frozen=True, kw_only=True, tag="frame"):
    media: StreamName
    n: Count  #: which picture of the file


class AudioLine(_Line, frozen=True, kw_only=True, tag="audio"):
    media: StreamName
    n: Count  #: first sample in the file
    size: Annotated[int, Meta(ge=0, le=1 << 22)]  #: samples
    rate_hz: Annotated[int, Meta(gt=0, le=384_000)]


class ReadingLine(_Line, frozen=True, kw_only=True, tag="reading"):
    channel: Annotated[str, Meta(max_length=256)]
    value: float


class ObjectsLine(_Line, frozen=True, kw_only=True, tag="objects"):
    #: label, score, x0, y0, x1, y1
    boxes: Annotated[tuple[tuple[str, float, float, float, float, float], ...], Meta(max_length=512)]


class TickLine(_Line, frozen=True, kw_only=True, tag="tick"):
    pass


class PacketLine(_Line, frozen=True, kw_only=True, tag="packet"):
    """`q` is the packet's number in its file; `extra` bytes of codec data lie before the packet's own `size`."""

    media: StreamName
    n: Count  #: first byte in the file
    size: Annotated[int, Meta(ge=0, le=MAX_PACKET)]
    extra: Annotated[int, Meta(ge=0, le=1 << 20)] = 0
    stream: Literal["video", "audio"]
    codec: Annotated[str, Meta(max_length=32)]
    decode_ns: int
    duration_ns: int
    key: bool = False
    width: Count = 0
    height: Count = 0
    rate_hz: Count = 0
    channels: Count = 0


Line = Union[FrameLine, AudioLine, ReadingLine, ObjectsLine, TickLine, PacketLine]  # noqa: UP007


class Recorder:
    """Writes a session. One thread at a time; memory does not grow with its length.

    Pictures are encoded here: 10 ms and 100 kB for one of 320x240, 3 ms and 33 kB if `high`. Packets are kept beside
    them as they came. What any scene masks of a camera is black in its pictures, and its video packets are left out:
    nothing behind a mask is stored.
    `counters`: lines by kind, `refused` (what no replay could give back: not finite, no known shape) and `masked`
    (packets left out).
    """

    def __init__(
        self,
        folder: Path,
        *,
        created: str,
        sources: Sequence[SourceConfig] = (),
        scenes: Sequence[SceneConfig] = (),
        pictures: Coding = "lossless",
        max_bytes: int = 8 << 30,
    ) -> None:
        """Begin a session in a new or empty `folder`; `created` is RFC 3339. StorageError if that cannot be."""
        self.counters: Counter[str] = Counter(refused=0, masked=0)
        self._folder = folder
        self._max_bytes = max_bytes
        self._session = Session(
            created=created,
            sources=tuple(RecordedSource(name=source.name, driver=source.driver) for source in sources),
            scenes=tuple(scenes),
            pictures=pictures,
        )
        self._masks: dict[str, tuple[Polygon, ...]] = {}  # by camera
        for scene in scenes:
            if scene.camera is not None and scene.masks:
                self._masks[scene.camera] = self._masks.get(scene.camera, ()) + scene.masks
        self._media: dict[tuple[object, ...], Any] = {}
        self._used: Counter[str] = Counter()  # files begun per source and kind
        self._lines = 0
        self._closed = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise StorageError(f"{folder} is not empty: name a new folder for the recording")
            (folder / "media").mkdir()
            self._write_manifest(self._session)
            self._out = (folder / "samples.jsonl").open("wb")
        except OSError as error:
            raise StorageError(f"cannot record to {folder}: {error}") from error

    def put(self, item: Sample | Packet) -> None:
        """Append. StorageError when the disk or `max_bytes` is full; what was put before is kept, once closed."""
        if self._closed:
            raise StorageError(f"the recording in {self._folder} is closed")
        if isinstance(item, Packet) and item.stream == "video" and item.source in self._masks:
            self.counters["masked"] += 1
            return
        try:
            line = self._line(item)
            if line is None:
                self.counters["refused"] += 1
                return
            encoded = msgspec.json.encode(line) + b"\n"
            if len(encoded) > MAX_LINE:
                self.counters["refused"] += 1
                return
            self._out.write(encoded)
            self.counters[str(line.__struct_config__.tag)] += 1
            self._lines += 1
            if self._lines % _FLUSH_LINES == 0:
                self._flush()
            if self._lines % _CHECK_LINES == 0:
                self._check_size()
        except (OSError, av.FFmpegError) as error:
            raise StorageError(f"cannot go on recording to {self._folder}: {error}. Is the disk full?") from error

    def close(self) -> None:
        """Finish the files and say `complete`. May be called twice. StorageError if that cannot be written."""
        if self._closed:
            return
        self._closed = True
        try:
            for media in self._media.values():
                media.close()
            self._out.flush()
            os.fsync(self._out.fileno())
            counts = {kind: count for kind, count in self.counters.items() if kind not in ("refused", "masked")}
            self._write_manifest(msgspec.structs.replace(self._session, complete=True, counts=counts))
        except (OSError, av.FFmpegError) as error:
            raise StorageError(f"the recording in {self._folder} was cut short: {error}") from error
        finally:
            self._out.close()

    def _line(self, item: Sample | Packet) -> Line | None:
        if isinstance(item, Packet):
            return self._packet(item)
        source, seq, captured_ns, data = item.source, item.seq, item.captured_ns, item.data
        if item.kind == "tick":
            return TickLine(s=source, q=seq, t=captured_ns)
        if item.kind == "reading":
            if not math.isfinite(data.value):
                return None
            return ReadingLine(s=source, q=seq, t=captured_ns, channel=data.channel, value=float(data.value))
        if item.kind == "objects":
            boxes = tuple((box.label, box.score, box.x0, box.y0, box.x1, box.y1) for box in data)
            if not all(math.isfinite(number) for box in boxes for number in box[1:]):
                return None
            return ObjectsLine(s=source, q=seq, t=captured_ns, boxes=boxes)
        return self._frame(item) if item.kind == "frame" else self._sound(item)

    def _frame(self, item: Sample) -> Line | None:
        picture: U8 = item.data
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or max(picture.shape) > MAX_SIDE:
            return None
        key = (item.source, "frame", picture.shape)
        video = self._media.get(key)
        if video is None:
            path = self._new_file(item.source, "frames", "mkv")
            self._close_older(key)
            video = self._media[key] = _Video(path, picture.shape[1], picture.shape[0], self._session.pictures)
        n = video.write(blackened(picture, self._masks.get(item.source, ())), item.captured_ns)
        return FrameLine(s=item.source, q=item.seq, t=item.captured_ns, media=video.name, n=n)

    def _sound(self, item: Sample) -> Line | None:
        pcm: I16 = item.data
        if pcm.ndim != 1 or pcm.dtype != np.int16 or item.rate_hz <= 0:
            return None
        key = (item.source, "audio", item.rate_hz)
        sound = self._media.get(key)
        if sound is None:
            path = self._new_file(item.source, "sound", "wav")
            self._close_older(key)
            sound = self._media[key] = _Wave(path, item.rate_hz)
        n = sound.write(pcm)
        return AudioLine(
            s=item.source,
            q=item.seq,
            t=item.captured_ns,
            media=sound.name,
            n=n,
            size=len(pcm),
            rate_hz=item.rate_hz,
        )

    def _packet(self, item: Packet) -> Line | None:
        if len(item.data) > MAX_PACKET:
            return None
        key = (item.source, "packets", item.stream)
        blob = self._media.get(key)
        if blob is None:
            blob = self._media[key] = _Blob(self._new_file(item.source, item.stream, "packets"))
        n, extra = blob.write(item)
        return PacketLine(
            s=item.source,
            q=blob.count,
            t=item.captured_ns,
            media=blob.name,
            n=n,
            size=len(item.data),
            extra=extra,
            stream=item.stream,
            codec=item.codec,
            decode_ns=item.decode_ns,
            duration_ns=item.duration_ns,
            key=item.key,
            width=item.width,
            height=item.height,
            rate_hz=item.rate_hz,
            channels=item.channels,
        )

    def _new_file(self, source: str, what: str, suffix: str) -> Path:
        """A source that came back with another size or rate gets another file."""
        if sum(self._used.values()) >= MAX_STREAMS:
            raise StorageError(
                f"{self._folder}: more than {MAX_STREAMS} media files: {source} keeps changing its shape"
            )
        self._used[f"{source}-{what}"] += 1
        return self._folder / "media" / f"{source}-{what}-{self._used[f'{source}-{what}']}.{suffix}"

    def _close_older(self, key: tuple[object, ...]) -> None:
        for other in [other for other in self._media if other[:2] == key[:2]]:
            self._media.pop(other).close()

    def _flush(self) -> None:
        """Media first: a line never points past what a reader will find, whatever happens next."""
        for media in self._media.values():
            media.flush()
        self._out.flush()

    def _check_size(self) -> None:
        total = self._out.tell() + sum(path.stat().st_size for path in (self._folder / "media").iterdir())
        if total > self._max_bytes:
            raise StorageError(f"the recording in {self._folder} has reached its limit of {self._max_bytes} bytes")

    def _write_manifest(self, session: Session) -> None:
        part = self._folder / "manifest.json.part"
        part.write_bytes(msgspec.json.format(msgspec.json.encode(session), indent=2) + b"\n")
        part.replace(self._folder / "manifest.json")


class _Video:
    """Pictures of one size in one Matroska file; the n-th written is the n-th decoded."""

    def __init__(self, path: Path, width: int, height: int, coding: Coding) -> None:
        self.name = path.name
        self._coding = coding
        # Without these a crash would take the last five seconds with it.
        options = {"flush_packets": "1", "cluster_time_limit": "500"}
        self._container: OutputContainer = av.open(str(path), "w", format="matroska", options=options)
        self._stream = self._add_stream(width, height)
        self._reformatter = VideoReformatter()
        self._count = 0
        self._start_ns = 0
        self._last_ms = -1

    def write(self, picture: U8, captured_ns: int) -> int:
        """The picture's number in the file. Its time there is for players; the line has the real one."""
        if not self._count:
            self._start_ns = captured_ns
        self._last_ms = max((captured_ns - self._start_ns) // 1_000_000, self._last_ms + 1)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame = to_coded(self._reformatter, frame, self._coding)
        frame.pts, frame.time_base = self._last_ms, self._stream.codec_context.time_base
        self._container.mux(self._stream.encode(frame))
        self._count += 1
        return self._count - 1

    def flush(self) -> None:
        """The muxer writes through by itself."""

    def close(self) -> None:
        if self._count:
            self._container.mux(self._stream.encode(None))
        self._container.close()

    def _add_stream(self, width: int, height: int) -> VideoStream:
        lossless = self._coding == "lossless"
        # One picture in, one packet out: an encoder that looks ahead would lose what it holds in a crash.
        x264 = {"preset": "ultrafast", "crf": "12", "tune": "zerolatency"}
        stream = self._container.add_stream("ffv1" if lossless else "libx264", 10, {} if lossless else x264)
        stream.width, stream.height = width, height
        stream.pix_fmt = "bgr0" if lossless else "yuv444p"
        stream.codec_context.time_base = MILLISECOND
        stream.codec_context.gop_size = 1 if lossless else 20
        stream.codec_context.thread_count = 1
        stream.codec_context.color_range = ColorRange.JPEG
        return stream


class _Wave:
    """Sound of one rate in one WAV file. Its header is right after every block."""

    def __init__(self, path: Path, rate_hz: int) -> None:
        self.name = path.name
        self._file = path.open("w+b")
        self._wave = wave.Wave_write(self._file)
        self._wave.setparams((1, 2, rate_hz, 0, "NONE", ""))
        self._count = 0

    def write(self, pcm: I16) -> int:
        first = self._count
        self._wave.writeframes(pcm.astype("<i2").tobytes())
        self._count += len(pcm)
        return first

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._wave.close()
        self._file.close()


class _Blob:
    """Packets of one stream, one after the other; codec data before a packet wherever it is new."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.count = -1
        self._file: io.BufferedWriter = path.open("wb")
        self._extradata = b""

    def write(self, packet: Packet) -> tuple[int, int]:
        """Where the packet begins, codec data first, and how long that is."""
        first = self._file.tell()
        extra = packet.extradata if packet.extradata != self._extradata else b""
        self._extradata = packet.extradata
        self._file.write(extra)
        self._file.write(packet.data)
        self.count += 1
        return first, len(extra)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def to_coded(reformatter: VideoReformatter, frame: av.VideoFrame, coding: Coding) -> av.VideoFrame:
    """RGB as the encoder wants it."""
    if coding == "lossless":
        return reformatter.reformat(frame, format="bgr0", threads=1)
    return reformatter.reformat(
        frame, format="yuv444p", dst_colorspace=Colorspace.ITU601, dst_color_range=ColorRange.JPEG, threads=1
    )


def from_coded(reformatter: VideoReformatter, frame: av.VideoFrame, coding: Coding) -> U8:
    """What `to_coded` was given: (height, width, 3), RGB, full range."""
    if coding == "lossless":
        picture = reformatter.reformat(frame, format="rgb24", threads=1)
    else:
        picture = reformatter.reformat(
            frame,
            format="rgb24",
            src_colorspace=Colorspace.ITU601,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.JPEG,
            threads=1,
        )
    return np.asarray(picture.to_ndarray(), np.uint8)
