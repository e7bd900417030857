"""Sensors that speak over an MQTT broker: any JSON, plain numbers, Zigbee2MQTT, Tasmota, ESPHome."""

from __future__ import annotations

import contextlib
import itertools
import secrets
import ssl
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge_agent.clock import Clock
from edge_agent.core.records import Reading, Sample
from edge_agent.errors import ConfigError, SourceError
from edge_agent.sources import readings
from edge_agent.sources.readings import Step, Unusable

SECOND = 1_000_000_000
_CHANNELS = 64  # of one message
_WAITING = 1024  # readings; a feed that is not read keeps the newest
_SLICE_S = 0.1  # the socket is waited for in short turns, so that `close` from another thread gets one
_DEFAULT_TOPICS = {
    "zigbee2mqtt": ("zigbee2mqtt/#",),
    "tasmota": ("tele/+/SENSOR",),
    "esphome": ("+/sensor/+/state", "+/binary_sensor/+/state"),
}
_PROTOCOLS = {"5": MQTTProtocolVersion.MQTTv5, "3.1.1": MQTTProtocolVersion.MQTTv311}


class Feed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Topics of one kind of device, and what the channels of their messages are called.

    shape        channels
    json         those of `fields`: channel → path, as temperature: sensors[0].temp
    number       one: `channel`, or the topic; the payload is a number or on/off, open/closed, true/false
    zigbee2mqtt  <friendly name>/<key>, as kitchen/temperature: every number, on/off and true/false
    tasmota      <device>/<path>, as attic/AM2301.Temperature
    esphome      <node>/<object>, as porch/outside_temperature
    """

    shape: Literal["json", "number", "zigbee2mqtt", "tasmota", "esphome"] = "json"
    topic: Annotated[str, Meta(min_length=1, max_length=512)] | None = (
        None  #: None: where the shape's devices publish
    )
    fields: dict[str, str] = {}  #: of json
    channel: str | None = None  #: of number


class MqttOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A broker, and the feeds read from it."""

    host: str
    feeds: Annotated[tuple[Feed, ...], Meta(min_length=1, max_length=64)]
    port: Annotated[int, Meta(ge=1, le=65535)] = 1883
    username: str | None = None
    password: str | None = None  #: as ${env:NAME} or ${file:/path}
    tls: bool = False
    ca: Path | None = None  #: certificates to trust instead of the system's
    protocol: Literal["5", "3.1.1"] = "5"
    qos: Literal[0, 1] = 0
    retained: bool = False  #: True takes what the broker kept from before; its age is not known
    keepalive_s: Annotated[int, Meta(ge=5, le=3600)] = 30
    timeout_s: Annotated[float, Meta(ge=0.5, le=120)] = 10.0  #: to connect


