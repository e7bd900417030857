"""What a benchmark set is and what it answers.

A set is a `Task`: two functions and the floors of its figures, in a module's `SETS` by name.

    recipe(roots, seed) -> Block            trained on that set's train part, tested on its test part; never shipped
    bundle(roots, seed, shipped) -> Block   the bundle in folder `shipped`, adapted on the set's normal part only

Both judge every (engine, precision) that `roots.engines` asks for: `judged(variants(made, roots.engines), judge)`
with `models.runtime.variants` or `shipped_variants`. Which rows train and which are tested is `splits.parts`' affair.

A recipe runs the product's own graphs (VisionGraph, AudioGraph, SensorGraph), or, where a set is too small to learn
from nothing, a trunk in their place, with their inputs and outputs. What it needs beyond the outputs that the
device's contract names, it adds as outputs of a subclass that returns more (`runtime.make(..., outputs={"audio":
("embedding", "logit", "sounds")})`): an engine takes a graph that gives more than promised. A head that is no part
of the graph is numpy on the embeddings, float on every engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from edge_agent.core.records import Engine
from models.progress import Progress
from models.runtime import ENGINES, FP32, INT8, Made, variants

#: (engine, precision): ("torch", "fp32"), ("openvino", "int8") …
Variant = tuple[str, str]
Ready = TypeVar("Ready")


@dataclass(frozen=True, slots=True)
class Roots:
    """Where the rows that train and the rows that are tested lie, and which engines are asked for."""

    train: Path
    test: Path
    engines: tuple[str, ...] = ENGINES

    @property
    def same(self) -> bool:
        """One folder for both: what is tested there must not train."""
        return self.train.resolve() == self.test.resolve()


@dataclass(frozen=True, slots=True)
class Prediction:
    """One tested row: `label` and `score` are numbers, or names of classes."""

    key: str  #: whose rows: "frame", "threat", "class", "fused" … (the set's own words)
    item: str  #: which row of the set: "04:117" (clip:frame), "test/gun_003.flac", "valve2/1.csv:812" …
    label: float | str
    score: float | str


@dataclass(frozen=True)
class Judged:
    """What one engine in one precision reached."""

    metrics: dict[str, float]
    predictions: list[Prediction]


@dataclass(frozen=True)
class Block:
    """One way to be judged (recipe or bundle) on all engines."""

    judged: dict[Variant, Judged]
    n: int  #: tested rows (clips, frames, minutes …) of the set's main figure
    split: str  #: in words: what trained, what was tested
    starts: list[dict[str, str]] = field(default_factory=list)  #: checkpoints it began with: name, sha256, data
    #: Other methods on the same rows in the same run: name → metric key → figure.
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    #: What a reader must know: rows that a table names and the folder lacks, a modality that is not there, …
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Task:
    """A benchmark set: the two ways to be judged, and the floor of each metric (DATA.md of the set)."""

    recipe: Callable[[Roots, int], Block]
    bundle: Callable[[Roots, int, Path], Block]
    floor: Mapping[str, float]


def judged(variants: Iterable[tuple[str, str, Ready]], judge: Callable[[Ready], Judged]) -> dict[Variant, Judged]:
    """`judge` on every variant in turn: an engine, or several where each answers for a part of the rows."""
    found: dict[Variant, Judged] = {}
    for engine, precision, ready in variants:
        shown = Progress(f"judging {engine} {precision}", 1)
        found[engine, precision] = judge(ready)
        shown.at(1)
    return found


def judged_in_float(made: Made, engines: Sequence[str], judge: Callable[[Engine], Judged]) -> dict[Variant, Judged]:
    """`judge` once for each engine, for graphs that stay float32 where int8 is asked for: one file, one answer."""
    found: dict[Variant, Judged] = {}
    for (engine, precision), answer in judged((v for v in variants(made, engines) if v[1] == FP32), judge).items():
        found[engine, precision] = answer
        if engine != "torch":
            found[engine, INT8] = answer
    return found
