"""Pictures and tables of an event: snapshot, spectrogram, sensor trace. NumPy and OpenCV, no files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent.config import QUANTITIES, UNITS, Channel, Polygon
from edge_agent.core.records import I16, U8, Reading

_UNIT_OF = dict(zip(QUANTITIES, UNITS, strict=True))
MAX_WIDTH = 1280  #: evidence that has to be compressed here is not stored wider
_JPEG = (cv2.IMWRITE_JPEG_QUALITY, 85)
_WINDOW = 512
_HOP = 256
_BANDS = 96
_COLUMNS = 800  #: at most, of a spectrogram
_FLOOR_DB, _CEILING_DB = -70.0, 10.0  #: of a band's power, full scale = 1
_MAX_POINTS = 2000  #: of one channel of a trace


def encode_jpeg(frame: U8) -> bytes:
    """JPEG of an RGB frame, at most `MAX_WIDTH` wide."""
    return _encode(".jpg", shrink(np.ascontiguousarray(frame[..., ::-1])), _JPEG)


def decode_jpeg(data: bytes) -> U8:
    """BGR picture."""
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        raise ValueError("not a JPEG picture")
    return np.asarray(picture, np.uint8)


def snapshot(picture: U8, masks: Sequence[Polygon]) -> bytes:
    """JPEG of a BGR picture with the masks burned in."""
    return _encode(".jpg", burn(shrink(picture), masks), _JPEG)


def shrink(picture: U8) -> U8:
    """`picture` at most `MAX_WIDTH` wide, sides even as H.264 wants them."""
    height, width = picture.shape[:2]
    scale = min(1.0, MAX_WIDTH / width)
    size = (max(2, int(width * scale)) & ~1, max(2, int(height * scale)) & ~1)
    if size == (width, height):
        return picture
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


def burn(picture: U8, masks: Sequence[Polygon]) -> U8:
    """`picture` with every polygon black. A copy where there are masks."""
    if not masks:
        return picture
    height, width = picture.shape[:2]
    burned = picture.copy()
    # Rounded outwards by a pixel: what a person asked to hide must not shine through at the edge.
    corners = [np.rint(np.array(mask) * (width - 1, height - 1)).astype(np.int32) for mask in masks]
    cv2.fillPoly(burned, corners, (0, 0, 0))
    cv2.polylines(burned, corners, isClosed=True, color=(0, 0, 0), thickness=3)
    return burned


def spectrogram(pcm: I16, rate_hz: int) -> bytes:
    """PNG of log-mel power: time to the right (whole sound), 60 Hz to the Nyquist frequency upwards, no axes."""
    wave = pcm.astype(np.float32) / 32768.0
    wave = np.pad(wave, (0, max(0, _WINDOW - len(wave))))
    frames = np.lib.stride_tricks.sliding_window_view(wave, _WINDOW)[::_HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(_WINDOW).astype(np.float32), axis=1)) ** 2
    decibel = 10.0 * np.log10(power @ _mel_bank(rate_hz).T + 1e-10)
    per_column = -(-len(decibel) // _COLUMNS)
    padded = np.pad(decibel, ((0, -len(decibel) % per_column), (0, 0)), mode="edge")
    columns = padded.reshape(-1, per_column, _BANDS).max(axis=1)  # the peak: a shot must not average away
    level = np.clip((columns - _FLOOR_DB) / (_CEILING_DB - _FLOOR_DB), 0.0, 1.0)
    # 32 shades are all that an eye tells apart here, and a third of the bytes.
    picture = np.repeat((level.T[::-1] * 31).astype(np.uint8) * 8, 2, axis=0)
    return _encode(".png", np.asarray(cv2.applyColorMap(picture, cv2.COLORMAP_MAGMA), np.uint8), ())


def trace(start_ns: int, channels: Sequence[Channel], readings: Iterable[tuple[int, str, Reading]]) -> bytes | None:
    """JSON of the scene's channels, values in the quantity's unit; None if none of them said anything.

    `readings` are (captured_ns, source, reading). Channels with more than 2000 points are thinned evenly.
    """
    points: list[list[tuple[float, float]]] = [[] for _ in channels]
    index = {(channel.source, channel.channel): i for i, channel in enumerate(channels)}
    for captured_ns, source, reading in readings:
        i = index.get((source, reading.channel))
        if i is not None:
            value = reading.value * channels[i].scale + channels[i].offset
            points[i].append((round((captured_ns - start_ns) / 1e6, 1), value))
    if not any(points):
        return None
    tree = {
        "v": 1,
        "start_ns": start_ns,
        "channels": [
            {
                "channel": f"{channel.source}/{channel.channel}",
                "quantity": channel.quantity,
                "unit": _UNIT_OF[channel.quantity],
                "points": entries[:: -(-len(entries) // _MAX_POINTS) or 1],
            }
            for channel, entries in zip(channels, points, strict=True)
        ],
    }
    return msgspec.json.encode(tree)


def _mel_bank(rate_hz: int) -> NDArray[np.float32]:
    """float32 (bands, bins): triangles, evenly spaced in mel, each of area 1 over its bins."""
    bins = np.linspace(0.0, rate_hz / 2, _WINDOW // 2 + 1)
    low, high = (2595.0 * np.log10(1.0 + f / 700.0) for f in (60.0, rate_hz / 2))
    edges = 700.0 * (10.0 ** (np.linspace(low, high, _BANDS + 2) / 2595.0) - 1.0)
    # At the low end a triangle may be narrower than a bin: widen it, or its row would be empty.
    width = rate_hz / _WINDOW
    left = np.minimum(edges[:-2], edges[1:-1] - width)[:, None]
    right = np.maximum(edges[2:], edges[1:-1] + width)[:, None]
    centre = edges[1:-1][:, None]
    rising, falling = (bins - left) / (centre - left), (right - bins) / (right - centre)
    bank = np.clip(np.minimum(rising, falling), 0.0, None)
    return np.asarray(bank / bank.sum(axis=1, keepdims=True), np.float32)


def _encode(suffix: str, picture: U8, options: Sequence[int]) -> bytes:
    done, data = cv2.imencode(suffix, picture, list(options))
    if not done:
        raise ValueError(f"cannot write a picture of shape {picture.shape} as {suffix}")
    return bytes(data)
