"""Pseudo-anomalies: what moves in normal film, cut out, changed, and pasted back where it could not be told by place.

Nothing but normal footage is needed, so any site can train on its own. The net must tell a changed paste from an
unchanged one (the same cut-out elsewhere), so it learns what things that belong look like and how they move, not
where a paste has its edge. After the idea of pseudo-abnormal frames (Astrid et al., "Learning not to reconstruct
anomalies", BMVC 2021) and CutPaste (Li et al., CVPR 2021), with motion.

All functions are pure; every draw comes from the generator that is passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np

from edge_agent.core.records import F32, U8

Rng = np.random.Generator
Kind = Literal["scale", "stretch", "append", "speed", "rush", "glide", "thing", "turn"]
#: Kinds in the proportion in which they are drawn. Odd looks carry most of the lesson, odd speed alone little.
KINDS: tuple[Kind, ...] = ("speed", "speed", "scale", "stretch", "append", "append", "glide", "thing", "turn")
#: Frames back of the three views at 10 frames a second: 0, 100 and 300 ms.
BACK = (0, 1, 3)
UNKNOWN = -1.0
_FASTEST = 4
#: First frame that has all it takes: the oldest view of the fastest.
FIRST = BACK[2] * _FASTEST
_CHANGE = 14.0  #: grey levels from the background that make something a thing
_RUSH = 0.12  #: share of pictures that are played faster as a whole
_ODD = 0.8  #: share of the others that hold something odd
_GREY = 6  #: largest difference between the colours of a pixel in footage without colour
_SOFT = 0.3  #: share of the unchanged pastes that are made as soft as enlarged ones
_MOVED = 8.0  #: mean change within 100 ms, grey levels, that shows speed


@dataclass(frozen=True, slots=True)
class Size:
    """What is cut out, in pixels of the model's picture: single things, neither crumbs nor crowds."""

    area: tuple[int, int] = (60, 900)
    width: tuple[int, int] = (5, 34)
    height: tuple[int, int] = (12, 45)


@dataclass(frozen=True, slots=True)
class Film:
    """Normal footage: frames uint8 (n, H, W, 3) at 10 frames a second; moving uint8 (n, H, W), 1 where it is not
    background; whether it is without colour."""

    frames: U8
    moving: U8
    grey: bool


