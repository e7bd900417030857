"""Evidence files → the cloud's blob store, each under its SHA-256, in parts that survive an interruption.

`HEAD {cloud}/v1/blobs/{sha256}` says how much is there (200 all, 308 `Upload-Offset` bytes, 404 nothing), `PUT` with
`Content-Range` brings the rest. The file itself belongs to the evidence store: it is read here, never removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import logging
import os
import random
import select
import ssl
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from edge_agent.clock import Clock
from edge_agent.contract.identity import Cloud, Identity, is_loopback
from edge_agent.errors import ConfigError, DeliveryError
from edge_agent.outbox import Outbox, Upload

_log = logging.getLogger(__name__)

#: What the cloud has against a file, its size say, it answers to the first part: small enough to be read by then.
#: After a large one the answer may be lost when the connection closes over bytes that nobody read.
FIRST_PART_BYTES = 16 * 1024
PART_BYTES = 1 << 20
TIMEOUT_S = 5.0  #: for connecting, and for one piece to go out
ANSWER_TIMEOUT_S = 60.0  #: the cloud hashes a whole file before it answers the last part
BACKOFF_CAP_S = 30.0
DENIED_CAP_S = 300.0  #: a token that is void does not become good by asking often
_PIECE_BYTES = 16 * 1024
_TURN_S = 0.2  #: how long a stop may go unnoticed
_MAX_STANDSTILLS = 3

_BROKEN = (OSError, http.client.HTTPException, urllib3.exceptions.HTTPError)


class Uploader:
    """Brings the files that the outbox lists to the cloud, one after another.

    ConfigError for a URL that is neither https nor http on loopback, or a CA that is none.
    """

    def __init__(self, identity: Identity, outbox: Outbox, clock: Clock) -> None:
        self._address = _Address.of(identity.cloud)
        self._outbox = outbox
        self._clock = clock
        self._counts: Counter[str] = Counter()
        self._next = 0  #: which of the waiting files is tried next: none may block the others
        self.error = ""  #: why the last attempt failed; empty after one that did not

    @property
    def counters(self) -> Mapping[str, int]:
        """Totals since start: stored, bytes, resumed, given_up, failures, denied."""
        return {name: self._counts[name] for name in ("stored", "bytes", "resumed", "given_up", "failures", "denied")}

    def run(self, stop: threading.Event) -> None:
        """Upload until told to stop; a file that is on its way then goes on from there the next time.

        StorageError if the outbox cannot be used.
        """
        failures = 0
        while not stop.is_set():
            waiting = self._outbox.uploads()
            if not waiting:
                stop.wait(1.0)
                continue
            job = waiting[self._next % len(waiting)]
            try:
                self._upload(job, stop)
                failures, self.error = 0, ""
            except _Stopped:
                return
            except DeliveryError as error:
                self._next += 1
                failures += 1
                self._counts["failures"] += 1
                self.error = str(error)
                _log.warning("upload of %s: %s", job.path.name, error)
                cap_s = DENIED_CAP_S if isinstance(error, _Denied) else BACKOFF_CAP_S
                stop.wait(random.uniform(0.0, min(cap_s, 0.5 * 2.0 ** min(failures, 10))))

    def _upload(self, job: Upload, stop: threading.Event) -> None:
        """One file, until it is stored or given up. DeliveryError: try again later; `_Stopped`: told to stop."""
        try:
            with job.path.open("rb") as file, _Line(self._address, self._clock, stop) as line:
                size = file.seek(0, os.SEEK_END)
                if size != job.size or not size:
                    raise _Final(f"the file has {size} bytes, {job.size} were promised")
                self._send(job, file, line)
        except OSError as error:  # of the file: what happens on the line is DeliveryError
            self._give_up(job, f"cannot read the file: {error}")
        except _Final as final:
            self._give_up(job, str(final))
        else:
            self._outbox.uploaded(job.sha256)
            self._counts["stored"] += 1

    def _send(self, job: Upload, file: IO[bytes], line: _Line) -> None:
        """Returns when the cloud has the whole file. `_Final` if it never will."""
        answer = line.ask(job.sha256)
        offset, part = 0, FIRST_PART_BYTES
        refused = standstills = 0
        while answer.status not in {200, 201}:
            before = offset
            if answer.status == 422:  # what lay there was broken, and is gone now; or the file itself is
                refused += 1
                if refused > 1 or not _is_named_for_its_hash(file, job.sha256, line):
                    raise _Final(f"the cloud refuses it: {answer}")
                offset = before = 0
            else:
                offset = self._held(answer, job.size)
            if offset > before:
                self._counts["resumed"] += not line.sent
                part = PART_BYTES if line.sent else FIRST_PART_BYTES
            standstills = 0 if offset > before else standstills + 1
            if standstills > _MAX_STANDSTILLS:
                raise DeliveryError(f"no progress at byte {offset} of {job.size}: {answer}")
            # Where all bytes lie there unchecked, the last one goes again: something must ask for the check.
            first = min(offset, job.size - 1)
            answer = line.send(job, file, first, min(part, job.size - first))
        self._counts["bytes"] += line.sent

    def _held(self, answer: _Answer, size: int) -> int:
        """How many bytes the cloud has, by its answer. DeliveryError for an answer that says something else."""
        if answer.status in {308, 404, 409} and answer.offset is not None and answer.offset <= size:
            return answer.offset
        if answer.status == 413:
            raise _Final(f"too large for the cloud: {answer}")
        if answer.status in {401, 403}:
            self._counts["denied"] += 1
            raise _Denied(f"the cloud does not know this device: {answer}. Was it revoked?")
        raise DeliveryError(f"the cloud answers {answer}")

    def _give_up(self, job: Upload, reason: str) -> None:
        _log.error("upload of %s is given up: %s", job.path, reason)
        self._outbox.give_up(job.sha256, reason)
        self._counts["given_up"] += 1


class _Stopped(Exception):
    """Told to stop in the middle of an upload."""


class _Denied(DeliveryError):
    """The token is void: wait long."""


class _Final(DeliveryError):
    """This file will never be taken."""


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    offset: int | None  #: of the header `Upload-Offset`
    words: str

    def __str__(self) -> str:
        return f"{self.status} {self.words}".strip()


@dataclass(frozen=True, slots=True)
class _Address:
    """Where the cloud is, and whom to trust there."""

    host: str
    port: int
    path: str
    token: str
    tls: ssl.SSLContext | None

    @staticmethod
    def of(cloud: Cloud) -> _Address:
        try:
            url = urllib3.util.parse_url(cloud.url)
        except urllib3.exceptions.LocationParseError as error:
            raise ConfigError(f"{cloud.url!r} is no URL: {error}", "cloud.url") from error
        host = (url.host or "").strip("[]")
        if url.scheme == "http" and is_loopback(host):
            return _Address(host, url.port or 80, (url.path or "").rstrip("/"), cloud.token, None)
        if url.scheme != "https" or not host:
            raise ConfigError(f"{cloud.url!r} must be https, or http on a loopback address", "cloud.url")
        try:
            tls = ssl.create_default_context(cadata=cloud.ca_pem or None)
        except (ssl.SSLError, ValueError) as error:
            raise ConfigError(f"no PEM certificate: {error}", "cloud.ca_pem") from error
        return _Address(host, url.port or 443, (url.path or "").rstrip("/"), cloud.token, tls)


class _Line:
    """A connection to the cloud for one file. Whatever breaks on it becomes DeliveryError."""

    def __init__(self, address: _Address, clock: Clock, stop: threading.Event) -> None:
        self._address = address
        self._clock = clock
        self._stop = stop
        self.sent = 0  #: bytes of the file that went out on it
        self._connection: HTTPConnection = (
            HTTPSConnection(address.host, address.port, timeout=TIMEOUT_S, ssl_context=address.tls)
            if address.tls
            else HTTPConnection(address.host, address.port, timeout=TIMEOUT_S)
        )

    def __enter__(self) -> _Line:
        return self

    def __exit__(self, *_error: object) -> None:
        self._connection.close()

    def ask(self, sha256: str) -> _Answer:
        """How much of a file is there."""
        return self._exchange("HEAD", sha256, {}, None)

    def send(self, job: Upload, file: IO[bytes], first: int, count: int) -> _Answer:
        """Bring `count` bytes from `first` on."""
        headers = {
            "Content-Range": f"bytes {first}-{first + count - 1}/{job.size}",
            "Content-Length": str(count),
            "Content-Type": "application/octet-stream",
        }
        return self._exchange("PUT", job.sha256, headers, self._pieces(file, first, count))

    def check_stop(self) -> None:
        """Raises `_Stopped` if it is time."""
        if self._stop.is_set():
            raise _Stopped

    def _exchange(self, method: str, sha256: str, headers: dict[str, str], body: Iterator[bytes] | None) -> _Answer:
        connection = self._connection
        where = f"{self._address.host}:{self._address.port}"
        try:
            if connection.sock is None:
                connection.connect()
            path = f"{self._address.path}/v1/blobs/{sha256}"
            headers = {"Authorization": f"Bearer {self._address.token}", **headers}
            with contextlib.suppress(BrokenPipeError):  # the cloud has said why before it closed
                connection.request(method, path, body=body, headers=headers)
            self._await_answer(connection)
            response = connection.getresponse()
            words = " ".join(response.data[:300].decode("utf-8", "replace").split())
        except _BROKEN as error:
            raise DeliveryError(f"{method} to {where}: {error}") from error
        offset = response.headers.get("Upload-Offset", "")
        return _Answer(response.status, int(offset) if offset.isascii() and offset.isdigit() else None, words)

    def _await_answer(self, connection: HTTPConnection) -> None:
        """Until the answer begins, or the deadline: hashing a long file takes the cloud its time."""
        deadline_ns = self._clock.monotonic_ns() + int(ANSWER_TIMEOUT_S * 1e9)
        ready = select.poll()
        ready.register(connection.sock, select.POLLIN)
        while not ready.poll(_TURN_S * 1000):
            self.check_stop()
            if self._clock.monotonic_ns() > deadline_ns:
                raise TimeoutError(f"no answer within {ANSWER_TIMEOUT_S:.0f} s")

    def _pieces(self, file: IO[bytes], first: int, count: int) -> Iterator[bytes]:
        file.seek(first)
        while count > 0:
            self.check_stop()
            piece = file.read(min(count, _PIECE_BYTES))
            if not piece:
                raise DeliveryError("the file became shorter while it was read")
            count -= len(piece)
            self.sent += len(piece)
            yield piece


def _is_named_for_its_hash(file: IO[bytes], sha256: str, line: _Line) -> bool:
    digest = hashlib.sha256()
    file.seek(0)
    while piece := file.read(PART_BYTES):
        line.check_stop()
        digest.update(piece)
    return digest.hexdigest() == sha256
