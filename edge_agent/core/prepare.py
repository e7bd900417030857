"""Window → arrays as the manifest asks. The only place of colour, resize and masking, for training too.

Every function is pure and refuses what a graph must never see (wrong dtype or shape, non-finite) with ValueError.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.manifest import AudioSpec, Manifest, SensorSpec, VisionSpec
from edge_agent.core.records import F32, I16, U8, Prepared, SensorStep, Window

Polygons = Sequence[Sequence[tuple[float, float]]]

#: Grey levels (of 255) that a cell of the small picture must change by, beyond light and noise, to have moved.
MOTION_LEVELS = 14.0
#: Structure around a cell (covariance over variance, 1 is unchanged) below which it is another thing that is seen.
MOTION_LIKENESS = 0.5
#: A change that covers more of the picture than this is light, exposure or a shaken camera, not somebody.
MOTION_GLOBAL = 0.6
_FIT_STRIDE = 2
_STRUCTURE_CELLS = (7, 7)
#: Variance that noise alone makes in flat places, in levels².
_FLAT = 60.0


def vision(frames: Sequence[U8], spec: VisionSpec) -> U8:
    """(5, height, width) uint8: R, G, B of I(t), luma of I(t − d1), luma of I(t − d2).

    `frames` are three RGB pictures, uint8 (h, w, 3), full range, newest first; each is area-averaged to the small
    picture by itself, and luma (BT.601, full range) is taken after that, so that equal frames give equal luma. In
    memory the five values of a pixel lie together, as convolutions read them.
    """
    if len(frames) != 3:
        raise ValueError(f"vision wants 3 frames (t, t-d1, t-d2), got {len(frames)}")
    now = _small(frames[0], spec)
    past = [luma(now if frame is frames[0] else _small(frame, spec)) for frame in frames[1:]]
    together: U8 = cv2.merge([now, *past])  # type: ignore[assignment]
    return together.transpose(2, 0, 1)


def still(frame: U8, spec: VisionSpec) -> U8:
    """`vision` of a single picture: nothing in it moves."""
    return vision((frame, frame, frame), spec)


def luma(picture: U8) -> U8:
    """BT.601 full-range luma, uint8 (h, w), of an RGB picture (h, w, 3)."""
    grey: U8 = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY)  # type: ignore[assignment]
    return grey


def blackened(frame: U8, polygons: Polygons) -> U8:
    """A copy of `frame` with the polygons (corners in 0..1) painted black; `frame` itself if there are none."""
    if not polygons:
        return frame
    painted = np.array(frame, copy=True, order="C")
    height, width = frame.shape[:2]
    for polygon in polygons:
        cv2.fillPoly(painted, [_corners(polygon, height, width)], (0, 0, 0))
    return painted


def region(polygon: Sequence[tuple[float, float]], height: int, width: int) -> NDArray[np.bool_]:
    """Which cells of a (height, width) picture lie in a polygon; at least one does."""
    plane = np.zeros((height, width), np.uint8)
    cv2.fillPoly(plane, [_corners(polygon, height, width)], (1,))
    return plane.astype(np.bool_)


def moving(picture: U8) -> NDArray[np.bool_]:
    """Which cells of a prepared picture (5, height, width) moved between t − d2 and t.

    (In d1 a walker who is some way off moves less than a cell.) A cell moved if its luma changed by more than
    `MOTION_LEVELS` and than the picture's own noise, *and* the structure around it changed: light that goes on or
    off, even in one corner, scales what is there but leaves its edges where they are. The light of t − d2 is fitted
    to that of t first (gain and offset of the whole picture). All False where more than `MOTION_GLOBAL` moved.
    """
    now = luma(picture[:3].transpose(1, 2, 0)).astype(np.float32)
    past = _relit(picture[4].astype(np.float32), now)
    change = np.asarray(cv2.blur(np.abs(now - past), (3, 3)), np.float32)
    # Median of |noise| averaged over 3x3: robust while less than half of the picture moves.
    level = max(MOTION_LEVELS, 5.0 * float(np.median(change[::_FIT_STRIDE, ::_FIT_STRIDE])))
    moved: NDArray[np.bool_] = change > level
    if not moved.any():
        return moved
    moved &= _likeness(now, past) < MOTION_LIKENESS
    if float(moved.mean()) > MOTION_GLOBAL:
        return np.zeros_like(moved)
    return moved


def audio(pcm: I16, spec: AudioSpec) -> I16:
    """(samples,) int16 that ends where `pcm` ends: cut in front where it is longer, zeros in front where shorter."""
    if pcm.dtype != np.int16 or pcm.ndim != 1:
        raise ValueError(f"audio wants int16 (samples,), got {pcm.dtype} {pcm.shape}")
    out = np.zeros(spec.samples, np.int16)
    tail = pcm[-spec.samples :]
    if tail.size:
        out[-tail.size :] = tail
    return out


def sensors(history: Sequence[SensorStep], spec: SensorSpec) -> F32:
    """(3, channels, steps) float32 = value, age in s, mask; newest step last, steps before the first are masked.

    Where the mask is 0, value and age are 0: what is not known cannot leak.
    """
    out = np.zeros((3, len(spec.quantities), spec.steps), np.float32)
    recent = history[-spec.steps :]
    for column, step in enumerate(recent, start=spec.steps - len(recent)):
        if step.value.shape != (len(spec.quantities),):
            raise ValueError(f"a sensor step has {step.value.shape[0]} channels, the manifest {len(spec.quantities)}")
        out[0, :, column] = step.value
        out[1, :, column] = step.age_s
        out[2, :, column] = step.mask
    if not np.isfinite(out).all():
        raise ValueError("a sensor step holds a value that is not finite")
    out[:2] *= out[2] > 0
    return out


def window(record: Window, history: Sequence[SensorStep], manifest: Manifest, masks: Polygons = ()) -> Prepared:
    """The arrays of one window. `history` are the scene's sensor steps with this window's own as the last."""
    frames = record.frames
    if frames is not None:
        painted = {id(frame): blackened(frame, masks) for frame in frames}
        frames = (painted[id(frames[0])], painted[id(frames[1])], painted[id(frames[2])])
    known = record.sensors is not None and bool(record.sensors.mask.any())
    return Prepared(
        scene=record.scene,
        step=record.step,
        vision=None if frames is None else vision(frames, manifest.vision),
        audio=None if record.audio is None else audio(record.audio, manifest.audio),
        sensors=sensors(history, manifest.sensors) if known else None,
    )


def _small(frame: U8, spec: VisionSpec) -> U8:
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        raise ValueError(f"a frame must be uint8 (height, width, 3), got {frame.dtype} {frame.shape}")
    picture = np.ascontiguousarray(frame)
    height, width = frame.shape[:2]
    # Halves first: OpenCV averages 2x2 with vector instructions, other blocks without (1080p: 14 → 3.5 ms).
    while width % 2 == 0 and height % 2 == 0 and width >= 2 * spec.width and height >= 2 * spec.height:
        width, height = width // 2, height // 2
        picture = _averaged(picture, width, height)
    return _averaged(picture, spec.width, spec.height)


def _averaged(picture: U8, width: int, height: int) -> U8:
    small: U8 = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    return small


def _corners(polygon: Sequence[tuple[float, float]], height: int, width: int) -> NDArray[np.int32]:
    scale = np.array([width - 1, height - 1], np.float64)
    return np.rint(np.asarray(polygon, np.float64) * scale).astype(np.int32).reshape(-1, 1, 2)


def _relit(past: F32, now: F32) -> F32:
    """`past` under the light of `now`: least squares for gain and offset, then again on the better-fitting half."""
    x = past[::_FIT_STRIDE, ::_FIT_STRIDE].ravel()
    y = now[::_FIT_STRIDE, ::_FIT_STRIDE].ravel()
    # A blown-out or black cell follows no gain.
    fair = (x > 2) & (x < 253) & (y > 2) & (y < 253)
    if int(fair.sum()) < 32:
        return past
    x, y = x[fair], y[fair]
    gain, offset = _line(x, y)
    for _ in range(2):
        error = np.abs(y - (gain * x + offset))
        near = error <= np.median(error)
        gain, offset = _line(x[near], y[near])
    relit: F32 = np.clip(gain * past + offset, 0, 255).astype(np.float32)
    return relit


def _likeness(now: F32, past: F32) -> F32:
    """How alike the structure around each cell is, −1..1: SSIM's contrast-structure term, 1 where both are flat."""

    def mean(plane: F32) -> F32:
        return np.asarray(cv2.blur(plane, _STRUCTURE_CELLS), np.float32)

    mean_now, mean_past = mean(now), mean(past)
    covariance = mean(now * past) - mean_now * mean_past
    variances = mean(now * now) - mean_now * mean_now + mean(past * past) - mean_past * mean_past
    likeness = (2 * covariance + _FLAT) / (np.maximum(variances, 0) + _FLAT)
    return likeness.astype(np.float32, copy=False)


def _line(x: F32, y: F32) -> tuple[float, float]:
    """Gain and offset of y over x; gain 1 where x hardly varies."""
    mean_x, mean_y = float(x.mean()), float(y.mean())
    spread = float(np.square(x - mean_x).mean())
    if spread < 4.0:
        return 1.0, mean_y - mean_x
    gain = float(((x - mean_x) * (y - mean_y)).mean()) / spread
    return gain, mean_y - gain * mean_x
