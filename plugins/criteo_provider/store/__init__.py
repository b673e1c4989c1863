"""The SQL floor: the ledger, the pacer and the numbers, on SQLite and PostgreSQL."""
