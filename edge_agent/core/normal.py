"""What is normal in one scene, under one bundle: learned from its own quiet hours, without training.

`judge` says what a window's score is held against, and raises it where the scene looks, sounds or feels as it never
did; `learn` takes the window in afterwards, if it was quiet: in no event, of the model or of a rule, nor in the
lead of one or its cool-down.

The budget of alerts is divided once novelty has blocks of its own: three quarters for the head's score, one for
novelty. Novelty is news: what stays new for two minutes no longer raises the score, and may be learned from then
on.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from edge_agent.config import SceneConfig
from edge_agent.contract.event import MODALITIES, Event, Int63, Modality
from edge_agent.contract.manifest import Manifest
from edge_agent.core.budget import BLOCK_S, BLOCKS_A_DAY, FARTHEST, Blocks, needed
from edge_agent.core.drift import Drift
from edge_agent.core.infer import Encoded, logit, sigmoid
from edge_agent.core.memory import Memory
from edge_agent.core.records import Scores

#: Windows before the onset that belong to an event.
LEAD_STEPS = 20
#: Above the bundle's `on` by this (logit), a score is told of whatever the budget. What reaches it counts as no
#: alert: no threshold could have kept it silent.
CEILING = 3.0
#: A threshold sinks under the bundle's `on` only when a whole week, with its Sunday, is known; never under its `off`.
_WEEK = 7 * BLOCKS_A_DAY
#: Share of the budget that novelty may spend. It is told as a multiple of the highest that five quiet minutes usually
#: reach in that modality, so that a lively one does not drown the others; the least that counts as novel.
OF_NOVELTY = 0.25
_LEAST_NOVELTY = 1.5
#: Novelty raises a score this far above `on` (logit) and no further: it says "new", never "surely wrong".
_MOST_RAISE = 1.0
_NEWS_S = 120
#: The memories are shown one window in this time.
_SHOW_S = 10

Cause = Literal["score", "novelty"]
_CAUSES: tuple[Cause, ...] = ("score", "novelty")
Arrays = Mapping[str, NDArray[Any]]
_Count = Annotated[int, Meta(ge=0, le=1 << 31)]


@dataclass(frozen=True, slots=True)
class Ruling:
    """What one window is held against, and with what."""

    on: float | None = None  #: the scene's own threshold, probability; None: the bundle's or the operator's rules
    calibrating: bool = True  #: the bundle's rules, because the scene is not known long enough
    score: float | None = None  #: probability: the head's, or more where the scene is novel; None: nothing was scored
    novel: bool = False  #: it is novelty that brings the score over `on`
    p_value: float | None = None  #: with what probability a normal block reaches such a score; None while calibrating
    levels: Mapping[Cause, float] = field(default_factory=dict)  #: logit; novelty, if there is any
    #: Of each modality, in deviations of its memory; None where it is missing or not yet known.
    novelty: tuple[float | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Condition:
    """How well a scene is known, for those who look after it."""

    calibrating: bool
    threshold: float  #: probability
    blocks: int  #: of five minutes that are known
    alerts: int  #: in the last 288 of them, but for those that no threshold could have kept silent
    memory: Mapping[str, int]  #: embeddings known, by modality
    drift: Mapping[str, float]  #: of the last hour from the last week, in deviations, by modality
    frozen: tuple[Modality, ...] = ()  #: pictures, sound that only repeat now, and are taken as missing


class _Stream(Struct):
    """One score on its way into blocks. `last` is the block before: an event's lead may still reach back into it."""

    run: list[float] = []  #: the newest levels without a gap, `on_steps` at most
    highest: float | None = None  #: sustained level of the present block's quiet windows
    windows: _Count = 0  #: that it was taken over
    alerts: _Count = 0  #: that ended in the present block
    last: float | None = None
    last_alerts: _Count = 0


class _Plain(Struct):
    """What of the state is no array."""

    streams: dict[Cause, _Stream]
    causes: dict[str, Cause] = {}  #: what opened each open event of the model, by label
    step: Int63 | None = None
    loud: bool = False  #: the present block holds a part of an event
    settled: Int63 = 0  #: step from which on nothing reaches back into the block before
    windows: Int63 = 0  #: seen in all: the memory's clock
    news: _Count = 0  #: windows that were novel, less those that were not
    stale: bool = False  #: what is novel is no news any more
    shown: Int63 | None = None  #: step of the window that waits to be shown to the memories


