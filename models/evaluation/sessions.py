"""Sessions with known answers, played through the device's own pipeline: what is counted is what would be sent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from edge_agent.config import Channel, SceneConfig
from edge_agent.contract.event import MODALITIES, Event, Modality
from edge_agent.contract.manifest import Manifest
from edge_agent.core.pipeline import Pipeline
from edge_agent.core.records import CLOCK, F32, Arrays, Engine, Model, Sample, Scores
from edge_agent.simulate import CHANNELS, Site
from models.evaluation.disturb import Disturbance, disturbed

_MS = 1_000_000
#: A frame is taken this long before the moment that it stands for: the nearest one that is not newer.
BEFORE_MS = 10
#: A window closes at the latest this long after its end.
LATE_MS = 600
#: After its cause is over an anomaly fades: such steps are neither wrong nor normal.
FADES_S = 4.0
#: An alert that comes this long after a cause is over still belongs to it.
BELONGS_S = 4.0
#: What an encoder's own logit is taken as where its modality is missing.
UNHEARD = -30.0

#: Modalities (by their number) that the head was given → its logit.
Answer = Mapping[frozenset[int], float]
Marks = NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class Cause:
    """Something that is wrong from `start_s` until `end_s`, and the modalities that it shows in."""

    label: str
    start_s: float
    end_s: float
    shown: tuple[Modality, ...]


@dataclass(frozen=True)
class Session:
    """Some time at one place, as the sources deliver it, and what is wrong in it."""

    name: str
    kind: str  #: composed | simulated | what recorded footage it is
    seconds: float
    scene: SceneConfig
    causes: tuple[Cause, ...]
    samples: Callable[[Manifest], Iterable[Sample]]  #: anew at each call, timed for the steps of that manifest
    begin_s: float = 0.0  #: what lies before only leads in, and is not counted
    #: What each step from `begin_s` on shows in each modality (1 wrong, 0 not, −1 too little to say), where that is
    #: known better than by `causes`.
    marks: Mapping[Modality, Marks] | None = None

    def shows(self, modality: Modality, times_s: NDArray[np.float64]) -> Marks:
        """(n,) for steps that end then: whether one modality shows something wrong. 1, 0, or −1 for neither."""
        if self.marks is not None:
            steps = self.marks[modality]
            length_s = (self.seconds - self.begin_s) / len(steps)
            at = np.rint((times_s - self.begin_s) / length_s).astype(int) - 1
            return np.where((at >= 0) & (at < len(steps)), steps[np.clip(at, 0, len(steps) - 1)], -1).astype(np.int8)
        found = np.where(times_s > self.begin_s, 0, -1).astype(np.int8)
        for cause in self.causes:
            if modality in cause.shown:
                fades = (times_s > cause.end_s) & (times_s <= cause.end_s + FADES_S)
                found[fades & (found == 0)] = -1
                found[(times_s > cause.start_s) & (times_s <= cause.end_s)] = 1
        return found

    def truth(self, times_s: NDArray[np.float64], lost: Modality | None = None) -> Marks:
        """(n,) for steps that end then: 1 wrong, 0 normal, −1 neither (it is unclear, or a cause has just ended).

        `lost`: what shows in that modality alone cannot be known; it is neither.
        """
        each = {name: self.shows(name, times_s) for name in MODALITIES}
        left = [shown for name, shown in each.items() if name != lost]
        wrong, unclear = np.any([shown == 1 for shown in left], 0), np.any([shown < 0 for shown in left], 0)
        if lost is not None:
            unclear |= each[lost] != 0
        return np.where(wrong, 1, np.where(unclear, -1, 0)).astype(np.int8)

    def causes_left(self, lost: Modality | None) -> tuple[Cause, ...]:
        """The causes that show in another modality than `lost`."""
        return tuple(cause for cause in self.causes if set(cause.shown) != {lost})


@dataclass(frozen=True)
class Played:
    """What the pipeline said of a session; scores begin after its lead-in, an alert counts wherever it comes."""

    session: Session
    step_ms: int
    scores: list[Scores] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)  #: of the head under every mask, one a step
    embeddings: list[F32] = field(default_factory=list)  #: (3, D) of each step's window, zeros for what is missing
    other: NDArray[np.float64] | None = None  #: (n,) what another method says in the place of the fused logit

    @property
    def times_s(self) -> NDArray[np.float64]:
        """(n,) ends of the scored steps."""
        return np.array([(scores.step + 1) * self.step_ms / 1000 for scores in self.scores])

    @property
    def logits(self) -> NDArray[np.float64]:
        """(n,) fused, or what another method says."""
        return np.array([scores.logit for scores in self.scores]) if self.other is None else self.other

    def own(self, modality: Modality) -> NDArray[np.float64]:
        """(n,) one modality's own logits; UNHEARD where it was missing."""
        return np.array([scores.modality_logits.get(modality, UNHEARD) for scores in self.scores])

    def given(self, kept: frozenset[int]) -> NDArray[np.float64]:
        """(n,) the head's logits with some of the modalities alone."""
        return np.array([answer[kept & max(answer, key=len)] for answer in self.answers])

    @property
    def features(self) -> F32:
        """(n, 3 D) embeddings of all modalities side by side."""
        return np.stack(self.embeddings).reshape(len(self.embeddings), -1)

    @property
    def alerts(self) -> list[Event]:
        """Events that opened, rules left aside."""
        return [event for event in self.events if event.phase == "new" and event.origin == "model"]

    def alert_s(self, alert: Event) -> float:
        """When it was sent, by the session's time."""
        return (alert.step + 1) * self.step_ms / 1000

    def found(self) -> list[tuple[Cause, list[Event]]]:
        """Each cause with the alerts that belong to it, in the order of their coming."""
        return [
            (cause, [a for a in self.alerts if cause.start_s <= self.alert_s(a) <= cause.end_s + BELONGS_S])
            for cause in self.session.causes
        ]

    def astray(self) -> list[Event]:
        """Alerts that belong to nothing that is wrong."""
        claimed = {id(alert) for _, alerts in self.found() for alert in alerts}
        return [alert for alert in self.alerts if id(alert) not in claimed]

    def bare(self) -> Played:
        """Without what does not travel between processes, or is large: samples and heat maps."""
        return replace(
            self,
            session=replace(self.session, samples=_nothing),
            scores=[replace(scores, heat=None) for scores in self.scores],
            events=[structs.replace(event, heat=None) for event in self.events],
        )

    def scored(self) -> Played:
        """Scores and events alone: of many conditions nothing else is asked."""
        bare, none = self.bare(), np.zeros(0, np.float32)
        scores = [replace(found, embedding=none, classes={}, shares={}) for found in bare.scores]
        return replace(bare, scores=scores, answers=[], embeddings=[])


