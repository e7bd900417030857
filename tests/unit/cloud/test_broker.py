"""Against a real Mosquitto: who may do what, and a link that comes back."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from cloud_sync import broker, config
from cloud_sync.bootstrap import bootstrap, certificates
from cloud_sync.broker import DynamicSecurity, Link, NoUsers, UsersFile
from cloud_sync.errors import BrokerError, ConfigError
from edge_agent.contract import topics
from tests.parts.mosquitto import Mosquitto, free_port, mosquitto

pytestmark = pytest.mark.needs("mosquitto")
LIMIT_S = 20.0


def until(done: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not done():
        assert time.monotonic() < deadline, what
        threading.Event().wait(0.01)


@dataclass
class Client:
    """A peer at the broker, as an attacker writes one."""

    port: int
    username: str
    password: str
    client_id: str
    ca: Path | None = None
    got: list[tuple[str, bytes]] = field(default_factory=list)
    codes: dict[str, list[object]] = field(default_factory=lambda: {"connect": [], "sub": [], "pub": [], "gone": []})

    def __enter__(self) -> Client:
        self.client = paho.Client(CallbackAPIVersion.VERSION2, client_id=self.client_id, protocol=paho.MQTTv5)
        self.client.username_pw_set(self.username, self.password)
        if self.ca is not None:
            self.client.tls_set(str(self.ca))
        self.client.on_connect = lambda _c, _u, _f, code, _p: self.codes["connect"].append(code)
        self.client.on_disconnect = lambda _c, _u, _f, code, _p: self.codes["gone"].append(code)
        self.client.on_subscribe = lambda _c, _u, _m, codes, _p: self.codes["sub"].extend(codes)
        self.client.on_publish = lambda _c, _u, _m, code, _p: self.codes["pub"].append(code)
        self.client.on_message = lambda _c, _u, message: self.got.append((message.topic, bytes(message.payload)))
        self.client.connect("127.0.0.1", self.port)
        self.client.loop_start()
        until(lambda: self.codes["connect"], "no CONNACK")
        return self

    def __exit__(self, *_: object) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    @property
    def connected(self) -> bool:
        return not self.codes["connect"][-1].is_failure  # type: ignore[attr-defined]

    def may_subscribe(self, topic: str) -> bool:
        self.codes["sub"].clear()
        self.client.subscribe(topic, qos=1)
        until(lambda: self.codes["sub"], "no SUBACK")
        return not self.codes["sub"][0].is_failure  # type: ignore[attr-defined]

    def may_publish(self, topic: str, payload: bytes = b"x", *, retain: bool = False) -> bool:
        self.codes["pub"].clear()
        self.client.publish(topic, payload, qos=1, retain=retain)
        until(lambda: self.codes["pub"], "no PUBACK")
        return not self.codes["pub"][0].is_failure  # type: ignore[attr-defined]


@dataclass
class Site:
    """An installation with a running broker."""

    server: Mosquitto
    config: config.Config

    def client(self, username: str, password: str, client_id: str | None = None) -> Client:
        return Client(self.server.port, username, password, client_id or username)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    port = free_port()
    bootstrap(tmp_path / "cloud", "127.0.0.1", 8080, port)
    settings = config.load(tmp_path / "cloud" / "cloud.yaml")
    dynsec = tmp_path / "cloud" / "mosquitto" / "dynamic-security.json"
    with mosquitto(tmp_path / "broker", dynsec=dynsec, port=port, persistence=True) as server:
        yield Site(server, settings)


@pytest.fixture
def keeper(site: Site) -> DynamicSecurity:
    found = broker.users(site.config.broker)
    assert isinstance(found, DynamicSecurity)
    found.add("home", "cam", "cam-password")
    found.add("home", "thief", "thief-password")
    return found


class TestDynamicSecurity:
    def test_a_device_does_its_own_things(self, site: Site, keeper: DynamicSecurity) -> None:
        with site.client("cam", "cam-password") as cam:
            assert cam.connected
            for leaf in ("event", "rollout", "health", "state"):
                assert cam.may_publish(topics.up("home", "cam", leaf), retain=leaf == "state")
            assert cam.may_subscribe(topics.down("home", "cam", "ack"))
            assert cam.may_subscribe(topics.down("home", "cam", "#"))
            broker.send(site.config.broker, [(topics.down("home", "cam", "ack"), b"ack")])
            until(lambda: cam.got, "the cloud's word did not come")

    @pytest.mark.parametrize(
        "topic",
        [
            topics.INGEST_FILTER,  # takes a share of everybody's events
            "$share/mine/tectum/v1/home/cam/up/#",
            "$share/mine/tectum/v1/#",
            "$share/mine/#",
            "#",
            "+/#",
            "tectum/v1/#",
            "tectum/v1/+/+/up/#",
            "tectum/v1/home/cam/up/#",
            "tectum/v1/home/cam/down/#",
            "tectum/v1/home/+/down/ack",
            "tectum/v1/home/thief/up/#",
            "$SYS/#",
            "$CONTROL/#",
            "$CONTROL/dynamic-security/v1/response",
        ],
    )
    def test_a_device_hears_nobody_else(self, site: Site, keeper: DynamicSecurity, topic: str) -> None:
        with site.client("thief", "thief-password") as thief, site.client("cam", "cam-password") as cam:
            assert not thief.may_subscribe(topic)
            assert cam.may_publish(topics.up("home", "cam", "event"), b"secret")
            broker.send(site.config.broker, [(topics.down("home", "cam", "ack"), b"secret")])
            broker.send(site.config.broker, [(topics.down("home", "thief", "ack"), b"last")])
            assert thief.may_subscribe(topics.down("home", "thief", "ack"))
            broker.send(site.config.broker, [(topics.down("home", "thief", "ack"), b"really last")])
            until(lambda: thief.got, "its own message did not come")
            assert all(payload != b"secret" for _, payload in thief.got)

    @pytest.mark.parametrize(
        "topic",
        [
            "tectum/v1/home/cam/up/event",
            "tectum/v1/home/cam/up/state",
            "tectum/v1/other/thief/up/event",
            "tectum/v1/home/cam/down/ack",
            "tectum/v1/home/thief/down/ack",
            "tectum/v1/home/cam/down/desired",
            "$CONTROL/dynamic-security/v1",
            "anything",
        ],
    )
    def test_a_device_speaks_for_nobody_else(self, site: Site, keeper: DynamicSecurity, topic: str) -> None:
        link = Link(site.config.broker, "listener", (topics.INGEST_FILTER,), 16)
        link.start()
        try:
            assert link.ready.wait(LIMIT_S)
            with site.client("thief", "thief-password") as thief:
                assert not thief.may_publish(topic, b"spoof")
                assert thief.may_publish(topics.up("home", "thief", "event"), b"own")
            assert [one.payload for one in link.collect(LIMIT_S, 16, time.monotonic())] == [b"own"]
        finally:
            link.stop()

    @pytest.mark.parametrize("client_id", ["cam", "tectum-ingest-1", "", "another"])
    def test_a_device_cannot_take_over_a_session(self, site: Site, keeper: DynamicSecurity, client_id: str) -> None:
        with site.client("cam", "cam-password") as cam:
            thief = Client(site.server.port, "thief", "thief-password", client_id)
            with thief:
                assert not thief.connected
            assert cam.may_publish(topics.up("home", "cam", "event"))
            assert cam.codes["gone"] == []

    @pytest.mark.parametrize(("name", "password"), [("cam", "wrong"), ("nobody", "x"), ("", "")])
    def test_without_a_password_nobody_comes_in(
        self, site: Site, keeper: DynamicSecurity, name: str, password: str
    ) -> None:
        with site.client(name, password, "cam") as stranger:
            assert not stranger.connected

    def test_a_revoked_device_is_cut_off_while_it_is_connected(self, site: Site, keeper: DynamicSecurity) -> None:
        with site.client("cam", "cam-password") as cam:
            keeper.remove("home", "cam")
            until(lambda: cam.codes["gone"], "the connection lives on")
        with site.client("cam", "cam-password") as again:
            assert not again.connected
        keeper.remove("home", "cam")  # twice is once

    def test_enrolled_anew_it_has_a_new_password(self, site: Site, keeper: DynamicSecurity) -> None:
        keeper.add("home", "cam", "second")
        with site.client("cam", "cam-password") as old, site.client("cam", "second") as new:
            assert (old.connected, new.connected) == (False, True)

    def test_what_was_granted_survives_a_restart_of_the_broker(self, site: Site, keeper: DynamicSecurity) -> None:
        site.server.restart()
        with site.client("cam", "cam-password") as cam:
            assert cam.connected
            assert not cam.may_subscribe(topics.INGEST_FILTER)

    def test_the_clouds_own_user_cannot_change_users(self, site: Site, keeper: DynamicSecurity) -> None:
        with site.client(site.config.broker.username, site.config.broker.password, "x") as cloud:
            assert not cloud.may_publish(broker.CONTROL, b"{}")
            assert not cloud.may_publish(topics.up("home", "cam", "event"))

    def test_a_link_whose_filter_is_refused_says_so_and_is_never_ready(
        self, site: Site, keeper: DynamicSecurity, caplog: pytest.LogCaptureFixture
    ) -> None:
        thief = msgspec.structs.replace(site.config.broker, username="thief", password="thief-password")
        link = Link(thief, "thief", (topics.INGEST_FILTER,), 16)
        link.start()
        try:
            until(lambda: "does not let 'thief' subscribe" in caplog.text, "nothing was said")
            assert not link.ready.is_set()
        finally:
            link.stop()

    def test_a_wrong_password_of_the_controller_is_told(self, site: Site) -> None:
        wrong = msgspec.structs.replace(site.config.broker, control_password="wrong")
        with pytest.raises(BrokerError, match="refused user"):
            DynamicSecurity(wrong).add("home", "cam", "x")


def test_a_broker_that_is_not_there_is_told(tmp_path: Path) -> None:
    settings = config.BrokerConfig(host="127.0.0.1", port=free_port(), username="x", password="y", tls=False)
    with pytest.raises(BrokerError, match="cannot reach"):
        broker.send(settings, [("a", b"b")])


def test_a_broker_over_tls_is_checked_against_our_ca(tmp_path: Path) -> None:
    port = free_port()
    bootstrap(tmp_path / "cloud", "cloud.example", 8443, port)
    bootstrap(tmp_path / "other", "cloud.example", 8443, port)
    tls = tuple(tmp_path / "cloud" / "tls" / name for name in ("ca.pem", "server.pem", "server.key"))
    dynsec = tmp_path / "cloud" / "mosquitto" / "dynamic-security.json"
    with mosquitto(tmp_path / "broker", dynsec=dynsec, port=port, tls=tls):  # type: ignore[arg-type]
        good = config.load(tmp_path / "cloud" / "cloud.yaml").broker
        stranger = config.load(tmp_path / "other" / "cloud.yaml").broker
        for settings, words in (
            (good, "Hostname mismatch|IP address mismatch"),
            (stranger, "self.signed certificate|verify failed"),
        ):
            here = msgspec.structs.replace(settings, host="127.0.0.1")
            with pytest.raises(BrokerError, match=words):
                broker.send(here, [("a", b"b")])


def test_a_link_over_tls_carries_messages(tmp_path: Path) -> None:
    for name, text in certificates("127.0.0.1").items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    tls = tmp_path / "tls"
    with mosquitto(tmp_path / "broker", tls=(tls / "ca.pem", tls / "server.pem", tls / "server.key")) as server:
        settings = config.BrokerConfig(
            host="127.0.0.1", port=server.port, username="x", password="y", ca=tls / "ca.pem"
        )
        link = Link(settings, "ingest", ("a/#",), 16)
        link.start()
        try:
            assert link.ready.wait(LIMIT_S)
            broker.send(settings, [("a/1", b"sealed")])
            assert [one.payload for one in link.collect(LIMIT_S, 1, time.monotonic())] == [b"sealed"]
        finally:
            link.stop()


class TestLink:
    @pytest.fixture
    def server(self, tmp_path: Path) -> Iterator[Mosquitto]:
        with mosquitto(tmp_path / "broker", persistence=True, extra=("max_inflight_messages 1024",)) as running:
            yield running

    @pytest.fixture
    def settings(self, server: Mosquitto) -> config.BrokerConfig:
        return config.BrokerConfig(host="127.0.0.1", port=server.port, username="x", password="y", tls=False)

    @pytest.fixture
    def link(self, settings: config.BrokerConfig) -> Iterator[Link]:
        made = Link(settings, "ingest", ("a/#",), 64)
        made.start()
        assert made.ready.wait(LIMIT_S)
        yield made
        made.stop()

    def payloads(self, link: Link, count: int) -> list[bytes]:
        found: list[bytes] = []
        deadline = time.monotonic() + LIMIT_S
        while len(found) < count and time.monotonic() < deadline:
            found += [one.payload for one in link.collect(0.1, 64, time.monotonic())]
        return found

    def test_what_was_not_acknowledged_comes_again_after_a_reconnect(
        self, server: Mosquitto, settings: config.BrokerConfig, link: Link
    ) -> None:
        broker.send(settings, [("a/1", b"kept"), ("a/2", b"done")])
        first = link.collect(LIMIT_S, 1, time.monotonic()) + link.collect(LIMIT_S, 1, time.monotonic())
        link.acknowledge(first[1:])
        until(lambda: not link._client._out_packet, "the acknowledgement was not written")
        server.restart()
        assert self.payloads(link, 1) == [b"kept"]

    def test_an_acknowledgement_of_an_earlier_connection_is_not_sent_on_a_later_one(
        self, server: Mosquitto, settings: config.BrokerConfig, link: Link
    ) -> None:
        broker.send(settings, [("a/1", b"one")])
        stale = link.collect(LIMIT_S, 1, time.monotonic())
        server.restart()
        (again,) = link.collect(LIMIT_S, 1, time.monotonic())
        assert again.connection == stale[0].connection + 1
        link.acknowledge(stale)
        server.restart()
        assert self.payloads(link, 1) == [b"one"]

    def test_it_comes_back_after_a_broker_that_was_killed_and_forgot(
        self, server: Mosquitto, settings: config.BrokerConfig, link: Link
    ) -> None:
        server.kill()
        until(lambda: not link.ready.is_set(), "it believes to be connected")
        server.forget()
        server.start()
        assert link.ready.wait(LIMIT_S)
        broker.send(settings, [("a/1", b"after")])
        assert self.payloads(link, 1) == [b"after"]

    def test_what_is_published_while_the_broker_is_away_goes_out_when_it_is_back(
        self, server: Mosquitto, link: Link
    ) -> None:
        server.stop()
        until(lambda: not link.ready.is_set(), "it believes to be connected")
        assert link.publish("a/back", b"late")
        server.start()
        assert self.payloads(link, 1) == [b"late"]

    def test_the_broker_keeps_to_what_may_be_in_flight(self, settings: config.BrokerConfig, link: Link) -> None:
        broker.send(settings, [(f"a/{number}", b"%d" % number) for number in range(200)])
        assert len(self.payloads(link, 64)) == 64
        assert link.collect(0.2, 64, time.monotonic()) == []
        assert link.dropped == 0

    def test_a_queue_that_is_full_drops_what_nobody_waits_for_and_counts_it(
        self, settings: config.BrokerConfig, link: Link
    ) -> None:
        client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        client.connect("127.0.0.1", settings.port)
        client.loop_start()
        for number in range(100):
            client.publish(f"a/{number}", b"x", qos=0).wait_for_publish(LIMIT_S)
        until(lambda: link.dropped == 36, "they were not counted")
        client.disconnect()
        client.loop_stop()

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    def test_what_breaks_in_the_network_thread_is_there_to_be_seen(
        self, settings: config.BrokerConfig, link: Link, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: object) -> None:
            raise RuntimeError("callback")

        monkeypatch.setattr(link._client, "on_message", broken)
        broker.send(settings, [("a/1", b"x")])
        until(lambda: link.failure is not None, "nothing is to be seen")
        assert not link._thread.is_alive() or link._thread.join(5) is None

    def test_stopping_sends_what_waits_and_ends_the_thread(self, settings: config.BrokerConfig, link: Link) -> None:
        other = Link(settings, "other", ("b/#",), 64)
        other.start()
        assert other.ready.wait(LIMIT_S)
        for number in range(50):
            assert other.publish(f"a/{number}", b"x")
        other.stop()
        assert len(self.payloads(link, 50)) == 50
        assert not any(thread is other._thread for thread in threading.enumerate())


class TestUsersFile:
    def test_it_holds_name_and_password_and_is_private(self, tmp_path: Path) -> None:
        users = UsersFile(tmp_path / "sub" / "users.json")
        users.add("home", "cam", "one")
        users.add("home", "door", "two")
        users.remove("home", "cam")
        users.remove("home", "cam")
        assert json.loads((tmp_path / "sub" / "users.json").read_text()) == {"door": "two"}
        assert (tmp_path / "sub" / "users.json").stat().st_mode & 0o077 == 0

    @pytest.mark.parametrize("content", ["[", "[]"])
    def test_a_file_that_is_none_of_ours_is_left_alone(self, tmp_path: Path, content: str) -> None:
        path = tmp_path / "users.json"
        path.write_text(content)
        with pytest.raises(ConfigError):
            UsersFile(path).add("home", "cam", "x")
        assert path.read_text() == content


def test_without_a_keeper_it_says_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    users = broker.users(config.BrokerConfig(username="x", password="y"))
    assert isinstance(users, NoUsers)
    users.add("home", "cam", "secret")
    users.remove("home", "cam")
    assert "tectum/v1/home/cam/up/#" in caplog.text
    assert "secret" not in caplog.text
