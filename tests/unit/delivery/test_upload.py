"""The uploader against a blob store that keeps the seam and can be told to misbehave."""

from __future__ import annotations

import hashlib
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest

from edge_agent.clock import SystemClock
from edge_agent.contract.identity import Cloud
from edge_agent.errors import ConfigError
from edge_agent.outbox import Outbox, uuid7
from edge_agent.upload import Uploader
from tests.parts.certificates import self_signed
from tests.parts.delivery import eventually, evidence, identity, outbox, running

#: (status, Upload-Offset), or None to go on as usual
Misbehaviour = Callable[["Store", str, str], "tuple[int, int | None] | None"]


@dataclass
class Store:
    """Blobs in memory. `misbehave(store, method, sha256)` may answer in its place."""

    port: int = 0
    held: dict[str, bytearray] = field(default_factory=dict)
    whole: set[str] = field(default_factory=set)
    asked: list[tuple[str, str, str]] = field(default_factory=list)  #: method, sha256, Content-Range
    misbehave: Misbehaviour = lambda store, method, sha256: None
    cut_after: int | None = None  #: close the connection once so many bytes of a part were read

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        sha256 = handler.path.rpartition("/")[2]
        content_range = handler.headers.get("Content-Range", "")
        self.asked.append((handler.command, sha256, content_range))
        if handler.headers["Authorization"] != "Bearer token":
            self.say(handler, 401, None)
        elif (answer := self.misbehave(self, handler.command, sha256)) is not None:
            handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
            self.say(handler, *answer)
        elif handler.command == "HEAD":
            size = len(self.held.get(sha256, b""))
            self.say(handler, 200 if sha256 in self.whole else 308 if size else 404, size)
        else:
            self.take(handler, sha256, content_range)

    def take(self, handler: BaseHTTPRequestHandler, sha256: str, content_range: str) -> None:
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", content_range)
        assert found, content_range
        first, last, total = map(int, found.groups())
        held = self.held.setdefault(sha256, bytearray())
        if first != len(held) < total:
            self.say(handler, 409, len(held))
            return
        wanted = last - first + 1
        if self.cut_after is not None:
            held += handler.rfile.read(min(wanted, self.cut_after))
            self.cut_after = None
            handler.close_connection = True
            return
        held += handler.rfile.read(wanted)
        del held[total:]
        if len(held) < total:
            self.say(handler, 308, len(held))
        elif hashlib.sha256(held).hexdigest() == sha256:
            self.whole.add(sha256)
            self.say(handler, 201, total)
        else:
            del self.held[sha256]
            self.say(handler, 422, 0)

    def say(self, handler: BaseHTTPRequestHandler, status: int, offset: int | None) -> None:
        handler.send_response(status)
        if offset is not None:
            handler.send_header("Upload-Offset", str(offset))
        handler.send_header("Content-Length", "0")
        handler.end_headers()


@contextmanager
def serving(store: Store, tls: tuple[Path, Path] | None = None) -> Iterator[Store]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            store.answer(self)

        def do_PUT(self) -> None:
            store.answer(self)

        def log_message(self, *_args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", store.port), Handler)
    server.daemon_threads = False
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    store.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_agent.upload.BACKOFF_CAP_S", 0.1)
    monkeypatch.setattr("edge_agent.upload.DENIED_CAP_S", 0.1)


@pytest.fixture
def store() -> Iterator[Store]:
    with serving(Store()) as running_store:
        yield running_store


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Outbox]:
    opened = outbox(tmp_path / "outbox.db")
    yield opened
    opened.close()


class Files:
    """Files on the disk, promised to the cloud."""

    def __init__(self, folder: Path, box: Outbox) -> None:
        self._folder = folder
        self._box = box

    def promise(self, content: bytes, *, size: int | None = None) -> str:
        digest = hashlib.sha256(content).hexdigest()
        path = self._folder / f"{digest[:8]}.bin"
        path.write_bytes(content)
        self._box.attach(uuid7(0), evidence(digest, len(content) if size is None else size), path)
        return digest

    def path(self, digest: str) -> Path:
        return self._folder / f"{digest[:8]}.bin"


@pytest.fixture
def files(tmp_path: Path, box: Outbox) -> Files:
    return Files(tmp_path, box)


def uploader(store: Store, box: Outbox) -> Uploader:
    return Uploader(identity(1, url=f"http://127.0.0.1:{store.port}"), box, SystemClock())


def done(box: Outbox) -> bool:
    return not box.uploads()


LARGE = bytes(range(256)) * 12_000  # 3 MB


