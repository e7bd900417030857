"""Any recipe judged on any part of the data: `run` one set, write what came out as JSON and CSV.

A set is known by its module below; each module says in `SETS` what it can judge (`record.Task`).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from edge_agent.errors import ConfigError
from models.benchmark.record import Block, Roots, Task
from models.training.train import deterministic

_MODULES = {
    "ped2": "pedestrians",
    "sesa": "sounds",
    "esc10": "sounds",
    "fight_surv": "fights",
    "fire_images": "flames",
    "skab": "sensors",
    "occupancy": "rooms",
    "composed": "composed",
    "audio_folder": "sounds",
    "sensor_csv": "sensors",
}
COLUMNS = ("block", "engine", "precision", "key", "item", "label", "score")
_DIGITS = 6


@dataclass(frozen=True)
class Result:
    """What a set gave: both blocks, and the floors that they are held against."""

    name: str
    seed: int
    floor: Mapping[str, float]
    recipe: Block
    bundle: Block

    def json(self) -> dict[str, Any]:
        """`set, seed, split, n, floor, recipe, bundle`; a block is `split, n, floor, starts, baselines, notes,
        parity.<precision>.<key>, metrics.<engine>.<precision>.<key>`."""
        return {
            "set": self.name,
            "seed": self.seed,
            "split": self.recipe.split,
            "n": self.recipe.n,
            "floor": dict(self.floor),
            "recipe": self._block(self.recipe),
            "bundle": self._block(self.bundle),
        }

    def _block(self, block: Block) -> dict[str, Any]:
        metrics: dict[str, dict[str, dict[str, float]]] = {}
        for (engine, precision), judged in block.judged.items():
            metrics.setdefault(engine, {})[precision] = {
                key: round(float(value), _DIGITS) for key, value in judged.metrics.items()
            }
        return {
            "split": block.split,
            "n": block.n,
            "floor": dict(self.floor),
            "starts": block.starts,
            "baselines": {
                name: {key: round(float(value), _DIGITS) for key, value in found.items()}
                for name, found in block.baselines.items()
            },
            "notes": block.notes,
            "parity": parity(block),
            "metrics": metrics,
        }

    def write(self, figures: Path | None, predictions: Path | None) -> None:
        """The JSON file and the CSV file (`COLUMNS`, a header first); None: not that one."""
        if figures is not None:
            text = json.dumps(self.json(), indent=2, ensure_ascii=False, allow_nan=False)
            figures.write_text(text + "\n", encoding="utf-8")
        if predictions is None:
            return
        with predictions.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            for title, block in (("recipe", self.recipe), ("bundle", self.bundle)):
                for (engine, precision), judged in block.judged.items():
                    for row in judged.predictions:
                        label, score = (_cell(value) for value in (row.label, row.score))
                        writer.writerow((title, engine, precision, row.key, row.item, label, score))


def parity(block: Block) -> dict[str, dict[str, float]]:
    """precision → key → largest difference of one row's score between the engines that judged it.

    0 where one engine judged alone. Torch is the trainer: fp32 holds every device engine against it, row by row.
    """
    scores: dict[tuple[str, str], dict[str, list[float]]] = {}
    for (_, precision), judged in block.judged.items():
        for row in judged.predictions:
            if not isinstance(row.score, str):
                scores.setdefault((precision, row.key), {}).setdefault(row.item, []).append(float(row.score))
    found: dict[str, dict[str, float]] = {}
    for (precision, key), rows in scores.items():
        worst = max(max(values) - min(values) for values in rows.values())
        found.setdefault(precision, {})[key] = round(worst, _DIGITS)
    return found


def _cell(value: float | str) -> str:
    return value if isinstance(value, str) else f"{float(value):.6g}"


def names() -> tuple[str, ...]:
    """The sets that can be judged."""
    return tuple(name for name, module in _MODULES.items() if find_spec(f"{__name__}.{module}") is not None)


def task(name: str) -> Task:
    """The set of that name; ConfigError lists the names there are."""
    if name not in names():
        raise ConfigError(f"no benchmark set is named {name!r}; there are {', '.join(names())}")
    return cast(Task, import_module(f"{__name__}.{_MODULES[name]}").SETS[name])


def run(name: str, roots: Roots, seed: int, shipped: Path) -> Result:
    """Judge set `name`: its recipe, trained here, and the bundle in folder `shipped`. Minutes.

    One thread, deterministic by `seed`. ConfigError for a set or a folder that is not there, BundleError for a bundle
    that is not whole.
    """
    chosen = task(name)
    for root in (roots.train, roots.test):
        if not root.is_dir():
            raise ConfigError(f"{root} is no folder: name one that is laid out as the evaluation sets are")
    deterministic(seed)
    recipe = chosen.recipe(roots, seed)
    deterministic(seed)
    return Result(name, seed, chosen.floor, with_classes(recipe), with_classes(chosen.bundle(roots, seed, shipped)))


def with_classes(block: Block) -> Block:
    """The block, and a note on each key whose rows are all of one class: no figure of ranking says anything there."""
    told: dict[tuple[int, int], list[str]] = {}
    rows = next(iter(block.judged.values())).predictions if block.judged else []
    for key in dict.fromkeys(row.key for row in rows):
        labels = [row.label for row in rows if row.key == key]
        said = {int(label > 0.5) for label in labels if not isinstance(label, str)}
        if len(said) == 1:
            told.setdefault((len(labels), said.pop()), []).append(key)
    notes = [
        f"{', '.join(keys)}: all {count} tested rows are labelled {label}; an AUC says nothing then and is 0.5"
        for (count, label), keys in told.items()
    ]
    return replace(block, notes=[*block.notes, *notes])


def writable(*paths: Path | None) -> None:
    """ConfigError if a file of one of these names cannot be written: to be asked before minutes of training."""
    for path in paths:
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise ConfigError(
                f"{path} cannot be written: {'it is a folder' if path.is_dir() else 'its folder is not there'}"
            )
