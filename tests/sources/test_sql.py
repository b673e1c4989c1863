from __future__ import annotations

import random
import sqlite3
import weakref
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from criteo_provider.core.errors import SourceFailed
from criteo_provider.core.ports import Page
from criteo_provider.sources import sql
from criteo_provider.sources.keyset import Keyset
from criteo_provider.sources.rows import Rows
from criteo_provider.sources.sql import SqlSource
from tests.sources.table import Database, Entering, database, nothing_seen

NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)


@pytest.fixture
def db(ledger_url: str) -> Database:
    """An empty source database, once on SQLite and once on PostgreSQL."""
    return database(ledger_url)


def now_us() -> int:
    return int(NOW.timestamp() * 1e6)


def pages(source: SqlSource, position: Any = None, max_rows: int = 3) -> Iterator[Page]:
    return source.pages(position, max_rows=lambda: max_rows, seen=nothing_seen)


@pytest.mark.parametrize("max_rows", [1, 2, 7, 1000])
def test_every_row_is_read_once_in_order_wherever_pages_end(db: Database, max_rows: int) -> None:
    """Pages of any size give each row exactly once, in cursor order, though many share their first cursor value."""
    db.run("CREATE TABLE people (stamp INTEGER, id INTEGER)")
    dice = random.Random(max_rows)
    rows = sorted({(dice.randrange(4), dice.randrange(60)) for _ in range(100)})
    db.run(*(f"INSERT INTO people VALUES ({stamp}, {key})" for stamp, key in dice.sample(rows, len(rows))))
    source = db.source("SELECT * FROM people", cursor=["stamp", "id"], columns=["id", "stamp"])
    entering = Entering(source, max_rows)
    entering.forward()
    assert [(row["stamp"], row["id"]) for row in entering.rows] == rows
    assert not source.is_ahead(entering.position, nothing_seen)


def test_reading_goes_on_from_any_position(db: Database) -> None:
    """A reader that stops after any page and comes back with its position misses and repeats nothing."""
    db.run("CREATE TABLE people (id INTEGER)", *(f"INSERT INTO people VALUES ({n})" for n in range(10)))
    position, found = None, []
    while page := next(pages(db.source("SELECT id FROM people"), position), None):
        assert db.source("SELECT id FROM people").is_ahead(position, nothing_seen)
        found += list(page.columns["id"])
        position = page.position
    assert found == list(range(10))


