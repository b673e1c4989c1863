"""Opt-out feeds through the whole house but Airflow: from a table of opt-outs to the sandbox's lists, both engines."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from criteo_provider.sandbox.running import Sandbox
from criteo_provider.wiring import House, consent, glances
from tests.flow.shop import Person, Shop, open_house, sql_source, sync, write_canvas


class Register:
    """A table of opt-outs beside the shop's people."""

    def __init__(self, shop: Shop, include: Path) -> None:
        self.shop, self._include = shop, include
        with closing(sqlite3.connect(shop.path)) as table, table:
            table.execute(
                "CREATE TABLE opt_outs (serial INTEGER PRIMARY KEY, person TEXT, email TEXT, maid TEXT, status TEXT)"
            )

    def tell(self, person: Person | None = None, status: str = "out", **identifiers: str | None) -> None:
        """Commit one row: of a person by key, or of identifiers."""
        values = (person and person.key, identifiers.get("email"), identifiers.get("maid"), status)
        with closing(sqlite3.connect(self.shop.path, timeout=30)) as table, table:
            table.execute("INSERT INTO opt_outs (person, email, maid, status) VALUES (?, ?, ?, ?)", values)

    def enter_again(self, person: Person) -> None:
        """Commit a person of the shop once more, as a new row."""
        with closing(sqlite3.connect(self.shop.path, timeout=30)) as table, table:
            table.execute(
                "INSERT INTO people SELECT 1000 + serial, person, email, maid, ads FROM people WHERE serial = ?",
                (person.number,),
            )

    def declare(self, **more: object) -> None:
        """Write the feed's file."""
        (self._include / "segments").mkdir(parents=True, exist_ok=True)
        (self._include / "segments" / "opt_outs.sql").write_text("SELECT * FROM opt_outs")
        (self._include / "opt_outs").mkdir(exist_ok=True)
        sql = {"connection": "shop", "query": "segments/opt_outs.sql", "cursor": ["serial"], "late_commit": "1s"}
        feed = {
            "name": "Do not sell",
            "owner": "privacy-team",
            "source": {"sql": sql},
            "user_key": "person",
            "identifiers": {"email": "email", "madid": "maid"},
            "canvases": "all",
            "taken_back": {"status": "in"},
        }
        (self._include / "opt_outs" / "do_not_sell.yaml").write_text(yaml.safe_dump(feed | more))


@pytest.fixture
def register(shop: Shop, include: Path) -> Register:
    register = Register(shop, include)
    register.declare()
    return register


@pytest.fixture
def house(ledger_url: str, sandbox: Sandbox, register: Register, include: Path) -> Iterator[House]:
    write_canvas(include, "vip", sync("add", "Shoppers", fields=("email", "madid")))
    with closing(open_house(include, ledger_url, sandbox.url, lambda of: sql_source(register.shop.path, of))) as house:
        assert house.canvases.problems == ()
        assert house.consent.feeds.problems == ()
        yield house


def drain(house: House) -> None:
    house.drain("fresh", stop=threading.Event(), max_s=60)
    assert house.prove() == []
    assert not house.ledger.opt_outs.is_unfinished()


def shoppers(sandbox: Sandbox) -> int:
    return next(segment["size"] for segment in sandbox.state()["segments"] if segment["name"] == "Shoppers")


def of_step(house: House, canvas: str) -> tuple[int, int, int, int]:
    """Entered, Synced, Not Synced, Pending of a canvas with one step."""
    (one,) = (one for one in house.numbers() if one.canvas == canvas)
    return one.entered, one.synced, one.not_synced, one.pending


