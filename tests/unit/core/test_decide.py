"""Threshold, hysteresis, cool-down, labels and the life of an event, told as rows of scores."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.config import IntrusionRule, SceneConfig
from edge_agent.contract.event import Event
from edge_agent.contract.manifest import Thresholds
from edge_agent.contract.wire import encode
from edge_agent.core.decide import Decider, Observed
from edge_agent.core.records import U8, Scores
from edge_agent.core.scene import Course
from tests.parts.engines import CLASSES, manifest

FIRST = 1000


class Scene:
    """Feeds a decider step by step."""

    def __init__(self, scene: SceneConfig | None = None, **thresholds: Any) -> None:
        rules = {"on": 0.6, "off": 0.4, "cooldown_steps": 5, "classes": dict.fromkeys(CLASSES, 0.5), **thresholds}
        self.config = scene or SceneConfig(name="yard", camera="cam")
        self.decider = Decider(self.config, manifest(thresholds=Thresholds(**rules)), "b" * 64)
        self.course = Course()
        self.step = FIRST

    def see(
        self,
        score: float,
        classes: dict[str, float] | None = None,
        present: tuple[str, ...] = ("vision",),
        picture: U8 | None = None,
        heat: U8 | None = None,
    ) -> list[Event]:
        shares = {"vision": 1.0, "audio": 0.5, "sensors": 0.0, "none": -4.0}
        scores = Scores(
            "yard", self.step, 0.0, score, classes or {}, shares, {}, present, np.zeros(4, np.float32), heat
        )
        events = self.decider.decide(self.course, Observed(self.step, scores, picture, {"cam": 3}))
        self.step += 1
        return events

    def row(self, scores: Sequence[float], **more: Any) -> list[Event]:
        return [event for score in scores for event in self.see(score, **more)]


def told(events: Sequence[Event]) -> list[tuple[str, str, int]]:
    return [(event.phase, event.label, event.step - FIRST) for event in events]


def test_an_event_opens_after_on_steps_and_ends_after_off_steps() -> None:
    events = Scene().row([0.1, 0.7, 0.1, 0.7, 0.8, 0.5, 0.3, 0.3, 0.5, 0.3, 0.3, 0.3, 0.3, 0.3])
    assert [(phase, step) for phase, _, step in told(events)] == [("new", 4), ("update", 8), ("end", 12)]
    assert {event.onset_step - FIRST for event in events} == {3}
    assert [event.revision for event in events] == [1, 2, 3]
    assert {event.peak for event in events} == {0.8}


def test_the_threshold_itself_is_over_and_the_lower_one_is_not_under() -> None:
    events = Scene().row([0.6, 0.6, 0.4, 0.4, 0.4, 0.4, 0.4])
    assert [event.phase for event in events] == ["new", "update"]


def test_a_new_event_carries_its_lead_and_what_it_rests_on() -> None:
    scene = Scene()
    heat = np.arange(6, dtype=np.uint8).reshape(2, 3)
    scene.row([0.1] * 30)
    (new,) = scene.row([0.7, 0.9], heat=heat, classes={"fight": 0.8})
    assert new.trace[0].step == new.onset_step - 20
    assert [point.score for point in new.trace[-3:]] == [0.1, 0.7, 0.9]
    assert (new.score, new.peak, new.threshold) == (0.9, 0.9, 0.6)
    assert (new.origin, new.rule, new.bundle, new.calibrating) == ("model", None, "b" * 64, True)
    assert (new.shares.vision, new.shares.none) == (1.0, -4.0)
    assert (new.quality.present, new.quality.dropped) == (("vision",), {"cam": 3})
    assert new.classes == {"fight": 0.8}
    assert new.heat is not None
    assert (new.heat.rows, new.heat.cols, new.heat.values) == (2, 3, heat.tobytes())


def test_an_update_tells_what_is_new_every_two_seconds_or_when_the_peak_rises() -> None:
    scene = Scene()
    scene.row([0.62, 0.62])
    assert scene.row([0.7, 0.71]) == []  # not 0.1 above what was told
    (rise,) = scene.row([0.75])
    assert (rise.phase, rise.peak, [point.step - FIRST for point in rise.trace]) == ("update", 0.75, [2, 3, 4])
    (regular,) = scene.row([0.7] * 4)
    assert (regular.step - FIRST, len(regular.trace), regular.heat) == (8, 4, None)


def test_a_long_event_is_told_of_less_and_less_but_never_silent() -> None:
    scene = Scene()
    events = scene.row([0.9] * 7200)  # an hour
    steps = [event.step for event in events]
    gaps = np.diff(steps)
    assert min(gaps) == 4
    assert max(gaps) == 60
    assert len(events) < 200
    assert sum(len(event.trace) for event in events) >= 7100


@pytest.mark.parametrize(
    ("classes", "label"),
    [
        ({}, "anomaly"),
        ({"fight": 0.49}, "anomaly"),
        ({"fight": 0.5}, "fight"),
        ({"fight": 0.6, "fire": 0.7, "shout": 0.1}, "fire"),
    ],
)
def test_the_label_is_the_likeliest_class_that_reaches_its_threshold(classes: dict[str, float], label: str) -> None:
    (event,) = Scene().row([0.9, 0.9], classes=classes)
    assert event.label == label


def test_a_class_without_a_threshold_names_nothing() -> None:
    (event,) = Scene(classes={"fire": 0.5}).row([0.9, 0.9], classes={"fight": 0.99, "fire": 0.6})
    assert event.label == "fire"


def test_the_label_stays() -> None:
    scene = Scene()
    events = scene.row([0.9, 0.9], classes={"fight": 0.9})
    events += scene.row([0.9] * 8, classes={"shout": 0.9}) + scene.row([0.1] * 4)
    assert {event.label for event in events} == {"fight"}


def test_another_event_opens_beside_only_if_its_label_says_more() -> None:
    scene = Scene()
    assert told(scene.row([0.9, 0.9])) == [("new", "anomaly", 1)]
    assert told(scene.row([0.9, 0.9], classes={"fight": 0.9})) == [("new", "fight", 3)]
    assert told(scene.row([0.9], classes={"shout": 0.9})) == []
    fire = scene.row([0.9, 0.9], classes={"fire": 0.9})
    assert ("new", "fire", 6) in told(fire)
    assert ("new", "gunshot", 8) in told(scene.row([0.9, 0.9], classes={"gunshot": 0.9}))
    assert "new" not in [event.phase for event in scene.row([0.9] * 3, classes={"shout": 0.9})]
    ends = [event for event in scene.row([0.1] * 4) if event.phase == "end"]
    assert {event.label for event in ends} == {"anomaly", "fight", "fire", "gunshot"}
    assert scene.course.open == {}


def test_a_flicker_of_another_class_opens_nothing() -> None:
    scene = Scene()
    scene.row([0.9, 0.9])
    events = [e for label in ("fire", "fight", "fire", "fight") for e in scene.row([0.9], classes={label: 0.9})]
    assert [event.phase for event in events if event.phase == "new"] == []


def test_the_cool_down_holds_for_its_label_alone() -> None:
    scene = Scene()
    scene.row([0.9, 0.9, 0.1, 0.1, 0.1, 0.1])  # ended at step 5, silent until 10
    assert told(scene.row([0.9, 0.9])) == []
    assert told(scene.row([0.9, 0.9], classes={"fire": 0.9})) == [("new", "fire", 8)]
    scene.row([0.1] * 20)
    assert told(scene.row([0.9, 0.9])) == [("new", "anomaly", 31)]


def test_what_lasts_beyond_the_cool_down_opens_when_it_is_over() -> None:
    scene = Scene()
    scene.row([0.9, 0.9, 0.1, 0.1, 0.1, 0.1])
    (again,) = [event for event in scene.row([0.9] * 8) if event.phase == "new"]
    assert (again.step - FIRST, again.onset_step - FIRST) == (11, 10)


def test_a_scene_may_have_its_own_threshold_and_cool_down() -> None:
    scene = Scene(SceneConfig(name="yard", camera="cam", threshold=0.9, cooldown_s=0))
    assert scene.row([0.85] * 5) == []
    (new,) = scene.row([0.9, 0.9])
    assert new.threshold == 0.9
    # `off` keeps its distance in logit: 0.4 is 0.81 below 0.6, so it is 0.8 here.
    ends = [event for event in scene.row([0.81, 0.81, 0.81, 0.79, 0.79, 0.79, 0.79]) if event.phase == "end"]
    assert [event.step - FIRST for event in ends] == [13]
    assert [event.phase for event in scene.row([0.95, 0.95])] == ["new"]


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_thresholds_at_the_edge_work(threshold: float) -> None:
    events = Scene(SceneConfig(name="yard", camera="cam", threshold=threshold)).row([1.0] * 3)
    assert events[0].phase == "new"


def test_a_score_of_nothing_opens_nothing_and_ends_what_is_open() -> None:
    scene = Scene()
    assert scene.row([0.99] * 5, present=()) == []
    scene.row([0.9, 0.9])
    events = scene.row([0.99] * 4, present=())
    assert [event.phase for event in events] == ["end"]
    assert events[0].quality.present == ()


def test_no_scores_at_all_end_what_is_open() -> None:
    scene = Scene()
    scene.row([0.9, 0.9])
    events: list[Event] = []
    for step in range(4):
        events += scene.decider.decide(scene.course, Observed(scene.step + step, None, None, {}))
    assert [event.phase for event in events] == ["end"]


@pytest.mark.parametrize(
    ("label", "priority"),
    [("fire", "critical"), ("gunshot", "critical"), ("fight", "normal"), ("anomaly", "normal")],
)
def test_what_is_urgent_is_critical_when_it_is_new(label: str, priority: str) -> None:
    scene = Scene()
    classes = {} if label == "anomaly" else {label: 0.9}
    events = scene.row([0.9] * 6, classes=classes) + scene.row([0.1] * 4)
    assert [(event.phase, event.priority) for event in events] == [
        ("new", priority),
        ("update", "normal"),
        ("end", "normal"),
    ]


def test_end_ends_everything_once() -> None:
    scene = Scene()
    scene.row([0.9, 0.9])
    scene.row([0.9, 0.9], classes={"fire": 0.9})
    ends = scene.decider.end(scene.course, scene.step)
    assert [(event.phase, event.label) for event in ends] == [("end", "anomaly"), ("end", "fire")]
    assert scene.decider.end(scene.course, scene.step) == []


def test_skipped_windows_end_what_was_open() -> None:
    scene = Scene()
    scene.row([0.9, 0.9])
    scene.decider.skip(scene.course, 100)
    scene.step += 100
    assert [event.phase for event in scene.row([0.9])] == ["end"]


# --- the intrusion rule -----------------------------------------------------------------------------------------

GATE = IntrusionRule(name="gate", polygon=((0.5, 0.0), (1.0, 0.0), (1.0, 1.0), (0.5, 1.0)))


def picture(x: int | None, before: int | None, light: float = 1.0) -> U8:
    """A prepared picture, 32x24: somebody at column x, who was at column `before`."""
    rng = np.random.default_rng(0)
    room = rng.uniform(80, 120, (24, 32))

    def with_somebody(at: int | None, gain: float) -> Any:
        view = room * gain
        if at is not None:
            view[6:20, at : at + 4] = 230 * gain
        return np.clip(view + rng.normal(0, 2, view.shape), 0, 255).astype(np.uint8)

    now, past = with_somebody(x, light), with_somebody(before, 1.0)
    return np.stack([now, now, now, past, past])


def guarded(**changes: Any) -> Scene:
    rule = msgspec.structs.replace(GATE, **changes)
    return Scene(SceneConfig(name="yard", camera="cam", rules=(rule,)))


def test_motion_in_an_armed_polygon_is_an_intrusion() -> None:
    scene = guarded()
    (new,) = scene.row([0.1, 0.1], picture=picture(24, 20))
    assert (new.label, new.phase, new.origin, new.rule) == ("intrusion", "new", "rule", "gate")
    assert (new.priority, new.threshold, new.classes, new.shares.vision) == ("critical", 0.5, {}, 0.0)
    assert 0.5 < new.score <= 1.0
    ends = [event for event in scene.row([0.1] * 6, picture=picture(None, None)) if event.phase == "end"]
    assert len(ends) == 1


def test_motion_outside_does_not_count() -> None:
    assert guarded().row([0.1] * 6, picture=picture(6, 2)) == []


def test_a_rule_that_is_not_armed_does_not_count() -> None:
    assert guarded(armed=False).row([0.1] * 6, picture=picture(24, 20)) == []


@pytest.mark.parametrize("light", [0.3, 0.7, 1.5])
def test_light_that_changes_is_no_intrusion(light: float) -> None:
    assert guarded(on_steps=1).row([0.1] * 3, picture=picture(24, 24, light)) == []


def test_without_a_picture_an_intrusion_ends() -> None:
    scene = guarded()
    scene.row([0.1, 0.1], picture=picture(24, 20))
    assert [event.phase for event in scene.row([0.1] * 6)][-1] == "end"


def test_two_rules_share_one_open_intrusion() -> None:
    rules = (GATE, IntrusionRule(name="all", polygon=((0, 0), (1, 0), (1, 1), (0, 1))))
    scene = Scene(SceneConfig(name="yard", camera="cam", rules=rules))
    events = scene.row([0.1] * 8, picture=picture(24, 20))
    assert [event.phase for event in events].count("new") == 1


def test_rule_and_model_are_open_side_by_side() -> None:
    events = guarded().row([0.9, 0.9], picture=picture(24, 20))
    assert sorted(event.label for event in events) == ["anomaly", "intrusion"]


# --- for any row of scores --------------------------------------------------------------------------------------

SEEN = st.tuples(
    st.floats(0, 1),
    st.dictionaries(st.sampled_from(CLASSES), st.floats(0, 1), max_size=3),
    st.sampled_from([("vision",), (), ("audio", "sensors")]),
    st.booleans(),
)


@given(st.lists(SEEN, max_size=120))
def test_every_life_is_new_then_updates_then_one_end(
    row: list[tuple[float, dict[str, float], tuple[str, ...], bool]],
) -> None:
    scene = guarded()
    moving, calm = picture(24, 20), picture(24, 24)
    events: list[Event] = []
    for score, classes, present, moves in row:
        events += scene.see(score, classes, present, moving if moves else calm)
    events += scene.decider.end(scene.course, scene.step)
    lives: dict[tuple[str, int], list[Event]] = {}
    open_labels: set[str] = set()
    for event in events:
        lives.setdefault((event.label, event.onset_step), []).append(event)
        if event.phase == "new":
            assert event.label not in open_labels
            open_labels.add(event.label)
        elif event.phase == "end":
            open_labels.remove(event.label)
        assert event.onset_step <= event.step
        assert len(encode(event)) < 16_000
    assert open_labels == set()
    for life in lives.values():
        assert [event.phase for event in life] == ["new", *["update"] * (len(life) - 2), "end"]
        assert [event.revision for event in life] == list(range(1, len(life) + 1))
        assert all(a.peak <= b.peak for a, b in pairwise(life))
        points = [point.step for event in life for point in event.trace]
        assert points == sorted(set(points))
