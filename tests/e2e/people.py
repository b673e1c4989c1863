"""Made-up people of a small shop, each of whom can be looked for in everything that is written."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import uuid
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

TABLE = (
    "CREATE TABLE customers (customer_id INTEGER PRIMARY KEY, email TEXT, maid TEXT, "
    "ads_tracking_enabled INTEGER, updated_at TEXT)"
)


@dataclass(frozen=True)
class Person:
    """Somebody nobody is."""

    customer_id: int
    email: str
    maid: str

    @property
    def email_sha256(self) -> str:
        return hashlib.sha256(self.email.encode()).hexdigest()


class Shop:
    """A table of customers in SQLite."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.people: list[Person] = []
        self._adding = threading.Lock()
        with closing(sqlite3.connect(path)) as shop, shop:
            shop.execute("PRAGMA journal_mode = WAL")
            shop.execute(TABLE)

    def add(self, count: int) -> list[Person]:
        """Let so many people appear in the segment."""
        with self._adding:
            first = len(self.people) + 1
            added = [Person(n, f"somebody.{n}@example.com", str(uuid.uuid4())) for n in range(first, first + count)]
            now = datetime.now(UTC).isoformat(timespec="microseconds")
            with closing(sqlite3.connect(self.path, timeout=30)) as shop, shop:
                rows = [(each.customer_id, each.email, each.maid, 1, now) for each in added]
                shop.executemany("INSERT INTO customers VALUES (?, ?, ?, ?, ?)", rows)
            self.people += added
            return added
