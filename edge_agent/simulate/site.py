"""A simulated site: one place that a camera sees, a microphone hears and sensors feel."""

from __future__ import annotations

from collections.abc import Iterable

from edge_agent.core.records import I16, U8, Reading
from edge_agent.simulate.air import Air
from edge_agent.simulate.episodes import Episode
from edge_agent.simulate.life import Life
from edge_agent.simulate.picture import Picture
from edge_agent.simulate.sound import Sound


class Site:
    """Picture, sound and readings of one place at any moment, the same bytes for the same seed in any order.

    Normal life (people, traffic, weather, light, doors) comes from the seed; `episodes` are what happens beside it.
    Memory is bounded by caches; a site is not thread-safe.
    """

    def __init__(
        self,
        seed: int,
        episodes: Iterable[Episode] = (),
        *,
        width: int = 320,
        height: int = 240,
        fps: float = 10,
        rate_hz: int = 16_000,
    ) -> None:
        if width < 64 or height < 48 or fps <= 0 or rate_hz < 8000:
            raise ValueError(f"expected at least 64x48 pixels and 8000 Hz, got {width}x{height}, {rate_hz} Hz")
        self.seed = seed
        self.episodes: tuple[Episode, ...] = tuple(sorted(episodes, key=lambda e: (e.start_s, e.end_s, e.label)))
        self.width, self.height, self.fps, self.rate_hz = width, height, fps, rate_hz
        life = Life(seed)
        self.place: str = life.place
        self._picture = Picture(life, self.episodes, width, height)
        self._sound = Sound(life, self.episodes, rate_hz)
        self._air = Air(life, self.episodes)

    @property
    def forbidden(self) -> tuple[tuple[float, float], ...]:
        """Corners, 0..1 of the picture, of the area that nobody walks in but an intruder."""
        return self._picture.forbidden

    def frame(self, t_s: float) -> U8:
        """uint8 (height, width, 3), RGB, full range, at `t_s` seconds of the site's time (any moment, to 1 ms)."""
        return self._picture.frame(t_s)

    def sound(self, start_sample: int, n: int) -> I16:
        """int16 (n,), mono at `rate_hz`, from sample `start_sample` of the site's time on."""
        return self._sound.sound(start_sample, n)

    def readings(self, t_s: float) -> tuple[Reading, ...]:
        """The sensors' values at `t_s`: temperature °C, humidity %, smoke ppm, co2 ppm, light lx, vibration m/s²
        (peak of the last second), door 0/1. They change once a second; a sensor that has dropped out is left out."""
        return self._air.readings(t_s)
