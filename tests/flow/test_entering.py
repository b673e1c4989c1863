"""Enter at work: real sources, several readers at once, and what a failure takes with it; on both engines."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import SQLAlchemyError

from criteo_provider.core import eligibility
from criteo_provider.core.errors import LostClaim, SourceFailed
from criteo_provider.core.model import Role
from criteo_provider.core.ports import Json, Look, MaxRows, Page, Seen, Source
from criteo_provider.flow import enter as enters
from criteo_provider.flow.enter import CURSOR_LEASE_S, Enter, Entered, EntryPlan
from criteo_provider.flow.packing import FieldColumn
from criteo_provider.sources.files import FilesSource
from criteo_provider.sources.sql import SqlSource
from criteo_provider.store.schema import look, source_unit
from criteo_provider.wiring.beside import Beside
from tests.sources.table import database
from tests.world import World, canvas, crowd, digest, step

COLUMNS = ("person", "email", "maid", "ads")

Row = tuple[object, object, object, object]


@dataclass
class Rows:
    """A source of rows in pages of two; the position is how many were read. ``at`` is told each page's number."""

    rows: Sequence[Row]
    at: Callable[[int], None] = lambda _number: None
    calls: list[Json] = field(default_factory=list)

    def is_ahead(self, position: Json, seen: Seen) -> bool:
        return int(str(position or 0)) < len(self.rows)

    def pages(self, position: Json, *, max_rows: MaxRows, seen: Seen) -> Generator[Page]:
        self.calls.append(position)
        for number, first in enumerate(range(int(str(position or 0)), len(self.rows), 2)):
            self.at(number)
            rows = self.rows[first : first + 2]
            columns = dict(zip(COLUMNS, zip(*rows, strict=True), strict=True))
            yield Page(columns, len(rows), first + len(rows))

    def recheck(self, look: Look) -> Iterator[tuple[Page, Look | None]]:
        raise NotImplementedError


@pytest.fixture
def world(ledger_url: str) -> Iterator[World]:
    """A ledger with one canvas that sends addresses."""
    world = World(ledger_url)
    world.declare(canvas("vip", step("add")))
    yield world
    world.close()


def person(number: int, *, ads: object = True, email: object = "", maid: object = None) -> Row:
    """A made-up row; everybody has an address unless told otherwise."""
    address = f"person{number}@example.com" if email == "" else email
    return f"key-of-{number}", address, maid, ads


def enter(world: World, source: Source, *, canvas_id: str = "vip", owner: str = "me", late_s: float = 0) -> Enter:
    """Enter of a canvas that wants e-mail addresses and devices of who said yes to ads."""
    fields = FieldColumn("email", "email"), FieldColumn("madid", "maid")
    plan = EntryPlan(canvas_id, "person", fields, eligibility.compile({"ads": True}), world.plans[canvas_id])
    return Enter(plan, source, world.ledger, lambda: world.now_us + round(late_s * 1e6), owner)


def tick(entering: Enter) -> Entered:
    """Let it work through its source once."""
    return entering.tick(threading.Event())


def test_a_failing_source_leaves_its_cursor_and_the_other_canvas_goes_on(world: World) -> None:
    """What breaks in one source is remembered as its trouble; later everybody comes in once, nobody twice."""
    world.declare(canvas("vip", step("add")), canvas("other", step("else", audience="Others")))

    def breaks(page: int) -> None:
        if page == 2:
            raise SourceFailed("the shop cannot be read now")

    people = [person(number) for number in range(6)]
    with pytest.raises(SourceFailed):
        tick(enter(world, Rows(people, breaks)))
    reached = int(str(world.ledger.position("vip") or 0))
    assert world.numbers("add")[0] == reached
    assert [(row.scope, row.key) for row in world.ledger.troubles()] == [("source", "vip")]  # type: ignore[attr-defined]
    assert not world.ledger.may_probe("source", "vip", now_us=world.now_us)
    assert tick(enter(world, Rows(people), canvas_id="other")).people == 6
    tick(enter(world, Rows(people)))
    assert world.numbers("add")[0] == 6
    assert sorted(world.statuses("add")) == sorted(str(one[0]) for one in people)


class Columns(dict[str, Sequence[object]]):
    """Columns of which can be told whether anybody holds them."""


