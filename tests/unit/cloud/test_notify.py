"""Notifications: one for each alert, however often it is tried."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import sqlalchemy as sa

from cloud_sync import notify
from cloud_sync.config import IngestConfig
from cloud_sync.ingest import Intake, read
from cloud_sync.notify import Notice, Notifier, Webhook
from cloud_sync.store import Store
from cloud_sync.store.tables import Effect
from tests.parts.cloud import add_devices, delivery, event, event_id, message

_S = 10**9


class Ear:
    """Hears notices, or fails as often as it is told."""

    def __init__(self, failures: int = 0) -> None:
        self.heard: list[Notice] = []
        self.failures = failures

    def send(self, notice: Notice) -> None:
        if self.failures:
            self.failures -= 1
            raise OSError("connection refused")
        self.heard.append(notice)


class HandClock:
    ns = 10**18

    def __call__(self) -> int:
        return self.ns


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def store(any_store: Store) -> Store:
    add_devices(any_store, "cam")
    return any_store


def alerts(store: Store, *numbers: int) -> None:
    intake = Intake(store, IngestConfig())
    for number in numbers:
        intake.take(read(delivery(message(number, event(), of=number))))


def effects(store: Store) -> list[Effect]:
    with store.read() as session:
        return list(session.execute(sa.select(Effect).order_by(Effect.id)).scalars())


def test_each_alert_is_told_once(store: Store, clock: HandClock) -> None:
    ear = Ear()
    alerts(store, 1, 2)
    notifier = Notifier(store, [ear], "https://cloud.example", clock)
    assert [notifier.carry_out() for _ in range(3)] == [2, 0, 0]
    alerts(store, 1, 3)
    notifier.carry_out()
    assert [notice.alert for notice in ear.heard] == [event_id(1), event_id(2), event_id(3)]
    assert ear.heard[0].url == f"https://cloud.example/alert/{event_id(1)}"
    assert all(effect.done_ns == clock.ns for effect in effects(store))


def test_two_notifiers_do_not_tell_twice(store: Store) -> None:
    ear = Ear()
    alerts(store, *range(1, 60))
    notifiers = [Notifier(store, [ear], "") for _ in range(3)]

    def work(notifier: Notifier) -> None:
        for _ in range(10):
            notifier.carry_out()

    threads = [threading.Thread(target=work, args=(notifier,)) for notifier in notifiers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(notice.alert for notice in ear.heard) == sorted(event_id(number) for number in range(1, 60))


def test_what_fails_is_tried_again_later_with_the_same_key(store: Store, clock: HandClock) -> None:
    ear = Ear(failures=2)
    alerts(store, 1)
    notifier = Notifier(store, [ear], "", clock)
    assert notifier.carry_out() == 1
    assert notifier.carry_out() == 0, "not at once"
    clock.ns += 2 * _S
    assert notifier.carry_out() == 1
    clock.ns += 6 * _S
    assert notifier.carry_out() == 1
    assert [notice.key for notice in ear.heard] == [f"tectum-alert-{event_id(1)}"]
    assert [(effect.attempts, effect.error) for effect in effects(store)] == [(3, "")]


def test_it_is_given_up_in_the_end_and_says_why(store: Store, clock: HandClock) -> None:
    ear = Ear(failures=10**9)
    alerts(store, 1)
    notifier = Notifier(store, [ear], "", clock)
    tried = 0
    for _ in range(20):
        tried += notifier.carry_out()
        clock.ns += 200 * _S
    assert tried == notify.ATTEMPTS
    (effect,) = effects(store)
    assert (effect.error, effect.done_ns is None) == ("connection refused", False)


def test_one_that_was_claimed_by_a_process_that_died_is_told(store: Store, clock: HandClock) -> None:
    ear = Ear()
    alerts(store, 1)
    with store.write() as session:
        session.execute(sa.update(Effect).values(claimed_ns=clock.ns, attempts=1))
    notifier = Notifier(store, [ear], "", clock)
    assert notifier.carry_out() == 0, "it may still be at it"
    clock.ns += notify.CLAIM_NS + 1
    assert notifier.carry_out() == 1
    assert len(ear.heard) == 1


def test_without_a_channel_they_are_done_at_once(store: Store, clock: HandClock) -> None:
    alerts(store, 1)
    Notifier(store, [], "", clock).carry_out()
    assert effects(store)[0].done_ns == clock.ns


def test_done_ones_do_not_pile_up(store: Store, clock: HandClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "KEPT_DONE", 3)
    alerts(store, *range(1, 11))
    Notifier(store, [], "", clock).carry_out()
    assert len(effects(store)) == 3


@contextmanager
def receiver(status: int) -> Iterator[tuple[str, list[tuple[str | None, bytes]]]]:
    """A web server that answers `status`, and what it was sent."""
    got: list[tuple[str | None, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((self.headers["Idempotency-Key"], body))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook", got
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


NOTICE = Notice("key", event_id(1), "home", "cam", "yard", "fire", 1, 0.9, 0.5, "https://cloud.example")


def test_a_webhook_gets_json_and_a_key() -> None:
    with receiver(204) as (url, got):
        Webhook(url, 5).send(NOTICE)
    assert got[0][0] == "key"
    assert json.loads(got[0][1])["label"] == "fire"


@pytest.mark.parametrize("status", [400, 404, 500, 503])
def test_a_webhook_that_refuses_is_an_error(status: int) -> None:
    with receiver(status) as (url, _), pytest.raises(OSError, match=str(status)):
        Webhook(url, 5).send(NOTICE)


def test_a_webhook_that_is_not_there_is_an_error() -> None:
    with receiver(200) as (url, _):
        pass
    with pytest.raises(OSError, match="refused"):
        Webhook(url, 5).send(NOTICE)


def test_a_webhook_that_speaks_something_else_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            line, _ = server.accept()
            with line:
                line.recv(65536)
                line.sendall(b"220 mail.example ESMTP\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(OSError, match="HTTP"):
            Webhook(f"http://127.0.0.1:{server.getsockname()[1]}/", 5).send(NOTICE)
        thread.join(10)


def test_a_stop_leaves_the_rest_of_a_batch_to_whoever_comes_next(store: Store, clock: HandClock) -> None:
    stop = threading.Event()

    class Stopping(Ear):
        def send(self, notice: Notice) -> None:
            super().send(notice)
            stop.set()

    ear = Stopping()
    alerts(store, 1, 2, 3)
    notifier = Notifier(store, [ear], "", clock)
    notifier.carry_out(stop)
    assert [notice.alert for notice in ear.heard] == [event_id(1)]
    clock.ns += notify.CLAIM_NS + 1
    notifier.carry_out()
    assert [notice.alert for notice in ear.heard] == [event_id(1), event_id(2), event_id(3)]
