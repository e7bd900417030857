"""Recorded sounds: ESC-10 and SESA. Labels and splits come from their tables, never from file names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile  # type: ignore[import-untyped]

from edge_agent.core.records import I16
from edge_agent.errors import ConfigError
from models.data.records import Clip, Split, folder, rows

#: Sampling+ forbids advertising use and is no free licence: these clips train nothing.
_REFUSED_LICENCES = ("CC-Sampling+",)
_UNCLEAR_CATEGORIES = ("fire_crackling",)
_ESC_FOLDS: dict[str, Split] = {"1": "train", "2": "train", "3": "train", "4": "dev"}
_SESA_USES: dict[str, Split] = {"train": "train", "dev": "dev"}


def esc10(root: Path, rate_hz: int) -> list[Clip]:
    """Everyday sounds (CC BY 3.0): folds 1–3 train, 4 dev. All are `casual` here: none is a threat.

    Crackling fire is left out: a fireplace is no threat, a burning room sounds like one.
    """
    base = folder(root, "esc10")
    return [
        Clip(
            "esc10",
            _ESC_FOLDS[row["fold"]],
            row["freesound_clip_id"],
            "casual",
            _read(base / "audio" / row["filename"], rate_hz),
        )
        for row in rows(base / "meta.csv")
        if row["fold"] in _ESC_FOLDS
        and row["licence"] not in _REFUSED_LICENCES
        and row["category"] not in _UNCLEAR_CATEGORIES
    ]


def sesa(root: Path, rate_hz: int) -> list[Clip]:
    """Threats and casual sounds (CC BY 4.0), split by `use`, which keeps near duplicates (`group`) together."""
    base = folder(root, "sesa")
    return [
        Clip("sesa", _SESA_USES[row["use"]], row["group"], row["category"], _read(base / row["filename"], rate_hz))
        for row in rows(base / "meta.csv")
        if row["use"] in _SESA_USES
    ]


def _read(path: Path, rate_hz: int) -> I16:
    try:
        wave, rate = soundfile.read(path, dtype="int16", always_2d=True)
    except (OSError, soundfile.LibsndfileError) as error:
        raise ConfigError(f"cannot read sound {path}: {error}") from error
    if rate != rate_hz:
        raise ConfigError(f"{path} is sampled at {rate} Hz, the model hears {rate_hz} Hz: resample the set")
    return np.ascontiguousarray(wave[:, 0], np.int16)
