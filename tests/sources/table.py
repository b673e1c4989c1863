"""A table of people on both engines, and a small enter that keeps its promises in memory."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import psycopg
from sqlalchemy import make_url

from criteo_provider.core.ports import Json, Look, Source
from criteo_provider.sources.sql import SqlSource


def nothing_seen(units: Collection[str]) -> set[str]:
    """Say that no file was finished yet."""
    return set()


@dataclass
class Database:
    """One database: how to connect, and its paramstyle."""

    connect: Callable[[], Any]
    paramstyle: str

    def run(self, *statements: str) -> None:
        connection = self.connect()
        for statement in statements:
            connection.execute(statement)
        connection.commit()
        connection.close()

    def source(self, query: str, **settings: Any) -> SqlSource:
        settings = {
            "cursor": ["id"],
            "columns": ["id"],
            "now_us": Clock().us,
            "late_commit_s": 0.0,
        } | settings
        return SqlSource(self.connect, query=query, paramstyle=self.paramstyle, **settings)


def database(url: str) -> Database:
    """Open the database behind an SQLAlchemy URL with its plain driver."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        path = parsed.database or ""
        return Database(lambda: sqlite3.connect(path, timeout=30), "qmark")
    plain = parsed.set(drivername="postgresql").render_as_string(hide_password=False)
    return Database(lambda: psycopg.connect(plain), "pyformat")


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.s = 1_782_907_200.0  # 2026-07-01T12:00:00Z

    def us(self) -> int:
        return int(self.s * 1e6)


@dataclass
class Entering:
    """What *enter* and the ledger do with a source: pages forward, looks when they are due, every row counted."""

    source: Source
    max_rows: int = 1000
    clock: Clock = field(default_factory=Clock)
    position: Json = None
    rows: list[dict[str, object]] = field(default_factory=list)
    looks: list[tuple[float, Look]] = field(default_factory=list)

    def forward(self) -> None:
        for page in self.source.pages(self.position, max_rows=lambda: self.max_rows, seen=nothing_seen):
            assert page.rows <= self.max_rows
            self._take(page.columns, page.rows)
            self.position = json.loads(json.dumps(page.position))
            self._keep(page.look)

    def recheck(self) -> None:
        now_s = self.clock.s  # asked twice, a real clock would drop what falls due in between
        due = [look for due_s, look in self.looks if due_s <= now_s]
        self.looks = [pair for pair in self.looks if pair[0] > now_s]
        for look in due:
            ((page, following),) = self.source.recheck(look)
            self._take(page.columns, page.rows)
            self._keep(following)

    def wait(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.s += 1
            self.recheck()

    def _keep(self, look: Look | None) -> None:
        """Keep what the ledger keeps: when it is due, not how long that was."""
        if look:
            after, upto = json.loads(json.dumps([look.after, look.upto]))
            self.looks.append((self.clock.s + look.due_after_s, Look(after, upto, look.marks, 0.0, look.last)))

    def _take(self, columns: Any, rows: int) -> None:
        assert {len(values) for values in columns.values()} == {rows}
        self.rows += [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
