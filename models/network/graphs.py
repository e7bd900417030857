"""The four graphs of a bundle as torch modules, with the inputs and outputs the device's engines expect.

Names and shapes are those of `edge_agent.core.records.Engine`; the batch axis comes first and is dynamic.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edge_agent.contract.event import MODALITIES
from models.config import CLASSES, Preset
from models.network.encoders import AudioEncoder, SensorEncoder, VisionEncoder
from models.network.frontend import AudioFront, SensorFront, VisionFront
from models.network.fusion import FusionHead


class VisionGraph(nn.Module):
    """uint8 (N, 5, H, W) → embedding, heat logits, logit."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.front = VisionFront()
        self.encoder = VisionEncoder(preset.vision_channels, preset.embedding)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        embedding, heat, logit, _ = self.encoder(self.front(frames))
        return embedding, heat, logit


class AudioGraph(nn.Module):
    """int16 (N, samples) → embedding, logit.

    encoder: another one than the preset's, with what `AudioEncoder` takes and gives.
    """

    def __init__(self, preset: Preset, encoder: nn.Module | None = None) -> None:
        super().__init__()
        self.front = AudioFront(preset.audio_spec)
        self.encoder = AudioEncoder(preset.audio_channels, preset.embedding) if encoder is None else encoder

    def forward(self, pcm: Tensor) -> tuple[Tensor, Tensor]:
        embedding, _, logit = self.encoder(self.front(pcm))
        return embedding, logit


class SensorGraph(nn.Module):
    """float32 (N, 3, channels, steps) → embedding, logit."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.front = SensorFront(preset.sensor_spec.steps)
        self.encoder = SensorEncoder(len(preset.sensor_spec.quantities), preset.sensor_width, preset.embedding)

    def forward(self, readings: Tensor) -> tuple[Tensor, Tensor]:
        embedding, logit = self.encoder(self.front(readings))
        return embedding, logit


def fusion_head(preset: Preset) -> FusionHead:
    """An untrained head of the preset's shape."""
    return FusionHead(preset.history, preset.embedding, preset.head, len(CLASSES))


@dataclass
class Network:
    """All four graphs."""

    preset: Preset
    vision: VisionGraph
    audio: AudioGraph
    sensors: SensorGraph
    fusion: FusionHead

    def graphs(self) -> dict[str, nn.Module]:
        return {"vision": self.vision, "audio": self.audio, "sensors": self.sensors, "fusion": self.fusion}


def build(preset: Preset, seed: int) -> Network:
    """An untrained network; equal seeds give equal weights."""
    torch.manual_seed(seed)
    return Network(preset, VisionGraph(preset), AudioGraph(preset), SensorGraph(preset), fusion_head(preset))


def example(preset: Preset, graph: str, count: int = 2) -> dict[str, Tensor]:
    """Zero inputs of the right names, shapes and types for one graph."""
    vision, audio, sensors = preset.vision_spec, preset.audio_spec, preset.sensor_spec
    history: dict[str, Tensor] = {name: torch.zeros(count, preset.history, preset.embedding) for name in MODALITIES}
    inputs: dict[str, dict[str, Tensor]] = {
        "vision": {"frames": torch.zeros(count, 5, vision.height, vision.width, dtype=torch.uint8)},
        "audio": {"pcm": torch.zeros(count, audio.samples, dtype=torch.int16)},
        "sensors": {"readings": torch.zeros(count, 3, len(sensors.quantities), sensors.steps)},
        "fusion": {**history, "mask": torch.ones(count, preset.history, len(MODALITIES))},
    }
    return inputs[graph]


OUTPUTS: dict[str, tuple[str, ...]] = {
    "vision": ("embedding", "heat", "logit"),
    "audio": ("embedding", "logit"),
    "sensors": ("embedding", "logit"),
    "fusion": ("logit", "classes", "modality_logits", "embedding"),
}
