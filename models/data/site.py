"""The simulated site as training data: windows made by the device's own preparation, with known answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edge_agent.contract.event import MODALITIES, Modality
from edge_agent.core import prepare
from edge_agent.core.records import F32, I16, U8, SensorStep
from edge_agent.simulate import Episode, Site, quiet, schedule
from models.config import SOUNDS, Preset
from models.data.media import Sound
from models.data.records import Recording, Split
from models.data.staging import Picture, Wrong, cells_of
from models.network.frontend import SENSOR_SCALE

#: Seeds of the sites that train, that measure, and that thresholds are chosen on: none is in two of them.
SEEDS: dict[Split, range] = {"train": range(1000, 1040), "dev": range(2000, 2010)}
QUIET_SEEDS = range(3000, 3010)
#: Labels that the picture itself gives away. Who may stand where is a rule's business (`intrusion`); a lamp that
#: turns (`siren`, `alarm`), a flash of one frame (`gunshot`) and two people close together (`fight`) say too little.
_SEEN = {"fire": "fire", "explosion": "odd"}
#: What may teach a class its name beside recordings. Made-up glass was seen to teach the wrong thing, so it and the
#: others raise the score alone, also where a site has a class of that name.
_NAMED = ("gunshot", "explosion", "siren", "fire")
_UNCLEAR_S = 2.5  #: after its cause is over an episode fades: neither normal nor not
#: (not at all, surely) of what an episode adds to the place as it would be without it: share of pixels that change
#: by 25 levels or more; dB of sound over the ambience; change of any channel in units of `SENSOR_SCALE`.
_BOUNDS: dict[Modality, tuple[float, float]] = {
    "vision": (0.0005, 0.004),
    "audio": (-20.0, -3.0),
    "sensors": (0.1, 0.3),
}
_CHANGED_LEVELS = 25
#: What is heard between two episodes is cut into pieces of this length, or it would be drawn once and they often.
_CASUAL_S = 4.0


@dataclass(frozen=True)
class Place:
    """A site, and its twin to which nothing anomalous happens: what an episode adds is the difference."""

    site: Site
    twin: Site
    preset: Preset

    @classmethod
    def of(cls, seed: int, episodes: tuple[Episode, ...], preset: Preset) -> Place:
        spec, rate_hz = preset.vision_spec, preset.audio_spec.rate_hz
        harmless = tuple(episode for episode in episodes if not episode.anomalous)
        site, twin = (
            Site(seed, script, width=spec.width, height=spec.height, rate_hz=rate_hz)
            for script in (episodes, harmless)
        )
        return cls(site, twin, preset)

    def label(self, modality: Modality, t_s: float) -> str:
        """The anomaly that a window ending at `t_s` shows in one modality; empty: none; `?`: too little to say."""
        episode, over = _episode(self.site.episodes, modality, t_s)
        if episode is None:
            return ""
        nothing, surely = _BOUNDS[modality]
        added = {"vision": self._seen, "audio": self._heard, "sensors": self._felt}[modality](t_s)
        if added <= nothing:
            return ""
        unclear = over or added < surely or (modality == "vision" and episode.label not in _SEEN)
        return "?" if unclear else episode.label

    def changed(self, t_s: float) -> F32:
        """1 where the picture at `t_s` differs from the twin's, float32 (height, width)."""
        here, there = (place.frame(t_s).astype(np.int16) for place in (self.site, self.twin))
        return np.asarray(np.abs(here - there).max(2) >= _CHANGED_LEVELS, np.float32)

    def _seen(self, t_s: float) -> float:
        return float(self.changed(t_s).mean())

    def _heard(self, t_s: float) -> float:
        here, there = (pcm(place, t_s, self.preset).astype(np.float64) for place in (self.site, self.twin))
        return float(10 * np.log10((np.square(here - there).mean() + 1e-3) / (np.square(there).mean() + 1.0)))

    def _felt(self, t_s: float) -> float:
        here, there = (sensor_step(place, t_s, self.preset) for place in (self.site, self.twin))
        most = 0.0
        for channel in np.flatnonzero(here.mask * there.mask):
            _, scale, logarithmic = SENSOR_SCALE[channel]
            values = [float(step.value[channel]) for step in (here, there)]
            levels = [float(np.log1p(value)) if logarithmic else value for value in values]
            most = max(most, abs(levels[0] - levels[1]) / scale)
        return most


@dataclass(frozen=True, slots=True)
class Moment:
    """One step of a site as the graphs want it, and what is wrong with it in each modality."""

    frames: U8
    pcm: I16
    readings: F32
    active: dict[Modality, str]  #: modality → label of the episode that shows in it


