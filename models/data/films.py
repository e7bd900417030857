"""Short films as the vision graph sees them, and what moves in them. Any size, frame rate and container."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.manifest import VisionSpec
from edge_agent.core import prepare
from edge_agent.core.records import F32, U8
from edge_agent.errors import ConfigError
from models.data.media import decode_film

#: Pictures a second that are kept, of how many seconds at most, and their longer side.
RATE_HZ, _LONGEST_S, _LONGER_SIDE = 10.0, 30.0, 320
#: Size that motion is measured in.
_FLOW_SIZE = (160, 120)
#: Points of the distribution of motion over the picture that are kept.
_QUANTILES = (0.5, 0.75, 0.9, 0.97, 0.995)


@dataclass(frozen=True, slots=True)
class Film:
    """Pictures uint8 (h, w, 3) RGB, RATE_HZ a second."""

    frames: list[U8]

    def at(self, index: int) -> U8:
        """The picture of that number; the first one before the start."""
        return self.frames[max(index, 0)]


def read_film(path: Path) -> Film:
    """The first 30 s of a film at RATE_HZ, large pictures made smaller. ConfigError if it cannot be read.

    Of a film that shows fewer pictures a second the newest is shown again, as a device would.
    """
    frames: list[U8] = []
    newest: U8 | None = None
    for _, time_s, frame in decode_film(path):
        while newest is not None and len(frames) < time_s * RATE_HZ - 1e-3:
            frames.append(newest)
        if time_s > _LONGEST_S:
            break
        newest = _kept(frame)
    if newest is None:
        raise ConfigError(f"film {path} has no picture that can be read")
    return Film([*frames, newest])


def windows(film: Film, spec: VisionSpec, count: int) -> U8:
    """(count, 5, H, W) uint8: prepared pictures, evenly spread over the film, the first late enough for its past."""
    back = [0, *(round(past / 1000 * RATE_HZ) for past in spec.past_ms)]
    last = len(film.frames) - 1
    moments = np.linspace(min(back[-1], last), last, count).round().astype(int)
    return np.stack([prepare.vision([film.at(int(t) - step) for step in back], spec) for t in moments])


def _kept(frame: U8) -> U8:
    height, width = frame.shape[:2]
    scale = _LONGER_SIDE / max(height, width)
    if scale >= 1:
        return frame
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    return np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)


#: Per pair of pictures: quantiles of the speed, its shape; per pair of pairs: quantiles of the change.
_SPEED, _SHAPE = len(_QUANTILES), 5
MOTION_FIGURES = 3 * (2 * _SPEED + _SHAPE)


def motion(film: Film) -> F32:
    """(MOTION_FIGURES,): how much, how jerkily and how disorderly the picture moves. Finite for a still, too.

    Dense optical flow (Farnebäck 2003) from picture to picture, in widths of the picture per second, without the
    motion of the whole picture (its median: a camera that pans). Quantiles over the picture of the speed and of the
    change from one flow to the next, logarithmic; `_shape` of what moves; mean, maximum and deviation over time.
    """
    speeds, jerks, shapes = [], [], []
    before: F32 | None = None
    for old, new in pairwise([_grey(frame) for frame in film.frames]):
        flow = _flow(old, new)
        speed = np.hypot(flow[..., 0], flow[..., 1])
        speeds.append(_quantiles(speed))
        shapes.append(_shape(flow, speed))
        if before is not None:
            jerks.append(_quantiles(np.hypot(*np.moveaxis(flow - before, 2, 0))))
        before = flow
    parts = ((speeds, _SPEED), (jerks, _SPEED), (shapes, _SHAPE))
    return np.concatenate([_over_time(found, width) for found, width in parts]).astype(np.float32)


def _quantiles(speed: F32) -> NDArray[np.float64]:
    # Every other pixel: the flow is smooth over more than that.
    return np.asarray(np.log(np.quantile(speed[::2, ::2], _QUANTILES) + 0.01), np.float64)


def _over_time(found: list[NDArray[np.float64]], width: int) -> NDArray[np.float64]:
    if not found:
        return np.zeros(3 * width)
    rows = np.stack(found)
    return np.concatenate([rows.mean(0), rows.max(0), rows.std(0)])


def _grey(frame: U8) -> U8:
    return np.asarray(cv2.resize(prepare.luma(frame), _FLOW_SIZE, interpolation=cv2.INTER_AREA), np.uint8)


def _flow(old: U8, new: U8) -> F32:
    start = np.zeros((*old.shape, 2), np.float32)
    found = cv2.calcOpticalFlowFarneback(old, new, start, 0.5, 3, 13, 2, 5, 1.1, 0)
    flow = np.asarray(found, np.float32) / np.float32(_FLOW_SIZE[0] / RATE_HZ)
    return np.asarray(flow - np.median(flow, (0, 1)), np.float32)


def _shape(flow: F32, speed: F32) -> NDArray[np.float64]:
    """Of the fastest tenth: curl and divergence by speed; disorder of directions (0 one way, 1 all ways) over the
    whole picture and within blocks of 20 and 40 pixels. Walkers that pass each other differ from block to block,
    people who fight within one."""
    moving = speed > max(0.05, float(np.quantile(speed[::2, ::2], 0.9)))
    total = float(speed[moving].sum())
    if total < 1e-6:
        return np.zeros(_SHAPE)
    across, down = np.gradient(flow[..., 0]), np.gradient(flow[..., 1])
    curl, divergence = np.abs(down[1] - across[0]), np.abs(across[1] + down[0])
    kept = flow * moving[..., None]
    disorder = [1.0 - float(np.hypot(*kept.sum((0, 1)))) / total]
    for size in (20, 40):
        blocks = kept.reshape(_FLOW_SIZE[1] // size, size, _FLOW_SIZE[0] // size, size, 2).sum((1, 3))
        disorder.append(1.0 - float(np.hypot(blocks[..., 0], blocks[..., 1]).sum()) / total)
    return np.array([curl[moving].sum() / total, divergence[moving].sum() / total, *disorder])