def _nothing(manifest: Manifest) -> tuple[Sample, ...]:
    return ()


class Listening:
    """An engine that keeps what the head was given and said, one entry a step."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.answers: list[dict[frozenset[int], float]] = []
        self.embeddings: list[F32] = []
        self.masks: list[F32] = []  #: (3,) each, 0 where the embedding's zeros stand for nothing

    def run(self, graph: str, items: Sequence[Arrays]) -> list[dict[str, NDArray[Any]]]:
        """As the engine's."""
        outputs = self._engine.run(graph, items)
        if graph == "fusion":
            for item, output in zip(items, outputs, strict=True):
                held = frozenset(int(column) for column in np.flatnonzero(item["mask"].any(0)))
                if not held:  # the empty mask comes first, the whole one last
                    self.answers.append({})
                    self.embeddings.append(np.zeros(0, np.float32))
                    self.masks.append(np.zeros(0, np.float32))
                self.answers[-1][held] = float(output["logit"])
                self.embeddings[-1] = np.stack([item[name][-1] for name in MODALITIES])
                self.masks[-1] = item["mask"][-1].copy()
        return outputs

    def close(self) -> None:
        """Nothing: the engine is somebody else's."""


class Remembering:
    """An engine that computes nothing twice: a session that is played under many conditions differs in one modality,
    and not from its beginning. Bounded: the oldest of `most` outputs are let go.
    """

    def __init__(self, engine: Engine, most: int = 16384) -> None:
        self._engine, self._most = engine, most
        self._known: dict[tuple[str, bytes], dict[str, NDArray[Any]]] = {}

    def run(self, graph: str, items: Sequence[Arrays]) -> list[dict[str, NDArray[Any]]]:
        """As the engine's."""
        keys = [self._key(graph, item) for item in items]
        new = {key: item for key, item in zip(keys, items, strict=True) if key not in self._known}
        found = {key: self._known[key] for key in keys if key not in new}
        found |= dict(zip(new, self._engine.run(graph, list(new.values())), strict=True))
        self._known |= {key: found[key] for key in new}
        while len(self._known) > self._most:
            del self._known[next(iter(self._known))]
        return [dict(found[key]) for key in keys]

    @staticmethod
    def _key(graph: str, item: Arrays) -> tuple[str, bytes]:
        digest = blake2b(digest_size=16)
        for array in item.values():
            digest.update(np.ascontiguousarray(array).data)
        return graph, digest.digest()

    def close(self) -> None:
        """Nothing: the engine is somebody else's."""