def test_a_page_is_let_go_of_before_the_next_one_is_read(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a way it is through a table, the rows of one page are held and never those of two."""
    db.run("CREATE TABLE people (id INTEGER)", *(f"INSERT INTO people VALUES ({n})" for n in range(9)))
    made: list[weakref.ref[Rows]] = []
    held: list[bool] = []

    class Watched(Rows):
        def __init__(self, columns: list[list[object]]) -> None:
            held.extend(rows() is not None for rows in made)
            made.append(weakref.ref(self))
            super().__init__(columns)

    source = db.source("SELECT id FROM people")
    end = [page.position for page in pages(source)][-1]
    monkeypatch.setattr(sql, "Rows", Watched)
    for read in (pages(source), source.between(None, end, max_rows=lambda: 3)):
        made.clear()
        for page in read:
            del page
        assert len(made) == 3
    assert held == [False] * 6


def test_a_new_row_is_seen_on_the_kept_connection(db: Database) -> None:
    """The connection kept between looks holds no old snapshot."""
    db.run("CREATE TABLE people (id INTEGER)", "INSERT INTO people VALUES (1)")
    source = db.source("SELECT id FROM people")
    (page,) = pages(source)
    assert not source.is_ahead(page.position, nothing_seen)
    db.run("INSERT INTO people VALUES (2)")
    assert source.is_ahead(page.position, nothing_seen)


def test_rows_of_one_cursor_value_stay_on_one_page(db: Database) -> None:
    """A cursor that is not unique loses nothing at the edge of a page, and too many twins are a clear error."""
    db.run("CREATE TABLE people (stamp INTEGER, id INTEGER)")
    db.run(*(f"INSERT INTO people VALUES ({n // 3}, {n})" for n in range(9)))
    source = db.source("SELECT * FROM people", cursor=["stamp"], columns=["id"])
    assert [page.rows for page in pages(source, max_rows=5)] == [3, 3, 3]
    with pytest.raises(SourceFailed, match=r"more than 2 rows share one value of the cursor \(stamp\)"):
        list(pages(source, max_rows=2))


@pytest.mark.parametrize("upto", [None, [2]])
def test_twins_come_together_though_little_room_is_left(db: Database, upto: list[int] | None) -> None:
    """How many rows may share a value is told by a whole page, not by what is left of one; and no row beside them."""
    db.run("CREATE TABLE people (stamp INTEGER, id INTEGER)")
    db.run(*(f"INSERT INTO people VALUES ({n // 3}, {n})" for n in range(9)))
    source = db.source("SELECT * FROM people", cursor=["stamp"], columns=["id"])
    asked, given = iter([3, 1, 2, 3, 3]).__next__, []  # once for each page
    forward = source.pages(None, max_rows=asked, seen=nothing_seen)
    for page in forward if upto is None else source.between(None, [*upto], max_rows=asked):
        given.append(page)
    assert [page.rows for page in given if page.rows] == [3, 3, 3]
    assert sorted(n for page in given for n in page.columns["id"]) == list(range(9))
    assert given[-1].position == [2]


def test_twins_that_move_on_while_they_are_read_hide_nobody(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows stamped anew between two questions leave those behind them to be read, and come with their new stamp."""
    db.run("CREATE TABLE people (stamp INTEGER, id INTEGER)")
    db.run(*(f"INSERT INTO people VALUES ({n // 3}, {n})" for n in range(9)))
    source = db.source("SELECT * FROM people", cursor=["stamp"], columns=["id"])
    first_alike = source._first_alike

    def stamped_anew_before(*words: Any) -> Rows:
        db.run("UPDATE people SET stamp = 7 WHERE stamp = 1")
        return first_alike(*words)

    monkeypatch.setattr(source, "_first_alike", stamped_anew_before)
    room = iter([3, 1, 3, 3, 3])
    given = [n for page in source.between(None, [2], max_rows=lambda: next(room)) for n in page.columns["id"]]
    assert sorted(given) == [0, 1, 2, 6, 7, 8]


def test_a_cursor_may_be_given_one_more_column(db: Database) -> None:
    """What made the cursor unique is added behind it: reading goes on where it was, nothing twice and nothing lost."""
    db.run("CREATE TABLE people (stamp INTEGER, id INTEGER)")
    db.run(*(f"INSERT INTO people VALUES ({n // 5}, {n})" for n in range(10)))
    one, both = (
        db.source("SELECT * FROM people", cursor=cursor, columns=["id"]) for cursor in (["stamp"], ["stamp", "id"])
    )
    first = next(pages(one, max_rows=5))
    assert both.is_ahead(first.position, nothing_seen)
    rest = list(pages(both, first.position, max_rows=2))
    assert [n for page in (first, *rest) for n in page.columns["id"]] == list(range(10))
    assert rest[-1].position == [1, 9]
    assert [n for page in both.between(first.position, [1], max_rows=lambda: 2) for n in page.columns["id"]] == [
        5,
        6,
        7,
        8,
        9,
    ]


@pytest.mark.parametrize("there", ["'2026-07-01'", "7"])
def test_a_cursor_that_begins_with_another_column_is_refused(db: Database, there: str) -> None:
    """A stored position of another kind than the first columns is not guessed at, whichever sorts first."""
    db.run(f"CREATE TABLE people (stamp {'INTEGER' if there == '7' else 'TEXT'}, id INTEGER)")
    db.run(f"INSERT INTO people VALUES ({there}, 1)")
    source = db.source("SELECT * FROM people", cursor=["stamp", "id"], columns=["id"])
    position = ["2026-06-30"] if there == "7" else [7]
    with pytest.raises(SourceFailed, match="does not fit the cursor columns stamp, id"):
        source.is_ahead(position, nothing_seen)
    with pytest.raises(SourceFailed, match="does not fit the cursor columns stamp, id"):
        list(pages(source, position))


def test_times_texts_and_numbers_can_be_cursors(db: Database) -> None:
    """Every cursor type of the database round trips through the position."""
    db.run("CREATE TABLE people (at TIMESTAMP, name TEXT, worth NUMERIC(12, 2), id INTEGER)")
    db.run(*(f"INSERT INTO people VALUES ('2026-01-0{n} 10:00:00.12345', 'n{n}', {n}.25, {n})" for n in range(1, 8)))
    for column in ("at", "name", "worth"):
        entering = Entering(db.source("SELECT * FROM people", cursor=[column], columns=["id"]), max_rows=2)
        entering.forward()
        assert [row["id"] for row in entering.rows] == list(range(1, 8))


def test_the_segment_may_end_in_a_comment_or_hold_any_sign(db: Database) -> None:
    """A trailing comment or semicolon, WITH, and percent signs do not break the reading."""
    db.run("CREATE TABLE people (id INTEGER, name TEXT)", "INSERT INTO people VALUES (1, 'anna'), (2, 'bert')")
    for query in (
        "SELECT * FROM people WHERE name LIKE 'a%' -- only a",
        "WITH chosen AS (SELECT * FROM people) SELECT * FROM chosen WHERE name LIKE 'a%';\n",
    ):
        entering = Entering(db.source(query), max_rows=1)
        entering.forward()
        entering.forward()
        assert [row["id"] for row in entering.rows] == [1]


def test_a_missing_column_is_named_with_the_query(db: Database) -> None:
    """A column the query does not give is named, with those there and the mend (SQLite would read it as text)."""
    db.run("CREATE TABLE people (id INTEGER, email TEXT)")
    source = db.source("SELECT * FROM people", columns=["mail"], name="segments/vip.sql")
    with pytest.raises(SourceFailed) as refusal:
        source.is_ahead(None, nothing_seen)
    assert "segments/vip.sql gives no column 'mail'; it gives: id, email." in str(refusal.value)
    assert "correct the name in the canvas" in str(refusal.value)


def test_column_names_may_differ_in_case(db: Database) -> None:
    """Columns are found whatever case the database gives their names (Snowflake and Oracle give capitals)."""
    db.run('CREATE TABLE people ("ID" INTEGER)', "INSERT INTO people VALUES (5)")
    assert [page.columns for page in pages(db.source("SELECT * FROM people"))] == [{"id": [5]}]


def test_rows_without_a_cursor_value_are_refused_at_the_beginning(db: Database) -> None:
    """Rows that would never be read are spoken of before anything is entered; later ones wait for their value."""
    db.run("CREATE TABLE people (at INTEGER, id INTEGER)", "INSERT INTO people VALUES (1, 1), (NULL, 2)")
    source = db.source("SELECT * FROM people", cursor=["at", "id"], columns=["id"])
    with pytest.raises(SourceFailed, match=r"no value in the cursor column 'at'.*WHERE at IS NOT NULL"):
        list(pages(source))
    db.run("DELETE FROM people WHERE at IS NULL")
    (page,) = pages(source)
    db.run("INSERT INTO people VALUES (NULL, 3), (7, NULL)")
    assert not source.is_ahead(page.position, nothing_seen)
    db.run("UPDATE people SET at = 9 WHERE id = 3")
    assert [later.columns["id"] for later in pages(source, page.position)] == [[3]]


def test_a_row_from_the_future_holds_nobody_up(db: Database) -> None:
    """A row stamped next year waits, and the cursor does not follow it over everybody who comes before then."""
    db.run("CREATE TABLE people (at TEXT, id INTEGER)")
    db.run("INSERT INTO people VALUES ('2026-07-01T11:59:00Z', 1), ('2027-07-01T00:00:00Z', 2)")
    clock = [now_us()]
    source = db.source("SELECT * FROM people", cursor=["at", "id"], columns=["id"], now_us=lambda: clock[0])
    entering = Entering(source, max_rows=1)
    entering.forward()
    assert [row["id"] for row in entering.rows] == [1]
    assert not source.is_ahead(entering.position, nothing_seen)
    db.run("INSERT INTO people VALUES ('2026-07-01T12:00:01Z', 3)")
    entering.forward()
    clock[0] += 366 * 86_400_000_000
    entering.forward()
    assert [row["id"] for row in entering.rows] == [1, 3, 2]


def test_a_failing_query_is_told_without_any_value(db: Database) -> None:
    """What the driver says about rows stays out of the sentence; what it says about the statement is in it."""
    db.run("CREATE TABLE people (id INTEGER, email TEXT)", "INSERT INTO people VALUES (1, 'a@example.com')")
    with pytest.raises(SourceFailed, match=r"the segment's query cannot be read now: \w+.*nobody") as failure:
        db.source("SELECT * FROM nobody").is_ahead(None, nothing_seen)
    assert failure.value.__cause__ is None
    assert failure.value.__suppress_context__
    if db.paramstyle == "pyformat":
        with pytest.raises(SourceFailed) as failure:
            db.source("SELECT id, CAST(email AS INTEGER) AS number FROM people", columns=["number"]).is_ahead(
                None, nothing_seen
            )
        assert "22P02" in str(failure.value)
        assert "example.com" not in str(failure.value)


def test_an_unreachable_database_is_one_sentence() -> None:
    """A connection that cannot be made is SourceFailed, not a driver's exception."""

    def refuse() -> Any:
        raise psycopg.OperationalError("connection refused for kate@example.com")

    source = SqlSource(refuse, query="SELECT 1", cursor=["id"], columns=["id"], now_us=now_us)
    with pytest.raises(SourceFailed) as failure:
        source.is_ahead(None, nothing_seen)
    assert str(failure.value) == "the segment's query cannot be read now: OperationalError"


def test_a_connection_that_died_while_idle_is_replaced(tmp_path: Any) -> None:
    """A kept connection that a firewall or a restart has cut costs no failure."""
    opened: list[sqlite3.Connection] = []

    def connect() -> sqlite3.Connection:
        opened.append(sqlite3.connect(tmp_path / "shop.db"))
        return opened[-1]

    sqlite3.connect(tmp_path / "shop.db").execute("CREATE TABLE people (id INTEGER)")
    source = SqlSource(connect, query="SELECT * FROM people", cursor=["id"], columns=["id"], now_us=now_us)
    assert not source.is_ahead(None, nothing_seen)
    opened[-1].close()
    assert not source.is_ahead(None, nothing_seen)
    assert len(opened) == 2
    source.close()
    with pytest.raises(sqlite3.ProgrammingError):
        opened[-1].execute("SELECT 1")


def test_each_statement_is_one_range_of_the_index(postgres_url: str) -> None:
    """PostgreSQL starts every page at its place in the index, also inside a million equal times."""
    db = database(postgres_url)
    db.run(
        "CREATE TABLE people (at TIMESTAMPTZ, id INTEGER, PRIMARY KEY (at, id))",
        "INSERT INTO people SELECT '2026-07-01T00:00:00Z', n FROM generate_series(1, 20000) n",
        "ANALYZE people",
    )
    keyset = Keyset("SELECT * FROM people", paramstyle="format", quote='"')
    for statement in keyset.ranges(["id"], ["at", "id"], after=(NOW, 19_000), upto=None, limit=100):
        connection = db.connect()
        plan = "\n".join(row[0] for row in connection.execute("EXPLAIN " + statement.sql, statement.parameters))
        connection.close()
        assert "Index Cond" in plan
        assert "Filter" not in plan
