"""A small real world for updates: a signed repository, an HTTP server that can be told to misbehave, a device."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import numpy as np

from cloud_sync.release import FAMILY, Repository
from edge_agent.clock import SystemClock
from edge_agent.contract.event import Rollout
from edge_agent.contract.identity import Cloud
from edge_agent.contract.manifest import (
    GRAPHS,
    AudioSpec,
    FileRef,
    Manifest,
    SensorSpec,
    Thresholds,
    VisionSpec,
    bundle_hash,
)
from edge_agent.core.records import Model
from edge_agent.errors import BundleError
from edge_agent.update.fetch import Releases
from edge_agent.update.service import UpdateService
from edge_agent.update.slots import Slots

TOKEN = "device-token"


def make_bundle(
    folder: Path, counter: int, *, family: str = FAMILY, min_agent: str = "0.1.0", size: int = 2000
) -> Path:
    """A bundle whose graphs are random bytes: updates never look inside, the self-test does."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(counter)
    files = {}
    for name in (*(f"{graph}.onnx" for graph in GRAPHS), "golden.npz"):
        data = rng.bytes(size)
        (folder / name).write_bytes(data)
        files[name] = FileRef(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    manifest = Manifest(
        family=family,
        name=f"test-{counter}",
        counter=counter,
        created="2026-01-01T00:00:00Z",
        min_agent=min_agent,
        classes=("fire",),
        vision=VisionSpec(width=16, height=16),
        audio=AudioSpec(),
        sensors=SensorSpec(quantities=("temperature",), units=("°C",)),
        thresholds=Thresholds(on=0.5, off=0.4),
        files=files,
    )
    (folder / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    return folder


class IdleEngine:
    """Stands where an engine would; nothing is ever scored here."""

    def close(self) -> None:
        pass


def model_of(folder: Path) -> Model:
    """What `engine.load` gives, without an engine; BundleError if a file is not what the manifest says."""
    data = (folder / "manifest.json").read_bytes()
    manifest = msgspec.json.decode(data, type=Manifest)
    for name, ref in manifest.files.items():
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != ref.sha256:
            raise BundleError(f"{name} differs from the manifest")
    return Model(manifest=manifest, hash=bundle_hash(data), engine=IdleEngine())  # type: ignore[arg-type]


class Server:
    """Serves a repository under /v1/tuf with a bearer token; `spoil` may change, cut or refuse an answer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spoil: Callable[[str, bytes], bytes | int] = lambda path, data: data
        self.cut_after: int | None = None  #: send so many bytes of a target, then close the line
        self.requests: list[tuple[str, str | None]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # connections stay open, as they do at the real cloud

            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.removeprefix("/v1/tuf/")
        wanted = request.headers.get("Range")
        self.requests.append((path, wanted))
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._refuse(request, 401)
            return
        file = self.folder / path
        result = self.spoil(path, file.read_bytes() if file.is_file() else b"")
        if isinstance(result, int) or not file.is_file():
            self._refuse(request, result if isinstance(result, int) else 404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if start and start >= len(result):
            self._refuse(request, 416)
            return
        body = result[start:]
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if self.cut_after is not None and path.startswith("targets/blobs"):
            body, self.cut_after = body[: self.cut_after], None
            request.close_connection = True
        request.wfile.write(body)

    @staticmethod
    def _refuse(request: BaseHTTPRequestHandler, status: int) -> None:
        body = b'{"detail": "no"}'
        request.send_response(status)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """A running server of the repository in `folder`."""
    server = Server(folder)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        thread.join()
        server.http.server_close()


class Device:
    """A device with slots on disk; `restart` is a power cycle."""

    def __init__(self, folder: Path, shipped: Path, url: str, root: bytes) -> None:
        self.folder, self.shipped, self.url, self.root = folder, shipped, url, root
        self.reports: list[Rollout] = []
        self.swapped: list[str] = []
        self.prove: Callable[[Path], Model] = model_of
        self.swap_error: Exception | None = None
        self.silent = False  #: no source gives anything, so no window is ever scored
        self.restart()

    def restart(self) -> None:
        """Start as the agent does: what was committed runs, unless it is damaged."""
        if hasattr(self, "slots"):
            self.slots.close()
        self.slots = Slots(self.folder / "slots")
        self.running = self.boot()
        self.releases = Releases(
            self.folder / "tuf", Cloud(url=self.url, token=TOKEN), self.root, FAMILY, SystemClock()
        )
        self.service = UpdateService(
            self.slots,
            self.releases,
            self.running,
            agent="0.1.0",
            poll_s=60,
            prove=lambda folder: self.prove(folder),  # noqa: PLW0108 (tests change it later)
            swap=self._swap,
            report=self.reports.append,
        )

    def boot(self) -> Model:
        while running := self.slots.row().running:
            try:
                return model_of(self.slots.path(running))
            except (BundleError, OSError) as error:
                self.slots.fall_back(str(error))
        return model_of(self.shipped)

    def _swap(self, model: Model) -> Future[None]:
        future: Future[None] = Future()
        if self.silent:
            return future
        if self.swap_error and model.hash != self.running.hash:
            future.set_exception(self.swap_error)
        else:
            self.swapped.append(model.hash)
            self.running = model
            future.set_result(None)
        return future

    def states(self) -> list[str]:
        return [report.state for report in self.reports]


def spoil_json(data: bytes, change: Callable[[dict[str, object]], None]) -> bytes:
    """`data` with its signed part changed, signatures left as they were."""
    tree = json.loads(data)
    change(tree["signed"])
    return json.dumps(tree).encode()


__all__ = ["FAMILY", "Device", "Repository", "Server", "make_bundle", "model_of", "serving", "spoil_json"]
