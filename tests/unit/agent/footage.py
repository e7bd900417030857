"""Pictures, sound and streams with one event at a known time."""

from __future__ import annotations

import io
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from edge_agent.contract.event import Event, Message, Phase, ScorePoint, WallQuality
from edge_agent.core.records import I16, U8, Packet, Sample

SECOND = 1_000_000_000
RATE = 16_000
ORIGIN = 1_000 * SECOND  #: monotonic time that recordings begin at


class FakeClock:
    """Time that stands still until it is told."""

    def __init__(self, now_ns: int = ORIGIN) -> None:
        self.now_ns = now_ns

    def monotonic_ns(self) -> int:
        return self.now_ns

    def wall_ns(self) -> int:
        return 1_700_000_000 * SECOND + self.now_ns

    def wall_quality(self) -> WallQuality:
        return "ntp"


def frame(t_s: float, flash_s: float, width: int = 320, height: int = 240) -> U8:
    """Dark, but white for 0.1 s from `flash_s`; RGB."""
    flash = flash_s - 1e-6 <= t_s < flash_s + 0.1 - 1e-6
    return np.full((height, width, 3), 250 if flash else 30, np.uint8)


def wave(start_s: float, seconds: float, click_s: float) -> I16:
    """Silence, but 1 kHz for 0.1 s from `click_s`."""
    t = start_s + np.arange(int(seconds * RATE)) / RATE
    on = (t >= click_s) & (t < click_s + 0.1)
    return np.where(on, 20_000 * np.sin(2 * np.pi * 1000 * (t - click_s)), 0).astype(np.int16)


def frames(name: str, seconds: float, flash_s: float, fps: int = 10) -> Iterator[Sample]:
    for i in range(int(seconds * fps)):
        yield Sample(name, "frame", i, ORIGIN + i * SECOND // fps, frame(i / fps, flash_s))


def sound(name: str, seconds: float, click_s: float) -> Iterator[Sample]:
    for i in range(int(seconds * 10)):
        yield Sample(name, "audio", i, ORIGIN + i * SECOND // 10, wave(i / 10, 0.1, click_s), rate_hz=RATE)


def stream(name: str, seconds: float, flash_s: float, *, codec: str = "libx264", fps: int = 10) -> list[Packet]:
    """Video as a camera compresses it: a keyframe each second, Annex B as RTSP gives it."""
    encoder = av.CodecContext.create(codec, "w")
    encoder.width, encoder.height, encoder.pix_fmt = 320, 240, "yuv420p"
    encoder.time_base, encoder.framerate, encoder.gop_size = Fraction(1, fps), Fraction(fps), fps
    encoder.options = {"preset": "ultrafast", "x265-params": "log-level=none"}
    packets = []
    pictures = [
        av.VideoFrame.from_ndarray(frame(i / fps, flash_s), format="rgb24") for i in range(int(seconds * fps))
    ]
    for i, picture in enumerate([*pictures, None]):
        if picture is not None:
            picture.pts, picture.time_base = i, Fraction(1, fps)
        packets += encoder.encode(picture)
    name_of = {"libx264": "h264", "libx265": "hevc", "mpeg4": "mpeg4"}
    return [
        Packet(
            source=name,
            stream="video",
            codec=name_of[codec],
            captured_ns=ORIGIN + int(packet.pts * packet.time_base * SECOND),
            decode_ns=ORIGIN + int(packet.dts * packet.time_base * SECOND),
            duration_ns=SECOND // fps,
            key=packet.is_keyframe,
            data=bytes(packet),
            extradata=encoder.extradata or b"",
            width=320,
            height=240,
        )
        for packet in packets
    ]


def in_mp4(name: str, seconds: float, event_s: float, *, fps: int = 10) -> list[Packet]:
    """Video and AAC as an MP4 file holds them: lengths instead of start codes, B-frames, no ADTS."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        video = out.add_stream("libx264", rate=fps, options={"preset": "medium", "g": str(fps)})
        video.width, video.height, video.pix_fmt = 320, 240, "yuv420p"
        heard = out.add_stream("aac", rate=RATE, layout="mono")
        for i in range(int(seconds * fps)):
            out.mux(video.encode(av.VideoFrame.from_ndarray(frame(i / fps, event_s), format="rgb24")))
        out.mux(video.encode(None))
        pcm = wave(0, seconds, event_s)
        for at in range(0, len(pcm), 1024):
            block = av.AudioFrame.from_ndarray(pcm[None, at : at + 1024], format="s16", layout="mono")
            block.rate, block.pts, block.time_base = RATE, at, Fraction(1, RATE)
            out.mux(heard.encode(block))
        out.mux(heard.encode(None))
    file.seek(0)
    packets = []
    with av.open(file) as source:
        for packet in source.demux():
            if packet.dts is None:
                continue
            seen = packet.stream.type == "video"
            context = packet.stream.codec_context
            base = packet.time_base
            packets.append(
                Packet(
                    source=name,
                    stream="video" if seen else "audio",
                    codec=context.name,
                    captured_ns=ORIGIN + int(packet.pts * base * SECOND),
                    decode_ns=ORIGIN + int(packet.dts * base * SECOND),
                    duration_ns=int((packet.duration or 0) * base * SECOND),
                    key=packet.is_keyframe,
                    data=bytes(packet),
                    extradata=context.extradata or b"",
                    width=320 if seen else 0,
                    height=240 if seen else 0,
                    rate_hz=0 if seen else RATE,
                    channels=0 if seen else 1,
                )
            )
    return packets


def message(phase: Phase, at_s: float, onset_s: float, *, scene: str = "hall", score: float = 0.9) -> Message:
    """An event's message on the recordings' clock, in steps of 0.5 s."""
    step = int((ORIGIN / SECOND + at_s) * 2)
    onset = int((ORIGIN / SECOND + onset_s) * 2)
    return Message(
        device="box",
        stream="0" * 32,
        seq=1,
        boot="b",
        id=f"00000000-0000-7000-8000-{onset:012x}",
        wall_ns=0,
        wall_quality="ntp",
        monotonic_ns=0,
        body=Event(
            scene=scene,
            label="fire",
            phase=phase,
            onset_step=onset,
            step=step,
            step_ms=500,
            revision=1,
            score=score,
            peak=score,
            threshold=0.5,
            trace=(ScorePoint(step=step, score=score),),
        ),
    )


def flash_and_click(clip: Path) -> tuple[float | None, float | None]:
    """When a clip shows white and when it beeps, in seconds of the clip, as a player would."""
    flash = click = None
    with av.open(str(clip)) as source:
        for picture in source.decode(video=0) if source.streams.video else ():
            if flash is None and picture.to_ndarray(format="gray").mean() > 150:
                flash = float(picture.time)
    with av.open(str(clip)) as source:
        for block in source.decode(audio=0) if source.streams.audio else ():
            loud = np.flatnonzero(np.abs(block.to_ndarray().ravel()) > 0.2)
            if click is None and len(loud):
                click = float(block.time) + loud[0] / block.sample_rate
    return flash, click
