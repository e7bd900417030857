"""Scores that are probabilities, and thresholds, both from data that trained nothing.

Temperatures (Guo et al., ICML 2017) are fitted on held-out windows, one for each output of the head, and folded into
the exported graph: the device's score is calibrated wherever the graph runs. A positive factor changes no ranking.
Calibrated is meant as in those windows, of which about half are wrong; at a quiet site far fewer are, which is what
the scene's own blocks are for (`edge_agent.core.budget`).

Thresholds are chosen on simulated sites, played through the device's own pipeline, so what is counted is what would
be sent: quiet ones must stay quiet, episodes must be seen. A class names an event where it is right often enough.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edge_agent.contract.event import MODALITIES
from edge_agent.contract.manifest import Thresholds
from edge_agent.core.records import Model
from edge_agent.engine import compile_graphs
from edge_agent.simulate import Site, demo, quiet
from models import bundle
from models.config import CLASSES, Preset
from models.data.compose import Composer, Windows
from models.data.site import QUIET_SEEDS
from models.evaluation.fieldtest import sustained
from models.evaluation.sessions import BELONGS_S, Played, play, simulated
from models.metrics import expected_error
from models.network.fusion import FusionHead
from models.processes import side_by_side
from models.training.train import fusion_batch

_ON_STEPS, _OFF_STEPS = 2, 4
#: Logit units between the loudest quiet moment and the threshold, and between on and off.
_MARGIN, _HYSTERESIS = 0.7, 1.5
_LOWEST, _HIGHEST = 0.0, 5.0
_CLASS = 0.5
#: A class names an event from the lowest of these probabilities on at which so many of the named windows are right;
#: fewer windows than that say nothing.
_CLASS_LEVELS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_CLASS_PRECISION, _CLASS_FEWEST = 0.9, 20
#: Held-out windows that temperatures are fitted on, and as many that they are judged on.
_WINDOWS = 4000
#: Bounds of a scale (one over the temperature).
_SCALES = (0.05, 20.0)
#: A retraining from verdicts makes a scale larger or smaller by this at most.
_REFIT = (0.5, 2.0)
_DEMO_SEEDS = (4000, 4001)


def scale(logit: NDArray[Any], truth: NDArray[Any]) -> float:
    """One over the temperature that makes sigmoid(scale * logit) most likely, for truths 0 or 1; 1 where there is
    only one kind of truth. The likelihood is concave in the scale: golden-section search, to 1e-4."""
    if not (truth > 0.5).any() or not (truth <= 0.5).any():
        return 1.0
    signed = np.where(truth > 0.5, logit, -logit).astype(np.float64)

    def loss(exponent: float) -> float:
        return float(np.logaddexp(0.0, -np.exp(exponent) * signed).mean())

    low, high = (float(np.log(bound)) for bound in _SCALES)
    golden = (np.sqrt(5.0) - 1) / 2
    while high - low > 1e-4:
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if loss(left) <= loss(right) else (left, high)
    return float(np.exp((low + high) / 2))


def error(logit: NDArray[Any], truth: NDArray[Any]) -> float:
    """Expected calibration error of logits."""
    return expected_error(1 / (1 + np.exp(-np.clip(logit.astype(np.float64), -60, 60))), truth)


def likelihood_loss(logit: NDArray[Any], truth: NDArray[Any]) -> float:
    """Mean negative log likelihood, nats."""
    return float(np.logaddexp(0.0, np.where(truth > 0.5, -logit, logit).astype(np.float64)).mean())


def temperatures(head: FusionHead, composer: Composer, seed: int) -> dict[str, Any]:
    """Fit the head's scales on held-out windows and set them; how far off each output is on others, before and after.

    `composer` draws from a split that trained nothing. A modality that is missing or unclear says nothing.
    """
    fitted, judged = (composer.draw(np.random.default_rng([seed, key]), _WINDOWS) for key in (51, 52))
    for buffer in head.scale.buffers():
        buffer.fill_(1.0)
    found = {name: scale(*pair) for name, pair in outputs(head, fitted).items()}
    before = outputs(head, judged)
    _set_scales(head, found)
    after = outputs(head, judged)
    return {
        name: {
            "temperature": round(1 / found[name], 4),
            "windows": len(truth),
            "ece_before": round(error(before[name][0], truth), 4),
            "ece": round(error(logit, truth), 4),
            "nll_before": round(likelihood_loss(before[name][0], truth), 4),
            "nll": round(likelihood_loss(logit, truth), 4),
        }
        for name, (logit, truth) in after.items()
    }


def refit(head: FusionHead, start: FusionHead, windows: Windows) -> dict[str, dict[str, float]]:
    """Temperatures of a head that went on learning from `start`, whose own they were; set, and told before and after.

    `windows` trained neither. They may be few, so only the change is taken from them: each temperature is multiplied
    by the ratio of what is likeliest for the two heads on the same windows, within `_REFIT`.
    """
    known, learned = outputs(start, windows), outputs(head, windows)
    before = _scales(head)
    ratio = {name: float(np.clip(scale(*learned[name]) / scale(*known[name]), *_REFIT)) for name in before}
    _set_scales(head, {name: before[name] * ratio[name] for name in before})
    after = outputs(head, windows)
    return {
        name: {
            "before": round(1 / before[name], 4),
            "after": round(1 / (before[name] * ratio[name]), 4),
            "nll_before": round(likelihood_loss(*learned[name]), 4),
            "nll": round(likelihood_loss(*after[name]), 4),
        }
        for name in before
    }


def _scales(head: FusionHead) -> dict[str, float]:
    parts = (head.scale.logit.reshape(1), head.scale.modalities, head.scale.classes)
    return dict(zip(("score", *MODALITIES, *CLASSES), torch.cat(parts).tolist(), strict=True))


def _set_scales(head: FusionHead, found: Mapping[str, float]) -> None:
    head.scale.logit.fill_(found["score"])
    head.scale.classes.copy_(torch.tensor([found[name] for name in CLASSES]))
    head.scale.modalities.copy_(torch.tensor([found[name] for name in MODALITIES]))


def outputs(head: FusionHead, windows: Windows) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """(logits, truths) of the fused score, of each modality's own and of each class, where the truth is known."""
    parts = fusion_batch(windows)
    with torch.inference_mode():
        logit, classes, own, _ = (tensor.numpy() for tensor in head(*parts.embeddings, parts.mask))
    known = windows.wrong >= 0
    found = {"score": (logit[known], windows.wrong[known])}
    for index, modality in enumerate(MODALITIES):
        said = windows.own[:, index] >= 0
        found[modality] = (own[said, index], windows.own[said, index])
    for index, name in enumerate(CLASSES):
        found[name] = (classes[:, index], windows.classes[:, index])
    return found


