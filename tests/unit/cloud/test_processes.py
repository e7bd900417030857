"""The real programs: `cloud-sync serve` and `cloud-sync ingest` on one SQLite file, a real Mosquitto between."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import paho.mqtt.client as paho
import pytest
import yaml
from paho.mqtt.enums import CallbackAPIVersion

from cloud_sync import broker, config, enrol
from cloud_sync.accounts import COOKIE, Accounts
from cloud_sync.bootstrap import bootstrap, certificates
from cloud_sync.store import Store, open_store
from edge_agent.contract import topics, wire
from edge_agent.contract.event import Ack
from edge_agent.contract.identity import Identity
from tests.parts.cloud import CHEAP, event, event_id, message
from tests.parts.mosquitto import Mosquitto, free_port, mosquitto

pytestmark = [pytest.mark.needs("mosquitto"), pytest.mark.timeout(400)]
LIMIT_S = 90.0


def until(done: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not done():
        assert time.monotonic() < deadline, what
        threading.Event().wait(0.02)


@dataclass
class Installation:
    """A cloud in a folder, with its broker."""

    folder: Path
    config: config.Config
    server: Mosquitto
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def run(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "cloud_sync", *arguments, "--config", str(self.folder / "cloud.yaml")]
        log = (self.folder / f"{arguments[0]}.log").open("a")
        with log:
            process = subprocess.Popen(command, stdout=log, stderr=log, text=True)
        self.processes.append(process)
        return process

    def said(self, program: str) -> str:
        return (self.folder / f"{program}.log").read_text()

    def ingest(self) -> subprocess.Popen[str]:
        before = self.said("ingest").count("connected to the broker") if self.processes else 0
        process = self.run("ingest")
        until(lambda: self.said("ingest").count("connected to the broker") > before, "the ingest does not come up")
        return process

    def serve(self) -> subprocess.Popen[str]:
        process = self.run("serve")
        until(lambda: self.ask("GET", "/v1/health", wait=True)[0] == 200, "the dashboard does not come up")
        return process

    def ask(self, method: str, path: str, *, wait: bool = False, **more: object) -> tuple[int, bytes]:
        """Status and body; the path goes out exactly as it is written."""
        connection = http.client.HTTPConnection("127.0.0.1", self.config.listen.port, timeout=60)
        try:
            connection.request(method, path, **more)  # type: ignore[arg-type]
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (ConnectionError, http.client.RemoteDisconnected):
            if wait:
                return 0, b""
            raise
        finally:
            connection.close()

    @contextlib.contextmanager
    def store(self) -> Iterator[Store]:
        store = open_store(self.config.database_url)
        try:
            yield store
        finally:
            store.close()

    def enrol(self, device: str) -> Identity:
        with self.store() as store:
            store.migrate()
            users = broker.users(self.config.broker)
            out = self.folder / f"{device}.yaml"
            return enrol.enrol(self.config, store, users, device=device, site="home", out=out, now_ns=1)

    def cookie(self) -> dict[str, str]:
        with self.store() as store:
            accounts = Accounts(store, hasher=CHEAP)
            accounts.first_run()
            return {"Cookie": f"{COOKIE}={accounts.redeem(accounts.make_link('admin'))}"}

    def rows(self, query: str) -> list[tuple[object, ...]]:
        with contextlib.closing(sqlite3.connect(self.folder / "data" / "cloud.db", timeout=60)) as connection:
            return connection.execute(query).fetchall()


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Installation]:
    port = free_port()
    bootstrap(tmp_path, "127.0.0.1", free_port(), port)
    (tmp_path / "ingest.log").touch()
    settings = config.load(tmp_path / "cloud.yaml")
    settings.data_dir.mkdir()
    dynsec = tmp_path / "mosquitto" / "dynamic-security.json"
    extra = ("max_inflight_messages 1024", "max_queued_messages 100000")
    with mosquitto(tmp_path / "broker", dynsec=dynsec, port=port, extra=extra) as server:
        made = Installation(tmp_path, settings, server)
        try:
            yield made
        finally:
            for process in made.processes:
                process.kill()
                process.wait()


class Device:
    """Sends rows until the cloud's own acknowledgement covers them, as the outbox does."""

    def __init__(self, port: int, identity: Identity) -> None:
        self.sent = 0
        self.left: dict[int, float] = {}  # seq → when it was sent last
        self._lock = threading.Lock()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id=identity.device, protocol=paho.MQTTv5)
        self._client.username_pw_set(identity.broker.username, identity.broker.password)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = lambda client, *_: client.subscribe(topics.down("home", identity.device, "ack"), 1)
        self._client.on_message = lambda _c, _u, received: self._acked(wire.decode_ack(bytes(received.payload)))
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def _acked(self, ack: Ack) -> None:
        with self._lock:
            for seq in [seq for seq in self.left if seq <= ack.upto]:
                if not any(first <= seq <= last for first, last in ack.holes):
                    del self.left[seq]

    def send(self, count: int) -> None:
        for _ in range(count):
            self.sent += 1
            self._publish(self.sent)

    def send_again(self, after_s: float) -> None:
        now_s = time.monotonic()
        with self._lock:
            due = [seq for seq, sent_s in self.left.items() if now_s - sent_s > after_s]
        for seq in due:
            self._publish(seq)

    def _publish(self, seq: int) -> None:
        with self._lock:
            self.left[seq] = time.monotonic()
        payload = wire.encode(message(seq, event(revision=seq % 5 + 1), of=seq // 5))
        self._client.publish(topics.up("home", "cam", "event"), payload, qos=1)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def device(cloud: Installation) -> Iterator[Device]:
    made = Device(cloud.server.port, cloud.enrol("cam"))
    yield made
    made.close()


def test_told_to_stop_both_end_in_order_and_quickly(cloud: Installation) -> None:
    programs = [cloud.ingest(), cloud.serve()]
    for program in programs:
        started = time.monotonic()
        program.send_signal(signal.SIGTERM)
        assert program.wait(LIMIT_S) == 0
        print(f"stopped after {time.monotonic() - started:.2f} s")
    assert "Traceback" not in cloud.said("ingest") + cloud.said("serve")


def test_without_a_broker_the_ingest_waits_and_still_stops(cloud: Installation) -> None:
    cloud.server.stop()
    program = cloud.run("ingest")
    until(lambda: "cannot reach the broker" in cloud.said("ingest"), "nothing was said")
    cloud.server.start()
    until(lambda: "connected to the broker" in cloud.said("ingest"), "it does not come back")
    cloud.server.stop()
    program.send_signal(signal.SIGTERM)
    assert program.wait(LIMIT_S) == 0


def test_with_a_broken_database_it_ends_with_an_error(cloud: Installation) -> None:
    (cloud.folder / "data" / "cloud.db").write_bytes(b"this is no database at all" * 1000)
    for name in ("ingest", "serve"):
        assert cloud.run(name).wait(LIMIT_S) == 1
        assert "is damaged" in cloud.said(name)


def test_killed_again_and_again_nothing_is_lost_and_nothing_twice(cloud: Installation, device: Device) -> None:
    for round_ in range(4):
        program = cloud.ingest()
        goal = device.sent + 300
        while device.sent < goal:
            device.send(20)
            device.send_again(2.0)
            if round_ == 2 and device.sent == goal - 100:
                cloud.server.restart(kill=True)  # without persistence: it forgets everything
            threading.Event().wait(0.01)
        program.kill()
        program.wait()
    cloud.ingest()

    def settled() -> bool:
        device.send_again(3.0)
        return not device.left

    until(settled, f"{len(device.left)} rows were never acknowledged")
    found = cloud.rows("SELECT seq FROM received ORDER BY seq")
    assert found == [(seq,) for seq in range(1, device.sent + 1)]
    assert cloud.rows("SELECT count(*) FROM alert") == [(device.sent // 5 + 1,)]
    assert cloud.rows("SELECT count(*) FROM effect") == [(device.sent // 5 + 1,)]
    assert cloud.rows("SELECT upto, holes FROM stream") == [(device.sent, "[]")]
    assert cloud.rows("SELECT count(*) FROM loss UNION ALL SELECT count(*) FROM dead_letter") == [(0,), (0,)]


def test_people_never_see_a_locked_database_while_messages_pour_in(cloud: Installation, device: Device) -> None:
    cloud.ingest()
    cloud.serve()
    device.send(1)
    until(lambda: not device.left, "the first message does not arrive")
    cookie, stop = cloud.cookie(), threading.Event()

    def pour() -> None:
        while not stop.is_set():
            if len(device.left) < 1500:
                device.send(100)
            stop.wait(0.005)

    answers: Counter[tuple[str, int]] = Counter()
    waits: list[float] = []

    def judge() -> None:
        body = json.dumps({"verdict": "real"})
        headers = {**cookie, "Content-Type": "application/json"}
        for _ in range(40):
            started = time.monotonic()
            status, _answer = cloud.ask("POST", f"/v1/alerts/{event_id(0)}/verdict", body=body, headers=headers)
            waits.append(time.monotonic() - started)
            answers["judge", status] += 1
            answers["list", cloud.ask("GET", "/v1/alerts?limit=20", headers=cookie)[0]] += 1

    threads = [threading.Thread(target=pour), *(threading.Thread(target=judge) for _ in range(3))]
    for thread in threads:
        thread.start()
    for thread in threads[1:]:
        thread.join(LIMIT_S * 3)
    stop.set()
    threads[0].join(LIMIT_S)
    waits.sort()
    print(f"verdicts while {device.sent} messages came: p50 {waits[60]:.3f} s, worst {waits[-1]:.3f} s")
    assert answers == {("judge", 201): 120, ("list", 200): 120}
    assert device.sent > 500, "nothing poured in meanwhile: the test shows nothing"
    assert "locked" not in cloud.said("ingest") + cloud.said("serve")


TRAVERSALS = [
    "../cloud.db",
    "..%2fcloud.db",
    "%2e%2e%2fcloud.db",
    "%2e%2e/cloud.db",
    "..%252fcloud.db",
    "%252e%252e%252fcloud.db",
    "%25252e%25252e%25252fcloud.db",
    "..%5ccloud.db",
    "..\\cloud.db",
    "....//cloud.db",
    "..;/cloud.db",
    "%c0%ae%c0%ae%c0%afcloud.db",
    "%e0%80%ae%e0%80%ae/cloud.db",
    "%uff0e%uff0e/cloud.db",
    "..%00/cloud.db",
    "cloud.db%00",
    "/etc/passwd",
    "//etc/passwd",
    "%2fetc%2fpasswd",
    "%252fetc%252fpasswd",
    "file:///etc/passwd",
    "~root/.ssh/id_rsa",
    "../" * 12 + "etc/passwd",
    "..%2f" * 12 + "etc%2fpasswd",
    "%2e%2e%2f" * 12 + "etc%2fpasswd",
    "%252e%252e%252f" * 12 + "etc%252fpasswd",
    "../keys/root-1.pem",
    "..%2f..%2fkeys%2froot-1.pem",
    ".",
    "..",
    "%2e",
    "%2e%2e",
    "a" * 5000,
]
PLACES = [
    "/v1/blobs/",
    "/v1/alerts/",
    f"/v1/alerts/{event_id(1)}/evidence/",
    "/v1/tuf/metadata/",
    "/v1/tuf/targets/",
    "/v1/tuf/targets/blobs/",
    "/v1/users/",
    "/v1/",
    "/",
    "/alert/",
    "/login/",
    "/assets/",
    "/_nicegui/",
]


def test_no_spelling_of_a_path_leads_out(cloud: Installation) -> None:
    cloud.serve()
    token = cloud.enrol("cam").cloud.token
    keys = cloud.folder / "data" / "keys"
    keys.mkdir()
    (keys / "root-1.pem").write_text("CANARY")
    as_admin, as_device = cloud.cookie(), {"Authorization": f"Bearer {token}"}
    secrets = (b"CANARY", b"root:x:0", b"SQLite format 3", token.encode())
    for place in PLACES:
        for spelling in TRAVERSALS:
            for headers in (as_admin, as_device, {}):
                for method in ("GET", "PUT") if place.startswith("/v1/blobs") else ("GET",):
                    body = {"body": b"x"} if method == "PUT" else {}
                    try:
                        path = urllib.parse.quote(place + spelling, safe="/%:;\\~.")
                        status, answer = cloud.ask(method, path, headers=headers, **body)
                    except http.client.InvalidURL:
                        continue
                    where = f"{method} {place}{spelling}"
                    assert status < 500, where
                    assert not any(secret in answer for secret in secrets), where
                    if place.startswith("/v1/blobs") and method == "PUT":
                        assert status in (400, 401, 404), where
    written = {path.name for path in cloud.folder.rglob("*") if path.is_file()}
    assert not written & {"passwd", "id_rsa"}
    assert not list((cloud.folder / "data" / "blobs").rglob("*db*"))


def test_pages_of_the_dashboard_need_a_login(cloud: Installation) -> None:
    cloud.serve()
    html = {"Accept": "text/html"}
    for path in ("/", "/devices", "/account", f"/alert/{event_id(1)}", "/nothing"):
        status, body = cloud.ask("GET", path, headers=html)
        assert status == 303, path
        assert b"fire" not in body
        assert cloud.ask("GET", path, headers={**html, **cloud.cookie()})[0] in (200, 404)
    assert cloud.ask("GET", "/login", headers=html)[0] == 200


def test_over_tls_the_dashboard_is_reached_with_our_ca_alone(cloud: Installation) -> None:
    for name, text in certificates("127.0.0.1").items():
        (cloud.folder / name).parent.mkdir(exist_ok=True)
        (cloud.folder / name).write_text(text)
    tree = yaml.safe_load((cloud.folder / "cloud.yaml").read_text())
    tree["listen"] |= {"tls_cert": "tls/server.pem", "tls_key": "tls/server.key"}
    (cloud.folder / "cloud.yaml").write_text(yaml.safe_dump(tree))
    program = cloud.run("serve")
    url = f"https://127.0.0.1:{cloud.config.listen.port}/v1/health"
    ours = ssl.create_default_context(cafile=cloud.folder / "tls" / "ca.pem")

    def answers() -> bool:
        with (
            contextlib.suppress(urllib.error.URLError),
            urllib.request.urlopen(url, context=ours, timeout=10) as answer,
        ):
            return "max-age" in answer.headers["Strict-Transport-Security"]
        return False

    until(answers, "no answer over TLS")
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        urllib.request.urlopen(url, timeout=10)
    program.terminate()
    assert program.wait(LIMIT_S) == 0


def test_the_programs_of_an_operator_work_together(cloud: Installation) -> None:
    def tool(*arguments: str, status: int = 0) -> str:
        command = [sys.executable, "-m", "cloud_sync", *arguments, "--config", str(cloud.folder / "cloud.yaml")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S, env=os.environ)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    out = cloud.folder / "door.yaml"
    assert "trusts no updates" in tool("enrol", "door", "--out", str(out))
    assert out.stat().st_mode & 0o077 == 0
    assert "enrolled already" in tool("enrol", "door", "--out", str(out), status=1)
    assert "may hold" in tool("enrol", "../door", status=1)
    tool("revoke", "door")
    assert "no device" in tool("revoke", "window", status=1)
    tool("enrol", "door", "--out", str(out))
    assert "password of ann" in tool("user", "add", "ann", "--role", "viewer", "--site", "home")
    assert "already" in tool("user", "add", "ann", status=1)
    assert tool("user", "list").split() == ["ann", "viewer", "home"]
    assert tool("user", "login-link", "ann").startswith(f"http://127.0.0.1:{cloud.config.listen.port}/login/")
    tool("user", "password", "ann")
    tool("user", "remove", "ann")
    cloud.server.stop()
    assert "cannot reach the broker" in tool("enrol", "gate", "--out", str(cloud.folder / "gate.yaml"), status=1)
    assert not (cloud.folder / "gate.yaml").exists()
    assert "run this again" in tool("revoke", "door", status=1)
    cloud.server.start()
    tool("revoke", "door")
