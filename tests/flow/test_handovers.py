"""A person's consent, from the first connection to another person taking over, against the sandbox."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from criteo_provider.core.errors import AccessLost, Misconfigured
from criteo_provider.sandbox.running import Sandbox
from criteo_provider.wiring import House
from tests.flow.shop import Person, Shop, open_house, sync, write_canvas
from tests.flow.test_house import drain, numbers, size

CONNECTION = "criteo_default"
BACK = "https://airflow.example.com/audience-sync/oauth/callback"
BOTH = ("1001", "1002")


@pytest.fixture
def house(ledger_url: str, sandbox: Sandbox, shop: Shop, include: Path) -> Iterator[House]:
    """A house whose connection speaks for a person, with two steps in two ad accounts; nobody has consented yet."""
    write_canvas(include, "vip", sync("add", "Shoppers"), sync("elsewhere", "Others", ad_account="1002"))
    sandbox.application(redirect_uris=[BACK], limit=60_000)
    with closing(open_house(include, ledger_url, sandbox.url, shop.source)) as bare:
        connection = replace(bare.around.criteo(CONNECTION), grant_type="authorization_code")
        around = replace(bare.around, criteo=lambda _name: connection)
    with closing(House(around)) as house:
        yield house


def consent(house: House, sandbox: Sandbox, *ad_accounts: str, by: str = "ada") -> None:
    """Come back from Criteo with the consent of somebody who may speak for these ad accounts."""
    house.criteo.exchange(CONNECTION, sandbox.new_code(BACK, ad_accounts), BACK, "v" * 64, by)


def connected(house: House, sandbox: Sandbox, shop: Shop, *ad_accounts: str) -> None:
    """The first connection: everybody of the shop is at Criteo."""
    consent(house, sandbox, *BOTH)
    assert house.handovers.choose(CONNECTION, ad_accounts or BOTH, by="ada")
    shop.add(Person(number) for number in range(1, 31))
    drain(house)


def in_force(house: House) -> str | None:
    current = house.criteo.consents.current(CONNECTION)
    return current.by if current else None


def test_the_first_connection(house: House, sandbox: Sandbox, shop: Shop) -> None:
    """Without a consent nobody enters; choosing ad accounts puts it in force, and what needs no others is launched."""
    assert house.accounts.look(CONNECTION).state == "unconnected"
    shop.add(Person(number) for number in range(1, 31))
    drain(house)
    assert numbers(house)["add"][0] == 0
    consent(house, sandbox, *BOTH)
    row = house.accounts.look(CONNECTION)
    assert (row.state, row.has_candidate, in_force(house)) == ("unconnected", True, None)
    offer = house.handovers.offer(CONNECTION)
    assert (dict(offer.names), offer.chosen, offer.by, offer.replaces) == (
        {"1001": "Example Shop", "1002": "Example Shop DE"}, frozenset(), "ada", False,
    )  # fmt: skip
    with pytest.raises(Misconfigured, match="no consent covers 4711"):
        house.handovers.choose(CONNECTION, ["4711"], by="ada")
    assert house.handovers.choose(CONNECTION, ["1001"], by="ada")
    assert house.accounts.check(CONNECTION).ok
    row = house.accounts.look(CONNECTION)
    assert (row.state, row.by, row.checked_us is not None, row.has_candidate) == ("ok", "ada", True, False)
    assert [(one.state, one.usable) for one in row.accounts] == [("ok", True), ("unchosen", False)]
    drain(house)
    assert size(sandbox, "Others") is None
    assert house.handovers.choose(CONNECTION, BOTH, by="ada")
    with closing(House(house.around)) as later:
        drain(later)
    assert numbers(house)["add"][0] > 0
    assert (numbers(house)["add"][3], numbers(house)["elsewhere"][3]) == (0, 0)


def test_a_code_that_is_not_honoured_stores_nothing(house: House, sandbox: Sandbox) -> None:
    """A wrong code is told, and there is neither a consent nor a candidate."""
    with pytest.raises(AccessLost):
        house.criteo.exchange(CONNECTION, "made-up-code", BACK, "v" * 64, "ada")
    row = house.accounts.look(CONNECTION)
    assert (row.state, row.has_candidate) == ("unconnected", False)


def test_somebody_else_takes_over(house: House, sandbox: Sandbox, shop: Shop) -> None:
    """Another person's consent takes effect after every audience in use was read and written with it: unchanged."""
    connected(house, sandbox, shop)
    before = size(sandbox, "Shoppers"), size(sandbox, "Others")
    consent(house, sandbox, *BOTH, by="bob")
    seen = sandbox.requests()[-1]["number"]
    assert not house.handovers.choose(CONNECTION, BOTH, by="bob")
    assert in_force(house) == "ada"
    told: list[tuple[int, int]] = []
    assert house.handovers.run(CONNECTION, lambda done, total: told.append((done, total))) == ()
    assert told == [(0, 2), (1, 2), (2, 2)]
    assert in_force(house) == "bob"
    assert house.accounts.look(CONNECTION).handover is None
    assert (size(sandbox, "Shoppers"), size(sandbox, "Others")) == before
    made = [one["operation"] for one in sandbox.requests(seen)]
    assert (made.count("amend"), made.count("search") >= 1) == (2, True)
    shop.add(Person(number) for number in range(31, 41))
    drain(house)
    assert numbers(house)["add"][3] == 0


