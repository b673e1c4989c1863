"""A disk that is full as soon as a file on it is to grow."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event

from criteo_provider.store.engine import sqlite_path


@contextmanager
def room_for(pages: int, url: str) -> Iterator[None]:
    """Let the SQLite file behind ``url`` grow by so many pages only."""

    def limit(connection: sqlite3.Connection, _record: Any) -> None:
        ((_, _, path),) = connection.execute("PRAGMA database_list").fetchall()
        if Path(path) == sqlite_path(url):
            (used,) = connection.execute("PRAGMA page_count").fetchone()
            connection.execute(f"PRAGMA max_page_count = {used + pages}")

    event.listen(Engine, "connect", limit)
    try:
        yield
    finally:
        event.remove(Engine, "connect", limit)