def test_a_page_is_let_go_of_before_the_next_one_is_read(world: World) -> None:
    """A page of a wide source is tens of megabytes: never are two of them held."""
    pages: list[weakref.ref[Columns]] = []
    held: list[bool] = []

    class Watched(Rows):
        def pages(self, position: Json, *, max_rows: MaxRows, seen: Seen) -> Generator[Page]:
            for number in range(4):
                held.extend(page() is not None for page in pages)
                yield self.page(number)

        def page(self, number: int) -> Page:
            columns = Columns(zip(COLUMNS, zip(person(number), strict=True), strict=True))
            pages.append(weakref.ref(columns))
            return Page(columns, 1, number + 1)

    assert tick(enter(world, Watched([]))).people == 4
    assert held == [False] * 6


def test_pages_given_before_a_source_fails_are_entered(world: World) -> None:
    """A source that gives what it can and then fails has given it: those people come in, again and again if need be."""

    def breaks(page: int) -> None:
        if page == 2:
            raise SourceFailed("one of the files is damaged")

    with pytest.raises(SourceFailed):
        tick(enter(world, Rows([person(number) for number in range(6)], breaks)))
    assert world.numbers("add")[0] == 4
    assert world.ledger.position("vip") == 4


def test_a_damaged_file_does_not_hold_the_others_back(world: World, tmp_path: Path) -> None:
    """The people of the good files come in though one file is damaged, and that one is named."""
    put(tmp_path / "a.csv", "person,email,maid,ads\nuser-1,one@example.com,,true\n")
    put(tmp_path / "b.csv", 'person,email,maid,ads\nuser-2,"two@example.com,,true\n')
    put(tmp_path / "c.csv", "person,email,maid,ads\nuser-3,three@example.com,,true\n")
    with pytest.raises(SourceFailed, match=r"b\.csv"):
        tick(enter(world, files(tmp_path)))
    assert sorted(world.statuses("add")) == ["user-1", "user-3"]


