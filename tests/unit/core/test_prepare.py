"""Colour, resize, masks and motion: one place, so that training and device cannot differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_agent.contract.manifest import AudioSpec, SensorSpec, VisionSpec
from edge_agent.core import prepare
from edge_agent.core.records import U8, SensorStep

SPEC = VisionSpec(width=16, height=8)
SENSORS = SensorSpec(quantities=("smoke", "door"), units=("ppm", "0/1"), steps=4)


def flat(red: int, green: int, blue: int, height: int = 32, width: int = 64) -> U8:
    return np.full((height, width, 3), (red, green, blue), np.uint8)


def test_a_picture_becomes_rgb_and_two_lumas() -> None:
    out = prepare.vision((flat(250, 10, 90), flat(255, 0, 0), flat(0, 255, 0)), SPEC)
    assert out.shape == (5, 8, 16)
    assert out.dtype == np.uint8
    # BT.601, full range: 0.299 R + 0.587 G + 0.114 B, and black stays 0, not 16.
    assert [int(plane[0, 0]) for plane in out] == [250, 10, 90, 76, 150]
    assert all(np.ptp(plane) == 0 for plane in out)
    assert prepare.still(flat(0, 0, 0), SPEC).max() == 0
    assert prepare.still(flat(255, 255, 255), SPEC).min() == 255


def test_the_values_of_a_pixel_lie_together() -> None:
    """Engines read pictures so; in another order every window costs a copy more."""
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3)).astype(np.uint8)
    found = prepare.vision(tuple(frames), VisionSpec(width=24, height=16))
    assert found.shape == (5, 16, 24)
    assert found.transpose(1, 2, 0).flags.c_contiguous


def test_a_cell_is_the_mean_of_its_pixels() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (32, 64, 3)).astype(np.uint8)
    mean = frame.reshape(8, 4, 16, 4, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
    assert np.abs(prepare.still(frame, SPEC)[:3] - mean).max() <= 1


@pytest.mark.parametrize(("height", "width"), [(1080, 1920), (480, 640), (37, 91), (8, 16), (5, 3)])
def test_any_size_keeps_its_brightness(height: int, width: int) -> None:
    ramp = np.linspace(0, 255, width, dtype=np.float64)[None, :, None]
    frame = np.broadcast_to(ramp, (height, width, 3)).astype(np.uint8)
    out = prepare.still(frame, SPEC)
    assert float(out[0].mean()) == pytest.approx(float(frame.mean()), abs=2.5)
    assert (np.diff(out[0, 0].astype(int)) >= 0).all()


def test_nothing_moves_in_a_still() -> None:
    frame = np.random.default_rng(1).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    out = prepare.still(frame, SPEC)
    np.testing.assert_array_equal(out[3], out[4])
    np.testing.assert_array_equal(out[3], prepare.luma(out[:3].transpose(1, 2, 0)))
    assert not prepare.moving(out).any()


def test_a_view_with_negative_strides_is_a_picture_too() -> None:
    frame = np.random.default_rng(2).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    turned = prepare.still(frame[::-1, :, ::-1], SPEC)
    np.testing.assert_array_equal(turned, prepare.still(np.ascontiguousarray(frame[::-1, :, ::-1]), SPEC))


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
    ],
)
def test_what_is_no_picture_is_refused(frame: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="a frame must be"):
        prepare.still(frame, SPEC)
    with pytest.raises(ValueError, match="3 frames"):
        prepare.vision((flat(0, 0, 0), flat(0, 0, 0)), SPEC)


def test_masks_are_black_and_leave_the_frame_alone() -> None:
    frame = flat(200, 200, 200)
    assert prepare.blackened(frame, ()) is frame
    painted = prepare.blackened(frame, [((0, 0), (0.5, 0), (0.5, 1), (0, 1))])
    assert painted[:, :31].max() == 0
    assert painted[:, 33:].min() == 200
    assert frame.min() == 200


def test_audio_ends_where_it_ended() -> None:
    spec = AudioSpec(samples=5)
    np.testing.assert_array_equal(prepare.audio(np.arange(9, dtype=np.int16), spec), [4, 5, 6, 7, 8])
    np.testing.assert_array_equal(prepare.audio(np.array([1, 2], np.int16), spec), [0, 0, 0, 1, 2])
    np.testing.assert_array_equal(prepare.audio(np.zeros(0, np.int16), spec), np.zeros(5))
    with pytest.raises(ValueError, match="int16"):
        prepare.audio(np.zeros(5, np.float32), spec)


def step(value: float, age_s: float = 1.0, mask: float = 1.0) -> SensorStep:
    return SensorStep(*(np.array([number, 0.0], np.float32) for number in (value, age_s, mask)))


def test_sensors_are_value_age_and_mask_with_the_newest_last() -> None:
    out = prepare.sensors([step(7), step(8, 0.5)], SENSORS)
    assert out.shape == (3, 2, 4)
    assert out[:, 0].tolist() == [[0, 0, 7, 8], [0, 0, 1, 0.5], [0, 0, 1, 1]]
    longer = prepare.sensors([step(number) for number in range(9)], SENSORS)
    assert longer[0, 0].tolist() == [5, 6, 7, 8]


def test_what_is_masked_cannot_leak() -> None:
    assert prepare.sensors([step(999, 77, 0)], SENSORS).max() == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_sensor_values_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        prepare.sensors([step(value)], SENSORS)


def test_sensor_steps_of_another_bundle_are_refused() -> None:
    with pytest.raises(ValueError, match="channels"):
        prepare.sensors([SensorStep(*(np.zeros(3, np.float32) for _ in range(3)))], SENSORS)


# --- motion -----------------------------------------------------------------------------------------------------

WIDE = VisionSpec(width=160, height=120)
ROWS, COLS = np.mgrid[0:240, 0:320].astype(np.float64)


def room(seed: int = 0) -> NDArray[np.float64]:
    """A textured wall, a dark floor and a bright window, 240x320."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(40, 170, (12, 16, 3))
    wall = np.kron(coarse, np.ones((20, 20, 1)))
    wall[160:] *= 0.5
    wall[30:90, 220:280] = 235
    return np.asarray(wall, np.float64)


