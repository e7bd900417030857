"""How an audio encoder learns, for the bundle and for every benchmark alike.

Recordings are mixed and spoiled in mel power, where one sound over another is an addition; the log-mel front end then
is the one that the device runs. What there is to learn is a `Course`: groups of clips, each with the heads that learn
of it. A head other than the encoder's own is a linear layer on the embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edge_agent.contract.manifest import AudioSpec
from edge_agent.core.records import I16
from models.config import ALONE, SOUNDS, Preset, Run, Schedule
from models.data import augment, balance
from models.data.listening import Heard, cut, frames_of, listen
from models.network.graphs import AudioGraph
from models.training.train import fit

Rng = np.random.Generator
#: The head that the encoder has of its own; its classes are `config.SOUNDS`.
OWN = "sounds"
#: The head that tells everyday sounds apart: what it learns of them keeps them apart from threats, too.
KINDS = "kinds"
#: Weight of everyday background as a negative. Against 0.12, on groups of SESA and folds of ESC-10 left out, it takes
#: a third off the false alarms, adds a point of threat AUC, and costs accuracy where noise is as loud as the sound.
BACKGROUND_WEIGHT = 0.35
_SIMULATED_WEIGHT = 0.6
_CASUAL, _SIMULATED = "casual", "simulated"
#: Part of a target that is spread over all classes.
_SMOOTH = 0.05
#: In how many of the cases the loudest of three places in a clip is taken: a shot is a tenth of its recording.
_LOUD, _NOISE_LOUD = 0.7, 0.2


@dataclass(frozen=True)
class Lesson:
    """Clips that are drawn together."""

    clips: Sequence[Heard]
    names: Mapping[str, Sequence[str]]  #: head → class of every clip
    weight: Mapping[str, float]  #: head → weight of its loss; 1 is a lesson's full weight
    count: int  #: clips of each batch
    balanced: bool = False  #: rare classes of the first head more often, by the root of their number

    @property
    def shown(self) -> Sequence[str]:
        """Class of every clip for the first head."""
        return next(iter(self.names.values()))


@dataclass(frozen=True, slots=True)
class Package:
    """How often a clip is changed in each way; what each is worth stands in docs/explanation/ablations.md."""

    mixed: float = 0.5  #: with another clip, whose name it then bears too
    hiss: float = 0.3  #: steady noise of some colour under it
    moved: float = 0.2  #: another pitch and pace
    roomed: float = 0.08  #: a room behind it
    coded: float = 0.12  #: what a codec leaves
    limited: float = 0.12  #: the band of a telephone
    masked: float = 0.5  #: a band, and a stretch of time


@dataclass(frozen=True)
class Course:
    """Everything that one encoder learns from."""

    lessons: Sequence[Lesson]
    noise: Sequence[Heard]  #: laid under the clips; its own classes do not matter
    heads: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  #: heads beside OWN → their classes
    snr_db: tuple[float, float] = (-6.0, 20.0)  #: of the clips against the noise
    noisy: float = 0.6  #: share of the clips that have noise under them
    package: Package = Package()


@dataclass(frozen=True)
class Told:
    """A sound for training, and what is known of it."""

    source: str  #: set that it comes from; `simulated`: heard at a simulated site
    sound: str  #: one of `config.SOUNDS`
    kind: str  #: for everyday sounds, which
    pcm: I16


class Listener(nn.Module):
    """The audio graph and further heads on its embedding.

    int16 (N, samples) → embedding, logit, the encoder's own sounds, then the logits of each head.
    """

    def __init__(self, graph: AudioGraph, embedding: int, heads: Mapping[str, tuple[str, ...]]) -> None:
        super().__init__()
        self.graph, self.embedding = graph, embedding
        self.heads = nn.ModuleDict({name: nn.Linear(embedding, len(classes)) for name, classes in heads.items()})

    def forward(self, pcm: Tensor) -> tuple[Tensor, ...]:
        embedding, sounds, logit = self.graph.encoder(self.graph.front(pcm))
        return (embedding, logit, sounds, *(head(embedding) for head in self.heads.values()))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what `forward` gives, in order."""
        return ("embedding", "logit", OWN, *self.heads)

    def learn(self, x: Tensor) -> tuple[Tensor, ...]:
        """Log-mel (N, 1, MELS, frames) → logits of OWN, then of each head."""
        embedding, sounds, _ = self.graph.encoder(x.contiguous(memory_format=torch.channels_last))
        return (sounds, *(head(embedding) for head in self.heads.values()))


def train_audio(graph: AudioGraph, preset: Preset, sounds: Sequence[Told], seed: int) -> None:
    """The audio encoder of a bundle: threats by name, everyday sounds by kind, the simulated site beside both."""
    course = everything(sounds, preset)
    listener = Listener(graph, preset.embedding, course.heads)
    teach(listener, course, preset.audio_spec, preset.audio, seed, run=preset.run)


