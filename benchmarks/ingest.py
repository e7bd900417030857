"""How many messages a second the ingest takes in, and how long a device waits for its acknowledgement.

    python -m benchmarks.ingest [--messages 20000] [--batch 1] [--database URL]

Mosquitto, `cloud-sync ingest` and the sender are three processes on one machine. Throughput: messages are sent as
fast as the window allows until the cloud's `down/ack` covers all of them. Latency: one message every 10 ms (and, of
their own, every 200 ms), from publish to the ack that covers it; the cloud's commit lies in between.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import paho.mqtt.client as paho
import yaml
from paho.mqtt.enums import CallbackAPIVersion

from cloud_sync import bootstrap, broker, config, enrol
from cloud_sync.store import open_store
from edge_agent.contract import topics, wire
from tests.parts.cloud import event, message
from tests.parts.mosquitto import free_port, mosquitto

WINDOW = 1000
#: Messages of a latency run and the time between two of them: under way, and one alone.
PROBES = ((500, 0.01), (50, 0.2))
FIRST_S = 30.0


class Sender:
    """A device that publishes encoded messages and knows how far the cloud has come."""

    def __init__(self, port: int, password: str) -> None:
        self.upto = 0
        self._moved = threading.Condition()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id="cam", protocol=paho.MQTTv5)
        self._client.username_pw_set("cam", password)
        self._client.max_inflight_messages_set(WINDOW)
        self._client.on_message = self._acked
        self._client.on_connect = lambda client, *_: client.subscribe(topics.down("home", "cam", "ack"), qos=1)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def _acked(self, _client: object, _user: object, received: paho.MQTTMessage) -> None:
        with self._moved:
            self.upto = max(self.upto, wire.decode_ack(bytes(received.payload)).upto)
            self._moved.notify_all()

    def publish(self, payload: bytes) -> None:
        self._client.publish(topics.up("home", "cam", "event"), payload, qos=1)

    def wait(self, seq: int, timeout_s: float = 120.0) -> bool:
        """Whether the cloud has come as far as `seq` in time."""
        with self._moved:
            return self._moved.wait_for(lambda: self.upto >= seq, timeout=timeout_s)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=1, help="messages in one payload")
    parser.add_argument("--database", default="", help="SQLAlchemy URL; SQLite without")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tectum-bench-") as name:
        folder, port = Path(name), free_port()
        bootstrap.bootstrap(folder, "127.0.0.1", 8080, port)
        if args.database:
            tree = yaml.safe_load((folder / "cloud.yaml").read_text())
            (folder / "cloud.yaml").write_text(yaml.safe_dump(tree | {"database": args.database}))
        extra = ("max_inflight_messages 1024", "max_queued_messages 100000", "max_packet_size 262144")
        dynsec = folder / "mosquitto" / "dynamic-security.json"
        with mosquitto(folder / "broker", dynsec=dynsec, port=port, extra=extra):
            _measure(folder, port, args.messages, args.batch)


def _measure(folder: Path, port: int, count: int, batch: int) -> None:
    settings = config.load(folder / "cloud.yaml")
    settings.data_dir.mkdir()
    store = open_store(settings.database_url)
    store.migrate()
    identity = enrol.enrol(
        settings, store, broker.users(settings.broker),
        device="cam", site="home", out=folder / "cam.yaml", now_ns=time.time_ns(),
    )  # fmt: skip
    store.close()
    command = [sys.executable, "-m", "cloud_sync", "ingest", "--config", str(folder / "cloud.yaml")]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as ingest:
        sender = Sender(port, identity.broker.password)
        try:
            _report(sender, count, batch)
        finally:
            sender.close()
            ingest.terminate()
            ingest.wait(10)


def _report(sender: Sender, count: int, batch: int) -> None:
    first, deadline = wire.encode(message(1, event())), time.monotonic() + FIRST_S
    while not sender.wait(1, 0.5):  # the broker forgets what nobody has subscribed to yet
        if time.monotonic() > deadline:
            raise SystemExit("the ingest does not answer")
        sender.publish(first)
    encoded = [_message(seq) for seq in range(2, count + 2)]
    starts = range(0, count, batch)
    payloads = encoded if batch == 1 else [wire.encode_batch(encoded[start : start + batch]) for start in starts]
    started = time.perf_counter()
    for number, payload in enumerate(payloads):
        sender.wait(max(0, number * batch - WINDOW * batch))
        sender.publish(payload)
    if not sender.wait(count + 1):
        raise SystemExit(f"no ack for {count + 1}; the cloud is at {sender.upto}")
    took_s = time.perf_counter() - started
    print(f"throughput   {count / took_s:6.0f} messages/s ({count} of {len(encoded[0])} bytes, {batch} in a payload)")
    seq = count + 2
    for probes, every_s in PROBES:
        waits = [_wait_ms(sender, seq + probe, every_s) for probe in range(probes)]
        seq += probes
        cuts = statistics.quantiles(waits, n=100)
        figures = f"p50 {cuts[49]:6.1f} ms  p99 {cuts[98]:6.1f} ms  worst {max(waits):6.1f} ms"
        print(f"publish→ack  {figures}  ({probes} messages, one every {every_s * 1000:.0f} ms)")


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
