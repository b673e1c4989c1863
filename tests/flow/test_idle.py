"""Connections nobody sends through: lost access shows all the same, at the price of one call a quarter of an hour."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from criteo_provider.sandbox.running import Sandbox
from criteo_provider.wiring import House
from tests.flow.shop import Person, Shop, open_house, sync, write_canvas
from tests.flow.test_house import drain, numbers

MINUTE_S = 60


class Later:
    """The clock of a house, ahead by as much as a test says."""

    def __init__(self, house: House) -> None:
        self._clock, self.ahead_s = house._clock, 0.0

    def now_us(self) -> int:
        """Return the moment."""
        return self._clock.now_us() + round(self.ahead_s * 1e6)


class Deployment:
    """A launched canvas with nobody to sync, whose retry DAG runs every five minutes of a clock that is moved."""

    def __init__(self, house: House, sandbox: Sandbox) -> None:
        self.house, self._sandbox = house, sandbox
        self.clock = house.__dict__["_clock"] = Later(house)

    def run_for(self, minutes: int) -> Counter[str]:
        """Let so many minutes pass; return the calls at the sandbox, and the runs that were not skipped."""
        since = max((entry["number"] for entry in self._sandbox.requests()), default=0)
        runs = 0
        for _ in range(minutes // 5):
            self.clock.ahead_s += 5 * MINUTE_S
            self._sandbox.advance(5 * MINUTE_S)
            self.house.idle._looked_s = float("-inf")  # each run opens a house of its own
            if self.house.waiting().retry:
                runs += 1
                self.house.drain("retry", stop=threading.Event(), max_s=60)
        made = Counter(entry["operation"] for entry in self._sandbox.requests(since))
        return made + Counter(runs=runs)


@pytest.fixture
def deployment(ledger_url: str, sandbox: Sandbox, shop: Shop, include: Path) -> Iterator[Deployment]:
    """One canvas on two ad accounts, launched."""
    write_canvas(include, "vip", sync("add", "Shoppers"), sync("elsewhere", "Others", ad_account="1002"))
    with closing(open_house(include, ledger_url, sandbox.url, shop.source)) as house:
        made = Deployment(house, sandbox)
        drain(house)
        yield made


@pytest.mark.slow
def test_an_idle_connection_costs_one_call_a_quarter_of_an_hour(deployment: Deployment) -> None:
    """Three quiet hours make twelve looks, the tokens for them, and nothing else."""
    made = deployment.run_for(180)
    assert made["advertisers"] == made["runs"] == 12
    assert made["token"] <= 13
    assert set(made) == {"advertisers", "token", "runs"}
    assert deployment.house.take_news() == []


@pytest.mark.slow
def test_lost_access_shows_with_nobody_to_sync_and_heals_by_itself(
    deployment: Deployment, sandbox: Sandbox, shop: Shop
) -> None:
    """A dead application is a trouble within a quarter of an hour; probes get rare; with access back everybody goes."""
    house = deployment.house
    sandbox.application(client_secret="another")
    deployment.run_for(20)
    (trouble,) = house.ledger.troubles()
    assert (trouble.scope, trouble.key) == ("connection", "criteo_default")
    assert len(house.take_news()) == 1
    assert house.accounts.look("criteo_default").state == "invalid"
    made = deployment.run_for(180)
    assert set(made) == {"token", "runs"}
    assert made["token"] <= 20
    shop.add(Person(number) for number in range(1, 11))
    drain(house)
    assert numbers(house)["add"][3] > 0
    assert house.take_news() == []
    sandbox.application(client_secret=sandbox.client_secret)
    deployment.run_for(30)
    drain(house)
    # That people were late is told too.
    assert [row for row in house.ledger.troubles() if row.scope != "late"] == []
    assert numbers(house)["add"][3] == numbers(house)["elsewhere"][3] == 0
    assert sum(one.startswith("Over, connection") for one in house.take_news()) == 1


@pytest.mark.slow
def test_an_ad_account_that_consents_no_more_is_told_alone(deployment: Deployment, sandbox: Sandbox) -> None:
    """The trouble is that of the ad account; the other one goes on, and the consent given again ends it."""
    sandbox.application(advertisers=["1001"])
    deployment.run_for(20)
    (trouble,) = deployment.house.ledger.troubles()
    assert (trouble.scope, trouble.key) == ("ad_account", "criteo_default/1002")
    assert len(deployment.house.take_news()) == 1
    deployment.run_for(60)
    assert deployment.house.take_news() == []
    sandbox.application(advertisers=["1001", "1002"])
    deployment.run_for(20)
    assert list(deployment.house.ledger.troubles()) == []


@pytest.mark.slow
def test_a_settled_request_counts_as_a_look(deployment: Deployment, shop: Shop) -> None:
    """A connection people are sent through is not looked at."""
    made: Counter[str] = Counter()
    for turn in range(6):
        shop.add(Person(10 * turn + number) for number in range(1, 11))
        drain(deployment.house)
        made += deployment.run_for(10)
    assert made["advertisers"] == 0
