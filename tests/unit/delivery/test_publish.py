"""The publisher against a real Mosquitto: what arrives, what leaves the outbox, what happens when things go wrong."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from edge_agent.clock import SystemClock
from edge_agent.contract import wire
from edge_agent.contract.event import Ack, Gap, Heat, Message, Rollout
from edge_agent.contract.status import Desired, Health, State
from edge_agent.errors import ConfigError
from edge_agent.outbox import Outbox
from edge_agent.publish import Publisher
from tests.parts.certificates import self_signed
from tests.parts.delivery import Acknowledger, event, eventually, identity, outbox, running
from tests.parts.mosquitto import Mosquitto, mosquitto

pytestmark = pytest.mark.needs("mosquitto")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with mosquitto(tmp_path / "broker") as started:
        yield started


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Outbox]:
    opened = outbox(tmp_path / "outbox.db", max_bytes=64 << 20)
    yield opened
    opened.close()


class Site:
    """A publisher with its surroundings; keeps what it was told."""

    def __init__(self, box: Outbox, port: int, *, resend_s: float = 2.0, flush_s: float = 2.0) -> None:
        self.state = State(device="porch", online=True, boot="boot-1")
        self.desired: list[Desired] = []
        self.publisher = Publisher(
            identity(port),
            box,
            SystemClock(),
            lambda: self.state,
            self.desired.append,
            resend_s=resend_s,
            flush_s=flush_s,
            backoff_cap_s=0.3,
        )


def empty(box: Outbox) -> bool:
    return box.counters["rows"] == 0


def put(box: Outbox, count: int, start: int = 0) -> None:
    box.put_all([event("end", start + n) for n in range(count)])


def test_rows_arrive_once_in_order_and_leave_when_acknowledged(broker: Mosquitto, box: Outbox) -> None:
    site = Site(box, broker.port)
    with Acknowledger(broker.port) as cloud, running(site.publisher):
        for n in range(20):
            box.put(event("end", n))
        eventually(lambda: empty(box))
        assert cloud.arrivals == [(box.stream, seq) for seq in range(1, 21)]
    assert site.publisher.counters["rows"] == 20


def test_a_backlog_travels_in_batches(broker: Mosquitto, box: Outbox) -> None:
    put(box, 2000)
    site = Site(box, broker.port)
    with Acknowledger(broker.port) as cloud, running(site.publisher):
        eventually(lambda: empty(box))
        assert cloud.seqs(box.stream) == list(range(1, 2001))
        assert len(cloud.payloads) <= 20
        assert max(map(len, cloud.payloads)) <= wire.MAX_PAYLOAD


def test_what_is_not_acknowledged_stays_and_only_a_window_of_it_is_sent(tmp_path: Path, box: Outbox) -> None:
    with (
        mosquitto(tmp_path / "b", extra=("max_inflight_messages 100",)) as broker,
        Acknowledger(broker.port, silent=True) as cloud,
        running((site := Site(box, broker.port, resend_s=60.0)).publisher),
    ):
        for n in range(80):
            box.put(event("end", n))
            eventually(lambda n=n: len(cloud.payloads) >= min(n + 1, 64))
        assert site.publisher.counters["in_flight"] == 64
        assert len(cloud.payloads) == 64
        assert box.counters["rows"] == 80
        cloud.silent = False
        cloud.acknowledge(box.stream)
        eventually(lambda: empty(box))


def test_silence_drops_the_socket_and_everything_goes_again(broker: Mosquitto, box: Outbox) -> None:
    put(box, 3)
    site = Site(box, broker.port, resend_s=0.5)
    with Acknowledger(broker.port, silent=True) as cloud, running(site.publisher):
        eventually(lambda: site.publisher.counters["watchdog"] >= 1)
        eventually(lambda: len(cloud.arrivals) >= 6)
        assert box.counters["rows"] == 3
        assert cloud.seqs(box.stream) == [1, 2, 3]
        cloud.silent = False
        eventually(lambda: empty(box))


def test_a_broker_that_lost_its_memory_gets_everything_again_at_once(tmp_path: Path, box: Outbox) -> None:
    with mosquitto(tmp_path / "b") as broker:
        site = Site(box, broker.port, resend_s=60.0)
        put(box, 5)
        with running(site.publisher):
            with Acknowledger(broker.port, silent=True) as deaf:
                eventually(lambda: deaf.seqs(box.stream) == [1, 2, 3, 4, 5])
            broker.restart(kill=True)
            with Acknowledger(broker.port) as cloud:
                eventually(lambda: empty(box))
                assert cloud.seqs(box.stream) == [1, 2, 3, 4, 5]
        assert site.publisher.counters["watchdog"] == 0


def test_rows_wait_for_an_ingest_that_is_not_there_yet(broker: Mosquitto, box: Outbox) -> None:
    put(box, 3000)
    site = Site(box, broker.port, resend_s=60.0)
    with running(site.publisher):
        eventually(lambda: site.publisher.counters["unheard"] >= 3)
        assert site.publisher.counters["messages"] <= 4  # one at a time, not the whole backlog again and again
        with Acknowledger(broker.port):
            eventually(lambda: empty(box))
    assert site.publisher.counters["watchdog"] == 0


def test_holes_are_kept_and_filled(broker: Mosquitto, box: Outbox) -> None:
    put(box, 4)
    site = Site(box, broker.port, resend_s=1.0)
    with Acknowledger(broker.port, silent=True) as cloud, running(site.publisher):
        eventually(lambda: len(cloud.got) == 4)
        cloud.send("ack", wire.encode(Ack(stream=box.stream, upto=4, holes=((2, 3),))))
        eventually(lambda: box.counters["rows"] == 2)
        assert [row.seq for row in box.batch(0, 9)] == [2, 3]
        cloud.silent = False
        eventually(lambda: empty(box))


def test_rollouts_travel_on_their_own_topic(broker: Mosquitto, box: Outbox) -> None:
    box.put(event("end", 1))
    box.report(Rollout(bundle="a" * 64, state="verified"))
    box.put(event("end", 2))
    site = Site(box, broker.port)
    with Acknowledger(broker.port) as cloud, running(site.publisher):
        eventually(lambda: empty(box))
        assert len(cloud.payloads) == 3


def test_birth_health_and_offline(broker: Mosquitto, box: Outbox) -> None:
    site = Site(box, broker.port)
    health = Health(
        device="porch", boot="b", bundle="", uptime_s=1, rss_bytes=1, cpu_share=0, steps=0, step_p50_ms=0,
        step_p99_ms=0, outbox_rows=0, outbox_bytes=0, evicted=0, wall_quality="ntp",
    )  # fmt: skip

    def states() -> list[State]:
        return [msgspec.json.decode(payload, type=State) for leaf, payload, _ in cloud.status if leaf == "state"]

    with Acknowledger(broker.port) as cloud:
        with running(site.publisher):
            eventually(lambda: states() == [site.state])
            site.publisher.publish_health(health)
            eventually(lambda: ("health", wire.encode(health), False) in cloud.status)
            changed = msgspec.structs.replace(site.state, bundle="b" * 64)
            site.state = changed
            eventually(lambda: states()[-1] == changed)
        eventually(lambda: states()[-1] == State(device="porch", online=False))
    with Acknowledger(broker.port) as later:  # it is retained
        eventually(lambda: later.status)
        assert later.status[0] == ("state", wire.encode(State(device="porch", online=False)), True)


def test_a_silent_death_is_told_by_the_last_will(
    broker: Mosquitto, box: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_agent.publish.KEEPALIVE_S", 1)
    site = Site(box, broker.port)
    with contextlib.ExitStack() as stack, Acknowledger(broker.port) as cloud:
        relay = stack.enter_context(Relay(broker.port))
        site.publisher = Publisher(identity(relay.port), box, SystemClock(), lambda: site.state, site.desired.append)
        with running(site.publisher):
            eventually(lambda: len(cloud.status) == 1)
            relay.freeze()
            eventually(lambda: b'"online":false' in cloud.status[-1][1])


def test_hints_are_passed_on_and_nonsense_is_counted(broker: Mosquitto, box: Outbox) -> None:
    site = Site(box, broker.port)
    put(box, 1)
    with Acknowledger(broker.port) as cloud, running(site.publisher):
        eventually(lambda: empty(box))
        cloud.send("desired", wire.encode(Desired(bundle="c" * 64)))
        for nonsense in (b"{", b'{"v":9}', b"[" * 100_000, b'{"v":1,"stream":"x"}'):
            cloud.send("ack", nonsense)
        cloud.send("desired", b"")
        eventually(lambda: site.publisher.counters["down_refused"] == 4)
        put(box, 1)
        eventually(lambda: empty(box))
    assert site.desired == [Desired(bundle="c" * 64)]


def test_a_stop_flushes_what_was_just_put(broker: Mosquitto, box: Outbox) -> None:
    site = Site(box, broker.port)
    with Acknowledger(broker.port) as cloud:
        with running(site.publisher):
            eventually(lambda: site.publisher.connected)
            put(box, 500)
        assert empty(box)
        assert len(cloud.got) == 500


def test_a_stop_does_not_wait_for_a_cloud_that_is_silent(broker: Mosquitto, box: Outbox) -> None:
    site = Site(box, broker.port, resend_s=60.0, flush_s=0.6)
    put(box, 3)
    with Acknowledger(broker.port, silent=True) as cloud, running(site.publisher):
        eventually(lambda: len(cloud.got) == 3)
        before = time.monotonic()
    assert time.monotonic() - before < 5
    assert box.counters["rows"] == 3


def test_a_stop_does_not_hang_on_a_line_that_is_dead(broker: Mosquitto, box: Outbox) -> None:
    with Relay(broker.port) as relay:
        site = Site(box, relay.port, flush_s=0.6)
        with running(site.publisher):
            eventually(lambda: site.publisher.connected)
            relay.freeze()
            put(box, 2000)
    assert box.counters["rows"] == 2000


def test_no_broker_is_no_failure(box: Outbox) -> None:
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        site = Site(box, taken.getsockname()[1])
        with running(site.publisher):
            eventually(lambda: site.publisher.counters["failures"] >= 2)
        assert "cannot connect" in site.publisher.error


def test_new_rows_do_not_wait_for_a_turn(broker: Mosquitto, box: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_agent.publish._TURN_S", 30.0)  # only a wake can end it
    site = Site(box, broker.port)
    with Acknowledger(broker.port) as cloud, running(site.publisher) as stop:
        eventually(lambda: site.publisher.connected)
        put(box, 1)
        eventually(lambda: len(cloud.got) == 1)
        eventually(lambda: empty(box))
        stop.set()
        site.publisher.wake()


def test_two_threads_never_meet(broker: Mosquitto, box: Outbox) -> None:
    """Everything from outside (put, health, wake) while callbacks come in: nothing may deadlock."""
    site = Site(box, broker.port)
    done = threading.Event()

    def pester() -> None:
        while not done.wait(0.0005):
            site.publisher.wake()

    thread = threading.Thread(target=pester)
    with Acknowledger(broker.port) as cloud, running(site.publisher):
        thread.start()
        try:
            for n in range(300):
                box.put(event("end", n))
            eventually(lambda: empty(box))
            assert cloud.seqs(box.stream) == list(range(1, 301))
        finally:
            done.set()
            thread.join()


class TestRefusal:
    def gaps(self, cloud: Acknowledger) -> list[Gap]:
        bodies = [msgspec.json.decode(raw, type=Message).body for raw in cloud.got.values()]
        return [body for body in bodies if isinstance(body, Gap)]

    def test_a_row_that_the_broker_finds_too_large_is_put_aside_and_the_others_pass(
        self, tmp_path: Path, box: Outbox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("edge_agent.publish.BACKOFF_CAP_S", 0.05)
        # Mosquitto says nothing of this limit in CONNACK, and tells with a PUBACK that breaks paho's connection.
        with mosquitto(tmp_path / "b", extra=("message_size_limit 6000",)) as broker:
            put(box, 3)
            noise = Heat(rows=64, cols=128, values=random.Random(1).randbytes(8192))  # no frame makes it small
            box.put(msgspec.structs.replace(event("end", 9), heat=noise))
            put(box, 3, start=20)
            site = Site(box, broker.port)
            with Acknowledger(broker.port) as cloud, running(site.publisher):
                eventually(lambda: empty(box))
                assert cloud.seqs(box.stream) == [1, 2, 3, 5, 6, 7, 8]
                assert site.publisher.counters["refused"] == 6  # with the others in a batch, then five times alone
                (gap,) = self.gaps(cloud)
            assert (gap.ranges, gap.reason) == (((4, 4),), "refused")
            assert site.publisher.counters["quarantined"] == box.counters["quarantined"] == 1

    def test_a_limit_that_the_broker_states_is_kept(self, tmp_path: Path, box: Outbox) -> None:
        with mosquitto(tmp_path / "b", extra=("max_packet_size 3000",)) as broker:
            put(box, 200)
            big = box.put(event("end", 9, points=5000)).seq
            site = Site(box, broker.port)
            with Acknowledger(broker.port) as cloud, running(site.publisher):
                eventually(lambda: empty(box))
                assert len(cloud.got) == 201  # 200 events and the report of the one that cannot pass
                assert max(map(len, cloud.payloads)) < 3000
                assert [gap.first for gap in self.gaps(cloud)] == [big]
            assert site.publisher.counters["connects"] == 1

    def test_a_device_that_may_not_publish_loses_nothing(self, tmp_path: Path, box: Outbox) -> None:
        acl = "user porch\ntopic read tectum/v1/home/porch/down/#\ntopic write tectum/v1/home/porch/up/state\n"
        users = {"porch": "secret", "ingest": "secret"}
        with mosquitto(tmp_path / "b", users=users, acl=acl) as broker:
            put(box, 5)
            site = Site(box, broker.port)
            with running(site.publisher):
                eventually(lambda: site.publisher.counters["failures"] >= 8)
            assert box.counters["rows"] == 5
            assert box.counters["quarantined"] == 0
            assert "refuses to take events" in site.publisher.error

    def test_a_wrong_password_is_told(self, tmp_path: Path, box: Outbox) -> None:
        with mosquitto(tmp_path / "b", users={"porch": "other"}) as broker:
            site = Site(box, broker.port)
            with running(site.publisher):
                eventually(lambda: site.publisher.counters["failures"] >= 2)
            assert "refuses the device" in site.publisher.error

    def test_a_small_receive_maximum_is_respected(self, tmp_path: Path, box: Outbox) -> None:
        with mosquitto(tmp_path / "b", extra=("max_inflight_messages 2",)) as broker:
            site = Site(box, broker.port)
            with Acknowledger(broker.port, silent=True) as cloud, running(site.publisher):
                for n in range(5):
                    box.put(event("end", n))
                eventually(lambda: len(cloud.payloads) >= 2)
                assert site.publisher.counters["in_flight"] == 2
                cloud.silent = False
                cloud.acknowledge(box.stream)
                eventually(lambda: empty(box))


class TestTransport:
    def test_a_plain_connection_may_not_leave_the_machine(self, box: Outbox) -> None:
        away = msgspec.structs.replace(
            identity(1883), broker=msgspec.structs.replace(identity(1883).broker, host="10.0.0.1")
        )
        with pytest.raises(ConfigError, match=r"broker.tls: TLS is required for 10\.0\.0\.1"):
            Publisher(away, box, SystemClock(), lambda: State(device="porch", online=True), print)

    def test_a_ca_that_is_none_is_told(self, box: Outbox) -> None:
        with pytest.raises(ConfigError, match=r"broker.ca_pem"):
            Publisher(
                identity(1, tls=True, ca_pem="junk"),
                box,
                SystemClock(),
                lambda: State(device="p", online=True),
                print,
            )

    def test_the_password_goes_to_a_broker_that_proves_itself_alone(self, tmp_path: Path, box: Outbox) -> None:
        ours, other = self_signed(tmp_path / "ours"), self_signed(tmp_path / "other")
        with mosquitto(tmp_path / "b", tls=ours) as broker:
            site = Site(box, broker.port)

            def trusting(ca: Path) -> Publisher:
                device = identity(broker.port, tls=True, ca_pem=ca.read_text())
                return Publisher(device, box, SystemClock(), lambda: site.state, print, backoff_cap_s=0.2)

            wrong = trusting(other[0])
            with running(wrong):
                eventually(lambda: wrong.counters["failures"] >= 2)
            assert "certificate verify failed" in wrong.error
            right = trusting(ours[0])
            put(box, 500)
            with running(right):
                eventually(lambda: right.counters["unheard"] >= 1)


class Relay:
    """A line to the broker that can fall silent without closing."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._frozen = threading.Event()
        self._done = threading.Event()
        self._threads: list[threading.Thread] = []
        self.port = int(self._listener.getsockname()[1])

    def freeze(self) -> None:
        """Carry nothing any more."""
        self._frozen.set()

    def __enter__(self) -> Relay:
        self._start(self._accept)
        return self

    def __exit__(self, *_error: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _start(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        self._listener.settimeout(0.05)
        with contextlib.ExitStack() as open_sockets:
            while not self._done.is_set():
                with contextlib.suppress(TimeoutError):
                    near = open_sockets.enter_context(self._listener.accept()[0])
                    far = open_sockets.enter_context(socket.create_connection(("127.0.0.1", self._target)))
                    self._start(self._carry, near, far)
                    self._start(self._carry, far, near)

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        source.settimeout(0.05)
        while not self._done.is_set():
            try:
                data = source.recv(65536) if not self._frozen.wait(0 if not self._frozen.is_set() else 0.05) else b"-"
                if not data:
                    return
                if not self._frozen.is_set():
                    target.sendall(data)
            except TimeoutError:
                continue
            except OSError:
                return
