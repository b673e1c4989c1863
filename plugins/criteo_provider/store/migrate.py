"""Bringing a ledger to the schema of this release, from nothing or from any earlier one."""

from __future__ import annotations

import socket
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, insert, select

from criteo_provider.core.errors import LedgerRefused
from criteo_provider.store.engine import in_turn, looking, sqlite_path, writing
from criteo_provider.store.schema import origin

VERSION_TABLE = "criteo_alembic_version"
_MIGRATION_LOCK = 0x4D494752


def upgrade(engine: Engine, *, now_us: int) -> str:
    """Bring the ledger to the newest schema and return its revision; safe when several processes do it at once."""
    config = _config()
    head = ScriptDirectory.from_config(config).get_current_head() or ""
    found = current(engine)
    if found is not None and found not in {
        script.revision for script in ScriptDirectory.from_config(config).walk_revisions()
    }:
        raise LedgerRefused(
            f"The ledger is at revision {found}, which this release does not know: a later release has been at work. "
            "Install that release here too."
        )
    if found != head:
        with writing(engine) as connection:
            in_turn(connection, _MIGRATION_LOCK)
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            _remember_origin(engine, connection, now_us)
    return head


def current(engine: Engine) -> str | None:
    """Return the revision the ledger is at, None for an empty database."""
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        return context.get_current_revision()


def refuse_if_foreign(engine: Engine, *, executor: str) -> None:
    """Raise LedgerRefused when a SQLite ledger is opened where it cannot be shared safely."""
    path = sqlite_path(str(engine.url.render_as_string(hide_password=False)))
    if path is None:
        return
    mend = "Create the Airflow connection `criteo_ledger` to a PostgreSQL database; the ledger moves there."
    if executor.rpartition(".")[2] != "LocalExecutor":
        raise LedgerRefused(
            f"The ledger is a SQLite file, but this Airflow runs tasks with {executor}, possibly on other hosts. {mend}"
        )
    if current(engine) is None:
        return
    with looking(engine) as connection:
        made = connection.execute(select(origin)).one_or_none()
    if made is not None and (made.host != socket.gethostname() or made.path != str(path.resolve())):
        raise LedgerRefused(
            f"The ledger file {path} was made on another host or at another path; opening a copy would count "
            f"people twice. {mend}"
        )


def _remember_origin(engine: Engine, connection: Connection, now_us: int) -> None:
    path = sqlite_path(engine.url.render_as_string(hide_password=False))
    if path is not None and connection.execute(select(origin)).one_or_none() is None:
        values = {"id": 1, "host": socket.gethostname(), "path": str(path.resolve()), "made_us": now_us}
        connection.execute(insert(origin).values(values))


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    return config
