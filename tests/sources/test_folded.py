from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from criteo_provider.core.errors import SourceFailed
from criteo_provider.sources import sql
from criteo_provider.sources.folded import can_fold, folded
from criteo_provider.sources.keyset import Statement
from criteo_provider.sources.rows import Rows
from criteo_provider.sources.sql import SqlSource
from tests.sources.table import Clock, Database, database, nothing_seen

Values = Sequence[Sequence[object]]


@pytest.fixture
def in_one_row(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each page, or part of one, had that came in one row."""
    given_rows: list[int] = []

    def watched(*asked: Any) -> Rows:
        rows = folded(*asked)
        given_rows.append(len(rows))
        return rows

    monkeypatch.setattr(sql, "folded", watched)
    return given_rows


@pytest.fixture
def shop(sqlite_url: str) -> Database:
    return database(sqlite_url)


def fill(shop: Database, columns: str, rows: Values) -> None:
    with closing(shop.connect()) as connection, connection:
        connection.execute(f"CREATE TABLE people ({columns})")
        connection.executemany(f"INSERT INTO people VALUES ({', '.join('?' * len(rows[0]))})", rows)


def read(source: SqlSource, columns: Sequence[str], max_rows: int = 10) -> list[tuple[object, ...]]:
    """Read to the end, page by page."""
    found: list[tuple[object, ...]] = []
    for page in source.pages(None, max_rows=lambda: max_rows, seen=nothing_seen):
        found += zip(*(page.columns[column] for column in columns), strict=True)
    return found


def numbered(values: Sequence[object]) -> list[tuple[object, ...]]:
    return [(number, value) for number, value in enumerate(values)]


def with_types(rows: Values) -> list[list[tuple[type, object]]]:
    return [[(type(value), value) for value in row] for row in rows]


EXACT = st.none() | st.integers(-(2**63), 2**63 - 1) | st.text(st.characters(exclude_categories=["Cs"]))


@given(st.lists(EXACT, min_size=30, max_size=60))
@settings(max_examples=60, deadline=None)
def test_texts_whole_numbers_and_nothing_come_as_they_are(values: list[object]) -> None:
    """Whatever the texts hold, quotes, escapes, NUL or the whole of Unicode, and however large the numbers."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute('CREATE TABLE people (id INTEGER, "odd ""name" )')
        connection.executemany("INSERT INTO people VALUES (?, ?)", numbered(values))
        statement = Statement('SELECT id, "odd ""name" FROM people WHERE id >= ? ORDER BY id LIMIT 50', [3])
        rows = folded(connection, statement, ["id", '"odd ""name"'])
        plain = connection.execute(statement.sql, statement.parameters).fetchall()
    assert with_types([*zip(*rows.columns, strict=True)]) == with_types(plain)


@pytest.mark.parametrize("value", [0.1, 5.0, 1e300, float("inf"), b"\x00\xff", b"plain"])
def test_what_json_does_not_keep_is_refused(value: object) -> None:
    """A real among whole numbers, or bytes among texts, is never taken for something else."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE people (id INTEGER, odd)")
        connection.executemany("INSERT INTO people VALUES (?, ?)", numbered([1, "a", None, value]))
        with pytest.raises(Exception, match=r"got `float`|BLOB|JSON|malformed"):
            folded(connection, Statement("SELECT id, odd FROM people ORDER BY id LIMIT 9", []), ["id", "odd"])


@pytest.mark.parametrize("max_rows", [3, 10, 49])
def test_pages_are_the_same_in_one_row(shop: Database, in_one_row: list[int], max_rows: int) -> None:
    """From the second page on rows come by pages, each once, though many share a first cursor value."""
    rows = [(number // 7, number, f"customer-{number}" if number % 5 else None) for number in range(200)]
    fill(shop, "stamp INTEGER, id INTEGER, customer TEXT", rows[::-1])
    columns = ["stamp", "id", "customer"]
    source = shop.source("SELECT * FROM people", cursor=["stamp", "id"], columns=columns)
    assert read(source, columns, max_rows) == rows
    assert sum(in_one_row) >= 200 - 2 * max_rows
    in_one_row.clear()
    stretch = source.between([3, 24], [20, 143], max_rows=lambda: max_rows)
    assert [key for page in stretch for key in page.columns["id"]] == [*range(25, 144)]
    assert sum(in_one_row) >= 119 - 2 * max_rows


def test_a_single_page_is_read_row_by_row(shop: Database, in_one_row: list[int]) -> None:
    """Who is not far behind is read as ever, with no question more."""
    fill(shop, "id INTEGER, customer TEXT", numbered(["a"] * 10))
    assert len(read(shop.source("SELECT * FROM people"), ["id"])) == 10
    assert not in_one_row


def test_a_page_that_does_not_come_alike_is_read_row_by_row(
    shop: Database, in_one_row: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anybody relies on it the beginning of the first page is read in both ways, and compared."""
    fill(shop, "id INTEGER, customer TEXT", numbered([str(number) for number in range(60)]))

    def otherwise(*asked: Any) -> Rows:
        rows = folded(*asked)
        in_one_row.append(len(rows))
        return Rows([rows.columns[0], [int(str(value)) for value in rows.columns[1]]])

    monkeypatch.setattr(sql, "folded", otherwise)
    source = shop.source("SELECT * FROM people", columns=["id", "customer"])
    assert read(source, ["id", "customer"]) == numbered([str(number) for number in range(60)])
    assert in_one_row == [10]


@pytest.mark.parametrize(
    ("column", "later"),
    [("odd INTEGER", 2.5), ("odd", 5.0), ("odd TEXT", b"\x00\xff"), ("odd REAL", 7.0), ("odd", "text"), ("odd", None)],
)
def test_whatever_comes_later_comes_as_it_is(
    shop: Database, column: str, later: object, caplog: pytest.LogCaptureFixture
) -> None:
    """SQLite lets any row hold anything: a page that cannot come in one row is read row by row, and so is the rest."""
    fill(shop, f"id INTEGER, {column}", numbered([1] * 35 + [later] * 5 + [1] * 20))
    caplog.set_level(logging.INFO)
    source = shop.source("SELECT * FROM people", columns=["id", "odd"], name="segments/people.sql")
    found = read(source, ["id", "odd"])
    with closing(shop.connect()) as connection:
        assert with_types(found) == with_types(connection.execute("SELECT * FROM people ORDER BY id").fetchall())
    said = "segments/people.sql is read row by row from now on" in caplog.text
    assert said == (type(later) in (float, bytes) and column != "odd REAL")


def test_json_in_a_segment_stays_text(shop: Database, in_one_row: list[int]) -> None:
    """What SQLite's JSON functions give is a text in a page, too, though it could be told from one."""
    fill(shop, "id INTEGER, word TEXT", numbered([f"w{number}" for number in range(40)]))
    query = """SELECT id, json_quote(word) AS quoted, json_array(word, id) AS listed FROM people"""
    source = shop.source(query, columns=["id", "quoted", "listed"])
    expected = [(number, f'"w{number}"', f'["w{number}",{number}]') for number in range(40)]
    assert read(source, ["id", "quoted", "listed"]) == expected
    assert sum(in_one_row) >= 20


def test_a_broken_text_is_told_as_ever(shop: Database) -> None:
    """Text that is not UTF-8 ends the reading with a sentence that holds no value; the pages before it are given."""
    fill(shop, "id INTEGER, word TEXT", numbered(["a"] * 40))
    shop.run("UPDATE people SET word = CAST(x'ff40' AS TEXT) WHERE id = 25")
    pages = shop.source("SELECT * FROM people", columns=["id", "word"]).pages(
        None, max_rows=lambda: 10, seen=nothing_seen
    )
    assert [next(pages).rows, next(pages).rows] == [10, 10]
    with pytest.raises(SourceFailed, match=r"cannot be read now: OperationalError$"):
        next(pages)


def test_a_connection_that_dies_between_pages_is_made_anew(shop: Database, in_one_row: list[int]) -> None:
    """Each row is given once, whenever the connection is closed on the way."""
    fill(shop, "id INTEGER, word TEXT", numbered(["a"] * 60))
    source = shop.source("SELECT * FROM people", columns=["id"])
    ids: list[object] = []
    for page in source.pages(None, max_rows=lambda: 10, seen=nothing_seen):
        ids += page.columns["id"]
        for connection in source._kept.values():
            connection.close()
    assert ids == [*range(60)]
    assert in_one_row == [10]


def test_threads_read_side_by_side(shop: Database, in_one_row: list[int]) -> None:
    """Two readers of one source, the one of a backlog and the one of fresh people, give each their own rows."""
    fill(shop, "id INTEGER, word TEXT", numbered(["a"] * 4_000))
    source = shop.source("SELECT * FROM people", columns=["id"], now_us=Clock().us)
    found: dict[int, list[object]] = {}

    def stretch(number: int) -> None:
        start, end = [number * 1_000 - 1], [number * 1_000 + 999]
        pages = source.between(start, end, max_rows=lambda: 50)
        found[number] = [key for page in pages for key in page.columns["id"]]

    readers = [threading.Thread(target=stretch, args=[number]) for number in range(4)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert [*found[0], *found[1], *found[2], *found[3]] == [*range(4_000)]
    assert sum(in_one_row) > 3_000


def test_only_sqlite_is_asked_for_a_page_in_one_row(tmp_path: Path, postgres_url: str, in_one_row: list[int]) -> None:
    """A database that was not tried with it is read row by row."""
    with closing(sqlite3.connect(tmp_path / "shop.db")) as connection:
        assert can_fold(connection)
    db = database(postgres_url)
    db.run("CREATE TABLE people (id INTEGER)", "INSERT INTO people SELECT generate_series(0, 59)")
    assert read(db.source("SELECT * FROM people"), ["id"]) == [(number,) for number in range(60)]
    assert not in_one_row
