"""Recorded pictures: normal surveillance footage, one real fire, and fire stills for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from edge_agent.contract.manifest import VisionSpec
from edge_agent.core import prepare
from edge_agent.core.records import U8
from edge_agent.errors import ConfigError
from models.data.records import Footage, Split, folder, rows

RATE_HZ = 10.0
#: The boxes of `fire_video` are in the pixels of the film before it was made smaller.
_BOXED_SIZE = (426, 240)
_MAX_FRAMES = 800
_DEV_SHARE = 0.25


def normal_footage(root: Path, spec: VisionSpec) -> list[Footage]:
    """People and cars going about their business (CC BY 4.0, Apache-2.0); the last quarter of each film is dev."""
    films = []
    for path in sorted(folder(root, "sample_videos").glob("*.mp4")):
        frames = np.stack([small(frame, spec) for frame in _decode(path)])
        films += _halves(path.stem, frames)
    if not films:
        raise ConfigError(f"no .mp4 in {root / 'sample_videos'}")
    return films


def fire_footage(root: Path, spec: VisionSpec) -> list[Footage]:
    """One real fire (CC0), boxed. Its last quarter is dev."""
    base = folder(root, "fire_video")
    boxes: dict[int, list[tuple[float, float, float, float]]] = {}
    width, height = _BOXED_SIZE
    for row in rows(base / "house6_boxes.csv"):
        x, y, w, h = (float(row[key]) for key in "xywh")
        boxes.setdefault(int(row["frame"]), []).append((x / width, y / height, (x + w) / width, (y + h) / height))
    frames, marks = [], []
    for index, frame in _decode_indexed(base / "house6.mp4"):
        frames.append(small(frame, spec))
        marks.append(tuple(boxes.get(index, ())))
    return _halves("house6", np.stack(frames), marks)


def fire_stills(root: Path) -> Iterator[tuple[U8, int]]:
    """(RGB, 1 fire or 0 not) of every labelled still. For evaluation only: the pictures' rights are not cleared."""
    base = folder(root, "fire_images")
    for row in rows(base / "labels.csv"):
        picture = cv2.imread(str(base / row["filename"]), cv2.IMREAD_COLOR)
        if picture is None:
            raise ConfigError(f"cannot read picture {base / row['filename']}")
        yield cv2.cvtColor(picture, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False), int(row["fire"])


def small(frame: U8, spec: VisionSpec) -> U8:
    """The frame as the model sees it, resized by the device's own code: uint8 (H, W, 3)."""
    return np.ascontiguousarray(prepare.vision((frame, frame, frame), spec)[:3].transpose(1, 2, 0))


def _decode(path: Path) -> Iterator[U8]:
    for _, frame in _decode_indexed(path):
        yield frame


def _decode_indexed(path: Path) -> Iterator[tuple[int, U8]]:
    """(index in the film, RGB frame) at RATE_HZ, at most _MAX_FRAMES."""
    film = cv2.VideoCapture(str(path))
    if not film.isOpened():
        raise ConfigError(f"cannot open film {path}")
    try:
        every = max((film.get(cv2.CAP_PROP_FPS) or RATE_HZ) / RATE_HZ, 1.0)
        index, taken = 0, 0
        while taken < _MAX_FRAMES:
            good, frame = film.read()
            if not good:
                return
            if index >= taken * every:
                yield index, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)
                taken += 1
            index += 1
    finally:
        film.release()


def _halves(
    name: str, frames: U8, boxes: list[tuple[tuple[float, float, float, float], ...]] | None = None
) -> list[Footage]:
    cut = max(int(len(frames) * (1 - _DEV_SHARE)), 4)
    parts: list[tuple[Split, slice]] = [("train", slice(0, cut)), ("dev", slice(cut, None))]
    return [
        Footage(name, split, frames[part], tuple((boxes or [])[part]))
        for split, part in parts
        if len(frames[part]) >= 4
    ]
