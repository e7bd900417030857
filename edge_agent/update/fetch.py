"""Signed releases over HTTP: python-tuf decides what is trusted, this file only moves bytes.

tuf 7.0.1 has no resume and no fsync. Here every target is downloaded into a spool that survives a restart, with a
cap on its length, a floor on its speed and bounded retries; a 4xx answer is final. The trusted root is handed in as
bytes at every start, so that a torn metadata folder can only cost a download, never the trust.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import ssl
from collections.abc import Iterator
from pathlib import Path

import msgspec
import urllib3
from tuf.api.exceptions import (
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    LengthOrHashMismatchError,
    RepositoryError,
    SlowRetrievalError,
)
from tuf.ngclient import FetcherInterface, Updater

from edge_agent.clock import Clock
from edge_agent.contract.identity import Cloud
from edge_agent.errors import BundleError, DeliveryError
from edge_agent.update.rules import MAX_MANIFEST, Current

CHUNK = 64 * 1024
RETRIES = 3
TIMEOUT_S = 10.0
FLOOR_BYTES_S = 1024  #: slower than this over `FLOOR_WINDOW_S` is an endless-data attack or a dead line
FLOOR_WINDOW_S = 30.0


class Releases:
    """What the cloud has signed for one family of models. Every call starts from the embedded root."""

    def __init__(self, folder: Path, cloud: Cloud, root: bytes, family: str, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock
        self._cloud = cloud
        self._root = root
        self._family = family
        self._updater: Updater | None = None

    def current(self) -> Current | None:
        """The release that this family shall run, None if there is none yet.

        DeliveryError if the cloud is not there; BundleError if its metadata is refused (wrong signature, older than
        what was seen before, expired, mixed).
        """
        metadata = self._folder / "metadata"
        metadata.mkdir(parents=True, exist_ok=True)
        base = self._cloud.url.rstrip("/") + "/v1/tuf"
        try:
            self._updater = Updater(
                str(metadata),
                f"{base}/metadata/",
                str(self._folder / "targets"),
                f"{base}/targets/",
                fetcher=Fetcher(self._cloud, self._folder / "spool", self._clock),
                bootstrap=self._root,
            )
            self._updater.refresh()
            _sync_folder(metadata)
            data = self._target(f"bundles/{self._family}/current.json", limit=4096)
        except DownloadHTTPError as error:
            if error.status_code == 404:
                return None
            raise DeliveryError(f"{base} answered {error.status_code}; is this device enrolled there?") from error
        except DownloadError as error:
            raise DeliveryError(f"releases at {base} cannot be fetched now: {error}") from error
        except RepositoryError as error:
            raise BundleError(f"release metadata refused: {type(error).__name__}: {error}") from error
        if data is None:
            return None
        try:
            return msgspec.json.decode(data, type=Current)
        except msgspec.DecodeError as error:
            raise BundleError(f"current.json cannot be read: {error}") from error

    def manifest(self, bundle: str) -> bytes:
        """The signed manifest of `bundle`."""
        data = self._fetch(f"bundles/{self._family}/{bundle}/manifest.json", limit=MAX_MANIFEST)
        if data is None:
            raise BundleError(f"release {bundle} has no signed manifest")
        return data

    def blob(self, sha256: str, size: int, target: Path) -> None:
        """The signed file `sha256` at `target`; one that is there and right is kept."""
        if target.is_file() and target.stat().st_size == size and _digest(target) == sha256:
            return
        data = self._fetch(f"blobs/{sha256}", limit=size)
        if data is None:
            raise BundleError(f"release has no signed file {sha256}")
        partial = target.with_name(target.name + ".part")
        partial.write_bytes(data)
        os.replace(partial, target)

    def forget_spool(self) -> None:
        """Free what was downloaded in parts, once a bundle is installed or refused."""
        shutil.rmtree(self._folder / "spool", ignore_errors=True)
        shutil.rmtree(self._folder / "targets", ignore_errors=True)

    def _fetch(self, path: str, limit: int) -> bytes | None:
        try:
            return self._target(path, limit)
        except DownloadError as error:
            raise DeliveryError(f"{path} cannot be fetched now: {error}") from error
        except RepositoryError as error:
            raise BundleError(f"{path} refused: {type(error).__name__}: {error}") from error

    def _target(self, path: str, limit: int) -> bytes | None:
        assert self._updater is not None, "current() comes first"
        info = self._updater.get_targetinfo(path)
        if info is None:
            return None
        if info.length > limit:
            raise RepositoryError(f"{path} is signed with {info.length} bytes; at most {limit} are accepted")
        (self._folder / "targets").mkdir(exist_ok=True)
        try:
            return Path(self._updater.download_target(info)).read_bytes()
        except (LengthOrHashMismatchError, DownloadLengthMismatchError) as error:
            # Not the release is wrong but what came over the line; a spool of such bytes would be offered again.
            self.forget_spool()
            raise DownloadError(f"{path} came with other bytes than were signed: {error}") from error


class Fetcher(FetcherInterface):
    """HTTP for tuf: bearer token, resume by Range into a spool, retries, a floor on speed."""

    def __init__(self, cloud: Cloud, spool: Path, clock: Clock) -> None:
        self._clock = clock
        # A dozen small requests every few minutes: a connection each, so that none is left open in between.
        self._headers = {"Authorization": f"Bearer {cloud.token}", "Connection": "close"}
        context = ssl.create_default_context(cadata=cloud.ca_pem or None)
        self._pool = urllib3.PoolManager(ssl_context=context, timeout=urllib3.Timeout(TIMEOUT_S), retries=False)
        self._spool = spool

    def _fetch(self, url: str) -> Iterator[bytes]:
        if "/v1/tuf/targets/" not in url:
            return iter([self._small(url)])
        return self._resumed(url)

    def _small(self, url: str) -> bytes:
        """A metadata file: small, always whole."""
        response = self._open(url, self._headers)
        try:
            return b"".join(self._chunks(response))
        finally:
            response.close()

    def _resumed(self, url: str) -> Iterator[bytes]:
        """A target, in chunks: first what the spool has of it, then the rest."""
        self._spool.mkdir(parents=True, exist_ok=True)
        file = self._spool / hashlib.sha256(url.encode()).hexdigest()
        if file.exists():
            with file.open("rb") as stream:
                while chunk := stream.read(CHUNK):
                    yield chunk
        for attempt in range(RETRIES):
            try:
                yield from self._rest(url, file)
                return
            except (urllib3.exceptions.HTTPError, SlowRetrievalError) as error:
                if attempt == RETRIES - 1:
                    raise DownloadError(f"{url} broke off {RETRIES} times: {error}") from error

    def _rest(self, url: str, file: Path) -> Iterator[bytes]:
        have = file.stat().st_size if file.exists() else 0
        headers = self._headers | ({"Range": f"bytes={have}-"} if have else {})
        response = self._open(url, headers, final=(416,))
        if response.status == 416:  # nothing is left: the spool had it all
            response.close()
            return
        skip = have if response.status == 200 else 0  # a server without ranges sends it all again
        try:
            with file.open("ab") as spool:
                for chunk in self._chunks(response):
                    fresh = chunk[skip:]
                    skip = max(0, skip - len(chunk))
                    spool.write(fresh)
                    spool.flush()
                    yield fresh
        finally:
            response.close()

    def _open(self, url: str, headers: dict[str, str], final: tuple[int, ...] = ()) -> urllib3.BaseHTTPResponse:
        self._pool.clear()  # urllib3 would take up a connection that the server is just closing
        try:
            response = self._pool.request("GET", url, headers=headers, preload_content=False, redirect=False)
        except urllib3.exceptions.HTTPError as error:
            raise DownloadError(f"{url}: {error}") from error
        if response.status not in (200, 206, *final):
            response.close()
            raise DownloadHTTPError(f"{url} answered {response.status}", response.status)
        return response

    def _chunks(self, response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
        """The body, or SlowRetrievalError once it comes slower than the floor."""
        started, got = self._clock.monotonic_ns(), 0
        for chunk in response.stream(CHUNK):
            got += len(chunk)
            passed = (self._clock.monotonic_ns() - started) / 1e9
            if passed > FLOOR_WINDOW_S and got / passed < FLOOR_BYTES_S:
                raise SlowRetrievalError(f"{got} bytes in {passed:.0f} s")
            yield chunk


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        sha = hashlib.sha256()
        while chunk := stream.read(CHUNK):
            sha.update(chunk)
    return sha.hexdigest()


def _sync_folder(folder: Path) -> None:
    """fsync what tuf wrote: it replaces files atomically but never syncs them."""
    for path in [*folder.glob("*.json"), *folder.glob("root_history/*.json"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
