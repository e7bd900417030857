"""The pure core behind one method: samples in, events out. Live run, replay, tests and evaluation all call it.

It has no clock, thread, socket or file. The same samples in the same order give the same events, on every machine as
far as its engine gives the same scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

from numpy.typing import NDArray

from edge_agent.config import SceneConfig
from edge_agent.contract.event import Event
from edge_agent.contract.manifest import Manifest
from edge_agent.core import infer, prepare
from edge_agent.core.align import Aligner
from edge_agent.core.decide import Decider, Observed
from edge_agent.core.records import Model, Prepared, Sample, Scores, Window
from edge_agent.core.scene import SceneState, unknown

State = Mapping[str, NDArray[Any]]


class Pipeline:
    """Scores every scene step by step on one model. One thread at a time; `engine` errors pass through `push`."""

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
                events += self._deciders[name].end(state.course, state.last_step)
        return events

    def swap_model(self, model: Model) -> list[Event]:
        """Score with `model` from the next window on. The old engine is the caller's to close.

        The windows of the history are encoded anew if both bundles prepare them in the same way, else the history
        is masked. Open events live on under their key; only a change of the step's length ends them (returned),
        for their key counts steps. If the new engine raises, nothing has changed.
        """
        states = self._succeed(model, self._states)
        events: list[Event] = []
        if model.manifest.step_ms != self._model.manifest.step_ms:
            for name, state in states.items():
                if state.last_step is not None:
                    events += self._deciders[name].end(state.course, state.last_step)
                state.forget_time()
        self._model, self._states = model, states
        self._deciders = self._make_deciders(model)
        self._aligner.respecify(model.manifest, self._quiet_steps(model.manifest))
        return events

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
        events: list[Event] = []
        for _, group in groupby(windows, key=lambda window: window.step):
            events += self._step(list(group))
        return events

    def _step(self, windows: Sequence[Window]) -> list[Event]:
        """One step of one or more scenes: encoders and head are run once for all of them."""
        prepared = [self._prepare(window) for window in windows]
        for ready, encoded in zip(prepared, infer.encode(self._model, prepared), strict=True):
            self._states[ready.scene].append(ready, encoded)
        histories = [self._states[window.scene].history() for window in windows]
        events: list[Event] = []
        for window, ready, scores in zip(windows, prepared, infer.score(self._model, histories), strict=True):
            if scores is not None and self._on_scores is not None:
                self._on_scores(scores)
            seen = Observed(window.step, scores, ready.vision, window.dropped)
            events += self._deciders[window.scene].decide(self._states[window.scene].course, seen)
        return events

    def _prepare(self, window: Window) -> Prepared:
        state, channels = self._states[window.scene], len(self._model.manifest.sensors.quantities)
        if state.last_step is not None:
            missed = window.step - state.last_step - 1
            if missed < 0:
                state.forget_time()
            elif missed:
                state.skip(missed, channels)
                self._deciders[window.scene].skip(state.course, missed)
        state.sensors.append(window.sensors or unknown(channels))
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
