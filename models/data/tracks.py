"""Embedding tracks: what the frozen encoders make of composed episodes and of the simulated site."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.event import MODALITIES, Modality
from edge_agent.core.records import F32
from edge_agent.simulate import Site
from models.config import Preset
from models.data import site as simulated
from models.data.compose import Kind, Track, Trio
from models.data.episodes import Episode, Renderer
from models.data.mixture import Entry, Part
from models.progress import tracked

#: Inputs of one graph, stacked → embeddings (n, D).
Encode = Callable[[Modality, NDArray[np.generic]], F32]


@dataclass
class TrackMaker:
    """Makes the tracks of one split with one set of frozen encoders."""

    preset: Preset
    encode: Encode

    def episodes(self, renderer: Renderer, entries: Sequence[Entry], steps: int) -> list[Trio]:
        """Composed episodes, encoded window by window as the device would."""
        return [self.episode(renderer.render(entry, steps)) for entry in tracked("episodes", entries)]

    def episode(self, episode: Episode) -> Trio:
        """The tracks of one episode. A step in which a modality is missing has zeros and is masked."""
        windows = episode.windows()
        parts = {part.modality: part for part in episode.entry.parts}
        tracks: dict[Modality, Track] = {}
        for name in MODALITIES:
            there = [i for i, window in enumerate(windows) if getattr(window, name) is not None]
            embeddings = np.zeros((len(windows), self.preset.embedding), np.float32)
            if there:
                embeddings[there] = self.encode(name, np.stack([getattr(windows[i], name) for i in there]))
            mask = np.zeros(len(windows), np.float32)
            mask[there] = 1.0
            active = np.where(mask > 0, episode.active[name], 0).astype(np.int8)
            tracks[name] = Track(embeddings, active, episode.names[name], _kind(parts[name]), mask)
        return Trio(tracks, episode.entry.shown)

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
            found.append(Trio(tracks, "site"))
        return found


def _kind(part: Part) -> Kind:
    if part.state == "missing":
        return "missing"
    if part.wrong and part.state in ("well", "noisy"):
        return "wrong"
    return "normal" if part.state == "well" and not part.wrong else "degraded"


def spells(place: Site, preset: Preset) -> list[tuple[float, int]]:
    """Around each episode of a site: from 4 s before it to 5 s after its start or end."""
    step_s = preset.step_ms / 1000
    found = []
    for episode in place.episodes:
        begin_s = max(episode.start_s - 4.0, preset.history * step_s)
        end_s = min(episode.end_s, episode.start_s + 10.0) + 4.0
        found.append((begin_s, max(int((end_s - begin_s) / step_s), preset.history)))
    return found
