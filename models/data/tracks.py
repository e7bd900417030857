"""Embedding tracks: what the frozen encoders make of staged pictures, mixed sounds, traces and the simulated site."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.event import MODALITIES, Modality
from edge_agent.core.records import F32
from edge_agent.simulate import Site
from models.config import CLASSES, Preset
from models.data import site as simulated
from models.data.compose import Track, Trio
from models.data.media import Log
from models.data.records import Recording
from models.data.staging import Stage, Wrong
from models.data.traces import WRONG, trace
from models.progress import tracked

Rng = np.random.Generator
#: Inputs of one graph, stacked → embeddings (n, D).
Encode = Callable[[Modality, NDArray[np.generic]], F32]
#: Which class a generated trace is evidence for.
_TRACE_CLASS = {"fire": "fire", "blast": "explosion", "smoulder": "fire"}


@dataclass
class TrackMaker:
    """Makes the tracks of one split with one set of frozen encoders."""

    preset: Preset
    encode: Encode
    rng: Rng

    @property
    def steps(self) -> int:
        return 2 * self.preset.history

    def vision(self, stage: Stage, count: int) -> list[Track]:
        """Staged scenes: normal ones, fires, odd things, and cameras that are blind, frozen or noisy."""
        plan: list[Wrong] = [*["nothing"] * count, *["fire"] * count, *["odd"] * (count // 2)]  # type: ignore[list-item]
        found = [self._staged(stage, wrong) for wrong in tracked("vision tracks", plan)]
        return found + [self._blind(stage, index) for index in range(max(count // 6, 3))]

    def _staged(self, stage: Stage, wrong: Wrong) -> Track:
        script = stage.script(self.rng, "nothing", filmed=0.85)
        bad = stage.script(self.rng, wrong)
        active = self._spell(wrong != "nothing")
        frames = []
        for step in range(self.steps):
            now = wrong if active[step] else "nothing"
            # The same place all along: only what is wrong comes and goes.
            shown = type(script)(
                script.film, script.start, script.flip, script.zoom, script.gain, now, bad.seed, script.frozen
            )
            picture = stage.picture(shown, step)
            if active[step] and picture.cells.max() < 0.5:
                active[step] = -1
            frames.append(picture.frames)
        kind = "normal" if wrong == "nothing" else "wrong"
        return Track(self.encode("vision", np.stack(frames)), active, "fire" if wrong == "fire" else "", kind)

    def _blind(self, stage: Stage, index: int) -> Track:
        spec, steps = self.preset.vision_spec, self.steps
        shape = (steps, 5, spec.height, spec.width)
        if index % 3 == 0:
            frames = np.full(shape, self.rng.integers(0, 256), np.uint8)
        elif index % 3 == 1:
            frames = self.rng.integers(0, 256, shape).astype(np.uint8)
        else:
            frozen = stage.picture(stage.script(self.rng, "nothing")).frames
            frozen[3:] = frozen[3]
            frames = np.repeat(frozen[None], steps, 0)
        return Track(self.encode("vision", frames), np.zeros(steps, np.int8), "", "degraded")

    def audio(self, clips: Sequence[Recording], count: int) -> list[Track]:
        """Recorded threats over recorded background; background alone; a microphone that is dead or clipped."""
        threats = [clip for clip in clips if clip.label != "casual"]
        casual = [clip for clip in clips if clip.label == "casual"]
        plan = [False] * count + [True] * (2 * count if threats else 0)
        found = [self._heard(casual, threats, wrong) for wrong in tracked("audio tracks", plan)]
        return found + [self._deaf(index) for index in range(max(count // 6, 3))]

    def _heard(self, casual: Sequence[Recording], threats: Sequence[Recording], wrong: bool) -> Track:
        spec = self.preset.audio_spec
        hop = spec.rate_hz * self.preset.step_ms // 1000
        sound = self._background(casual, spec.samples + hop * (self.steps - 1))
        active = self._spell(wrong)
        name = ""
        if wrong:
            clip = threats[int(self.rng.integers(len(threats)))]
            name = clip.label if clip.label in CLASSES else ""
            on = np.flatnonzero(active)
            begin = on[0] * hop + spec.samples - hop
            end = min(begin + len(on) * hop, len(sound))
            level = np.abs(sound).mean() + 30
            pcm = clip.pcm(spec.rate_hz)[: end - begin].astype(np.float32)
            gain = level / (np.abs(pcm).mean() + 1) * 10 ** (self.rng.uniform(0, 25) / 20)
            sound[begin : begin + len(pcm)] += pcm * min(gain, 32000 / (np.abs(pcm).max() + 1))
            heard = np.zeros(len(sound), np.float64)
            heard[begin : begin + len(pcm)] = np.square(pcm)
            active = self._audible(np.cumsum(heard), hop)
        wave = np.clip(sound, -32768, 32767).astype(np.int16)
        windows = np.stack([wave[i * hop : i * hop + spec.samples] for i in range(self.steps)])
        return Track(self.encode("audio", windows), active, name, "wrong" if wrong else "normal")

    def _audible(self, energy: NDArray[np.float64], hop: int) -> NDArray[np.int8]:
        """Steps whose window holds a good part of the threat's loudest; much less of it is unclear, none is normal.

        A shot is followed by its echo and then by nothing: a label for the whole clip would teach that silence kills.
        """
        samples = self.preset.audio_spec.samples
        ends = np.arange(self.steps) * hop + samples - 1
        held = energy[ends] - energy[ends - samples + 1]
        share = held / max(float(held.max()), 1e-9)
        return np.where(share >= 0.1, 1, np.where(share > 0.001, -1, 0)).astype(np.int8)

    def _background(self, casual: Sequence[Recording], length: int) -> F32:
        rate = self.preset.audio_spec.rate_hz
        slope = self.rng.uniform(0.0, 0.95)
        white = self.rng.normal(0, 1, length)
        sound = white if slope < 0.3 else np.convolve(white, slope ** np.arange(32), "same")
        sound = sound / np.abs(sound).mean() * np.exp(self.rng.uniform(np.log(3), np.log(300)))
        if casual and self.rng.random() < 0.8:
            clip = casual[int(self.rng.integers(len(casual)))].pcm(rate).astype(np.float64)
            loop = np.resize(clip, length + rate)[int(self.rng.integers(0, rate)) :][:length]
            sound = sound + loop * 10 ** (self.rng.uniform(-24, 0) / 20)
        return np.asarray(sound, np.float32)

    def _deaf(self, index: int) -> Track:
        shape = (self.steps, self.preset.audio_spec.samples)
        pcm = np.zeros(shape, np.int16)
        if index % 3 == 1:
            pcm += self.rng.normal(0, self.rng.uniform(100, 6000), shape).astype(np.int16)
        elif index % 3 == 2:
            hum = np.sin(np.arange(shape[1]) * 2 * np.pi * 50 / self.preset.audio_spec.rate_hz)
            pcm += (hum * self.rng.uniform(500, 20000)).astype(np.int16)
        return Track(self.encode("audio", pcm), np.zeros(self.steps, np.int8), "", "degraded")

    def sensors(self, tables: Sequence[Log], count: int) -> list[Track]:
        """Generated traces over recorded levels, and sensors that are stuck or nearly all gone."""
        plan: list[str | None] = [*[None] * count, *(WRONG[i % len(WRONG)] for i in range(2 * count))]
        found = []
        for wrong in plan:
            found.append(self._traced(tables, wrong, "normal" if wrong is None else "wrong"))
        return found + [self._traced(tables, None, "degraded") for _ in range(max(count // 6, 3))]

    def _traced(self, tables: Sequence[Log], wrong: str | None, kind: str) -> Track:
        steps, span = self.steps, self.preset.sensor_spec.steps
        made = trace(self.rng, span + 3 * steps, self.preset.step_ms / 1000, wrong, tables)
        begin = 0
        if wrong is not None and made.active.any():
            first = int(np.flatnonzero(made.active)[0])
            begin = int(np.clip(first - span - int(self.rng.integers(1, steps)), 0, 2 * steps))
        windows = np.stack([made.readings[:, :, begin + i + 1 : begin + i + 1 + span] for i in range(steps)])
        if kind == "degraded":
            windows = np.repeat(windows[:1], steps, 0)  # stuck: values and ages stand still
        active = made.active[begin + span : begin + span + steps].astype(np.int8)
        return Track(self.encode("sensors", windows), active, _TRACE_CLASS.get(wrong or "", ""), kind)

    def site(self, place: simulated.Place, spells: Sequence[tuple[float, int]]) -> list[Trio]:
        """Whole steps of the simulated site: (end of the first step in s, steps) per spell."""
        found = []
        for begin_s, steps in spells:
            moments = list(simulated.moments(place, begin_s, steps))
            inputs: dict[Modality, NDArray[np.generic]] = {
                "vision": np.stack([m.frames for m in moments]),
                "audio": np.stack([m.pcm for m in moments]),
                "sensors": np.stack([m.readings for m in moments]),
            }
            tracks = {}
            for name in MODALITIES:
                labels = [m.active[name] for m in moments]
                active = np.array([0 if not label else -1 if label == "?" else 1 for label in labels], np.int8)
                classes = [simulated.named(label) for label in labels if label not in ("", "?")]
                tracks[name] = Track(self.encode(name, inputs[name]), active, classes[0] if classes else "", "site")
            found.append(Trio(tracks))
        return found

    def _spell(self, wrong: bool) -> NDArray[np.int8]:
        """Active from some step on, often to the end."""
        active = np.zeros(self.steps, np.int8)
        if wrong:
            begin = int(self.rng.integers(2, self.steps - 4))
            active[begin : begin + int(self.rng.integers(3, self.steps))] = 1
        return active


def spells(place: Site, preset: Preset) -> list[tuple[float, int]]:
    """Around each episode of a site: from 4 s before it to 5 s after its start or end."""
    step_s = preset.step_ms / 1000
    found = []
    for episode in place.episodes:
        begin_s = max(episode.start_s - 4.0, preset.history * step_s)
        end_s = min(episode.end_s, episode.start_s + 10.0) + 4.0
        found.append((begin_s, max(int((end_s - begin_s) / step_s), preset.history)))
    return found
