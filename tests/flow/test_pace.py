"""What Criteo grants a minute is what is asked of it, and streams that share too little say so."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from criteo_provider.criteo_api.consent import new_request
from criteo_provider.flow.drain import Housekeeping, Progress, Reader, Sender, drain
from criteo_provider.flow.enter import Entered
from criteo_provider.flow.upload import Uploaded
from criteo_provider.sandbox.running import Sandbox, running_sandbox
from criteo_provider.sandbox.state import CLIENT_ID, CLIENT_SECRET
from criteo_provider.wiring import CriteoConnection, House, Surroundings
from tests.flow.shop import Person, Sealer, Shop, open_house, sync, write_canvas

CONN = "criteo_default"
REDIRECT = "https://airflow.example.com/criteo/callback"


@pytest.fixture
def strict_sandbox() -> Iterator[Sandbox]:
    """A sandbox with Criteo's own limits."""
    with running_sandbox() as sandbox:
        yield sandbox


def connected(
    sandbox: Sandbox, ledger: str, shop: Shop, include: Path, ad_accounts: tuple[str, ...], limit: int | None = None
) -> House:
    """A house whose connection a person has connected with these ad accounts."""
    connection = CriteoConnection(
        CLIENT_ID, CLIENT_SECRET, sandbox.url, grant_type="authorization_code", requests_per_minute=limit
    )
    house = House(Surroundings(include, ledger, lambda _: connection, shop.source, Sealer()))
    sandbox.application(redirect_uris=[REDIRECT])
    code = sandbox.new_code(REDIRECT, ad_accounts)
    house.criteo.exchange(CONN, code, REDIRECT, new_request().verifier, "ada")
    house.criteo.consents.promote(CONN)
    house.accounts.choose(CONN, dict.fromkeys(ad_accounts, "Example Shop"), by="ada")
    return house


@pytest.mark.slow
def test_a_consent_is_asked_for_no_more_than_it_grants(
    strict_sandbox: Sandbox, sqlite_url: str, shop: Shop, include: Path
) -> None:
    """With two ad accounts 20 calls a minute are made, token calls and all, and Criteo never has to say no."""
    write_canvas(include, "vip", *(sync(f"add_{number}", f"Audience {number}") for number in range(12)))
    shop.add(Person(number) for number in range(1, 31))
    house = connected(strict_sandbox, sqlite_url, shop, include, ("1001", "1002"))
    house.drain("fresh", stop=threading.Event(), max_s=45)
    assert house.prove() == []
    rate = strict_sandbox.rate()
    assert rate["refused"] == 0
    assert 8 <= rate["largest"] <= 20
    assert house.criteo.budget(CONN) == 20
    house.close()


@pytest.mark.slow
def test_criteos_headers_lower_the_budget_and_restore_it(
    strict_sandbox: Sandbox, ledger_url: str, shop: Shop, include: Path
) -> None:
    """Less than 10 an ad account is believed at once, and more never is."""
    strict_sandbox.rules(limit_per_account=8)
    house = connected(strict_sandbox, ledger_url, shop, include, ("1001", "1002"))
    house.ad_accounts(CONN)
    assert (house.criteo.limit(CONN), house.criteo.budget(CONN)) == (20, 16)
    strict_sandbox.rules(limit_per_account=50)
    house.ad_accounts(CONN)
    assert house.criteo.budget(CONN) == 20
    house.close()


def test_the_budget_of_an_application_is_lowered_restored_and_overridden(
    strict_sandbox: Sandbox, ledger_url: str, shop: Shop, include: Path
) -> None:
    """250 a minute, less while Criteo says so, for every process at once; a connection that says less is believed."""
    house, another = (
        open_house(include, ledger_url, strict_sandbox.url, shop.source, requests_per_minute=limit)
        for limit in (None, None)
    )
    assert house.criteo.budget(CONN) == 250
    strict_sandbox.throw("limit-lowered", limit=40)
    house.ad_accounts(CONN)
    assert [one.criteo.budget(CONN) for one in (house, another)] == [40, 40]
    strict_sandbox.take_back("limit-lowered")
    another.ad_accounts(CONN)
    assert [one.criteo.budget(CONN) for one in (house, another)] == [250, 250]
    own = open_house(include, ledger_url, strict_sandbox.url, shop.source, requests_per_minute=20)
    own.ad_accounts(CONN)
    assert own.criteo.budget(CONN) == 20
    for one in (house, another, own):
        one.close()


