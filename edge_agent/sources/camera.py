"""A camera, or a file in its place, by libav: picture and sound of one connection on one clock.

The thread of the connection (`line.Line`) is the only one that touches libav's container, opening and closing too.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import ColorRange, VideoReformatter
from msgspec import Meta, Struct

from edge_agent.clock import Clock
from edge_agent.core.records import U8, Kind, Packet, Sample
from edge_agent.errors import ConfigError, SourceEnded, SourceError
from edge_agent.sources.address import Address, check_local, check_resolved, parse
from edge_agent.sources.line import Line
from edge_agent.sources.timeline import SECOND, Arrival, Live, Paced, Timeline

RATE_HZ = 16000
BLOCK = 320  #: samples of the shortest block of sound: 20 ms
MAX_BLOCK = 1600  #: of the longest: 100 ms
_WAITING = 32  # a second or less; when it is full the sender waits
_UNUSABLE = 250  # packets in a row that do not decode: the stream is not what it says
_SLICE_S = 1.0  # RTSP resumes after an interrupt between packets, so a closed camera lets go within this
_HEIGHT_709 = 720  # a stream that does not name its matrix: BT.709 from here on, BT.601 below, as players do
_PARSED = ("h264", "hevc")  # RTP gives these in pieces: libav knows that a picture is whole when the next one starts
_MAX_REORDER = 16  # pictures that H.264 and HEVC may show in another order than they are sent in
_UNTIMED = ("mpjpeg", "mjpeg", "h264", "hevc")  # formats without times: libav counts 25 pictures a second
_INTRA = ("mjpeg",)  # every picture stands alone: what is not analysed need not be decoded
_PROTOCOLS = {
    "file": "file",
    "rtsp": "rtsp,rtp,udp,tcp",
    "rtsps": "rtsp,rtsps,rtp,srtp,udp,tcp,tls",
    "http": "http,tcp",
    "https": "https,tls,tcp",
}
_STREAM_FORMATS = "rtsp,rtp,sdp,mpegts"
_FILE_FORMATS = "mpjpeg,mjpeg,mpegts,mov,mp4,matroska,webm,flv,avi,h264,hevc,wav,ogg,mp3,aac,asf"
_RESUMABLE = ("rtsp", "rtsps")
_SOUND_GAP_NS = 50_000_000
#: AVColorSpace of a frame → SWS_CS of the scaler, as numbers: BT.2020 has no name in PyAV before 18.
_MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
_ITU709, _ITU601 = 1, 5
_CAN_REFUSE_REDIRECTS = (62, 12)  # libavformat of FFmpeg 8.1; one before ignores the option without a word
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


class CameraOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A stream by address, or a file by path."""

    url: str  #: rtsp://, rtsps://, http://, https:// (MJPEG, HLS, MP4 …) or the path of a file
    username: str | None = None
    password: str | None = None  #: as ${env:NAME} or ${file:/path}
    transport: Literal["tcp", "udp"] = "tcp"  #: of RTSP
    fps: Annotated[float, Meta(gt=0, le=60)] = 10.0  #: pictures analysed per second, at most
    audio: bool = True  #: False leaves the sound of the stream alone
    loop: bool = False  #: of a file: play it again and again
    timeout_s: Annotated[float, Meta(ge=0.5, le=120)] = 10.0  #: without a packet the line counts as gone
    allow_local: bool = False  #: the address may be of this machine (127.0.0.1) or its link (169.254.x.x)
    verify_tls: bool = True  #: False: any certificate of rtsps:// and https:// will do
    ca: Path | None = None  #: certificates to trust instead of the system's


Item = Sample | Packet


@dataclass(frozen=True, slots=True)
class _Work:
    """What a connection needs of its camera."""

    name: str
    options: CameraOptions
    address: Address
    clock: Clock
    counters: dict[str, int]