class Normal:
    """The blocks, the memories and the drift of one scene: bounded, 0.4 MB with embeddings of 64."""

    def __init__(self, manifest: Manifest) -> None:
        self._thresholds = manifest.thresholds
        self._size = manifest.embedding
        self._block_steps, self._hour_steps, self._show_steps, self._news_steps = (
            max(1, seconds * 1000 // manifest.step_ms) for seconds in (BLOCK_S, 3600, _SHOW_S, _NEWS_S)
        )
        self._plain = _Plain({cause: _Stream() for cause in _CAUSES})
        self._blocks: dict[Cause, Blocks] = {cause: Blocks() for cause in _CAUSES}
        self._memories = [Memory(self._size) for _ in MODALITIES]
        self._shown = Encoded(np.zeros((len(MODALITIES), self._size), np.float32), np.zeros(3, np.float32), None)
        self._drift = Drift(len(MODALITIES))
        self._levels: tuple[float, dict[Cause, float]] | None = None  # the budget, and what came of it

    def fill(self, windows: Sequence[Encoded]) -> None:
        """Take the embeddings of normal windows on trust: an adaptation on recorded footage."""
        for row, memory in enumerate(self._memories):
            known = [window.embeddings[row] for window in windows if window.mask[row]]
            if known:
                memory.fill(np.stack(known))

    def ruling(self, scene: SceneConfig) -> Ruling:
        """The threshold, whatever the window."""
        learned = self._own(scene).get("score")
        if scene.threshold is not None or not scene.adapt:
            return Ruling(None, False)
        return Ruling(None if learned is None else sigmoid(learned), learned is None)

    def judge(self, scene: SceneConfig, scores: Scores | None, encoded: Encoded) -> Ruling:
        """What a window is held against. Nothing changes."""
        own, bare = self._own(scene), self.ruling(scene)
        if scores is None or not scores.present:  # whatever the head says of nothing
            return Ruling(bare.on, bare.calibrating, None if scores is None else scores.score)
        levels: dict[Cause, float] = {"score": scores.logit}
        novelty = tuple(self._novelty(row, encoded) for row in range(len(MODALITIES))) if scene.adapt else ()
        score, novel = scores.score, False
        if any(value is not None for value in novelty):
            usual = self._drift.usual()
            found = max(value / top for value, top in zip(novelty, usual, strict=True) if value is not None)
            levels["novelty"] = min(found, FARTHEST)  # as blocks keep it: beyond, nothing is rarer
            base = self._on(scene)
            raised = base + min(levels["novelty"] - own.get("novelty", math.inf), _MOST_RAISE)
            if raised > scores.logit and not self._plain.stale:
                score, novel = sigmoid(raised), scores.logit < base <= raised
        p_value = self._p_value(own, levels)
        return Ruling(bare.on, bare.calibrating, score, novel, p_value, levels, novelty)

    def learn(
        self,
        step: int,
        scene: SceneConfig,
        ruling: Ruling,
        encoded: Encoded,
        events: Sequence[Event],
        *,
        still_open: Collection[str],
        cooling: bool,
    ) -> None:
        """Take in a window that has been judged and decided upon.

        `events` are what it brought about; `still_open` the labels that are open after it; `cooling`: the scene is in
        the cool-down of one that ended.
        """
        plain = self._plain
        if plain.step is not None and step // self._block_steps != plain.step // self._block_steps:
            self._close_block(step, scene)
        if step >= plain.settled:
            self._commit(scene)
        if plain.step is None or step != plain.step + 1:
            for stream in plain.streams.values():
                stream.run.clear()
        plain.step, plain.windows = step, plain.windows + 1
        quiet = not (events or still_open or cooling)
        plain.loud |= not quiet
        self._note(events, ruling)
        plain.causes = {label: cause for label, cause in plain.causes.items() if label in still_open}
        for cause, stream in plain.streams.items():
            level = ruling.levels.get(cause)
            if cause == "novelty" and plain.stale and level is not None:
                # No news, but known: to drop such a block would drop the highest ones.
                stream.windows, level = stream.windows + 1, None
            self._follow(stream, level)
        if scene.adapt:
            self._follow_news(ruling, scene)
            self._show(step, encoded, quiet=quiet and ruling.score is not None and ruling.score < self._off(scene))
            if not still_open:
                self._drift.observe(ruling.novelty or (None,) * len(MODALITIES))

    def forget_time(self) -> None:
        """Time went back: what was half done is dropped, what is known stays."""
        self._plain = _Plain({cause: _Stream() for cause in _CAUSES}, windows=self._plain.windows)

    def condition(self, scene: SceneConfig) -> Condition:
        """How well the scene is known."""
        day = self._blocks["score"].rows()[-BLOCKS_A_DAY:, 1]
        return Condition(
            calibrating=self.ruling(scene).calibrating,
            threshold=sigmoid(self._on(scene)),
            blocks=len(self._blocks["score"]),
            alerts=int(day.sum()),
            memory={name: len(memory) for name, memory in zip(MODALITIES, self._memories, strict=True)},
            drift=dict(zip(MODALITIES, self._drift.values(), strict=True)),
        )

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Everything as arrays; `normal` is JSON as bytes."""
        arrays: dict[str, NDArray[Any]] = {
            "normal": np.frombuffer(msgspec.json.encode(self._plain), np.uint8).copy(),
            "shown": self._shown.embeddings.copy(),
            "shown_mask": self._shown.mask.copy(),
            "drift": self._drift.to_array(),
        }
        for cause, blocks in self._blocks.items():
            arrays[f"blocks_{cause}"] = blocks.rows()
        for name, memory in zip(MODALITIES, self._memories, strict=True):
            arrays |= {f"memory_{name}_{key}": array for key, array in memory.to_arrays().items()}
        return arrays

    @classmethod
    def from_arrays(cls, manifest: Manifest, arrays: Arrays) -> Normal:
        """What `to_arrays` gave, checked: KeyError, ValueError, TypeError or MsgspecError unless it is that."""
        normal = cls(manifest)
        normal._plain = msgspec.json.decode(arrays["normal"].astype(np.uint8).tobytes(), type=_Plain)
        if set(normal._plain.streams) != set(_CAUSES):
            raise ValueError("a stream is missing")
        for stream in normal._plain.streams.values():
            del stream.run[: -normal._thresholds.on_steps]
        shape = normal._shown.embeddings.shape
        embeddings, mask = arrays["shown"], arrays["shown_mask"]
        if embeddings.shape != shape or mask.shape != shape[:1] or not np.isfinite(embeddings).all():
            raise ValueError(f"shown is {embeddings.dtype} {embeddings.shape}")
        normal._shown = Encoded(embeddings.astype(np.float32), (mask > 0.5).astype(np.float32), None)
        normal._drift.restore(arrays["drift"])
        for cause, blocks in normal._blocks.items():
            blocks.restore(arrays[f"blocks_{cause}"])
        normal._memories = [Memory.from_arrays(normal._size, _part(arrays, f"memory_{name}_")) for name in MODALITIES]
        return normal

    # --- thresholds ---

    def _own(self, scene: SceneConfig) -> dict[Cause, float]:
        """Thresholds that the scene has learned, as far as it has: logit of the score, novelty."""
        if not scene.adapt:
            return {}
        budget = scene.alerts_per_day
        if self._levels is None or self._levels[0] != budget:
            self._levels = (budget, self._learned(budget))
        return self._levels[1]

    def _learned(self, budget: float) -> dict[Cause, float]:
        on, off = logit(self._thresholds.on), logit(self._thresholds.off)
        known, novelty = self._blocks["score"], self._blocks["novelty"]
        # Novelty has its share when it is known long enough to keep to it; until then the head has the whole.
        of_novelty = OF_NOVELTY * budget
        share = of_novelty if len(novelty) >= needed(of_novelty) <= len(known) else 0.0
        level = known.threshold(budget - share)
        if level is None:
            return {}
        own: dict[Cause, float] = {"score": min(max(level, off if len(known) >= _WEEK else on), on + CEILING)}
        new = novelty.threshold(share) if share else None
        if new is not None:
            own["novelty"] = max(new, _LEAST_NOVELTY)
        return own

    def _p_value(self, own: Mapping[Cause, float], levels: Mapping[Cause, float]) -> float | None:
        """Both together, each by its share of the budget (Bonferroni)."""
        if "score" not in own:
            return None
        p_value = self._blocks["score"].p_value(levels["score"])
        if "novelty" in own and "novelty" in levels:
            novelty = self._blocks["novelty"].p_value(levels["novelty"])
            p_value = min(p_value / (1 - OF_NOVELTY), novelty / OF_NOVELTY)
        return min(p_value, 1.0)

    def _on(self, scene: SceneConfig) -> float:
        """Logit of the threshold that rules."""
        if scene.threshold is not None:
            return logit(scene.threshold)
        return self._own(scene).get("score", logit(self._thresholds.on))

    def _off(self, scene: SceneConfig) -> float:
        """Probability of the lower threshold: its distance is that of the bundle."""
        return sigmoid(self._on(scene) - logit(self._thresholds.on) + logit(self._thresholds.off))

    # --- blocks ---

    def _note(self, events: Sequence[Event], ruling: Ruling) -> None:
        """What opens spoils the block that its lead reaches back to; what ends is counted."""
        plain = self._plain
        ceiling = sigmoid(logit(self._thresholds.on) + CEILING)
        for event in events:
            if event.phase == "new":
                if event.step < plain.settled:
                    for stream in plain.streams.values():
                        stream.last = None
                if event.origin == "model":
                    plain.causes[event.label] = "novelty" if ruling.novel else "score"
            elif event.phase == "end" and event.origin == "model":
                cause = plain.causes.pop(event.label, "score")
                if event.peak < ceiling:
                    plain.streams[cause].alerts += 1

    def _follow(self, stream: _Stream, level: float | None) -> None:
        if level is None:
            stream.run.clear()
            return
        stream.run.append(level)
        del stream.run[: -self._thresholds.on_steps]
        stream.windows += 1
        if len(stream.run) == self._thresholds.on_steps:
            sustained = min(stream.run)
            stream.highest = sustained if stream.highest is None else max(stream.highest, sustained)

    def _close_block(self, step: int, scene: SceneConfig) -> None:
        """The present block becomes the last one. It counts if at least half of its windows were scored."""
        self._commit(scene)
        plain = self._plain
        for stream in plain.streams.values():
            whole = not plain.loud and 2 * stream.windows >= self._block_steps
            stream.last, stream.last_alerts = stream.highest if whole else None, stream.alerts
            stream.highest, stream.windows, stream.alerts = None, 0, 0
        self._drift.close(quiet=not plain.loud)
        plain.loud = False
        begin = step // self._block_steps * self._block_steps
        plain.settled = begin + LEAD_STEPS + self._thresholds.on_steps

    def _commit(self, scene: SceneConfig) -> None:
        """The last block is settled: it goes into the ring."""
        for cause, stream in self._plain.streams.items():
            if stream.last_alerts:
                own = self._own(scene).get(cause, _LEAST_NOVELTY)
                self._blocks[cause].add_alerts(stream.last_alerts, self._on(scene) if cause == "score" else own)
            elif stream.last is not None:
                self._blocks[cause].add_quiet(stream.last)
            else:
                continue
            stream.last, stream.last_alerts = None, 0
            self._levels = None

    # --- memories ---

    def _novelty(self, row: int, encoded: Encoded) -> float | None:
        memory = self._memories[row]
        return memory.novelty(encoded.embeddings[row]) if encoded.mask[row] and memory.ready else None

    def _follow_news(self, ruling: Ruling, scene: SceneConfig) -> None:
        plain = self._plain
        level, new = ruling.levels.get("novelty"), self._own(scene).get("novelty", _LEAST_NOVELTY)
        novel = level is not None and level >= new - 0.5
        plain.news = min(plain.news + 1, self._news_steps) if novel else max(plain.news - 1, 0)
        plain.stale = plain.news > 0 if plain.stale else plain.news >= self._news_steps

    def _show(self, step: int, encoded: Encoded, *, quiet: bool) -> None:
        """Show one window in a while to the memories, when it is sure that it was in no event's lead."""
        plain = self._plain
        if not quiet:
            plain.shown = None
            return
        if plain.shown is not None and step - plain.shown >= LEAD_STEPS + self._thresholds.on_steps:
            hour = plain.windows // self._hour_steps
            for row, memory in enumerate(self._memories):
                if self._shown.mask[row]:
                    memory.learn(self._shown.embeddings[row], hour)
            plain.shown = None
        if plain.shown is None and step % self._show_steps == 0:
            plain.shown = step
            self._shown = Encoded(encoded.embeddings.copy(), encoded.mask.copy(), None)


def _part(arrays: Arrays, prefix: str) -> dict[str, NDArray[Any]]:
    return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
