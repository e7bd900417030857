"""The camera's geometry: metres on the site ↔ pixels, and painting surfaces that stand in space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from edge_agent.core.records import U8

Spot = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class View:
    """A camera `height_m` above the ground that looks straight ahead; x to the right, y up, z away from it (m)."""

    width: int
    height: int
    height_m: float = 3.0
    zoom: float = 1.0
    skyline: float = 0.27  #: where the horizon is, 0 (top) to 1

    @property
    def horizon(self) -> float:
        """Pixel row of the horizon."""
        return self.skyline * self.height

    def scale(self, z: float) -> float:
        """Pixels per metre at this distance."""
        return self.zoom * max(self.width, self.height * 4 / 3) / z

    def pixel(self, x: float, y: float, z: float) -> tuple[float, float]:
        """Column and row of a point."""
        scale = self.scale(z)
        return self.width / 2 + x * scale, self.horizon + (self.height_m - y) * scale

    def doubled(self) -> View:
        """The same view with twice the pixels: what is painted there is anti-aliased by halving."""
        return replace(self, width=2 * self.width, height=2 * self.height)

    def hang(self, canvas: U8, texture: U8, corners: Sequence[Spot]) -> None:
        """Paint `texture` on the plane with these corners (top left, top right, bottom right, bottom left)."""
        rows, cols = texture.shape[:2]
        source = np.array([[0, 0], [cols, 0], [cols, rows], [0, rows]], dtype=np.float32)
        target = np.array([self.pixel(*corner) for corner in corners], dtype=np.float32)
        matrix = cv2.getPerspectiveTransform(source, target)
        size = (self.width, self.height)
        cv2.warpPerspective(texture, matrix, size, dst=canvas, borderMode=cv2.BORDER_TRANSPARENT)

    def block(
        self, canvas: U8, front: U8, across: tuple[float, float], away: tuple[float, float], top: float
    ) -> None:
        """Paint a box that stands on the ground: its front as given, its side and lid in shades of it."""
        (left, right), (z0, z1) = across, away
        if left > 0:
            corners = [(left, top, z1), (left, top, z0), (left, 0.0, z0), (left, 0.0, z1)]
            self.hang(canvas, shade(front, 0.6), corners)
        elif right < 0:
            corners = [(right, top, z0), (right, top, z1), (right, 0.0, z1), (right, 0.0, z0)]
            self.hang(canvas, shade(front, 0.6), corners)
        if top < self.height_m:
            corners = [(left, top, z1), (right, top, z1), (right, top, z0), (left, top, z0)]
            self.hang(canvas, shade(front, 1.15), corners)
        self.hang(canvas, front, [(left, top, z0), (right, top, z0), (right, 0.0, z0), (left, 0.0, z0)])


def shade(texture: U8, gain: float) -> U8:
    """The texture, darker or lighter."""
    return np.asarray(cv2.convertScaleAbs(texture, alpha=gain), dtype=np.uint8)
