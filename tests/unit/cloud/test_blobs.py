"""Evidence files: parts, hashes, owners, limits."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from cloud_sync import blobs as module
from cloud_sync.blobs import Blobs, Held, Upload
from cloud_sync.config import BlobConfig, IngestConfig
from cloud_sync.errors import BlobRefused, NotFound
from cloud_sync.ingest import Intake, read
from cloud_sync.store import Store
from cloud_sync.store.tables import Alert, Blob, EvidenceFile
from tests.parts.cloud import add_devices, delivery, evidence, message

DATA = bytes(range(256)) * 40
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def store(any_store: Store) -> Store:
    add_devices(any_store, "cam", "other")
    return any_store


@pytest.fixture
def blobs(tmp_path: Path, store: Store) -> Blobs:
    return Blobs(tmp_path / "blobs", store, BlobConfig(file_mb=1, device_mb=3, early_mb=2, free_mb=0))


def put(blobs: Blobs, data: bytes, device: str = "cam", name: str | None = None, first: int = 0) -> Held:
    sha256 = name or hashlib.sha256(data).hexdigest()
    upload = blobs.begin(device, sha256, first, len(data))
    if upload is None:
        return Held(len(data), True)
    try:
        upload.write(data[first:])
        return upload.finish()
    finally:
        upload.close()


def begin(blobs: Blobs, device: str = "cam", first: int = 0) -> Upload:
    upload = blobs.begin(device, SHA, first, len(DATA))
    assert upload is not None
    return upload


def refused(call: Callable[[], object]) -> BlobRefused:
    with pytest.raises(BlobRefused) as caught:
        call()
    return caught.value


def stored(store: Store) -> list[bool]:
    with store.read() as session:
        return list(session.execute(sa.select(EvidenceFile.stored)).scalars())


def promise(store: Store, device: str = "cam", size: int = len(DATA), seq: int = 1) -> None:
    Intake(store, IngestConfig()).take(
        read(delivery(message(seq, evidence(SHA, size), device=device), device=device))
    )


def test_a_file_is_stored_under_its_hash(blobs: Blobs, tmp_path: Path) -> None:
    assert put(blobs, DATA) == Held(len(DATA), True)
    assert blobs.path(SHA).read_bytes() == DATA
    assert blobs.path(SHA) == tmp_path / "blobs" / SHA[:2] / SHA[2:4] / SHA
    assert blobs.held("cam", SHA) == Held(len(DATA), True)
    assert put(blobs, DATA) == Held(len(DATA), True), "again is once"


def test_it_is_continued_from_where_it_broke_off(blobs: Blobs) -> None:
    upload = begin(blobs)
    upload.write(DATA[:1000])
    assert upload.finish() == Held(1000, False)
    upload.close()
    assert blobs.held("cam", SHA) == Held(1000, False)
    assert refused(lambda: blobs.begin("cam", SHA, 0, len(DATA))).offset == 1000
    assert refused(lambda: blobs.begin("cam", SHA, 2000, len(DATA))).status == 409
    assert put(blobs, DATA, first=1000) == Held(len(DATA), True)


def test_whole_but_never_checked_is_checked_when_it_is_asked_for(blobs: Blobs) -> None:
    upload = begin(blobs)
    upload.write(DATA)  # and the process dies here
    upload.close()
    assert blobs.held("cam", SHA) == Held(len(DATA), False)
    assert blobs.begin("cam", SHA, 0, len(DATA)) is None
    assert blobs.path(SHA).read_bytes() == DATA


def test_other_bytes_than_announced_are_thrown_away(blobs: Blobs) -> None:
    error = refused(lambda: put(blobs, DATA[::-1], name=SHA))
    assert (error.status, error.offset) == (422, 0)
    assert blobs.held("cam", SHA) == Held(0, False)
    with pytest.raises(NotFound):
        blobs.path(SHA)
    assert put(blobs, DATA).whole


def test_a_newer_upload_of_the_same_file_takes_over(blobs: Blobs) -> None:
    old = begin(blobs)
    old.write(DATA[:10])
    new = begin(blobs, first=10)
    error = refused(lambda: old.write(DATA[10:20]))
    assert (error.status, error.offset) == (409, 10)
    old.close()
    new.write(DATA[10:])
    assert new.finish().whole
    new.close()


def test_a_part_that_is_being_checked_is_left_alone(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    hashing, go_on = threading.Event(), threading.Event()
    plain = module._hash_of

    def slow(path: Path) -> str:
        hashing.set()
        assert go_on.wait(10)
        return plain(path)

    monkeypatch.setattr(module, "_hash_of", slow)
    thread = threading.Thread(target=put, args=(blobs, DATA))
    thread.start()
    assert hashing.wait(10)
    assert refused(lambda: blobs.begin("cam", SHA, 0, len(DATA))).status == 409
    go_on.set()
    thread.join(10)
    assert blobs.held("cam", SHA).whole


class TestOwners:
    def test_a_file_of_one_device_is_not_there_for_another(self, blobs: Blobs, store: Store) -> None:
        put(blobs, DATA)
        promise(store, "other")
        assert blobs.held("other", SHA) == Held(0, False)
        assert stored(store) == [False], "naming a hash does not make its bytes one's own"
        assert put(blobs, DATA, "other").whole
        assert stored(store) == [True]

    def test_parts_of_two_devices_do_not_meet(self, blobs: Blobs) -> None:
        first, second = begin(blobs), begin(blobs, "other")
        first.write(DATA[:10])
        second.write(DATA)
        assert second.finish().whole
        first.write(DATA[10:])
        assert first.finish().whole
        first.close()
        second.close()

    @pytest.mark.parametrize("message_first", [True, False])
    def test_message_and_bytes_may_come_in_any_order(self, blobs: Blobs, store: Store, message_first: bool) -> None:
        steps = [lambda: promise(store), lambda: put(blobs, DATA)]
        for step in steps if message_first else steps[::-1]:
            step()
        assert stored(store) == [True]
        with store.read() as session:
            assert session.execute(sa.select(Blob.promised)).scalars().all() == [True]

    def test_bytes_that_arrive_move_the_alert_up_the_changes(self, blobs: Blobs, store: Store) -> None:
        Intake(store, IngestConfig()).take(read(delivery(message(1))))
        promise(store, seq=2)
        with store.read() as session:
            before = session.execute(sa.select(Alert.change)).scalar_one()
        put(blobs, DATA)
        with store.read() as session:
            assert session.execute(sa.select(Alert.change)).scalar_one() == before + 1


class TestLimits:
    def test_a_file_over_the_limit_is_refused_for_good(self, blobs: Blobs) -> None:
        assert refused(lambda: blobs.begin("cam", SHA, 0, (1 << 20) + 1)).status == 413

    def test_more_bytes_than_announced_are_refused(self, blobs: Blobs) -> None:
        upload = begin(blobs)
        upload.write(DATA)
        assert refused(lambda: upload.write(b"x")).status == 413
        upload.close()

    def test_another_size_than_promised_is_refused(self, blobs: Blobs, store: Store) -> None:
        promise(store, size=5)
        assert refused(lambda: blobs.begin("cam", SHA, 0, len(DATA))).status == 422

    def test_files_that_nobody_has_named_are_limited_until_they_are(self, blobs: Blobs, store: Store) -> None:
        early = os.urandom(1 << 20)
        put(blobs, early)
        put(blobs, os.urandom((1 << 20) - 20_000))
        assert put(blobs, DATA).whole
        third = os.urandom(50_000)
        assert refused(lambda: put(blobs, third)).status == 507
        assert put(blobs, third, "other").whole, "others are not held up"
        named = evidence(hashlib.sha256(early).hexdigest(), len(early))
        Intake(store, IngestConfig()).take(read(delivery(message(1, named))))
        assert put(blobs, third).whole

    def test_parts_count_as_well(self, blobs: Blobs) -> None:
        for number in range(2):
            name = hashlib.sha256(b"%d" % number).hexdigest()
            upload = blobs.begin("cam", name, 0, 1 << 20)
            assert upload is not None
            upload.write(bytes((1 << 20) - 10))
            upload.close()
        assert refused(lambda: put(blobs, DATA)).status == 507

    def test_a_device_has_so_much_and_no_more(self, tmp_path: Path, store: Store) -> None:
        small = Blobs(tmp_path / "small", store, BlobConfig(file_mb=1, device_mb=1, early_mb=9, free_mb=0))
        put(small, os.urandom(1 << 20))
        assert refused(lambda: put(small, DATA)).status == 507

    def test_a_disk_that_is_nearly_full_is_not_filled(self, blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 91, 9))  # type: ignore[attr-defined]
        assert refused(lambda: put(blobs, DATA)).status == 507

    @pytest.mark.parametrize(("first", "total"), [(0, 0), (-1, 5), (5, 5), (6, 5)])
    def test_a_range_that_makes_no_sense_is_refused(self, blobs: Blobs, first: int, total: int) -> None:
        assert refused(lambda: blobs.begin("cam", SHA, first, total)).status == 400

    def test_parts_that_nobody_continues_go(self, tmp_path: Path, store: Store) -> None:
        now_ns = [10**18]
        aging = Blobs(tmp_path / "aging", store, now_ns=lambda: now_ns[0])
        upload = begin(aging)
        upload.write(b"x")
        part = upload._part
        os.utime(part, ns=(now_ns[0], now_ns[0]))
        now_ns[0] += 8 * 24 * 3600 * 10**9
        assert aging.sweep() == 0, "somebody is at it"
        upload.close()
        assert aging.sweep() == 1
        assert not part.exists()


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../../etc/passwd",
        "..",
        "A" * 64,
        SHA.upper(),
        SHA + "0",
        SHA[:63],
        SHA + "\n",
        "/" * 64,
        SHA[:60] + "/../",
    ],
)
def test_what_is_no_hash_never_becomes_a_path(blobs: Blobs, name: str) -> None:
    for call in (
        lambda: blobs.path(name),
        lambda: blobs.held("cam", name),
        lambda: blobs.begin("cam", name, 0, 10),
    ):
        with pytest.raises(NotFound):
            call()
