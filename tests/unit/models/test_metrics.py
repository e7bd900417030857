"""Figures: known answers."""

from __future__ import annotations

import numpy as np
import pytest

from models import metrics

LABEL = np.array([0, 0, 1, 1])


def test_auc_of_known_orders():
    assert metrics.auc(LABEL, np.array([1, 2, 3, 4])) == 1.0
    assert metrics.auc(LABEL, np.array([4, 3, 2, 1])) == 0.0
    assert metrics.auc(LABEL, np.array([1, 1, 1, 1])) == 0.5
    assert metrics.auc(LABEL, np.array([1, 3, 2, 4])) == 0.75
    assert metrics.auc(np.ones(3), np.arange(3)) == 0.5


def test_average_precision_of_a_known_order():
    assert metrics.average_precision(np.array([1, 0, 1, 0]), np.array([4, 3, 2, 1])) == pytest.approx((1 + 2 / 3) / 2)
    assert metrics.average_precision(np.zeros(3), np.arange(3)) == 0.0


def test_accuracy_counts_names_and_numbers():
    assert metrics.accuracy(np.array(["a", "b", "b"]), np.array(["a", "b", "c"])) == pytest.approx(2 / 3)
    assert metrics.accuracy(np.array([]), np.array([])) == 0.0


def test_frames_of_all_clips_or_clip_by_clip():
    label = [np.array([0, 1]), np.array([0, 1]), np.array([1, 1])]
    score = [np.array([0.1, 0.2]), np.array([0.8, 0.9]), np.array([0.0, 0.0])]
    assert metrics.frame_auc_macro(label, score) == 1.0  # the clip of one class does not count
    assert metrics.frame_auc_micro(label, score) == pytest.approx(
        metrics.auc(np.concatenate(label), np.concatenate(score))
    )
    assert metrics.frame_auc_micro(label, score) < 1.0
    assert metrics.frame_auc_macro(label[2:], score[2:]) == metrics.frame_auc_micro([], []) == 0.5


def test_f1_and_false_alarms_as_skab_counts_them():
    label, said = np.array([1, 1, 1, 0, 0, 0, 0]), np.array([1, 1, 0, 1, 0, 0, 0])
    f1, far = metrics.f1_far(label, said)
    assert f1 == pytest.approx(2 / (2 + (1 + 1) / 2))
    assert far == pytest.approx(1 / 4)
    assert metrics.f1_far(np.zeros(2), np.zeros(2)) == (0.0, 0.0)


def test_recall_against_alarms():
    label, score = np.array([1, 1, 1, 1, 0, 0, 0, 0]), np.array([8, 7, 4, 1, 6, 3, 2, 0])
    assert metrics.threshold_at_recall(label, score, 0.75) == 4
    assert metrics.alarm_share_at_recall(label, score, 0.75) == 0.25
    assert metrics.alarm_share_at_recall(label, score, 0.75, np.array([5, 1])) == 0.5
    assert metrics.alarm_share_at_recall(np.zeros(2), np.arange(2), 0.9) == 0.0


def test_the_interval_holds_the_figure_and_grows_with_groups():
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], 60)
    score = label + rng.normal(0, 1, 120)
    low, high = metrics.interval(label, score, None, np.random.default_rng(1))
    assert low < metrics.auc(label, score) < high
    grouped = metrics.interval(label, score, [str(i // 20) for i in range(120)], np.random.default_rng(1))
    assert grouped != (low, high)


def test_the_gain_of_a_score_over_itself_is_nothing_and_over_noise_is_much():
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], 60)
    score = label + rng.normal(0, 1, 120)
    assert metrics.gain_interval(label, score, score, None, rng) == (0.0, 0.0)
    low, high = metrics.gain_interval(label, score, rng.normal(0, 1, 120), None, rng)
    assert 0 < low < high
