"""Films of any rate as the graph sees them, what moves in them, and other cameras in front of them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_agent.contract.manifest import VisionSpec
from edge_agent.core.records import U8
from edge_agent.errors import ConfigError
from models.data.films import MOTION_FIGURES, Film, motion, read_film, windows
from models.data.lens import Lens, lens, seen

SPEC = VisionSpec(width=64, height=48)


def film(count: int = 12, speed: float = 6.0) -> Film:
    """A bright box that moves over a textured ground."""
    ground = np.random.default_rng(0).integers(40, 90, (96, 128, 3), np.uint8)
    frames = []
    for index in range(count):
        frame = ground.copy()
        left = int(10 + speed * index)
        frame[30:60, left : left + 20] = 220
        frames.append(frame)
    return Film(frames)


def test_windows_look_back_by_time_not_by_frames() -> None:
    shown = windows(film(), SPEC, 5)
    assert shown.shape == (5, 5, 48, 64)
    assert (np.abs(shown[:, 3].astype(int) - shown[:, 4]).max((1, 2)) > 50).all()
    still = windows(Film(film(1).frames), SPEC, 3)
    assert (still[:, 3] == still[:, 4]).all()


def test_motion_tells_a_moving_film_from_a_still_one() -> None:
    quiet, lively = motion(film(speed=0.0)), motion(film())
    assert quiet.shape == lively.shape == (MOTION_FIGURES,)
    assert np.isfinite(motion(Film(film(1).frames))).all()
    assert lively[4] > quiet[4] + 1.0  # logarithm of the fastest half percent, mean over time


def test_a_written_film_is_read_small_with_its_times(tmp_path: Path) -> None:
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 12.5, (640, 360))
    for index in range(10):
        writer.write(np.full((360, 640, 3), 20 * index, np.uint8))
    writer.release()
    found = read_film(path)
    # 0.72 s at 12.5 a second: the newest picture at 0, 0.1 … 0.6 s, and the last.
    assert len(found.frames) == 9
    assert found.frames[0].shape == (180, 320, 3)
    assert found.frames[4].mean() == pytest.approx(100, abs=4)  # the sixth picture, of 0.4 s


def test_what_is_no_film_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(b"no film")
    with pytest.raises(ConfigError, match="cannot read film"):
        read_film(path)


def test_a_plain_lens_changes_nothing() -> None:
    picture: U8 = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    assert np.array_equal(seen(picture, Lens(), np.random.default_rng(0)), picture)


def test_other_lenses_keep_most_of_a_picture_and_are_drawn_from_the_seed() -> None:
    picture = film(1).frames[0]
    sizes = set()
    for seed in range(8):
        first, again = (seen(picture, lens(rng), rng) for rng in (np.random.default_rng(seed) for _ in range(2)))
        assert np.array_equal(first, again)
        assert first.shape[0] >= 0.55 * 96
        sizes.add(first.shape)
    assert len(sizes) > 4
