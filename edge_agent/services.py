"""The agent's own threads around the pure core: sources in, events out. The supervisor runs them.

SourceService ── Mailbox ──▶ PipelineService ── sink ──▶ outbox or console, then evidence
ClockService  ──┘
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import sys
import threading
import zipfile
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent.clock import Clock
from edge_agent.config import SceneConfig
from edge_agent.contract.event import MODALITIES, Event, Evidence, Message
from edge_agent.contract.status import SceneStatus, SourceStatus
from edge_agent.core.pipeline import Pipeline
from edge_agent.core.records import CLOCK, Kind, Model, Packet, Sample, Scores, Source
from edge_agent.errors import BundleError, SourceEnded, SourceError, StorageError, TectumError
from edge_agent.health import Metrics
from edge_agent.outbox import uuid7
from edge_agent.sources.recording import Recorder

log = logging.getLogger(__name__)

TICK_S = 0.05
READ_S = 0.2  #: how long a read may wait, and so how long a stop may go unnoticed
#: A call into a driver that has not returned after this is closed from outside. Longer than drivers take to connect.
HANG_S = 30.0
#: Samples of one source and kind that may wait for the pipeline. Live: over it the oldest is dropped and counted.
WAITING: Mapping[Kind, int] = {"frame": 8, "audio": 64, "reading": 512, "objects": 8, "tick": 64}
_LATE_S = 2.0  #: silence after which a source counts as late, at least; else five times its usual interval
_RATE_NS = 2_000_000_000  #: what the rate is averaged over
_TURN_S = 0.1
_PACKETS_WAITING = 4096  #: in front of a recording
_TELL_NS = 10 * 1_000_000_000  #: between two looks at how well the scenes are known
_SAVE_NS = 600 * 1_000_000_000  #: between two snapshots of the scenes' state, a few MB each
_STEP_MS_TO_NS = 1_000_000
#: What an engine may raise for a model that loads and does not run; anything else is the supervisor's.
_MODEL_ERRORS = (BundleError, ValueError, RuntimeError, ArithmeticError)

Arrays = dict[str, NDArray[Any]]


class Sink(Protocol):
    """Where events and their evidence go: `Outbox`, or `ConsoleSink` where the device has no identity."""

    def put_all(self, events: Sequence[Event]) -> list[Message]: ...
    def attach(self, event_id: str, evidence: Evidence, file: Path) -> object: ...


class Mailbox:
    """The one queue between the sources and the pipeline: any thread puts, one takes. Bounded per source and kind."""

    def __init__(self) -> None:
        self.dropped: Counter[str] = Counter()  #: by source
        self._filled = threading.Condition()
        self._queues: dict[tuple[str, str], deque[tuple[int, Sample]]] = {}
        self._number = itertools.count()

    def put(self, sample: Sample) -> None:
        """Never blocks; drops the oldest of the same source and kind if there is no room."""
        with self._filled:
            queue = self._queues.setdefault((sample.source, sample.kind), deque())
            if len(queue) >= WAITING[sample.kind]:
                queue.popleft()
                self.dropped[sample.source] += 1
            queue.append((next(self._number), sample))
            self._filled.notify()

    def take(self, timeout_s: float) -> list[Sample]:
        """Everything that waits, in the order in which it came; empty if nothing came in time."""
        with self._filled:
            self._filled.wait_for(lambda: any(self._queues.values()), timeout_s)
            entries = [entry for queue in self._queues.values() for entry in queue]
            for queue in self._queues.values():
                queue.clear()
        return [sample for _, sample in sorted(entries, key=lambda entry: entry[0])]

    def __len__(self) -> int:
        with self._filled:  # a source's first sample adds a queue
            return sum(len(queue) for queue in self._queues.values())


class SourceService:
    """Reads one source into the mailbox and the evidence ring. Broken, it raises; the supervisor opens it again."""

    def __init__(
        self,
        name: str,
        source: Source,
        clock: Clock,
        mailbox: Mailbox,
        keep: Callable[[Sample | Packet], None],
    ) -> None:
        self.name = name
        self.ended = False
        self._source = source
        self._clock = clock
        self._mailbox = mailbox
        self._keep = keep
        self._stamps_on_arrival = bool(getattr(source, "stamps_on_arrival", False))
        self._open = False
        self._error = ""
        self._calling_since_ns: int | None = None  # inside the driver since then
        self._seen: Counter[str] = Counter()  # samples by kind
        self._last: dict[str, int] = {}  # newest seq by kind
        self._shift: dict[str, int] = {}  # of seq, by kind, since the driver was opened last
        self._last_ns = clock.monotonic_ns()
        self._rate = _Rate()

    def run(self, stop: threading.Event) -> None:
        """Open, read until told to stop, close. SourceError when the line is gone; returns when a file has ended."""
        self._shift = {}
        try:
            self._call(self._source.open)
            self._open, self._error, self._last_ns = True, "", self._clock.monotonic_ns()
            while not stop.is_set():
                self._take(self._call(lambda: self._source.read(READ_S)))
        except SourceEnded:
            self.ended = True
            log.info("%s has ended", self.name)
        except SourceError as error:
            self._error = str(error)
            raise
        finally:
            self._open = False
            self._call(self._source.close)

    def status(self) -> SourceStatus:
        """How the source is now."""
        main = next((kind for kind in ("frame", "audio", "reading") if self._seen[kind]), "frame")
        return SourceStatus(
            name=self.name,
            state=self._state(),
            samples=sum(list(self._seen.values())),  # a copy: the reader may add a kind meanwhile
            dropped=self._mailbox.dropped[self.name],
            rate_hz=round(self._rate.hz(main, self._clock.monotonic_ns()), 2),
            error=self._error,
        )

    def stalled(self) -> bool:
        """Whether a call into the driver hangs."""
        since_ns = self._calling_since_ns
        return since_ns is not None and self._clock.monotonic_ns() - since_ns > HANG_S * 1e9

    def unblock(self) -> None:
        """Close the driver under its reader, from another thread."""
        if not self._error:
            self._error = f"did not return within {HANG_S:.0f} s"
        self._source.close()

    def _state(self) -> str:
        if self.ended:
            return "ended"
        if not self._open or self.stalled():
            return "down"
        if self._stamps_on_arrival:  # a sensor that has nothing to say is not late
            return "live"
        usual_hz = self._rate.usual_hz
        late_s = max(_LATE_S, 5.0 / usual_hz if usual_hz else 0.0)
        return "late" if self._clock.monotonic_ns() - self._last_ns > late_s * 1e9 else "live"

    def _call(self, call: Callable[[], Any]) -> Any:
        self._calling_since_ns = self._clock.monotonic_ns()
        try:
            return call()
        finally:
            self._calling_since_ns = None

    def _take(self, item: Sample | Packet | None) -> None:
        if item is None:
            if self._stamps_on_arrival:
                # Nothing older is still to come: a quiet sensor must not hold up the scene's windows.
                self._forward(Sample(self.name, "tick", self._last.get("tick", -1) + 1, self._clock.monotonic_ns()))
            return
        self._last_ns = self._clock.monotonic_ns()
        if isinstance(item, Sample):
            self._seen[item.kind] += 1
            self._rate.count(item.kind, self._last_ns)
            item = self._renumbered(item)
            self._forward(item)
        self._keep(item)

    def _forward(self, sample: Sample) -> None:
        self._last[sample.kind] = sample.seq
        self._mailbox.put(sample)

    def _renumbered(self, sample: Sample) -> Sample:
        """`seq` has to rise over reconnects; a driver may start again at 0."""
        if sample.kind not in self._shift:
            self._shift[sample.kind] = max(0, self._last.get(sample.kind, -1) + 1 - sample.seq)
        shift = self._shift[sample.kind]
        return dataclasses.replace(sample, seq=sample.seq + shift) if shift else sample


class _Rate:
    """Samples per second by kind: of the last two whole spans, and the usual one."""

    def __init__(self) -> None:
        self.usual_hz = 0.0
        self._spans: dict[str, tuple[int, int]] = {}  # kind → start, count
        self._hz: dict[str, float] = {}

    def count(self, kind: str, now_ns: int) -> None:
        start_ns, count = self._spans.get(kind, (now_ns, 0))
        if now_ns - start_ns < _RATE_NS:
            self._spans[kind] = (start_ns, count + 1)
            return
        self._hz[kind] = (count + 1) * 1e9 / (now_ns - start_ns)
        self._spans[kind] = (now_ns, 0)
        # Learned slowly, so that a camera that fades out does not make its silence usual.
        self.usual_hz += (self._hz[kind] - self.usual_hz) * (0.05 if self.usual_hz else 1.0)

    def hz(self, kind: str, now_ns: int) -> float:
        start_ns, count = self._spans.get(kind, (now_ns, 0))
        if now_ns - start_ns > 2 * _RATE_NS:  # it has fallen silent
            return count * 1e9 / (now_ns - start_ns)
        return self._hz.get(kind, 0.0)


class ClockService:
    """Pushes time itself: without ticks, a scene whose only camera died would never close a window."""

    def __init__(self, clock: Clock, mailbox: Mailbox) -> None:
        self._clock = clock
        self._mailbox = mailbox
        self._seq = itertools.count()

    def run(self, stop: threading.Event) -> None:
        """A tick every 50 ms until told to stop."""
        while not stop.wait(TICK_S):
            self._mailbox.put(Sample(CLOCK, "tick", next(self._seq), self._clock.monotonic_ns()))


@dataclass(frozen=True, slots=True)
class _Trial:
    """A model that was swapped in and has yet to score its first window."""

    done: Future[None]
    before: Model
    candidate: Model


class PipelineService:
    """Drives the core: one thread that scores, decides and hands events on.

    told     called with every message, after it is on disk
    state    file of the scenes' state between two runs of the agent
    """

    def __init__(
        self,
        scenes: Sequence[SceneConfig],
        model: Model,
        *,
        lateness_ms: int,
        mailbox: Mailbox,
        sink: Sink,
        told: Sequence[Callable[[Message], None]],
        metrics: Metrics,
        clock: Clock,
        state: Path,
    ) -> None:
        self._scenes = scenes
        self._model = model
        self._lateness_ms = lateness_ms
        self._mailbox = mailbox
        self._sink = sink
        self._told = told
        self._metrics = metrics
        self._clock = clock
        self._state = state
        self._step_ns = model.manifest.step_ms * _STEP_MS_TO_NS
        self._open: dict[tuple[str, str], Event] = {}
        self._scored = False
        self._counters: Mapping[str, int] = {}
        self._refused = 0
        self._known: tuple[SceneStatus, ...] = ()
        self._lock = threading.Lock()
        self._request: tuple[Future[None], Model] | None = None
        self._trial: _Trial | None = None
        self._turned_ns = clock.monotonic_ns()

    @property
    def model(self) -> Model:
        """The model that scores now."""
        return self._trial.candidate if self._trial else self._model

    @property
    def counters(self) -> Mapping[str, int]:
        """The core's own, and `refused` (events that the sink could not take), `waiting` (samples in the mailbox)."""
        return {**self._counters, "refused": self._refused, "waiting": len(self._mailbox)}

    @property
    def scenes(self) -> tuple[SceneStatus, ...]:
        """How well the scenes are known; at most ten seconds old."""
        return self._known

    def idle_s(self) -> float:
        """Seconds since the loop turned last; above a few the pipeline hangs."""
        return (self._clock.monotonic_ns() - self._turned_ns) / 1e9

    def request_swap(self, model: Model) -> Future[None]:
        """Change to `model` between two windows. From any thread; returns at once.

        The future is done when `model` has scored a window; the engine it replaced is closed then. BundleError in
        it if the model does not run, or another request came before it was tried: the old model runs on, and the
        caller closes this one. Cancelled if the pipeline stopped before that: nothing was found out about the model.
        The caller may cancel it: the old model runs on then, too.
        """
        done: Future[None] = Future()
        with self._lock:
            before, self._request = self._request, (done, model)
        if before is not None and before[0].set_running_or_notify_cancel():
            before[0].set_exception(BundleError("another model was asked for before this one was tried"))
        return done

    def run(self, stop: threading.Event) -> None:
        """Score until told to stop; then score what waits, end open events and keep the scenes' state."""
        pipeline = Pipeline(
            self._scenes,
            self._model,
            lateness_ms=self._lateness_ms,
            state=_read_state(self._state),
            on_scores=self._on_scores,
        )
        self._counters = pipeline.counters
        clean = False
        try:
            self._score(pipeline, stop)
            self._hand_on(pipeline.flush())
            clean = True
        finally:
            self._cancel_trial(stopping=clean)
            if not clean:
                self._abort_open()
        _write_state(self._state, pipeline.state(), durable=True)

    def _score(self, pipeline: Pipeline, stop: threading.Event) -> None:
        saved_ns = told_ns = self._clock.monotonic_ns()
        self._known = _statuses(pipeline)
        while True:
            stopping = stop.is_set()  # asked before the mailbox is emptied: the sources have stopped by then
            self._turned_ns = self._clock.monotonic_ns()
            samples = self._mailbox.take(_TURN_S)
            self._take_back_trial(pipeline)
            self._begin_trial(pipeline)  # after the wait, so that what came behind a request meets the new model
            for sample in samples:
                self._hand_on(self._push(pipeline, sample))
            if stopping:
                return
            if self._clock.monotonic_ns() - told_ns >= _TELL_NS:
                told_ns = self._clock.monotonic_ns()
                self._known = _statuses(pipeline)
            # A crash aborts what is open: a state that still held it would go on with events that are over.
            if self._clock.monotonic_ns() - saved_ns >= _SAVE_NS and not self._open:
                saved_ns = self._clock.monotonic_ns()
                _write_state(self._state, pipeline.state(), durable=False)

    def _push(self, pipeline: Pipeline, sample: Sample) -> list[Event]:
        began_ns = self._clock.monotonic_ns()
        self._scored = False
        try:
            events = pipeline.push(sample)
        except _MODEL_ERRORS as error:
            if self._trial is None:
                raise
            events = pipeline.swap_model(self._trial.before)
            self._give_up_trial(f"the new model does not run: {error}")
        if self._scored:
            self._metrics.observe_step((self._clock.monotonic_ns() - began_ns) / 1e9)
            self._end_trial()
        return events

    def _on_scores(self, scores: Scores) -> None:
        self._scored = True
        end_ns = (scores.step + 1) * self._step_ns
        self._metrics.observe_score((self._clock.monotonic_ns() - end_ns) / 1e9)

    def _hand_on(self, events: Sequence[Event]) -> None:
        """Events to the sink, all in one commit, then to whoever is told."""
        if not events:
            return
        try:
            messages = self._sink.put_all(events)
        except StorageError:
            messages = [message for event in events for message in self._put_alone(event)]
        now_ns = self._clock.monotonic_ns()
        for message in messages:
            event = message.body
            if not isinstance(event, Event):
                continue
            if event.phase in ("end", "aborted"):
                self._open.pop((event.scene, event.label), None)
            else:
                self._open[event.scene, event.label] = event
            delay_s = (now_ns - (event.step + 1) * event.step_ms * _STEP_MS_TO_NS) / 1e9
            self._metrics.observe_event(event.scene, event.label, event.phase, delay_s)
            for tell in self._told:
                tell(message)

    def _put_alone(self, event: Event) -> list[Message]:
        """Its message, or none: to stop scoring would not make the disk any emptier, so the loss is counted."""
        try:
            return self._sink.put_all((event,))
        except StorageError as error:
            self._refused += 1
            log.error("event %s/%s %s is lost: %s", event.scene, event.label, event.phase, error)
            return []

    def _abort_open(self) -> None:
        """What was open when the pipeline broke is over; a new run knows nothing of it."""
        self._hand_on(
            [
                msgspec.structs.replace(event, phase="aborted", revision=event.revision + 1, trace=(), heat=None)
                for event in self._open.values()
            ]
        )

    # --- swap ---

    def _begin_trial(self, pipeline: Pipeline) -> None:
        with self._lock:
            request, self._request = self._request, None
        if request is None:
            return
        done, candidate = request
        if done.cancelled():
            return
        before = pipeline.model
        self._give_up_trial("another model was asked for before this one had scored a window")
        try:
            events = pipeline.swap_model(candidate)
        except _MODEL_ERRORS as error:
            if done.set_running_or_notify_cancel():
                done.set_exception(BundleError(f"the new model does not run: {error}"))
            return
        self._step_ns = candidate.manifest.step_ms * _STEP_MS_TO_NS
        self._trial = _Trial(done, before, candidate)
        self._hand_on(events)

    def _take_back_trial(self, pipeline: Pipeline) -> None:
        """The caller waits no longer: back to the model before."""
        trial = self._trial
        if trial is None or not trial.done.cancelled():
            return
        self._trial = None
        self._step_ns = trial.before.manifest.step_ms * _STEP_MS_TO_NS
        self._hand_on(pipeline.swap_model(trial.before))

    def _end_trial(self) -> None:
        trial = self._trial
        if trial is None or not trial.done.set_running_or_notify_cancel():
            return  # a cancelled one is taken back at the next turn
        self._trial = None
        self._model = trial.candidate
        if trial.before is not trial.candidate:
            trial.before.engine.close()
        log.info("model %s runs", trial.candidate.manifest.name)
        trial.done.set_result(None)

    def _give_up_trial(self, reason: str) -> None:
        trial, self._trial = self._trial, None
        if trial is not None:
            self._step_ns = self._model.manifest.step_ms * _STEP_MS_TO_NS
            if trial.done.set_running_or_notify_cancel():
                trial.done.set_exception(BundleError(reason))

    def _cancel_trial(self, *, stopping: bool) -> None:
        """Tell who waits for a swap that this run has no answer. A request not begun waits for a run that follows."""
        trial, self._trial = self._trial, None
        if trial is not None:
            self._step_ns = self._model.manifest.step_ms * _STEP_MS_TO_NS
            trial.done.cancel()
        with self._lock:
            if stopping and self._request is not None:
                self._request[0].cancel()
                self._request = None


