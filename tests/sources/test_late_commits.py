from __future__ import annotations

import random
import threading
import time
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from criteo_provider.sources import late_commits, sql
from criteo_provider.sources.sql import LOOK_ROWS
from tests.sources.table import Clock, Database, Entering, database

NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)
NOW_S = NOW.timestamp()
LATE_COMMIT_S = 60.0


@pytest.fixture
def people(ledger_url: str) -> Database:
    """An empty table of people, once on SQLite and once on PostgreSQL."""
    db = database(ledger_url)
    db.run("CREATE TABLE people (id INTEGER PRIMARY KEY, customer TEXT)")
    if db.paramstyle == "qmark":
        db.run("PRAGMA journal_mode = WAL")
    return db


def entering_ids(
    db: Database, *, late_commit_s: float, max_rows: int = 1000, clock: Clock | None = None, **settings: Any
) -> Entering:
    clock = clock or Clock()
    settings = {"now_us": clock.us, "user_key": "customer"} | settings
    source = db.source("SELECT * FROM people", late_commit_s=late_commit_s, **settings)
    return Entering(source, max_rows, clock)


def ids(entering: Entering) -> list[object]:
    return [row["id"] for row in entering.rows]


def test_a_plain_cursor_loses_the_row_that_is_committed_late(people: Database) -> None:
    """The yardstick: without further looks, a row stamped first and committed second is never read."""
    entering = entering_ids(people, late_commit_s=0)
    people.run("INSERT INTO people VALUES (2, 'b')")
    entering.forward()
    people.run("INSERT INTO people VALUES (1, 'a')")
    entering.forward()
    entering.wait(70)
    assert ids(entering) == [2]


def test_the_further_look_finds_it_once(people: Database) -> None:
    """The first further look finds the late row, the next ones find nothing more, and then there is an end."""
    entering = entering_ids(people, late_commit_s=LATE_COMMIT_S)
    people.run("INSERT INTO people VALUES (2, 'b')")
    entering.forward()
    people.run("INSERT INTO people VALUES (1, 'a')")
    entering.wait(3)
    assert ids(entering) == [2, 1]
    assert entering.position == [2]
    entering.wait(67)
    assert ids(entering) == [2, 1]
    assert entering.looks == []


def test_a_look_goes_on_when_the_cursor_was_given_one_more_column(people: Database) -> None:
    """Whoever is known stays known under the longer cursor, and a late row is found once."""
    entering = entering_ids(people, late_commit_s=LATE_COMMIT_S)
    people.run("INSERT INTO people VALUES (2, 'b')", "INSERT INTO people VALUES (3, 'c')")
    entering.forward()
    people.run("INSERT INTO people VALUES (1, 'a')")
    longer = entering_ids(people, late_commit_s=LATE_COMMIT_S, clock=entering.clock, cursor=["id", "customer"])
    entering.source = longer.source
    entering.wait(70)
    assert ids(entering) == [2, 3, 1]
    assert entering.looks == []


@pytest.mark.parametrize("committed_after_s", [0, 2, 4, 10, 30, 59, 60])
def test_a_row_committed_within_the_promise_is_found_whenever_that_is(people: Database, committed_after_s: int) -> None:
    """However late inside `late_commit` a row appears, exactly one look finds it."""
    entering = entering_ids(people, late_commit_s=LATE_COMMIT_S)
    people.run("INSERT INTO people VALUES (2, 'b')")
    entering.forward()
    entering.wait(committed_after_s)
    people.run("INSERT INTO people VALUES (1, 'a')")
    entering.wait(70 - committed_after_s)
    assert ids(entering) == [2, 1]
    assert entering.looks == []


def test_twins_are_told_apart_by_number(ledger_url: str) -> None:
    """Two equal rows are two entries: a third that comes late is entered, the two known ones are not again."""
    db = database(ledger_url)
    db.run("CREATE TABLE people (id INTEGER, customer TEXT)", "INSERT INTO people VALUES (1, 'a'), (1, 'a')")
    entering = entering_ids(db, late_commit_s=LATE_COMMIT_S)
    entering.forward()
    db.run("INSERT INTO people VALUES (1, 'a')")
    entering.wait(70)
    assert ids(entering) == [1, 1, 1]


def test_a_changed_row_that_kept_its_stamp_is_not_entered_again(people: Database) -> None:
    """A row is known by its cursor value and user key, whatever else changes in it."""
    people.run("ALTER TABLE people ADD COLUMN email TEXT", "INSERT INTO people VALUES (1, 'a', 'a@example.com')")
    entering = entering_ids(people, late_commit_s=LATE_COMMIT_S, columns=["id", "email"])
    entering.forward()
    people.run("UPDATE people SET email = 'b@example.com'")
    entering.wait(3)
    assert len(entering.rows) == 1


def test_a_flood_of_late_rows_comes_in_pages(people: Database) -> None:
    """A bulk load that commits late is entered whole, at most a page at a time, with marks that do not grow."""
    entering = entering_ids(people, late_commit_s=LATE_COMMIT_S, max_rows=LOOK_ROWS)
    last = 2 * LOOK_ROWS + 50
    people.run(f"INSERT INTO people VALUES ({last}, 'x')")
    entering.forward()
    connection = people.connect()
    many = f"INSERT INTO people WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {last - 1}) "
    connection.execute(many + "SELECT i, 'y' FROM n")
    connection.commit()
    connection.close()
    sizes = []
    for _ in range(80):
        before = len(entering.rows)
        entering.wait(1)
        sizes.append(len(entering.rows) - before)
        assert all(len(look.marks) <= 8 * (LOOK_ROWS + 1) for _, look in entering.looks)
    assert max(sizes) <= LOOK_ROWS
    assert Counter(ids(entering)) == Counter(range(1, last + 1))
    assert entering.looks == []


