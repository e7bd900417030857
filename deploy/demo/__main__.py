"""`make demo`: broker, cloud and agent on this machine, on a simulated site or on your own camera.

Everything lives in one temporary folder, keys and passwords included, and goes with it. Exit 0 after Ctrl-C or when
`--until` is reached, 1 if a part of the system ends by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from deploy.demo.broker import write_config

START_LIMIT_S = 60.0
STOP_LIMIT_S = 8.0
_PR_SET_PDEATHSIG = 1


class DemoError(Exception):
    """A part did not start or ended by itself; the message carries its last words."""


@dataclass
class Part:
    """One process of the demo and the file that its words go to."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def last_words(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])


@dataclass
class Demo:
    """The running parts, in the order in which they were started."""

    folder: Path
    parts: list[Part] = field(default_factory=list)

    def start(self, name: str, *command: str) -> Part:
        """Start a process of its own session, so that Ctrl-C reaches only this program, which stops them in order."""
        log = self.folder / f"{name}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                stdout=stream,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 (this program has one thread)
            )
        part = Part(name, process, log)
        self.parts.append(part)
        return part

    def check(self) -> None:
        """DemoError if a part has ended."""
        for part in self.parts:
            if part.process.poll() is not None:
                raise DemoError(f"{part.name} ended with {part.process.returncode}:\n{part.last_words()}")

    def stop(self) -> None:
        """Stop the parts, the last one started first."""
        for part in reversed(self.parts):
            part.process.terminate()
            try:
                part.process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                part.process.kill()
                part.process.wait()


def _die_with_parent() -> None:
    """Linux: the child is killed when this program is, so that even kill -9 leaves nothing behind."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def main() -> int:
    """Run the demo; the exit status."""
    args = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tectum-demo-") as name:
        demo = Demo(Path(name))
        try:
            _run(demo, args, started)
        except KeyboardInterrupt:
            print("\nstopping …", flush=True)
        except DemoError as error:
            print(f"\n{error}", file=sys.stderr)
            return 1
        finally:
            with contextlib.suppress(KeyboardInterrupt):
                demo.stop()
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--source", help="camera URL (rtsp, http) or video file; without it: the simulated site")
    parser.add_argument("--until", choices=["first-alert"], help="end by itself then")
    parser.add_argument("--seed", type=int, default=1, help="of the simulated site")
    parser.add_argument("--quiet-site", action="store_true", help="a simulated site where nothing happens")
    parser.add_argument("--port", type=int, default=0, help="of the dashboard; 0: any free one")
    return parser.parse_args()


def _run(demo: Demo, args: argparse.Namespace, started: float) -> None:
    cloud, broker_port = demo.folder / "cloud", _free_port()
    port = args.port or _free_port()
    _say("keys, accounts and a device identity of this demo alone")
    _tool("cloud_sync", "init", str(cloud), "--demo", f"--port={port}", f"--broker-port={broker_port}")
    config = ("--config", str(cloud / "cloud.yaml"))
    _tool("cloud_sync", "keys", "init", *config)
    _tool("cloud_sync", "enrol", "demo", "--site", "demo", "--out", str(demo.folder / "identity.yaml"), *config)
    users = json.loads((cloud / "broker-users.json").read_text())
    write_config(demo.folder / "broker.toml", broker_port, users)
    _say("broker, ingest, dashboard")
    demo.start("broker", "deploy.demo.broker", str(demo.folder / "broker.toml"))
    _wait_for_port(demo, broker_port)
    demo.start("ingest", "cloud_sync", "ingest", *config)
    demo.start("serve", "cloud_sync", "serve", *config)
    url = f"http://127.0.0.1:{port}"
    _wait_for_health(demo, url)
    _say("agent on " + (args.source or "the simulated site"))
    site = demo.folder / "site.yaml"
    site.write_text(yaml.safe_dump(_site(args, demo.folder)))
    demo.start("agent", "edge_agent", "run", str(site))
    link = _tool("cloud_sync", "user", "login-link", "admin", *config).strip().splitlines()[-1]
    print(f"\n  dashboard   {link}")
    print("              (the link works once; Ctrl-C stops everything and leaves nothing behind)\n", flush=True)
    _follow(demo, cloud, args.until, started)


def _site(args: argparse.Namespace, folder: Path) -> dict[str, object]:
    """The agent's configuration: one scene on one source."""
    if args.source:
        source: dict[str, object] = {"driver": "camera", "options": {"url": args.source, "allow_local": True}}
        if "://" not in args.source:
            path = Path(args.source).expanduser().resolve()
            if not path.is_file():
                raise DemoError(f"SOURCE: there is no file {path}; name a video file or an rtsp:// or http:// URL")
            source["options"] = {"url": str(path), "loop": True}
        sensors: list[dict[str, str]] = []
    else:
        episodes = "quiet" if args.quiet_site else "demo"
        source = {"driver": "synthetic", "options": {"seed": args.seed, "episodes": episodes}}
        quantities = ("temperature", "humidity", "smoke", "co2", "light", "vibration", "door")
        sensors = [{"source": "site", "channel": quantity, "quantity": quantity} for quantity in quantities]
    scene = {"name": "yard", "camera": "site", "microphone": "site", "sensors": sensors}
    return {
        "version": 1,
        "data_dir": str(folder / "device"),
        "identity": str(folder / "identity.yaml"),
        "sources": [{"name": "site"} | source],
        "scenes": [scene],
        "health": {"port": 0, "heartbeat_s": 5},
        "evidence": {"pre_s": 4, "post_s": 4, "max_clip_s": 25},
        "update": {"poll_s": 20},
    }