def test_files_arrive_whole_and_their_uploads_are_forgotten(store: Store, box: Outbox, files: Files) -> None:
    digests = {files.promise(content) for content in (b"one", b"two" * 10_000, LARGE)}
    service = uploader(store, box)
    with running(service):
        eventually(lambda: done(box))
    assert store.whole == digests
    assert bytes(store.held[hashlib.sha256(LARGE).hexdigest()]) == LARGE
    assert all(files.path(digest).exists() for digest in digests)
    assert service.counters == {
        "stored": 3, "bytes": 3 + 30_000 + len(LARGE), "resumed": 0, "given_up": 0, "failures": 0, "denied": 0,
    }  # fmt: skip


def test_a_file_that_is_there_already_is_not_sent(store: Store, box: Outbox, files: Files) -> None:
    digest = files.promise(b"known")
    store.whole.add(digest)
    with running(uploader(store, box)):
        eventually(lambda: done(box))
    assert [method for method, _, _ in store.asked] == ["HEAD"]


def test_a_part_that_is_there_is_not_sent_again(store: Store, box: Outbox, files: Files) -> None:
    digest = files.promise(LARGE)
    store.held[digest] = bytearray(LARGE[:2_000_000])
    service = uploader(store, box)
    with running(service):
        eventually(lambda: done(box))
    assert digest in store.whole
    assert service.counters["bytes"] == len(LARGE) - 2_000_000
    assert service.counters["resumed"] == 1


def test_all_bytes_that_nobody_checked_are_checked(store: Store, box: Outbox, files: Files) -> None:
    digest = files.promise(LARGE)
    store.held[digest] = bytearray(LARGE)  # killed between the last byte and the check
    with running(uploader(store, box)):
        eventually(lambda: done(box))
    assert digest in store.whole


@pytest.mark.parametrize("after", [0, 1, 10_000, 700_000])
def test_a_connection_that_breaks_costs_nothing_that_had_arrived(
    store: Store, box: Outbox, files: Files, after: int
) -> None:
    digest = files.promise(LARGE)

    def then_cut(store: Store, method: str, sha256: str) -> None:
        if method == "PUT" and len(store.held.get(sha256, b"")) > 20_000 and not cut:
            cut.append(True)
            store.cut_after = after

    cut: list[bool] = []
    store.misbehave = then_cut
    service = uploader(store, box)
    with running(service):
        eventually(lambda: done(box))
    assert digest in store.whole
    assert service.counters["failures"] == 1
    assert len(LARGE) <= sum(_length(content_range) for _, _, content_range in store.asked) <= len(LARGE) + (1 << 20)


def test_a_cloud_that_is_elsewhere_says_from_where_to_continue(store: Store, box: Outbox, files: Files) -> None:
    digest = files.promise(LARGE)

    def behind(store: Store, method: str, sha256: str) -> tuple[int, int] | None:
        if method == "PUT" and len(store.held.get(sha256, b"")) > 1_500_000 and not lost:
            lost.append(True)
            del store.held[sha256][500_000:]
            return 409, 500_000
        return None

    lost: list[bool] = []
    store.misbehave = behind
    with running(uploader(store, box)):
        eventually(lambda: done(box))
    assert digest in store.whole


def test_what_is_too_large_is_given_up_with_the_reason_and_others_go_on(
    store: Store, box: Outbox, files: Files
) -> None:
    large, small = files.promise(LARGE), files.promise(b"small")
    store.misbehave = lambda store, method, sha256: (413, None) if method == "PUT" and sha256 == large else None
    service = uploader(store, box)
    with running(service):
        eventually(lambda: done(box))
    assert store.whole == {small}
    ((digest, reason),) = box.given_up()
    assert digest == large
    assert "413" in reason
    assert service.counters["given_up"] == 1
    assert files.path(large).exists()


def test_a_file_that_changed_is_given_up(store: Store, box: Outbox, files: Files) -> None:
    digest = files.promise(b"as it was")
    files.path(digest).write_bytes(b"other now")
    gone, shorter = files.promise(b"gone"), files.promise(b"shorter", size=99)
    files.path(gone).unlink()
    with running(uploader(store, box)):
        eventually(lambda: done(box))
    assert store.whole == set()
    reasons = dict(box.given_up())
    assert "422" in reasons[digest]
    assert "No such file" in reasons[gone]
    assert "99 were promised" in reasons[shorter]


