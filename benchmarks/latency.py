"""How long after something was seen or heard does its event stand on disk?

The real `edge-agent run` on a simulated site in real time, with an identity (so with the outbox) and no broker: what
counts is the row, not the network. The agent logs an event once its row is committed, and the row holds the monotonic
time of the window it is about; the two give the delay of each message, to the log's millisecond. Light and sound wait
for the end of their window first, up to one step. The limit is what the design promises: `step_ms + lateness_ms`.

How long the model takes to be sure (two windows over the threshold, as it ships) is not part of it.
"""

from __future__ import annotations

import datetime
import itertools
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import site
from benchmarks.result import Findings
from edge_agent.app import SHIPPED
from edge_agent.contract.event import Event, Message
from tests.parts import agent as parts
from tests.parts.agent import AgentProcess

#: What the shipped model knows, briefly and again and again: each gives `new`, some `update` and `end`.
LABELS = ("explosion", "fire", "gunshot", "siren")
_EVERY_S, _LASTS_S, _FIRST_S = 9.0, 5.0, 10.0
_MODALITIES = {"siren": ("vision", "audio")}
_ALL = ("vision", "audio", "sensors")
_SCENES = 4
_LATENESS_MS = 500.0
_PHASES = ("NEW ", "UPDATE ", "END ")
_CAPTURES = 10  #: moments of a window that light may fall in, evenly spread


def measure(options: site.Options, findings: Findings) -> None:
    seconds = max(2 * options.seconds, 4 * _EVERY_S)
    findings.note(f"{seconds:g} s in each of {options.repeat} rounds, {_SCENES} scenes on one simulated site")
    for _ in range(options.repeat):
        with tempfile.TemporaryDirectory(prefix="tectum-bench-") as folder:
            _round(Path(folder), seconds, findings)


def _round(folder: Path, seconds: float, findings: Findings) -> None:
    with AgentProcess(_configured(folder, seconds)) as process:
        site.until_scoring(process, _SCENES)
        before = site.metrics(process)
        site.sleep_until(time.monotonic() + seconds)
        after = site.metrics(process)
        process.stop(signal.SIGTERM)
        delays = _delays_ms(process, parts.messages(process.data))
    step_ms = delays[0][0].step_ms
    ended = [delay for _, delay in delays]
    findings.add_spread("row", ended, "ms", "end of the window to its event's row on disk")
    captured = [delay + step_ms * i / _CAPTURES for delay in ended for i in range(_CAPTURES + 1)]
    findings.add_spread("capture", captured, "ms", "capture to the row, over all moments of the window")
    worst = max(captured) / (step_ms + _LATENESS_MS)
    findings.add("of_limit", worst, "x", f"worst capture to row, of the promised {step_ms + _LATENESS_MS:g} ms")
    _add_windows(before, after, findings)


def _add_windows(before: dict[str, float], after: dict[str, float], findings: Findings) -> None:
    """From the agent's histogram, over every window, with an event or without."""

    def grown(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    count = grown("tectum_score_delay_seconds_count")
    findings.add(
        "score_mean", 1e3 * grown("tectum_score_delay_seconds_sum") / count, "ms", "end of a window to scores"
    )
    for limit in ("0.25", "0.5"):
        share = 100 * (1 - grown(f'tectum_score_delay_seconds_bucket{{le="{limit}"}}') / count)
        name = f"score_over_{int(float(limit) * 1e3)}"
        findings.add(name, share, "% of windows", f"scored later than {float(limit) * 1e3:g} ms after their end")


def _delays_ms(process: AgentProcess, messages: list[Message]) -> list[tuple[Event, float]]:
    """Of each event message, in order: from the end of its window until the log said that it is on disk."""
    lines = [entry for entry in process.log if str(entry["message"]).startswith(_PHASES)]
    rows = [message for message in messages if isinstance(message.body, Event)]
    # What the stop ended is not of a window that has just passed, and its lines are the last.
    live = [(line, row) for line, row in zip(lines, rows, strict=False) if not _stopping(process, line)]
    if not live:
        raise RuntimeError(f"no event in the whole run; the agent said {[entry['message'] for entry in lines][-3:]}")
    return [(row.body, _delay_ms(line, row)) for line, row in live if isinstance(row.body, Event)]


def _delay_ms(line: dict[str, Any], row: Message) -> float:
    event = row.body
    assert isinstance(event, Event)
    if event.phase.upper() != str(line["message"]).split()[0]:
        raise RuntimeError(f"log and outbox differ: {line['message']!r} against {event.phase} of {event.scene}")
    logged_ns = datetime.datetime.fromisoformat(line["time"]).timestamp() * 1e9
    end_ns = (event.step + 1) * event.step_ms * 1_000_000
    return (logged_ns - (row.wall_ns - row.monotonic_ns) - end_ns) / 1e6


def _stopping(process: AgentProcess, line: dict[str, Any]) -> bool:
    stop = next((entry for entry in process.log if str(entry["message"]).startswith("stopping")), None)
    return stop is not None and line["time"] >= stop["time"]


def _configured(folder: Path, seconds: float) -> Path:
    starts = itertools.takewhile(lambda at: at < seconds + 60, itertools.count(_FIRST_S, _EVERY_S))
    episodes = [
        {"label": label, "start_s": at, "end_s": at + _LASTS_S, "modalities": _MODALITIES.get(label, _ALL)}
        for at, label in zip(starts, itertools.cycle(LABELS))
    ]
    sources, scenes = site.simulated(episodes)
    scenes = [scenes[0] | {"name": f"hall{i}", "cooldown_s": 0} for i in range(_SCENES)]
    return parts.site(
        folder,
        SHIPPED,
        sources=sources,
        scenes=scenes,
        evidence={"enabled": False},
        log={"level": "debug", "format": "json"},
        model={"bundle": str(SHIPPED), "lateness_ms": int(_LATENESS_MS)},
    )
