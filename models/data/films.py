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

#: Longest film that is read, and the longer side that its pictures are kept in.
_LONGEST_S, _LONGER_SIDE = 30.0, 480
#: Size and spacing of the pictures that motion is measured on.
_FLOW_SIZE, _FLOW_PERIOD_S = (160, 120), 0.12
#: Points of the distribution of motion over the picture that are kept.
_QUANTILES = (0.5, 0.75, 0.9, 0.97, 0.995)


@dataclass(frozen=True, slots=True)
class Film:
    """Pictures uint8 (h, w, 3) RGB and their times since the first, rising."""

    times_s: NDArray[np.float64]
    frames: list[U8]

    @property
    def length_s(self) -> float:
        return float(self.times_s[-1]) if len(self.times_s) else 0.0

    def at(self, time_s: float) -> U8:
        """The newest picture that is not newer than `time_s`; the first one before the start."""
        return self.frames[max(int(np.searchsorted(self.times_s, time_s + 1e-6, "right")) - 1, 0)]


def read_film(path: Path) -> Film:
    """The first 30 s of a film, large pictures made smaller. ConfigError if it cannot be read."""
    times: list[float] = []
    frames: list[U8] = []
    for _, time_s, frame in decode_film(path):
        if time_s > _LONGEST_S:
            break
        times.append(time_s)
        frames.append(_kept(frame))
    if not frames:
        raise ConfigError(f"film {path} has no picture that can be read")
    return Film(np.asarray(times, np.float64), frames)


def windows(film: Film, spec: VisionSpec, count: int) -> U8:
    """(count, 5, H, W) uint8: prepared pictures, evenly spread over the film, the first late enough for its past."""
    first = min(spec.past_ms[1] / 1000, film.length_s)
    moments = np.linspace(first, film.length_s, count)
    looks = (0.0, spec.past_ms[0] / 1000, spec.past_ms[1] / 1000)
    return np.stack([prepare.vision([film.at(float(t) - past) for past in looks], spec) for t in moments])


def _kept(frame: NDArray[np.uint8]) -> U8:
    height, width = frame.shape[:2]
    scale = _LONGER_SIDE / max(height, width)
    if scale >= 1:
        return frame
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    return np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)


MOTION_FIGURES = 4 * len(_QUANTILES) + 6


def motion(film: Film) -> F32:
    """(MOTION_FIGURES,): how much, how unevenly and how jerkily the picture moves. Zero for a still.

    Dense optical flow (Farnebäck 2003) between pictures 0.12 s apart, in widths of the picture per second, without
    the motion of the whole picture (its median: a camera that pans). Per pair of pictures: quantiles of the speed and
    of its change from the pair before; their mean and largest over time, logarithmic. Then how much the moving parts
    turn, spread and differ in direction.
    """
    times = np.arange(0.0, film.length_s + 1e-6, _FLOW_PERIOD_S)
    pictures = [_grey(film.at(float(t))) for t in times]
    speeds, jerks, shapes = [], [], []
    before: F32 | None = None
    for old, new in pairwise(pictures):
        flow = _flow(old, new)
        speed = np.hypot(flow[..., 0], flow[..., 1])
        speeds.append(np.quantile(speed, _QUANTILES))
        shapes.append(_shape(flow, speed))
        if before is not None:
            change = flow - before
            jerks.append(np.quantile(np.hypot(change[..., 0], change[..., 1]), _QUANTILES))
        before = flow
    parts = [_over_time(speeds, len(_QUANTILES)), _over_time(jerks, len(_QUANTILES))]
    shape = _over_time(shapes, 3)
    return np.concatenate([np.log(np.concatenate(parts) + 0.01), shape]).astype(np.float32)


def _over_time(found: list[NDArray[np.float64]], width: int) -> NDArray[np.float64]:
    if not found:
        return np.zeros(2 * width)
    rows = np.stack(found)
    return np.concatenate([rows.mean(0), rows.max(0)])


def _grey(frame: U8) -> U8:
    return np.asarray(cv2.resize(prepare.luma(frame), _FLOW_SIZE, interpolation=cv2.INTER_AREA), np.uint8)


def _flow(old: U8, new: U8) -> F32:
    start = np.zeros((*old.shape, 2), np.float32)
    found = cv2.calcOpticalFlowFarneback(old, new, start, 0.5, 3, 13, 2, 5, 1.1, 0)
    flow = np.asarray(found, np.float32) / np.float32(_FLOW_SIZE[0] * _FLOW_PERIOD_S)
    return np.asarray(flow - np.median(flow, (0, 1)), np.float32)


def _shape(flow: F32, speed: NDArray[np.float32]) -> NDArray[np.float64]:
    """Curl, divergence (both by speed) and disorder of directions (0 one way, 1 all ways) of what moves."""
    moving = speed > max(0.05, float(np.quantile(speed, 0.9)))
    total = float(speed[moving].sum())
    if total < 1e-6:
        return np.zeros(3)
    across, down = np.gradient(flow[..., 0]), np.gradient(flow[..., 1])
    curl, divergence = np.abs(down[1] - across[0]), np.abs(across[1] + down[0])
    one_way = float(np.hypot(*flow[moving].sum(0)))
    return np.array([curl[moving].sum() / total, divergence[moving].sum() / total, 1.0 - one_way / total])
