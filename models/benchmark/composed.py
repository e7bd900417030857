"""Composed episodes: does fusing pay, and does it stand the loss of a modality? Composed, not recorded together.

Test episodes are made of every set that lies under the test root, whatever its licence, by the frozen mixture: a
quarter of the causes shows in pictures alone, in sound alone, in sensors alone, in several. An episode's score is the
highest logit that two steps in a row hold, as a device's threshold has it. Causes in sensors are generated over
recorded levels: no set has them.

* bundle: every episode is played through the device's own `Pipeline`.
* recipe: the shipped encoders, and a head that was trained here on episodes of the train root's parts alone.

A modality alone, or all but one, is the head under that mask; the device asks for those anyway, for its shares.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

import edge_agent
from edge_agent.contract.event import MODALITIES, Modality
from edge_agent.contract.manifest import GRAPHS
from edge_agent.core import infer
from edge_agent.core.records import F32, Engine, Model
from edge_agent.engine import Bundle, compile_graphs, installed, open_bundle
from edge_agent.errors import ConfigError
from models.benchmark.record import Block, Judged, Prediction, Roots, Task, Variant
from models.compression.export import export
from models.config import Preset, Schedule, preset
from models.data.compose import Composer, Trio
from models.data.episodes import Episode
from models.data.mixture import MIXTURE
from models.data.records import Recording
from models.data.tracks import TrackMaker
from models.evaluation import sessions
from models.evaluation.composed import SETS_READ, TESTED, Episodes, read, session_of, tested
from models.evaluation.sessions import Answer, Listening
from models.metrics import average_precision
from models.network.graphs import fusion_head
from models.processes import interleaved, side_by_side
from models.runtime import INPUT, INT8
from models.training.linear import logistic
from models.training.train import train_fusion

#: Episodes that the recipe's head learns from.
_TAUGHT = 300
_HEAD = Schedule(steps=800, batch=128, rate=2e-3)
#: Steps that the score must hold.
_SUSTAINED = 2
#: No figure of a DATA.md: what must be beaten is the best single modality of the same run.
FLOOR: dict[str, float] = {}
Found = TypeVar("Found")
ALL = frozenset(range(len(MODALITIES)))


@dataclass(frozen=True)
class Heard:
    """What one variant said of one episode."""

    answers: Sequence[Answer]  #: one a step
    own: NDArray[np.float64]  #: (steps, 3) logits of the encoders' own; NaN where one is missing

    def score(self, kept: frozenset[int]) -> float:
        """Of the episode with some of the modalities: the highest logit that `_SUSTAINED` steps hold."""
        return _sustained([answer[kept & max(answer, key=len)] for answer in self.answers])

    def late_mean(self) -> float:
        """The mean of what the encoders say by themselves."""
        known = np.isfinite(self.own)
        mean = np.where(known, self.own, 0).sum(1) / np.maximum(known.sum(1), 1)
        return _sustained(mean.tolist())


def _sustained(logits: Sequence[float]) -> float:
    values = np.asarray(logits)
    return float(np.min([values[i : len(values) - _SUSTAINED + 1 + i] for i in range(_SUSTAINED)], axis=0).max())


@dataclass(frozen=True)
class Stock:
    """Parts that train and that are tested, and what a reader must know of them."""

    train: list[Recording]
    test: list[Recording]
    notes: list[str]


def stock(roots: Roots) -> Stock:
    """Recordings of both roots by the rule of `splits`; sets that are not there are named in the notes.

    A set's own split `test` (Ped2's labelled clips) is tested where the roots are one.
    """
    notes: list[str] = []
    near = read(roots.train, notes, "train root")
    if roots.same:
        train = [r for r in near if r.split == "train"]
        test = tested(near)
    else:
        test = read(roots.test, notes, "test root")
        there = {f"{r.source}/{r.item}/{r.group}" for r in test}
        train = [r for r in near if r.split in ("train", "dev") and f"{r.source}/{r.item}/{r.group}" not in there]
    if not test:
        raise ConfigError(f"no set to compose episodes of in {roots.test}; looked for {', '.join(SETS_READ)}")
    return Stock(train, test, notes)


@dataclass(frozen=True)
class Job:
    """Episodes of a plan on some engines of a bundle: what one process does."""

    episodes: Episodes
    engines: tuple[str, ...]
    shipped: Path

    def halves(self) -> list[Job]:
        return [replace(self, episodes=half) for half in self.episodes.halves()]

    @contextmanager
    def opened(self) -> Iterator[tuple[Bundle, dict[Variant, Engine]]]:
        """The bundle on all engines at once: an episode is rendered once for all of them."""
        bundle = open_bundle(self.shipped)
        graphs = {graph: bundle.read(f"{graph}.onnx") for graph in GRAPHS}
        with ExitStack() as stack:
            found: dict[Variant, Engine] = {}
            for name in self.engines:
                found[name, INT8] = compile_graphs(graphs, bundle.manifest, name)
                stack.callback(found[name, INT8].close)
            yield bundle, found


def _bare(episode: Episode) -> Episode:
    """Without its pictures, sound and readings: what is left travels between processes."""
    return replace(episode, views=None, pcm=None, felt=None)


def play(job: Job) -> tuple[list[Episode], dict[Variant, list[Heard]]]:
    """The episodes through the device's pipeline, on every engine."""
    episodes: list[Episode] = []
    heard: dict[Variant, list[Heard]] = {}
    with job.opened() as (opened, engines):
        for episode in job.episodes.rendered():
            for variant, engine in engines.items():
                heard.setdefault(variant, []).append(_played(Model(opened.manifest, opened.hash, engine), episode))
            episodes.append(_bare(episode))
    return episodes, heard


