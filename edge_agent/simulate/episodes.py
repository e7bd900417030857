"""What happens on a simulated site, and when: labelled episodes, as a script that is drawn from a seed."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from msgspec import Struct

from edge_agent.contract.event import MODALITIES, Modality
from edge_agent.simulate import chance
from edge_agent.simulate.chance import between, unit


@dataclass(frozen=True, slots=True)
class Nature:
    """What a label is: an anomaly or a hard negative, where it shows by nature, how long it lasts (s)."""

    anomalous: bool
    modalities: tuple[Modality, ...]
    shortest_s: float
    longest_s: float


NATURE: dict[str, Nature] = {
    "fire": Nature(True, MODALITIES, 22, 40),
    "intrusion": Nature(True, MODALITIES, 10, 18),
    "fight": Nature(True, MODALITIES, 8, 16),
    "gunshot": Nature(True, MODALITIES, 5, 9),
    "explosion": Nature(True, MODALITIES, 9, 14),
    "siren": Nature(True, ("vision", "audio"), 8, 16),
    "alarm": Nature(True, MODALITIES, 10, 20),
    "glass_break": Nature(True, ("audio", "sensors"), 3, 5),
    "thunder": Nature(False, ("vision", "audio"), 6, 9),
    "shadow": Nature(False, ("vision",), 5, 10),
    "door_slam": Nature(False, ("audio", "sensors"), 3, 6),
    "dropped_sensor": Nature(False, ("sensors",), 15, 30),
    "orange_person": Nature(False, ("vision",), 10, 16),
    "warm_lamp": Nature(False, ("vision", "sensors"), 15, 30),
    "sunset": Nature(False, ("vision", "sensors"), 40, 60),
}
ANOMALIES = tuple(label for label, nature in NATURE.items() if nature.anomalous)
HARD_NEGATIVES = tuple(label for label, nature in NATURE.items() if not nature.anomalous)

#: How the episodes of `schedule` divide: visible in one modality only, or in several at once.
MIX: Mapping[str, float] = {"vision": 0.25, "audio": 0.25, "sensors": 0.25, "several": 0.25}
#: The order in which `demo` shows what the product is for; it repeats.
_DEMO = ("fire", "gunshot", "intrusion", "explosion", "alarm", "fight", "siren", "glass_break")


class Episode(Struct, frozen=True, forbid_unknown_fields=True):
    """Something happens from `start_s` until `end_s`, and shows only in `modalities`.

    `end_s` is when the cause is over; smoke and warmth go back with their own time constant (about 20 s).
    """

    label: str
    start_s: float
    end_s: float
    modalities: tuple[Modality, ...]

    def __post_init__(self) -> None:
        if self.label not in NATURE:
            raise ValueError(f"no episode is called {self.label!r}; there are {', '.join(NATURE)}")
        if not 0.0 <= self.start_s < self.end_s <= 1e7:
            raise ValueError(f"{self.label}: expected 0 <= start_s < end_s, got {self.start_s} and {self.end_s}")
        stray = [name for name in self.modalities if name not in NATURE[self.label].modalities]
        if stray or not self.modalities:
            shown = ", ".join(NATURE[self.label].modalities)
            raise ValueError(f"{self.label} can show in {shown}, not in {', '.join(stray) or 'nothing'}")

    @property
    def anomalous(self) -> bool:
        """False for a hard negative: it looks or sounds like something, and is nothing."""
        return NATURE[self.label].anomalous


def schedule(
    seed: int,
    duration_s: float,
    *,
    labels: Sequence[str] = ANOMALIES,
    mix: Mapping[str, float] = MIX,
    negatives: float = 0.4,
    gap_s: tuple[float, float] = (20.0, 60.0),
) -> tuple[Episode, ...]:
    """Episodes one after the other, `gap_s` apart. `negatives` is the share of hard negatives among them.

    `mix` weighs `vision`, `audio`, `sensors` (visible there only) and `several`.
    """
    found: list[Episode] = []
    t_s = between(*gap_s, seed, "first")
    while t_s < duration_s:
        key = len(found)
        if unit(seed, "negative", key) < negatives:
            episode = _whole(_pick(HARD_NEGATIVES, seed, "label", key), t_s, seed, key)
        else:
            episode = _mixed(labels, mix, t_s, seed, key)
        if episode.end_s > duration_s:
            break
        found.append(episode)
        t_s = episode.end_s + between(*gap_s, seed, "gap", key)
    return tuple(found)


def quiet(seed: int, duration_s: float, *, gap_s: tuple[float, float] = (20.0, 60.0)) -> tuple[Episode, ...]:
    """Normal life with hard negatives only: nothing here is anomalous."""
    return schedule(seed, duration_s, negatives=1.0, gap_s=gap_s)


def demo(seed: int, duration_s: float, *, first_s: float = 12.0) -> tuple[Episode, ...]:
    """What a visitor sees: a fused episode at `first_s`, then a different one every 40 to 60 s, as whole as
    its nature allows, with a hard negative now and then in between."""
    found: list[Episode] = []
    t_s, key = first_s, 0
    while t_s < duration_s:
        label = _DEMO[key % len(_DEMO)]
        episode = _whole(label, t_s, seed, key)
        found.append(episode)
        following = max(t_s + between(40.0, 60.0, seed, "next", key), episode.end_s + 15.0)
        room = following - episode.end_s
        if room > 28.0 and key % 2:
            negative = _whole(_pick(HARD_NEGATIVES, seed, "between", key), episode.end_s + 9.0, seed, key)
            if negative.end_s < following - 6.0:
                found.append(negative)
        t_s, key = following, key + 1
    return tuple(episode for episode in found if episode.end_s <= duration_s)


class Script:
    """The episodes that show in one modality, found by time without going through all of them."""

    def __init__(self, episodes: Iterable[Episode], modality: Modality) -> None:
        self._episodes = sorted((e for e in episodes if modality in e.modalities), key=lambda e: (e.start_s, e.end_s))
        self._starts = [e.start_s for e in self._episodes]
        self._longest_s = max((e.end_s - e.start_s for e in self._episodes), default=0.0)

    def overlapping(self, start_s: float, end_s: float) -> list[Episode]:
        """Those of [start_s, end_s), in their order."""
        first = bisect_left(self._starts, start_s - self._longest_s)
        last = bisect_left(self._starts, end_s)
        return [e for e in self._episodes[first:last] if e.end_s > start_s]


def _pick(labels: Sequence[str], *keys: int | str) -> str:
    return labels[chance.mix(*keys) % len(labels)]


def _length(label: str, *keys: int | str) -> float:
    nature = NATURE[label]
    return between(nature.shortest_s, nature.longest_s, *keys)


def _whole(label: str, start_s: float, seed: int, key: int) -> Episode:
    return Episode(label, start_s, start_s + _length(label, seed, "length", key), NATURE[label].modalities)


def _mixed(labels: Sequence[str], weights: Mapping[str, float], start_s: float, seed: int, key: int) -> Episode:
    place = unit(seed, "mix", key) * sum(weights.values())
    shown = "several"
    for name, weight in weights.items():
        if place < weight:
            shown = name
            break
        place -= weight
    if shown == "several":
        fitting = [label for label in labels if len(NATURE[label].modalities) > 1]
    else:
        fitting = [label for label in labels if shown in NATURE[label].modalities]
    if not fitting:
        raise ValueError(f"none of {', '.join(labels)} can show in {shown}: change `labels` or `mix`")
    label = _pick(fitting, seed, "label", key)
    modalities: tuple[Modality, ...] = NATURE[label].modalities
    if shown != "several":
        modalities = tuple(name for name in modalities if name == shown)
    return Episode(label, start_s, start_s + _length(label, seed, "length", key), modalities)