def _statuses(pipeline: Pipeline) -> tuple[SceneStatus, ...]:
    return tuple(
        SceneStatus(
            name=name,
            calibrating=known.calibrating,
            threshold=known.threshold,
            blocks=known.blocks,
            alerts=known.alerts,
            memory=dict(known.memory),
            drift={modality: round(drift, 2) for modality, drift in known.drift.items()},
            frozen=known.frozen,
        )
        for name, known in pipeline.conditions().items()
    )


class RecordService:
    """Writes what the pipeline would get, and the packets beside it, to a recording."""

    def __init__(self, recorder: Recorder, mailbox: Mailbox) -> None:
        self.error: TectumError | None = None  #: why it ended early
        self.dropped = 0  #: packets
        self._recorder = recorder
        self._mailbox = mailbox
        self._packets: deque[Packet] = deque()

    def keep(self, item: Sample | Packet) -> None:
        """Take a packet; samples come by the mailbox. From the sources' threads."""
        if isinstance(item, Packet):
            if len(self._packets) >= _PACKETS_WAITING:
                self._packets.popleft()
                self.dropped += 1
            self._packets.append(item)

    def run(self, stop: threading.Event) -> None:
        """Write until told to stop, then what still waits. StorageError when the disk or the recording is full."""
        try:
            while True:
                stopping = stop.is_set()
                samples = self._mailbox.take(_TURN_S)
                while self._packets:
                    self._recorder.put(self._packets.popleft())
                for sample in samples:
                    self._recorder.put(sample)
                if stopping:
                    return
        except StorageError as error:
            self.error = error
            raise