def seen(scene: NDArray[np.float64], seed: int, noise: float = 4.0) -> U8:
    """What a camera makes of it: noise and clipping."""
    return np.clip(scene + np.random.default_rng(seed).normal(0, noise, scene.shape), 0, 255).astype(np.uint8)


def spot(x: float, y: float, radius: float, strength: float) -> NDArray[np.float64]:
    light: NDArray[Any] = 1 + strength * np.exp(-((COLS - x) ** 2 + (ROWS - y) ** 2) / 2 / radius**2)
    return light[..., None].astype(np.float64)


LIGHTS: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "nothing": lambda scene: scene,
    "brighter": lambda scene: scene * 1.6,
    "darker": lambda scene: scene * 0.3,
    "night": lambda scene: scene * 0.1,
    "veil": lambda scene: scene + 40,
    "exposure": lambda scene: 255 * (scene / 255) ** 0.6,
    "warmer": lambda scene: scene * (1.3, 1.0, 0.7),
    "window side": lambda scene: scene * (0.6 + COLS / 320)[..., None],
    "lamp": lambda scene: scene * spot(160, 120, 120, 0.8),
    "half a room": lambda scene: scene * (1 + 0.8 * (COLS > 160))[..., None],
}


@pytest.mark.parametrize("light", LIGHTS)
@pytest.mark.parametrize("seed", range(3))
def test_light_that_changes_moves_nothing(light: str, seed: int) -> None:
    before, after = seen(room(seed), 10 + seed), seen(LIGHTS[light](room(seed)), 20 + seed)
    for now, past in ((after, before), (before, after)):
        moved = prepare.moving(prepare.vision((now, past, past), WIDE))
        assert float(moved.mean()) < 0.02


@pytest.mark.parametrize("noise", [2.0, 8.0, 20.0])
def test_noise_moves_nothing(noise: float) -> None:
    now, past = seen(room(), 1, noise), seen(room(), 2, noise)
    assert float(prepare.moving(prepare.vision((now, past, past), WIDE)).mean()) < 0.001


def with_person(scene: NDArray[np.float64], x: int) -> NDArray[np.float64]:
    scene = scene.copy()
    scene[100:200, x : x + 30] = (30, 40, 90)
    return scene


@pytest.mark.parametrize("light", ["nothing", "brighter", "darker", "lamp"])
def test_somebody_who_walks_moves_under_any_light(light: str) -> None:
    past, now = seen(with_person(room(), 100), 1), seen(LIGHTS[light](with_person(room(), 115)), 2)
    moved = prepare.moving(prepare.vision((now, past, past), WIDE))
    where = prepare.region(((0.25, 0.35), (0.55, 0.35), (0.55, 0.9), (0.25, 0.9)), 120, 160)
    assert float(moved[where].mean()) > 0.05
    assert float(moved[~where].mean()) < 0.005


def test_a_region_has_the_area_of_its_polygon_and_is_never_empty() -> None:
    half = prepare.region(((0, 0), (0.5, 0), (0.5, 1), (0, 1)), 100, 100)
    assert float(half.mean()) == pytest.approx(0.5, abs=0.02)
    assert prepare.region(((0.3, 0.3), (0.3, 0.3), (0.3, 0.3)), 8, 8).sum() == 1
