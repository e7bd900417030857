"""From records to what is drawn."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_sync.dashboard import frame, view
from cloud_sync.review import AlertDetail, AlertRow, EvidenceView, Filters

S = 1_000_000_000
ONSET = 1000  #: step; at 500 ms: 500 s on the device's clock
ROW = AlertRow(
    id="01a203ea-3a7f-779e-b8b4-5158c8f72a81",
    change=7,
    cursor="1.x",
    site="harbour",
    device="edge-1",
    scene="loading-dock",
    label="glass_break",
    phase="end",
    revision=3,
    started_ns=1_700_000_000 * S,
    ended_ns=1_700_000_004 * S,
    wall_quality="ntp",
    score=0.2,
    peak=0.97,
    threshold=0.6,
    origin="model",
    rule=None,
    calibrating=False,
    bundle="b" * 64,
    shares={"vision": 1.0, "audio": 2.0, "sensors": 0.0, "none": -3.0},
    classes={"glass_break": 0.9, "fire": 0.1},
    present=("vision", "audio"),
    verdict=None,
    evidence=("clip",),
)


def detail(**more: Any) -> AlertDetail:
    given = {
        "row": ROW,
        "started_monotonic_ns": 500 * S,
        "step_ms": 500,
        "onset_step": ONSET,
        "body": {"step": ONSET + 7},
        "best": {},
        "heat": None,
        "points": ((ONSET - 2, 0.1), (ONSET, 0.7), (ONSET + 7, 0.3)),
        "evidence": (),
        "verdicts": (),
        "bundle_name": "",
        **more,
    }
    return AlertDetail(**given)


def file(role: str, start_s: float, end_s: float, stored: bool = True) -> EvidenceView:
    return EvidenceView(role, "a" * 64, 10, "video/mp4", int(start_s * S), int(end_s * S), stored)


def test_scores_are_drawn_when_their_step_is_over() -> None:
    drawn = view.tracks(detail(), None)
    assert drawn["tracks"][0]["points"] == [(-0.5, 0.1), (0.5, 0.7), (4.0, 0.3)]  # type: ignore[index]
    assert drawn["span"] == {"from": 0.0, "to": 4.0}
    assert drawn["domain"] == {"from": -0.5, "to": 4.0}


def test_clip_scores_and_sensors_share_one_clock() -> None:
    trace = view.decode_trace(
        json.dumps(
            {
                "v": 1,
                "start_ns": 495 * S,
                "channels": [{"channel": "co2", "unit": "ppm", "points": [[0, 400], [5000, 900]]}],
            }
        ).encode()
    )
    drawn = view.tracks(detail(evidence=(file("clip", 495, 508), file("spectrogram", 495, 508))), trace)
    assert drawn["domain"] == {"from": -5.0, "to": 8.0}
    score, sound, sensor = drawn["tracks"]  # type: ignore[misc]
    assert (sound["from"], sound["to"]) == (-5.0, 8.0)
    assert sensor["points"] == [(-5.0, 400.0), (0.0, 900.0)]
    assert view.clip(detail(evidence=(file("clip", 495, 508),)), settled=False)["start"] == -5.0
    assert drawn["clip"] is True
    assert score["threshold"] == 0.6


def test_a_file_that_is_not_here_has_no_address() -> None:
    promised = detail(evidence=(file("clip", 495, 508, stored=False), file("snapshot", 500, 500, stored=False)))
    assert view.clip(promised, settled=False)["src"] is None
    assert view.heat(promised, settled=False)["src"] is None
    assert view.tracks(promised, None)["clip"] is False


@pytest.mark.parametrize(
    ("role", "settled", "said"),
    [
        ("clip", False, "The clip is on its way: the device has it and is sending it."),
        ("clip", True, "The clip is on its way: the device has it and is sending it."),
        ("snapshot", False, "The snapshot is on its way: the device makes it once the alert has ended."),
        ("snapshot", True, "No snapshot came with this alert."),
        ("trace", True, "There is no sensor trace: no sensor reading was available."),
    ],
)
def test_a_file_that_is_not_here_is_explained(role: str, settled: bool, said: str) -> None:
    promised = detail(evidence=(file("clip", 495, 508, stored=False),))
    assert view.why_not(promised, role, settled=settled) == said


def test_channels_are_named_by_what_they_measure_unless_two_measure_the_same() -> None:
    channels = [
        view.Channel("air/a", [(0.0, 1.0)], "temperature", "°C"),
        view.Channel("roof/b", [(0.0, 1.0)], "co2", "ppm"),
        view.Channel("air/c", [(0.0, 1.0)], "temperature", "°C"),
        view.Channel("air/d", [(0.0, 1.0)]),
    ]
    drawn = view.tracks(detail(), view.Trace(1, 500 * S, channels))
    titles = [track["title"] for track in drawn["tracks"]]  # type: ignore[attr-defined]
    assert titles[1:] == ["air/a", "CO₂", "air/c", "air/d"]


def test_an_event_without_scores_or_files_can_be_drawn() -> None:
    drawn = view.tracks(detail(points=(), body={}, row=replace(ROW, phase="new", ended_ns=None)), None)
    assert drawn["domain"]["to"] > drawn["domain"]["from"]  # type: ignore[index]
    assert [mark["label"] for mark in drawn["marks"]] == ["onset"]  # type: ignore[attr-defined]


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(-1e6, 1e6)), max_size=400), st.integers(4, 100))
def test_thinning_keeps_order_and_extremes(points: list[tuple[float, float]], most: int) -> None:
    points.sort()
    thin = view.thin(points, most)
    assert len(thin) <= max(most, 2)
    assert thin == sorted(thin)
    if points:
        assert max(value for _, value in thin) == max(value for _, value in points)
        assert min(value for _, value in thin) == min(value for _, value in points)


@pytest.mark.parametrize("data", [b"", b"\xff", b"{}", b"[1]", b'{"v":1,"start_ns":"x","channels":[]}'])
def test_a_file_that_is_no_trace_is_none(data: bytes) -> None:
    assert view.decode_trace(data) is None


def test_at_most_twelve_channels_are_drawn() -> None:
    channels = [view.Channel(f"c{number}", [(0.0, 1.0)]) for number in range(40)]
    drawn = view.tracks(detail(), view.Trace(1, 500 * S, channels))
    assert len(drawn["tracks"]) == 1 + view.MAX_CHANNELS  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("filters", "belongs"),
    [
        (Filters(), True),
        (Filters(label="glass_break", scene="loading-dock", device="edge-1", site="harbour"), True),
        (Filters(label="fire"), False),
        (Filters(open=True), False),
        (Filters(open=False), True),
        (Filters(verdict="none"), True),
        (Filters(verdict="real"), False),
    ],
)
def test_a_change_is_held_against_the_filters(filters: Filters, belongs: bool) -> None:
    assert view.matches(ROW, filters) is belongs


def test_filters_travel_in_the_address() -> None:
    filters = Filters(label="a&b", scene="x y", open=False, verdict="none")
    assert view.query(filters) == "?label=a%26b&scene=x+y&phase=ended&verdict=none"
    assert view.query(Filters()) == ""


@pytest.mark.parametrize(
    ("wanted", "address"),
    [
        ("/devices", "/devices"),
        ("/alert/x?label=fire", "/alert/x?label=fire"),
        (None, "/"),
        ("", "/"),
        ("https://example.org", "/"),
        ("//example.org", "/"),
        ("/\\example.org", "/"),
        ("/\n/example.org", "/"),
        ("javascript:alert(1)", "/"),
    ],
)
def test_a_login_leads_to_this_site_only(wanted: str | None, address: str) -> None:
    assert frame.safe_next(wanted) == address
