"""What a bundle is worth: each modality alone on recorded data it was not trained on; fusion on composed episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.event import MODALITIES
from edge_agent.core import prepare
from edge_agent.core.records import F32, I16, Engine
from models.config import Preset
from models.data import sets
from models.data.compose import Composer, Windows
from models.data.listening import pooled, windows_of
from models.data.mixture import SHOWN
from models.data.records import NORMAL
from models.data.traces import minute
from models.metrics import auc, average_precision, interval
from models.runtime import through

_COMPOSED = 2000
#: Labels, logits, and the source of each where some share one.
Scored = tuple[NDArray[Any], NDArray[Any], Sequence[str] | None]


#: Floors of the sets' own pages, where they are of the same figure: a forest on histograms of colour.
_FLOORS = {"vision: fire_images": 0.90}


def recorded(engine: Engine, preset: Preset, root: Path, seed: int) -> dict[str, Any]:
    """Each modality alone on real data that trained nothing."""
    return told(clips(engine, preset, root, seed), seed)


def clips(engine: Engine, preset: Preset, root: Path, seed: int) -> dict[str, Scored]:
    """By set: what every clip (picture, sound, minute) of the test part is, and the logit of its encoder."""
    return {
        "vision: fire_images, all visible (fire against not)": _stills(engine, preset, root),
        "audio: SESA dev (threat against casual)": _threats(engine, preset, root),
        "audio: ESC-10 fold 4 (share above logit 0; none is a threat)": _background(engine, preset, root),
        "sensors: occupancy datatest without Light (occupied or not)": _offices(engine, preset, root, seed),
    }


def told(found: Mapping[str, Scored], seed: int) -> dict[str, Any]:
    """The figures of `clips`: AUC with its interval; of a set without anything wrong the share above logit 0."""
    figures: dict[str, Any] = {}
    for name, (label, score, group) in found.items():
        if label.any():
            figures[name] = _summary(label, score, group, seed)
            floor = next((value for start, value in _FLOORS.items() if name.startswith(start)), None)
            figures[name] |= {} if floor is None else {"floor": floor}
        else:
            figures[name] = {"share": round(float((score > 0).mean()), 4), "n": len(label)}
    return figures


def alone(engine: Engine, graph: str, preset: Preset, root: Path) -> dict[str, float]:
    """One encoder by itself on recorded data that trained nothing: AUC on fire_images, or on SESA's dev part."""
    name, found = {"vision": ("fire_images_auc", _stills), "audio": ("sesa_dev_auc", _threats)}[graph]
    label, score, _ = found(engine, preset, root)
    return {name: round(auc(label, score), 4)}


def _summary(label: NDArray[Any], score: NDArray[Any], group: Sequence[str] | None, seed: int) -> dict[str, Any]:
    low, high = interval(label, score, group, np.random.default_rng([seed, 31]))
    return {
        "auc": round(auc(label, score), 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "n": len(label),
        "positive": int(label.sum()),
    }


def _stills(engine: Engine, preset: Preset, root: Path) -> Scored:
    label, score = [], []
    for still in sets.fire_images(root):
        assert still.pictures is not None
        _, _, picture = next(still.pictures.stream())
        output = engine.run("vision", [{"frames": prepare.still(picture, preset.vision_spec)}])[0]
        label.append(int(still.label == "fire"))
        score.append(float(output["logit"]))
    return np.array(label), np.array(score), None


def clip_logit(engine: Engine, preset: Preset, pcm: I16) -> float:
    """One logit for a whole clip: windows every half second, the loud ones counting most."""
    windows = windows_of(pcm, preset.audio_spec)
    return float(pooled(through(engine, "audio", windows)["logit"], windows))


def _threats(engine: Engine, preset: Preset, root: Path) -> Scored:
    clips = [c for c in sets.sesa(root) if c.split == "dev"]
    score = np.array([clip_logit(engine, preset, clip.pcm(preset.audio_spec.rate_hz)) for clip in clips])
    return np.array([int(clip.label != NORMAL) for clip in clips]), score, [clip.group for clip in clips]


def _background(engine: Engine, preset: Preset, root: Path) -> Scored:
    clips = [c for c in sets.esc10(root) if c.split == "dev" and c.label != "fire_crackling"]
    score = np.array([clip_logit(engine, preset, clip.pcm(preset.audio_spec.rate_hz)) for clip in clips])
    return np.zeros(len(clips)), score, None


def _offices(engine: Engine, preset: Preset, root: Path, seed: int) -> Scored:
    rng = np.random.default_rng([seed, 32])
    table = next(t for t in sets.occupancy(root) if t.split == "dev").log()
    step_s = preset.step_ms / 1000
    windows = [minute(rng, table, row, preset.sensor_spec, step_s) for row in range(len(table.time_s))]
    score = np.array([float(o["logit"]) for o in engine.run("sensors", [{"readings": w} for w in windows])])
    # Neighbouring minutes are one another's copies: an hour is drawn as one.
    return table.wrong, score, [str(row // 60) for row in range(len(windows))]


def composed(engine: Engine, composer: Composer, seed: int) -> dict[str, Any]:
    """Fused against each modality alone, on dev episodes that were composed (not recorded together)."""
    windows = composer.draw(np.random.default_rng([seed, 33]), _COMPOSED, missing=0.0)
    known = windows.wrong >= 0
    label = windows.wrong[known]
    full = _fused(engine, windows, windows.mask)[known]
    figures: dict[str, Any] = {
        "windows": int(known.sum()),
        "wrong": int(label.sum()),
        "fused": {"ap": round(average_precision(label, full), 4), "auc": round(auc(label, full), 4)},
    }
    for index, name in enumerate(MODALITIES):
        alone, without = np.zeros_like(windows.mask), windows.mask.copy()
        alone[:, :, index] = windows.mask[:, :, index]
        without[:, :, index] = 0
        for title, mask in ((f"{name} alone", alone), (f"without {name}", without)):
            score = _fused(engine, windows, mask)[known]
            figures[title] = {"ap": round(average_precision(label, score), 4), "auc": round(auc(label, score), 4)}
    shown = np.array(windows.shown)[known]
    normal = label < 0.5
    for kind in SHOWN:
        part = (shown == kind) & ~normal | normal
        figures[f"shown in {kind}"] = {
            "auc": round(auc(label[part], full[part]), 4),
            "n": int(((shown == kind) & ~normal).sum()),
        }
    return figures


def _fused(engine: Engine, windows: Windows, mask: F32) -> F32:
    items = [
        {**{name: windows.history[name][i] for name in MODALITIES}, "mask": mask[i]}
        for i in range(len(windows.wrong))
    ]
    return np.array([float(output["logit"]) for output in engine.run("fusion", items)], np.float32)
