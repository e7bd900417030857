"""From the store's records to what the components draw: plain data, no I/O, no markup.

On an alert's page time runs in seconds from the onset, on the device's own clock; elsewhere it is UTC
milliseconds, which the browser shows in its own zone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated
from urllib.parse import urlencode

import msgspec
from msgspec import Meta, Struct

from cloud_sync.dashboard import words
from cloud_sync.review import AlertDetail, AlertRow, EvidenceView, Filters

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
    run = math.ceil(2 * len(points) / most)
    kept: list[Point] = []
    for start in range(0, len(points), run):
        part = points[start : start + run]
        kept.extend(sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}))
    return kept


def _file(detail: AlertDetail, role: str) -> EvidenceView | None:
    return next((file for file in detail.evidence if file.role == role), None)


def _clock(detail: AlertDetail) -> Callable[[int], float]:
    return lambda ns: (ns - detail.started_monotonic_ns) / _NS


def clip(detail: AlertDetail) -> dict[str, object]:
    """Props of the clip player."""
    file = _file(detail, "clip")
    here = file is not None and file.stored
    snapshot = _file(detail, "snapshot")
    return {
        "src": evidence_url(detail.row.id, "clip") if here else None,
        "poster": evidence_url(detail.row.id, "snapshot") if snapshot and snapshot.stored else None,
        "start": _clock(detail)(file.start_ns) if file else 0.0,
        "waiting": words.WAITING["clip"],
    }


def heat(detail: AlertDetail) -> dict[str, object]:
    """Props of the snapshot with its heat map."""
    file = _file(detail, "snapshot")
    return {
        "src": evidence_url(detail.row.id, "snapshot") if file and file.stored else None,
        "map": detail.heat,
        "waiting": words.WAITING["snapshot"],
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
    sound = _file(detail, "spectrogram")
    if sound is not None:
        drawn.append(_spectrogram(detail.row.id, sound, at))
    channels = _channels(trace, at) if trace else []
    drawn.extend(channels)
    edges = [edge for file in files for edge in (at(file.start_ns), at(file.end_ns))]
    edges += [t for t, _ in (score[:1] + score[-1:])] + [span["from"], span["to"]]
    clip_file = _file(detail, "clip")
    return {
        "domain": {"from": min(edges), "to": max(*edges, min(edges) + 1.0)},
        "span": span,
        "tracks": drawn,
        "marks": _marks(detail, span["to"]),
        "clip": bool(clip_file and clip_file.stored),
    }


def _spectrogram(id: str, file: EvidenceView, at: Callable[[int], float]) -> dict[str, object]:
    return {
        "kind": "image",
        "title": "Sound",
        "icon": "graphic_eq",
        "unit": "low to high pitch",
        "src": evidence_url(id, "spectrogram") if file.stored else None,
        "from": at(file.start_ns),
        "to": at(file.end_ns),
        "note": words.WAITING["spectrogram"],
    }


def _channels(trace: Trace, at: Callable[[int], float]) -> list[dict[str, object]]:
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
                "title": words.title(channel.channel),
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