def class_levels(head: FusionHead, composer: Composer, seed: int) -> dict[str, float]:
    """From which probability on each class names an event: the lowest at which 9 of 10 named windows are right."""
    found = outputs(head, composer.draw(np.random.default_rng([seed, 53]), _WINDOWS))
    levels = {}
    for name in CLASSES:
        logit, truth = found[name]
        probability = 1 / (1 + np.exp(-np.clip(logit, -60, 60)))
        named = [truth[probability >= level] for level in _CLASS_LEVELS]
        good = [
            level
            for level, right in zip(_CLASS_LEVELS, named, strict=True)
            if len(right) >= _CLASS_FEWEST and right.mean() >= _CLASS_PRECISION
        ]
        levels[name] = min(good, default=_CLASS)
    return levels


def choose(
    graphs: Mapping[str, bytes], preset: Preset, classes: Mapping[str, float] | None = None
) -> tuple[Thresholds, dict[str, Any]]:
    """Thresholds above everything that quiet sites sustain, and what of demo episodes they then catch."""
    seeds = QUIET_SEEDS[: preset.quiet_sites]
    held = side_by_side(_calm, [_Shift(graphs, preset, bundle.UNCHOSEN, seed) for seed in seeds])
    highest = max(float(levels.max()) for levels in held)
    on = float(np.clip(highest + _MARGIN, _LOWEST, _HIGHEST))
    thresholds = Thresholds(
        on=_probability(on),
        off=_probability(on - _HYSTERESIS),
        on_steps=_ON_STEPS,
        off_steps=_OFF_STEPS,
        classes={**dict.fromkeys(CLASSES, _CLASS), **(classes or {})},
    )
    shifts = [_Shift(graphs, preset, thresholds, seed) for seed in _DEMO_SEEDS[: max(preset.quiet_sites - 1, 1)]]
    caught = side_by_side(_caught, shifts)
    found = {
        "on": thresholds.on,
        "off": thresholds.off,
        "quiet_highest": _probability(highest),
        "quiet_s": preset.quiet_s * preset.quiet_sites,
        "quiet_alerts": int(sum((levels >= on).any() for levels in held)),
        **_told(caught),
    }
    return thresholds, found


