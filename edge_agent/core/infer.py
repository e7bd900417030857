"""Prepared windows → embeddings → Scores: each window is encoded once, the head runs over the cached history.

The shares are exact Shapley values: the head is run under every mask of the modalities that the history holds, all
of them and all scenes in one call, so that shares sum to logit(all) − logit(none) and a missing modality has 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.event import MODALITIES
from edge_agent.core.records import F32, U8, Model, Prepared, Scores

_INPUT = {"vision": "frames", "audio": "pcm", "sensors": "readings"}
#: Exponent beyond which a sigmoid is 0 or 1 anyway; math.exp overflows at 710.
_FAR = 60.0


@dataclass(frozen=True, slots=True)
class Encoded:
    """What the encoders made of one window."""

    embeddings: F32  #: (3, D), zeros where the mask is 0
    mask: F32  #: (3,)
    heat: U8 | None  #: (rows, cols) probabilities as 0..255


@dataclass(frozen=True, slots=True)
class History:
    """Cached embeddings of a scene, oldest first; its last row is the window that is scored."""

    scene: str
    step: int
    embeddings: F32  #: (history, 3, D)
    mask: F32  #: (history, 3)
    heat: U8 | None


def sigmoid(logit: float) -> float:
    """Probability of a logit."""
    return 1.0 / (1.0 + math.exp(-max(-_FAR, min(_FAR, logit))))


def logit(probability: float) -> float:
    """Its inverse, finite for every probability."""
    kept = min(max(probability, 1e-6), 1 - 1e-6)
    return math.log(kept / (1 - kept))


def encode(model: Model, windows: Sequence[Prepared]) -> list[Encoded]:
    """Embeddings of each window, one engine call per modality. An embedding that is not finite counts as missing."""
    size = model.manifest.embedding
    embeddings = np.zeros((len(windows), len(MODALITIES), size), np.float32)
    mask = np.zeros((len(windows), len(MODALITIES)), np.float32)
    heats: list[U8 | None] = [None] * len(windows)
    for column, (modality, name) in enumerate(_INPUT.items()):
        rows = [row for row, window in enumerate(windows) if getattr(window, modality) is not None]
        items = [{name: getattr(windows[row], modality)} for row in rows]
        for row, output in zip(rows, model.engine.run(modality, items) if items else [], strict=True):
            if not np.isfinite(output["embedding"]).all():
                continue
            embeddings[row, column] = output["embedding"]
            mask[row, column] = 1.0
            if "heat" in output:
                heats[row] = _heat(output["heat"])
    return [Encoded(embeddings[row], mask[row], heats[row]) for row in range(len(windows))]


def score(model: Model, histories: Sequence[History]) -> list[Scores | None]:
    """Scores of each history's last window, one engine call for all; None where the head's logit is not finite."""
    subsets = [_subsets(history.mask) for history in histories]
    items = [item for history, ways in zip(histories, subsets, strict=True) for item in _items(history, ways)]
    outputs = iter(model.engine.run("fusion", items) if items else [])
    return [
        _scores(model, history, {subset: next(outputs) for subset in ways})
        for history, ways in zip(histories, subsets, strict=True)
    ]


def shapley(values: Mapping[frozenset[int], float], players: Sequence[int]) -> dict[int, float]:
    """Shapley value of each player; `values` holds every subset of `players`."""
    count = len(players)
    shares = dict.fromkeys(players, 0.0)
    for player in players:
        for subset, value in values.items():
            if player not in subset:
                weight = math.factorial(len(subset)) * math.factorial(count - len(subset) - 1)
                shares[player] += weight / math.factorial(count) * (values[subset | {player}] - value)
    return shares


def _subsets(mask: F32) -> list[frozenset[int]]:
    """Every subset of the modalities that the history holds, the empty one first and the whole last."""
    held = [column for column in range(mask.shape[1]) if mask[:, column].any()]
    return [
        frozenset(column for bit, column in enumerate(held) if number >> bit & 1) for number in range(1 << len(held))
    ]


def _items(history: History, subsets: Sequence[frozenset[int]]) -> list[dict[str, NDArray[Any]]]:
    """The head's input under each subset: what is not in it is zero, mask and embeddings alike."""
    held = [np.ascontiguousarray(history.embeddings[:, column]) for column in range(len(MODALITIES))]
    nothing = np.zeros_like(held[0])
    found = []
    for subset in subsets:
        mask = np.zeros_like(history.mask)
        for column in subset:
            mask[:, column] = history.mask[:, column]
        item: dict[str, NDArray[Any]] = {
            modality: held[column] if column in subset else nothing for column, modality in enumerate(MODALITIES)
        }
        found.append({**item, "mask": mask})
    return found


def _scores(
    model: Model, history: History, outputs: Mapping[frozenset[int], Mapping[str, NDArray[Any]]]
) -> Scores | None:
    values = {subset: float(output["logit"]) for subset, output in outputs.items()}
    whole = max(outputs, key=len)
    head = outputs[whole]
    probabilities = np.asarray(head["classes"], np.float64)
    if not (all(map(math.isfinite, values.values())) and np.isfinite(probabilities).all()):
        return None
    shares = dict.fromkeys((*MODALITIES, "none"), 0.0)
    shares["none"] = values[frozenset()]
    for column, share in shapley(values, sorted(whole)).items():
        shares[MODALITIES[column]] = share
    return Scores(
        scene=history.scene,
        step=history.step,
        logit=values[whole],
        score=sigmoid(values[whole]),
        classes={
            name: sigmoid(float(logit)) for name, logit in zip(model.manifest.classes, probabilities, strict=True)
        },
        shares=shares,
        modality_logits={MODALITIES[column]: float(head["modality_logits"][column]) for column in sorted(whole)},
        present=tuple(name for column, name in enumerate(MODALITIES) if history.mask[-1, column]),
        embedding=np.asarray(head["embedding"], np.float32),
        heat=history.heat,
    )


def _heat(logits: NDArray[Any]) -> U8:
    probabilities = 1.0 / (1.0 + np.exp(-np.clip(np.nan_to_num(logits), -_FAR, _FAR)))
    heat: U8 = np.rint(probabilities * 255).astype(np.uint8)
    return heat
