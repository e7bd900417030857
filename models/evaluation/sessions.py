"""Sessions with known answers, played through the device's own pipeline: what is counted is what would be sent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge_agent.config import Channel, SceneConfig
from edge_agent.contract.event import Event, Modality
from edge_agent.contract.manifest import Manifest
from edge_agent.core.pipeline import Pipeline
from edge_agent.core.records import CLOCK, Model, Sample, Scores
from edge_agent.simulate import CHANNELS, Site
from models.evaluation.disturb import Disturbance, disturbed

_MS = 1_000_000
#: A frame is taken this long before the moment that it stands for: the nearest one that is not newer.
_BEFORE_MS = 10
#: A window closes at the latest this long after its end.
_LATE_MS = 600
#: After its cause is over an anomaly fades: such steps are neither wrong nor normal.
FADES_S = 4.0
#: An alert that comes this long after a cause is over still belongs to it.
BELONGS_S = 4.0


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
    kind: str  #: composed | simulated
    seconds: float
    scene: SceneConfig
    causes: tuple[Cause, ...]
    samples: Callable[[Manifest], Iterable[Sample]]  #: anew at each call, timed for the steps of that manifest

    def truth(self, times_s: NDArray[np.float64]) -> NDArray[np.int8]:
        """(n,) for steps that end then: 1 wrong, 0 normal, −1 neither (a cause has just ended)."""
        found = np.zeros(len(times_s), np.int8)
        for cause in self.causes:
            found[(times_s > cause.end_s) & (times_s <= cause.end_s + FADES_S) & (found == 0)] = -1
            found[(times_s > cause.start_s) & (times_s <= cause.end_s)] = 1
        return found


@dataclass(frozen=True)
class Played:
    """What the pipeline said of a session."""

    session: Session
    step_ms: int
    scores: list[Scores] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    @property
    def times_s(self) -> NDArray[np.float64]:
        """(n,) ends of the scored steps."""
        return np.array([(scores.step + 1) * self.step_ms / 1000 for scores in self.scores])

    @property
    def logits(self) -> NDArray[np.float64]:
        """(n,) fused."""
        return np.array([scores.logit for scores in self.scores])

    def own(self, modality: Modality) -> NDArray[np.float64]:
        """(n,) one modality's own logits; −30 where it was missing."""
        return np.array([scores.modality_logits.get(modality, -30.0) for scores in self.scores])

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


def play(model: Model, session: Session, samples: Iterable[Sample] | None = None) -> Played:
    """The session through the pipeline; `samples` are its own, disturbed, if they are given."""
    played = Played(session, model.manifest.step_ms)
    pipeline = Pipeline([session.scene], model, on_scores=played.scores.append)
    for sample in session.samples(model.manifest) if samples is None else samples:
        played.events.extend(pipeline.push(sample))
    played.events.extend(pipeline.flush())
    return played


def spoilt(session: Session, how: Disturbance, manifest: Manifest, seed: int, other: Session) -> Iterator[Sample]:
    """The samples of `session` with one modality disturbed; `other` is the place that contradicts."""
    foreign = other.samples(manifest) if how.how == "contradicting" else ()
    return disturbed(session.samples(manifest), how.modality, how.how, np.random.default_rng([seed, 41]), foreign)


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
            at_ms = end_ms - back_ms - _BEFORE_MS
            if at_ms >= 0:
                yield Sample("camera", "frame", 3 * index + i, at_ms * _MS, site.frame(at_ms / 1000))
        first, last = (site.rate_hz * ms // 1000 for ms in (begin_ms, end_ms))
        pcm = site.sound(first, last - first)
        yield Sample("camera", "audio", index, begin_ms * _MS, pcm, site.rate_hz)
        if begin_ms % 1000 == 0:
            for i, reading in enumerate(site.readings(begin_ms / 1000)):
                yield Sample("air", "reading", index * len(CHANNELS) + i, begin_ms * _MS, reading)
        yield Sample(CLOCK, "tick", index, (end_ms + _LATE_MS) * _MS)
