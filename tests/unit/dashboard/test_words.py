"""What the dashboard says in words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_sync.dashboard import words


def test_the_strongest_modality_is_named_first() -> None:
    said = words.explain_shares(
        {"vision": 0.8, "audio": 2.1, "sensors": -0.5, "none": -3.0}, ("vision", "audio", "sensors")
    )
    assert said == [
        "Sound raised the score the most.",
        "Picture raised it too.",
        "Sensors lowered it.",
        "Knowing nothing, the model would say 5%; with all of this it says 35%.",
    ]


def test_a_missing_modality_is_said_and_its_share_ignored() -> None:
    said = words.explain_shares({"vision": 4.0, "audio": 9.9, "none": -3.0}, ("vision",))
    assert said == [
        "Picture raised the score.",
        "No sound was available then: the score rests on picture.",
        "No sensor reading was available then: the score rests on picture.",
        "Knowing nothing, the model would say 5%; with this alone it says 73%.",
    ]


@pytest.mark.parametrize(
    ("p_value", "said"),
    [
        (1 / 288, "about once in 24 h 00 min (p 0.003)."),
        (1 / 4033, "about once in 14 days (p 0.0002)."),
        (0.5, "about once in 10 min 00 s (p 0.5)."),
        (0.8, "such a score is usual: most five minutes reach it."),
    ],
)
def test_a_p_value_is_told_as_how_often(p_value: float, said: str) -> None:
    assert words.explain_p_value(p_value).endswith(said)


def test_without_a_p_value_nothing_is_said_of_rarity() -> None:
    assert words.explain_p_value(None) == words.explain_p_value(0.0) == ""


def test_a_score_that_nothing_raised_is_not_explained_away() -> None:
    assert words.explain_shares({"vision": 0.01, "audio": -0.3}, ("vision", "audio"))[:3] == [
        "No input raised the score by itself.",
        "Sound lowered it.",
        "Picture hardly mattered.",
    ]


def test_with_nothing_present_nothing_is_claimed() -> None:
    said = words.explain_shares({}, ())
    assert len(said) == 3
    assert all("was available then" in sentence for sentence in said)


@given(
    shares=st.dictionaries(st.sampled_from(["vision", "audio", "sensors", "none"]), st.floats(-1e300, 1e300)),
    present=st.sets(st.sampled_from(["vision", "audio", "sensors"])),
)
def test_any_finite_shares_can_be_explained(shares: dict[str, float], present: set[str]) -> None:
    said = words.explain_shares(shares, present)
    assert all(sentence.endswith(".") for sentence in said)
    assert sum("was available then" in sentence for sentence in said) == 3 - len(present)


@pytest.mark.parametrize(
    ("label", "icon"),
    [("fire", "local_fire_department"), ("glass_break", "window"), ("no-such-thing", "report"), ("", "report")],
)
def test_a_label_has_an_icon(label: str, icon: str) -> None:
    assert words.icon(label) == icon


@pytest.mark.parametrize(
    ("name", "title"), [("glass_break", "Glass break"), ("north-door", "North door"), ("co2", "CO₂"), ("", "")]
)
def test_a_name_as_a_title(name: str, title: str) -> None:
    assert words.title(name) == title


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (123_456, "123 kB"),
        (3_400_000, "3.4 MB"),
        (9 * 10**12, "9000 GB"),
    ],
)
def test_bytes_for_people(count: int, text: str) -> None:
    assert words.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0.0 s"),
        (3.21, "3.2 s"),
        (59, "59 s"),
        (245, "4 min 05 s"),
        (7_800, "2 h 10 min"),
        (3 * 86_400, "3 days"),
    ],
)
def test_lengths_of_time_for_people(seconds: float, text: str) -> None:
    assert words.span(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "0.50"), (0.9768, "0.98"), (0.9812, "0.981"), (0.99997, "> 0.999"), (0.0, "< 0.001"), (1.0, "> 0.999")],
)
def test_a_score_is_never_rounded_to_certainty(value: float, text: str) -> None:
    assert words.score(value) == text


@pytest.mark.parametrize(
    ("share", "text"), [(0.5, "50%"), (0.999, "over 99%"), (0.001, "under 1%"), (0.0, "under 1%")]
)
def test_a_probability_is_never_called_certain(share: float, text: str) -> None:
    assert words.percent(share) == text
