"""Alembic's way in: the connection is handed over by ``store.migrate``."""

from __future__ import annotations

from alembic import context

from criteo_provider.store import accounts, schema_access  # noqa: F401 - their tables belong to the same metadata
from criteo_provider.store.migrate import VERSION_TABLE
from criteo_provider.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    transaction_per_migration=False,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
