"""While a known trouble holds everybody back, new people are no reason to begin a run; the next probe is."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from criteo_provider.sandbox.running import Sandbox
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
