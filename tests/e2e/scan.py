"""Looks for what must never be written in everything a running house has written."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, quote, quote_plus

from tests.e2e.live import Live

SHORTEST_SECRET = 8
KINDS = {
    "address", "digest", "device id", "client secret", "access token", "refresh token", "authorization code",
    "code verifier",
}  # fmt: skip


@dataclass(frozen=True)
class Needle:
    """Something that must not be found; ``kind`` is what a report may say of it."""

    kind: str
    value: bytes = field(repr=False)


def needles(live: Live) -> list[Needle]:
    """Return everything that must not be found: of all people, of all tokens ever handed out, of the application."""
    found: set[tuple[str, str]] = set()
    for person in live.shop.people:
        found |= {("address", person.email), ("digest", person.email_sha256), ("device id", person.maid)}
        found.add(("device id", person.maid.replace("-", "")))
    secrets = {live.sandbox.client_secret}
    for exchange in live.exchanges:
        if exchange.is_token_call:
            form, answer = dict(parse_qsl(exchange.body.decode())), _object(exchange.answer)
            found |= {("access token", answer["access_token"])} if answer.get("access_token") else set()
            tokens = answer.get("refresh_token"), form.get("refresh_token")
            found |= {("refresh token", token) for token in tokens if token}
            found |= {("authorization code", form["code"])} if form.get("code") else set()
            found |= {("code verifier", form["code_verifier"])} if form.get("code_verifier") else set()
            secrets.add(form["client_secret"])
    for secret in secrets:
        found |= {("client secret", text) for text in (secret, quote(secret, safe=""), quote_plus(secret))}
    assert all(len(value) >= SHORTEST_SECRET for _, value in found)
    return [Needle(kind, value.encode()) for kind, value in sorted(found)]


def one_of_each_kind(all_needles: list[Needle]) -> list[Needle]:
    """Return the first needle of each kind."""
    return list({needle.kind: needle for needle in reversed(all_needles)}.values())


def found(live: Live, all_needles: list[Needle]) -> list[tuple[str, str]]:
    """Return where something was found and of what kind it is; never the thing itself."""
    hits: set[tuple[str, str]] = set()
    for where, content in haystacks(live):
        lowered = content.lower()
        hits |= {(where, needle.kind) for needle in all_needles if needle.value.lower() in lowered}
    return sorted(hits)


def haystacks(live: Live) -> Iterator[tuple[str, bytes]]:
    """Yield everything that was written: logs of tasks, processes and access, both databases, pages and outputs.

    The databases are read as files, so that no table can be forgotten: XComs, rendered fields, the audit log, the
    metadata of triggers and connections, and what deleted rows have left behind.
    """
    for file in sorted((*live.airflow.home.rglob("*"), *(live.place / "logs").rglob("*"), *_ledgers(live))):
        if file.is_file():
            yield str(file.relative_to(live.place)), file.read_bytes()
    yield "pages and outputs", "\n".join(live.shown).encode()


@contextmanager
def in_a_log(live: Live, needle: Needle) -> Iterator[None]:
    """Plant something in the log of a task."""
    file = next((live.airflow.home / "logs").rglob("attempt=1.log")).with_name("planted.log")
    file.write_bytes(b'{"event": "' + needle.value + b'"}')
    yield
    file.unlink()


@contextmanager
def in_the_database(live: Live, needle: Needle) -> Iterator[None]:
    """Plant something in a database like Airflow's own, beside it: a row of a table that nobody thought of."""
    file = live.airflow.home / "planted.db"
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("CREATE TABLE xcom (value TEXT)")
        database.execute("INSERT INTO xcom VALUES (?)", (json.dumps({"x": needle.value.decode()}),))
    yield
    file.unlink()


@contextmanager
def on_a_page(live: Live, needle: Needle) -> Iterator[None]:
    """Plant something on a page."""
    live.shown.append(f"<td>{needle.value.decode()}</td>")
    yield
    live.shown.pop()


def _ledgers(live: Live) -> list[Path]:
    return list(live.place.glob("ledger*"))


def _object(answer: bytes) -> dict[str, str]:
    try:
        content = json.loads(answer)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