def test_a_slow_feed_rests_for_no_longer_than_its_own_while(
    house: House, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who looks every second leaves a slow feed alone for 2.5 s at most, whatever the canvases' flush interval is."""
    assert consent.FEED_EVERY_S == 2.5
    drain(house)
    monkeypatch.setattr(glances, "SHARE_OF_TIME", 1e-9)
    monkeypatch.setattr(consent, "FEED_EVERY_S", 3600.0)
    for _ in range(2):
        assert not house.waiting(sparing=True).fresh
    register.tell(Person(1))
    assert not house.waiting(sparing=True).fresh
    monkeypatch.setattr(consent, "FEED_EVERY_S", 0.0)
    assert house.waiting(sparing=True).fresh


def test_opt_outs_reach_who_was_sent_and_who_comes_later(house: House, register: Register, sandbox: Sandbox) -> None:
    """By key or by address: who was sent is removed with all identifiers, who comes later is counted and not sent."""
    people = [Person(number) for number in (1, 2, 3, 4, 5)]
    register.shop.add(people)
    drain(house)
    assert shoppers(sandbox) == 6  # five addresses and one device
    register.tell(people[2])
    register.tell(email=" Person.1@Example.com ")
    register.tell(email=Person(6).digest)
    assert house.waiting().fresh
    drain(house)
    assert shoppers(sandbox) == 3
    assert of_step(house, "opt_outs/do_not_sell") == (2, 2, 0, 0)
    register.shop.add([Person(6), Person(8)])
    drain(house)
    assert shoppers(sandbox) == 4
    assert of_step(house, "vip") == (7, 6, 1, 0)
    assert house.consent.counts() == {"opt_outs/do_not_sell": (5, 0)}  # an address has three hashes


def test_a_new_feed_is_read_before_anybody_is_sent(house: House, register: Register, sandbox: Sandbox) -> None:
    """Opt-outs that are there already hold back the very first people."""
    people = [Person(number) for number in (1, 2)]
    register.tell(people[0])
    register.shop.add(people)
    drain(house)
    assert shoppers(sandbox) == 1
    assert of_step(house, "vip") == (2, 1, 1, 0)


def test_taken_back_by_a_later_row(house: House, register: Register, sandbox: Sandbox) -> None:
    """A row that says the opt-out was taken back admits the entries after it."""
    register.shop.add([Person(1)])
    drain(house)
    register.tell(Person(1))
    drain(house)
    assert shoppers(sandbox) == 0
    register.tell(Person(1), status="in")
    drain(house)
    assert shoppers(sandbox) == 0
    register.enter_again(Person(1))
    drain(house)
    assert shoppers(sandbox) == 1


def test_a_broken_feed_is_told(
    house: House, register: Register, include: Path, ledger_url: str, sandbox: Sandbox
) -> None:
    """A feed file that cannot be read is a trouble with a sentence; canvases go on."""
    house.close()
    register.declare(canvases=[])
    register.shop.add([Person(1)])
    with closing(open_house(include, ledger_url, sandbox.url, lambda of: sql_source(register.shop.path, of))) as broken:
        drain(broken)
        assert shoppers(sandbox) == 1
        assert broken.take_news() == [
            "Trouble with source opt_outs/do_not_sell: include/opt_outs/do_not_sell.yaml: canvases is empty. "
            "Write it like `canvases: all`."
        ]
    register.declare()
    register.tell(Person(1))
    with closing(open_house(include, ledger_url, sandbox.url, lambda of: sql_source(register.shop.path, of))) as mended:
        assert mended.waiting().fresh
        drain(mended)
        assert shoppers(sandbox) == 0
        assert mended.take_news()[0].startswith("Over, source opt_outs/do_not_sell works again.")


def test_a_deleted_feed_is_no_trouble(
    house: House, register: Register, include: Path, ledger_url: str, sandbox: Sandbox
) -> None:
    """A feed whose source is broken and whose file is deleted is over, told once, and not as one that works again."""
    house.waiting()
    house.ledger.source_failed("opt_outs/do_not_sell", "The table is away.", now_us=house.now_us())
    assert len(house.take_news()) == 1
    house.close()
    (include / "opt_outs" / "do_not_sell.yaml").unlink()
    for told in (["Over, source opt_outs/do_not_sell is not used any more. It was: The table is away."], []):
        with closing(open_house(include, ledger_url, sandbox.url, register.shop.source)) as after:
            after.waiting()
            assert after.ledger.troubles() == []
            assert after.take_news() == told
