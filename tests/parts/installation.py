"""A whole installation as a site has it: a real Mosquitto with dynamic security, ingest, serve, and agents.

Every program is its own process, started by the command that the README names, and can be killed at any moment.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
import yaml
from sqlalchemy.orm import Session

from cloud_sync.store import Store, open_store
from tests.parts.mosquitto import Mosquitto, free_port, mosquitto

T = TypeVar("T")


def wait_for(what: str, look: Callable[[], T | None], within_s: float = 60.0, every_s: float = 0.1) -> T:
    """The first answer of `look` that is true, or AssertionError that names `what` was waited for."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        time.sleep(every_s)
    raise AssertionError(f"waited {within_s:.0f} s for {what}")


@dataclass
class Program:
    """A process that can be killed and started again with the same command; all its words go to one file."""

    name: str
    command: list[str]
    log: Path
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=os.environ | self.environment,
            )

    def kill(self) -> None:
        """SIGKILL: no last words."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self, within_s: float = 10.0) -> int:
        """SIGTERM, and the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"{self.name} did not stop within {within_s} s:\n{self.words()[-3000:]}") from None

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def words(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""


@dataclass
class Installation:
    """Broker, ingest and serve of one site below `folder`; `agent` adds a device."""

    folder: Path
    port: int
    broker: Mosquitto
    ingest: Program
    serve: Program
    agents: dict[str, Program] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def config(self) -> Path:
        return self.folder / "cloud" / "cloud.yaml"

    def cloud_sync(self, *arguments: str, within_s: float = 120) -> str:
        """Run one `cloud-sync` command to its end; its standard output."""
        return run("cloud_sync", *arguments, "--config", str(self.config), within_s=within_s)

    def agent(self, name: str, config: dict[str, Any]) -> Program:
        """Enrol `name`, write its configuration and return its agent, not started yet."""
        identity = self.folder / f"{name}.identity.yaml"
        self.cloud_sync("enrol", name, "--site", "home", "--out", str(identity))
        path = self.folder / f"{name}.yaml"
        whole = {"version": 1, "data_dir": str(self.folder / name), "identity": str(identity), "health": {"port": 0}}
        path.write_text(yaml.safe_dump(whole | config))
        command = [sys.executable, "-m", "edge_agent", "run", str(path)]
        self.agents[name] = Program(name, command, self.folder / f"{name}.log")
        return self.agents[name]

    def store(self) -> Store:
        """The cloud's database, to look at what is in it."""
        return open_store(f"sqlite:///{self.folder}/cloud/data/cloud.db")

    def ask(self, query: Callable[[Session], T]) -> T:
        """One read of the database."""
        store = self.store()
        try:
            with store.read() as session:
                return query(session)
        finally:
            store.close()

    def count(self, table: type[Any]) -> int:
        """Rows of a table."""
        return self.ask(
            lambda session: int(session.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())
        )

    def wait_until_serving(self) -> None:
        """Until the dashboard answers."""
        wait_for("the dashboard", self._healthy)

    def told(self) -> str:
        """The last words of every program, for a failed test."""
        programs = [self.ingest, self.serve, *self.agents.values()]
        return "\n".join(f"== {program.name}\n{program.words()[-2500:]}" for program in programs)

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/v1/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@contextmanager
def installation(folder: Path, broker_lines: tuple[str, ...] = ()) -> Iterator[Installation]:
    """A running installation without agents; everything in it is stopped at the end.

    broker_lines  further lines of mosquitto.conf; without, the broker keeps its memory in memory alone
    """
    port, broker_port = free_port(), free_port()
    cloud = folder / "cloud"
    run("cloud_sync", "init", str(cloud), "--port", str(port), "--broker-port", str(broker_port))
    config = cloud / "cloud.yaml"
    run("cloud_sync", "keys", "init", "--config", str(config))
    dynsec = cloud / "mosquitto" / "dynamic-security.json"
    with mosquitto(
        folder / "broker", dynsec=dynsec, port=broker_port, extra=("max_inflight_messages 1024", *broker_lines)
    ) as broker:
        programs = {
            name: Program(
                name, [sys.executable, "-m", "cloud_sync", name, "--config", str(config)], folder / f"{name}.log"
            )
            for name in ("ingest", "serve")
        }
        site = Installation(folder, port, broker, programs["ingest"], programs["serve"])
        try:
            site.ingest.start()
            site.serve.start()
            site.wait_until_serving()
            yield site
        except BaseException:
            print(site.told())
            raise
        finally:
            for program in (*site.agents.values(), site.ingest, site.serve):
                if program.running:
                    program.kill()


def run(module: str, *arguments: str, within_s: float = 120) -> str:
    """`python -m module arguments`, to its end; AssertionError with its words if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, timeout=within_s, check=False
    )
    assert done.returncode == 0, (
        f"{module} {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    )
    return done.stdout


def json_lines(text: str) -> list[dict[str, Any]]:
    """The JSON objects among the lines of a log."""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]
