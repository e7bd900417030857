"""The one place of the cloud that speaks MQTT: the ingest's link, single requests, and the broker's users.

Measured on paho 2.2: an exception in a callback kills its thread while `is_connected()` stays True, so callbacks
here only put into a queue; what goes wrong in the network thread is kept in `Link.failure` for its owner to see.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import random
import secrets
import socket
import ssl
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from cloud_sync.config import BrokerConfig
from cloud_sync.errors import BrokerError, ConfigError
from edge_agent.contract import topics

log = logging.getLogger(__name__)

#: Larger packets are not delivered to us: twice what the contract allows, so that oversize is seen and kept.
MAX_PACKET = 256 * 1024
SESSION_EXPIRY_S = 24 * 3600  #: the broker keeps what it could not hand over this long
KEEPALIVE_S = 30
RETRY_S = (0.2, 10.0)  #: first and longest wait between two connections, before jitter
ANSWER_S = 10.0
LULL_S = 0.002
CONTROL = "$CONTROL/dynamic-security/v1"


@dataclass(frozen=True)
class Delivery:
    """A message as the broker handed it over. It is the broker's until `Link.acknowledge`."""

    topic: str
    payload: bytes
    retained: bool  #: what the broker remembered, not what was just said
    qos: int
    mid: int
    connection: int