def _follow(demo: Demo, cloud: Path, until: str | None, started: float) -> None:
    """Print alerts as they arrive in the cloud's database, until told to stop."""
    told: set[str] = set()
    for alert in _alerts(demo, cloud):
        if alert["id"] in told:
            continue
        told.add(str(alert["id"]))
        after = time.monotonic() - started
        if len(told) == 1:
            print(f"first alert after {after:.0f} s", flush=True)
            if until == "first-alert":
                return
        shares = ", ".join(f"{name} {value:+.1f}" for name, value in alert["shares"].items() if name != "none")  # type: ignore[attr-defined]
        print(f"  {alert['label']:<10} score {alert['score']:.2f}   shares: {shares}", flush=True)


def _alerts(demo: Demo, cloud: Path) -> Iterator[dict[str, object]]:
    """Alerts of the demo as they change, read through the store like the dashboard does."""
    from cloud_sync import config, review
    from cloud_sync.accounts import Viewer
    from cloud_sync.store import open_store

    store = open_store(config.load(cloud / "cloud.yaml").database_url)
    everyone = Viewer(name="demo", role="viewer")
    change = 0
    try:
        while True:
            demo.check()
            with store.read() as session:
                rows = review.alerts(session, everyone, after_change=change)
            for row in rows:
                change = max(change, row.change)
                yield {"id": row.id, "label": row.label, "score": row.peak, "shares": row.shares}
            time.sleep(0.5)
    finally:
        store.close()


def _tool(module: str, *arguments: str) -> str:
    """Run one command of ours to its end; its output."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DemoError(f"{module} {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def _wait_for_port(demo: Demo, port: int) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        demo.check()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise DemoError(f"nothing listens on port {port} after {START_LIMIT_S:.0f} s:\n{demo.parts[-1].last_words()}")


def _wait_for_health(demo: Demo, url: str) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        demo.check()
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            urllib.request.urlopen(f"{url}/v1/health", timeout=2).close()
            return
        time.sleep(0.1)
    raise DemoError(f"the dashboard does not answer after {START_LIMIT_S:.0f} s:\n{demo.parts[-1].last_words()}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _say(text: str) -> None:
    print(f"  … {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
