"""The closing rule and the bounds, told as short scripts."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from edge_agent.config import QUANTITIES, UNITS, Channel, SceneConfig
from edge_agent.contract.manifest import AudioSpec, Manifest, SensorSpec, Thresholds, VisionSpec
from edge_agent.core import align
from edge_agent.core.align import Aligner
from edge_agent.core.records import Box, Reading, Sample, Window
from tests.parts.samples import RATE_HZ, Script, ns, seconds

MANIFEST = Manifest(
    family="test",
    name="test",
    counter=1,
    created="2026-01-01T00:00:00Z",
    classes=("fight",),
    vision=VisionSpec(width=16, height=16),
    audio=AudioSpec(rate_hz=RATE_HZ, samples=RATE_HZ),
    sensors=SensorSpec(quantities=QUANTITIES, units=UNITS, steps=4),
    thresholds=Thresholds(on=0.6, off=0.4),
    files={},
)
SMOKE = QUANTITIES.index("smoke")
QUIET_STEPS = 6
CAMERA = SceneConfig(name="yard", camera="cam")
SOUND = SceneConfig(name="yard", microphone="mic")
BOTH = SceneConfig(name="yard", camera="cam", microphone="mic")
FEED = SceneConfig(name="yard", sensors=(Channel(source="feed", channel="smoke", quantity="smoke", stale_s=2),))


def aligner(*scenes: SceneConfig) -> Aligner:
    return Aligner(scenes, MANIFEST, 500, QUIET_STEPS)


def run(one: Aligner, samples: Iterable[Sample]) -> list[Window]:
    return [window for sample in samples for window in one.push(sample)]


def shades(window: Window) -> tuple[int, int, int]:
    assert window.frames is not None
    now, past, older = window.frames
    return int(now[0, 0, 0]), int(past[0, 0, 0]), int(older[0, 0, 0])


# --- when a window closes ---------------------------------------------------------------------------------------


def test_a_window_closes_when_every_source_has_delivered_past_its_end() -> None:
    one, script = aligner(BOTH), Script()
    assert run(one, [script.frame(100.1), script.sound(100.0), script.sound(100.4)]) == []
    assert run(one, [script.frame(100.5)]) != []


def test_sound_has_delivered_up_to_where_it_ends() -> None:
    one, script = aligner(SOUND), Script()
    (window,) = run(one, [script.sound(100.0, 0.4), script.sound(100.4, 0.1)])
    assert window.step == 200
    assert window.end_ns == ns(100.5)


def test_a_window_closes_at_the_latest_a_lateness_after_its_end() -> None:
    one, script = aligner(BOTH), Script()
    assert run(one, [script.clock(100.0), script.frame(100.1), script.frame(100.6)]) == []
    assert run(one, [script.clock(100.99)]) == []
    (window,) = run(one, [script.clock(101.0)])
    assert (window.step, window.audio) == (200, None)


def test_a_source_that_died_is_not_waited_for_and_one_that_pauses_is() -> None:
    one, script = aligner(BOTH), Script()
    run(one, (s for t in seconds(100, 101, 10) for s in (script.clock(t), script.frame(t), script.sound(t))))
    closed: dict[int, float] = {}
    for time_s in seconds(101, 106, 10):
        for window in run(one, [script.clock(time_s), script.frame(time_s)]):
            closed[window.step] = time_s
    assert closed[203] - 102.0 == pytest.approx(0.5)  # waited for the microphone until the lateness was over
    assert closed[210] - 105.5 == pytest.approx(0.0)  # it has been silent for 4 s


def test_who_comes_back_is_heard_from_the_first_window_a_lateness_later() -> None:
    one, script = aligner(BOTH), Script()
    samples = [s for t in seconds(100, 101, 10) for s in (script.clock(t), script.frame(t), script.sound(t))]
    samples += [s for t in seconds(101, 105, 10) for s in (script.clock(t), script.frame(t))]
    samples += [s for t in seconds(105, 108, 10) for s in (script.clock(t), script.frame(t), script.sound(t))]
    heard = {window.step: window.audio is not None for window in run(one, samples)}
    assert [heard[step] for step in (201, 202, 208, 210, 211, 212)] == [True, True, False, False, True, True]
    assert one.counters["rejoining"] == 5


def test_a_sensor_feed_progresses_by_its_ticks() -> None:
    one, script = aligner(FEED), Script()
    windows = run(one, [script.reading(100.1, 5), script.tick(100.4), script.tick(100.5), script.tick(101.0)])
    assert [window.step for window in windows] == [200, 201]


def test_scenes_that_share_a_source_close_each_for_itself() -> None:
    door = SceneConfig(name="door", camera="cam", microphone="mic")
    one, script = aligner(CAMERA, door), Script()
    windows = run(one, [script.frame(100.1), script.frame(100.6), script.sound(100.0, 0.6)])
    assert [(window.scene, window.step) for window in windows] == [("yard", 200), ("door", 200)]


def test_flush_gives_what_time_has_passed() -> None:
    one, script = aligner(BOTH), Script()
    assert run(one, [script.frame(100.1), script.frame(100.7), script.frame(101.2)]) == []
    assert [window.step for window in one.flush()] == [200, 201]
    assert one.flush() == []


# --- what is in a window ----------------------------------------------------------------------------------------


def test_frames_are_those_of_now_d1_and_d2() -> None:
    one, script = aligner(CAMERA), Script()
    windows = run(one, [script.frame(100 + i / 10, level=i) for i in range(11)])
    assert [shades(window) for window in windows] == [(4, 3, 1), (9, 8, 6)]


def test_a_jitter_of_the_camera_does_not_double_the_distance() -> None:
    one, script = aligner(CAMERA), Script()
    late_s = [0.0, 0.008, -0.007, 0.01, -0.009, 0.006, 0.0, 0.0, 0.0, 0.0, 0.0]
    windows = run(one, [script.frame(100.02 + i / 10 + late_s[i], level=i) for i in range(11)])
    assert [shades(window) for window in windows] == [(4, 3, 1), (9, 8, 6)]


def test_without_earlier_frames_the_oldest_serves() -> None:
    one, script = aligner(CAMERA), Script()
    first, second = run(one, [script.frame(100.4, level=7), script.frame(100.6, level=9), script.frame(101.0)])
    assert shades(first) == (7, 7, 7)
    assert shades(second) == (9, 7, 7)


def test_history_reaches_over_the_border_of_windows() -> None:
    one, script = aligner(CAMERA), Script()
    windows = run(one, [script.frame(t, level) for t, level in ((100.0, 1), (100.35, 2), (100.65, 3), (101.0, 4))])
    assert shades(windows[1]) == (3, 2, 2)


def test_a_new_resolution_starts_its_own_history() -> None:
    one, script = aligner(CAMERA), Script()
    small = [script.frame(100 + i / 10, level=i) for i in range(4)]
    large = [script.frame(100.4 + i / 10, level=50 + i, size=16) for i in range(7)]
    windows = run(one, small + large)
    assert [shades(window) for window in windows] == [(50, 50, 50), (55, 54, 52)]
    assert one.counters["resolution"] == 1


def test_an_old_picture_is_not_now() -> None:
    one, script = aligner(CAMERA), Script()
    windows = run(one, [script.clock(100.0), script.frame(100.4), script.clock(102.5)])
    assert [window.frames is not None for window in windows] == [True, True, False, False]


def test_sound_is_placed_by_its_time_and_ends_with_the_window() -> None:
    one, script = aligner(SOUND), Script()
    chunks = [script.sound(99.5 + i / 10, level=i + 1) for i in range(10)]
    (first, window) = run(one, chunks)
    assert window.audio is not None
    assert window.audio.shape == (RATE_HZ,)
    assert [abs(int(window.audio[i * 1600 + 800])) for i in range(10)] == list(range(1, 11))
    assert first.audio is not None  # half of it
    assert not first.audio[:8000].any()


def test_jitter_of_the_stamps_leaves_no_holes_in_the_sound() -> None:
    one, script = aligner(SOUND), Script()
    late_s = [0, 0.004, -0.003, 0.007, -0.006, 0.002, 0.005, -0.001, 0.003, 0, 0.004, 0]
    windows = run(one, [script.sound(100 + i / 10 + late_s[i]) for i in range(12)])
    assert windows[-1].audio is not None
    assert (windows[-1].audio != 0).all()


def test_less_than_half_a_window_of_sound_is_none() -> None:
    one, script = aligner(SOUND), Script()
    heard = [script.sound(100.01 + i / 10) for i in range(4)]
    windows = run(one, [*heard, script.sound(101.0, 0.6)])
    assert [window.audio is not None for window in windows] == [False, False, True]


def test_channels_carry_value_age_and_staleness() -> None:
    one, script = aligner(FEED), Script()
    samples = [script.reading(100.2, 41), *(script.tick(100.5 + i / 2) for i in range(6))]
    steps = [window.sensors for window in run(one, samples)]
    assert all(step is not None and step.value.shape == (len(QUANTITIES),) for step in steps)
    told = [(float(s.value[SMOKE]), round(float(s.age_s[SMOKE]), 1), float(s.mask[SMOKE])) for s in steps if s]
    assert told == [(41, 0.3, 1), (41, 0.8, 1), (41, 1.3, 1), (41, 1.8, 1), (0, 0, 0), (0, 0, 0)]


def test_channels_are_scaled_and_placed_by_quantity() -> None:
    scene = SceneConfig(
        name="yard",
        sensors=(
            Channel(source="feed", channel="f", quantity="temperature", scale=5 / 9, offset=-160 / 9),
            Channel(source="feed", channel="smoke", quantity="smoke"),
            Channel(source="feed", channel="smoke2", quantity="smoke"),  # the bundle has one place for smoke
        ),
    )
    one, script = aligner(scene), Script()
    readings = [script.reading(100.1, 212, "f"), script.reading(100.2, 3), script.reading(100.3, 9, "smoke2")]
    (window,) = run(one, [*readings, script.tick(100.5)])
    assert window.sensors is not None
    assert window.sensors.value[QUANTITIES.index("temperature")] == pytest.approx(100)
    assert window.sensors.value[SMOKE] == 3
    assert window.sensors.mask.sum() == 2


def test_a_late_reading_counts_from_the_next_window_on() -> None:
    one, script = aligner(FEED), Script()
    first = run(one, [script.reading(100.1, 1), script.tick(100.5)])
    second = run(one, [script.reading(100.4, 2), script.tick(101.0)])
    values = [window.sensors.value[SMOKE] for window in first + second if window.sensors]
    assert values == [1, 2]
    assert one.counters["late"] == 1


def test_an_older_reading_does_not_replace_a_newer_one() -> None:
    one, script = aligner(FEED), Script()
    run(one, [script.reading(100.4, 2), script.tick(100.5)])
    (window,) = run(one, [script.reading(100.1, 1), script.tick(101.0)])
    assert window.sensors is not None
    assert window.sensors.value[SMOKE] == 2


def test_objects_come_with_the_window_of_their_frame() -> None:
    one, script = aligner(CAMERA), Script()
    box = Box("person", 0.9, 0, 0, 1, 1)
    found = Sample("cam", "objects", 0, ns(100.2), (box,))
    windows = run(one, [script.frame(100.1), found, script.frame(100.5), script.frame(101.0)])
    assert [window.objects for window in windows] == [(box,), ()]


# --- what is refused --------------------------------------------------------------------------------------------


def test_numbers_that_do_not_rise_are_dropped_until_the_source_starts_anew() -> None:
    one = aligner(CAMERA)
    frame = np.zeros((4, 4, 3), np.uint8)
    for seq, time_s in ((5, 100.0), (5, 100.1), (4, 100.2), (6, 100.3)):
        one.push(Sample("cam", "frame", seq, ns(time_s), frame))
    assert one.counters["duplicate"] == 2
    one.push(Sample("cam", "frame", 0, ns(110.0), frame))  # a camera that was plugged in again
    assert one.counters["duplicate"] == 2
    assert one.counters["samples"] == 3


def test_what_was_lost_is_told_with_the_window() -> None:
    one, script = aligner(CAMERA), Script()
    again = script.frame(100.1)
    (window,) = run(one, [again, again, again, script.frame(100.5)])
    assert window.dropped == {"cam": 2}


def test_late_frames_are_dropped_and_counted() -> None:
    one, script = aligner(CAMERA), Script()
    run(one, [script.clock(100.0), script.frame(100.1), script.clock(101.1)])
    assert run(one, [script.frame(100.2)]) == []
    assert one.counters["late"] == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e39, "5", None])
def test_readings_that_are_no_numbers_are_refused(value: object) -> None:
    one = aligner(FEED)
    one.push(Sample("feed", "reading", 0, ns(100), Reading("smoke", value)))  # type: ignore[arg-type]
    assert one.counters["invalid"] == 1


def test_a_scale_that_bursts_is_refused() -> None:
    scene = SceneConfig(name="a", sensors=(Channel(source="feed", channel="smoke", quantity="smoke", scale=1e300),))
    one, script = aligner(scene), Script()
    (window,) = run(one, [script.reading(100, 1e20), script.tick(100.5)])
    assert window.sensors is not None
    assert window.sensors.mask.sum() == 0
    assert one.counters["invalid"] == 1


def test_sound_of_another_rate_is_refused() -> None:
    one = aligner(SOUND)
    one.push(Sample("mic", "audio", 0, ns(100), np.ones(4800, np.int16), 48_000))
    assert one.counters["invalid"] == 1


def test_a_stamp_from_the_future_stops_nothing() -> None:
    one, script = aligner(BOTH), Script()
    run(one, [script.clock(100.0), script.frame(4000.0)])
    assert one.counters["future"] == 1
    samples = (s for t in seconds(100, 103, 10) for s in (script.clock(t), script.frame(t), script.sound(t)))
    windows = run(one, samples)
    assert [window.step for window in windows] == [200, 201, 202, 203, 204]
    assert all(window.frames is not None for window in windows)


def test_a_stamp_from_the_future_before_the_first_tick_stops_nothing_for_long() -> None:
    one, script = aligner(BOTH), Script()
    run(one, [script.frame(90_000.0), script.sound(90_000.0)])
    samples = (s for t in seconds(100, 104, 10) for s in (script.clock(t), script.frame(t), script.sound(t)))
    windows = run(one, samples)
    assert [window.step for window in windows][-1] >= 205
    assert windows[-1].frames is not None
    assert windows[-1].audio is not None


# --- bounds -----------------------------------------------------------------------------------------------------


def test_an_hour_of_silence_costs_a_few_windows() -> None:
    one, script = aligner(BOTH), Script()
    samples = [s for t in seconds(100, 102, 10) for s in (script.clock(t), script.frame(t), script.sound(t))]
    samples += [script.clock(3702.0)]
    samples += [s for t in seconds(3702, 3706, 10) for s in (script.clock(t), script.frame(t), script.sound(t))]
    windows = run(one, samples)
    silent = [window for window in windows if window.frames is None and window.audio is None]
    assert 2 <= len(silent) <= QUIET_STEPS + 2
    assert one.counters["skipped"] > 7000
    assert windows[-1].frames is not None
    assert windows[-1].audio is not None


def test_ticks_alone_close_windows_until_silence_is_skipped() -> None:
    one, script = aligner(CAMERA), Script()
    run(one, [script.clock(100), script.frame(100.1)])
    windows = run(one, [script.clock(t) for t in seconds(100.2, 130, 20)])
    assert len(windows) == 1 + QUIET_STEPS
    assert windows[-1].frames is None


def held(one: Aligner) -> tuple[int, int, int]:
    """Frames, chunks and readings that are buffered, over all scenes."""
    scenes = one._scenes
    return (
        sum(len(scene._frames._items) for scene in scenes),
        sum(len(scene._audio._chunks) for scene in scenes),
        sum(len(scene._readings) for scene in scenes),
    )


def test_a_flood_that_nobody_closes_is_bounded_and_counted() -> None:
    everything = SceneConfig(name="yard", camera="cam", microphone="mic", sensors=FEED.sensors)
    one, script = aligner(everything), Script()
    run(one, [script.frame(100 + i / 10) for i in range(400)])
    run(one, [script.reading(100 + i / 500, i) for i in range(9000)])
    assert one.counters["windows"] == 0  # the microphone never came, and no clock says that time goes by
    frames, _, readings = held(one)
    assert frames == align.MAX_FRAMES
    assert readings == align.MAX_READINGS
    assert one.counters["overflow"] == 400 - align.MAX_FRAMES + 9000 - align.MAX_READINGS


def test_large_frames_are_bounded_in_bytes() -> None:
    one, script = aligner(BOTH), Script()
    picture = np.zeros((2160, 3840, 3), np.uint8)
    for index in range(12):
        one.push(Sample("cam", "frame", index, ns(100 + index / 5), picture))
    assert held(one)[0] * picture.nbytes <= align.MAX_FRAME_BYTES
    assert one.counters["overflow"] == 12 - held(one)[0]
    assert run(one, [script.clock(103.0)]) != []


def test_thirty_frames_a_second_are_thinned() -> None:
    one, script = aligner(BOTH), Script()
    run(one, [script.frame(100 + i / 30) for i in range(30)])
    assert held(one)[0] <= 18


def test_sound_that_nobody_closes_is_bounded() -> None:
    one, script = aligner(BOTH), Script()
    run(one, [script.sound(100 + i / 10) for i in range(1000)])
    assert held(one)[1] <= align.MAX_AUDIO_S * 10
    one, script = aligner(BOTH), Script()
    run(one, [script.sound(100 + i / 1000, 0.001) for i in range(6000)])
    assert held(one)[1] <= align.MAX_CHUNKS


def test_a_day_leaves_nothing_behind() -> None:
    everything = SceneConfig(name="yard", camera="cam", microphone="mic", sensors=FEED.sensors)
    one, script = aligner(everything), Script()
    most = (0, 0, 0)
    for time_s in seconds(100, 400, 5):
        samples = [script.clock(time_s), script.frame(time_s), script.sound(time_s, 0.2), script.reading(time_s, 1)]
        run(one, samples)
        most = tuple(max(pair) for pair in zip(most, held(one), strict=True))  # type: ignore[assignment]
    assert most[0] <= 10
    assert most[1] <= 12
    assert most[2] <= 6
    assert one.counters["windows"] == 599
    assert sum(one.counters[name] for name in ("late", "overflow", "skipped", "rejoining")) == 0


# --- another manifest -------------------------------------------------------------------------------------------


def test_another_step_goes_on_where_the_last_window_ended() -> None:
    one, script = aligner(CAMERA), Script()
    first = run(one, [script.frame(100 + i / 10) for i in range(11)])
    slower = Manifest(**{**{f: getattr(MANIFEST, f) for f in MANIFEST.__struct_fields__}, "step_ms": 1000})
    one.respecify(slower, QUIET_STEPS)
    second = run(one, [script.frame(101.1 + i / 10) for i in range(20)])
    assert [window.end_ns for window in first] == [ns(100.5), ns(101.0)]
    assert [window.end_ns for window in second] == [ns(102.0), ns(103.0)]


# --- what only repeats ------------------------------------------------------------------------------------------


def test_a_picture_that_repeats_for_half_a_minute_is_missing_until_it_changes() -> None:
    one, script = aligner(CAMERA), Script()
    live = run(one, (script.frame(t) for t in seconds(100, 110, 10)))
    still = run(one, (script.frame(t, level=7) for t in seconds(110, 150, 10)))
    assert all(window.frames is not None for window in live)
    lost = [window.end_ns for window in still if window.frames is None]
    assert lost[0] == ns(140.0)
    assert lost == [window.end_ns for window in still if window.end_ns >= ns(140.0)]
    assert one.frozen() == {"yard": ("vision",)}
    assert one.counters["frozen"] == len(lost)
    (first, *_) = again = run(one, (script.frame(t) for t in seconds(150, 152, 10)))
    assert first.frames is None  # it ends where the first new picture begins
    assert all(window.frames is not None for window in again[1:])
    assert one.frozen() == {"yard": ()}


def test_one_grain_of_noise_in_a_still_scene_is_life() -> None:
    one, script = aligner(CAMERA), Script()
    samples = [script.frame(t, level=7, size=48) for t in seconds(100, 150, 10)]
    for index, sample in enumerate(samples):
        sample.data[5 + index % 3, 11, 1] += 1  # off the probe
    assert all(window.frames is not None for window in run(one, samples))


def test_sound_that_repeats_its_last_buffer_or_is_digital_silence_is_missing() -> None:
    for level in (3, 0):
        one, script = aligner(SOUND), Script()
        windows = run(one, (script.sound(t, level=level) for t in seconds(100, 140, 10)))
        assert [window.audio is None for window in windows] == [window.end_ns >= ns(130.0) for window in windows]
        assert one.frozen() == {"yard": ("audio",)}
        rng = np.random.default_rng(0)
        alive = [script.sound(t) for t in seconds(140, 142, 10)]
        for sample in alive:
            sample.data[:] = rng.integers(-3, 4, len(sample.data))
        assert run(one, alive)[-1].audio is not None


def test_a_stream_that_was_away_has_not_repeated_itself() -> None:
    one, script = aligner(BOTH), Script()
    samples = [s for t in seconds(100, 120, 10) for s in (script.frame(t), script.sound(t, level=3))]
    samples += [s for t in seconds(125, 145, 10) for s in (script.frame(t), script.sound(t, level=3))]
    windows = run(one, (s for sample in samples for s in (script.clock(sample.captured_ns / 1e9), sample)))
    assert all(window.audio is not None for window in windows if window.end_ns > ns(126.5))
    assert one.counters["frozen"] == 0
