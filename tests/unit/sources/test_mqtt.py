"""Sensors over a real broker: each shape, each way to be refused, and a broker that goes away."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from edge_agent.clock import SystemClock
from edge_agent.core.records import Sample
from edge_agent.errors import SourceError
from edge_agent.sources.mqtt import Mqtt, MqttOptions
from tests.parts.mosquitto import Mosquitto, mosquitto

CLOCK = SystemClock()
pytestmark = pytest.mark.needs("mosquitto")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    with mosquitto(tmp_path_factory.mktemp("broker")) as running:
        yield running


def as_path(_: type, value: str) -> Path:
    return Path(value)


def options(broker: Mosquitto, *feeds: dict[str, Any], **more: Any) -> MqttOptions:
    return msgspec.convert(
        {"host": broker.host, "port": broker.port, "feeds": feeds, **more}, MqttOptions, dec_hook=as_path
    )


@contextmanager
def listening(broker: Mosquitto, *feeds: dict[str, Any], **more: Any) -> Iterator[Mqtt]:
    source = Mqtt("sensors", options(broker, *feeds, **more), CLOCK)
    source.open()
    try:
        yield source
    finally:
        source.close()


def publish(broker: Mosquitto, *messages: tuple[str, str | bytes], retain: bool = False) -> None:
    """Send, and wait until the broker has them."""
    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.connect(broker.host, broker.port)
    client.loop_start()
    for topic, payload in messages:
        client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(10)
    client.disconnect()
    client.loop_stop()


def values(source: Mqtt, count: int) -> dict[str, float]:
    """The next readings by channel."""
    found = []
    deadline = time.monotonic() + 10
    while len(found) < count:
        assert time.monotonic() < deadline, f"only {found}; {source.counters}"
        sample = source.read(0.5)
        if sample is not None:
            found.append(sample)
    return {sample.data.channel: sample.data.value for sample in found}


SHAPES = [
    (
        {"topic": "room/1", "fields": {"temperature": "t", "door": "in.puts[1].open"}},
        "room/1",
        '{"t": 21.5, "in": {"puts": [{}, {"open": true}]}}',
        {"temperature": 21.5, "door": 1.0},
    ),
    ({"shape": "number", "topic": "room/co2"}, "room/co2", "612", {"room/co2": 612.0}),
    ({"shape": "number", "topic": "gate", "channel": "gate"}, "gate", "OPEN", {"gate": 1.0}),
    (
        {"shape": "zigbee2mqtt"},
        "zigbee2mqtt/ground floor/kitchen",
        '{"temperature": 22.1, "humidity": 40, "contact": false, "state": "ON", "linkquality": 90, "device": {}}',
        {
            "ground floor/kitchen/temperature": 22.1,
            "ground floor/kitchen/humidity": 40.0,
            "ground floor/kitchen/contact": 0.0,
            "ground floor/kitchen/state": 1.0,
            "ground floor/kitchen/linkquality": 90.0,
        },
    ),
    (
        {"shape": "tasmota"},
        "tele/attic/SENSOR",
        '{"Time": "2026-06-01T10:00:00", "AM2301": {"Temperature": 30.5, "Humidity": 33.0}, "TempUnit": "C"}',
        {"attic/AM2301.Temperature": 30.5, "attic/AM2301.Humidity": 33.0},
    ),
    ({"shape": "esphome"}, "porch/sensor/outside_temperature/state", "-3.25", {"porch/outside_temperature": -3.25}),
    ({"shape": "esphome"}, "porch/binary_sensor/door/state", "ON", {"porch/door": 1.0}),
]


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape[1])
def test_each_shape_becomes_readings(broker: Mosquitto, shape: tuple[Any, str, str, Any], protocol: str) -> None:
    feed, topic, payload, expected = shape
    with listening(broker, feed, protocol=protocol) as source:
        publish(broker, (topic, payload))
        assert values(source, len(expected)) == expected
        assert source.read(0.0) is None
    assert not any(source.counters.values())


@pytest.mark.parametrize(
    ("payload", "counter"),
    [
        (b'{"t": 1e999}', "malformed"),
        (b'{"t": "nan"}', "non_finite"),
        (b'{"t": {}}', "malformed"),
        (b'{"other": 1}', "absent"),
        (b'{"t": null}', "absent"),
        (b"[" * 50_000, "malformed"),
        (b"\xff\xfe", "malformed"),
        (b"", "malformed"),
        (b" " * 70_000, "oversize"),
    ],
)
def test_what_is_no_reading_is_counted_and_the_next_message_read(
    broker: Mosquitto, payload: bytes, counter: str
) -> None:
    with listening(broker, {"topic": "t", "fields": {"t": "t"}}) as source:
        publish(broker, ("t", payload), ("t", '{"t": 4}'))
        assert values(source, 1) == {"t": 4.0}
        assert source.counters == {**dict.fromkeys(source.counters, 0), counter: 1}


def test_what_other_devices_say_on_shared_topics_is_left_alone(broker: Mosquitto) -> None:
    with listening(broker, {"shape": "zigbee2mqtt"}, {"shape": "number", "topic": "end"}) as source:
        publish(
            broker,
            ("zigbee2mqtt/bridge/state", '{"state": "online", "n": 1}'),
            ("zigbee2mqtt/lamp/set", '{"brightness": 7}'),
            ("zigbee2mqtt/lamp/availability", '{"state": "on"}'),
            ("end", "1"),
        )
        assert values(source, 1) == {"end": 1.0}


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
@pytest.mark.parametrize("wanted", [False, True])
def test_what_the_broker_kept_from_before_is_taken_only_if_asked_for(
    broker: Mosquitto, wanted: bool, protocol: str
) -> None:
    publish(broker, ("kept", "1"), retain=True)
    feeds = {"shape": "number", "topic": "kept"}, {"shape": "number", "topic": "end"}
    with listening(broker, *feeds, retained=wanted, protocol=protocol) as source:
        publish(broker, ("end", "2"))
        assert values(source, 2 if wanted else 1) == ({"kept": 1.0, "end": 2.0} if wanted else {"end": 2.0})


def test_a_feed_that_is_not_read_keeps_the_newest(broker: Mosquitto) -> None:
    many = {f"c{index}": f"v[{index}]" for index in range(60)}
    with listening(broker, {"topic": "many", "fields": many}) as source:
        for message in range(30):
            publish(broker, ("many", msgspec.json.encode({"v": [message] * 60})))
        last: Sample | None = None
        read = 0
        while (sample := source.read(0.5)) is not None:
            last, read = sample, read + 1
        assert last is not None
        assert last.data.value == 29.0
        assert last.seq == 30 * 60 - 1
        assert read + source.counters["dropped"] == 30 * 60


def test_a_broker_that_dies_is_an_error_and_the_source_opens_again(broker: Mosquitto) -> None:
    with listening(broker, {"shape": "number", "topic": "n"}) as source:
        broker.kill()
        with pytest.raises(SourceError, match="lost"):
            values(source, 1)
        source.close()
        with pytest.raises(SourceError, match="cannot connect"):
            source.open()
        broker.start()
        source.open()
        publish(broker, ("n", "5"))
        assert values(source, 1) == {"n": 5.0}


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_refusal_says_why(tmp_path: Path, protocol: str) -> None:
    with mosquitto(
        tmp_path / "broker", users={"sensors": "right"}, acl="user sensors\ntopic read allowed/#\n"
    ) as guarded:
        feed = {"shape": "number", "topic": "allowed/n"}
        for name, word in (("sensors", "wrong"), (None, None)):
            with (
                pytest.raises(SourceError, match="refuses the connection: Not authorized") as caught,
                listening(guarded, feed, protocol=protocol, username=name, password=word),
            ):
                pass
            assert "wrong" not in str(caught.value)
        with listening(guarded, feed, protocol=protocol, username="sensors", password="right") as source:
            assert source.read(0.0) is None


def test_tls_with_the_site_s_own_authority(tmp_path: Path, certificates: tuple[Path, Path, Path]) -> None:
    with mosquitto(tmp_path / "broker", tls=certificates) as secured:
        feed = {"shape": "number", "topic": "n"}
        with listening(secured, feed, tls=True, ca=str(certificates[0])) as source:
            assert source.read(0.0) is None
        with pytest.raises(SourceError, match="certificate"), listening(secured, feed, tls=True):
            pass