def encode(job: Job) -> tuple[list[Episode], dict[Variant, list[Trio]]]:
    """The episodes through the encoders of every engine."""
    episodes: list[Episode] = []
    trios: dict[Variant, list[Trio]] = {}
    with job.opened() as (_, engines):
        for episode in job.episodes.rendered():
            for variant, engine in engines.items():
                trios.setdefault(variant, []).append(_maker(job.episodes.shape, engine).episode(episode))
            episodes.append(_bare(episode))
    return episodes, trios


def _together(
    function: Callable[[Job], tuple[list[Episode], dict[Variant, list[Found]]]], job: Job
) -> tuple[list[Episode], dict[Variant, list[Found]]]:
    """Both halves at once, back in the order of the plan."""
    parts = side_by_side(function, job.halves())
    episodes = interleaved([found for found, _ in parts])
    return episodes, {variant: interleaved([found[variant] for _, found in parts]) for variant in parts[0][1]}


def bundle(roots: Roots, seed: int, shipped: Path) -> Block:
    """The bundle as a device runs it: every test episode through `Pipeline`. Minutes."""
    opened = open_bundle(shipped)
    found = stock(roots)
    composed = Episodes(found.test, _shape(opened), "test", TESTED)
    episodes, heard = _together(play, Job(composed, _engines(roots), shipped))
    notes = [*found.notes, _told(episodes)]
    trained = sum(r.ships and r.split == "train" for r in found.test)
    if trained:
        notes.append(f"{trained} recordings under the test root may have trained the bundle")
    return Block(
        {variant: _judged(episodes, answers) for variant, answers in heard.items()},
        len(episodes),
        f"composed of the test root, manifest seed {dict(MIXTURE.seeds)['test']}, mixture {MIXTURE.digest[:12]}",
        [_start(opened)],
        {"late mean of the encoders": {"ap_fused": _late_mean(episodes, next(iter(heard.values())))}},
        notes,
    )


def recipe(roots: Roots, seed: int) -> Block:
    """The shipped encoders under a head that learns here, from episodes of the train root. Minutes."""
    shipped = Path(edge_agent.__file__).parent / "bundle"
    opened = open_bundle(shipped)
    shape = replace(_shape(opened), fusion=_HEAD)
    found = stock(roots)
    names = _engines(roots)
    _, lessons = _together(encode, Job(Episodes(found.train, shape, "train", _TAUGHT), names[:1], shipped))
    taught = lessons[names[0], INT8]
    head = fusion_head(shape)
    train_fusion(head, shape, Composer.of(taught, [], shape.history), seed)
    with tempfile.TemporaryDirectory() as folder:
        export(head, shape, "fusion", Path(folder) / "fusion.onnx")
        graph = (Path(folder) / "fusion.onnx").read_bytes()
    episodes, trios = _together(encode, Job(Episodes(found.test, shape, "test", TESTED), names, shipped))
    judged: dict[Variant, Judged] = {}
    for (name, precision), mine in trios.items():
        engine = compile_graphs({"fusion": graph}, opened.manifest, name)
        model = Model(opened.manifest, opened.hash, engine)
        judged[name, precision] = _judged(episodes, [_encoded(model, trio, shape) for trio in mine])
        engine.close()
    return Block(
        judged,
        len(episodes),
        "head trained on episodes composed of the train root, tested on episodes composed of the test root",
        [_start(opened)],
        {"naive concatenation": {"ap_fused": _concatenated(taught, trios[names[0], INT8], episodes)}},
        [*found.notes, _told(episodes), "encoders are those of the shipped bundle, in int8 on every engine"],
    )


def _shape(opened: Bundle) -> Preset:
    return preset(opened.manifest.name.rsplit("-", 1)[0])


def _start(opened: Bundle) -> dict[str, str]:
    data = "train splits of esc10, sesa, sample_videos, fire_video, occupancy and nab, and simulated sites"
    return {"name": opened.manifest.name, "sha256": opened.hash, "data": data}


def _engines(roots: Roots) -> tuple[str, ...]:
    """A bundle's files are ONNX: torch has no part in this set."""
    return tuple(name for name in roots.engines if name in installed()) or ("openvino",)


