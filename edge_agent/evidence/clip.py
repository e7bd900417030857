"""One MP4 that every browser plays: H.264 and AAC, index first. Remuxed where the stream allows it, else encoded.

Both streams lie on the samples' own clock, so picture and sound stay together whatever they came from.
"""

from __future__ import annotations

import heapq
import io
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeAlias

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from edge_agent.config import Polygon
from edge_agent.core.records import I16, U8, Packet, Sample
from edge_agent.errors import StorageError
from edge_agent.evidence.rings import Footage
from edge_agent.evidence.stills import burn, decode_jpeg, shrink

log = logging.getLogger(__name__)

_AvPacket: TypeAlias = "av.Packet[Any]"

_BASE = Fraction(1, 90_000)
_START_CODE = b"\0\0\0\1"
#: Baseline, main, high: what browsers decode. Others (high 10, 4:2:2) are encoded anew.
_PROFILES = (66, 77, 88, 100)
_AAC_FRAME = 1024
_AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
_JOIN_NS = 5_000_000  #: blocks closer than this to where the last one ended follow it without a gap: no clicks
_X264 = {"preset": "veryfast", "crf": "26", "tune": "zerolatency"}


@dataclass(frozen=True, slots=True)
class Span:
    """What a clip is to cover, monotonic ns."""

    start_ns: int
    onset_ns: int
    end_ns: int


def missing_codecs() -> tuple[str, ...]:
    """What PyAV's libraries lack of what clips are made with; empty as a rule."""
    wanted = {"libx264": "H.264 encoder (libx264)", "aac": "AAC encoder", "h264": "H.264 decoder"}
    return tuple(text for name, text in wanted.items() if name not in av.codecs_available)


def write_clip(
    path: Path, footage: Footage, span: Span, masks: Sequence[Polygon], hurry: Callable[[], bool]
) -> tuple[int, int] | None:
    """Write the clip; (start, end) of what is in it, or None if there is neither picture nor sound.

    Once `hurry()` is true, what has been encoded so far becomes the clip. StorageError if nothing could be written.
    """
    video = _one_run(footage.video, span.onset_ns)
    if video and not masks and _plays(video[0]):
        try:
            return _remux(path, video, footage, span)
        except (av.FFmpegError, ValueError) as error:  # odd stream: it is decoded instead, which forgives more
            log.warning("remuxing a clip failed (%s); encoding it", error)
    try:
        return _encode(path, _pictures(video, footage, masks, span), footage, span, hurry)
    except (av.FFmpegError, ValueError) as error:
        raise StorageError(f"cannot write a clip to {path}: {error}") from error


def picture_at(footage: Footage, when_ns: int) -> U8 | None:
    """BGR picture nearest to `when_ns`; None where there is none or the stream does not decode."""
    if footage.pictures and not footage.video:
        nearest = min(footage.pictures, key=lambda picture: abs(picture.captured_ns - when_ns))
        return decode_jpeg(nearest.jpeg)
    best: tuple[int, U8] | None = None
    try:
        for captured_ns, picture in _decode(_one_run(footage.video, when_ns)):
            distance = abs(captured_ns - when_ns)
            if best is not None and distance > best[0]:
                break
            best = (distance, picture)
    except (av.FFmpegError, ValueError) as error:
        log.warning("no snapshot: %s", error)
    return best[1] if best else None


