"""Composed episodes as sessions: what the parts of one split make, rendered one by one and played as a site is.

No public set has camera, microphone and sensors of one place together: every figure of these says "composed".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edge_agent.contract.event import MODALITIES, Modality
from edge_agent.errors import ConfigError
from models.config import Preset
from models.data import registry, sets
from models.data.episodes import Episode, Renderer, stage_of
from models.data.mixture import MADE, MIXTURE, Entry, Shelf, plan
from models.data.records import Recording
from models.evaluation.sessions import Cause, Session
from models.progress import tracked

SETS_READ = (
    "sesa",
    "esc10",
    "sample_videos",
    "fire_video",
    "fire_images",
    "ucsd_ped2",
    "fight_surv",
    "occupancy",
    "smoke_iot",
)
#: Episodes that are tested; made-up stills on each stage.
TESTED, _STILLS = 240, 12
_HALVES = 2


def read(root: Path, notes: list[str], title: str) -> list[Recording]:
    """Every set under `root` that episodes can be made of; those that are not there are named in the notes."""
    found: list[Recording] = []
    lost = []
    readers: dict[str, Callable[[Path], list[Recording]]] = {name: registry.FORMATS[name] for name in SETS_READ}
    for name, reader in {**readers, "nab": sets.ambient}.items():
        try:
            found += reader(root) if (root / name).is_dir() else []
        except ConfigError:  # a folder of which a part is not there
            lost.append(name)
            continue
        if not (root / name).is_dir():
            lost.append(name)
    if lost:
        notes.append(f"{title}: not there: {', '.join(lost)}")
    return found


def tested(recordings: Sequence[Recording]) -> list[Recording]:
    """Parts of one root that trained nothing that ships; a set's own split `test` (Ped2's labelled clips) is one."""
    return [recording for recording in recordings if recording.split in ("dev", "test")]


@dataclass(frozen=True)
class Episodes:
    """Every `stride`-th episode of a plan, from the `first` on: what one process renders."""

    recordings: Sequence[Recording]
    shape: Preset
    split: str  #: whose seed the plan has
    count: int
    first: int = 0
    stride: int = 1

    def halves(self) -> list[Episodes]:
        """The two of which this is made; they are the same wherever they are rendered."""
        return [replace(self, first=first, stride=_HALVES) for first in range(_HALVES)]

    def rendered(self) -> Iterator[Episode]:
        """One by one: all of them do not fit in memory."""
        shelf, renderer = self._made()
        for entry in tracked("episodes", plan(shelf, self.split, self.count)[self.first :: self.stride]):
            yield renderer.render(entry, MIXTURE.steps)

    def sessions(self) -> Iterator[tuple[Session, Session]]:
        """(session, the one that contradicts it): the latest one in which nothing is wrong and nothing is missing."""
        shelf, renderer = self._made()
        entries = plan(shelf, self.split, self.count)[self.first :: self.stride]
        calm = [entry for entry in entries if _calm(entry)] or entries
        other = session_of(renderer.render(calm[-1], MIXTURE.steps))
        for entry in entries:
            session = session_of(renderer.render(entry, MIXTURE.steps))
            yield session, other
            if _calm(entry):
                other = session

    def _made(self) -> tuple[Shelf, Renderer]:
        shelf = Shelf(self.recordings)
        stage = stage_of(self.recordings, self.shape, dict(MIXTURE.seeds)[self.split], _STILLS)
        return shelf, Renderer(shelf, stage, self.shape)


def _calm(entry: Entry) -> bool:
    return not (entry.wrong or entry.hard) and all(part.state == "well" for part in entry.parts)


def session_of(episode: Episode) -> Session:
    """An episode as a session. Its cause lasts from the first step that shows it to the last."""
    step_s = episode.preset.step_ms / 1000
    begin_s = episode.preset.sensor_spec.steps * step_s
    parts = {part.modality: part for part in episode.entry.parts}
    marks = {
        name: episode.active[name] if name in episode.present else np.zeros(episode.steps, np.int8)
        for name in MODALITIES
    }
    shown: tuple[Modality, ...] = tuple(name for name in MODALITIES if (marks[name] == 1).any())
    causes: tuple[Cause, ...] = ()
    if shown:
        steps = np.flatnonzero(np.any([marks[name] == 1 for name in shown], 0))
        labels = [episode.names[name] for name in shown if episode.names[name]]
        kinds = [_kind(parts[name].cause, name) for name in shown]
        start_s, end_s = begin_s + float(steps[0]) * step_s, begin_s + float(steps[-1] + 1) * step_s
        causes = (Cause((labels or kinds)[0], start_s, end_s, shown),)
    return Session(
        name=f"{episode.entry.name}, {episode.entry.hard or episode.entry.shown}",
        kind="composed",
        seconds=begin_s + episode.steps * step_s,
        scene=episode.scene(),
        causes=causes,
        samples=lambda manifest: episode.samples(),
        begin_s=begin_s,
        marks=marks,
    )


def _kind(cause: str, modality: Modality) -> str:
    """What a cause without a class is called: what was generated, or where the recording is from."""
    if cause.startswith(MADE):
        return cause.removeprefix(MADE)
    return f"unusual {'sight' if modality == 'vision' else 'sound'} ({cause.partition('/')[0]})"
