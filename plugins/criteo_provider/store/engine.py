"""Engines for the ledger and the pacer: durable, and patient with other processes."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import stamina
from sqlalchemy import Connection, Engine, ExceptionContext, Table, create_engine, event, make_url, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.pool import ConnectionPoolEntry

from criteo_provider.core.errors import LedgerRefused, LedgerUnwritable

# Sealing transactions stay under 50 ms, so a minute of patience means somebody is stuck, not busy.
BUSY_TIMEOUT_S = 60
# A connection used so shortly ago is not asked whether it still lives; that was one of seven questions of a drain.
TRUSTED_S = 1.0
# An option of statements that fetch packed people: PostgreSQL would write them out as text, in five times the time.
AS_KEPT = "criteo_as_kept"
_LEFT_S = "criteo_left_s"


def open_engine(url: str, *, pool_size: int = 20) -> Engine:
    """Open ``url`` (``sqlite:////path`` or ``postgresql+psycopg://…``) so that a commit survives a power cut.

    Whatever is done with it raises LedgerUnwritable, with a sentence, where nothing can be written at the moment.
    """
    path = sqlite_path(url)
    engine = _postgresql(url, pool_size) if path is None else _sqlite(url, path, pool_size)

    @event.listens_for(engine, "handle_error")
    def say_why(context: ExceptionContext) -> None:
        if (why := _unwritable(context, path)) is not None:
            raise LedgerUnwritable(why) from None

    return engine


def sqlite_path(url: str) -> Path | None:
    """Return the file behind a SQLite ``url``, None for other engines."""
    parsed = make_url(url)
    return Path(parsed.database or "") if parsed.get_backend_name() == "sqlite" else None


def _postgresql(url: str, pool_size: int) -> Engine:
    from psycopg.pq import Format

    engine = create_engine(
        url,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_use_lifo=True,  # few connections do most of the work: each is a process with its own view of the cache
        connect_args={"connect_timeout": 10},
        hide_parameters=True,
    )
    _ask_whether_it_lives(engine)

    @event.listens_for(engine, "before_cursor_execute")
    def choose_format(_: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        if context.execution_options.get(AS_KEPT):
            cursor.format = Format.BINARY

    return engine


def _ask_whether_it_lives(engine: Engine) -> None:
    """Let a connection that has lain idle be asked before it is used; for one that is gone there is a new one."""

    @event.listens_for(engine, "checkin")
    def remember(_connection: Any, record: ConnectionPoolEntry) -> None:
        record.info[_LEFT_S] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def ask(connection: Any, record: ConnectionPoolEntry, _taken: Any) -> None:
        left_s = record.info.get(_LEFT_S)
        if left_s is None or time.monotonic() - left_s < TRUSTED_S:
            return
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error:
            # Those that were left before this one are as old, and gone, too.
            raise InvalidatePoolError from None


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """One transaction that writes; on SQLite it takes the write lock at once, so it never has to be repeated."""
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            connection.rollback()
            raise
        _commit(connection)


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """One consistent look at the ledger with several statements; nothing may be written in it."""
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN")
        else:
            connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        yield connection
        # Not rolled back: PostgreSQL's driver forgets all its prepared statements with every ROLLBACK.
        _commit(connection)


@contextmanager
def looking(engine: Engine) -> Iterator[Connection]:
    """Statements that read, each of which sees a moment of its own: no transaction is opened around them."""
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection.execution_options(isolation_level="AUTOCOMMIT")
        yield connection


def _commit(connection: Connection) -> None:
    try:
        connection.commit()
    except BaseException:
        # A COMMIT that fails may leave its transaction open, and SQLAlchemy takes it for ended: nobody else may get
        # this connection.
        connection.invalidate()
        raise


def in_turn(connection: Connection, lock: int) -> None:
    """Wait until no other transaction has this lock, and keep it to the end of ours; SQLite has one writer anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": lock})


def insert_into(connection: Connection, table: Table) -> Any:
    """Begin an INSERT that may say what is done ON CONFLICT, in the words of either engine."""
    return (sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert)(table)


# Processes that read the same files at the same time declare one after the other; the number is only a name.
DECLARE_LOCK = 0x4445434C

_AS_BEFORE = "Nothing was half-written, and it goes on by itself once that is over."
_UNWRITABLE = {
    "SQLITE_FULL": "There is no room left on the disk of the ledger{place}; make room there.",
    "53100": "There is no room left on the disk of the ledger's PostgreSQL server; make room there.",
    "SQLITE_BUSY": f"Another process kept the ledger{{place}} to itself for {BUSY_TIMEOUT_S} s; look for a stuck one.",
    "SQLITE_READONLY": "The ledger's file{place} may only be read; let this user write it and its folder.",
    "SQLITE_IOERR": "The disk of the ledger{place} does not read or write; see to it.",
    "SQLITE_CANTOPEN": "The ledger's file{place} cannot be opened; let this user read and write it and its folder.",
}
_NO_WAY = "There is no way to the ledger's PostgreSQL server; see that it runs, and what connection criteo_ledger says."


def _unwritable(context: ExceptionContext, path: Path | None) -> str | None:
    """Say in a sentence why a database takes no writes at the moment, None where the trouble is another."""
    error = context.original_exception
    code = getattr(error, "sqlstate", None) or getattr(error, "sqlite_errorname", None) or ""
    # SQLite's extended codes begin with the plain one: SQLITE_IOERR_WRITE.
    told = next((sentence for known, sentence in _UNWRITABLE.items() if code.startswith(known)), None)
    if path is None and (context.is_disconnect or context.connection is None):
        told = told or _NO_WAY
    place = f" ({path})" if path is not None else ""
    return f"{told.format(place=place)} {_AS_BEFORE}" if told else None


def _sqlite(url: str, path: Path, pool_size: int) -> Engine:
    if path.name:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LedgerRefused(
                f"The folder of the ledger, {path.parent}, cannot be made ({type(error).__name__}). Make it for the "
                "user of this Airflow, or set [criteo] ledger_path to another place."
            ) from None
    engine = create_engine(
        url,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_use_lifo=True,  # few connections do most of the work, and few have their caches full
        connect_args={"timeout": BUSY_TIMEOUT_S},
        hide_parameters=True,
    )

    @event.listens_for(engine, "connect")
    def settle_down(connection: Any, _record: Any) -> None:
        # The driver must not open transactions by itself: writing() and reading() say which kind they want.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000}")
        # SQLite does not wait for its turn at this one, when several processes open a new file at once.
        for attempt in stamina.retry_context(
            on=_is_locked, attempts=None, timeout=BUSY_TIMEOUT_S, wait_initial=0.02, wait_max=0.5
        ):
            with attempt:
                cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute("PRAGMA temp_store = MEMORY")
        # Of each connection, 2 MB by default, and a drain has a dozen: the system has these pages, too.
        cursor.execute("PRAGMA cache_size = -500")
        cursor.close()

    return engine


def _is_locked(error: Exception) -> bool:
    return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
