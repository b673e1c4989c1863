"""A source far behind is split: fresh people do not queue behind its backlog, and everybody enters once."""

from __future__ import annotations

import random
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from criteo_provider.core import eligibility
from criteo_provider.core.model import Operation
from criteo_provider.core.ports import Page
from criteo_provider.flow import enter, filling
from criteo_provider.flow.backlog import Backlog
from criteo_provider.flow.enter import Enter, EntryPlan
from criteo_provider.flow.packing import FieldColumn
from criteo_provider.sandbox.running import Sandbox
from criteo_provider.sources import sql
from criteo_provider.sources.sql import SqlSource
from criteo_provider.store.schema import chunk, part
from criteo_provider.store.schema_growth import backlog as backlogs
from tests.flow.shop import Person, Shop, open_house, sync, write_canvas
from tests.world import World, canvas, step

GOING_ON = threading.Event()
PAGE, FAR = 3, 6
LATE_COMMIT_S = 60.0


@pytest.fixture(autouse=True, scope="module")
def _small_pages() -> Iterator[None]:
    """Three rows are a page here, and six are far behind; a machine that is slow for a moment seals no earlier."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filling, "MAX_IDENTIFIERS", PAGE)
        patch.setattr(filling, "MOST_PEOPLE", PAGE + 1)
        patch.setattr(enter, "FAR_BEHIND_ROWS", FAR)
        patch.setattr(enter, "SEAL_WITHIN_S", 3_600.0)
        patch.setattr(sql, "LOOK_ROWS", PAGE)
        patch.setattr(sql, "NEWEST_ROWS", 1)
        yield


class People:
    """A table of people by serial number."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with closing(sqlite3.connect(path)) as shop:
            shop.execute("CREATE TABLE people (id INTEGER PRIMARY KEY, customer TEXT, ok INTEGER)")

    def commit(self, *ids: int, ok: Callable[[int], bool] = lambda _id: True) -> None:
        with closing(sqlite3.connect(self.path)) as shop, shop:
            rows = [(one, f"user-{one}", ok(one)) for one in ids]
            shop.executemany("INSERT INTO people VALUES (?, ?, ?)", rows)

    def source(self, world: World) -> SqlSource:
        return SqlSource(
            lambda: sqlite3.connect(self.path, timeout=30),
            query="SELECT id, customer, customer || '@example.com' AS email, ok FROM people",
            cursor=["id"],
            columns=["customer", "email", "ok"],
            now_us=lambda: world.now_us,
            user_key="customer",
            late_commit_s=LATE_COMMIT_S,
        )


class Process:
    """Both readers of one canvas, in a process that can be killed before or after any verb of the ledger."""

    def __init__(self, world: World, people: People, owner: str, dies_at: float = float("inf")) -> None:
        self.left = dies_at
        source, ledger = people.source(world), Doomed(self, world.ledger)
        book: Any = Doomed(self, world.ledger.backlogs)
        plan = EntryPlan(
            "vip", "customer", (FieldColumn("email", "email"),), eligibility.compile({"ok": True}), world.plans["vip"]
        )
        now_us = lambda: world.now_us  # noqa: E731 - the world's own clock
        self.fresh = Enter(plan, source, ledger, now_us, owner, aside=(source, book))  # type: ignore[arg-type]
        self.backlog = Backlog(plan, source, ledger, now_us, owner, split=source, book=book)  # type: ignore[arg-type]


class Killed(BaseException):
    """The process is no more."""


class Doomed:
    """A room of the ledger; each call lets its process live for one moment less before it, and one after it."""

    def __init__(self, process: Process, room: Any) -> None:
        self._process, self._room = process, room

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def verb(*words: Any, **named: Any) -> Any:
            self._age()
            done = getattr(self._room, name)(*words, **named)
            self._age()
            return done

        return verb

    def _age(self) -> None:
        self._process.left -= 1
        if self._process.left < 0:
            raise Killed


def entered(world: World) -> list[int]:
    """Everybody who has entered, in the order of their chunks."""
    with world.engine.connect() as connection:
        texts = connection.execute(select(chunk.c.user_keys).where(chunk.c.canvas_id == "vip").order_by(chunk.c.id))
        return [int(key.removeprefix("user-")) for text in texts.scalars() for key in msgspec.json.decode(text)]


def set_aside(world: World) -> int:
    """How many backlogs there are."""
    with world.engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(backlogs)).scalar_one()


@pytest.fixture
def world(ledger_url: str) -> Iterator[World]:
    """A ledger with a canvas that adds people, and one that removes them."""
    world = World(ledger_url)
    world.declare(canvas("vip", step("add")), canvas("out", step("remove", Operation.REMOVE)))
    yield world
    world.close()


