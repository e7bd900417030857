"""From the store's records to what the components draw: plain data, no I/O, no markup.

On an alert's page time runs in seconds from the onset, on the device's own clock; elsewhere it is UTC
milliseconds, which the browser shows in its own zone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Literal
from urllib.parse import urlencode

import msgspec
from msgspec import Meta, Struct

from cloud_sync.dashboard import words
from cloud_sync.review import AlertDetail, AlertRow, EvidenceView, Filters

#: stored: its bytes are here · promised: announced · awaited: may still be announced · absent: will not come
FileState = Literal["stored", "promised", "awaited", "absent"]
Point = tuple[float, float]  #: seconds from the onset, value
MAX_SCORE_POINTS = 1500  #: more than a screen has columns
MAX_TRACE_POINTS = 600
MAX_CHANNELS = 12
_NS_PER_MS = 1_000_000
_NS = 1_000_000_000


class Channel(Struct, frozen=True):
    """One sensor channel of `trace.json`; points are (ms since start, value)."""

    channel: str
    points: Annotated[list[tuple[float, float]], Meta(max_length=100_000)]
    quantity: str = ""
    unit: str = ""


class Trace(Struct, frozen=True):
    """What the sensors said during an event."""

    v: int
    start_ns: int
    channels: Annotated[list[Channel], Meta(max_length=256)]


def decode_trace(data: bytes) -> Trace | None:
    """The sensor trace in a file that a device uploaded; None where the bytes are no such thing."""
    try:
        return msgspec.json.decode(data, type=Trace)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def milliseconds(ns: int) -> int:
    """UTC nanoseconds as the browser counts time."""
    return ns // _NS_PER_MS


def evidence_url(id: str, role: str) -> str:
    """Where the API serves a file of an alert, to those who may see it."""
    return f"/v1/alerts/{id}/evidence/{role}"


def row(alert: AlertRow) -> dict[str, object]:
    """An alert as a line of the list."""
    return {
        "id": alert.id,
        "title": words.title(alert.label),
        "icon": words.icon(alert.label),
        "scene": words.title(alert.scene),
        "device": alert.device,
        "phase": words.phase(alert.phase),
        "at": milliseconds(alert.started_ns),
        "ended": None if alert.ended_ns is None else milliseconds(alert.ended_ns),
        "unsynced": alert.wall_quality != "ntp",
        "peak": alert.peak,
        "threshold": alert.threshold,
        "shares": alert.shares,
        "present": list(alert.present),
        "rule": alert.origin == "rule",
        "calibrating": alert.calibrating,
        "verdict": alert.verdict,
        "thumb": evidence_url(alert.id, "snapshot") if "snapshot" in alert.evidence else None,
    }


def matches(alert: AlertRow, filters: Filters) -> bool:
    """Whether an alert that has just changed still belongs into the list that is shown."""
    named = all(
        wanted is None or wanted == has
        for wanted, has in (
            (filters.site, alert.site),
            (filters.device, alert.device),
            (filters.scene, alert.scene),
            (filters.label, alert.label),
        )
    )
    phase = filters.open is None or filters.open == (alert.ended_ns is None)
    verdict = filters.verdict is None or filters.verdict == (alert.verdict or "none")
    return named and phase and verdict


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """At most `most` points: of each run of neighbours the lowest and the highest stay, so that no peak is lost."""
    if len(points) <= most:
        return list(points)
    run = math.ceil(len(points) / (most // 2))
    kept: list[Point] = []
    for start in range(0, len(points), run):
        part = points[start : start + run]
        kept.extend(sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}))
    return kept


def find(detail: AlertDetail, role: str) -> EvidenceView | None:
    """The file of a role, here or promised."""
    return next((file for file in detail.evidence if file.role == role), None)


def url(detail: AlertDetail, role: str) -> str | None:
    """Address of a file whose bytes are here."""
    file = find(detail, role)
    return evidence_url(detail.row.id, role) if file and file.stored else None


def file_state(detail: AlertDetail, role: str, *, settled: bool) -> FileState:
    """How it stands with a file. `settled`: so long after the end that what was not announced will not come."""
    file = find(detail, role)
    if file is not None:
        return "stored" if file.stored else "promised"
    return "absent" if settled else "awaited"


def why_not(detail: AlertDetail, role: str, *, settled: bool) -> str:
    """What to say in place of a file; nothing if it is here."""
    state = file_state(detail, role, settled=settled)
    return "" if state == "stored" else words.explain_file(role, state, detail.row.present)


def _clock(detail: AlertDetail) -> Callable[[int], float]:
    return lambda ns: (ns - detail.started_monotonic_ns) / _NS


def clip(detail: AlertDetail, *, settled: bool) -> dict[str, object]:
    """Props of the clip player."""
    file = find(detail, "clip")
    return {
        "src": url(detail, "clip"),
        "poster": url(detail, "snapshot"),
        "start": _clock(detail)(file.start_ns) if file else 0.0,
        "waiting": why_not(detail, "clip", settled=settled),
    }


def heat(detail: AlertDetail, *, settled: bool) -> dict[str, object]:
    """Props of the snapshot with its heat map."""
    return {
        "src": url(detail, "snapshot"),
        "map": detail.heat,
        "waiting": why_not(detail, "snapshot", settled=settled),
    }


def shares(detail: AlertDetail) -> dict[str, object]:
    """Props of the chart of shares."""
    return {"shares": detail.row.shares, "present": list(detail.row.present), "full": True}


def tracks(detail: AlertDetail, trace: Trace | None) -> dict[str, object]:
    """Props of the tracks: score, sound picture and sensor channels on one axis."""
    at = _clock(detail)
    step_ns = max(1, detail.step_ms) * _NS_PER_MS
    # The score of a step is known when the step is over: it is drawn there.
    score: list[Point] = [(at((step + 1) * step_ns), value) for step, value in detail.points]
    span = {"from": 0.0, "to": max(at((int(detail.body.get("step", 0)) + 1) * step_ns), 0.0)}
    drawn: list[dict[str, object]] = [
        {
            "kind": "score",
            "title": "Anomaly score",
            "icon": "show_chart",
            "points": thin(score, MAX_SCORE_POINTS),
            "threshold": detail.row.threshold,
        }
    ]
    files = [file for file in detail.evidence if file.role in ("clip", "spectrogram")]
    sound = find(detail, "spectrogram")
    if sound is not None:
        drawn.append(_spectrogram(detail, sound, at))
    channels = _channels(trace, at) if trace else []
    drawn.extend(channels)
    edges = [edge for file in files for edge in (at(file.start_ns), at(file.end_ns))]
    edges += [t for t, _ in (score[:1] + score[-1:])] + [span["from"], span["to"]]
    return {
        "domain": {"from": min(edges), "to": max(*edges, min(edges) + 1.0)},
        "span": span,
        "tracks": drawn,
        "marks": _marks(detail, span["to"]),
        "clip": url(detail, "clip") is not None,
    }


def _spectrogram(detail: AlertDetail, file: EvidenceView, at: Callable[[int], float]) -> dict[str, object]:
    return {
        "kind": "image",
        "title": "Sound",
        "icon": "graphic_eq",
        "unit": "low to high pitch",
        "src": url(detail, "spectrogram"),
        "from": at(file.start_ns),
        "to": at(file.end_ns),
        "note": why_not(detail, "spectrogram", settled=True),
    }


def _channels(trace: Trace, at: Callable[[int], float]) -> list[dict[str, object]]:
    quantities = [channel.quantity for channel in trace.channels]
    found = []
    for channel in trace.channels[:MAX_CHANNELS]:
        points = [
            (at(trace.start_ns) + ms / 1000, value)
            for ms, value in channel.points
            if math.isfinite(ms) and math.isfinite(value)
        ]
        if not points:
            continue
        found.append(
            {
                "kind": "line",
                # The quantity says most; the name only tells two of a kind apart.
                "title": words.title(channel.quantity)
                if channel.quantity and quantities.count(channel.quantity) == 1
                else channel.channel,
                "icon": "thermostat",
                "unit": channel.unit,
                "points": thin(points, MAX_TRACE_POINTS),
                "held": len({value for _, value in points}) <= 2,
            }
        )
    return found


def _marks(detail: AlertDetail, end: float) -> list[dict[str, object]]:
    marks: list[dict[str, object]] = [{"kind": "onset", "label": "onset", "t": 0.0}]
    phase = words.phase(detail.row.phase)
    if phase != "live":
        marks.append({"kind": "end", "label": "end" if phase == "ended" else "cut off", "t": end})
    return marks


def classes(detail: AlertDetail, most: int = 4) -> list[tuple[str, float]]:
    """The likeliest classes with their probabilities, likeliest first."""
    ranked = sorted(detail.row.classes.items(), key=lambda item: -item[1])
    return [(words.title(name), value) for name, value in ranked[:most]]


def dropped(detail: AlertDetail) -> dict[str, int]:
    """Samples lost per source since the device started, where any were."""
    found = detail.best.get("quality", {}).get("dropped", {})
    return {str(name): int(count) for name, count in found.items() if count}


def query(filters: Filters) -> str:
    """The filters as the query part of an address, so that a list can be linked and gone back to."""
    phase = None if filters.open is None else "live" if filters.open else "ended"
    fields = (
        ("label", filters.label),
        ("scene", filters.scene),
        ("phase", phase),
        ("verdict", filters.verdict),
    )
    text = urlencode([(name, value) for name, value in fields if value is not None])
    return f"?{text}" if text else ""
