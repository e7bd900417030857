"""A real Mosquitto: own port, own folder, can be killed, restarted and made to forget."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def missing() -> str | None:
    """None if Mosquitto can be run here, else what to do."""
    found = shutil.which("mosquitto", path=_PATH) and shutil.which("mosquitto_passwd", path=_PATH)
    return None if found else "not installed: apt install mosquitto"


def free_port() -> int:
    """A TCP port of loopback that nothing listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Mosquitto:
    """A broker on 127.0.0.1:`port`. `start`, `stop` (SIGTERM), `kill` (SIGKILL), `restart` on the same port."""

    folder: Path
    port: int
    lines: tuple[str, ...]
    host: str = "127.0.0.1"
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def log(self) -> str:
        """What the broker said so far."""
        return (self.folder / "mosquitto.log").read_text(encoding="utf-8", errors="replace")

    @property
    def pid(self) -> int:
        """Of the running broker."""
        assert self._process is not None, "the broker is not running"
        return self._process.pid

    def start(self) -> None:
        """Run it and wait until it takes connections."""
        assert self._process is None, "the broker runs already"
        config = self.folder / "mosquitto.conf"
        config.write_text("\n".join((*self.lines, "")), encoding="utf-8")
        program = shutil.which("mosquitto", path=_PATH)
        assert program, missing()
        with (self.folder / "mosquitto.log").open("ab") as log:
            self._process = subprocess.Popen(
                [program, "-c", str(config)], stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 10
        while not _listens(self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"mosquitto did not start: {self.log[-2000:]}")
            time.sleep(0.02)

    def stop(self) -> None:
        """SIGTERM: it writes its memory to disk if it has persistence."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: whatever it had not written is lost."""
        self._end(signal.SIGKILL)

    def restart(self, *, kill: bool = False) -> None:
        """Down and up again on the same port."""
        self._end(signal.SIGKILL if kill else signal.SIGTERM)
        self.start()

    def forget(self) -> None:
        """Remove what it remembers of sessions and retained messages; only while it is down."""
        assert self._process is None, "stop the broker first"
        (self.folder / "mosquitto.db").unlink(missing_ok=True)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def mosquitto(
    folder: Path,
    *,
    users: Mapping[str, str] | None = None,
    acl: str | None = None,
    dynsec: Path | None = None,
    persistence: bool = False,
    tls: tuple[Path, Path, Path] | None = None,
    port: int | None = None,
    extra: tuple[str, ...] = (),
) -> Iterator[Mosquitto]:
    """A running broker; gone at the end, however often it was restarted.

    users        name → password; without, anybody may connect (unless `dynsec`)
    acl          text of an acl_file
    dynsec       a dynamic-security.json for the plugin (copied in, so that the broker may write it)
    persistence  sessions and retained messages survive `stop` (and `kill`, as far as they were written)
    tls          (ca, certificate, key): the port speaks TLS
    extra        further lines of mosquitto.conf
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    lines = ["per_listener_settings false", *_access(folder, users, acl, dynsec)]
    if persistence:
        lines += ["persistence true", f"persistence_location {folder}/", "autosave_interval 1"]
    if os.geteuid() == 0:
        lines.append("user root")  # otherwise it drops to a user that may not write into the test's folder
    lines += [f"listener {port} 127.0.0.1"]
    if tls:
        lines += [f"cafile {tls[0]}", f"certfile {tls[1]}", f"keyfile {tls[2]}"]
    broker = Mosquitto(folder, port, (*lines, *extra))
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


def _access(folder: Path, users: Mapping[str, str] | None, acl: str | None, dynsec: Path | None) -> list[str]:
    lines = [f"allow_anonymous {'false' if users or dynsec else 'true'}"]
    if users:
        passwords = folder / "passwords"
        passwords.touch(mode=0o600)
        program = shutil.which("mosquitto_passwd", path=_PATH)
        assert program, missing()
        for name, password in users.items():
            subprocess.run([program, "-b", str(passwords), name, password], check=True, capture_output=True)
        lines.append(f"password_file {passwords}")
    if acl is not None:
        (folder / "acl").write_text(acl, encoding="utf-8")
        lines.append(f"acl_file {folder / 'acl'}")
    if dynsec is not None:
        own = folder / "dynamic-security.json"
        shutil.copyfile(dynsec, own)
        lines += [f"plugin {_plugin()}", f"plugin_opt_config_file {own}"]
    return lines


def _plugin() -> Path:
    found = sorted(Path("/usr/lib").glob("**/mosquitto_dynamic_security.so"))
    assert found, "mosquitto_dynamic_security.so is not here: apt install mosquitto"
    return found[0]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0
