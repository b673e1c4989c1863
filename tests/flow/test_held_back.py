"""While a known trouble holds everybody back, new people are no reason to begin a run; the next probe is."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import func, select, update

from criteo_provider.sandbox.running import Sandbox
from criteo_provider.store.schema import look, trouble
from criteo_provider.wiring import House
from tests.flow.shop import Person, Shop, open_house, sync, write_canvas

TROUBLE = {"code": "token-refused", "sentence": "Criteo refuses the access token."}


@pytest.fixture
def house(sqlite_url: str, sandbox: Sandbox, shop: Shop, include: Path) -> Iterator[House]:
    """A house whose canvas is launched, and one more person in the shop."""
    write_canvas(include, "vip", sync("add", "Shoppers"), sync("add_too", "Others", ad_account="1002"))
    shop.add([Person(1)])
    with closing(open_house(include, sqlite_url, sandbox.url, shop.source)) as house:
        house.drain("fresh", stop=threading.Event(), max_s=60)
        shop.add([Person(2)])
        assert house.waiting().fresh
        yield house


def test_nobody_enters_for_a_connection_that_is_down(house: House) -> None:
    """With its connection in trouble a canvas wakes nobody before the probe is due, and does once it is."""
    began_us = house._clock.now_us()
    house.ledger.trouble("connection", "criteo_default", now_us=began_us, **TROUBLE)
    assert not house.waiting().fresh
    house.ledger.healed("connection", "criteo_default", now_us=began_us)
    house.ledger.trouble("connection", "criteo_default", now_us=began_us - 61_000_000, **TROUBLE)
    assert house.waiting().fresh


def test_one_ad_account_in_trouble_does_not_hold_the_other_back(house: House) -> None:
    """People still enter at once as long as one step of their canvas can send them."""
    now_us = house._clock.now_us()
    house.ledger.trouble("ad_account", "criteo_default/1001", now_us=now_us, **TROUBLE)
    assert house.waiting().fresh
    house.ledger.trouble("ad_account", "criteo_default/1002", now_us=now_us, **TROUBLE)
    assert not house.waiting().fresh


def test_a_source_that_breaks_while_nobody_reads_is_told(house: House, shop: Shop) -> None:
    """One look finds it broken: a trouble, told once, looked at again when its probe is due, and over then."""
    house.drain("fresh", stop=threading.Event(), max_s=60)
    wait_for_second_looks(house)
    house.take_news()
    with closing(sqlite3.connect(shop.path)) as database:
        database.execute("ALTER TABLE people RENAME TO moved")
    for _ in range(2):
        waiting = house.waiting()
        assert not waiting.fresh
        assert len(waiting.problems) == 1
        assert waiting.problems[0].startswith("Canvas vip: segments/people.sql cannot be read now")
    assert [(row.scope, row.key) for row in house.ledger.troubles()] == [("source", "vip")]
    assert len(house.take_news()) == 1
    with closing(sqlite3.connect(shop.path)) as database:
        database.execute("ALTER TABLE moved RENAME TO people")
    assert len(house.waiting().problems) == 1  # not asked again before its time
    the_probe_is_due(house)
    waiting = house.waiting()
    assert (waiting.fresh, waiting.problems) == (False, ())
    assert house.ledger.troubles() == []
    assert len(house.take_news()) == 1


def test_a_source_with_people_behind_a_trouble_is_for_the_reader_to_judge(house: House) -> None:
    """When the probe of a broken source finds people, work begins, and the reading of them ends the trouble."""
    house.ledger.source_failed("vip", "The table is away.", now_us=house.now_us())
    assert not house.waiting().fresh
    the_probe_is_due(house)
    assert house.waiting().fresh
    assert [row.scope for row in house.ledger.troubles()] == ["source"]
    house.drain("fresh", stop=threading.Event(), max_s=60)
    assert house.ledger.troubles() == []


def wait_for_second_looks(house: House) -> None:
    """Drain until no second look for late rows is to come, be it due or not."""
    while looks_to_come(house):
        house.drain("fresh", stop=threading.Event(), max_s=60)


def looks_to_come(house: House) -> int:
    """Count the stretches of sources that will be read once more."""
    with house.ledger.engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(look)) or 0


def the_probe_is_due(house: House) -> None:
    """Let the pause of a trouble be over."""
    with house.ledger.engine.begin() as connection:
        connection.execute(update(trouble).values(next_probe_us=0))