class Link:
    """A session at the broker that reconnects by itself. Its network thread is named `broker`.

    Delivered messages wait in a queue of at most `in_flight` (the broker is told so); a full queue drops QoS 0
    messages and counts them in `dropped`.
    """

    def __init__(self, config: BrokerConfig, client_id: str, filters: Sequence[str], in_flight: int) -> None:
        self._config = config
        self._filters = [(name, SubscribeOptions(qos=1)) for name in filters]
        self._queue: queue.Queue[Delivery] = queue.Queue(maxsize=in_flight)
        self._in_flight = in_flight
        self._client = _client(config, client_id, manual_ack=True)
        # paho writes to the socket from the calling thread unless somebody else claims to: the network thread does.
        self._client.on_socket_register_write = lambda *_: None
        self._client.on_socket_unregister_write = lambda *_: None
        self._client.on_connect = self._connected
        self._client.on_message = self._message
        self._client.on_subscribe = self._subscribed
        self._client.on_publish = self._was_taken
        self._client.max_inflight_messages_set(in_flight)
        self._client.max_queued_messages_set(8 * in_flight)
        self._thread = threading.Thread(target=self._run, name="broker", daemon=True)
        self._stop = threading.Event()
        self._connection = 0
        self._published = self._taken = 0
        self._refused: str | None = None
        self.ready = threading.Event()  #: connected and subscribed
        self.failure: BaseException | None = None
        self.dropped = 0

    def start(self) -> None:
        """Connect, and stay connected, in the background."""
        self._thread.start()

    def stop(self, timeout_s: float = 2.0) -> None:
        """Say good-bye and end the thread; what was published before goes out first."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def collect(self, timeout_s: float, limit: int, until: float) -> list[Delivery]:
        """Up to `limit` deliveries: waits `timeout_s` for the first, then for more until monotonic time `until`.

        It stops waiting when nothing comes for `LULL_S`: a broker that keeps few messages in flight waits for us.
        """
        try:
            found = [self._queue.get(timeout=timeout_s)]
        except queue.Empty:
            return []
        while len(found) < limit:
            wait_s = until - time.monotonic()
            try:
                found.append(self._queue.get(block=wait_s > 0, timeout=min(max(wait_s, 0.0), LULL_S)))
            except queue.Empty:
                break
        return found

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """Tell the broker that it may forget them."""
        for delivery in deliveries:
            # A packet id means nothing on another connection: there the broker sends the message again.
            if delivery.qos and delivery.connection == self._connection:
                self._client.ack(delivery.mid, delivery.qos)

    def publish(self, topic: str, payload: bytes) -> bool:
        """Hand a QoS 1 message over; False if it was refused because too many wait. From one thread alone."""
        if self._client.publish(topic, payload, qos=1).rc == paho.MQTT_ERR_QUEUE_SIZE:
            return False
        self._published += 1
        return True

    def _run(self) -> None:
        wait_s = RETRY_S[0]
        try:
            while not self._stop.is_set():
                if self._session():
                    wait_s = RETRY_S[0]
                # Full jitter: a fleet of workers must not come back all at once.
                self._stop.wait(random.uniform(0.0, wait_s))
                wait_s = min(2 * wait_s, RETRY_S[1])
        except BaseException as error:
            self.failure = error
            raise

    def _session(self) -> bool:
        """One connection from beginning to end; whether it got as far as being ready."""
        try:
            self._client.connect(
                self._config.host,
                self._config.port,
                keepalive=KEEPALIVE_S,
                clean_start=False,
                properties=_connect_properties(self._in_flight),
            )
        except (OSError, ValueError) as error:
            self._complain(f"cannot reach the broker at {self._config.host}:{self._config.port}: {error}")
            return False
        code = paho.MQTT_ERR_SUCCESS
        while code == paho.MQTT_ERR_SUCCESS and not self._stop.is_set():
            code = self._client.loop(0.5)
        was_ready = self.ready.is_set()
        self.ready.clear()
        if self._stop.is_set():
            self._good_bye()
        elif was_ready:
            self._complain(
                f"the broker at {self._config.host}:{self._config.port} is gone ({paho.error_string(code)})"
            )
        return was_ready

    def _good_bye(self) -> None:
        # Until the broker has said that it has everything: closing a socket with something unread in it resets the
        # connection, and the broker forgets what it had not read yet.
        deadline = time.monotonic() + 1.0
        while (self._client.want_write() or self._taken < self._published) and time.monotonic() < deadline:
            if self._client.loop(0.05) != paho.MQTT_ERR_SUCCESS:
                return
        self._client.disconnect()
        self._client.loop(0.1)

    def _connected(self, client: paho.Client, _user: Any, _flags: Any, code: Any, _properties: Any) -> None:
        if code.is_failure:
            self._complain(f"the broker refuses user {self._config.username!r}: {code}")
            return
        self._connection += 1
        client.subscribe(self._filters)

    def _subscribed(self, _client: paho.Client, _user: Any, _mid: int, codes: Any, _properties: Any) -> None:
        refused = [name for (name, _), code in zip(self._filters, codes, strict=False) if code.is_failure]
        if refused:
            self._complain(f"the broker does not let {self._config.username!r} subscribe to {', '.join(refused)}")
            return
        self._refused = None
        self.ready.set()
        log.info("connected to the broker at %s:%d", self._config.host, self._config.port)

    def _message(self, _client: paho.Client, _user: Any, message: paho.MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = "?"  # no topic of ours: it becomes a dead letter
        item = Delivery(topic, bytes(message.payload), message.retain, message.qos, message.mid, self._connection)
        try:
            # The broker keeps to ReceiveMaximum, so this fails for QoS 0 alone. A broker that does not is left
            # waiting for an acknowledgement: it sends the message again on the next connection.
            self._queue.put_nowait(item)
        except queue.Full:
            self.dropped += 1

    def _was_taken(self, _client: paho.Client, _user: Any, _mid: int, _code: Any, _properties: Any) -> None:
        self._taken += 1

    def _complain(self, words: str) -> None:
        if words != self._refused:  # once, not at every attempt
            log.warning("%s", words)
        self._refused = words


def send(config: BrokerConfig, messages: Sequence[tuple[str, bytes]], *, retain: bool = False) -> None:
    """Publish (topic, payload) pairs in a short session; returns when the broker has taken them all. BrokerError."""
    with _Exchange(config) as exchange:
        for topic, payload in messages:
            exchange.publish(topic, payload, retain=retain)


class Users(Protocol):
    """Who keeps the broker's users."""

    def add(self, site: str, device: str, password: str) -> None:
        """Let a device in, to publish on its own up-topics and hear its own down-topics, as itself alone."""

    def remove(self, site: str, device: str) -> None:
        """Cut a device off, now."""


