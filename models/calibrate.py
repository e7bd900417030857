"""Thresholds, chosen on simulated sites that trained nothing: quiet ones must stay quiet, episodes must be seen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.event import MODALITIES
from edge_agent.contract.manifest import Thresholds
from edge_agent.core.records import F32, Engine
from edge_agent.simulate import Site, demo
from models.config import CLASSES, Preset
from models.data import site
from models.progress import tracked

_ON_STEPS, _OFF_STEPS = 2, 4
#: Logit units between the loudest quiet moment and the threshold, and between on and off.
_MARGIN, _HYSTERESIS = 0.7, 1.5
_LOWEST, _HIGHEST = 0.0, 5.0
_CLASS = 0.5
_DEMO_SEEDS = (4000, 4001)
_INPUT = {"vision": "frames", "audio": "pcm", "sensors": "readings"}


def choose(engine: Engine, preset: Preset) -> tuple[Thresholds, dict[str, Any]]:
    """Thresholds above everything that quiet sites sustain, and what of the demo episodes they then catch."""
    quiet = [
        _sustained([logit for logit, _ in scored(engine, place, preset, preset.quiet_s)])
        for place in tracked(
            "quiet sites",
            [site.calm(seed, preset, preset.quiet_s) for seed in site.QUIET_SEEDS[: preset.quiet_sites]],
        )
    ]
    highest = float(np.max(np.concatenate(quiet)))
    on = float(np.clip(highest + _MARGIN, _LOWEST, _HIGHEST))
    caught = _caught(engine, preset, on)
    thresholds = Thresholds(
        on=_probability(on),
        off=_probability(on - _HYSTERESIS),
        on_steps=_ON_STEPS,
        off_steps=_OFF_STEPS,
        classes=dict.fromkeys(CLASSES, _CLASS),
    )
    found = {
        "on": thresholds.on,
        "off": thresholds.off,
        "quiet_highest": _probability(highest),
        "quiet_sites": [_probability(float(part.max())) for part in quiet],
        "quiet_s": preset.quiet_s * preset.quiet_sites,
        "quiet_alerts": int(sum(_alerts(part, on) for part in quiet)),
        "demo_caught": caught,
    }
    return thresholds, found


def scored(engine: Engine, place: Site, preset: Preset, seconds: float) -> Iterator[tuple[float, F32]]:
    """(fused logit, class logits) of every step of a site."""
    history: dict[str, list[F32]] = {name: [] for name in MODALITIES}
    mask = np.zeros((preset.history, len(MODALITIES)), np.float32)
    step_s = preset.step_ms / 1000
    for moment in site.moments(place, preset, 1.0, int((seconds - 1.0) / step_s)):
        inputs: dict[str, NDArray[Any]] = {"frames": moment.frames, "pcm": moment.pcm, "readings": moment.readings}
        mask = np.concatenate([mask[1:], np.ones((1, len(MODALITIES)), np.float32)])
        packed: dict[str, NDArray[Any]] = {"mask": mask}
        for name in MODALITIES:
            embedding = engine.run(name, [{_INPUT[name]: inputs[_INPUT[name]]}])[0]["embedding"]
            history[name] = [*history[name], embedding][-preset.history :]
            empty = [np.zeros_like(embedding)] * (preset.history - len(history[name]))
            packed[name] = np.stack([*empty, *history[name]])
        result = engine.run("fusion", [packed])[0]
        yield float(result["logit"]), result["classes"]


def _sustained(logits: list[float]) -> F32:
    """The highest level that each step and its predecessors hold for `_ON_STEPS` steps."""
    values = np.asarray(logits, np.float32)
    return np.min([values[i : len(values) - _ON_STEPS + 1 + i] for i in range(_ON_STEPS)], axis=0)  # type: ignore[no-any-return]


def _alerts(sustained: F32, on: float) -> int:
    above = sustained >= on
    return int((above[1:] & ~above[:-1]).sum() + above[0])


def _caught(engine: Engine, preset: Preset, on: float) -> dict[str, str]:
    """Per label of the demo: how many of its episodes reach the threshold while they last."""
    seen: dict[str, list[bool]] = defaultdict(list)
    seconds = min(float(preset.quiet_s), 420.0)
    spec = preset.vision_spec
    for seed in tracked("demo sites", _DEMO_SEEDS[: max(preset.quiet_sites - 1, 1)]):
        place = Site(
            seed, demo(seed, seconds), width=spec.width, height=spec.height, rate_hz=preset.audio_spec.rate_hz
        )
        level = _sustained([logit for logit, _ in scored(engine, place, preset, seconds)])
        times = 1.0 + np.arange(len(level)) * preset.step_ms / 1000
        for episode in place.episodes:
            during = level[(times >= episode.start_s) & (times <= episode.end_s + 2.0)]
            if len(during):
                seen[episode.label].append(bool((during >= on).any()))
    return {label: f"{sum(hits)}/{len(hits)}" for label, hits in sorted(seen.items())}


def _probability(logit: float) -> float:
    return float(1 / (1 + np.exp(-logit)))