class Camera:
    """Frames (RGB, full range, at most `fps`), 16 kHz mono sound, and the packets of both as they came.

    captured_ns is stream time on the monotonic clock; a file is played in real time. Counters: `corrupt` (packets
    and frames that did not decode), `undated` (without a time), `jumps` (the sender's clock was set or wrapped).
    """

    Options = CameraOptions
    stamps_on_arrival = False

    def __init__(self, name: str, options: CameraOptions, clock: Clock) -> None:
        """ConfigError if the address is not allowed; nothing is connected."""
        address = parse(options.url, options.username, options.password)
        check_local(address, options.allow_local)
        if options.loop and address.scheme != "file":
            raise ConfigError("only a file can loop", "loop")
        self.counters = {"corrupt": 0, "undated": 0, "jumps": 0}
        self._work = _Work(name, options, address, clock, self.counters)
        self._connection: _Connection | None = None
        self._lock = threading.Lock()
        self._seq: dict[str, int] = {}

    def open(self) -> None:
        """Connect and find the streams; within `timeout_s` (and the resolver's own time) or SourceError."""
        connection = _Connection(self._work)
        with self._lock:
            if self._connection is not None:
                raise SourceError(f"{self._work.name}: open already; close it first")
            self._connection = connection
        try:
            connection.open()
        except SourceError:
            self.close()
            raise

    def read(self, timeout_s: float) -> Item | None:
        """The next sample or packet, in the order in which they came."""
        connection = self._connection
        if connection is None:
            raise SourceError(f"{self._work.name}: not open")
        item = connection.line.get(timeout_s)
        if not isinstance(item, Sample):
            return item
        seq = self._seq[item.kind] = self._seq.get(item.kind, -1) + 1
        return Sample(item.source, item.kind, seq, item.captured_ns, item.data, item.rate_hz)

    def close(self) -> None:
        """Let go. A server that has stalled in the middle of HTTP data holds the thread up to `timeout_s` longer."""
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.line.close(1.5 * _SLICE_S)


class _Connection:
    """One open line of a camera."""

    def __init__(self, work: _Work) -> None:
        self.line: Line[Item] = Line(f"camera-{work.name}", _WAITING)
        self._work = work

    def open(self) -> None:
        check_resolved(self._work.address, self._work.options.allow_local)
        self.line.open(self._pull_all, 2 * self._work.options.timeout_s)

    def _pull_all(self) -> SourceError:
        try:
            return self._play()
        except av.FFmpegError as error:
            # libav's own text names the address with its password: only its reason may travel on, cause included.
            error.args = error.args[:2]
            raise self._error(str(error.strerror)) from error

    def _play(self) -> SourceError:
        """Pull until it ends or is closed; the reason."""
        timeline: Timeline | None = None
        while True:
            with self._connect() as container:
                timeline = timeline or self._timeline(container)
                tracks = _tracks(container, self._work, timeline)
                if not tracks:
                    raise self._error("holds neither picture nor sound that can be decoded here")
                self.line.connected()
                pulled = self._forward(container, tracks, timeline)
            if self.line.closing.is_set():
                return self._error("closed")
            if not isinstance(timeline, Paced):
                return self._error("the other side ended the stream")
            if not (self._work.options.loop and pulled):
                return SourceEnded(f"{self._work.name}: {self._work.address.label} has been played")
            timeline.rewind()

    def _timeline(self, container: InputContainer) -> Timeline:
        finite = bool(container.duration and container.duration > 0)
        if self._work.address.scheme == "file" or (finite and self._work.address.scheme not in _RESUMABLE):
            return Paced(self._work.clock.monotonic_ns())
        return Arrival() if container.format.name in _UNTIMED else Live()

    def _connect(self) -> InputContainer:
        options = self._work.options
        address = self._work.address
        if address.scheme == "file" and not Path(address.path).is_file():
            raise self._error("no such file")
        if options.ca is not None and not options.ca.is_file():
            raise self._error(f"no such file of certificates: {options.ca}")
        if address.scheme.startswith("http") and av.library_versions["libavformat"] < _CAN_REFUSE_REDIRECTS:
            raise self._error("this libav follows every redirect; install PyAV 17.1 or later (FFmpeg 8.1)")
        half = options.timeout_s / 2  # libav spends it twice: to connect, and to find the streams
        patience = _SLICE_S if address.scheme in _RESUMABLE else options.timeout_s
        return av.open(
            address.target,
            mode="r",
            options=libav_options(address, options),
            metadata_errors="replace",
            timeout=(half, min(patience, options.timeout_s)),
        )

    def _forward(self, container: InputContainer, tracks: dict[int, _Track], timeline: Timeline) -> bool:
        """Everything from the container into the box. True if there was anything."""
        clock, counters = self._work.clock, self._work.counters
        pulled = False
        for packet in self._pull(container, [track.stream for track in tracks.values()]):
            pulled = True
            track = tracks[packet.stream_index]
            due_ns = track.note_arrival(packet, clock.monotonic_ns())
            counters["jumps"] = timeline.jumps
            if isinstance(timeline, Paced) and due_ns is not None:
                self.line.closing.wait(max(0, due_ns - clock.monotonic_ns()) / SECOND)
            for item in track.items(packet):
                if not self.line.put(item):
                    return pulled
        return pulled

    def _pull(self, container: InputContainer, streams: list[Any]) -> Iterator[av.Packet[Any]]:
        clock, options = self._work.clock, self._work.options
        heard_ns = clock.monotonic_ns()
        while True:
            try:
                for packet in container.demux(streams):
                    if self.line.closing.is_set():
                        return
                    yield packet
                    heard_ns = clock.monotonic_ns()
                return
            except av.error.ExitError:  # the slice is over, not necessarily the patience
                silent_s = (clock.monotonic_ns() - heard_ns) / SECOND
                if self.line.closing.is_set():
                    return
                if self._work.address.scheme not in _RESUMABLE or silent_s >= options.timeout_s:
                    raise self._error(f"nothing came for {options.timeout_s:g} s") from None

    def _error(self, what: str) -> SourceError:
        return SourceError(f"{self._work.name}: {self._work.address.label}: {what}")


