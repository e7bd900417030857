"""Engines at the edge of the core: the answers are the test's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.config import QUANTITIES, UNITS
from edge_agent.contract.manifest import AudioSpec, Manifest, SensorSpec, Thresholds, VisionSpec
from edge_agent.core.records import Arrays, Model

EMBEDDING, HISTORY, STEPS = 4, 8, 6
CLASSES = ("fight", "shout", "fire", "gunshot")

#: logit of the fusion head by the presence of (vision, audio, sensors) in its mask.
Head = Callable[[tuple[bool, bool, bool]], float]


def manifest(**changes: Any) -> Manifest:
    """Of a small bundle; `changes` are its fields."""
    fields: dict[str, Any] = {
        "family": "fake",
        "name": "fake",
        "counter": 1,
        "created": "2026-01-01T00:00:00Z",
        "history": HISTORY,
        "embedding": EMBEDDING,
        "classes": CLASSES,
        "vision": VisionSpec(width=32, height=24),
        "audio": AudioSpec(rate_hz=16_000, samples=16_000),
        "sensors": SensorSpec(quantities=QUANTITIES, units=UNITS, steps=STEPS),
        "thresholds": Thresholds(on=0.6, off=0.4, classes=dict.fromkeys(CLASSES, 0.5)),
        "files": {},
    }
    return Manifest(**{**fields, **changes})


class FakeEngine:
    """Embeddings are the mean of the input; the head's logit comes from a function of what is present."""

    def __init__(self, head: Head | None = None) -> None:
        self.head: Head = head or (lambda present: -3.0)
        self.classes: dict[str, float] = {}  #: logits; −5 for those not named
        self.calls: list[tuple[str, int]] = []
        self.seen: dict[str, list[Arrays]] = {}

    def run(self, graph: str, items: Sequence[Arrays]) -> list[dict[str, NDArray[Any]]]:
        self.calls.append((graph, len(items)))
        self.seen[graph] = list(items)
        return [self._fuse(item) if graph == "fusion" else self._encode(graph, item) for item in items]

    def close(self) -> None:
        pass

    def _encode(self, graph: str, item: Arrays) -> dict[str, NDArray[Any]]:
        mean = float(next(iter(item.values())).astype(np.float64).mean())
        output: dict[str, NDArray[Any]] = {
            "embedding": np.full(EMBEDDING, mean, np.float32),
            "logit": np.array(mean, np.float32),
        }
        if graph == "vision":
            output["heat"] = np.array([[-100.0, 0.0, 100.0]], np.float32)
        return output

    def _fuse(self, item: Arrays) -> dict[str, NDArray[Any]]:
        vision, audio, sensors = (bool(column.any()) for column in item["mask"].T)
        logits = [self.classes.get(name, -5.0) for name in CLASSES]
        return {
            "logit": np.array(self.head((vision, audio, sensors)), np.float32),
            "classes": np.array(logits, np.float32),
            "modality_logits": np.array([1.0, 2.0, 3.0], np.float32),
            "embedding": np.zeros(EMBEDDING, np.float32),
        }


def fake_model(engine: FakeEngine | None = None, hash_: str = "a" * 64, **changes: Any) -> Model:
    """A model on a fake engine."""
    return Model(manifest(**changes), hash_, engine or FakeEngine())
