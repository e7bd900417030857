"""What every benchmark of sounds does alike: train a listener, read whole clips with it, lay noise under them.

The listener of a recipe is an ImageNet trunk that is taught on as the shipped encoder is from nothing: a set of some
hundred clips is too little to learn from nothing, and what the trunk knows of edges and textures holds under noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_agent.core.records import F32, I16, Engine
from edge_agent.engine import open_bundle
from models.config import SOUNDS, Schedule, preset
from models.data.listening import Heard, frames_of, listen, pooled, windows_of
from models.network.backbone import Spectrograms, Trunk, imagenet
from models.network.encoders import threat
from models.network.frontend import MELS
from models.network.graphs import AudioGraph
from models.runtime import Made, make, through
from models.training.hearing import Course, Listener, teach
from models.training.train import deterministic

PRESET = preset("first")
SPEC = PRESET.audio_spec
#: Six times the rate cost five points of accuracy on a fold: the trunk forgets what it knew.
_RATE, _DECAY = 5e-4, 0.03
#: Blocks of the trunk; rows and columns of its pictures, those of the log-mel: more of them took two to three times
#: as long for no gain.
_BLOCKS, _HEIGHT, _WIDTH = 15, 64, 96
CALIBRATION = 128  #: windows that int8 scales are taken from
#: Precedes the name of an output that is the greatest over a clip's windows.
MOST = "most"
_AT_ONCE = 64  #: clips whose windows are in memory together

Rng = np.random.Generator


@dataclass(frozen=True)
class Clip:
    """One sound of a set: what its table calls it, and its samples."""

    item: str
    name: str
    pcm: I16


def heard(clips: Sequence[Clip]) -> list[Heard]:
    """Mel power of every clip."""
    return listen((clip.pcm for clip in clips), SPEC)


class TrunkEncoder(nn.Module):
    """What `AudioEncoder` takes and gives, by a trunk of pictures: log-mel (N, 1, MELS, frames) → embedding, mean and
    greatest of its features; sounds (N, len(SOUNDS)) logits; logit = threat against casual."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.picture = Spectrograms(MELS, frames_of(SPEC), _HEIGHT, _WIDTH)
        self.trunk = trunk
        self.drop = nn.Dropout(0.2)
        self.sounds = nn.Linear(2 * trunk.width, len(SOUNDS))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.trunk(self.picture(x).contiguous(memory_format=torch.channels_last))
        embedding = self.drop(torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1))
        sounds = self.sounds(embedding)
        return embedding, sounds, threat(sounds)


def _listener(trunk: Trunk, heads: Mapping[str, tuple[str, ...]]) -> Listener:
    return Listener(AudioGraph(PRESET, TrunkEncoder(trunk)), 2 * trunk.width, heads)


def trained(course: Course, steps: int, seed: int) -> Listener:
    """A listener that has been through its course; one thread, the same weights wherever it runs. Minutes."""
    deterministic(seed)
    listener = _listener(imagenet(_BLOCKS), course.heads)
    batch = sum(lesson.count for lesson in course.lessons)
    teach(listener, course, SPEC, Schedule(steps, batch, _RATE, _DECAY), seed)
    return listener


def weights_of(listener: Listener) -> dict[str, NDArray[Any]]:
    """Its weights, as they travel between processes."""
    return {name: tensor.numpy() for name, tensor in listener.state_dict().items()}


def listener_of(heads: Mapping[str, tuple[str, ...]], weights: Mapping[str, NDArray[Any]]) -> Listener:
    """A listener with weights that another process trained, in evaluation mode."""
    listener = _listener(Trunk(_BLOCKS), heads)
    listener.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    return listener.eval()


def start_of(shipped: Path) -> dict[str, str]:
    """The shipped bundle as a starting checkpoint: of the sounds that are judged here it saw splits train alone."""
    opened = open_bundle(shipped)
    data = "splits train of sesa and esc10 (folds 1 to 3) and simulated sites; the rest stands on its card"
    return {"name": opened.manifest.name, "sha256": opened.hash, "data": data}


def made_of(listener: Listener, clips: Sequence[Clip], seed: int) -> Made:
    """The listener exported, and in int8 with scales from training clips."""
    rng = np.random.default_rng([seed, 42])
    windows = []
    for index in rng.integers(0, len(clips), CALIBRATION):
        of_clip = windows_of(clips[int(index)].pcm, SPEC)
        windows.append(of_clip[int(rng.integers(len(of_clip)))])
    shape = replace(PRESET, embedding=listener.embedding)
    return make(shape, {"audio": listener}, {"audio": windows}, {"audio": listener.outputs})


def clip_outputs(
    engine: Engine,
    sounds: Sequence[I16],
    names: Sequence[str],
    *,
    most: Sequence[str] = (),
    every_s: float = 0.5,
) -> dict[str, F32]:
    """Outputs of the audio graph per clip, float32 (clips, …) each: pooled over the windows of the clip.

    `most`: of these outputs also, as "most <name>", the greatest of each part over the windows.
    """
    starts = range(0, len(sounds), _AT_ONCE)
    parts = [_outputs(engine, sounds[i : i + _AT_ONCE], names, most, every_s) for i in starts]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _outputs(
    engine: Engine, sounds: Sequence[I16], names: Sequence[str], most: Sequence[str], every_s: float
) -> dict[str, F32]:
    windows = [windows_of(pcm, SPEC, every_s) for pcm in sounds]
    found = through(engine, "audio", np.concatenate(windows))
    ends = np.cumsum([len(part) for part in windows])[:-1]
    outputs = {
        name: np.stack([pooled(p, w) for p, w in zip(np.split(found[name], ends), windows, strict=True)])
        for name in names
    }
    for name in most:
        outputs[f"{MOST} {name}"] = np.stack([part.max(0) for part in np.split(found[name], ends)])
    return outputs


def mixed(pcm: I16, noise: I16, snr_db: float, rng: Rng) -> I16:
    """The clip with noise under it, from a random place of the noise; both turned down alike where it would clip.

    The ratio is that of the mean powers of the whole clip.
    """
    under = np.resize(np.roll(noise, -int(rng.integers(len(noise)))), len(pcm)).astype(np.float64)
    clip = pcm.astype(np.float64)
    gain = np.sqrt(np.square(clip).mean() / (np.square(under).mean() + 1e-9)) * 10 ** (-snr_db / 20)
    wave = clip + under * gain
    return np.asarray(wave * min(1.0, 32767 / (np.abs(wave).max() + 1e-9)), np.int16)


def synthetic_noise() -> list[I16]:
    """For where no recording is at hand: surf and drops, int16 10 s each. Training makes up steady noise only."""
    rng = np.random.default_rng(7)
    time_s = np.arange(10 * SPEC.rate_hz) / SPEC.rate_hz
    drop = np.exp(-np.arange(200) / 30) * np.sin(np.arange(200))
    found = []
    for index in range(6):
        surf = np.convolve(rng.normal(0, 1, len(time_s)), 0.97 ** np.arange(128), "same")
        surf = surf * (1.2 + np.sin(time_s * rng.uniform(0.5, 2.0)))
        drops = np.convolve((rng.random(len(time_s)) < 0.002) * rng.exponential(1.0, len(time_s)), drop, "same")
        wave = surf if index % 2 else drops
        found.append(np.asarray(wave / np.abs(wave).max() * 20000, np.int16))
    return found
