"""A real PostgreSQL: own folder, Unix socket alone, run by a user without rights."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_USERS = ("postgres", "nobody")  # who runs it where the tests are root: the server refuses root


class Postgres:
    """A running server with one database, which `database()` empties."""

    def __init__(self, folder: Path, programs: Path, user: str | None) -> None:
        self._folder = folder
        self._programs = programs
        self._user = user

    def database(self) -> str:
        """URL of the database, with nothing in it.

        Not a new database for every test: each is 7 MB on disk, and a hundred of them kept the server's last sync
        busy for a minute.
        """
        empty = "DROP SCHEMA public CASCADE; CREATE SCHEMA public"
        self.run("psql", "-q", "-h", str(self._folder), "-U", "tectum", "-d", "postgres", "-c", empty)
        return f"postgresql://tectum@/postgres?host={self._folder}"

    def stop(self) -> None:
        """Shut it down; connections are cut off.

        Not as a crash: replaying what a hundred tests made and dropped took 40 s.
        """
        self.run("pg_ctl", "-D", str(self._folder / "data"), "-m", "fast", "-w", "stop")

    def start(self) -> None:
        """Run it and wait until it takes connections."""
        options = f"-c listen_addresses='' -c unix_socket_directories={self._folder} -c fsync=off"
        log = str(self._folder / "log")
        self.run("pg_ctl", "-D", str(self._folder / "data"), "-l", log, "-w", "-o", options, "start")

    def run(self, program: str, *arguments: str) -> None:
        """Run one of its programs as its user."""
        command = [str(self._programs / program), *arguments]
        done = subprocess.run(
            command, user=self._user, group=None, cwd=self._folder, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{program} ended with {done.returncode}: {done.stderr.decode()}"


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A server that is gone, with its folder, at the end."""
    programs = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    user = _user() if os.geteuid() == 0 else None
    # Not below pytest's own folder: others may not enter that one.
    folder = Path(tempfile.mkdtemp(prefix="tectum-pg-"))
    try:
        if user is not None:
            shutil.chown(folder, user)
        server = Postgres(folder, programs, user)
        server.run(
            "initdb", "-D", str(folder / "data"), "-U", "tectum", "-A", "trust", "-N", "--locale=C", "-E", "UTF8"
        )
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _user() -> str:
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in _USERS if name in known)
