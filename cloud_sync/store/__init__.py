"""The database behind one short door: `open_store(url)` gives transactions, whichever database it is.

SQLite (WAL, synchronous=FULL, one writer at a time) for a site, PostgreSQL by psycopg for a fleet. Everything
that a caller may see of either is `StoreBusy` (wait and retry; nothing was kept) or `StoreError`.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.util import CommandError
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, InterfaceError, OperationalError
from sqlalchemy.orm import Session, sessionmaker

from cloud_sync.errors import StoreBusy, StoreError
from cloud_sync.store.tables import Base, Counter

__all__ = ["Store", "open_store", "raise_counter"]

#: How long a writer of SQLite waits for another before it gives up; ingest commits take milliseconds.
BUSY_S = 20.0
_MIGRATION_LOCK = 0x7EC7  # any number, the same in every process: PostgreSQL's advisory lock for migrations
_FOLDER = Path(__file__).parent / "migrations"
_WRITES = "tectum_writes"


class Store:
    """Transactions on one database. Safe to share between threads; each block is a transaction of its own."""

    def __init__(self, engine: Engine, busy_s: float = BUSY_S) -> None:
        self.engine = engine
        self._busy_s = busy_s
        self._readers = sessionmaker(engine, expire_on_commit=False)
        # The option reaches the `begin` listener: SQLite must take its write lock at once (BEGIN IMMEDIATE),
        # for a reader that turns writer half-way gets SQLITE_BUSY however long it would wait.
        self._writers = sessionmaker(engine.execution_options(**{_WRITES: True}), expire_on_commit=False)
        # SQLite's own wait for the lock is a poll and unfair; threads of one process queue here instead.
        self._turn = threading.Lock() if self.is_sqlite else None

    @property
    def is_sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session whose changes are durable when the block ends, and gone if it raises.

        StoreBusy where the database is locked, full or away. Do nothing slow inside: others wait.
        """
        if self._turn is not None and not self._turn.acquire(timeout=self._busy_s):
            raise StoreBusy(f"database {self.engine.url.render_as_string()}: another thread writes for too long")
        try:
            with _plain_errors(self.engine), self._writers.begin() as session:
                session.connection()  # the write lock now, not at the first statement
                yield session
        finally:
            if self._turn is not None:
                self._turn.release()

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session on one snapshot of the data. Nothing done in it is kept."""
        with _plain_errors(self.engine), self._readers() as session:
            yield session

    def insert(self, table: type[Base]) -> sqlite.Insert | postgresql.Insert:
        """An INSERT that knows `on_conflict_do_nothing` and `on_conflict_do_update`."""
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)

    def lock_devices(self, session: Session, names: Iterable[str]) -> None:
        """Let other writers that speak of these devices wait until this transaction ends.

        Several ingests and `serve` may look at one device's rows at once; each must see what the other did.
        """
        if not self.is_sqlite:  # SQLite has one writer anyway
            for name in sorted(set(names)):  # in one order everywhere: no deadlock
                session.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext(name))))

    def migrate(self) -> None:
        """Bring the tables up to this version of the code; safe in several processes at once."""
        config = AlembicConfig()
        config.set_main_option("script_location", str(_FOLDER))
        with _plain_errors(self.engine), self.engine.execution_options(**{_WRITES: True}).begin() as connection:
            if not self.is_sqlite:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, "head")
            except CommandError as error:
                raise StoreError(
                    f"{self.engine.url.render_as_string()} holds tables of another version of Tectum ({error}). "
                    "Run the version that made them, or a newer one"
                ) from error

    def close(self) -> None:
        """Give the connections back. The store must not be used afterwards."""
        self.engine.dispose()


def open_store(url: str, busy_s: float = BUSY_S) -> Store:
    """The store at an SQLAlchemy URL: `sqlite:////path/cloud.db` or `postgresql+psycopg://…`.

    A SQLite file is made readable by its owner alone. StoreError for a URL that names neither.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise StoreError(f"database {url!r} is not a URL such as sqlite:////var/lib/tectum/cloud.db") from error
    if parsed.drivername in ("sqlite", "sqlite+pysqlite"):
        return Store(_sqlite(parsed, busy_s), busy_s)
    if parsed.drivername in ("postgresql", "postgresql+psycopg"):
        return Store(
            sa.create_engine(
                parsed.set(drivername="postgresql+psycopg"), pool_pre_ping=True, pool_size=8, max_overflow=8
            )
        )
    raise StoreError(f"database {parsed.drivername!r} is not supported; use sqlite:/// or postgresql+psycopg://")


def raise_counter(session: Session, name: str, by: int = 1) -> int:
    """Raise a named counter and return it. The row stays locked until commit: values rise in commit order."""
    value = session.execute(
        sa.update(Counter).where(Counter.name == name).values(value=Counter.value + by).returning(Counter.value)
    ).scalar()
    if value is None:
        raise StoreError(f"the table `counter` has no row {name!r}: the database was not migrated")
    return value


def _sqlite(url: sa.URL, busy_s: float) -> Engine:
    if not url.database or url.database == ":memory:":
        raise StoreError("SQLite needs a file: two processes share it")
    path = Path(url.database)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise StoreError(f"cannot open the database {path}: {error}") from error
    engine = sa.create_engine(url, connect_args={"timeout": busy_s}, pool_size=8, max_overflow=24)

    @event.listens_for(engine, "connect")
    def _prepare(connection: sqlite3.Connection, _record: Any) -> None:
        connection.isolation_level = None  # the driver's own idea of BEGIN is not ours
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "journal_size_limit=67108864"):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get(_WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


@contextmanager
def _plain_errors(engine: Engine) -> Iterator[None]:
    """The database's own words for "not now" become StoreBusy; what is wrong with one statement stays as it is."""
    try:
        yield
    except (OperationalError, InterfaceError) as error:
        raise StoreBusy(f"database {engine.url.render_as_string()}: {error.orig}") from error
    except sa.exc.TimeoutError as error:  # the connection pool is used up
        raise StoreBusy(f"database {engine.url.render_as_string()}: {error}") from error
    except DatabaseError as error:
        if type(error) is DatabaseError:  # "malformed", "not a database": nothing that waiting would mend
            raise StoreError(f"database {engine.url.render_as_string()} is damaged: {error.orig}") from error
        raise
