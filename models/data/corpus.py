"""What trains the weights that ship: recorded sets whose licences allow it, in the words that the trainer uses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from models.config import SOUNDS
from models.data import sets
from models.data.records import NORMAL, Recording, check_groups

CASUAL = SOUNDS[0]
#: A fireplace is no threat, a burning room sounds like one.
_UNCLEAR = ("fire_crackling",)
_SPLITS = ("train", "dev")
SETS = ("esc10", "sesa", "sample_videos", "fire_video", "occupancy", "nab")


@dataclass(frozen=True, slots=True)
class Corpus:
    """All recorded parts that may train what ships. Empty where there is no data root."""

    clips: tuple[
        Recording, ...
    ] = ()  #: sounds; labels of `config.SOUNDS`; everyday sounds say what in `facts["kind"]`
    footage: tuple[Recording, ...] = ()  #: films in which nothing is wrong
    fires: tuple[Recording, ...] = ()  #: films that burn, with boxes
    tables: tuple[Recording, ...] = ()  #: logs of rooms
    sets: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        check_groups((recording.source + "/" + recording.group, recording.split) for recording in self.recordings)

    @property
    def recordings(self) -> tuple[Recording, ...]:
        return (*self.clips, *self.footage, *self.fires, *self.tables)


def read_corpus(root: Path | None) -> Corpus:
    """The corpus of an evaluation folder; an empty one for None. ConfigError for a set that is not there."""
    if root is None:
        return Corpus()
    return Corpus(
        clips=(*_sounds(sets.esc10(root), everyday=True), *_sounds(sets.sesa(root), everyday=False)),
        footage=_kept(sets.sample_videos(root)),
        fires=_kept(sets.fire_video(root)),
        tables=(*_kept(sets.occupancy(root)), *_kept(sets.ambient(root))),
        sets=SETS,
    )


def _sounds(recordings: Iterable[Recording], *, everyday: bool) -> tuple[Recording, ...]:
    """Clips under the trainer's labels: whatever is normal, or of an everyday set, is casual."""
    return tuple(
        replace(clip, label=CASUAL, facts={**clip.facts, "kind": clip.label})
        if everyday
        else replace(clip, label=CASUAL if clip.label == NORMAL else clip.label)
        for clip in _kept(recordings)
        if clip.label not in _UNCLEAR
    )


def _kept(recordings: Iterable[Recording]) -> tuple[Recording, ...]:
    return tuple(recording for recording in recordings if recording.ships and recording.split in _SPLITS)