def users(config: BrokerConfig) -> Users:
    """The keeper that cloud.yaml names."""
    if config.control == "dynsec":
        return DynamicSecurity(config)
    if config.control == "file" and config.users_file is not None:
        return UsersFile(config.users_file)
    return NoUsers()


class NoUsers:
    """Somebody else keeps the users: nothing is done here."""

    def add(self, site: str, device: str, password: str) -> None:
        log.warning(
            "broker.control is `none`: add user %s yourself, with client id %s, publish %s and subscribe %s",
            *(device, device, topics.up(site, device, "#"), topics.down(site, device, "#")),
        )

    def remove(self, site: str, device: str) -> None:
        log.warning("broker.control is `none`: remove user %s of site %s from the broker yourself", device, site)


class UsersFile:
    """JSON of name → password for an embedded broker on this machine, which reads it when it starts."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, site: str, device: str, password: str) -> None:
        del site  # an embedded broker knows users, not topics
        self._write({**self._read(), device: password})

    def remove(self, site: str, device: str) -> None:
        del site
        self._write({name: word for name, word in self._read().items() if name != device})

    def _read(self) -> dict[str, str]:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot read {self._path}: {error}", "broker.users_file") from error
        if not isinstance(found, dict):
            raise ConfigError(f"{self._path} is no JSON object of name → password", "broker.users_file")
        return found

    def _write(self, found: dict[str, str]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=".users-")  # mode 0600
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1, sort_keys=True)
        Path(name).replace(self._path)


class DynamicSecurity:
    """Mosquitto's dynamic-security plugin: a role per device, everything else denied, client id bound to the user."""

    def __init__(self, config: BrokerConfig) -> None:
        self._config = config

    def add(self, site: str, device: str, password: str) -> None:
        role = f"device-{device}"
        self._command(
            # A half-made or earlier device of that name goes first: enrolling again gives it new secrets.
            [{"command": "deleteClient", "username": device}, {"command": "deleteRole", "rolename": role}],
            ignore="not found",
        )
        self._command(
            [
                {"command": "createRole", "rolename": role, "acls": device_acls(site, device)},
                {
                    "command": "createClient",
                    "username": device,
                    "password": password,
                    "clientid": device,
                    "roles": [{"rolename": role, "priority": 0}],
                },
            ]
        )

    def remove(self, site: str, device: str) -> None:
        del site
        # Deleting a client ends its connection too; the plugin does that at once.
        self._command(
            [
                {"command": "deleteClient", "username": device},
                {"command": "deleteRole", "rolename": f"device-{device}"},
            ],
            ignore="not found",
        )

    def _command(self, commands: list[dict[str, Any]], ignore: str = "") -> None:
        with _Exchange(self._config, control=True) as exchange:
            answers = exchange.request(CONTROL, json.dumps({"commands": commands}).encode(), f"{CONTROL}/response")
        for answer in json.loads(answers).get("responses", []):
            error = str(answer.get("error", ""))
            if error and not (ignore and ignore in error.lower()):
                raise BrokerError(f"dynamic security refuses {answer.get('command')}: {error}")


def device_acls(site: str, device: str) -> list[dict[str, Any]]:
    """What a device may do; all that is not listed is denied by default."""
    up, down = f"{topics.ROOT}/{site}/{device}/up/#", f"{topics.ROOT}/{site}/{device}/down/#"
    return [
        {"acltype": "publishClientSend", "topic": up, "priority": 0, "allow": True},
        {"acltype": "publishClientReceive", "topic": down, "priority": 0, "allow": True},
        {"acltype": "subscribePattern", "topic": down, "priority": 0, "allow": True},
        {"acltype": "unsubscribePattern", "topic": down, "priority": 0, "allow": True},
    ]