def play(model: Model, session: Session, samples: Iterable[Sample] | None = None) -> Played:
    """The session through the pipeline; `samples` are its own, disturbed, if they are given."""
    listening = Listening(model.engine)
    scores: list[Scores] = []
    events: list[Event] = []
    pipeline = Pipeline([session.scene], replace(model, engine=listening), on_scores=scores.append)
    for sample in session.samples(model.manifest) if samples is None else samples:
        events.extend(pipeline.push(sample))
    events.extend(pipeline.flush())
    first = round(session.begin_s * 1000) // model.manifest.step_ms
    kept = [i for i, found in enumerate(scores) if found.step >= first]
    return Played(
        session,
        model.manifest.step_ms,
        [scores[i] for i in kept],
        events,
        [listening.answers[i] for i in kept],
        [listening.embeddings[i] for i in kept],
    )


def spoilt(
    samples: Iterable[Sample], how: Disturbance, seed: int, other: Callable[[], Iterable[Sample]]
) -> Iterator[Sample]:
    """Samples with one modality disturbed; `other` gives those of the place that contradicts."""
    foreign = other() if how.how == "contradicting" else ()
    return disturbed(samples, how.modality, how.how, np.random.default_rng([seed, 41]), foreign)


def simulated(site: Site, seconds: float, name: str = "") -> Session:
    """A simulated site as a session; what its script calls anomalous is what is wrong."""
    channels = tuple(Channel(source="air", channel=c, quantity=c) for c in CHANNELS)  # type: ignore[arg-type]
    return Session(
        name=name or f"site-{site.seed}",
        kind="simulated",
        seconds=seconds,
        scene=SceneConfig(name="site", camera="camera", microphone="camera", sensors=channels),
        causes=tuple(
            Cause(e.label, e.start_s, e.end_s, e.modalities)
            for e in site.episodes
            if e.anomalous and e.start_s < seconds
        ),
        samples=lambda manifest: _site_samples(site, manifest, seconds),
    )


def _site_samples(site: Site, manifest: Manifest, seconds: float) -> Iterator[Sample]:
    """What the sources of a site deliver: of the pictures, those that the model looks at, and no others."""
    step_ms = manifest.step_ms
    for index in range(int(seconds * 1000) // step_ms):
        begin_ms, end_ms = index * step_ms, (index + 1) * step_ms
        for i, back_ms in enumerate(sorted({*manifest.vision.past_ms, 0}, reverse=True)):
            at_ms = end_ms - back_ms - BEFORE_MS
            if at_ms >= 0:
                yield Sample("camera", "frame", 3 * index + i, at_ms * _MS, site.frame(at_ms / 1000))
        first, last = (site.rate_hz * ms // 1000 for ms in (begin_ms, end_ms))
        pcm = site.sound(first, last - first)
        yield Sample("camera", "audio", index, begin_ms * _MS, pcm, site.rate_hz)
        if begin_ms % 1000 == 0:
            for i, reading in enumerate(site.readings(begin_ms / 1000)):
                yield Sample("air", "reading", index * len(CHANNELS) + i, begin_ms * _MS, reading)
        yield Sample(CLOCK, "tick", index, (end_ms + LATE_MS) * _MS)
