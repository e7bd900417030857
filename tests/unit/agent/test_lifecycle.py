"""The supervisor keeps services running, and stops them in order and in time."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_agent.clock import SystemClock
from edge_agent.errors import SourceError
from edge_agent.lifecycle import STOP_ORDER, Backoff, Closer, Spec, Stage, Supervisor, notify_systemd

SOON = Backoff(base_s=0.001, cap_s=0.002)
QUICK = (Stage("first", 0.2, ""), Stage("second", 0.4, ""), Stage("third", 0.6, ""))


class Scripted:
    """A service that does what its script says, then waits for its stop."""

    def __init__(self, *script: BaseException, finite: bool = False) -> None:
        self.script = list(script)
        self.runs = 0
        self.finite = finite

    def run(self, stop: threading.Event) -> None:
        self.runs += 1
        if self.script:
            raise self.script.pop(0)
        if not self.finite:
            stop.wait()


def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "did not come true in time"
        threading.Event().wait(0.005)


def supervisor(*specs: Spec, closers: tuple[Closer, ...] = ()) -> Supervisor:
    return Supervisor(specs, SystemClock(), closers=closers, order=QUICK, rng=random.Random(1))


def test_a_service_that_raises_anything_is_started_again() -> None:
    broken = Scripted(SourceError("no route"), RuntimeError("boom"), SystemExit(3))
    watched = supervisor(Spec("camera", broken, "first", backoff=SOON))
    watched.start()
    until(lambda: broken.runs == 4)
    assert watched.restarts == {"camera": 3}
    assert watched.errors == {"camera": "3"}
    assert watched.stop() == []


def test_a_service_that_returns_unasked_counts_as_broken_unless_it_is_finite() -> None:
    idle, played = Scripted(finite=True), Scripted(finite=True)
    watched = supervisor(
        Spec("idle", idle, "first", backoff=SOON), Spec("file", played, "first", finite=True, backoff=SOON)
    )
    watched.start()
    until(lambda: idle.runs > 2 and watched.ended())
    assert played.runs == 1
    assert watched.errors["idle"] == "returned without being asked"
    watched.stop()


def test_repeated_failure_is_fatal_where_configured() -> None:
    watched = supervisor(
        Spec("pipeline", Scripted(*[RuntimeError("x")] * 9), "first", fatal_after=3, backoff=SOON),
        Spec("camera", Scripted(*[RuntimeError("x")] * 9), "first", backoff=SOON),
    )
    watched.start()
    until(lambda: watched.fatal == "pipeline" and watched.restarts["camera"] == 9)
    assert watched.restarts["pipeline"] == 2
    watched.stop()


def test_a_healthy_run_forgets_the_failures_before_it() -> None:
    healthy_at_once = Backoff(base_s=0.001, cap_s=0.002, healthy_s=0.0)
    service = Scripted(*[RuntimeError("x")] * 8)
    watched = supervisor(Spec("pipeline", service, "first", fatal_after=3, backoff=healthy_at_once))
    watched.start()
    until(lambda: service.runs == 9)
    assert watched.fatal is None
    watched.stop()


def test_back_off_is_jittered_and_capped() -> None:
    backoff, rng = Backoff(base_s=0.5, cap_s=30.0), random.Random(4)
    for failures, most_s in ((1, 1.0), (2, 2.0), (5, 16.0), (6, 30.0), (10_000, 30.0)):
        delays = [backoff.delay_s(failures, rng) for _ in range(500)]
        assert 0.9 * most_s < max(delays) <= most_s
        assert min(delays) < 0.1 * most_s


def test_stages_stop_in_order_and_threads_are_named() -> None:
    ended: list[str] = []

    class Noting:
        def run(self, stop: threading.Event) -> None:
            stop.wait()
            ended.append(threading.current_thread().name)

    watched = supervisor(
        Spec("c", Noting(), "third"),
        Spec("a", Noting(), "first"),
        Spec("b", Noting(), "second"),
        closers=(Closer("store", "third", lambda: ended.append("store")),),
    )
    watched.start()
    assert watched.stop() == []
    assert ended == ["a", "b", "c", "store"]


def test_a_service_that_hangs_is_named_and_does_not_hold_up_the_stop() -> None:
    free = threading.Event()

    class Deaf:
        def run(self, stop: threading.Event) -> None:
            free.wait()

    closed: list[str] = []
    watched = supervisor(
        Spec("deaf", Deaf(), "first"),
        Spec("good", Scripted(), "second"),
        closers=(Closer("outbox", "third", lambda: closed.append("outbox")),),
    )
    watched.start()
    began = time.monotonic()
    assert watched.stop() == ["deaf"]
    assert time.monotonic() - began < QUICK[-1].done_by_s + 0.5
    assert closed == ["outbox"]
    free.set()


def test_a_read_that_hangs_is_freed_by_closing_from_outside() -> None:
    closed = threading.Event()

    class Hanging:
        def run(self, stop: threading.Event) -> None:
            closed.wait()
            raise SourceError("closed while reading")

    stalled = threading.Event()
    watched = supervisor(Spec("camera", Hanging(), "first", backoff=SOON, stalled=stalled.is_set, unblock=closed.set))
    watched.start()
    watched.watch()
    assert not closed.is_set()
    stalled.set()
    watched.watch()
    until(lambda: watched.restarts["camera"] > 0)
    assert watched.stop() == []


def test_a_closer_that_breaks_or_hangs_does_not_hold_up_the_stop() -> None:
    free, closed = threading.Event(), threading.Event()

    def broken() -> None:
        raise OSError("disk gone")

    watched = supervisor(
        closers=(
            Closer("broken", "first", broken),
            Closer("hanging", "second", lambda: bool(free.wait()) and None),
            Closer("good", "third", closed.set),
        )
    )
    watched.start()
    assert watched.stop() == ["hanging"]
    assert closed.is_set()
    free.set()


def test_a_stage_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="pump in 'cellar'"):
        supervisor(Spec("pump", Scripted(), "cellar"))


def test_the_stop_fits_in_five_seconds_and_every_step_has_its_reason() -> None:
    names = [stage.name for stage in STOP_ORDER]
    assert names == ["sources", "pipeline", "evidence", "health", "publish", "upload", "update", "outbox"]
    deadlines = [stage.done_by_s for stage in STOP_ORDER]
    assert deadlines == sorted(deadlines)
    assert deadlines[-1] < 5.0
    assert all(stage.why for stage in STOP_ORDER)


def test_systemd_is_told_where_it_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.bind(str(path))
        line.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        notify_systemd("READY=1")
        assert line.recv(64) == b"READY=1"
    path.unlink()
    notify_systemd("WATCHDOG=1")  # nobody listens: no error
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify_systemd("WATCHDOG=1")
