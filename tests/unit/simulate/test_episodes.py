"""Scripts of what happens: drawn from a seed, in the proportions that were asked for."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from edge_agent.simulate import ANOMALIES, HARD_NEGATIVES, NATURE, Episode, demo, quiet, schedule


def test_a_schedule_is_the_same_for_the_same_seed_and_only_for_it() -> None:
    assert schedule(7, 3600) == schedule(7, 3600)
    assert schedule(7, 3600) != schedule(8, 3600)


@pytest.mark.parametrize("make", [schedule, quiet, demo])
def test_episodes_follow_one_another_within_the_time(make) -> None:  # type: ignore[no-untyped-def]
    for seed in range(20):
        episodes = make(seed, 3600)
        assert len(episodes) > 20
        assert all(a.end_s < b.start_s for a, b in pairwise(episodes))
        assert episodes[-1].end_s <= 3600


def test_a_quarter_shows_in_each_modality_only_and_a_quarter_in_several() -> None:
    found = [e for seed in range(40) for e in schedule(seed, 3600, negatives=0.0)]
    kinds = Counter(e.modalities[0] if len(e.modalities) == 1 else "several" for e in found)
    for kind in ("vision", "audio", "sensors", "several"):
        assert 0.2 < kinds[kind] / len(found) < 0.3, kinds


def test_the_mix_and_the_labels_can_be_chosen() -> None:
    found = schedule(3, 3600, labels=["fire", "siren"], mix={"sensors": 1.0}, negatives=0.0)
    assert {e.label for e in found} == {"fire"}
    assert all(e.modalities == ("sensors",) for e in found)
    with pytest.raises(ValueError, match="none of siren can show in sensors"):
        schedule(3, 3600, labels=["siren"], mix={"sensors": 1.0}, negatives=0.0)


def test_all_labels_come_up() -> None:
    assert {e.label for seed in range(40) for e in schedule(seed, 3600)} == set(NATURE)


def test_quiet_holds_nothing_anomalous() -> None:
    found = [e for seed in range(20) for e in quiet(seed, 3600)]
    assert not any(e.anomalous for e in found)
    assert {e.label for e in found} == set(HARD_NEGATIVES)


@pytest.mark.parametrize("seed", range(10))
def test_the_demo_begins_with_a_fused_episode_and_goes_on_every_minute(seed: int) -> None:
    shown = [e for e in demo(seed, 1800) if e.anomalous]
    assert shown[0].start_s < 20
    assert len(shown[0].modalities) == 3
    assert all(a.label != b.label for a, b in pairwise(shown))
    assert all(b.start_s - a.start_s <= 61 for a, b in pairwise(shown))
    assert {e.label for e in shown} == set(ANOMALIES)


@pytest.mark.parametrize(
    ("label", "start", "end", "modalities", "says"),
    [
        ("flood", 1, 2, ("vision",), "no episode is called 'flood'"),
        ("fire", 2, 2, ("vision",), "expected 0 <= start_s < end_s"),
        ("fire", -1, 2, ("vision",), "expected 0 <= start_s < end_s"),
        ("fire", 1, float("nan"), ("vision",), "expected 0 <= start_s < end_s"),
        ("fire", 1, 2, (), "not in nothing"),
        ("siren", 1, 2, ("sensors",), "siren can show in vision, audio, not in sensors"),
    ],
)
def test_an_episode_that_cannot_be_is_refused(label, start, end, modalities, says) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=says):
        Episode(label, start, end, modalities)