class Mqtt:
    """One Reading per channel per message; captured_ns is the time of arrival.

    Counters: `malformed`, `non_finite`, `oversize` (values or messages that are no readings), `absent` (a message
    without a configured path), `dropped` (readings that were not read in time; the oldest go).
    """

    Options = MqttOptions
    stamps_on_arrival = True

    def __init__(self, name: str, options: MqttOptions, clock: Clock) -> None:
        """ConfigError if a feed cannot be read as it is described."""
        self.counters = {"malformed": 0, "non_finite": 0, "oversize": 0, "absent": 0, "dropped": 0}
        self._name = name
        self._options = options
        self._clock = clock
        self._feeds = tuple(_Reader(feed, f"feeds[{index}]") for index, feed in enumerate(options.feeds))
        self._waiting: deque[Sample] = deque()
        self._client: paho.Client | None = None
        self._lock = threading.Lock()  # held for one turn of the client, which is not thread-safe while it turns
        self._closing = threading.Event()
        self._refused: str | None = None
        self._subscribed = 0
        self._seq = -1

    def open(self) -> None:
        """Connect and subscribe. SourceError if the broker is not there or refuses, with its reason."""
        with self._lock:
            if self._client is not None:
                raise self._error("open already; close it first")
            self._closing.clear()
            self._refused, self._subscribed = None, 0
            self._waiting.clear()
            self._client = client = self._made()
        try:
            self._connect(client)
        except SourceError:
            self.close()
            raise

    def read(self, timeout_s: float) -> Sample | None:
        """The next reading."""
        deadline_ns = self._clock.monotonic_ns() + round(timeout_s * SECOND)
        while True:
            left_s = (deadline_ns - self._clock.monotonic_ns()) / SECOND
            with self._lock:
                client = self._client
                if client is None or self._closing.is_set():
                    raise self._error("not open")
                if self._waiting:
                    return self._waiting.popleft()
                if left_s <= 0:
                    return None
                self._turn(client, min(left_s, _SLICE_S))

    def close(self) -> None:
        """Disconnect."""
        self._closing.set()
        with self._lock:
            client, self._client = self._client, None
            if client is not None:
                with contextlib.suppress(OSError, ValueError):  # there may be no connection to say good-bye on
                    client.disconnect()

    def _made(self) -> paho.Client:
        options = self._options
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"tectum-{self._name}-{secrets.token_hex(4)}",  # two clients with one id cut each other off
            protocol=_PROTOCOLS[options.protocol],
        )
        client.connect_timeout = options.timeout_s
        if options.username is not None:
            client.username_pw_set(options.username, options.password)
        if options.tls:
            try:
                client.tls_set_context(ssl.create_default_context(cafile=options.ca and str(options.ca)))
            except (OSError, ssl.SSLError) as error:
                raise self._error(f"cannot use the certificates in {options.ca}: {error}") from error
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        return client

    def _connect(self, client: paho.Client) -> None:
        options = self._options
        try:
            client.connect(options.host, options.port, options.keepalive_s)
        except (OSError, ValueError) as error:  # TimeoutError, gaierror and ssl.SSLError are OSErrors
            raise self._error(f"cannot connect: {error}") from error
        topics = [topic for feed in self._feeds for topic in feed.topics]
        deadline_ns = self._clock.monotonic_ns() + round(options.timeout_s * SECOND)
        while self._subscribed < len(topics):
            if self._clock.monotonic_ns() > deadline_ns:
                raise self._error(f"no answer within {options.timeout_s:g} s")
            with self._lock:
                if self._closing.is_set():
                    raise self._error("closed")
                self._turn(client, _SLICE_S)

    def _turn(self, client: paho.Client, wait_s: float) -> None:
        """Let the client read and write. SourceError if the connection is gone."""
        try:
            state = client.loop(wait_s)
        except (OSError, ValueError) as error:
            raise self._error(f"lost: {error}") from error
        if self._refused is not None:
            raise self._error(self._refused)
        if state != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise self._error(f"lost: {paho.error_string(state)}")

    # Callbacks of the client run inside `_turn`. None may raise: paho would let it through in the middle of its work.

    def _on_connect(self, client: paho.Client, _: Any, __: Any, reason: ReasonCode, ___: Properties | None) -> None:
        if reason.is_failure:
            hint = "; try protocol: '3.1.1'" if "protocol" in str(reason).lower() else ""
            self._refused = f"the broker refuses the connection: {reason}{hint}"
            return
        for feed in self._feeds:
            for topic in feed.topics:
                # Retained values are not asked for where the protocol can say so.
                wanted = SubscribeOptions(qos=self._options.qos, retainHandling=0 if self._options.retained else 2)
                if self._options.protocol == "5":
                    client.subscribe(topic, options=wanted)
                else:
                    client.subscribe(topic, qos=self._options.qos)

    def _on_subscribe(self, _: paho.Client, __: Any, ___: int, reasons: list[ReasonCode], ____: Any) -> None:
        for reason in reasons:
            if reason.is_failure:
                self._refused = f"the broker refuses a subscription: {reason}; may this user read the topics?"
            else:
                self._subscribed += 1

    def _on_message(self, _: paho.Client, __: Any, message: paho.MQTTMessage) -> None:
        if message.retain and not self._options.retained:
            return
        now_ns = self._clock.monotonic_ns()
        for feed in self._feeds:
            if not feed.wants(message.topic):
                continue
            try:
                for channel, value in itertools.islice(feed.values(message.topic, bytes(message.payload)), _CHANNELS):
                    self._take(channel, value, now_ns)
            except Unusable as error:
                self.counters[error.reason] += 1

    def _take(self, channel: str, value: Any, now_ns: int) -> None:
        """A value that is no reading is counted; the others of its message are kept."""
        if value is None:
            self.counters["absent"] += 1
            return
        try:
            reading = Reading(channel, readings.number(value))
        except Unusable as error:
            self.counters[error.reason] += 1
            return
        if len(self._waiting) >= _WAITING:
            self._waiting.popleft()
            self.counters["dropped"] += 1
        self._seq += 1
        self._waiting.append(Sample(self._name, "reading", self._seq, now_ns, reading))

    def _error(self, what: str) -> SourceError:
        return SourceError(f"{self._name}: {self._options.host}:{self._options.port}: {what}")