def libav_options(address: Address, options: CameraOptions) -> dict[str, str]:
    """Everything libav is told beside the address. Its keys never come from a configuration."""
    told = {
        "protocol_whitelist": _PROTOCOLS[address.scheme],
        "format_whitelist": _STREAM_FORMATS if address.scheme.startswith("rtsp") else _FILE_FORMATS,
        # Long enough to see the first picture of both streams, and no longer: 0.8 s instead of 2.8 s to open RTSP.
        "analyzeduration": "1000000",
        "fpsprobesize": "0",
    }
    if address.scheme.startswith("rtsp"):
        told["rtsp_transport"] = options.transport
    if address.scheme.startswith("http"):
        told["format_whitelist"] = f"{_FILE_FORMATS},hls"
        told["max_redirects"] = "0"  # a redirect would lead past the checks of the address
    if address.scheme in ("rtsps", "https"):
        told["tls_verify"] = "1" if options.verify_tls else "0"
        authorities = options.ca or _CERTIFICATES
        if options.verify_tls and authorities.is_file():
            told["ca_file"] = str(authorities)
    return told


def _tracks(container: InputContainer, work: _Work, timeline: Timeline) -> dict[int, _Track]:
    """The first stream of pictures and of sound, by index."""
    tracks: dict[int, _Track] = {}
    pictures = [each for each in container.streams.video if each.codec_context is not None]
    if pictures:
        pictures[0].codec_context.thread_count = 1  # threads of libav's would each hold back a picture
        tracks[pictures[0].index] = _Picture(pictures[0], work, timeline)
    sounds = [each for each in container.streams.audio if each.codec_context is not None]
    if sounds and work.options.audio:
        tracks[sounds[0].index] = _Sound(sounds[0], work, timeline)
    return tracks


