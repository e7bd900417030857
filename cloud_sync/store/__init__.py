"""Where the cloud keeps what it was told: SQLite by default, PostgreSQL by its address."""
