"""Training of the vision encoder that ships: where something is wrong, whether, and whether it burns.

Three kinds of pictures: staged ones (filmed or made-up backgrounds with and without fire), cut-outs of normal film
pasted changed and unchanged, and frames of the simulated site. Beside the labels, a teacher that knows photographs
(ImageNet) says what each picture looks like to it, and the encoder must be able to tell (feature distillation, Romero
et al., "FitNets", ICLR 2015): made-up pictures alone teach what made-up pictures look like.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edge_agent.core.records import F32, U8
from models.backbone import Colours, imagenet
from models.config import Preset
from models.data.cutouts import FIRST, Cutouts, Kind, Size
from models.data.staging import Picture, Stage, Wrong
from models.network import VisionGraph
from models.oneclass import cell_loss, window
from models.train import fit

Rng = np.random.Generator
#: How often a picture holds nothing, a fire, something odd.
_MIX: tuple[tuple[Wrong, float], ...] = (("nothing", 0.42), ("fire", 0.38), ("odd", 0.20))
#: Of those that are not fire, how many are cut-outs of film rather than staged.
_CUT: dict[Wrong, float] = {"nothing": 0.25, "fire": 0.0, "odd": 0.5}
#: What is odd on any site: looks, not speed or size, which are a matter of the place.
_KINDS: tuple[Kind, ...] = ("stretch", "append", "append", "thing", "turn")
_SIZE = Size(area=(60, 6000), width=(5, 90), height=(8, 100))
#: Share of a batch from the simulated site; pictures that are kept; how often one is replaced by a new one.
_SIMULATED, _POOL, _FRESH = 0.2, 600, 0.25
#: The teacher's blocks (earlier ones, tried with a linear head, carried little from made-up fire to photographs),
#: pictures that its scale is taken from, where its features are cut off, and what they weigh beside the labels.
_BLOCKS, _SCALED_ON, _FARTHEST, _WEIGHT = 15, 64, 4.0, 0.5


class Teacher:
    """What the ImageNet trunk makes of a picture: float (WIDTH, h, w), about zero mean and unit spread."""

    def __init__(self, pictures: list[U8]) -> None:
        """Scaled on prepared pictures (5, H, W). ConfigError if the package with the weights is missing."""
        self._colours, self._trunk = Colours(), imagenet(_BLOCKS)
        self.width = self._trunk.width
        found = np.stack([self._features(picture) for picture in pictures])
        self._mean, self._spread = (f((0, 2, 3))[:, None, None] for f in (found.mean, found.std))

    def __call__(self, picture: U8) -> F32:
        scaled = (self._features(picture) - self._mean) / (self._spread + 1e-3)
        return np.asarray(np.clip(scaled, -_FARTHEST, _FARTHEST), np.float32)

    def _features(self, picture: U8) -> F32:
        with torch.inference_mode():
            return np.asarray(self._trunk(self._colours(torch.from_numpy(picture[None])))[0].numpy(), np.float32)


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture, and what the teacher makes of it."""

    picture: Picture
    features: F32 | None


class Pupil(nn.Module):
    """The graph, and a layer that says what the teacher sees; it does not ship."""

    def __init__(self, graph: VisionGraph, width: int, teacher: int) -> None:
        super().__init__()
        self.graph = graph
        self.tell = nn.Conv2d(width, max(teacher, 1), 1)


def train_vision(graph: VisionGraph, preset: Preset, stage: Stage, simulated: list[Picture], seed: int) -> None:
    """Train `graph` on the pictures of `stage` and of the simulated site; it ends in evaluation mode."""
    pool = Pool(stage, simulated, np.random.default_rng([seed, 11]), taught=preset.vision_taught)
    pupil = Pupil(graph, preset.embedding, pool.width)
    encoder = graph.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(frames: Tensor, cells: Tensor, wrong: Tensor, fire: Tensor, features: Tensor) -> Tensor:
        x = graph.front(frames).contiguous(memory_format=torch.channels_last)
        seen = encoder.features(x)
        _, heat, logit, flame = encoder.answer(seen)
        # A window whose anomaly is too small for one whole cell says nothing about the window.
        # One whose place nobody marked (−1 everywhere) speaks for the window alone.
        most = cells.flatten(1).amax(1)
        clear = (wrong < 0.5) | (most > 0.5) | (most < 0)
        whether = (F.binary_cross_entropy_with_logits(logit, wrong * 0.96 + 0.02, reduction="none") * clear).mean()
        what = (F.binary_cross_entropy_with_logits(flame, fire * 0.96 + 0.02, reduction="none") * clear).mean()
        total = 2.0 * cell_loss(heat, cells) + 0.5 * whether + 0.3 * what
        if features.numel():
            told = pupil.tell(F.adaptive_avg_pool2d(seen, (features.shape[2], features.shape[3])))
            total = total + _WEIGHT * F.mse_loss(told, features)
        return total

    fit("vision", pupil, preset.vision, batches(pool, preset.vision.batch), loss, run=preset.run)