def _maker(shape: Preset, engine: Engine) -> TrackMaker:
    def encoded(name: Modality, inputs: NDArray[np.generic]) -> F32:
        outputs = engine.run(name, [{INPUT[name]: item} for item in inputs])
        return np.stack([output["embedding"] for output in outputs])

    return TrackMaker(shape, encoded)


def _played(model: Model, episode: Episode) -> Heard:
    """The steps that count, as the device scores them."""
    played = sessions.play(model, session_of(episode))
    return Heard(played.answers, _own([scores.modality_logits for scores in played.scores]))


def _encoded(model: Model, trio: Trio, shape: Preset) -> Heard:
    """The same from cached embeddings, with an empty history before the first step."""
    tracks = [trio.tracks[name] for name in MODALITIES]
    before = np.zeros((shape.history - 1, len(MODALITIES)), np.float32)
    masks = [np.ones(len(t.active), np.float32) if t.mask is None else t.mask for t in tracks]
    mask = np.concatenate([before, np.stack(masks, 1)])
    nothing = np.zeros((shape.history - 1, len(MODALITIES), shape.embedding), np.float32)
    embeddings = np.concatenate([nothing, np.stack([t.embeddings for t in tracks], 1)])
    histories = [
        infer.History("episode", i, embeddings[i : i + shape.history], mask[i : i + shape.history], None)
        for i in range(len(tracks[0].active))
    ]
    listening = Listening(model.engine)
    found = infer.score(Model(model.manifest, model.hash, listening), histories)
    return Heard(listening.answers, _own([s.modality_logits if s is not None else {} for s in found]))


def _own(found: Sequence[Mapping[str, float]]) -> NDArray[np.float64]:
    return np.array([[logits.get(name, np.nan) for name in MODALITIES] for logits in found], np.float64)


def _judged(episodes: Sequence[Episode], heard: Sequence[Heard]) -> Judged:
    label = np.array([episode.label for episode in episodes])
    metrics: dict[str, float] = {}
    predictions: list[Prediction] = []
    ways: dict[str, frozenset[int]] = {"fused": ALL}
    ways |= {name: frozenset({i}) for i, name in enumerate(MODALITIES)}
    for way, kept in ways.items():
        score = np.array([answer.score(kept) for answer in heard])
        metrics[f"ap_{way}"] = average_precision(label, score)
        predictions += [
            Prediction(way, episode.entry.name, float(episode.label), float(value))
            for episode, value in zip(episodes, score, strict=True)
        ]
    for index, name in enumerate(MODALITIES):
        # Where the cause shows in nothing else, losing it is not the fusion's fault.
        rows = np.array([i for i, episode in enumerate(episodes) if not _only(episode, name)])
        whole = np.array([heard[i].score(ALL) for i in rows])
        score = np.array([heard[i].score(ALL - {index}) for i in rows])
        metrics[f"ap_without_{name}"] = average_precision(label[rows], score)
        metrics[f"lost_without_{name}"] = average_precision(label[rows], whole) - metrics[f"ap_without_{name}"]
    metrics["gain_over_best_single"] = metrics["ap_fused"] - max(metrics[f"ap_{name}"] for name in MODALITIES)
    return Judged(metrics, predictions)


def _only(episode: Episode, name: str) -> bool:
    """Whether a modality is the only one that is there and shows something wrong."""
    return [m for m in episode.present if (episode.active[m] == 1).any()] == [name]


def _late_mean(episodes: Sequence[Episode], heard: Sequence[Heard]) -> float:
    return average_precision(np.array([e.label for e in episodes]), np.array([h.late_mean() for h in heard]))


def _concatenated(trained: Sequence[Trio], tested: Sequence[Trio], episodes: Sequence[Episode]) -> float:
    """Logistic regression on the three embeddings side by side, zeros for what is missing."""
    rows, labels = [], []
    for trio in trained:
        active = np.stack([trio.tracks[name].active for name in MODALITIES])
        known = (active == 1).any(0) | (active == 0).all(0)
        rows.append(_beside(trio)[known])
        labels.append((active == 1).any(0)[known])
    found = logistic(np.concatenate(rows), np.concatenate(labels).astype(np.float64), 0.1)
    score = np.array([_sustained(found(_beside(trio)).tolist()) for trio in tested])
    return average_precision(np.array([episode.label for episode in episodes]), score)


def _beside(trio: Trio) -> F32:
    return np.concatenate([trio.tracks[name].embeddings for name in MODALITIES], 1)


def _told(episodes: Sequence[Episode]) -> str:
    shown = Counter(episode.entry.shown for episode in episodes)
    hard = sum(bool(e.entry.hard) for e in episodes)
    return f"composed: shown in {dict(shown)}; {hard} hard negatives; causes in sensors are generated"


SETS = {"composed": Task(recipe, bundle, FLOOR)}
