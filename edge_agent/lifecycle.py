"""The supervisor: the only code that starts threads, catches everything, restarts, and lets the device die.

A service is one blocking method. It returns when asked and raises when broken; it does not restart itself.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from edge_agent.clock import Clock
from edge_agent.errors import TectumError

log = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Service(Protocol):
    """A long-running part of the agent."""

    def run(self, stop: threading.Event) -> None:
        """Block until `stop` is set, then return soon. Raises when broken; the supervisor calls it again.

        A finite service (a file that has been played) returns earlier; any other that does so counts as broken.
        """


@dataclass(frozen=True, slots=True)
class Stage:
    """A step of the stop. Whoever is not done `done_by_s` after the stop began is left behind, and named."""

    name: str
    done_by_s: float
    why: str


#: The stop, in order. A stage that is done early leaves its time to those behind it; with the interpreter's own
#: end it takes 5 s at most.
STOP_ORDER = (
    Stage("sources", 1.5, "nothing new may come in, or the queue in front of the pipeline never runs dry"),
    Stage("pipeline", 2.0, "what was captured is scored, and every open event gets its `end`"),
    Stage(
        "evidence",
        2.9,
        "the events just ended still get their clip: it needs the rings, which sources no longer fill",
    ),
    Stage("health", 3.0, "its last numbers cover the drain; after it nobody asks the parts for figures"),
    Stage("publish", 4.1, "flushes what the stages above put into the outbox; the rest goes at the next start"),
    Stage(
        "upload", 4.3, "resumable, so it may stop anywhere; after publish, since a message is worth more than a clip"
    ),
    Stage(
        "update", 4.4, "every step of an update is safe to cut; it must not swap a model while the pipeline drains"
    ),
    Stage("outbox", 4.6, "last, because everyone above writes into it"),
)


@dataclass(frozen=True, slots=True)
class Backoff:
    """Full jitter: the n-th failure in a row waits a random time in [0, min(cap, base · 2ⁿ))."""

    base_s: float = 0.5
    cap_s: float = 30.0
    healthy_s: float = 60.0  #: a run that lasted this long forgets the failures before it

    def delay_s(self, failures: int, rng: random.Random) -> float:
        """Seconds to wait after `failures` in a row (1, 2, …)."""
        return rng.uniform(0.0, min(self.cap_s, self.base_s * 2.0 ** min(failures, 32)))


@dataclass(frozen=True, slots=True)
class Spec:
    """How one service is run.

    finite          may return before it is asked to
    fatal_after     this many failures in a row end the agent; None: it is restarted for ever
    unblock         frees a `run` that hangs, from another thread; called when `stalled` says so and late in a stop
    """

    name: str
    service: Service
    stage: str
    finite: bool = False
    fatal_after: int | None = None
    backoff: Backoff = Backoff()
    stalled: Callable[[], bool] | None = None
    unblock: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class Closer:
    """Something without a thread of its own that a stage of the stop closes."""

    name: str
    stage: str
    close: Callable[[], None]


class _Runner:
    """One service on its thread: run, catch, wait, run again."""

    def __init__(self, spec: Spec, stop: threading.Event, clock: Clock, rng: random.Random) -> None:
        self.spec = spec
        self.restarts = 0
        self.error = ""
        self.fatal = False
        self.ended = False
        self._stop = stop
        self._clock = clock
        self._rng = rng
        self._failures = 0
        self._unblocking: threading.Thread | None = None
        self.thread = threading.Thread(target=self._loop, name=spec.name, daemon=True)

    def _loop(self) -> None:
        while not self._stop.is_set():
            started_ns = self._clock.monotonic_ns()
            error = self._run_once()
            if error is None:
                self.ended = True
                return
            if self._clock.monotonic_ns() - started_ns >= self.spec.backoff.healthy_s * 1e9:
                self._failures = 0
            self._failures += 1
            self.error = str(error) or type(error).__name__
            if self.spec.fatal_after is not None and self._failures >= self.spec.fatal_after:
                log.critical("%s failed %d times in a row: %s", self.spec.name, self._failures, self.error)
                self.fatal = True
                return
            delay_s = self.spec.backoff.delay_s(self._failures, self._rng)
            log.warning("%s: %s (again in %.1f s)", self.spec.name, self.error, delay_s)
            if not self._stop.wait(delay_s):
                self.restarts += 1

    def _run_once(self) -> BaseException | None:
        """What `run` broke with; None where it returned as it may."""
        try:
            self.spec.service.run(self._stop)
        except TectumError as error:
            return error
        except BaseException as error:  # nothing may get through here: a thread that dies in silence is a blind eye
            log.exception("%s broke", self.spec.name)
            return error
        if self._stop.is_set() or self.spec.finite:
            return None
        return RuntimeError("returned without being asked")

    def unblock(self) -> None:
        """Let the service's `unblock` try to free it, on a thread of its own: it may hang in the same place."""
        if self.spec.unblock is None or (self._unblocking is not None and self._unblocking.is_alive()):
            return
        self._unblocking = _side_thread(f"unblock:{self.spec.name}", self.spec.unblock)
        self._unblocking.start()

    def alive(self) -> bool:
        """Whether a thread of this service is left, the one that tries to free it included."""
        return self.thread.is_alive() or (self._unblocking is not None and self._unblocking.is_alive())

    def join(self, timeout_s: float) -> None:
        """Wait for the service, then for the thread that freed it."""
        deadline_ns = self._clock.monotonic_ns() + int(timeout_s * 1e9)
        for thread in (self.thread, self._unblocking):
            if thread is not None:
                thread.join(max(0.0, (deadline_ns - self._clock.monotonic_ns()) / 1e9))


