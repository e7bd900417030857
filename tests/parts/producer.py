"""A device without senses, for the kill loops: puts numbered events, and keeps a ledger of what was accepted.

    python -m tests.parts.producer FOLDER IDENTITY [--drain]

The ledger is `FOLDER/ledger.jsonl`, appended and fsynced line by line: `{"try": n}` before an event is put, `{"ok":
[stream, seq, id, n, phase]}` after `put` returned, `{"file": sha256}` after evidence was attached, `{"sent": [pid,
rows]}` now and then. With `--drain` it puts nothing, and ends once outbox and uploads are empty.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge_agent.clock import SystemClock
from edge_agent.config import load_identity
from edge_agent.contract.event import Evidence, Message, Phase, Priority
from edge_agent.contract.status import State
from edge_agent.lifecycle import Service
from edge_agent.outbox import Outbox
from edge_agent.publish import Publisher
from edge_agent.upload import Uploader
from tests.parts.delivery import event

OPEN = 8  #: events that are open at once
PRIORITIES: tuple[Priority, ...] = ("normal", "critical", "bulk")


class Ledger:
    """Lines that survive the process."""

    def __init__(self, path: Path) -> None:
        lines = path.read_bytes().splitlines() if path.exists() else []
        tried = [entry["try"] for entry in map(json.loads, lines) if "try" in entry]
        self.next_number = max(tried, default=0) + 1
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, **entry: Any) -> None:
        os.write(self._fd, json.dumps(entry).encode() + b"\n")
        os.fsync(self._fd)

    def accepted(self, number: int, message: Message, phase: str) -> None:
        self.write(ok=[message.stream, message.seq, message.id, number, phase])


class Producer:
    """Puts lives of events, several at a time, some in groups, some with a file."""

    def __init__(self, folder: Path, box: Outbox, ledger: Ledger) -> None:
        self._folder = folder
        self._box = box
        self._ledger = ledger
        self._chance = random.Random(ledger.next_number)
        self._open: deque[int] = deque()  # what is in it when the process dies, the next one aborts

    def run(self, stop: threading.Event, sent: Any) -> None:
        number = self._ledger.next_number
        while not stop.wait(self._chance.uniform(0.0, 0.02)):
            if number % 25 == 0:
                number = self._group(number, 20)
            else:
                self._life(number)
                number += 1
            self._ledger.write(sent=[os.getpid(), sent()])

    def _life(self, number: int) -> None:
        self._ledger.write(**{"try": number})
        opened = self._put("new", number, 1)
        self._open.append(number)
        if number % 10 == 0:
            self._attach(opened.id)
        self._put("update", number, 2)
        if len(self._open) == OPEN:
            self._put("end", self._open.popleft(), 3)

    def _put(self, phase: Phase, number: int, revision: int) -> Message:
        message = self._box.put(
            event(
                phase,
                number,
                revision=revision,
                label=f"label-{number}",
                priority=PRIORITIES[number % 3],
                points=number % 50,
            )
        )
        self._ledger.accepted(number, message, phase)
        return message

    def _group(self, number: int, count: int) -> int:
        numbers = range(number, number + count)
        self._ledger.write(**{"try": number + count - 1})
        for of, message in zip(
            numbers, self._box.put_all([event("end", of, label="group") for of in numbers]), strict=True
        ):
            self._ledger.accepted(of, message, "end")
        return number + count

    def _attach(self, event_id: str) -> None:
        content = self._chance.randbytes(self._chance.randrange(1, 400_000))
        sha256 = hashlib.sha256(content).hexdigest()
        path = self._folder / "evidence" / sha256
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        body = Evidence(
            scene="yard",
            role="snapshot",
            sha256=sha256,
            size=len(content),
            media_type="image/jpeg",
            start_ns=0,
            end_ns=1,
        )
        self._box.attach(event_id, body, path)
        self._ledger.write(file=sha256)


@contextmanager
def threads(*services: Service) -> Iterator[None]:
    """The services, each on a thread, until the block ends."""
    stop = threading.Event()
    running = [threading.Thread(target=service.run, args=(stop,)) for service in services]
    for thread in running:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in running:
            thread.join()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("identity", type=Path)
    parser.add_argument("--drain", action="store_true")
    args = parser.parse_args()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    clock = SystemClock()
    identity = load_identity(args.identity)
    args.folder.mkdir(exist_ok=True)
    ledger = Ledger(args.folder / "ledger.jsonl")
    box = Outbox(args.folder / "outbox.db", identity.device, clock, "boot", max_bytes=64 << 20, reserve_bytes=1 << 20)
    state = State(device=identity.device, online=True)
    publisher = Publisher(identity, box, clock, lambda: state, lambda _: None, resend_s=3.0, backoff_cap_s=1.0)
    uploader = Uploader(identity, box, clock)
    with threads(publisher, uploader):
        if args.drain:
            while (box.counters["rows"] or box.uploads()) and not stop.wait(0.1):
                pass
        else:
            Producer(args.folder, box, ledger).run(stop, lambda: publisher.counters["rows"])
    ledger.write(sent=[os.getpid(), publisher.counters["rows"]])
    print(json.dumps({"outbox": box.counters, "publisher": publisher.counters, "uploader": uploader.counters}))
    box.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
