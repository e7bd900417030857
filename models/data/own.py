"""A site's own recordings, to train on beside the recorded sets or instead of them: `train --site DIR`.

    DIR/sounds/   sounds with `labels.csv` (file, label; split, group, start_s, end_s if there are any)
    DIR/films/    films in which nothing is wrong
    DIR/sensors/  one CSV per log of normal hours, columns named as quantities (`temperature` …)

Any of the three may be missing, not all. A label that names no sound of `config.SOUNDS` trains as `other`: it raises
the score, and the alert is an `anomaly`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from edge_agent.config import QUANTITIES
from edge_agent.errors import ConfigError
from models.config import SOUNDS
from models.data import public
from models.data.corpus import CASUAL, Corpus
from models.data.media import Log, Pictures, Readings, film_length
from models.data.records import NORMAL, Recording

SITE = "site"
_FILMS = (".mp4", ".avi", ".mkv", ".mov")
#: Share of the groups, and of each film, that trains nothing.
_DEV_SHARE = 0.25


def read_site(root: Path) -> Corpus:
    """What lies in the three folders. ConfigError where there is none of them, or a label is missing everywhere."""
    there = [name for name in ("sounds", "films", "sensors") if (root / name).is_dir()]
    if not there:
        raise ConfigError(f"{root} holds none of the folders sounds, films, sensors: put recordings there", "--site")
    return Corpus(
        clips=tuple(_sounds(public.audio_folder(root / "sounds"))) if "sounds" in there else (),
        footage=tuple(_films(root / "films")) if "films" in there else (),
        tables=tuple(_level(log) for log in public.sensor_csv(root / "sensors")) if "sensors" in there else (),
        sets=(SITE,),
    )


def joined(first: Corpus, second: Corpus) -> Corpus:
    """Both, as one."""
    return Corpus(
        (*first.clips, *second.clips),
        (*first.footage, *second.footage),
        (*first.fires, *second.fires),
        (*first.tables, *second.tables),
        (*first.sets, *second.sets),
    )


def _sounds(recordings: Iterable[Recording]) -> Iterator[Recording]:
    labelled = 0
    for recording in recordings:
        for clip in _spans(recording):
            if not clip.label:
                continue
            labelled += 1
            known = CASUAL if clip.label in (NORMAL, CASUAL) else clip.label if clip.label in SOUNDS else "other"
            split = clip.split if clip.split in ("train", "dev") else _split(clip.group)
            yield replace(clip, source=SITE, split=split, label=known)
    if not labelled:
        raise ConfigError(
            "none of the site's sounds has a label: write labels.csv (file,label) beside them; `normal` is a label"
        )


def _spans(recording: Recording) -> list[Recording]:
    """The marked parts of a recording, each by itself; of one without marks the whole."""
    sound = recording.sound
    if not recording.spans or sound is None:
        return [recording]
    return [
        replace(
            recording,
            item=f"{recording.item} {span.start_s:g}s",
            label=span.label,
            spans=(),
            sound=replace(sound, start_s=span.start_s, end_s=span.end_s),
        )
        for span in recording.spans
    ]


def _level(recording: Recording) -> Recording:
    """A log as a level that faults are laid over: the columns that a device knows, and no word on who was there."""
    log = recording.log()
    known = {name.lower(): index for index, name in enumerate(log.names)}
    names = tuple(name for name in QUANTITIES if name in known)
    if not names:
        raise ConfigError(
            f"sensors/{recording.item} has no column that a device knows ({', '.join(log.names)}); name them as "
            f"quantities: {', '.join(QUANTITIES)}"
        )
    values = log.values[:, [known[name] for name in names]]
    held = Log(log.time_s, names, values, np.full(len(values), -1, np.int8))
    return replace(recording, source=SITE, split="train", group=recording.item, readings=Readings(held=held))


def _split(group: str) -> str:
    """By name, so that a recording that is added moves no other."""
    return "dev" if hashlib.sha256(group.encode()).digest()[0] < 256 * _DEV_SHARE else "train"


def _films(folder: Path) -> Iterator[Recording]:
    """Each film as train (first) and dev (last): neighbours in time are near duplicates."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _FILMS)
    if not paths:
        raise ConfigError(f"no film ({', '.join(_FILMS)}) in {folder}")
    for path in paths:
        cut_s = round(film_length(path)[1] * (1 - _DEV_SHARE), 1)
        for split, begin_s, end_s in (("train", 0.0, cut_s), ("dev", cut_s, float("inf"))):
            pictures = Pictures(path, start_s=begin_s, end_s=end_s)
            yield Recording(SITE, path.name, split, f"{path.stem} {split}", NORMAL, pictures=pictures)
