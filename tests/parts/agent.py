"""A real `edge-agent run` process on its own data folder, and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from edge_agent.clock import SystemClock
from edge_agent.contract.event import Event, Evidence, Message
from edge_agent.contract.identity import Broker, Cloud, Identity
from edge_agent.outbox import Outbox

#: Loud from the second second on, for four seconds.
BANG = {"label": "explosion", "start_s": 1.0, "end_s": 600.0, "modalities": ["vision", "audio", "sensors"]}


def site(
    folder: Path,
    bundle: Path,
    *,
    sources: list[dict[str, Any]],
    scenes: list[dict[str, Any]],
    broker_port: int | None = None,
    **rest: Any,
) -> Path:
    """A configuration file in `folder`, with an identity; without `broker_port` its broker is not there."""
    identity = Identity(
        site="test",
        device="box",
        broker=Broker(
            host="127.0.0.1", port=broker_port or closed_port(), username="box", password="geheim-broker", tls=False
        ),
        cloud=Cloud(url=f"http://127.0.0.1:{closed_port()}", token="geheim-token"),
    )
    (folder / "identity.yaml").write_bytes(msgspec.yaml.encode(identity))
    (folder / "identity.yaml").chmod(0o600)
    tree = {
        "version": 1,
        "data_dir": "data",
        "identity": "identity.yaml",
        "model": {"bundle": str(bundle)},
        "evidence": {"pre_s": 1, "post_s": 1, "max_clip_s": 10},
        "outbox": {"reserve_mb": 0},
        "health": {"port": 0},
        "log": {"format": "json"},
        "sources": sources,
        "scenes": scenes,
    }
    path = folder / "site.yaml"
    path.write_bytes(msgspec.yaml.encode(tree | rest))
    return path


def simulated(folder: Path, bundle: Path, episodes: Any = (BANG,), **rest: Any) -> Path:
    """One scene on a simulated site where something explodes, or whatever `episodes` says."""
    source = {"name": "sim", "driver": "synthetic", "options": {"seed": 3, "episodes": episodes}}
    scene = {
        "name": "hall",
        "camera": "sim",
        "microphone": "sim",
        "sensors": [{"source": "sim", "channel": "smoke", "quantity": "smoke"}],
    }
    return site(folder, bundle, sources=[source], scenes=[scene], **rest)


def closed_port() -> int:
    """A port of this machine on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class AgentProcess:
    """`edge-agent run CONFIG`. A context manager: nothing is left running."""

    def __init__(self, config: Path, *arguments: str, **environment: str) -> None:
        self.folder = config.parent
        self.data = self.folder / "data"
        self._log = self.folder / f"log-{time.monotonic_ns()}.jsonl"
        self._out = self._log.with_suffix(".out")
        with self._log.open("wb") as log, self._out.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edge_agent", "run", str(config), *arguments],
                stdout=out,
                stderr=log,
                env=os.environ | environment,
            )

    def __enter__(self) -> AgentProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    @property
    def log(self) -> list[dict[str, Any]]:
        """Lines of the log so far; a line that is no JSON is a message of its own."""
        lines = self._log.read_text(errors="replace").splitlines()
        return [json.loads(line) if line.startswith("{") else {"message": line, "level": "raw"} for line in lines]

    @property
    def printed(self) -> str:
        return self._out.read_text()

    def said(self, text: str) -> list[str]:
        """Messages of the log that contain `text`."""
        return [str(entry["message"]) for entry in self.log if text in str(entry["message"])]

    def until(self, condition: Callable[[], Any], timeout_s: float = 40.0) -> Any:
        """Wait for something to come true while the process lives; its value."""
        deadline = time.monotonic() + timeout_s
        while not (value := condition()):
            assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.log[-5:]}"
            assert time.monotonic() < deadline, f"did not come true: {self.log[-5:]}"
            time.sleep(0.02)
        return value

    def until_said(self, text: str, timeout_s: float = 40.0) -> str:
        """Wait for a message of the log; the first one."""
        return str(self.until(lambda: self.said(text), timeout_s)[0])

    def get(self, path: str) -> str:
        """Ask the agent's loopback server."""
        line = self.until_said("metrics on http")
        with urllib.request.urlopen(line.split()[-1].rpartition("/")[0] + path, timeout=5) as answer:
            return str(answer.read().decode())

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 20.0) -> float:
        """Send a signal and wait for the end; seconds that it took."""
        began = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(timeout_s)
        return time.monotonic() - began


def messages(data: Path) -> list[Message]:
    """Everything in the outbox of a dead agent, in order. Opening it aborts what is open, as its own start would."""
    outbox = Outbox(data / "outbox.db", "box", SystemClock(), "after", max_bytes=512 << 20)
    try:
        return [msgspec.json.decode(row.payload, type=Message) for row in outbox.batch(0, 1_000_000, 1 << 40)]
    finally:
        outbox.close()


def phases(found: list[Message]) -> dict[str, list[str]]:
    """Event id → its phases in order, without updates."""
    seen: dict[str, list[str]] = {}
    for message in found:
        if isinstance(message.body, Event) and message.body.phase != "update":
            seen.setdefault(message.id, []).append(message.body.phase)
    return seen


def evidence(found: list[Message]) -> dict[str, list[Evidence]]:
    """Event id → what was promised of it."""
    seen: dict[str, list[Evidence]] = {}
    for message in found:
        if isinstance(message.body, Evidence):
            seen.setdefault(message.id, []).append(message.body)
    return seen
