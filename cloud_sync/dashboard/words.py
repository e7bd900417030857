"""What the dashboard says in words: labels, phases, shares. Plain functions of plain values, no I/O.

All of it ends up as text nodes; nothing here builds markup.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from edge_agent.contract.event import MODALITIES

MODALITY_NAMES = {"vision": "Picture", "audio": "Sound", "sensors": "Sensors"}

#: Material icon of a label; the first word of the label that is known decides.
_ICONS = {
    "intrusion": "directions_run",
    "person": "directions_run",
    "fire": "local_fire_department",
    "flame": "local_fire_department",
    "smoke": "cloud",
    "glass": "window",
    "gunshot": "crisis_alert",
    "shot": "crisis_alert",
    "explosion": "flare",
    "fight": "sports_mma",
    "violence": "sports_mma",
    "siren": "campaign",
    "alarm": "campaign",
    "threat": "campaign",
    "scream": "record_voice_over",
    "sound": "hearing",
    "door": "sensor_door",
    "leak": "water_drop",
    "vibration": "vibration",
    "machine": "precision_manufacturing",
    "sensor": "thermostat",
    "anomaly": "troubleshoot",
}

_SPELT = {"co2": "CO₂", "pm10": "PM10", "voc": "VOC"}

#: A share smaller than this (logit) is said to have hardly mattered: it moves no probability by over 2.5 %.
_NEGLIGIBLE = 0.1


def title(name: str) -> str:
    """A label, scene or source name as a title: `glass_break` → `Glass break`."""
    text = name.replace("_", " ").replace("-", " ").strip()
    return _SPELT.get(text, text[:1].upper() + text[1:])


def icon(label: str) -> str:
    """Name of the Material icon that goes with a label; `report` for one that is not known."""
    words = label.lower().replace("-", "_").split("_")
    return next((_ICONS[word] for word in words if word in _ICONS), "report")


def phase(name: str) -> str:
    """`new` and `update` are `live` to a person; `end` is `ended`."""
    return {"new": "live", "update": "live", "end": "ended"}.get(name, name)


def probability(logit: float) -> float:
    """The logistic function, safe for any finite logit."""
    return 1 / (1 + math.exp(-logit)) if logit >= 0 else 1 - 1 / (1 + math.exp(logit))


def percent(share: float) -> str:
    """A probability for people; nothing is called certain."""
    if share > 0.995:
        return "over 99%"
    return "under 1%" if share < 0.005 else f"{share:.0%}"


def score(value: float) -> str:
    """A score; near 0 and 1 with a third digit, where two would call it certain."""
    if value > 0.9995:
        return "> 0.999"
    if value < 0.0005:
        return "< 0.001"
    return f"{value:.3f}" if value > 0.98 or value < 0.02 else f"{value:.2f}"


def _join(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _list(modalities: Sequence[str]) -> str:
    """Modalities at the start of a sentence: `Sensors and sound`."""
    return _join([MODALITY_NAMES[m].lower() for m in modalities]).capitalize()


def explain_shares(shares: Mapping[str, float], present: Collection[str]) -> list[str]:
    """Sentences that say what raised and lowered the score, strongest first, and what was missing.

    `shares` are logits per modality with `none` as the baseline; `present` names the modalities that were there.
    """
    there = [m for m in MODALITIES if m in present]
    sentences = _effects({m: shares.get(m, 0.0) for m in there})
    sentences += [_missing(m, there) for m in MODALITIES if m not in present]
    if there:
        none = shares.get("none", 0.0)
        full = none + sum(shares.get(m, 0.0) for m in there)
        sentences.append(
            f"Knowing nothing, the model would say {percent(probability(none))}; "
            f"with {'all of this' if len(there) > 1 else 'this alone'} it says {percent(probability(full))}."
        )
    return sentences


#: A p-value is told of five minutes (`edge_agent.contract.event.Event.p_value`).
_BLOCK_S = 300


def explain_p_value(p_value: float | None) -> str:
    """How rare such a score is in the scene's normal life; nothing where that is not known."""
    if p_value is None or p_value <= 0:
        return ""
    if p_value > 0.5:
        return "By this scene's own normal hours such a score is usual: most five minutes reach it."
    often = span(_BLOCK_S / p_value)
    return f"By this scene's own normal hours, a score this high comes about once in {often} (p {p_value:.1g})."


def _effects(shares: Mapping[str, float]) -> list[str]:
    ranked = sorted(shares, key=lambda m: -abs(shares[m]))
    raised = [m for m in ranked if shares[m] >= _NEGLIGIBLE]
    lowered = [m for m in ranked if shares[m] <= -_NEGLIGIBLE]
    little = [m for m in ranked if abs(shares[m]) < _NEGLIGIBLE]
    sentences = []
    if raised:
        first = MODALITY_NAMES[raised[0]]
        sentences.append(f"{first} raised the score the most." if len(shares) > 1 else f"{first} raised the score.")
        if raised[1:]:
            sentences.append(f"{_list(raised[1:])} raised it too.")
    elif shares:
        sentences.append("No input raised the score by itself.")
    if lowered:
        sentences.append(f"{_list(lowered)} lowered it.")
    if little and (raised or lowered):
        sentences.append(f"{_list(little)} hardly mattered.")
    return sentences


def _missing(modality: str, there: Sequence[str]) -> str:
    what = {"vision": "No picture", "audio": "No sound", "sensors": "No sensor reading"}[modality]
    rest = _join([MODALITY_NAMES[m].lower() for m in there]) if there else "nothing but its own memory"
    return f"{what} was available then: the score rests on {rest}."


def explain_phase(name: str) -> str:
    """Why an alert looks unfinished, or nothing where there is nothing to explain."""
    if name == "aborted":
        return (
            "This alert was cut off: the device restarted while it was open, so nobody saw it end. "
            "Scores, shares and evidence are what the device had kept until then."
        )
    return ""


CALIBRATING = (
    "This scene is still calibrating: the score was held against the model's general threshold, not one learned "
    "from this scene's own normal hours. Expect more false alarms until it has."
)
RULE = "A rule opened this alert, not the model: motion in an armed area counts whatever the score says."
UNSYNCED = (
    "The device's clock was not synchronised. Durations and order are exact; times of day may be off by as much "
    "as the clock was."
)
#: What people call a file of each role, in the order in which files are listed.
ROLES = {"clip": "Clip", "snapshot": "Snapshot", "trace": "Sensor trace", "spectrogram": "Sound picture"}
_RESTS_ON = {"clip": ("vision", "audio"), "snapshot": ("vision",), "trace": ("sensors",), "spectrogram": ("audio",)}
_NOTHING_FROM = {"vision": "no picture", "audio": "no sound", "sensors": "no sensor reading"}


def explain_file(role: str, state: str, present: Collection[str]) -> str:
    """Why there is nothing to see of a role yet, or ever; `state` is awaited, promised or absent."""
    name = ROLES[role].lower()
    if state == "promised":
        return f"The {name} is on its way: the device has it and is sending it."
    if state == "awaited":
        return f"The {name} is on its way: the device makes it once the alert has ended."
    needed = _RESTS_ON[role]
    if not any(modality in present for modality in needed):
        return f"There is no {name}: {' and '.join(_NOTHING_FROM[m] for m in needed)} was available."
    return f"No {name} came with this alert."


def size(count: int) -> str:
    """Bytes for people, decimal: `3.4 MB`."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError("unreachable: the loop returns at GB")


def span(seconds: float) -> str:
    """A length of time for people: `3.2 s`, `4 min 05 s`, `2 h 10 min`, `3 days`."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} days"