def pcm(blocks: Sequence[Sample], start_ns: int, end_ns: int) -> tuple[I16, int]:
    """int16 PCM of [start, end) with silence where nothing was heard, and its rate; empty if there is none."""
    if not blocks:
        return np.zeros(0, np.int16), 0
    rate_hz = blocks[0].rate_hz
    total = max(0, (end_ns - start_ns) * rate_hz // 1_000_000_000)
    wave = np.zeros(total, np.int16)
    position = 0
    for block in blocks:
        if block.rate_hz != rate_hz:  # the source came back with another rate: one clip has one
            continue
        place = round((block.captured_ns - start_ns) * rate_hz / 1e9)
        if abs(place - position) * 1_000_000_000 > _JOIN_NS * rate_hz:
            position = place
        data = block.data[max(0, -position) :]
        place = max(0, position)
        data = data[: max(0, total - place)]
        wave[place : place + len(data)] = data
        position += len(block.data)
    return wave, rate_hz


def _one_run(packets: Sequence[Packet], when_ns: int) -> list[Packet]:
    """Packets of the connection that `when_ns` falls into: one file cannot hold two sizes or parameter sets."""
    runs: list[list[Packet]] = []
    for packet in packets:
        if not runs or _kind(packet) != _kind(runs[-1][-1]):
            if not packet.key:
                continue
            runs.append([])
        runs[-1].append(packet)
    holding = [run for run in runs if run[0].captured_ns <= when_ns]
    return holding[-1] if holding else (runs[0] if runs else [])


def _kind(packet: Packet) -> tuple[object, ...]:
    return (packet.codec, packet.width, packet.height, packet.extradata)


def _plays(packet: Packet) -> bool:
    if packet.codec != "h264":
        return False
    data = _parameter_sets(packet.extradata) + _annexb(packet)
    at = data.find(b"\0\0\1\x67")
    at = data.find(b"\0\0\1\x27") if at < 0 else at
    return 0 <= at < len(data) - 4 and data[at + 4] in _PROFILES


# --- remux ---------------------------------------------------------------------------------------------------------


def _remux(path: Path, video: Sequence[Packet], footage: Footage, span: Span) -> tuple[int, int]:
    """Packets as they came, on a time that starts with the first one."""
    base_ns = video[0].captured_ns
    first = _parameter_sets(video[0].extradata) + _annexb(video[0])
    with (
        av.open(io.BytesIO(first), format="h264") as template,
        av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as out,
    ):
        stream = out.add_stream_from_template(template.streams.video[0])
        sound = _sound(out, footage, base_ns, span.end_ns)
        _mux(out, _video_packets(stream, video, base_ns), sound, lambda: False)
    return base_ns, max(packet.captured_ns + packet.duration_ns for packet in video)


def _video_packets(stream: VideoStream, video: Sequence[Packet], base_ns: int) -> Iterator[_AvPacket]:
    last = -(1 << 62)
    for source in video:
        packet = av.Packet((_parameter_sets(source.extradata) if source.key else b"") + _annexb(source))
        packet.stream = stream
        packet.time_base = _BASE
        packet.pts = _ticks(source.captured_ns - base_ns)
        # Cameras' clocks jitter; MP4 wants decode times that rise.
        packet.dts = last = max(last + 1, min(packet.pts, _ticks(source.decode_ns - base_ns)))
        packet.pts = max(packet.pts, packet.dts)
        packet.duration = max(1, _ticks(source.duration_ns))
        packet.is_keyframe = source.key
        yield packet


def _parameter_sets(extradata: bytes) -> bytes:
    """SPS and PPS with start codes, out of either form of H.264 extradata (ISO 14496-15, 5.3.3.1)."""
    if extradata[:1] != b"\x01":
        return extradata
    sets, at = b"", 5
    for bits in (0x1F, 0xFF):
        count, at = extradata[at] & bits, at + 1
        for _ in range(count):
            size = int.from_bytes(extradata[at : at + 2], "big")
            sets += _START_CODE + extradata[at + 2 : at + 2 + size]
            at += 2 + size
    return sets


def _annexb(packet: Packet) -> bytes:
    """The packet with start codes instead of lengths."""
    if packet.extradata[:1] != b"\x01":
        return packet.data
    width, at, out = (packet.extradata[4] & 3) + 1, 0, bytearray()
    while at + width <= len(packet.data):
        size = int.from_bytes(packet.data[at : at + width], "big")
        out += _START_CODE + packet.data[at + width : at + width + size]
        at += width + size
    return bytes(out)


# --- encode --------------------------------------------------------------------------------------------------------


def _encode(
    path: Path, pictures: Iterator[tuple[int, U8]], footage: Footage, span: Span, hurry: Callable[[], bool]
) -> tuple[int, int] | None:
    if hurry():
        raise StorageError("no time left to encode a clip before the stop")
    first = next(pictures, None)
    base_ns = first[0] if first else span.start_ns
    if first is None and not footage.sound:
        return None
    last_ns = [base_ns]
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as out:
        video: Iterator[_AvPacket] = iter(())
        if first is not None:
            stream = _video_stream(out, first[1])
            video = _encoded(stream, _chain(first, pictures), base_ns, hurry, last_ns)
        sound = _sound(out, footage, base_ns, span.end_ns)
        _mux(out, video, sound, hurry)
    return base_ns, last_ns[0] if first is not None else span.end_ns


def _video_stream(out: OutputContainer, picture: U8) -> VideoStream:
    stream = out.add_stream("libx264", rate=10, options=_X264)
    stream.height, stream.width = picture.shape[:2]
    stream.pix_fmt = "yuv420p"
    stream.codec_context.time_base = _BASE
    stream.codec_context.gop_size = 20
    stream.codec_context.thread_count = 1  # one core is the pipeline's
    return stream


def _chain(first: tuple[int, U8], rest: Iterator[tuple[int, U8]]) -> Iterator[tuple[int, U8]]:
    yield first
    yield from rest


def _encoded(
    stream: VideoStream,
    pictures: Iterable[tuple[int, U8]],
    base_ns: int,
    hurry: Callable[[], bool],
    last_ns: list[int],
) -> Iterator[_AvPacket]:
    last = -1
    for captured_ns, picture in pictures:
        ticks = _ticks(captured_ns - base_ns)
        if ticks <= last or picture.shape[:2] != (stream.height, stream.width):
            continue
        if hurry():
            break
        last, last_ns[0] = ticks, captured_ns
        frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
        frame.pts, frame.time_base = ticks, _BASE
        yield from stream.encode(frame)
    yield from stream.encode(None)


def _pictures(
    video: Sequence[Packet], footage: Footage, masks: Sequence[Polygon], span: Span
) -> Iterator[tuple[int, U8]]:
    """(captured_ns, BGR) with the masks burned in: nothing behind them reaches the encoder."""
    decoded = (
        _decode(video)
        if video
        else ((picture.captured_ns, decode_jpeg(picture.jpeg)) for picture in footage.pictures)
    )
    for captured_ns, picture in decoded:
        if captured_ns >= span.start_ns:
            yield captured_ns, burn(shrink(picture), masks)


def _decode(video: Sequence[Packet]) -> Iterator[tuple[int, U8]]:
    if not video:
        return
    decoder = av.CodecContext.create(video[0].codec, "r")
    if not isinstance(decoder, VideoCodecContext):
        raise ValueError(f"{video[0].codec} is no video codec")
    decoder.thread_count = 1
    if video[0].extradata:
        decoder.extradata = video[0].extradata
    for source in [*video, None]:
        packet = None
        if source is not None:
            packet = av.Packet(source.data)
            packet.time_base = Fraction(1, 1_000_000_000)
            packet.pts, packet.dts = source.captured_ns, source.decode_ns
        for frame in decoder.decode(packet):
            if frame.pts is not None:
                yield frame.pts, np.asarray(frame.to_ndarray(format="bgr24"), np.uint8)


# --- sound ---------------------------------------------------------------------------------------------------------


def _sound(out: OutputContainer, footage: Footage, base_ns: int, end_ns: int) -> Iterator[_AvPacket]:
    """AAC packets on the clip's time: the camera's own where there are any, else encoded from PCM."""
    own = [p for p in footage.aac if p.captured_ns >= base_ns and p.extradata == footage.aac[0].extradata]
    if own and _adts_fits(own[0]):
        with av.open(io.BytesIO(b"".join(_adts(packet) for packet in own[:4])), format="aac") as template:
            stream = out.add_stream_from_template(template.streams.audio[0])
        return _aac_packets(stream, own, base_ns)
    wave, rate_hz = pcm(footage.sound, base_ns, end_ns)
    if not len(wave):
        return iter(())
    stream = out.add_stream("aac", rate=rate_hz, layout="mono")
    stream.bit_rate = 64_000
    return _encoded_sound(stream, wave, rate_hz)


def _aac_packets(stream: AudioStream, own: Sequence[Packet], base_ns: int) -> Iterator[_AvPacket]:
    rate_hz, last = stream.rate, -1
    for source in own:
        packet = av.Packet(_adts(source))  # the muxer strips ADTS and makes its description from it
        packet.stream = stream
        # In the track's own unit: two times that rise in a finer one may be the same there, which MP4 refuses.
        packet.time_base = Fraction(1, rate_hz)
        packet.pts = packet.dts = last = max(last + 1, (source.captured_ns - base_ns) * rate_hz // 1_000_000_000)
        packet.duration = source.duration_ns * rate_hz // 1_000_000_000
        packet.is_keyframe = True
        yield packet


def _encoded_sound(stream: AudioStream, wave: I16, rate_hz: int) -> Iterator[_AvPacket]:
    for at in range(0, len(wave), _AAC_FRAME):
        frame = av.AudioFrame.from_ndarray(wave[None, at : at + _AAC_FRAME], format="s16", layout="mono")
        frame.rate, frame.pts, frame.time_base = rate_hz, at, Fraction(1, rate_hz)
        yield from stream.encode(frame)
    yield from stream.encode(None)


def _adts_fits(packet: Packet) -> bool:
    """Whether the AudioSpecificConfig is one that an ADTS header can carry: AAC-LC at a listed rate."""
    config = packet.extradata
    index = (config[0] & 7) << 1 | config[1] >> 7 if len(config) >= 2 else 15
    return len(config) >= 2 and config[0] >> 3 == 2 and index < len(_AAC_RATES)


def _adts(packet: Packet) -> bytes:
    """The packet behind an ADTS header (ISO 13818-7, 6.2), unless it has one."""
    config, data = packet.extradata, packet.data
    if data[:1] == b"\xff" and len(data) > 1 and data[1] & 0xF6 == 0xF0:
        return data
    index, channels, size = (config[0] & 7) << 1 | config[1] >> 7, config[1] >> 3 & 15, len(data) + 7
    return (
        bytes(
            (
                0xFF,
                0xF1,
                (config[0] >> 3) - 1 << 6 | index << 2 | channels >> 2,
                (channels & 3) << 6 | size >> 11,
                size >> 3 & 0xFF,
                (size & 7) << 5 | 0x1F,
                0xFC,
            )
        )
        + data
    )


# --- both ----------------------------------------------------------------------------------------------------------


def _mux(
    out: OutputContainer, video: Iterator[_AvPacket], sound: Iterator[_AvPacket], hurry: Callable[[], bool]
) -> None:
    """Interleave by time, so that the muxer has to hold little."""
    last_video = Fraction(0)
    for packet in heapq.merge(video, sound, key=_decode_time):
        time = _decode_time(packet)
        if packet.stream.type == "video":
            last_video = max(last_video, time)
        elif time > last_video and hurry():
            continue  # the picture ends here, so the sound does
        out.mux(packet)


def _decode_time(packet: _AvPacket) -> Fraction:
    return (packet.dts or 0) * (packet.time_base or _BASE)


def _ticks(span_ns: int) -> int:
    return span_ns * 9 // 100_000
