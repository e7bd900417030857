"""How many messages a second does the ingest take in, and how long does a device wait for its acknowledgement?

    python -m benchmarks.ingest [--messages 20000] [--batch 1] [--database URL]

Mosquitto, `cloud-sync ingest` and the sender are three processes on one machine. Throughput: messages are sent as
fast as the window allows until the cloud's `down/ack` covers all of them. Latency: one message every 10 ms (and, of
their own, every 200 ms), from publish to the ack that covers it; the cloud's commit lies in between. The limit is
the broker alone: the same messages in the same run, to its PUBACK, with nobody subscribed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import paho.mqtt.client as paho
import yaml
from paho.mqtt.enums import CallbackAPIVersion

from benchmarks import site
from benchmarks.result import Findings, shown, spread
from cloud_sync import bootstrap, broker, config, enrol
from cloud_sync.store import open_store
from edge_agent.contract import topics, wire
from tests.parts.cloud import event, message
from tests.parts.mosquitto import free_port, mosquitto

WINDOW = 1000
#: Messages of a latency run and the time between two of them: under way, and one alone.
PROBES = ((500, 0.01), (50, 0.2))
FIRST_S = 30.0
MESSAGES, BATCH = 5000, 50  #: of `measure`


class Sender:
    """A device that publishes encoded messages and knows how far the cloud has come."""

    def __init__(self, port: int, password: str) -> None:
        self.upto = 0
        self.taken = 0  #: by the broker
        self._moved = threading.Condition()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id="cam", protocol=paho.MQTTv5)
        self._client.username_pw_set("cam", password)
        self._client.max_inflight_messages_set(WINDOW)
        self._client.on_message = self._acked
        self._client.on_publish = self._taken
        self._client.on_connect = lambda client, *_: client.subscribe(topics.down("home", "cam", "ack"), qos=1)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def _acked(self, _client: object, _user: object, received: paho.MQTTMessage) -> None:
        with self._moved:
            self.upto = max(self.upto, wire.decode_ack(bytes(received.payload)).upto)
            self._moved.notify_all()

    def _taken(self, *_: object) -> None:
        with self._moved:
            self.taken += 1
            self._moved.notify_all()

    def publish(self, payload: bytes) -> None:
        self._client.publish(topics.up("home", "cam", "event"), payload, qos=1)

    def wait(self, seq: int, timeout_s: float = 120.0) -> bool:
        """Whether the cloud has come as far as `seq` in time."""
        with self._moved:
            return self._moved.wait_for(lambda: self.upto >= seq, timeout=timeout_s)

    def wait_taken(self, count: int, timeout_s: float = 120.0) -> bool:
        """Whether the broker has taken `count` messages in time."""
        with self._moved:
            return self._moved.wait_for(lambda: self.taken >= count, timeout=timeout_s)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def measure(options: site.Options, findings: Findings) -> None:
    findings.note(f"SQLite; {MESSAGES} messages, one at a time and {BATCH} in a payload")
    for _ in range(options.repeat):
        _round(MESSAGES, 1, "", findings, "single")
        _round(MESSAGES, BATCH, "", findings, "batch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=1, help="messages in one payload")
    parser.add_argument("--database", default="", help="SQLAlchemy URL; SQLite without")
    args = parser.parse_args()
    findings = Findings()
    _round(args.messages, args.batch, args.database, findings, "")
    for figure in findings.figures():
        print(f"{figure.text:70s} {shown(figure.value):>8s} {figure.unit}")


def _round(count: int, batch: int, database: str, findings: Findings, key: str) -> None:
    with tempfile.TemporaryDirectory(prefix="tectum-bench-") as name:
        folder, port = Path(name), free_port()
        bootstrap.bootstrap(folder, "127.0.0.1", 8080, port)
        if database:
            tree = yaml.safe_load((folder / "cloud.yaml").read_text())
            (folder / "cloud.yaml").write_text(yaml.safe_dump(tree | {"database": database}))
        extra = ("max_inflight_messages 1024", "max_queued_messages 100000", "max_packet_size 262144")
        dynsec = folder / "mosquitto" / "dynamic-security.json"
        with mosquitto(folder / "broker", dynsec=dynsec, port=port, extra=extra):
            _measure(folder, port, count, batch, lambda name, *rest: findings.add(f"{key}_{name}".strip("_"), *rest))


Note = Callable[[str, float, str, str], None]


def _measure(folder: Path, port: int, count: int, batch: int, note: Note) -> None:
    settings = config.load(folder / "cloud.yaml")
    settings.data_dir.mkdir()
    store = open_store(settings.database_url)
    store.migrate()
    identity = enrol.enrol(
        settings, store, broker.users(settings.broker),
        device="cam", site="home", out=folder / "cam.yaml", now_ns=time.time_ns(),
    )  # fmt: skip
    store.close()
    payloads = _payloads(count, batch)
    sender = Sender(port, identity.broker.password)
    try:
        alone = _broker_alone(sender, payloads, batch)
        note("broker", alone, "messages/s", f"Mosquitto alone, {batch} in a payload")
        command = [sys.executable, "-m", "cloud_sync", "ingest", "--config", str(folder / "cloud.yaml")]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as ingest:
            try:
                _first(sender)
                rate = _throughput(sender, payloads, count, batch)
                note("rate", rate, "messages/s", f"taken in and acknowledged, {batch} in a payload")
                note("of_broker", 100 * rate / alone, "% of broker", f"of Mosquitto alone, {batch} in a payload")
                if batch == 1:
                    _latency(sender, count + 2, note)
            finally:
                ingest.terminate()
                ingest.wait(10)
    finally:
        sender.close()


def _payloads(count: int, batch: int) -> list[bytes]:
    encoded = [_message(seq) for seq in range(2, count + 2)]
    starts = range(0, count, batch)
    return encoded if batch == 1 else [wire.encode_batch(encoded[start : start + batch]) for start in starts]


def _broker_alone(sender: Sender, payloads: list[bytes], batch: int) -> float:
    """Messages a second until the broker has taken all; nobody hears them."""
    base, started = sender.taken, time.perf_counter()
    for number, payload in enumerate(payloads):
        sender.wait_taken(base + max(0, number - WINDOW))
        sender.publish(payload)
    if not sender.wait_taken(base + len(payloads)):
        raise SystemExit("the broker does not take messages")
    return len(payloads) * batch / (time.perf_counter() - started)


def _first(sender: Sender) -> None:
    first, deadline = wire.encode(message(1, event())), time.monotonic() + FIRST_S
    while not sender.wait(1, 0.5):  # the broker forgets what nobody has subscribed to yet
        if time.monotonic() > deadline:
            raise SystemExit("the ingest does not answer")
        sender.publish(first)


def _throughput(sender: Sender, payloads: list[bytes], count: int, batch: int) -> float:
    started = time.perf_counter()
    for number, payload in enumerate(payloads):
        sender.wait(max(0, number * batch - WINDOW * batch))
        sender.publish(payload)
    if not sender.wait(count + 1):
        raise SystemExit(f"no ack for {count + 1}; the cloud is at {sender.upto}")
    return count / (time.perf_counter() - started)


def _latency(sender: Sender, seq: int, note: Note) -> None:
    for probes, every_s in PROBES:
        waits = [_wait_ms(sender, seq + probe, every_s) for probe in range(probes)]
        seq += probes
        for word, value in zip(("p50", "p99", "worst"), spread(waits), strict=True):
            text = f"publish to ack, one every {every_s * 1e3:.0f} ms, {word} of {probes}"
            note(f"ack_{every_s * 1e3:.0f}_{word}", value, "ms", text)


def _message(seq: int) -> bytes:
    return wire.encode(message(seq, event(revision=seq % 20 + 1), of=seq // 20))


def _wait_ms(sender: Sender, seq: int, every_s: float) -> float:
    payload, sent = _message(seq), time.perf_counter()
    sender.publish(payload)
    if not sender.wait(seq):
        raise SystemExit(f"no ack for {seq}")
    took_s = time.perf_counter() - sent
    time.sleep(max(0.0, every_s - took_s))
    return took_s * 1000


if __name__ == "__main__":
    main()