def test_a_fresh_row_overtakes_the_backlog_of_its_own_source(world: World, tmp_path: Path) -> None:
    """Two pages in, the rest is set aside; a row that comes then is entered at once, and the backlog after it."""
    people = People(tmp_path / "shop.db")
    people.commit(*range(1, 21))
    process = Process(world, people, "me")
    process.fresh.tick(GOING_ON)
    assert entered(world) == [1, 2, 3, 4, 5, 6]
    assert (world.ledger.position("vip"), world.ledger.backlogs.is_left("vip")) == ([20], True)
    people.commit(21)
    process.fresh.tick(GOING_ON)
    assert entered(world)[6:] == [21]
    process.backlog.tick(GOING_ON)
    assert entered(world)[7:] == list(range(7, 21))
    assert (world.ledger.position("vip"), set_aside(world)) == ([21], 0)


def test_a_short_way_behind_is_read_in_one_go(world: World, tmp_path: Path) -> None:
    """What ends within two pages is never set aside, nor is anything when the source is dry just there."""
    people = People(tmp_path / "shop.db")
    process = Process(world, people, "me")
    for ids in (range(1, 6), range(6, 12)):
        people.commit(*ids)
        process.fresh.tick(GOING_ON)
        assert (entered(world)[-1], set_aside(world)) == (ids[-1], 0)


def test_who_came_shortly_before_the_split_is_fresh_too(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest rows stay with the reader of what is fresh; where only such are left, nothing is set aside."""
    monkeypatch.setattr(sql, "NEWEST_ROWS", 3)
    people = People(tmp_path / "shop.db")
    people.commit(*range(1, 21))
    process = Process(world, people, "me")
    for _ in range(2):
        process.fresh.tick(GOING_ON)
    assert entered(world) == [1, 2, 3, 4, 5, 6, 19, 20]
    process.backlog.tick(GOING_ON)
    people.commit(*range(21, 30))
    process.fresh.tick(GOING_ON)
    assert (sorted(entered(world)), set_aside(world)) == (list(range(1, 30)), 0)


def test_rows_deleted_while_a_source_is_split_do_not_take_the_cursor_back(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left when the end is looked for was read before: nothing is set aside, and nobody is read twice."""
    people = People(tmp_path / "shop.db")
    people.commit(*range(1, 11))
    source = people.source(world)
    newest = source._keyset.newest

    def deleted_just_before(*arguments: Any, **named: Any) -> Any:
        with closing(sqlite3.connect(people.path)) as shop, shop:
            shop.execute("DELETE FROM people WHERE id > 4")
        return newest(*arguments, **named)

    monkeypatch.setattr(source._keyset, "newest", deleted_just_before)
    assert source.split_at([6]) is None


def test_a_row_committed_late_behind_the_last_of_a_backlog_is_found(world: World, tmp_path: Path) -> None:
    """The row at the end of a backlog may be gone when it is reached: what lies before it is looked at again."""
    people = People(tmp_path / "shop.db")
    people.commit(*range(1, 10), 20)
    process = Process(world, people, "me")
    process.fresh.tick(GOING_ON)
    with closing(sqlite3.connect(people.path)) as shop, shop:
        shop.execute("DELETE FROM people WHERE id = 20")
    process.backlog.tick(GOING_ON)
    assert set_aside(world) == 0
    people.commit(15)
    for _ in range(2):
        world.pass_time(LATE_COMMIT_S)
        process.fresh.tick(GOING_ON)
    assert entered(world) == [*range(1, 10), 15]


def test_people_of_a_backlog_came_before_whoever_came_since(world: World, tmp_path: Path) -> None:
    """Somebody taken out since the split stays out, though the older row that adds them is read only now."""
    people = People(tmp_path / "shop.db")
    people.commit(*range(1, 10))
    process = Process(world, people, "me")
    process.fresh.tick(GOING_ON)
    split_us = world.now_us
    while (claimed := world.claim()) is not None:
        world.settle(claimed)
    world.pass_time(1)
    gone = enter.packed((FieldColumn("email", "email"),), ["user-8"], {"email": ["user-8@example.com"]})
    world.enter("out", gone)
    removed = world.claim()
    assert removed is not None
    assert removed.operation is Operation.REMOVE
    world.settle(removed)
    world.pass_time(1)
    process.backlog.tick(GOING_ON)
    with world.engine.connect() as connection:
        intents = select(part.c.intent_us).order_by(part.c.upload_id.desc()).limit(1)
        assert connection.execute(intents).scalar_one() == split_us
    claimed = world.claim()
    assert claimed is not None
    assert claimed.identifiers == 2
    world.settle(claimed)
    assert world.numbers("add") == (9, 8, 1, 0, 0)


def test_two_processes_share_the_work_and_a_slow_one_loses_its_claim(world: World, tmp_path: Path) -> None:
    """While one reads the backlog another reads what is fresh; who was out for too long writes nothing."""
    people = People(tmp_path / "shop.db")
    people.commit(*range(1, 21))
    one, other = Process(world, people, "one"), Process(world, people, "other")
    one.fresh.tick(GOING_ON)
    theirs, ours = one.backlog._split, other.backlog._split
    read, enough = theirs.between, threading.Event()

    def but_one(*words: Any, **named: Any) -> Generator[Page]:
        for page in ours_read(*words, **named):
            enough.set()
            yield page

    def slowly(*words: Any, **named: Any) -> Generator[Page]:
        theirs.between = read  # type: ignore[method-assign]
        for number, page in enumerate(read(*words, **named)):
            if number == 2:
                other.backlog.tick(GOING_ON)
                assert entered(world)[6:] == [7, 8, 9], "the lease keeps others away"
                world.pass_time(enter.CURSOR_LEASE_S + 1)
                other.backlog.tick(enough)
                assert entered(world)[9:] == [10, 11, 12]
            yield page

    ours_read, ours.between, theirs.between = ours.between, but_one, slowly  # type: ignore[method-assign]
    one.backlog.tick(GOING_ON)
    assert entered(world) == list(range(1, 21))
    assert set_aside(world) == 0


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_everybody_enters_once_whatever_dies_and_however_late_rows_come(seed: int) -> None:
    """Kills around any verb, rows committed late, several backlogs, two processes: never twice, never lost."""
    with tempfile.TemporaryDirectory() as folder:
        world = World(f"sqlite:///{folder}/ledger.db")
        world.declare(canvas("vip", step("add")))
        people = People(Path(folder) / "shop.db")
        story = random.Random(seed)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sql, "NEWEST_ROWS", story.choice((1, 2, 5)))
            # So few rows tell how many are eligible: pages are as large as brings who is lacking in a chunk.
            patch.setattr(filling, "ENOUGH_TO_TELL", 2)
            one_in = story.choice((1, 2, 5))
            _tell(story, world, people, lambda serial: serial % one_in == 0)
        world.close()