class _Track:
    """One stream: libav's packets in, packets and samples on the monotonic clock out."""

    kind: Literal["video", "audio"]

    def __init__(self, stream: Any, work: _Work, timeline: Timeline) -> None:
        self.stream = stream
        self._work = work
        self._timeline = timeline
        self._last_ns = 0  # of samples
        self._last_decode_ns = 0
        self._unusable = 0

    def note_arrival(self, packet: av.Packet[Any], now_ns: int) -> int | None:
        """Tell the timeline. The time at which the packet is due, None if it has none."""
        first = packet.dts if packet.dts is not None else packet.pts
        if first is None or packet.time_base is None:
            return None
        decode_ns = _ns(first, packet.time_base)
        self._arrived(packet, decode_ns, now_ns)
        return self._timeline.captured_ns(self.kind, decode_ns)

    def items(self, packet: av.Packet[Any]) -> Iterator[Item]:
        """What the packet becomes: itself, for evidence, and what was decoded from it."""
        if packet.is_corrupt:
            self._work.counters["corrupt"] += 1
            return
        for known in self._known(packet) if packet.size else ():
            if known.pts is None:
                self._work.counters["undated"] += 1
            else:
                yield self._record(known, known.pts)
        yield from self._samples(packet)

    def _known(self, packet: av.Packet[Any]) -> Iterable[av.Packet[Any]]:
        """The packets whose times are known by now, as far as they ever will be."""
        return (packet,)

    def _arrived(self, packet: av.Packet[Any], decode_ns: int, now_ns: int) -> None:
        raise NotImplementedError

    def _samples(self, packet: av.Packet[Any]) -> Iterator[Sample]:
        raise NotImplementedError

    def _decoded(self, packet: av.Packet[Any]) -> list[Any]:
        """Frames with a time. A packet that does not decode is counted; too many in a row end the connection."""
        try:
            frames = packet.decode()
        except av.error.EOFError:  # flushed already
            return []
        except (
            av.FFmpegError
        ) as error:  # a decoder does no I/O: InvalidData, EPERM and whatever else is the data's fault
            self._work.counters["corrupt"] += 1
            self._unusable += 1
            if self._unusable >= _UNUSABLE:
                label = self._work.address.label
                raise SourceError(
                    f"{self._work.name}: {label}: {self._unusable} packets in a row do not decode"
                ) from error
            return []
        self._unusable = 0
        whole = [frame for frame in frames if not frame.is_corrupt]
        self._work.counters["corrupt"] += len(frames) - len(whole)
        return [frame for frame in whole if frame.pts is not None and frame.time_base is not None]

    def _sample(self, kind: Kind, media_ns: int, data: Any, rate_hz: int = 0) -> Sample:
        captured_ns = self._timeline.captured_ns(self.kind, media_ns)
        # When the estimate of the sender's clock sinks, times would run back for a moment.
        self._last_ns = max(captured_ns, self._last_ns + 1)
        return Sample(self._work.name, kind, 0, self._last_ns, data, rate_hz)

    def _record(self, packet: av.Packet[Any], pts: int) -> Packet:
        context = self.stream.codec_context
        base = packet.time_base
        decode = pts if packet.dts is None else packet.dts
        decode_ns = self._timeline.captured_ns(self.kind, _ns(decode, base))
        self._last_decode_ns = max(decode_ns, self._last_decode_ns + 1)
        shown_ns = self._timeline.captured_ns(self.kind, _ns(pts, base))
        picture = self.kind == "video"
        return Packet(
            source=self._work.name,
            stream=self.kind,
            codec=context.codec.canonical_name,
            captured_ns=max(shown_ns, self._last_decode_ns),
            decode_ns=self._last_decode_ns,
            duration_ns=_ns(packet.duration or 0, base),
            key=bool(packet.is_keyframe),
            data=bytes(packet),
            extradata=bytes(context.extradata or b""),
            width=context.width if picture else 0,
            height=context.height if picture else 0,
            rate_hz=0 if picture else context.sample_rate,
            channels=0 if picture else context.layout.nb_channels,
        )