@dataclass
class Pool:
    """Pictures to train on. Making one costs as much as a training step on it, so each is used about four times."""

    stage: Stage
    simulated: list[Picture]
    rng: Rng
    taught: bool
    kept: list[Shown] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._cutouts = _cutouts(self.stage)
        self._teacher: Teacher | None = None
        if self.taught:
            some = [self._made(wrong).frames for wrong in ("nothing", "fire") for _ in range(_SCALED_ON // 2)]
            self._teacher = Teacher(some)
        self._site = [Shown(picture, self._features(picture)) for picture in self.simulated]

    @property
    def width(self) -> int:
        """Channels of the teacher's features; 0 without one."""
        return 0 if self._teacher is None else self._teacher.width

    def draw(self) -> Shown:
        """A picture of the site, one that was used before, or a new one."""
        rng = self.rng
        if self._site and rng.random() < _SIMULATED:
            return self._site[int(rng.integers(len(self._site)))]
        if len(self.kept) >= _POOL and rng.random() >= _FRESH:
            return self.kept[int(rng.integers(_POOL))]
        names, weights = zip(*_MIX, strict=True)
        picture = self._made(names[int(rng.choice(len(names), p=weights))])
        shown = Shown(picture, self._features(picture))
        if len(self.kept) < _POOL:
            self.kept.append(shown)
        else:
            self.kept[int(rng.integers(_POOL))] = shown
        return shown

    def _made(self, wrong: Wrong) -> Picture:
        if self._cutouts is not None and self.rng.random() < _CUT[wrong]:
            sample = self._cutouts.sample(self.rng, _KINDS, odd=float(wrong == "odd"), rush=0.0)
            size = (self.stage.spec.height, self.stage.spec.width)
            frames, cells = window(self.rng, sample, size)
            return Picture(frames, cells, "odd" if (cells > 0.5).any() else "nothing")
        return self.stage.picture(self.stage.script(self.rng, wrong))

    def _features(self, picture: Picture) -> F32 | None:
        return None if self._teacher is None else self._teacher(picture.frames).astype(np.float16)


def _cutouts(stage: Stage) -> Cutouts | None:
    long = [film for film in stage.films if len(film) > 4 * FIRST]
    try:
        return Cutouts.of(long, _SIZE, one_camera=False)
    except ValueError:  # nothing moves in them, or there are none
        return None


def batches(pool: Pool, batch: int) -> Iterator[tuple[Tensor, ...]]:
    """Endless: frames, cells, wrong, fire, the teacher's features (empty without a teacher)."""
    while True:
        shown = [pool.draw() for _ in range(batch)]
        turned = [_turned(pool.rng, item) for item in shown]
        features = [item.features for item in turned if item.features is not None]
        yield (
            torch.from_numpy(np.stack([item.picture.frames for item in turned])),
            torch.from_numpy(np.stack([item.picture.cells for item in turned])),
            torch.tensor([float(item.picture.wrong != "nothing") for item in turned]),
            torch.tensor([float(item.picture.wrong == "fire") for item in turned]),
            torch.from_numpy(np.stack(features).astype(np.float32)) if features else torch.zeros(batch, 0),
        )


def _turned(rng: Rng, shown: Shown) -> Shown:
    """Mirrored in half of the cases, in another light in most; the teacher's word stays: it must not matter."""
    frames, cells, features = shown.picture.frames, shown.picture.cells, shown.features
    if rng.random() < 0.5:
        frames, cells = frames[:, :, ::-1], cells[:, ::-1]
        features = None if features is None else features[:, :, ::-1]
    light = np.arange(256) * rng.uniform(0.8, 1.2) + rng.uniform(-15, 15)
    table = np.clip(light, 0, 255).astype(np.uint8)
    return Shown(Picture(table[frames], np.ascontiguousarray(cells), shown.picture.wrong), features)