def test_threads_that_enter_together_enter_everybody_once(world: World) -> None:
    """Four owners at once, tick after tick: each row is one entry."""
    people = [person(number) for number in range(40)]
    start = threading.Barrier(4)

    def work(owner: str) -> None:
        entering = enter(world, Rows(people), owner=owner)
        start.wait(20)
        for _ in range(5):
            tick(entering)

    threads = [threading.Thread(target=work, args=(f"owner-{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert world.numbers("add")[0] == 40
    assert sorted(world.statuses("add")) == sorted(str(one[0]) for one in people)


def test_rows_committed_late_are_entered_once(world: World, tmp_path: Path) -> None:
    """A row that appears behind the cursor comes in at the next look, once, whoever looks and however often."""
    shop = database(f"sqlite:///{tmp_path / 'shop.db'}")
    shop.run("CREATE TABLE people (serial INTEGER PRIMARY KEY, person TEXT, email TEXT, maid TEXT, ads INTEGER)")

    def commit(*serials: int) -> None:
        shop.run(*(f"INSERT INTO people VALUES ({n}, 'key-of-{n}', 'p{n}@example.com', NULL, 1)" for n in serials))

    def source() -> SqlSource:
        settings = {"cursor": ["serial"], "columns": COLUMNS, "late_commit_s": 30.0, "user_key": "person"}
        return shop.source("SELECT * FROM people", **settings, now_us=lambda: world.now_us)

    commit(1, 2, 4, 6)
    assert tick(enter(world, source())).people == 4
    commit(3, 5)
    world.pass_time(4)
    first, second = (enter(world, source(), owner=owner) for owner in ("one", "another"))
    assert tick(first).people + tick(second).people == 2
    commit(7)
    for _ in range(8):
        world.pass_time(8)
        tick(first)
        tick(second)
    assert sorted(world.statuses("add")) == [f"key-of-{n}" for n in range(1, 8)]
    assert world.numbers("add")[0] == 7
    with world.engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(look)).scalar_one() == 0


def test_each_file_is_entered_once(world: World, tmp_path: Path) -> None:
    """A finished file is never read again, by whoever looks at the folder; a new one is."""
    put(tmp_path / "a.csv", "person,email,maid,ads\nuser-1,one@example.com,,true\nuser-2,two@example.com,,\n")
    put(tmp_path / "b.csv", "person,email,maid,ads\nuser-3,three@example.com,,true\n")
    assert tick(enter(world, files(tmp_path))).people == 2
    assert tick(enter(world, files(tmp_path))).rows == 0
    put(tmp_path / "c.csv", "person,email,maid,ads\nuser-4,four@example.com,,true\n")
    assert tick(enter(world, files(tmp_path))).people == 1
    assert sorted(world.statuses("add")) == ["user-1", "user-3", "user-4"]
    with world.engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(source_unit)).scalar_one() == 3


def test_stopping_keeps_what_was_read(world: World) -> None:
    """A stop in the middle seals what was read so far; the next tick goes on behind it."""
    stop = threading.Event()

    def stops(page: int) -> None:
        if page == 1:
            stop.set()

    people = [person(number) for number in range(8)]
    assert enter(world, Rows(people, stops)).tick(stop).people == 4
    rest = Rows(people)
    assert tick(enter(world, rest)).people == 4
    assert rest.calls == [4]
    assert world.claim(Role.FRESH) is not None


def files(folder: Path) -> FilesSource:
    """The files of a folder, old enough to be read."""
    return FilesSource(folder, columns=COLUMNS, now_us=lambda: int(time.time() * 1e6))


def put(path: Path, text: str) -> None:
    """Write a file, changed long ago."""
    path.write_text(text)
    an_hour_ago_s = time.time() - 3600
    os.utime(path, (an_hour_ago_s, an_hour_ago_s))


@pytest.mark.parametrize("table", ["chunk", "identifiers", "stage"])
def test_an_error_of_the_database_shows_nobody(world: World, table: str) -> None:
    """When sealing breaks, what Airflow will print of it names neither users nor identifiers."""
    with renamed(world, table), pytest.raises(SQLAlchemyError) as caught:
        tick(enter(world, Rows([person(1)])))
    shown = chain(caught.value)
    assert table in shown
    assert "key-of-1" not in shown
    assert repr(digest(1))[2:14] not in shown
    assert tick(enter(world, Rows([person(1)]))).people == 1


@contextmanager
def renamed(world: World, table: str) -> Iterator[None]:
    """Take a table away, so that whatever writes there breaks, and put it back."""
    rename = "ALTER TABLE {} RENAME TO {}"
    with world.engine.begin() as connection:
        connection.execute(text(rename.format(table, "elsewhere")))
    yield
    with world.engine.begin() as connection:
        connection.execute(text(rename.format("elsewhere", table)))


def chain(error: BaseException | None) -> str:
    """All that a traceback would print of an exception and what led to it."""
    told: list[Any] = []
    while error is not None:
        told.append(str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(told)


def people_of(count: int) -> list[Row]:
    """So many made-up people."""
    return [person(number) for number in range(count)]


@pytest.fixture
def beside() -> Iterator[Beside]:
    """Hands beside the thread that reads."""
    with closing(Beside()) as beside:
        yield beside


def entering_beside(world: World, rows: Rows, beside: Beside, monkeypatch: pytest.MonkeyPatch) -> Enter:
    """Enter whose every page is a chunk, sealed beside."""
    monkeypatch.setattr("criteo_provider.flow.filling.MAX_IDENTIFIERS", 2)
    monkeypatch.setattr(enters, "SEAL_WITHIN_S", 60.0)  # on a slow machine, too
    entering = enter(world, rows)
    entering._hands = beside
    return entering


def test_the_next_page_is_read_while_the_one_before_is_sealed(
    world: World, beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow ledger does not keep the source waiting; chunks are sealed in order, and all of them when it ends."""
    third_is_read, sealed = threading.Event(), []
    seal = world.ledger.seal

    def slow_seal(*args: Any, **names: Any) -> Any:
        assert third_is_read.wait(30)
        sealed.append(names["position"])
        return seal(*args, **names)

    monkeypatch.setattr(world.ledger, "seal", slow_seal)
    rows = Rows(people_of(10), lambda page: third_is_read.set() if page == 2 else None)
    assert tick(entering_beside(world, rows, beside, monkeypatch)) == Entered(rows=10, people=10, chunks=5)
    assert sealed == [2, 4, 6, 8, 10]
    assert (world.numbers("add")[0], world.ledger.position("vip")) == (10, 10)


def test_who_loses_the_cursor_while_sealing_beside_seals_nothing_more(
    world: World, beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process takes over and seals: what was begun behind that is left, and nobody enters twice."""

    def take_over(page: int) -> None:
        # Once more where the chunk that is being sealed just now has moved the cursor, and keeps it.
        while page == 3 and not seals_two_more():
            pass

    def seals_two_more() -> bool:
        world.pass_time(CURSOR_LEASE_S + 1)
        hold = world.ledger.hold_cursor("vip", "another", now_us=world.now_us, lease_s=30)
        assert hold is not None
        people, position = crowd(range(100, 102)), int(str(hold.position or 0)) + 2
        with suppress(LostClaim):
            world.ledger.seal(
                hold, people, world.plans["vip"], position=position, units=(), looks=(), now_us=world.now_us
            )
            return True
        return False

    entered = tick(entering_beside(world, Rows(people_of(20), take_over), beside, monkeypatch)).people
    assert 2 <= entered < 10
    assert (world.numbers("add")[0], world.ledger.position("vip")) == (entered + 2, entered + 2)