@dataclass(frozen=True)
class _Shift:
    """Some time at one simulated site under given thresholds: what one process plays."""

    graphs: Mapping[str, bytes]
    preset: Preset
    thresholds: Thresholds
    seed: int

    def play(self, *, calm: bool, seconds: float) -> Played:
        made = bundle.manifest(self.preset, self.thresholds, 0, {}, bundle.now())
        model = Model(made, "0" * 64, compile_graphs(self.graphs, made))
        return play(model, simulated(_site(self.seed, self.preset, calm=calm, seconds=seconds), seconds))


def _calm(shift: _Shift) -> NDArray[np.float64]:
    """Levels that a quiet site sustains."""
    return sustained(shift.play(calm=True, seconds=shift.preset.quiet_s).logits, _ON_STEPS)


@dataclass(frozen=True)
class _Caught:
    """What came of a site's episodes: (label, names of its alerts) each, and alerts that belong to none."""

    episodes: list[tuple[str, list[str]]]
    astray: int


def _caught(shift: _Shift) -> _Caught:
    seconds = min(float(shift.preset.quiet_s), 420.0)
    played = shift.play(calm=False, seconds=seconds)
    times = {id(alert): played.alert_s(alert) for alert in played.alerts}
    episodes = []
    for episode in _site(shift.seed, shift.preset, calm=False, seconds=seconds).episodes:
        latest_s = episode.end_s + BELONGS_S
        hits = [a for a in played.alerts if episode.start_s <= times.get(id(a), -1.0) <= latest_s]
        episodes.append((episode.label, [alert.label for alert in hits]))
        for alert in hits:
            times.pop(id(alert), None)
    return _Caught(episodes, len(times))


def _told(caught: Sequence[_Caught]) -> dict[str, Any]:
    """Per label of the demo: how many of its episodes bring an alert, and the names; alerts without an episode."""
    seen: dict[str, list[bool]] = defaultdict(list)
    names: dict[str, set[str]] = defaultdict(set)
    for label, hits in (pair for place in caught for pair in place.episodes):
        seen[label].append(bool(hits))
        names[label].update(hits)
    return {
        "demo_caught": {label: f"{sum(hits)}/{len(hits)}" for label, hits in sorted(seen.items())},
        "demo_named": {label: sorted(found) for label, found in sorted(names.items()) if found},
        "demo_astray": sum(place.astray for place in caught),
    }


def _site(seed: int, preset: Preset, *, calm: bool, seconds: float) -> Site:
    spec = preset.vision_spec
    script = quiet(seed, seconds) if calm else demo(seed, seconds)
    return Site(seed, script, width=spec.width, height=spec.height, rate_hz=preset.audio_spec.rate_hz)


def _probability(logit: float) -> float:
    return float(1 / (1 + np.exp(-logit)))
