"""Alembic's folder. `Store.migrate` runs it."""