class _Picture(_Track):
    """Frames for the analysis: decoded all, since each needs the one before; converted at most `fps` of them."""

    kind = "video"

    def __init__(self, stream: Any, work: _Work, timeline: Timeline) -> None:
        super().__init__(stream, work, timeline)
        self._reformatter = VideoReformatter()
        self._interval_ns = round(SECOND / work.options.fps)
        self._due_ns: int | None = None
        name = stream.codec_context.codec.canonical_name
        self._alone = name in _INTRA
        self._late = name in _PARSED and work.address.scheme.startswith("rtsp")
        self._before_ns: int | None = None
        self._first: list[av.Packet[Any]] | None = []  # of the stream, until one has both of its times

    def _known(self, packet: av.Packet[Any]) -> Iterable[av.Packet[Any]]:
        if self._first is None:
            return (packet,)
        self._first.append(packet)
        if packet.dts is None and len(self._first) <= _MAX_REORDER:
            return ()
        first, self._first = self._first, None
        _count_back(first)
        return first

    def _arrived(self, packet: av.Packet[Any], decode_ns: int, now_ns: int) -> None:
        shown_ns = decode_ns if packet.pts is None else _ns(packet.pts, packet.time_base)
        # Over RTP libav hands a picture out when the next one begins: that one came when the last was handed out.
        came_ns = now_ns if not self._late or self._before_ns is None else self._before_ns
        self._before_ns = now_ns
        self._timeline.arrived(self.kind, decode_ns, came_ns, shown_ns)

    def _samples(self, packet: av.Packet[Any]) -> Iterator[Sample]:
        if self._alone and packet.pts is not None and not self._is_due(_ns(packet.pts, packet.time_base)):
            return
        for frame in self._decoded(packet):
            media_ns = _ns(frame.pts, frame.time_base)
            if self._is_due(media_ns):
                self._advance(media_ns)
                yield self._sample("frame", media_ns, self._rgb(frame))

    def _is_due(self, media_ns: int) -> bool:
        """A tenth of an interval early is in time, or 10 pictures of 10 would lose some to rounding."""
        captured_ns = self._timeline.captured_ns(self.kind, media_ns)
        return self._due_ns is None or captured_ns >= self._due_ns - self._interval_ns // 10

    def _advance(self, media_ns: int) -> None:
        """In step with the pictures before, or anew from this one after a pause."""
        captured_ns = self._timeline.captured_ns(self.kind, media_ns)
        late = self._due_ns is None or captured_ns - self._due_ns > self._interval_ns
        self._due_ns = (captured_ns if late or self._due_ns is None else self._due_ns) + self._interval_ns

    def _rgb(self, frame: av.VideoFrame) -> U8:
        """(height, width, 3), full range, by the stream's own matrix and range."""
        full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith(("yuvj", "rgb", "bgr", "gray"))
        by_size = _ITU709 if frame.height >= _HEIGHT_709 else _ITU601
        picture = self._reformatter.reformat(
            frame,
            format="rgb24",
            src_colorspace=_MATRICES.get(frame.colorspace, by_size),
            src_color_range=ColorRange.JPEG if full else ColorRange.MPEG,
            dst_color_range=ColorRange.JPEG,
            threads=1,
        )
        return np.asarray(picture.to_ndarray(), np.uint8)


class _Sound(_Track):
    """Mono blocks of 20 to 100 ms at 16 kHz."""

    kind = "audio"

    def __init__(self, stream: Any, work: _Work, timeline: Timeline) -> None:
        super().__init__(stream, work, timeline)
        self._resampler = _resampler()
        self._block = np.empty(0, np.int16)
        self._start_ns = 0  # stream time of the block's first sample

    def _arrived(self, packet: av.Packet[Any], decode_ns: int, now_ns: int) -> None:
        self._timeline.arrived(self.kind, decode_ns, now_ns, decode_ns + _ns(packet.duration or 0, packet.time_base))

    def _samples(self, packet: av.Packet[Any]) -> Iterator[Sample]:
        for frame in self._decoded(packet):
            gap_ns = _ns(frame.pts, frame.time_base) - self._end_ns()
            if abs(gap_ns) > _SOUND_GAP_NS:
                self._resampler, self._block = _resampler(), np.empty(0, np.int16)
            for part in self._resampler.resample(frame):
                if not self._block.size and part.pts is not None and part.time_base is not None:
                    self._start_ns = _ns(part.pts, part.time_base)
                self._block = np.concatenate((self._block, part.to_ndarray().reshape(-1)))
            while self._block.size >= BLOCK:
                yield self._cut()

    def _cut(self) -> Sample:
        head, self._block = self._block[:MAX_BLOCK], self._block[MAX_BLOCK:]
        media_ns, self._start_ns = self._start_ns, self._start_ns + head.size * SECOND // RATE_HZ
        return self._sample("audio", media_ns, head, RATE_HZ)

    def _end_ns(self) -> int:
        return self._start_ns + self._block.size * SECOND // RATE_HZ


def _count_back(first: Sequence[av.Packet[Any]]) -> None:
    """Date a stream's first packets, in decoding order, by the last of them.

    Over RTSP libav learns only from a few packets in which order pictures are shown: until then it gives no decoding
    times, and to the key picture no time at all. Without that picture nothing up to the next one could be shown.
    """
    last = first[-1]
    step = last.duration or 1
    if last.dts is None or last.pts is None:
        return
    for back, packet in enumerate(reversed(first)):
        if packet.dts is None:
            packet.dts = last.dts - back * step
    if first[0].pts is None and first[0].dts is not None:
        next_shown = min(packet.pts for packet in first if packet.pts is not None)
        first[0].pts = max(first[0].dts, next_shown - step)


def _resampler() -> av.AudioResampler:
    return av.AudioResampler(format="s16", layout="mono", rate=RATE_HZ)


def _ns(ticks: int, base: Fraction) -> int:
    return ticks * base.numerator * SECOND // base.denominator