def places(split: Split, preset: Preset, count: int, duration_s: float) -> list[Place]:
    """The first `count` places of a split with episodes, and half as many where only harmless things happen."""
    seeds = SEEDS[split]
    wrong = [Place.of(seed, schedule(seed, duration_s, gap_s=(8.0, 20.0)), preset) for seed in seeds[:count]]
    rest = seeds[count : count + max(count // 2, 1)]
    return wrong + [Place.of(seed, quiet(seed, duration_s, gap_s=(4.0, 12.0)), preset) for seed in rest]


def picture(site: Site, t_s: float, preset: Preset) -> U8:
    """uint8 (5, H, W) at `t_s`."""
    first, second = preset.vision_spec.past_ms
    frames = [site.frame(max(t_s - back / 1000, 0.0)) for back in (0, first, second)]
    return prepare.vision(frames, preset.vision_spec)


def pcm(site: Site, t_s: float, preset: Preset) -> I16:
    """The window of sound that ends at `t_s`."""
    samples = preset.audio_spec.samples
    return site.sound(max(round(t_s * site.rate_hz) - samples, 0), samples)


def pictures(place: Place, count: int, rng: np.random.Generator) -> list[Picture]:
    """Up to `count` pictures of the place, half of them while something shows; where, the twin tells."""
    site, spec = place.site, place.preset.vision_spec
    shown = [e for e in site.episodes if e.label in _SEEN and "vision" in e.modalities]
    end_s = max((e.end_s for e in site.episodes), default=60.0)
    found = []
    for index in range(count):
        if shown and index % 2:
            episode = shown[int(rng.integers(len(shown)))]
            t_s = float(rng.uniform(episode.start_s, episode.end_s))
        else:
            t_s = float(rng.uniform(1.0, end_s + 10.0))
        label = place.label("vision", t_s)
        if label == "?":
            continue
        mask = place.changed(t_s) if label else np.zeros((spec.height, spec.width), np.float32)
        found.append(Picture(picture(site, t_s, place.preset), cells_of(mask), _wrong(label)))
    return found


def _wrong(label: str) -> Wrong:
    if not label:
        return "nothing"
    return "fire" if label == "fire" else "odd"


def clips(place: Place, split: Split) -> Iterator[Recording]:
    """What is heard of each episode while it can be heard, and what is heard between them."""
    site = place.site
    last_s = 0.0
    for episode in site.episodes:
        if episode.start_s - last_s > 4.0:
            for start_s in np.arange(last_s + 0.5, episode.start_s - 2.0, _CASUAL_S):
                end_s = min(start_s + _CASUAL_S, episode.start_s - 0.5)
                yield _clip(site, split, "casual", _span(site, start_s, end_s))
        last_s = episode.end_s + _UNCLEAR_S
        if "audio" not in episode.modalities:
            continue
        if not episode.anomalous:
            yield _clip(site, split, "casual", _span(site, episode.start_s, episode.end_s))
            continue
        label = episode.label if episode.label in SOUNDS and named(episode.label) else "other"
        for t_s in np.arange(episode.start_s + 0.5, episode.end_s + 0.5, 0.5):
            if place.label("audio", float(t_s)) == episode.label:
                yield _clip(site, split, label, pcm(site, float(t_s), place.preset))


def _clip(site: Site, split: Split, label: str, heard: I16) -> Recording:
    sound = Sound(held=heard, held_hz=site.rate_hz)
    return Recording("simulated", f"site {site.seed}", split, str(site.seed), label, sound=sound, ships=True)


def moments(place: Place, begin_s: float, steps: int) -> Iterator[Moment]:
    """`steps` consecutive steps whose first ends at `begin_s`."""
    preset, site = place.preset, place.site
    step_s = preset.step_ms / 1000
    history = [sensor_step(site, begin_s - back * step_s, preset) for back in range(preset.sensor_spec.steps, 0, -1)]
    for index in range(steps):
        t_s = begin_s + index * step_s
        history = [*history[1:], sensor_step(site, t_s, preset)]
        yield Moment(
            picture(site, t_s, preset),
            pcm(site, t_s, preset),
            prepare.sensors(history, preset.sensor_spec),
            {name: place.label(name, t_s) for name in MODALITIES},
        )


def window(site: Site, t_s: float, preset: Preset) -> F32:
    """The readings' window that ends at `t_s`: (3, channels, steps)."""
    steps, step_s = preset.sensor_spec.steps, preset.step_ms / 1000
    history = [sensor_step(site, t_s - back * step_s, preset) for back in range(steps - 1, -1, -1)]
    return prepare.sensors(history, preset.sensor_spec)


def felt(place: Place, rng: np.random.Generator, count: int) -> Iterator[tuple[float, bool]]:
    """Times of the place, and whether something shows in the sensors then; half of them within episodes."""
    shown = [e for e in place.site.episodes if e.anomalous and "sensors" in e.modalities]
    end_s = max((e.end_s for e in place.site.episodes), default=60.0)
    for index in range(count):
        if shown and index % 2:
            episode = shown[int(rng.integers(len(shown)))]
            t_s = float(rng.uniform(episode.start_s, min(episode.end_s, episode.start_s + 10.0)))
        else:
            t_s = float(rng.uniform(2.0, end_s + 10.0))
        label = place.label("sensors", t_s)
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
    """The class that a label of the site is evidence for; empty for one whose name recordings alone may teach."""
    return label if label in _NAMED else ""


def _span(site: Site, start_s: float, end_s: float) -> I16:
    start = max(int(start_s * site.rate_hz), 0)
    return site.sound(start, max(int(end_s * site.rate_hz) - start, 1))


def _episode(episodes: tuple[Episode, ...], modality: Modality, t_s: float) -> tuple[Episode | None, bool]:
    """The anomalous episode that is going on, or the last one, whose traces may still be there; and if it is over."""
    past: Episode | None = None
    for episode in episodes:
        if not episode.anomalous or modality not in episode.modalities or episode.start_s > t_s:
            continue
        if t_s <= episode.end_s:
            return episode, False
        past = episode
    return past, True