def _tell(story: random.Random, world: World, people: People, ok: Callable[[int], bool]) -> None:
    stamped = 0
    open_rows: list[tuple[int, int]] = []  # serial, and when its transaction began
    for _ in range(25):
        match story.choice(("come", "come", "commit late", "wait", "read", "read", "read")):
            case "come":
                number = story.choice((1, 2, 4, 15, 30))
                serials = list(range(stamped + 1, stamped + number + 1))
                stamped += number
                late = [one for one in serials if story.random() < 0.2]
                open_rows += [(one, world.now_us) for one in late]
                people.commit(*(one for one in serials if one not in late), ok=ok)
            case "commit late" if open_rows:
                people.commit(open_rows.pop(story.randrange(len(open_rows)))[0], ok=ok)
            case "wait":
                world.pass_time(story.choice((1, 5, 20, 40)))
            case "read":
                process = Process(world, people, story.choice("ab"), story.choice((5, 9, 14, 21, 35, 1_000)))
                with suppress(Killed):
                    for reader in story.choices((process.fresh, process.backlog), k=story.choice((1, 2, 3))):
                        reader.tick(GOING_ON)
        # No transaction lasts longer than was promised.
        overdue = [one for one in open_rows if world.now_us - one[1] > (LATE_COMMIT_S - 45) * 1e6]
        people.commit(*(one for one, _ in overdue), ok=ok)
        open_rows = [one for one in open_rows if one not in overdue]
    people.commit(*(one for one, _ in open_rows), ok=ok)
    last = Process(world, people, "last")
    for _ in range(10):
        world.pass_time(40)
        last.fresh.tick(GOING_ON)
        last.backlog.tick(GOING_ON)
    assert sorted(entered(world)) == [*filter(ok, range(1, stamped + 1))]
    assert set_aside(world) == 0


@pytest.mark.slow
def test_a_house_drains_a_source_that_is_split(ledger_url: str, shop: Shop, include: Path, sandbox: Sandbox) -> None:
    """A drain reads the backlog to its end beside the fresh rows, and does not end before; a waiting one is seen."""
    people = [Person(number) for number in range(1, 101)]
    shop.add(people)
    write_canvas(include, "vip", sync("add", "Shoppers"))
    with closing(open_house(include, ledger_url, sandbox.url, shop.source)) as house:
        house.drain("fresh", stop=threading.Event(), max_s=60)
        assert house.prove() == []
        (numbers,) = house.numbers()
        wanted = [one for one in people if one.ads]
        assert (numbers.entered, numbers.pending) == (len(wanted), 0)
        assert not house.ledger.backlogs.is_left("vip")
        hold = house.ledger.hold_cursor("vip", "me", now_us=house.now_us(), lease_s=30)
        assert hold is not None
        house.ledger.backlogs.set_aside(hold, [100], now_us=house.now_us())
        assert house.waiting().fresh