@pytest.mark.parametrize(
    ("newest", "unsettled_s"),
    [
        (17, 62.0),
        ("row-17", 62.0),
        (NOW, 62.0),
        (NOW - timedelta(seconds=61), 62.0),
        (NOW - timedelta(seconds=63), 0.0),
        (NOW + timedelta(seconds=100), 162.0),
        ((NOW - timedelta(seconds=63)).isoformat(), 0.0),
        ((NOW - timedelta(hours=11)).replace(tzinfo=None), 62.0),
        ((NOW - timedelta(hours=13)).replace(tzinfo=None), 0.0),
        ((NOW - timedelta(hours=13)).strftime("%Y-%m-%d %H:%M:%S"), 0.0),
        (date(2026, 6, 30), 62.0),
        (date(2026, 6, 29), 0.0),
        ("20260101", 62.0),
    ],
)
def test_only_what_is_old_beyond_doubt_needs_no_further_look(newest: object, unsettled_s: float) -> None:
    """A stretch of old times is settled, whatever zone a time without zone is of; numbers and texts say nothing."""
    assert late_commits.unsettled_s(newest, now_s=NOW_S, late_commit_s=LATE_COMMIT_S) == unsettled_s


def test_a_single_writer_costs_no_look() -> None:
    """`late_commit: 0s` promises a single writer, so there is nothing to look for."""
    assert late_commits.unsettled_s(1, now_s=NOW_S, late_commit_s=0) == 0


def test_small_stretches_are_looked_at_soon_and_large_ones_once(people: Database) -> None:
    """A live stream is on time (looks after 3, 6, 12, ... s); a backfill is read again only once."""
    many = "INSERT INTO people WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {}) "
    for rows, moments in ((9, [3, 6, 12, 24, 48, 62]), (5001, [62])):
        people.run("DELETE FROM people", many.format(rows) + "SELECT i, 'x' FROM n")
        entering = entering_ids(people, late_commit_s=LATE_COMMIT_S, max_rows=LOOK_ROWS)
        entering.forward()
        looked = []
        for second in range(1, 80):
            before = entering.looks
            entering.wait(1)
            looked += [second] if entering.looks != before else []
        assert looked == moments


class RealClock(Clock):
    """The time that passes."""

    @property
    def s(self) -> float:  # type: ignore[override]
        return time.time()

    @s.setter
    def s(self, _: float) -> None:
        """Nobody sets it."""


def write_late(db: Database, writer: int, until_s: float, clock: Any, committed: list[int]) -> None:
    """One writer: takes a serial number, dawdles, commits."""
    dice = random.Random(writer)
    while time.monotonic() < until_s:
        with clock["lock"]:
            clock["next"] += 1
            number = clock["next"]
        time.sleep(dice.random() * 0.05)
        connection = db.connect()
        connection.execute(f"INSERT INTO people VALUES ({number}, 'w{writer}')")
        time.sleep(dice.random() * 0.02)
        connection.commit()
        connection.close()
        committed.append(number)


def test_concurrent_writers_lose_nothing_and_repeat_nothing(people: Database) -> None:
    """Six writers that commit out of order: a plain cursor loses rows, ours enters each exactly once."""
    until_s = time.monotonic() + 2
    clock = {"lock": threading.Lock(), "next": 0}
    committed: list[int] = []
    writers = [threading.Thread(target=write_late, args=(people, n, until_s, clock, committed)) for n in range(6)]
    naive = entering_ids(people, late_commit_s=0)
    ours = entering_ids(people, late_commit_s=3, first_look_s=0.2, clock=RealClock())
    for thread in writers:
        thread.start()
    while any(thread.is_alive() for thread in writers) or ours.looks:
        for entering in (naive, ours):
            entering.forward()
            entering.recheck()
        time.sleep(0.02)
    for entering in (naive, ours):
        entering.forward()
    assert set(ids(naive)) < set(committed)
    assert Counter(ids(ours)) == Counter(committed)


def test_transactions_of_postgres_that_stay_open_lose_nothing(postgres_url: str) -> None:
    """Rows stamped `now()` in a transaction that ends after others have passed it are entered once."""
    db = database(postgres_url)
    db.run("CREATE TABLE people (at TIMESTAMPTZ DEFAULT now(), id SERIAL PRIMARY KEY)")
    clock = Clock()
    clock.s = time.time()
    source = db.source(
        "SELECT * FROM people",
        cursor=["at", "id"],
        user_key="id",
        late_commit_s=LATE_COMMIT_S,
        now_us=clock.us,
    )
    entering = Entering(source, clock=clock)
    slow = db.connect()
    slow.execute("INSERT INTO people DEFAULT VALUES")
    for _ in range(3):
        db.run("INSERT INTO people DEFAULT VALUES")
        entering.forward()
    assert ids(entering) == [2, 3, 4]
    slow.commit()
    slow.close()
    entering.wait(70)
    assert ids(entering) == [2, 3, 4, 1]
    assert entering.looks == []


def test_an_overdue_look_that_finds_more_than_a_page_leaves_nobody_behind(
    people: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first look that was taken only after the promise was over is the last one, and still goes on to the end."""
    monkeypatch.setattr(sql, "LOOK_ROWS", 3)
    entering = entering_ids(people, late_commit_s=LATE_COMMIT_S)
    people.run("INSERT INTO people VALUES (9, 'i')")
    entering.forward()
    people.run("INSERT INTO people VALUES " + ", ".join(f"({n}, 'late')" for n in range(1, 9)))
    entering.clock.s += 100
    for _ in range(4):
        entering.recheck()
    assert sorted(map(int, map(str, ids(entering)))) == list(range(1, 10))
    assert entering.looks == []