class Supervisor:
    """Starts services in the order given, keeps them running, stops them stage by stage.

    One thread owns a supervisor: it calls `start`, then `watch` every second or so, then `stop`.
    """

    def __init__(
        self,
        specs: Sequence[Spec],
        clock: Clock,
        *,
        closers: Sequence[Closer] = (),
        order: Sequence[Stage] = STOP_ORDER,
        rng: random.Random | None = None,
    ) -> None:
        stages = {stage.name for stage in order}
        parts: list[Spec | Closer] = [*specs, *closers]
        unknown = [f"{part.name} in {part.stage!r}" for part in parts if part.stage not in stages]
        if unknown:
            raise ValueError(
                f"no such stage of the stop: {', '.join(unknown)}; there are {', '.join(sorted(stages))}"
            )
        self._order = order
        self._clock = clock
        self._closers = closers
        self._stops = {name: threading.Event() for name in stages}
        jitter = rng or random.Random()
        self._runners = [_Runner(spec, self._stops[spec.stage], clock, jitter) for spec in specs]

    def start(self) -> None:
        """Start every service's thread, named after it."""
        for runner in self._runners:
            runner.thread.start()

    @property
    def restarts(self) -> dict[str, int]:
        """Times that each service was started again."""
        return {runner.spec.name: runner.restarts for runner in self._runners}

    @property
    def errors(self) -> dict[str, str]:
        """What each service broke with last; empty where it never did."""
        return {runner.spec.name: runner.error for runner in self._runners}

    @property
    def fatal(self) -> str | None:
        """Name of the service whose repeated failure should end the agent."""
        return next((runner.spec.name for runner in self._runners if runner.fatal), None)

    def ended(self) -> bool:
        """Whether there are finite services and all of them are through."""
        finite = [runner for runner in self._runners if runner.spec.finite]
        return bool(finite) and all(runner.ended for runner in finite)

    def watch(self) -> None:
        """Try to free the services that say they are stalled."""
        for runner in self._runners:
            if runner.spec.stalled is not None and runner.thread.is_alive() and runner.spec.stalled():
                log.warning("%s hangs; closing it from outside", runner.spec.name)
                runner.unblock()

    def stop(self, patience: float = 1.0) -> list[str]:
        """Stop stage by stage; the names of the services that did not, whose threads are left behind.

        Returns within the last stage's `done_by_s` times `patience`. May be called twice.
        """
        began_ns = self._clock.monotonic_ns()

        def left_s(stage: Stage) -> float:
            return max(0.0, stage.done_by_s * patience - (self._clock.monotonic_ns() - began_ns) / 1e9)

        late: list[str] = []
        for stage in self._order:
            self._stops[stage.name].set()
            runners = [r for r in self._runners if r.spec.stage == stage.name and r.thread.ident is not None]
            late += self._stop_runners(runners, stage, left_s)
            late += self._close(stage, left_s)
        for name in late:
            log.error("%s did not stop in time; its thread is left behind", name)
        return late

    def _stop_runners(self, runners: Sequence[_Runner], stage: Stage, left_s: Callable[[Stage], float]) -> list[str]:
        half_s = left_s(stage) / 2
        for runner in runners:
            runner.join(max(0.0, left_s(stage) - half_s))
        for runner in runners:
            if runner.thread.is_alive():
                runner.unblock()
        for runner in runners:
            runner.join(left_s(stage))
        return [runner.spec.name for runner in runners if runner.alive()]

    def _close(self, stage: Stage, left_s: Callable[[Stage], float]) -> list[str]:
        late = []
        for closer in self._closers:
            if closer.stage != stage.name:
                continue
            thread = _side_thread(f"close:{closer.name}", closer.close)
            thread.start()
            thread.join(left_s(stage))
            if thread.is_alive():
                late.append(closer.name)
        return late


def _side_thread(name: str, action: Callable[[], None]) -> threading.Thread:
    """A thread for one call that may hang (a driver's close, a dead disk) while the agent has to go on."""

    def call() -> None:
        try:
            action()
        except BaseException:
            log.exception("%s broke", name)

    return threading.Thread(target=call, name=name, daemon=True)


def block_signals() -> None:
    """Hold `STOP_SIGNALS` back until the main thread waits for them with `sigtimedwait`.

    To be called before any thread is started, for threads inherit the mask. One that comes while the model compiles
    is not lost then, and no handler runs in the middle of something that holds a lock.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def notify_systemd(state: str) -> None:
    """Tell systemd `READY=1`, `WATCHDOG=1` or `STOPPING=1`; nothing where it did not ask to be told."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # abstract namespace
        address = "\0" + address[1:]
    # A supervisor that does not listen is no reason to stop watching the scene.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
        line.connect(address)
        line.sendall(state.encode())