def test_streams_that_share_few_requests_are_flushed_less_often_and_say_why(
    sandbox: Sandbox, ledger_url: str, shop: Shop, include: Path
) -> None:
    """Four audiences at ten requests a minute: every 24 s, told while the drain runs; with enough it is as declared."""
    for number in range(4):
        write_canvas(include, f"canvas_{number}", sync("add", f"Audience {number}"))
    told: list[Progress] = []
    house = open_house(include, ledger_url, sandbox.url, shop.source)
    house.drain("fresh", stop=threading.Event(), max_s=30)  # the launch, at full speed
    house.close()
    shop.add(Person(number) for number in range(1, 31))
    house = open_house(include, ledger_url, sandbox.url, shop.source, requests_per_minute=10)
    assert [tuple(one) for one in house.flush()] == [(CONN, 1, 0, 10, "")]
    house.drain("fresh", stop=threading.Event(), max_s=9, on_progress=told.append)
    why = "flush every 24 s: 4 streams share 10 requests a minute"
    assert [tuple(one) for one in house.flush()] == [(CONN, 24.0, 4, 10, why)]
    assert (f"Connection {CONN}: {why}.",) in [one.remarks for one in told]
    house.close()
    house = open_house(include, ledger_url, sandbox.url, shop.source, requests_per_minute=250)
    assert [(one.flush_s, one.streams, one.sentence) for one in house.flush()] == [(1, 4, "")]
    house.close()


class Counting:
    """A source that is always dry, and counts how often it is read."""

    def __init__(self) -> None:
        self.done = Entered()
        self.looks = 0

    def tick(self, _stop: threading.Event) -> Entered:
        self.looks += 1
        return Entered()


def test_a_source_is_read_as_often_as_its_interval_says_at_that_moment() -> None:
    """The interval is asked for anew at each look: when it grows, the source is left alone."""
    source, interval_s = Counting(), [0.01]
    ending = threading.Event()
    reader = Reader(source, "vip", lambda: interval_s[0], lambda: True, lambda: None)

    def slow_down() -> bool:
        if source.looks >= 10:
            interval_s[0] = 3600.0
        return source.looks < 10

    looks: list[int] = []
    drain(
        [reader], {}, Housekeeping(lambda: 0, lambda: looks.append(source.looks) or 0, lambda: not slow_down()),
        quiet_s=lambda: 0.0, stop=threading.Event(), ending=ending, max_s=30,
    )  # fmt: skip
    at_rest = source.looks
    time.sleep(0.1)
    assert source.looks == at_rest >= 10


class LandsWhenLookedAt:
    """An upload whose one request comes back unsettled just after the drain has asked whether anything is due."""

    def __init__(self) -> None:
        self.done = Uploaded()
        self.is_flying = True
        self.came_back = False
        self.asked_after = 0
        self._busy: Callable[[], None] = lambda: None

    def run(self, stop: threading.Event, busy: Callable[[], None]) -> None:
        self._busy = busy
        stop.wait()

    def nothing_due(self) -> bool:
        if self.came_back:
            self.asked_after += 1
            return True
        # While it flies nobody else is due; and now Criteo's 429 arrives, and its people are due again.
        self.came_back, self.is_flying = True, False
        self._busy()
        return True


@pytest.mark.parametrize("quiet_s", [0.0, 0.05])
def test_people_who_come_back_while_the_drain_looks_around_are_not_left_behind(quiet_s: float) -> None:
    """A request that lands between "is anything due?" and "does anything fly?" keeps the drain from ending."""
    upload = LandsWhenLookedAt()
    drain(
        [], {"criteo": Sender(upload, lambda: 0)}, Housekeeping(lambda: 0, lambda: 0, upload.nothing_due),  # type: ignore[arg-type]
        quiet_s=lambda: quiet_s, stop=threading.Event(), ending=threading.Event(), max_s=30,
    )  # fmt: skip
    assert upload.asked_after >= 1
