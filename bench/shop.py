"""A made-up shop of any size, made fast and always the same, and canvases over it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import yaml
from cryptography.fernet import Fernet

from criteo_provider.core.ports import Source
from criteo_provider.sandbox.state import ADVERTISERS, CLIENT_ID, CLIENT_SECRET
from criteo_provider.sources.files import FilesSource
from criteo_provider.sources.reading_beside import ReadingBeside
from criteo_provider.sources.sql import SqlSource
from criteo_provider.wiring import CriteoConnection, House, Surroundings
from criteo_provider.wiring.surroundings import Sourced

TABLE = """
CREATE TABLE people (serial INTEGER PRIMARY KEY, customer TEXT, email TEXT, ads INTEGER, added_at TEXT)
"""
INDEX = "CREATE INDEX people_added ON people (added_at, serial)"
# One in 50 has no address, so there is nothing of theirs to send; one in 20 writes it in capitals. All said yes to ads:
# whoever did not would cost less than the rest.
FILL = """
INSERT INTO people
WITH RECURSIVE numbers(n) AS (SELECT :first UNION ALL SELECT n + 1 FROM numbers WHERE n < :last)
SELECT n, 'customer-' || n,
       CASE WHEN n % 50 = 0 THEN NULL WHEN n % 20 = 7 THEN 'Shopper.' || n || '@Example.com'
            ELSE 'shopper.' || n || '@example.com' END,
       1, strftime('%Y-%m-%dT%H:%M:%fZ', '2025-01-01', (n / 1000) || ' seconds')
FROM numbers
"""
QUERY = "SELECT serial, customer, email, ads, added_at FROM people"

NAMES = ("serial", "customer", "email", "ads", "added_at")


def fill(path: Path, people: int, *, first: int = 1) -> None:
    """Put ``people`` made-up people into the shop, numbered from ``first``."""
    with closing(sqlite3.connect(path)) as shop, shop:
        shop.execute("PRAGMA journal_mode = WAL")
        shop.execute("PRAGMA synchronous = OFF")
        if not shop.execute("SELECT 1 FROM sqlite_master WHERE name = 'people'").fetchone():
            shop.execute(TABLE)
            shop.execute(INDEX)
        shop.execute(FILL, {"first": first, "last": first + people - 1})


def as_parquet(path: Path, folder: Path, *, rows_per_file: int = 1_000_000) -> None:
    """Write the same people as Parquet files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as shop:
        rows = shop.execute(QUERY + " ORDER BY serial")
        for number in range(10_000):
            if not (piece := rows.fetchmany(rows_per_file)):
                return
            columns = dict(zip(NAMES, zip(*piece, strict=True), strict=True))
            pq.write_table(pa.table(columns), folder / f"people-{number:05d}.parquet", row_group_size=50_000)


def write_canvas(
    include: Path,
    canvas_id: str,
    *,
    audiences: int = 1,
    parquet: Path | None = None,
    connection: str = "shop",
) -> None:
    """Declare a canvas that adds everybody of the shop to so many audiences."""
    (include / "segments").mkdir(parents=True, exist_ok=True)
    (include / "segments" / "people.sql").write_text(QUERY)
    (include / "canvases").mkdir(exist_ok=True)
    sql = {
        "connection": connection,
        "query": "segments/people.sql",
        "cursor": ["added_at", "serial"],
        "late_commit": "60s",
    }
    files = {"path": str(parquet), "pattern": "*.parquet"}
    steps = [
        {
            "id": f"add_{number}",
            "audience_sync": {
                "operation": "add",
                "ad_account": ADVERTISERS[0][0],
                "audience": f"{canvas_id} {number}",
                "fields": ["email"],
            },
        }
        for number in range(1, audiences + 1)
    ]
    declared = {
        "name": canvas_id,
        "owner": "bench",
        "flush": "1s",
        "entry": {
            "user_key": "customer",
            "source": {"files": files} if parquet else {"sql": sql},
            "identifiers": {"email": "email"},
            "consent": {"require": {"ads": True}},
        },
        "steps": steps,
    }
    (include / "canvases" / f"{canvas_id}.yaml").write_text(yaml.safe_dump(declared))


def source_of(shop: Path) -> Callable[[Sourced], Source]:
    """Build the source a canvas declares, as the hooks of Airflow would."""
    beside = ReadingBeside()

    def source(canvas: Sourced) -> Source:
        declared: Any = canvas.entry.source.chosen
        if canvas.entry.source.files:
            return FilesSource(
                Path(declared.path), columns=canvas.entry.columns, now_us=_now_us, pattern=declared.pattern,
                beside=beside,
            )  # fmt: skip
        return SqlSource(
            lambda: sqlite3.connect(shop, timeout=30),
            query=declared.query.text,
            cursor=declared.cursor,
            columns=canvas.entry.columns,
            user_key=canvas.entry.user_key,
            now_us=_now_us,
            late_commit_s=declared.late_commit_s,
        )

    return source


class Sealer:
    """A cipher for access tokens, one key for all processes of a run."""

    def __init__(self, key: bytes) -> None:
        self._fernet = Fernet(key)

    def encrypt(self, plain: bytes) -> bytes:
        return self._fernet.encrypt(plain)

    def decrypt(self, secret: bytes) -> bytes:
        return self._fernet.decrypt(secret)

    def key_id(self) -> str:
        return "bench"


def open_house(
    include: Path, ledger_url: str, criteo_url: str, shop: Path, *, requests_per_minute: int, key: bytes
) -> House:
    """Open the real house over a shop, a ledger and a sandbox."""
    connection = CriteoConnection(CLIENT_ID, CLIENT_SECRET, criteo_url, requests_per_minute=requests_per_minute)
    return House(Surroundings(include, ledger_url, lambda _name: connection, source_of(shop), Sealer(key)))


def plain_columns(shop: Path, people: int) -> dict[str, Sequence[object]]:
    """Return the first people as the columns a source would hand over."""
    with closing(sqlite3.connect(shop)) as opened:
        rows = opened.execute(QUERY + " ORDER BY serial LIMIT ?", (people,)).fetchall()
    return dict(zip(NAMES, zip(*rows, strict=True), strict=True))


def _now_us() -> int:
    return time.time_ns() // 1_000