@dataclass(frozen=True, slots=True)
class Blob:
    """Something that moves: frame `index` of film `film`, its box in pixels."""

    film: int
    index: int
    x: int
    y: int
    w: int
    h: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A cut-out at three moments: colour float (3, h, w, 3), opacity float (3, h, w) before softening, the row of the
    picture on which it stands, and whether it comes from footage without colour."""

    colour: F32
    alpha: F32
    foot: int
    grey: bool


@dataclass(frozen=True, slots=True)
class Sample:
    """Views uint8 (3, H, W, 3) of one moment; odd float (H, W): 1 odd, 0 normal, −1 not known."""

    views: U8
    odd: F32


def background(films: Sequence[U8], most: int = 160) -> F32:
    """Median picture of a fixed camera, float (H, W, 3), over at most `most` frames of its films (n, H, W, 3)."""
    every = max(sum(len(film) for film in films) // most, 1)
    return np.asarray(np.median(np.concatenate([film[::every] for film in films]), 0), np.float32)


def watch(frames: U8, ground: F32) -> Film:
    """Footage with what moves in it marked."""
    still = ground.astype(np.uint8)
    close = np.ones((3, 3), np.uint8)
    moving = np.empty(frames.shape[:3], np.uint8)
    for index, frame in enumerate(frames):
        change = np.asarray(cv2.absdiff(frame, still).max(2), np.float32)
        mask = (cv2.GaussianBlur(change, (0, 0), 1) > _CHANGE).astype(np.uint8)
        moving[index] = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, close)
    some = frames[:: max(len(frames) // 8, 1)].astype(np.int16)
    return Film(frames, moving, grey=int(np.ptp(some, -1).max()) <= _GREY)


def blobs(film: Film, number: int, size: Size) -> list[Blob]:
    """Everything of that size that moves in a film."""
    found = []
    for index in range(FIRST, len(film.frames)):
        count, _, stats, _ = cv2.connectedComponentsWithStats(film.moving[index])
        for x, y, w, h, area in stats[1:count].tolist():
            fits = zip((area, w, h), (size.area, size.width, size.height), strict=True)
            if all(low <= value <= high for value, (low, high) in fits):
                found.append(Blob(number, index, x, y, w, h))
    return found


@dataclass(frozen=True)
class Cutouts:
    """Makes samples of normal films, with and without something odd."""

    films: Sequence[Film]
    blobs: Sequence[Blob]

    @classmethod
    def of(cls, films: Sequence[U8], size: Size | None = None, *, one_camera: bool = True) -> Cutouts:
        """From films uint8 (n, H, W, 3), 10 frames a second, of at least FIRST + 1 frames. ValueError if nothing
        of that size moves in them."""
        long = [film for film in films if len(film) > FIRST]
        shared = background(long) if one_camera and long else None
        watched = [watch(film, background([film]) if shared is None else shared) for film in long]
        found = [blob for number, film in enumerate(watched) for blob in blobs(film, number, size or Size())]
        if not found:
            raise ValueError(f"nothing of a person's size moves in {len(films)} films: no cut-outs can be made")
        return cls(watched, found)

    def sample(self, rng: Rng, kinds: Sequence[Kind] = KINDS, *, odd: float = _ODD, rush: float = _RUSH) -> Sample:
        """One moment of a random film: played too fast in `rush` of the cases, of the others `odd` hold something."""
        number = int(rng.integers(len(self.films)))
        film = self.films[number]
        index = int(rng.integers(FIRST, len(film.frames)))
        if rng.random() < rush:
            return _rushed(film, index, int(rng.integers(2, _FASTEST + 1)))
        views = film.frames[[index - back for back in BACK]]
        mask = np.zeros(views.shape[1:3], np.float32)
        for _ in range(int(rng.integers(0, 3))):
            self._add(rng, views, mask, None)
        if kinds and rng.random() < odd:
            for _ in range(int(rng.integers(1, 4))):
                self._add(rng, views, mask, kinds[int(rng.integers(len(kinds)))])
        return Sample(views, mask)

    def _add(self, rng: Rng, views: U8, mask: F32, kind: Kind | None) -> None:
        blob = self.blobs[int(rng.integers(len(self.blobs)))]
        piece = self._piece(rng, blob, kind)
        if piece is not None:
            paste(rng, views, mask, _relit(rng, piece), odd=kind is not None)

    def _piece(self, rng: Rng, blob: Blob, kind: Kind | None) -> Piece | None:
        """A cut-out, changed as `kind` says; None if this one does not show the change."""
        faster = {"speed": (2, _FASTEST + 1), "scale": (1, 4), "stretch": (1, 4), "turn": (1, 3)}
        speed = int(rng.integers(*faster[kind])) if kind in faster else 1
        piece = cut(self.films[blob.film], blob, speed)
        if kind == "speed":
            change = np.abs(piece.colour[0] - piece.colour[1]).max(2)[piece.alpha[0] > 0]
            return piece if change.size and float(change.mean()) >= _MOVED + 1 else None
        if kind is None:
            return _softened(rng, piece) if rng.random() < _SOFT else piece
        return CHANGES[kind](rng, piece, blob)


def cut(film: Film, blob: Blob, speed: int = 1) -> Piece:
    """A blob with some margin, at its moment and at 100 and 300 ms before, times `speed`."""
    height, width = film.frames.shape[1:3]
    margin = 2 + 4 * speed
    rows = slice(max(blob.y - 4, 0), min(blob.y + blob.h + 4, height))
    columns = slice(max(blob.x - margin, 0), min(blob.x + blob.w + margin, width))
    index = [blob.index - back * speed for back in BACK]
    return Piece(
        film.frames[index, rows, columns].astype(np.float32),
        film.moving[index, rows, columns].astype(np.float32),
        rows.stop,
        film.grey,
    )


def _rushed(film: Film, index: int, speed: int) -> Sample:
    """The whole picture played too fast: what moves is odd where the speed shows, unknown where it does not."""
    views = film.frames[[index - back * speed for back in BACK]]
    change = cv2.blur(cv2.absdiff(views[0], views[1]).max(2).astype(np.float32), (7, 7))
    moving = film.moving[index]
    seen = (cv2.dilate(moving, np.ones((3, 3), np.uint8)) > 0) & (change > _MOVED)
    odd = np.where(seen, 1.0, np.where(moving > 0, UNKNOWN, 0.0))
    return Sample(views, odd.astype(np.float32))


def _resized(piece: Piece, across: float, up: float) -> Piece:
    height, width = piece.alpha.shape[1:]
    size = (max(int(width * across), 4), max(int(height * up), 4))
    return replace(
        piece,
        colour=np.stack([cv2.resize(part, size) for part in piece.colour]),
        alpha=np.stack([cv2.resize(part, size) for part in piece.alpha]),
    )


def _softened(rng: Rng, piece: Piece) -> Piece:
    """Smaller and back: what was enlarged is soft too, and that must not tell it."""
    height, width = piece.alpha.shape[1:]
    factor = rng.uniform(0.45, 0.8)
    size = (max(int(width * factor), 4), max(int(height * factor), 4))
    small = [cv2.resize(part, size, interpolation=cv2.INTER_AREA) for part in piece.colour]
    return replace(piece, colour=np.stack([cv2.resize(part, (width, height)) for part in small]))


def _scale(rng: Rng, piece: Piece, blob: Blob) -> Piece:
    """Much too large for its place, or much too small."""
    factor = rng.uniform(1.4, 2.2) if rng.random() < 0.8 else rng.uniform(0.4, 0.65)
    return _resized(piece, factor, factor)


def _stretch(rng: Rng, piece: Piece, blob: Blob) -> Piece:
    """Too broad for its height."""
    return _resized(piece, rng.uniform(1.5, 2.8), rng.uniform(0.6, 1.2))


def _turn(rng: Rng, piece: Piece, blob: Blob) -> Piece:
    """Lying, leaning or upside down."""
    height, width = piece.alpha.shape[1:]
    side = int(np.hypot(height, width)) + 1
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(50, 310), 1.0)
    matrix[:, 2] += ((side - width) / 2, (side - height) / 2)
    return replace(
        piece,
        colour=np.stack([cv2.warpAffine(part, matrix, (side, side)) for part in piece.colour]),
        alpha=np.stack([cv2.warpAffine(part, matrix, (side, side)) for part in piece.alpha]),
    )


def _glide(rng: Rng, piece: Piece, blob: Blob) -> Piece:
    """Nothing moves but the whole: somebody on wheels."""
    return _carried(piece, rng.uniform(1.6, 4.0) * rng.choice([-1, 1]))


def _append(rng: Rng, piece: Piece, blob: Blob) -> Piece:
    """With something drawn on that moves along: a wheel, a frame, a load."""
    colour, alpha = piece.colour.copy(), piece.alpha.copy()
    height, width = alpha.shape[1:]
    ink = _ink(rng, piece.grey)
    for _ in range(int(rng.integers(1, 4))):
        at = (int(width / 2 + rng.normal() * blob.w / 2), int(height / 2 + rng.uniform(-0.1, 0.5) * blob.h))
        if rng.random() < 0.5:
            axes = (int(rng.integers(3, max(5, blob.w))), int(rng.integers(3, 10)))
            angle, thick = float(rng.integers(180)), int(rng.choice([-1, 1, 2]))
            cv2.ellipse(colour[0], at, axes, angle, 0, 360, ink, thick)
            cv2.ellipse(alpha[0], at, axes, angle, 0, 360, (1.0,), thick)
        else:
            end = (int(width / 2 + rng.normal() * blob.w), int(height / 2 + rng.uniform(-0.2, 0.5) * blob.h))
            thick = int(rng.integers(1, 4))
            cv2.line(colour[0], at, end, ink, thick)
            cv2.line(alpha[0], at, end, (1.0,), thick)
    return _carried(replace(piece, colour=colour, alpha=alpha), rng.uniform(0.8, 4.0) * rng.choice([-1, 1]))


def _thing(rng: Rng, piece: Piece, blob: Blob) -> Piece:
    """A rigid object of no known kind: angular faces of a few tones."""
    width, height = (int(rng.integers(8, 48)) for _ in range(2))
    margin = 8
    colour = np.zeros((height + 2 * margin, width + 2 * margin, 3), np.float32)
    alpha = np.zeros(colour.shape[:2], np.float32)
    for _ in range(int(rng.integers(1, 6))):
        points = rng.uniform(0, 1, (int(rng.integers(3, 7)), 2)) * (width, height) + margin
        face = cv2.convexHull(points.astype(np.int32))
        cv2.fillPoly(colour, [face], _ink(rng, piece.grey))
        cv2.fillPoly(alpha, [face], (1.0,))
    made = replace(piece, colour=np.stack([colour] * 3), alpha=np.stack([alpha] * 3))
    return _carried(made, rng.uniform(0.4, 4.0) * rng.choice([-1, 1]))


def _ink(rng: Rng, grey: bool) -> list[float]:
    """A tone; with a tint where the world has colours, for else colour alone would tell what was drawn."""
    tint = np.zeros(3) if grey else rng.normal(0, 40, 3)
    return [float(value) for value in np.clip(rng.uniform(10, 245) + tint, 0, 255)]


def _carried(piece: Piece, speed: float) -> Piece:
    """The newest view of a piece, rigid, `speed` pixels a frame to the right."""
    height, width = piece.alpha.shape[1:]
    colour, alpha = [], []
    for back in BACK:
        matrix = np.array([[1, 0, -speed * back], [0, 1, 0]], np.float64)
        colour.append(cv2.warpAffine(piece.colour[0], matrix, (width, height), borderMode=cv2.BORDER_REPLICATE))
        alpha.append(cv2.warpAffine(piece.alpha[0], matrix, (width, height)))
    return replace(piece, colour=np.stack(colour), alpha=np.stack(alpha))


CHANGES: dict[str, Callable[[Rng, Piece, Blob], Piece]] = {
    "scale": _scale,
    "stretch": _stretch,
    "append": _append,
    "glide": _glide,
    "thing": _thing,
    "turn": _turn,
}


def _relit(rng: Rng, piece: Piece) -> Piece:
    """In slightly other light, mirrored in half of the cases."""
    colour = np.clip(piece.colour * rng.uniform(0.8, 1.2) + rng.uniform(-12, 12), 0, 255)
    alpha = piece.alpha
    if rng.random() < 0.5:
        colour, alpha = colour[:, :, ::-1], alpha[:, :, ::-1]
    return replace(piece, colour=np.ascontiguousarray(colour, np.float32), alpha=np.ascontiguousarray(alpha))


def paste(rng: Rng, views: U8, mask: F32, piece: Piece, *, odd: bool) -> None:
    """Lay a piece over views (3, H, W, 3) near its row, at any column, and mark where it lies, all in place."""
    height, width = mask.shape
    h, w = piece.alpha.shape[1:]
    x = int(rng.integers(-w // 3, max(width - w // 2, 1 - w // 3)))
    y = int(np.clip(piece.foot - h + rng.integers(-3, 4), -h // 3, max(height - h // 2, 1 - h // 3)))
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    if right - left < 4 or bottom - top < 4:
        return
    inside = (slice(top - y, bottom - y), slice(left - x, right - x))
    for index in range(3):
        # Grown by a pixel and softened: no edge of the old background comes along sharp.
        soft = cv2.GaussianBlur(cv2.dilate(piece.alpha[index], np.ones((3, 3))), (3, 3), 0)[inside]
        area = views[index, top:bottom, left:right]
        under = area.astype(np.float32)
        area[:] = under + (piece.colour[index][inside] - under) * soft[..., None]
        if index == 0:
            marked = mask[top:bottom, left:right]
            marked[soft > 0.5] = float(odd)