class _Reader:
    """One feed: which topics, and what their messages say."""

    def __init__(self, feed: Feed, where: str) -> None:
        self._feed = feed
        self.topics = (feed.topic,) if feed.topic else _DEFAULT_TOPICS.get(feed.shape, ())
        wild = any("+" in topic or "#" in topic for topic in self.topics)
        if not self.topics:
            raise ConfigError(f"shape {feed.shape} needs a topic", f"{where}.topic")
        for topic in self.topics:
            _check_filter(topic, f"{where}.topic")
        if feed.shape == "json" and (wild or not feed.fields):
            raise ConfigError("shape json needs `fields`, and a topic of one device (without + and #)", where)
        if feed.fields and feed.shape != "json":
            raise ConfigError(f"only shape json has fields, not {feed.shape}", f"{where}.fields")
        if feed.channel is not None and (feed.shape != "number" or wild):
            raise ConfigError("only shape number with a topic without + and # has a channel", f"{where}.channel")
        self._paths: dict[str, tuple[Step, ...]] = {}
        for channel, text in feed.fields.items():
            try:
                self._paths[channel] = readings.path(text)
            except ConfigError as error:
                raise ConfigError(str(error), f"{where}.fields.{channel}") from error

    def wants(self, topic: str) -> bool:
        return any(paho.topic_matches_sub(wanted, topic) for wanted in self.topics)

    def values(self, topic: str, payload: bytes) -> Iterator[tuple[str, Any]]:
        """Channel and value as sent, None for one that is not there. Unusable if the message says nothing at all."""
        if self._feed.shape == "json":
            tree = readings.decode(payload)
            for channel, steps in self._paths.items():
                yield channel, readings.at(tree, steps)
        elif self._feed.shape in ("number", "esphome"):
            yield self._feed.channel or _name(self._feed.shape, topic), readings.text(payload)
        elif payload and (device := _name(self._feed.shape, topic)):
            tree = readings.decode(payload)
            if not isinstance(tree, dict):
                raise Unusable("malformed", f"expected a JSON object, got {type(tree).__name__}")
            for path, value in readings.leaves(tree):
                yield f"{device}/{path}", value


def _name(shape: str, topic: str) -> str:
    """How the channels of a message on this topic begin; empty for what is no sensor's."""
    levels = topic.split("/")
    if shape == "zigbee2mqtt":
        plain = (
            levels[1] != "bridge" and levels[-1] not in ("set", "get", "availability") if len(levels) > 1 else False
        )
        return "/".join(levels[1:]) if plain else ""
    if shape == "tasmota":
        return "/".join(levels[1:-1])
    if shape == "esphome" and len(levels) >= 4:
        return "/".join((*levels[:-3], levels[-2]))
    return topic


def _check_filter(topic: str, where: str) -> None:
    levels = topic.split("/")
    wrong = any(("+" in level or "#" in level) and len(level) > 1 for level in levels) or "#" in levels[:-1]
    if wrong or "\0" in topic or topic.startswith("$share/"):
        raise ConfigError(f"{topic!r} is not a topic filter: + stands for a level, # for all that follow", where)
