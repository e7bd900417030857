"""The pure core behind one method: samples in, events out. Live run, replay, tests and evaluation all call it.

It has no clock, thread, socket or file. The same samples in the same order give the same events, on every machine as
far as its engine gives the same scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from edge_agent.config import SceneConfig
from edge_agent.contract.event import Event
from edge_agent.contract.manifest import Manifest
from edge_agent.core import infer, prepare
from edge_agent.core.align import Aligner
from edge_agent.core.decide import Decider, Observed
from edge_agent.core.normal import Condition
from edge_agent.core.records import Model, Prepared, Sample, Scores, Window
from edge_agent.core.scene import SceneState, unknown

State = Mapping[str, NDArray[Any]]

#: Windows per scene that wait while the engine raises; they hold whole pictures.
MAX_WAITING = 4


class Pipeline:
    """Scores every scene step by step on one model. One thread at a time.

    What the engine raises passes through `push`; the window stays, and is scored at the next push, by the model that
    there is then: a model that fails on its first window can be swapped for the old one and nothing is lost.
    """

    def __init__(
        self,
        scenes: Sequence[SceneConfig],
        model: Model,
        *,
        lateness_ms: int = 500,
        state: State | None = None,
        on_scores: Callable[[Scores], None] | None = None,
    ) -> None:
        """`state` is what `state()` gave, of this or another bundle; parts that do not fit are left out.
        `on_scores` is called with the scores of every window, before its events are returned."""
        self._configs = {scene.name: scene for scene in scenes}
        self._model = model
        self._on_scores = on_scores
        self._deciders = self._make_deciders(model)
        self._aligner = Aligner(scenes, model.manifest, lateness_ms, self._quiet_steps(model.manifest))
        self._waiting: list[Window] = []
        self._untold: list[Event] = []
        self._states = self._succeed(model, _restored(model, self._configs, state or {}))

    @property
    def counters(self) -> Mapping[str, int]:
        """What became of samples and windows since the start, by name; the names are always all there."""
        return self._aligner.counters

    @property
    def model(self) -> Model:
        """The model that scores now."""
        return self._model

    def push(self, sample: Sample) -> list[Event]:
        """Events that this sample brings about. Milliseconds where it closes a window, microseconds otherwise.

        A bad sample never raises; it is counted. An array belongs to the core from now on: do not write to it.
        """
        return self._score(self._aligner.push(sample))

    def flush(self) -> list[Event]:
        """Close every window that time has passed, then give `end` for every open event."""
        events = self._score(self._aligner.flush())
        for name, state in self._states.items():
            if state.last_step is not None:
                events += self._end(name, state, state.last_step)
        return events

    def swap_model(self, model: Model, state: State | None = None) -> list[Event]:
        """Score with `model` from the next window on. The old engine is the caller's to close.

        What is normal in a scene is learned anew, since another bundle gives other scores, unless `state`, of a
        pipeline that ran `model` in its shadow, brings it along.

        The windows of the history are encoded anew if both bundles prepare them in the same way, else the history
        is masked. Open events live on under their key; only a change of the step's length ends them (returned),
        for their key counts steps. If the new engine raises, nothing has changed.
        """
        states = self._succeed(model, self._states)
        for name, shadow in _restored(model, self._configs, state or {}).items():
            if shadow.bundle == model.hash:
                states[name].normal = shadow.normal
                states[name].normal.forget_time()
        events: list[Event] = []
        if model.manifest.step_ms != self._model.manifest.step_ms:
            for name, old in states.items():
                if old.last_step is not None:
                    events += self._end(name, old, old.last_step)
                old.forget_time()
        if model.manifest.prepare_spec() != self._model.manifest.prepare_spec():
            self._drop(len(self._waiting))
        self._model, self._states = model, states
        self._deciders = self._make_deciders(model)
        self._aligner.respecify(model.manifest, self._quiet_steps(model.manifest))
        return events

    def conditions(self) -> dict[str, Condition]:
        """How well each scene is known, by name."""
        frozen = self._aligner.frozen()
        return {
            name: replace(state.normal.condition(self._configs[name]), frozen=frozen[name])
            for name, state in self._states.items()
        }

    def state(self) -> dict[str, NDArray[Any]]:
        """A snapshot as plain arrays, named `<scene>/<what>`: `numpy.savez` keeps it, nothing needs a pickle."""
        return {
            f"{name}/{key}": array for name, state in self._states.items() for key, array in state.to_arrays().items()
        }

    def _make_deciders(self, model: Model) -> dict[str, Decider]:
        return {name: Decider(scene, model.manifest, model.hash) for name, scene in self._configs.items()}

    def _quiet_steps(self, manifest: Manifest) -> int:
        patience = max((decider.patience_steps for decider in self._deciders.values()), default=1)
        return max(manifest.sensors.steps, manifest.history, patience)

    def _succeed(self, model: Model, old: Mapping[str, SceneState]) -> dict[str, SceneState]:
        """States for `model`, made from those in `old` that there are."""
        states: dict[str, SceneState] = {}
        for name in self._configs:
            before = old.get(name)
            if before is not None and before.bundle == model.hash:
                states[name] = before
                continue
            states[name] = SceneState(name, model)
            if before is not None:
                windows = before.prepared_for(model.manifest)
                states[name].succeed(before, windows, infer.encode(model, windows))
        return states

    def _score(self, windows: Sequence[Window]) -> list[Event]:
        self._waiting += windows
        self._drop(len(self._waiting) - max(len(windows), MAX_WAITING * len(self._configs)))
        while self._waiting:
            self._step([window for window in self._waiting if window.step == self._waiting[0].step])
        events, self._untold = self._untold, []
        return events

    def _drop(self, count: int) -> None:
        """Let go of the oldest windows that no engine would score."""
        if count > 0:
            del self._waiting[:count]
            self._aligner.counters["unscored"] += count

    def _step(self, windows: Sequence[Window]) -> None:
        """One step, the first that waits, of one or more scenes: encoders and head are run once for all of them.

        Nothing of a scene changes before the engine is through, since it may raise.
        """
        states = {window.scene: self._states[window.scene].copy() for window in windows}
        missed = {window.scene: self._pass_time(window, states[window.scene]) for window in windows}
        prepared = [self._prepare(window, states[window.scene]) for window in windows]
        codes = infer.encode(self._model, prepared)
        for ready, encoded in zip(prepared, codes, strict=True):
            states[ready.scene].append(ready, encoded)
        scored = infer.score(self._model, [states[window.scene].history() for window in windows])
        self._states.update(states)
        del self._waiting[: len(windows)]
        for window, ready, encoded, scores in zip(windows, prepared, codes, scored, strict=True):
            self._deciders[window.scene].skip(states[window.scene].course, missed[window.scene])
            self._decide(window, ready, encoded, scores)
        if self._on_scores is not None:
            for scores in filter(None, scored):
                self._on_scores(scores)

    def _decide(self, window: Window, ready: Prepared, encoded: infer.Encoded, scores: Scores | None) -> None:
        """Events of one scored window; then it may teach what is normal."""
        scene, state = self._configs[window.scene], self._states[window.scene]
        course, normal = state.course, state.normal
        ruling = normal.judge(scene, scores, encoded)
        seen = Observed(window.step, scores, ready.vision, window.dropped, ruling)
        events = self._deciders[window.scene].decide(course, seen)
        normal.learn(
            window.step, scene, ruling, encoded, events, still_open=course.open, cooling=bool(course.cooling)
        )
        self._untold += events

    def _end(self, name: str, state: SceneState, step: int) -> list[Event]:
        return self._deciders[name].end(state.course, step, state.normal.ruling(self._configs[name]))

    def _pass_time(self, window: Window, state: SceneState) -> int:
        """Let the windows pass that were skipped before this one; how many."""
        if state.last_step is None:
            return 0
        missed = window.step - state.last_step - 1
        if missed < 0:
            state.forget_time()
        state.skip(missed, len(self._model.manifest.sensors.quantities))
        return max(missed, 0)

    def _prepare(self, window: Window, state: SceneState) -> Prepared:
        state.sensors.append(window.sensors or unknown(len(self._model.manifest.sensors.quantities)))
        masks = self._configs[window.scene].masks
        return prepare.window(window, list(state.sensors), self._model.manifest, masks)


def _restored(model: Model, scenes: Mapping[str, SceneConfig], arrays: State) -> dict[str, SceneState]:
    states: dict[str, SceneState] = {}
    for name in scenes:
        own = {key.removeprefix(f"{name}/"): array for key, array in arrays.items() if key.startswith(f"{name}/")}
        state = SceneState.from_arrays(name, model, own) if own else None
        if state is not None:
            states[name] = state
    return states
