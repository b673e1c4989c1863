"""A made-up shop, canvas files about it, and the house that takes its people to a sandbox: no Airflow anywhere."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import yaml
from cryptography.fernet import Fernet, InvalidToken

from criteo_provider.core.ports import Source
from criteo_provider.sandbox.state import CLIENT_ID, CLIENT_SECRET
from criteo_provider.settings.canvas import Canvas
from criteo_provider.sources.sql import SqlSource
from criteo_provider.wiring import CriteoConnection, House, Surroundings

AD_ACCOUNT = "1001"
DEVICES = UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8")
TABLE = "CREATE TABLE people (serial INTEGER PRIMARY KEY, person TEXT, email TEXT, maid TEXT, ads INTEGER)"
QUERY = "SELECT serial, person, email, maid, ads FROM people"


@dataclass(frozen=True)
class Person:
    """Made-up person ``number``: one in 10 has no address, one in 3 a device, one in 7 did not say yes to ads.

    A ``twin`` has address, device and consent of another number.
    """

    number: int
    twin: int | None = None

    @property
    def like(self) -> int:
        return self.number if self.twin is None else self.twin

    @property
    def key(self) -> str:
        return f"person-{self.number:06d}"

    @property
    def email(self) -> str | None:
        return None if self.like % 10 == 0 else f"person.{self.like}@example.com"

    @property
    def device(self) -> str | None:
        return str(uuid5(DEVICES, str(self.like))) if self.like % 3 == 0 else None

    @property
    def ads(self) -> int | None:
        return None if self.like % 14 == 0 else int(self.like % 7 != 0)

    @property
    def digest(self) -> str | None:
        return self.email and sha256(self.email.encode()).hexdigest()


class Shop:
    """A table of people in SQLite."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            with self._open() as shop:
                shop.execute("PRAGMA journal_mode = WAL")
                shop.execute(TABLE)

    def add(self, people: Iterable[Person]) -> None:
        """Commit these people; their numbers are the order in which a cursor meets them."""
        rows = [(one.number, one.key, one.email, one.device, one.ads) for one in people]
        with self._open() as shop, shop:
            shop.executemany("INSERT INTO people VALUES (?, ?, ?, ?, ?)", rows)

    def source(self, canvas: Canvas) -> SqlSource:
        """The source of a canvas, as the hooks would make it."""
        declared: Any = canvas.entry.source.chosen
        return sql_source(self.path, canvas, first_look_s=min(2.0, declared.late_commit_s))

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.path, timeout=30)) as shop:
            yield shop


def sql_source(path: Path, canvas: Canvas, **more: Any) -> SqlSource:
    """Read the SQL source a canvas declares from a SQLite file, whatever its connection is called."""
    import time

    declared: Any = canvas.entry.source.chosen
    return SqlSource(
        lambda: sqlite3.connect(path, timeout=30),
        query=declared.query.text,
        cursor=declared.cursor,
        columns=canvas.entry.columns,
        user_key=canvas.entry.user_key,
        now_us=lambda: int(time.time() * 1e6),
        late_commit_s=declared.late_commit_s,
        name=declared.query.path,
        **more,
    )


class Sealer:
    """A cipher for access tokens; ``key`` is shared by all processes of a test."""

    def __init__(self, key: bytes | None = None) -> None:
        self.key = key or Fernet.generate_key()
        self._fernet = Fernet(self.key)

    def encrypt(self, plain: bytes) -> bytes:
        return self._fernet.encrypt(plain)

    def decrypt(self, secret: bytes) -> bytes:
        try:
            return self._fernet.decrypt(secret)
        except InvalidToken:
            raise ValueError("another key") from None

    def key_id(self) -> str:
        return "test-key"


def sync(
    step: str, audience: str, operation: str = "add", fields: Iterable[str] = ("email",), ad_account: str = AD_ACCOUNT
) -> dict[str, Any]:
    """Declare an audience step."""
    wanted = {"operation": operation, "ad_account": ad_account, "audience": audience, "fields": list(fields)}
    return {"id": step, "audience_sync": wanted}


def delay(step: str, length: str) -> dict[str, Any]:
    """Declare a delay."""
    return {"id": step, "delay": length}


def write_canvas(include: Path, canvas_id: str, *steps: dict[str, Any], late_commit: str = "1s") -> Path:
    """Write a canvas file over everybody in the shop who said yes to ads."""
    (include / "segments").mkdir(parents=True, exist_ok=True)
    (include / "segments" / "people.sql").write_text(QUERY)
    (include / "canvases").mkdir(exist_ok=True)
    file = include / "canvases" / f"{canvas_id}.yaml"
    source = {
        "connection": "shop",
        "query": "segments/people.sql",
        "cursor": ["serial"],
        "late_commit": late_commit,
    }
    file.write_text(
        yaml.safe_dump(
            {
                "name": canvas_id.title(),
                "owner": "test-team",
                "flush": "1s",
                "entry": {
                    "user_key": "person",
                    "source": {"sql": source},
                    "identifiers": {"email": "email", "madid": "maid"},
                    "consent": {"require": {"ads": True}},
                },
                "steps": list(steps),
            }
        )
    )
    return file


def open_house(
    include: Path,
    ledger_url: str,
    criteo_url: str,
    source: Callable[[Canvas], Source],
    *,
    cipher: Sealer | None = None,
    requests_per_minute: int | None = 60_000,
) -> House:
    """Open a house over these folders and addresses; close it."""
    connection = CriteoConnection(CLIENT_ID, CLIENT_SECRET, criteo_url, requests_per_minute=requests_per_minute)
    return House(Surroundings(include, ledger_url, lambda _name: connection, source, cipher or Sealer()))
