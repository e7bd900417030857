"""What is trained and for how long: one frozen record per part, one preset per name."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from edge_agent.config import QUANTITIES, UNITS
from edge_agent.contract.manifest import AudioSpec, SensorSpec, VisionSpec
from edge_agent.errors import ConfigError

#: Classes that name an event: only those with recorded training data whose licence lets the weights ship.
CLASSES = ("gunshot", "explosion", "siren", "fire")
#: What the audio encoder tells apart; `other` has no name (simulated glass, alarm): it only raises the score.
SOUNDS = ("casual", "gunshot", "explosion", "siren", "other")
FAMILY = "tectum-default"
Logger = Literal["none", "tensorboard", "mlflow", "wandb"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how hard to train."""

    steps: int
    batch: int
    rate: float
    decay: float = 1e-3


@dataclass(frozen=True, slots=True)
class Fusion:
    """How the head fuses; what each choice is worth stands in docs/explanation/ablations.md."""

    block: str = "hybrid"  #: one of `models.network.fusion.BLOCKS`
    #: each modality's own score in the fused one: gated and added to the block's, left out, alone, or as a plain mean
    evidence: Literal["gated", "none", "alone", "mean"] = "gated"
    #: modalities keep spaces of their own, or share one by a common layer
    space: Literal["separate", "shared"] = "separate"
    learned_tokens: bool = True  #: in the place of what is missing; else zeros
    width: int = 32
    rank: int = 8
    #: objectives beside the supervised one, each with its weight: names of `models.training.train.TERMS`
    terms: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Run:
    """Where and how a training runs; what it learns does not depend on it, but for precision and rounding."""

    folder: Path | None = None  #: of checkpoints and logs; None: neither
    logger: Logger = "none"
    precision: Literal["fp32", "bf16"] = "fp32"  #: bf16: mixed, the weights stay float32
    processes: int = 1  #: DDP over gloo
    look_steps: int = 50  #: steps between two checkpoints, log entries and looks of the judge
    patience: int = 0  #: looks without a better figure (or loss) after which to stop; 0: never


@dataclass(frozen=True, slots=True)
class Compression:
    """How what is trained becomes what ships: a wider teacher is pruned to the preset's widths, and teaches them."""

    #: times as many channels inside the teacher; 1: none is pruned, what is trained ships
    wider_vision: int = 1
    wider_audio: int = 2
    energy: float = 0.999  #: that a low-rank layer keeps of its weights; 1: none is factored
    windows: int = 720  #: inputs of the training split to distil on
    vision: Schedule = Schedule(steps=600, batch=16, rate=1e-3)
    audio: Schedule = Schedule(steps=2000, batch=48, rate=1e-3)
    aware: Schedule = Schedule(steps=60, batch=16, rate=1e-4, decay=0.0)  #: in int8; 0 steps: scales alone


#: No files, one process, to the last step.
ALONE = Run()


@dataclass(frozen=True, slots=True)
class Preset:
    """The shape of the model that ships, and its training schedule."""

    name: str
    step_ms: int = 500
    history: int = 8
    embedding: int = 64
    vision_spec: VisionSpec = field(default_factory=lambda: VisionSpec(width=240, height=160))
    audio_spec: AudioSpec = field(default_factory=AudioSpec)
    sensor_spec: SensorSpec = field(default_factory=lambda: SensorSpec(quantities=QUANTITIES, units=UNITS))
    vision_channels: tuple[int, int, int] = (16, 32, 64)
    audio_channels: tuple[int, ...] = (16, 32, 64, 128)
    sensor_width: int = 32
    head: Fusion = Fusion("late", "alone")
    vision: Schedule = Schedule(steps=2700, batch=16, rate=2e-3, decay=0.01)
    audio: Schedule = Schedule(steps=3600, batch=64, rate=4e-3, decay=0.03)
    sensors: Schedule = Schedule(steps=1500, batch=64, rate=3e-3)
    fusion: Schedule = Schedule(steps=800, batch=128, rate=2e-3, decay=0.05)
    episodes: tuple[int, int] = (480, 240)  #: composed for training and for dev
    stills: int = 200  #: made-up photographs without fire, used as backgrounds
    calibration_windows: int = 96
    compression: Compression = Compression()
    sites: tuple[int, int] = (24, 5)  #: simulated sites with episodes for train and dev; half as many quiet ones
    site_s: float = 150.0  #: how long each simulated site that trains or measures is
    site_pictures: int = 60  #: and how many pictures of it are taken
    lookalikes: int = 40  #: claps of thunder that are no threat, slams of doors as many, blows three times as many
    quiet_sites: int = 3
    quiet_s: int = 600
    run: Run = ALONE  #: where and how its trainings run


def teacher(shape: Preset) -> Preset:
    """The preset of the network that is trained first: what ships is pruned from it, to the widths of `shape`."""
    how = shape.compression
    a, b, c = (how.wider_vision * width for width in shape.vision_channels)
    audio = tuple(how.wider_audio * width for width in shape.audio_channels)
    return replace(shape, vision_channels=(a, b, c), audio_channels=audio)


def preset(name: str) -> Preset:
    """The preset of that name; ConfigError lists the names there are."""
    if name not in PRESETS:
        raise ConfigError(f"no preset is named {name!r}; there are {', '.join(PRESETS)}", "--preset")
    return PRESETS[name]


_FIRST = Preset(name="first")
PRESETS = {
    "first": _FIRST,
    # Seconds instead of minutes: proves the way from data to bundle, not the model.
    "tiny": replace(
        _FIRST,
        name="tiny",
        vision=Schedule(steps=3, batch=4, rate=3e-3),
        audio=Schedule(steps=3, batch=4, rate=4e-3, decay=0.03),
        sensors=Schedule(steps=5, batch=8, rate=3e-3),
        fusion=Schedule(steps=20, batch=16, rate=2e-3),
        episodes=(12, 6),
        stills=6,
        calibration_windows=6,
        compression=Compression(
            windows=12,
            vision=Schedule(steps=2, batch=4, rate=1e-3),
            audio=Schedule(steps=2, batch=4, rate=1e-3),
            aware=Schedule(steps=2, batch=4, rate=1e-4, decay=0.0),
        ),
        sites=(1, 1),
        site_s=45.0,
        site_pictures=6,
        lookalikes=1,
        quiet_sites=1,
        quiet_s=10,
    ),
}