def test_parts_that_rotted_in_the_cloud_are_sent_anew(store: Store, box: Outbox, files: Files) -> None:
    digest = files.promise(LARGE)
    store.held[digest] = bytearray(b"\0" * 1_000_000)
    with running(uploader(store, box)):
        eventually(lambda: done(box))
    assert digest in store.whole
    assert box.given_up() == []


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503, 507])
def test_what_may_pass_is_waited_for_and_told(store: Store, box: Outbox, files: Files, status: int) -> None:
    digest = files.promise(b"patience")
    store.misbehave = lambda store, method, sha256: (status, None)
    service = uploader(store, box)
    with running(service):
        eventually(lambda: service.counters["failures"] >= 2)
        assert str(status) in service.error
        assert not done(box)
        store.misbehave = lambda store, method, sha256: None
        eventually(lambda: done(box))
    assert store.whole == {digest}
    assert (service.counters["denied"] > 0) == (status in {401, 403})


def test_a_file_that_the_cloud_stumbles_over_does_not_hold_up_the_others(
    store: Store, box: Outbox, files: Files
) -> None:
    bad, good = files.promise(b"bad"), files.promise(b"good")
    store.misbehave = lambda store, method, sha256: (500, None) if sha256 == bad else None
    with running(uploader(store, box)):
        eventually(lambda: good in store.whole)
    assert [upload.sha256 for upload in box.uploads()] == [bad]


def test_a_cloud_that_makes_no_progress_is_left_alone_for_a_while(store: Store, box: Outbox, files: Files) -> None:
    files.promise(b"stuck")
    store.misbehave = lambda store, method, sha256: (409, 0)
    service = uploader(store, box)
    with running(service):
        eventually(lambda: service.counters["failures"] >= 2)
    assert "no progress" in service.error


def test_a_stop_comes_through_while_the_cloud_thinks(store: Store, box: Outbox, files: Files) -> None:
    files.promise(b"slow")
    thinking, enough = threading.Event(), threading.Event()

    def think(store: Store, method: str, sha256: str) -> None:
        if method == "PUT":
            thinking.set()
            enough.wait(30)

    store.misbehave = think
    with running(uploader(store, box)):
        assert thinking.wait(10)
        before = time.monotonic()
    assert time.monotonic() - before < 5
    enough.set()
    assert not done(box)


def test_a_cloud_that_is_not_there_is_no_failure(box: Outbox, files: Files) -> None:
    with serving(Store()) as gone:
        pass
    digest = files.promise(b"later")
    service = uploader(gone, box)
    with running(service):
        eventually(lambda: service.counters["failures"] >= 2)
        with serving(gone):
            eventually(lambda: digest in gone.whole)
            eventually(lambda: done(box))


class TestTransport:
    @pytest.mark.parametrize(
        "url", ["http://10.0.0.1", "http://cloud.example", "ftp://127.0.0.1", "nonsense", "https://"]
    )
    def test_only_https_leaves_the_machine(self, box: Outbox, url: str) -> None:
        with pytest.raises(ConfigError, match=r"cloud\.url"):
            Uploader(identity(1, url=url), box, SystemClock())

    def test_a_ca_that_is_none_is_told(self, box: Outbox) -> None:
        device = msgspec.structs.replace(identity(1), cloud=Cloud(url="https://c", token="t", ca_pem="junk"))
        with pytest.raises(ConfigError, match=r"cloud\.ca_pem"):
            Uploader(device, box, SystemClock())

    def test_a_base_path_is_kept(self, store: Store, box: Outbox, files: Files) -> None:
        digest = files.promise(b"below")
        service = Uploader(identity(1, url=f"http://127.0.0.1:{store.port}/tectum/"), box, SystemClock())
        with running(service):
            eventually(lambda: digest in store.whole)

    def test_the_token_goes_to_a_cloud_that_proves_itself_alone(
        self, tmp_path: Path, box: Outbox, files: Files
    ) -> None:
        digest = files.promise(b"secret")
        ours, other = self_signed(tmp_path / "ours"), self_signed(tmp_path / "other")
        with serving(Store(), tls=ours[1:]) as store:
            url = f"https://127.0.0.1:{store.port}"
            wrong = Uploader(identity(1, url=url, ca_pem=other[0].read_text()), box, SystemClock())
            with running(wrong):
                eventually(lambda: wrong.counters["failures"] >= 2)
            assert "certificate verify failed" in wrong.error
            assert store.asked == []
            with running(Uploader(identity(1, url=url, ca_pem=ours[0].read_text()), box, SystemClock())):
                eventually(lambda: digest in store.whole)


def _length(content_range: str) -> int:
    found = re.fullmatch(r"bytes (\d+)-(\d+)/\d+", content_range)
    return int(found[2]) - int(found[1]) + 1 if found else 0