class _Exchange:
    """A short session for one question, or a few messages, and their answers."""

    def __init__(self, config: BrokerConfig, *, control: bool = False) -> None:
        self._where = f"broker {config.host}:{config.port}"
        self._address = (config.host, config.port)
        self._answers: deque[bytes] = deque(maxlen=64)
        self._published: set[int] = set()
        self._state = ""
        name = f"tectum-{'control' if control else 'send'}-{secrets.token_hex(6)}"
        self._client = _client(config, name, manual_ack=False, control=control)
        self._client.on_connect = self._connected
        self._client.on_subscribe = self._subscribed
        self._client.on_publish = self._taken
        self._client.on_message = lambda _client, _user, message: self._answers.append(bytes(message.payload))

    def __enter__(self) -> _Exchange:
        try:
            self._client.connect(*self._address, keepalive=KEEPALIVE_S, clean_start=True)
        except (OSError, ValueError) as error:
            raise BrokerError(f"cannot reach the {self._where}: {error}") from error
        self._until(lambda: self._state == "connected", "an answer to CONNECT")
        return self

    def __exit__(self, *_error: object) -> None:
        self._client.disconnect()
        self._client.loop(0.1)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Returns when the broker has it."""
        mid = self._client.publish(topic, payload, qos=1, retain=retain).mid
        self._until(lambda: mid in self._published, f"PUBACK for {topic}")

    def request(self, topic: str, payload: bytes, answer_topic: str) -> bytes:
        """The next message on `answer_topic` after `payload` was sent to `topic`."""
        self._client.subscribe(answer_topic, qos=1)
        self._until(lambda: self._state == "subscribed", f"SUBACK for {answer_topic}")
        self._client.publish(topic, payload, qos=1)
        self._until(lambda: bool(self._answers), f"an answer on {answer_topic}")
        return self._answers.popleft()

    def _until(self, done: Any, what: str) -> None:
        deadline = time.monotonic() + ANSWER_S
        while not done():
            code = self._client.loop(0.2)
            if self._state.startswith("refused"):
                raise BrokerError(f"the {self._where} {self._state}")
            if code != paho.MQTT_ERR_SUCCESS or time.monotonic() > deadline:
                raise BrokerError(f"the {self._where} gave no {what} ({paho.error_string(code)})")

    def _connected(self, _client: paho.Client, _user: Any, _flags: Any, code: Any, _properties: Any) -> None:
        self._state = f"refused user {_client.username!r}: {code}" if code.is_failure else "connected"

    def _subscribed(self, _client: paho.Client, _user: Any, _mid: int, codes: Any, _properties: Any) -> None:
        self._state = f"refused the subscription: {codes[0]}" if codes[0].is_failure else "subscribed"

    def _taken(self, _client: paho.Client, _user: Any, mid: int, code: Any, _properties: Any) -> None:
        if code.is_failure:
            self._state = f"refused the message: {code}"
        self._published.add(mid)


def _client(config: BrokerConfig, client_id: str, *, manual_ack: bool, control: bool = False) -> paho.Client:
    client = paho.Client(
        CallbackAPIVersion.VERSION2, client_id=client_id, protocol=paho.MQTTv5, manual_ack=manual_ack
    )
    if control:
        client.username_pw_set(config.control_username, config.control_password)
    else:
        client.username_pw_set(config.username, config.password)
    client.connect_timeout = ANSWER_S
    client.on_socket_open = _without_delay
    if config.tls:
        try:
            client.tls_set_context(ssl.create_default_context(cafile=config.ca))
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"cannot read the CA {config.ca}: {error}", "broker.ca") from error
    return client


def _without_delay(_client: paho.Client, _user: Any, connection: Any) -> None:
    # A PUBACK and an ack in one breath: with Nagle's algorithm the second waits 40 ms for the peer's TCP.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _connect_properties(in_flight: int) -> Properties:
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = SESSION_EXPIRY_S
    properties.ReceiveMaximum = in_flight
    properties.MaximumPacketSize = MAX_PACKET
    return properties