class ConsoleSink:
    """Events as lines for a person, where the device has no identity and so no cloud. Nothing is kept."""

    def __init__(self, clock: Clock, boot: str, out: TextIO | None = None) -> None:
        self._clock = clock
        self._boot = boot
        self._out = out or sys.stdout
        self._ids: dict[tuple[str, str, int], str] = {}
        self._seq = itertools.count(1)
        self._lock = threading.Lock()

    def put_all(self, events: Sequence[Event]) -> list[Message]:
        """Print them."""
        return [self._put(event) for event in events]

    def attach(self, event_id: str, evidence: Evidence, file: Path) -> object:
        """Print where the file is."""
        self._print(f"         {evidence.role} of {evidence.scene}: {file} ({evidence.size / 1024:.0f} kB)")
        return None

    def _put(self, event: Event) -> Message:
        key = (event.scene, event.label, event.onset_step)
        event_id = self._ids.pop(key, None) or uuid7(self._clock.wall_ns())
        if event.phase in ("new", "update"):
            self._ids[key] = event_id
        self._print(describe(event))
        return Message(
            device="console",
            stream="0" * 32,
            seq=next(self._seq),
            boot=self._boot,
            id=event_id,
            wall_ns=self._clock.wall_ns(),
            wall_quality=self._clock.wall_quality(),
            monotonic_ns=self._clock.monotonic_ns(),
            body=event,
        )

    def _print(self, line: str) -> None:
        with self._lock:
            print(line, file=self._out, flush=True)


def describe(event: Event) -> str:
    """One line about an event: phase, label, place, score, and what it rests on."""
    shares = "  ".join(f"{name} {getattr(event.shares, name):+.1f}" for name in MODALITIES)
    rests_on = f"rule {event.rule}" if event.origin == "rule" else shares
    return (
        f"{event.phase.upper():8s} {event.label} in {event.scene}  "
        f"score {event.score:.2f} of {event.threshold:.2f}, peak {event.peak:.2f}  {rests_on}"
    )


def _read_state(path: Path) -> Arrays | None:
    """What an earlier run knew of the scenes; None where there is nothing or it cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        log.warning("state of the scenes in %s cannot be read (%s): they start cold", path, error)
        return None


def _write_state(path: Path, arrays: Arrays, *, durable: bool) -> None:
    """Replace the file in one step. Not `durable` leaves it to the kernel when: no wait for the disk."""
    draft = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # its stub takes allow_pickle for any keyword
            if durable:
                file.flush()
                os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:  # a scene that starts cold next time is no reason to stop this time
        log.warning("state of the scenes is not kept: %s", error)
