"""Alembic's way in: the connection is handed over by ``store.migrate``."""

from __future__ import annotations

from alembic import context

# Tables of rooms of their own belong to the same metadata.
from criteo_provider.store import (  # noqa: F401
    accounts,
    launch_tables,
    schema_access,
    schema_growth,
    schema_opt_outs,
    schema_order,
)
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
