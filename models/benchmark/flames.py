"""Fire in single pictures, searched from the web: burning things against lamps, sunsets and red walls.

The pictures' rights are not cleared, so nothing that they train ships: the recipe shows what the product's pipeline
reaches with a start from ImageNet and a site's own pictures, the bundle what the shipped weights know of fire.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edge_agent.contract.manifest import VisionSpec
from edge_agent.core import prepare
from edge_agent.core.memory import Memory
from edge_agent.core.records import F32, U8, Engine
from edge_agent.engine import open_bundle
from models.benchmark.record import Block, Judged, Prediction, Roots, Task, judged
from models.benchmark.splits import Row, parts
from models.compression.export import fold
from models.config import Preset, preset
from models.data.lens import lens, seen
from models.data.media import Pictures
from models.metrics import auc, average_precision
from models.network.backbone import START, Colours, Trunk, imagenet
from models.progress import tracked
from models.runtime import Made, make, shipped_variants, through, variants
from models.training.linear import logistic

SET = "fire_images"
#: Floor of the set: a forest on histograms of colour.
FLOOR = {"auc": 0.90}
#: All blocks of the trunk: the last one makes half of the errors of the one before (0.999 AUC on dev against 0.998,
#: and on pictures cut, relit and compressed 0.999 against 0.993), 11 blocks reach 0.95.
BLOCKS = 16
SPEC = VisionSpec(width=224, height=160)
#: Other cameras that each picture is seen through, besides its own; strength of the ridge on the head.
_VIEWS, _PENALTY = 3, 1.0
_CALIBRATION = 96


@dataclass(frozen=True)
class Still:
    """A picture of any size, uint8 (h, w, 3) RGB, and whether something burns in it."""

    item: str
    picture: U8
    fire: float


class FlameGraph(nn.Module):
    """uint8 (N, 5, H, W) → embedding (N, width), heat (N, H/shrink, W/shrink), logit: fire anywhere in the picture.

    The embedding is the mean of the trunk's features over the picture, heat and logit are one linear layer on the
    features of each cell and on their mean: the logit is the mean of the heat map.
    """

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.front = Colours()
        self.trunk = trunk
        self.head = nn.Linear(trunk.width, 1)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self.trunk(self.front(frames))
        embedding = y.mean((2, 3))
        heat = F.conv2d(y, self.head.weight[:, :, None, None], self.head.bias)
        return embedding, heat[:, 0], self.head(embedding)[:, 0]


def recipe(roots: Roots, seed: int) -> Block:
    """The ImageNet trunk with a linear head, trained on the train part through many cameras. Minutes."""
    found = parts(roots, f"{SET}/labels.csv", "split", _file, wrong="fire", also=("filename",))
    shape = replace(preset("first"), vision_spec=SPEC, embedding=Trunk(BLOCKS).width)
    made = learned(stills(roots.train, found.train), shape, seed)
    tested = stills(roots.test, found.test)
    ready = prepared(tested, SPEC)
    blocks = judged(variants(made, roots.engines), lambda engine: _judge(tested, _logits(engine, ready)))
    return Block(blocks, len(tested), found.split, [START], notes=found.notes)


def learned(train: Sequence[Still], shape: Preset, seed: int) -> Made:
    """The trunk and a head for these pictures, exported and quantised."""
    graph = FlameGraph(imagenet(BLOCKS)).eval()
    # Folded and with channels last the trunk takes half the time.
    eye: nn.Module = fold(graph).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    rng = np.random.default_rng([seed, 61])
    rows, windows = [], []
    for still in tracked("pictures through other cameras", train):
        shown = [still.picture, *(seen(still.picture, lens(rng), rng) for _ in range(_VIEWS))]
        frames = np.stack([prepare.still(picture, shape.vision_spec) for picture in shown])
        windows.append(frames[int(rng.integers(len(frames)))])
        with torch.inference_mode():
            rows.append(eye(torch.from_numpy(frames))[0].numpy())
    label = np.repeat([still.fire for still in train], _VIEWS + 1)
    head = logistic(np.concatenate(rows), label, _PENALTY)
    with torch.no_grad():
        graph.head.weight.copy_(torch.from_numpy(head.weight)[None])
        graph.head.bias.fill_(head.bias)
    return make(shape, {"vision": graph}, {"vision": _calibration(windows, rng)})


def bundle(roots: Roots, seed: int, shipped: Path) -> Block:
    """The shipped vision graph's logit, in standard deviations of the normal pictures of the train part.

    `auc_novelty` is what the device's memory of those normal pictures says alone, `auc_both` the mean of the two: web
    pictures have no usual look, so a memory of them knows little.
    """
    found = parts(roots, f"{SET}/labels.csv", "split", _file, wrong="fire", also=("filename",))
    tested = stills(roots.test, found.test)
    normal = [still for still in stills(roots.train, found.train) if not still.fire]
    spec = open_bundle(shipped).manifest.vision
    shown, known = prepared(tested, spec), prepared(normal, spec)

    def judge(engine: Engine) -> Judged:
        usual, new = (through(engine, "vision", frames) for frames in (known, shown))
        memory = Memory(usual["embedding"].shape[1])
        memory.fill(usual["embedding"])
        novelty = np.array([memory.novelty(vector) for vector in new["embedding"]], np.float32)
        logit = (new["logit"] - usual["logit"].mean()) / (usual["logit"].std() + 1e-6)
        told, label = _judge(tested, np.asarray(logit, np.float32)), _labels(tested)
        more = {"auc_novelty": auc(label, novelty), "auc_both": auc(label, logit + novelty)}
        return Judged({**told.metrics, **more}, told.predictions)

    words = f"{found.split}; of the pictures that train, only the {len(normal)} normal ones are used"
    return Block(judged(shipped_variants(shipped, roots.engines), judge), len(tested), words, notes=found.notes)


def stills(root: Path, table: Sequence[Row]) -> list[Still]:
    """The pictures of these rows. ConfigError for one that cannot be read."""
    found = []
    for row in tracked("pictures", table):
        _, _, picture = next(Pictures(root / _file(row)).stream())
        found.append(Still(row["filename"], picture, float(row["fire"])))
    return found


def prepared(pictures: Sequence[Still], spec: VisionSpec) -> list[U8]:
    """What the graph sees of each: nothing in it moves."""
    return [prepare.still(still.picture, spec) for still in pictures]


def _file(row: Row) -> str:
    return f"{SET}/{row['filename']}"


def _calibration(windows: Sequence[U8], rng: np.random.Generator) -> list[U8]:
    chosen = rng.permutation(len(windows))[:_CALIBRATION]
    return [windows[int(index)] for index in chosen]


def _logits(engine: Engine, frames: Sequence[U8]) -> F32:
    return np.asarray(through(engine, "vision", frames)["logit"], np.float32)


def _labels(pictures: Sequence[Still]) -> F32:
    return np.array([still.fire for still in pictures], np.float32)


def _judge(pictures: Sequence[Still], score: F32) -> Judged:
    label = _labels(pictures)
    rows = [Prediction("fire", p.item, p.fire, float(s)) for p, s in zip(pictures, score, strict=True)]
    return Judged({"auc": auc(label, score), "ap": average_precision(label, score)}, rows)


SETS = {SET: Task(recipe, bundle, FLOOR)}
