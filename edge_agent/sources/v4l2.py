"""A camera of this machine (USB, CSI with a V4L2 driver) by OpenCV.

A CSI camera that only GStreamer reaches (Jetson's nvarguscamerasrc) needs the distribution's OpenCV: the headless
wheel has no GStreamer.
"""

from __future__ import annotations

import stat
import threading
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
from msgspec import Meta, Struct

from edge_agent.clock import Clock
from edge_agent.core.records import U8, Sample
from edge_agent.errors import ConfigError, SourceError

SECOND = 1_000_000_000
_SLICE_NS = SECOND // 10  # the device is waited for in short turns, so that `close` from another thread gets one


class V4l2Options(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A video device of this machine."""

    device: int | str = 0  #: number, or path as /dev/video0 or /dev/v4l/by-id/…
    width: Annotated[int, Meta(ge=16, le=8192)] | None = None  #: asked for; the device may give another size
    height: Annotated[int, Meta(ge=16, le=8192)] | None = None
    fps: Annotated[float, Meta(gt=0, le=60)] = 10.0  #: pictures per second, at most
    timeout_s: Annotated[float, Meta(ge=0.5, le=120)] = 10.0  #: without a picture the device counts as gone


class V4l2:
    """Frames (RGB, full range) with the time of the device's driver. Counters: `unreadable`."""

    Options = V4l2Options
    stamps_on_arrival = False

    def __init__(self, name: str, options: V4l2Options, clock: Clock) -> None:
        """ConfigError if the device is not named as one."""
        self.counters = {"unreadable": 0}
        self._name = name
        self._options = options
        self._clock = clock
        self._path = _device(options.device)
        self._capture: cv2.VideoCapture | None = None
        self._lock = threading.Lock()  # held while the device is read: it is only released between two pictures
        self._closing = threading.Event()
        self._seq = -1
        self._heard_ns = 0
        self._due_ns = 0

    def open(self) -> None:
        """Take the device. SourceError if it is not there, busy, or no camera."""
        options = self._options
        with self._lock:
            if self._capture is not None:
                raise self._error("open already; close it first")
            if not self._path.exists() or not stat.S_ISCHR(self._path.stat().st_mode):
                raise self._error(f"no such device; there are {', '.join(_found()) or 'none'}")
            capture = cv2.VideoCapture(str(self._path), cv2.CAP_V4L2)
            if not capture.isOpened():
                capture.release()
                raise self._error("cannot be opened: is it in use, and may this user read it (group video)?")
            if options.width is not None and options.height is not None:
                capture.set(cv2.CAP_PROP_FRAME_WIDTH, options.width)
                capture.set(cv2.CAP_PROP_FRAME_HEIGHT, options.height)
            capture.set(cv2.CAP_PROP_FPS, options.fps)
            capture.set(cv2.CAP_PROP_BUFFERSIZE, 2)  # a slow reader gets new pictures, not old ones
            self._closing.clear()
            self._capture = capture
            self._heard_ns = self._clock.monotonic_ns()

    def read(self, timeout_s: float) -> Sample | None:
        """The next picture that is due."""
        deadline_ns = self._clock.monotonic_ns() + round(timeout_s * SECOND)
        while True:
            left_ns = deadline_ns - self._clock.monotonic_ns()
            with self._lock:
                if self._capture is None or self._closing.is_set():
                    raise self._error("not open")
                sample = self._next(self._capture, max(1, min(left_ns, _SLICE_NS)))
            if sample is not None:
                return sample
            now_ns = self._clock.monotonic_ns()
            if now_ns - self._heard_ns > self._options.timeout_s * SECOND:
                raise self._error(f"no picture for {self._options.timeout_s:g} s")
            if now_ns >= deadline_ns:
                return None

    def close(self) -> None:
        """Let go of the device."""
        self._closing.set()
        with self._lock:
            capture, self._capture = self._capture, None
            if capture is not None:
                capture.release()

    def _next(self, capture: cv2.VideoCapture, wait_ns: int) -> Sample | None:
        """The picture that comes within `wait_ns`, if it is due; others are taken off the device undecoded."""
        try:
            ready, _ = cv2.VideoCapture.waitAny([capture], wait_ns)
            if not ready:
                return None
            captured_ns = self._captured_ns(capture)
            self._heard_ns = self._clock.monotonic_ns()
            if captured_ns < self._due_ns:
                return None
            kept, picture = capture.retrieve()
        except cv2.error as error:
            raise self._error(f"is gone: {error.err or error}") from error
        if not kept:
            self.counters["unreadable"] += 1
            return None
        interval_ns = round(SECOND / self._options.fps)
        # A tenth of an interval early is in time; after a pause the rhythm starts anew.
        self._due_ns = max(self._due_ns, captured_ns - interval_ns) + interval_ns - interval_ns // 10
        self._seq += 1
        return Sample(self._name, "frame", self._seq, captured_ns, _rgb(picture))

    def _captured_ns(self, capture: cv2.VideoCapture) -> int:
        """The driver's own time of the buffer where it is on our clock, else now."""
        now_ns = self._clock.monotonic_ns()
        stamp_ns = round(capture.get(cv2.CAP_PROP_POS_MSEC) * 1e6)
        return stamp_ns if 0 <= now_ns - stamp_ns < SECOND else now_ns

    def _error(self, what: str) -> SourceError:
        return SourceError(f"{self._name}: {self._path}: {what}")


def _device(device: int | str) -> Path:
    if isinstance(device, int):
        if device < 0:
            raise ConfigError(f"device numbers begin with 0, not {device}", "device")
        return Path(f"/dev/video{device}")
    path = Path(device)
    if not path.is_absolute() or path.parts[:2] != ("/", "dev") or ".." in path.parts:
        raise ConfigError(f"{device!r} is not a device; expected a number or a path below /dev", "device")
    return path


def _found() -> list[str]:
    return sorted(str(path) for path in Path("/dev").glob("video*"))


def _rgb(picture: object) -> U8:
    """OpenCV hands out BGR, full range."""
    return np.ascontiguousarray(cv2.cvtColor(np.asarray(picture, np.uint8), cv2.COLOR_BGR2RGB), np.uint8)
