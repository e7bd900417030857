"""The card says what was measured, and how far seeds differ."""

from __future__ import annotations

from models import card

_FIGURES = {
    "preset": "tiny",
    "seed": 0,
    "sets": [],
    "learned": ["siren"],
    "int8": {"vision": "1 of 2 convolutions"},
    "recorded": {
        "vision: stills": {"auc": 0.9, "low": 0.8, "high": 1.0, "n": 10, "positive": 5},
        "audio: background": {"share": 0.1, "n": 20},
    },
    "composed": {"windows": 9, "fused": {"ap": 0.8, "auc": 0.7}, "shown in audio": {"auc": 0.6, "n": 3}},
    "thresholds": {"on": 0.9, "quiet_alerts": 0, "quiet_s": 60, "demo_caught": {"fire": "1/2"}, "demo_astray": 2},
}


def test_one_seed_has_no_spread():
    text = card.write(_FIGURES)
    assert "±" not in text
    assert "| audio: background | 0.100 | – | 20 |" in text
    assert "fire 1/2" in text


def test_other_seeds_stand_beside_with_mean_and_spread():
    other = {**_FIGURES, "seed": 4, "recorded": {"vision: stills": {"auc": 0.7}}}
    text = card.write(_FIGURES, [other])
    assert "with seeds 0, 4" in text
    assert "| vision: stills | 0.800 ± 0.141 | 0.900, 0.700 |" in text
    assert "| composed, fused: AP | 0.800 ± 0.000 | 0.800, 0.800 |" in text
    assert "| alerts on quiet sites | 0.000 ± 0.000 | 0.000, 0.000 |" in text
    # What not all of them measured has no mean.
    assert "| audio: background | 0.100 ±" not in text