def everything(sounds: Sequence[Told], preset: Preset) -> Course:
    """Four ninths of each batch recorded threats with their casual counterparts, three everyday sounds (as kinds, and
    weakly as no threat), two of the simulated site. What there is none of leaves its place to others."""
    recorded = [sound for sound in sounds if sound.source != _SIMULATED]
    groups = {
        "threats": [sound for sound in recorded if not sound.kind],
        "everyday": [sound for sound in recorded if sound.kind],
        "simulated": [sound for sound in sounds if sound.source == _SIMULATED],
    }
    shares = {name: share for name, share in (("threats", 4), ("everyday", 3), ("simulated", 2)) if groups[name]}
    lessons, noise, heads = [], [], {}
    for name, share in shares.items():
        group = groups[name]
        clips = listen((sound.pcm for sound in group), preset.audio_spec)
        count = max(preset.audio.batch * share // sum(shares.values()), 2)
        names, weight = {OWN: [sound.sound for sound in group]}, {OWN: 1.0}
        if name == "everyday":
            names, weight = {**names, KINDS: [sound.kind for sound in group]}, {OWN: BACKGROUND_WEIGHT, KINDS: 1.0}
            heads[KINDS] = tuple(sorted(set(names[KINDS])))
        elif name == "simulated" and "threats" in shares:
            weight = {OWN: _SIMULATED_WEIGHT}
        lessons.append(Lesson(clips, names, weight, count, balanced=name == "threats"))
        if name != "simulated" or not recorded:
            noise += [clip for clip, sound in zip(clips, group, strict=True) if sound.sound == _CASUAL]
    return Course(lessons, noise, heads)


def teach(
    listener: Listener, course: Course, spec: AudioSpec, schedule: Schedule, seed: int, *, run: Run = ALONE
) -> None:
    """Train in place; the schedule's batch is what the lessons' counts add up to."""
    listener.graph.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(x: Tensor, *told: Tensor) -> Tensor:
        total = torch.zeros(())
        # Target and weight of every head, one after the other.
        for logits, target, weight in zip(listener.learn(x), told[::2], told[1::2], strict=True):
            smooth = target * (1 - _SMOOTH) + _SMOOTH / target.shape[1]
            total = total - ((smooth * F.log_softmax(logits, 1)).sum(1) * weight).sum()
        return total

    fit("audio", listener, schedule, batches(course, frames_of(spec), seed), loss, run=run)


def batches(course: Course, frames: int, seed: int) -> Iterator[tuple[Tensor, ...]]:
    """Endless: x (N, 1, MELS, frames), then target (N, K) and weight (N,) of OWN and of each further head."""
    rng = np.random.default_rng([seed, 12])
    heads = {OWN: SOUNDS, **course.heads}
    odds = [balance.weights(lesson.shown) if lesson.balanced else None for lesson in course.lessons]
    while True:
        powers = []
        told: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in heads}
        for lesson, chances in zip(course.lessons, odds, strict=True):
            index = rng.choice(len(lesson.clips), lesson.count, p=chances)
            power = cut([lesson.clips[i] for i in index], frames, rng, _LOUD)
            power, other, keep = augment.mix_up(power, rng, course.package.mixed)
            powers.append(power)
            for name, classes in heads.items():
                target = torch.zeros(lesson.count, len(classes))
                if name in lesson.names:
                    column = torch.tensor([classes.index(lesson.names[name][i]) for i in index])
                    target = F.one_hot(column, len(classes)).float()
                weight = torch.full((lesson.count,), lesson.weight.get(name, 0.0) / lesson.count)
                told[name].append((target * keep[:, None] + target[other] * (1 - keep)[:, None], weight))
        x = spoiled(torch.cat(powers), course, rng)
        yield x, *(torch.cat(side) for pairs in told.values() for side in zip(*pairs, strict=True))


def spoiled(power: Tensor, course: Course, rng: Rng) -> Tensor:
    """Mel power of clean cuts → network input: another place, other noise, another microphone, another codec."""
    count, _, frames = power.shape
    ways = course.package
    power = augment.reverberant(augment.warped(power, rng, share=ways.moved), rng, share=ways.roomed)
    if course.noise:
        chosen = [course.noise[int(i)] for i in rng.integers(0, len(course.noise), count)]
        under = cut(chosen, frames, rng, _NOISE_LOUD)
        power = augment.add_noise(power, under, rng, snr_db=course.snr_db, share=course.noisy)
    power = augment.add_noise(power, augment.coloured_noise(count, frames, rng), rng, snr_db=(3, 30), share=ways.hiss)
    power = augment.band_limited(augment.coded(power, rng, share=ways.coded), rng, share=ways.limited)
    return augment.heard(power, rng, ways.masked)
