"""One suite for both databases: transactions, migrations, and what a caller may see of trouble."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from cloud_sync.errors import StoreBusy, StoreError
from cloud_sync.store import Store, audit, open_store, raise_counter
from cloud_sync.store.tables import Audit, Base, DeadLetter
from tests.parts.postgres import Postgres


def letter(detail: str = "x") -> DeadLetter:
    return DeadLetter(topic="t", reason="schema", detail=detail, payload=b"\x00\xff", received_ns=2**62)


def letters(store: Store) -> list[str]:
    with store.read() as session:
        return list(session.execute(sa.select(DeadLetter.detail).order_by(DeadLetter.id)).scalars())


def test_models_and_migrations_agree(any_store: Store) -> None:
    with any_store.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        differences = compare_metadata(context, Base.metadata)
    assert differences == []


def test_migrating_again_changes_nothing(any_store: Store) -> None:
    with any_store.write() as session:
        session.add(letter())
    any_store.migrate()
    assert letters(any_store) == ["x"]


def test_several_processes_may_migrate_at_once(url: str) -> None:
    stores = [open_store(url) for _ in range(4)]
    threads = [threading.Thread(target=store.migrate) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    with stores[0].write() as session:
        assert raise_counter(session, "change", 3) == 3
    for store in stores:
        store.close()


def test_what_was_written_is_read_as_it_was(any_store: Store) -> None:
    with any_store.write() as session:
        session.add(letter("ä\n"))
    with any_store.read() as session:
        row = session.execute(sa.select(DeadLetter)).scalar_one()
    assert (row.detail, row.payload, row.received_ns) == ("ä\n", b"\x00\xff", 2**62)


def test_a_block_that_raises_leaves_nothing(any_store: Store) -> None:
    def broken() -> None:
        with any_store.write() as session:
            session.add(letter())
            session.flush()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert letters(any_store) == []


def test_what_a_reader_does_is_not_kept(any_store: Store) -> None:
    with any_store.read() as session:
        session.add(letter())
        session.flush()
    assert letters(any_store) == []


def test_counters_rise_in_commit_order_under_many_writers(any_store: Store) -> None:
    seen: list[int] = []

    def work() -> None:
        for _ in range(10):
            with any_store.write() as session:
                value = raise_counter(session, "change")
                seen.append(value)  # the row is locked until commit: appended in commit order

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert seen == list(range(1, 41))


def test_a_counter_that_no_migration_made_is_an_error(any_store: Store) -> None:
    with pytest.raises(StoreError, match="not migrated"), any_store.write() as session:
        raise_counter(session, "nonsense")


class TestAudit:
    def test_the_chain_holds_under_many_writers(self, any_store: Store) -> None:
        def work(name: str) -> None:
            for number in range(5):
                with any_store.write() as session:
                    audit.record(session, name, "act", f"thing {number}", number)

        threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        with any_store.read() as session:
            assert session.execute(sa.select(sa.func.count()).select_from(Audit)).scalar() == 15
            assert audit.broken_at(session) is None

    @pytest.mark.parametrize("column", ["actor", "action", "subject", "at_ns", "hash", "previous"])
    def test_a_changed_row_is_found(self, any_store: Store, column: str) -> None:
        for number in range(3):
            with any_store.write() as session:
                audit.record(session, "ann", "act", str(number), number)
        with any_store.write() as session:
            row = session.get(Audit, 2)
            assert row is not None
            setattr(row, column, 99 if column == "at_ns" else "f" * 64)
        with any_store.read() as session:
            assert audit.broken_at(session) == 2

    def test_a_removed_row_is_found(self, any_store: Store) -> None:
        for number in range(3):
            with any_store.write() as session:
                audit.record(session, "ann", "act", str(number), number)
        with any_store.write() as session:
            session.execute(sa.delete(Audit).where(Audit.id == 2))
        with any_store.read() as session:
            assert audit.broken_at(session) == 3


class TestTrouble:
    def test_a_database_of_a_newer_version_is_refused(self, any_store: Store) -> None:
        with any_store.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
        with pytest.raises(StoreError, match="another version"):
            any_store.migrate()

    @pytest.mark.parametrize("bad", ["mysql://x/y", "sqlite://", "sqlite:///:memory:", "nonsense", ""])
    def test_a_url_that_names_no_database_of_ours_is_refused(self, bad: str) -> None:
        with pytest.raises(StoreError):
            open_store(bad)

    def test_a_file_that_cannot_be_made_is_a_store_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(StoreError, match="cannot open"):
            open_store(f"sqlite:///{tmp_path}/file/cloud.db")

    def test_a_file_that_is_no_database_is_a_store_error(self, tmp_path: Path) -> None:
        (tmp_path / "cloud.db").write_bytes(b"not a database, but long enough to be read as one" * 100)
        store = open_store(f"sqlite:///{tmp_path / 'cloud.db'}")
        with pytest.raises(StoreError, match="damaged"):
            store.migrate()
        store.close()

    def test_a_locked_sqlite_file_is_busy_after_the_wait(self, store: Store) -> None:
        url = str(store.engine.url)
        other = open_store(url, busy_s=0.05)
        with store.write(), pytest.raises(StoreBusy, match="locked"), other.write():
            pass
        other.close()

    def test_the_sqlite_file_is_private_and_durable(self, store: Store) -> None:
        path = Path(str(store.engine.url.database))
        assert path.stat().st_mode & 0o077 == 0
        with store.engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2

    @pytest.mark.needs("postgres")
    def test_a_postgres_that_goes_and_comes_back_is_busy_in_between(self, server: Postgres) -> None:
        store = open_store(server.database())
        store.migrate()
        server.stop()
        try:
            with pytest.raises(StoreBusy), store.write() as session:
                session.add(letter())
        finally:
            server.start()
        with store.write() as session:
            session.add(letter())
        assert letters(store) == ["x"]
        store.close()