def test_a_check_that_fails_keeps_the_old_consent(house: House, sandbox: Sandbox, shop: Shop) -> None:
    """What the new consent does not reach is named with its reason; trying again after it is mended takes over."""
    connected(house, sandbox, shop)
    others = next(str(one["id"]) for one in sandbox.state()["segments"] if one["name"] == "Others")
    sandbox.fault(
        operation="amend", segment_id=others, times=None, status=403, error_type="access-control",
        code="insufficient-advertiser-permissions", title="not permitted",
    )  # fmt: skip
    consent(house, sandbox, *BOTH, by="bob")
    house.handovers.choose(CONNECTION, BOTH, by="bob")
    with pytest.raises(Misconfigured, match="going on already"):
        house.handovers.choose(CONNECTION, BOTH, by="bob")
    (failure,) = house.handovers.run(CONNECTION)
    assert failure.startswith("Audience “Others” in ad account 1002: ")
    handover = house.accounts.look(CONNECTION).handover
    assert handover is not None
    assert (handover.state, handover.done, handover.total, handover.failures) == ("failed", 2, 2, (failure,))
    assert in_force(house) == "ada"
    with pytest.raises(Misconfigured, match="still works"):
        house.handovers.use_anyway(CONNECTION, by="bob")
    sandbox.clear_faults()
    house.handovers.again(CONNECTION, by="bob")
    assert house.handovers.run(CONNECTION) == ()
    assert in_force(house) == "bob"


def test_an_ad_account_the_new_consent_lacks(house: House, sandbox: Sandbox, shop: Shop) -> None:
    """An ad account in use that the new person cannot speak for is named with its steps; the old consent can stay."""
    connected(house, sandbox, shop)
    consent(house, sandbox, "1001", by="bob")
    house.handovers.choose(CONNECTION, ["1001"], by="bob")
    (failure,) = house.handovers.run(CONNECTION)
    assert failure == "Ad account 1002: the new consent does not cover it; used by vip / elsewhere."
    house.handovers.keep_old(CONNECTION)
    row = house.accounts.look(CONNECTION)
    assert (row.handover, row.has_candidate, in_force(house)) == (None, False, "ada")
    assert [one.usable for one in row.accounts] == [True, True]
    house.accounts.disconnect(CONNECTION, "1002", by="ada")
    consent(house, sandbox, "1001", by="bob")
    house.handovers.choose(CONNECTION, ["1001"], by="bob")
    assert house.handovers.run(CONNECTION) == ()
    assert in_force(house) == "bob"


def test_an_audience_the_new_consent_does_not_see(house: House, sandbox: Sandbox, shop: Shop) -> None:
    """An audience that is not there for the new consent is named, and nothing is written to it."""
    connected(house, sandbox, shop)
    others = next(str(one["id"]) for one in sandbox.state()["segments"] if one["name"] == "Others")
    sandbox.delete_segment(others)
    consent(house, sandbox, *BOTH, by="bob")
    house.handovers.choose(CONNECTION, BOTH, by="bob")
    assert house.handovers.run(CONNECTION) == (
        "Audience “Others” in ad account 1002: the new consent does not see it.",
    )


def test_a_dead_consent_is_replaced(house: House, sandbox: Sandbox, shop: Shop) -> None:
    """A revoked consent is invalid with what to do; people wait until a new one, even with less, takes over."""
    connected(house, sandbox, shop)
    sandbox.application(revoked=True)
    for grant in sandbox.world.grants:
        grant.revoked = True
    sandbox.advance(1_000)
    assert not house.accounts.check(CONNECTION).ok
    row = house.accounts.look(CONNECTION)
    assert row.state == "invalid"
    assert "Press Reconnect" in row.sentence
    assert {one.state for one in row.accounts} == {"invalid"}
    shop.add(Person(number) for number in range(31, 61))
    drain(house)
    assert numbers(house)["add"][3] > 0
    sandbox.application(revoked=False)
    consent(house, sandbox, "1001", by="bob")
    house.handovers.choose(CONNECTION, ["1001"], by="bob")
    assert len(house.handovers.run(CONNECTION)) == 1
    assert dict(house.handovers.use_anyway(CONNECTION, by="bob")) == {"1001": "Example Shop"}
    assert in_force(house) == "bob"
    drain(house)
    assert numbers(house)["add"][3] == 0
    assert numbers(house)["elsewhere"][3] > 0


def test_a_hand_over_called_off(house: House, sandbox: Sandbox, shop: Shop) -> None:
    """Somebody who keeps the old consent while the check goes on ends it: nothing is put in force."""
    connected(house, sandbox, shop)
    consent(house, sandbox, *BOTH, by="bob")
    house.handovers.choose(CONNECTION, BOTH, by="bob")
    failures = house.handovers.run(CONNECTION, lambda done, _total: done == 1 and house.handovers.keep_old(CONNECTION))
    assert failures
    assert in_force(house) == "ada"
    assert house.accounts.look(CONNECTION).handover is None
