"""Ad accounts of a running house: choosing, disconnecting and reconnecting them while people are under way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from criteo_provider.core.errors import Misconfigured
from criteo_provider.core.model import Role
from criteo_provider.sandbox.running import Sandbox
from criteo_provider.wiring import House
from tests.flow.shop import Person, Shop, open_house, sync, write_canvas
from tests.flow.test_house import drain, numbers, size

CONNECTION = "criteo_default"


@pytest.fixture
def house(ledger_url: str, sandbox: Sandbox, shop: Shop, include: Path) -> Iterator[House]:
    """A house with two steps in two ad accounts."""
    write_canvas(include, "vip", sync("add", "Shoppers"), sync("elsewhere", "Others", ad_account="1002"))
    with closing(open_house(include, ledger_url, sandbox.url, shop.source)) as house:
        yield house


def of(house: House, ad_account: str) -> tuple[str, bool]:
    """State of an ad account, and whether it may be used."""
    (row,) = [one for one in house.accounts.look(CONNECTION).accounts if one.ad_account == ad_account]
    return row.state, row.usable


def test_one_of_two_is_disconnected_and_reconnected(house: House, sandbox: Sandbox, shop: Shop) -> None:
    """The steps of a disconnected ad account stop with a clear state, others go on; reconnecting drains everything."""
    shop.add(Person(number) for number in range(1, 31))
    drain(house)
    assert size(sandbox, "Others") == size(sandbox, "Shoppers")
    assert house.accounts.check(CONNECTION).ok
    assert of(house, "1002") == ("ok", True)
    assert house.accounts.disconnect(CONNECTION, "1002", by="ada@example.com") == ("vip / elsewhere",)
    assert of(house, "1002") == ("disconnected", False)
    assert of(house, "1001") == ("ok", True)
    (trouble,) = house.ledger.troubles()
    assert "Ad account 1002 was disconnected by ada on " in trouble.sentence
    assert "reconnect it on the Accounts page" in trouble.sentence
    before = size(sandbox, "Others")
    shop.add(Person(number) for number in range(31, 61))
    for _ in range(2):
        drain(house)
        assert size(sandbox, "Others") == before
        assert numbers(house)["elsewhere"][3] > 0
        assert numbers(house)["add"][3] == 0
    assert not house.ledger.open_work(now_us=house.now_us()).anything_due(Role.FRESH)
    assert len(house.take_news()) == 1
    assert house.accounts.choose(CONNECTION, {"1002": "Example Shop DE"}, by="bob") == ["1002"]
    assert house.ledger.open_work(now_us=house.now_us()).anything_due(Role.FRESH)
    drain(house)
    assert numbers(house)["elsewhere"][3] == 0
    assert size(sandbox, "Others") == size(sandbox, "Shoppers")
    assert len(house.take_news()) == 1


def test_a_disconnection_bites_while_a_drain_is_running(house: House, sandbox: Sandbox, shop: Shop) -> None:
    """A drain that is under way sends nothing more to an ad account a person disconnects meanwhile."""
    shop.add(Person(number) for number in range(1, 31))
    drain(house)
    stop = threading.Event()
    running = threading.Thread(target=lambda: house.drain("fresh", stop=stop, max_s=60))
    write_more = threading.Event()

    def keep_busy() -> None:
        number = 31
        while not stop.wait(0.2):
            shop.add([Person(number)])
            number += 1
            write_more.set()

    busy = threading.Thread(target=keep_busy)
    running.start()
    busy.start()
    try:
        assert write_more.wait(20)
        house.accounts.disconnect(CONNECTION, "1002", by="ada")
        deadline = threading.Event()
        deadline.wait(2.5)  # a decision is seen within a second; what was claimed before may still arrive
        before, others = size(sandbox, "Others"), size(sandbox, "Shoppers")
        for _ in range(100):
            if (size(sandbox, "Shoppers") or 0) >= (others or 0) + 4:
                break
            deadline.wait(0.2)
        assert (size(sandbox, "Shoppers") or 0) >= (others or 0) + 4
        assert size(sandbox, "Others") == before
    finally:
        stop.set()
        busy.join(20)
        running.join(60)
    assert house.prove() == []


def test_what_is_chosen_decides_over_the_connection(house: House, sandbox: Sandbox, shop: Shop) -> None:
    """An ad account outside the allowed ones waits until it is chosen; a consent serves only what is chosen."""
    around = house.around
    narrow = replace(around.criteo(CONNECTION), allowed_ad_accounts=("1001",))
    drain(house)  # launched
    shop.add(Person(number) for number in range(1, 11))
    with closing(House(replace(around, criteo=lambda _name: narrow))) as other:
        drain(other)
        assert of(other, "1002") == ("unchosen", False)
        assert [row.code for row in other.ledger.troubles()] == ["not-allowed"]
        other.accounts.choose(CONNECTION, {"1002": "Example Shop DE"}, by="ada")
        drain(other)
        assert numbers(other)["elsewhere"][3] == 0
        assert list(other.ledger.troubles()) == []
    consented = replace(narrow, allowed_ad_accounts=(), grant_type="authorization_code")
    with closing(House(replace(around, criteo=lambda _name: consented))) as other:
        permit = other.accounts.permit(CONNECTION, {"1001", "1002"})
        assert permit.now() == {"1002"}
        (trouble,) = other.ledger.troubles()
        assert "Ad account 1001 is not chosen" in trouble.sentence
        assert "airflow criteo accounts choose --conn-id criteo_default 1001" in trouble.sentence


def test_the_last_check_is_shown(house: House, sandbox: Sandbox) -> None:
    """Before a check nothing is claimed; a wrong secret is told with its mend, for each of its ad accounts."""
    row = house.accounts.look(CONNECTION)
    assert (row.state, row.checked_us) == ("unchecked", None)
    assert {one.ad_account: one.used_by for one in row.accounts} == {
        "1001": ("vip / add",),
        "1002": ("vip / elsewhere",),
    }
    assert house.accounts.check(CONNECTION).ok
    row = house.accounts.look(CONNECTION)
    assert (row.state, [one.name for one in row.accounts]) == ("ok", ["Example Shop", "Example Shop DE"])
    wrong = replace(house.around.criteo(CONNECTION), client_secret="not-it-4711")
    with closing(House(replace(house.around, criteo=lambda _name: wrong))) as other:
        assert not other.accounts.check(CONNECTION).ok
        row = other.accounts.look(CONNECTION)
        assert {row.state, *(one.state for one in row.accounts)} == {"invalid"}
        assert "client id and secret" in row.accounts[0].sentence


def test_an_ad_account_without_consent_is_told(house: House, sandbox: Sandbox) -> None:
    """An ad account a step needs and nobody consented for is invalid, with what to do; the other one is fine."""
    sandbox.application(advertisers=["1001"])
    house.accounts.check(CONNECTION)
    assert of(house, "1001") == ("ok", True)
    assert of(house, "1002") == ("invalid", True)


def test_an_unknown_ad_account_is_not_disconnected(house: House) -> None:
    """A mistyped id is a sentence, and nothing is remembered of it."""
    with pytest.raises(Misconfigured, match="knows no ad account 4711"):
        house.accounts.disconnect(CONNECTION, "4711", by="ada")
    assert house.accounts.look(CONNECTION).state == "unchecked"
