"""The simulated site as training data: windows made by the device's own preparation, with known answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edge_agent.contract.event import MODALITIES, Modality
from edge_agent.core import prepare
from edge_agent.core.records import F32, I16, U8, SensorStep
from edge_agent.simulate import Episode, Site, quiet, schedule
from models.config import CLASSES, SOUNDS, Preset
from models.data.records import Clip, Split
from models.data.staging import Picture

#: Seeds of the sites that train, that measure, and that thresholds are chosen on: none is in two of them.
SEEDS: dict[Split, range] = {"train": range(1000, 1020), "dev": range(2000, 2010)}
QUIET_SEEDS = range(3000, 3010)
#: Labels that show in the picture itself. Who may stand where is a rule's business, so `intrusion` is not here,
#: and a gunshot flashes for one frame.
_SEEN = {"fire": "fire", "explosion": "odd", "fight": "odd", "siren": "odd", "alarm": "odd"}
_UNCLEAR_S = 2.5  #: after its cause is over an episode fades: neither normal nor not


@dataclass(frozen=True, slots=True)
class Moment:
    """One step of a site as the graphs want it, and what is wrong with it in each modality."""

    frames: U8
    pcm: I16
    readings: F32
    active: dict[Modality, str]  #: modality → label of the episode that shows in it


def scenes(split: Split, preset: Preset, count: int, duration_s: float) -> list[Site]:
    """The first `count` sites of a split with episodes, and half as many where only harmless things happen."""
    spec = preset.vision_spec
    size = {"width": spec.width, "height": spec.height, "rate_hz": preset.audio_spec.rate_hz}
    wrong = [Site(seed, schedule(seed, duration_s, gap_s=(8.0, 20.0)), **size) for seed in SEEDS[split][:count]]
    harmless = SEEDS[split][count : count + max(count // 2, 1)]
    return wrong + [Site(seed, quiet(seed, duration_s, gap_s=(4.0, 12.0)), **size) for seed in harmless]


def calm(seed: int, preset: Preset, duration_s: float) -> Site:
    """A site where nothing is wrong for `duration_s`, though a good deal happens."""
    spec = preset.vision_spec
    return Site(
        seed, quiet(seed, duration_s), width=spec.width, height=spec.height, rate_hz=preset.audio_spec.rate_hz
    )


def picture(site: Site, t_s: float, preset: Preset) -> U8:
    """uint8 (5, H, W) at `t_s`."""
    first, second = preset.vision_spec.past_ms
    frames = [site.frame(max(t_s - back / 1000, 0.0)) for back in (0, first, second)]
    return prepare.vision(frames, preset.vision_spec)


def pictures(site: Site, preset: Preset, count: int, rng: np.random.Generator) -> list[Picture]:
    """`count` staged pictures of the site; half of them while something shows. Where it shows is not known."""
    spec = preset.vision_spec
    shown = [e for e in site.episodes if e.label in _SEEN and "vision" in e.modalities]
    end_s = max((e.end_s for e in site.episodes), default=60.0)
    found = []
    for index in range(count):
        if shown and index % 2:
            episode = shown[int(rng.integers(len(shown)))]
            t_s = float(rng.uniform(episode.start_s + 2.0, episode.end_s))
        else:
            t_s = float(rng.uniform(1.0, end_s + 10.0))
        wrong = _label(site.episodes, "vision", t_s)
        if wrong == "?" or (wrong and wrong not in _SEEN):
            continue
        cells = np.full((spec.height // 8, spec.width // 8), -1.0 if wrong else 0.0, np.float32)
        found.append(
            Picture(picture(site, t_s, preset), cells, "fire" if wrong == "fire" else "odd" if wrong else "nothing")
        )
    return found


def clips(site: Site, split: Split) -> Iterator[Clip]:
    """What is heard during each episode, and what is heard between them."""
    group = str(site.seed)
    last_s = 0.0
    for episode in site.episodes:
        if episode.start_s - last_s > 4.0:
            yield Clip("simulated", split, group, "casual", _heard(site, last_s + 0.5, episode.start_s - 0.5))
        last_s = episode.end_s + _UNCLEAR_S
        if "audio" in episode.modalities:
            label = episode.label if episode.label in SOUNDS else "other" if episode.anomalous else "casual"
            yield Clip("simulated", split, group, label, _heard(site, episode.start_s, episode.end_s))


def moments(site: Site, preset: Preset, begin_s: float, steps: int) -> Iterator[Moment]:
    """`steps` consecutive steps whose first ends at `begin_s`."""
    history = [
        sensor_step(site, begin_s - back * preset.step_ms / 1000, preset)
        for back in range(preset.sensor_spec.steps, 0, -1)
    ]
    for index in range(steps):
        t_s = begin_s + index * preset.step_ms / 1000
        history.append(sensor_step(site, t_s, preset))
        start = round(t_s * site.rate_hz) - preset.audio_spec.samples
        active = {name: _label(site.episodes, name, t_s) for name in MODALITIES}
        yield Moment(
            picture(site, t_s, preset),
            site.sound(max(start, 0), preset.audio_spec.samples),
            prepare.sensors(history, preset.sensor_spec),
            active,
        )


def window(site: Site, t_s: float, preset: Preset) -> F32:
    """The readings' window that ends at `t_s`: (3, channels, steps)."""
    steps, step_s = preset.sensor_spec.steps, preset.step_ms / 1000
    history = [sensor_step(site, t_s - back * step_s, preset) for back in range(steps - 1, -1, -1)]
    return prepare.sensors(history, preset.sensor_spec)


def felt(site: Site, rng: np.random.Generator, count: int) -> Iterator[tuple[float, bool]]:
    """Times of the site, and whether something shows in the sensors then; half of them within episodes."""
    shown = [e for e in site.episodes if e.anomalous and "sensors" in e.modalities]
    end_s = max((e.end_s for e in site.episodes), default=60.0)
    for index in range(count):
        if shown and index % 2:
            episode = shown[int(rng.integers(len(shown)))]
            t_s = float(rng.uniform(episode.start_s + 1.5, min(episode.end_s, episode.start_s + 8.0)))
        else:
            t_s = float(rng.uniform(2.0, end_s + 10.0))
        label = _label(site.episodes, "sensors", t_s)
        if label != "?":
            yield t_s, bool(label)


def sensor_step(site: Site, t_s: float, preset: Preset) -> SensorStep:
    """All channels at `t_s`, as the aligner would know them: values come once a second."""
    quantities = preset.sensor_spec.quantities
    value, age, mask = (np.zeros(len(quantities), np.float32) for _ in range(3))
    if t_s >= 0:
        for reading in site.readings(t_s):
            channel = quantities.index(reading.channel)
            value[channel], age[channel], mask[channel] = reading.value, t_s % 1.0, 1.0
    return SensorStep(value, age, mask)


def named(label: str) -> str:
    """The class that a label of the site is evidence for; empty for one that the model does not claim."""
    return label if label in CLASSES else ""


def _heard(site: Site, start_s: float, end_s: float) -> I16:
    return site.sound(int(start_s * site.rate_hz), max(int((end_s - start_s) * site.rate_hz), 1))


def _label(episodes: tuple[Episode, ...], modality: Modality, t_s: float) -> str:
    """The anomaly that shows in a modality at `t_s`; empty: none; `?`: one is just beginning or fading."""
    for episode in episodes:
        if not episode.anomalous or modality not in episode.modalities:
            continue
        if episode.start_s + 1.0 <= t_s <= episode.end_s:
            return episode.label
        if episode.start_s <= t_s <= episode.end_s + _UNCLEAR_S:
            return "?"
    return ""
