"""Alembic's door: runs the steps on the connection, and in the transaction, that `Store.migrate` hands over."""

from __future__ import annotations

from alembic import context

from cloud_sync.store.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    # SQLite alters a table by making it anew; one transaction around all: a half-migrated database cannot be.
    render_as_batch=True,
    compare_type=True,
)
context.run_migrations()
