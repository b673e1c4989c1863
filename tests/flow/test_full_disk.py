"""The disk of the ledger is full: whatever was at work says so in a sentence, and nobody is lost or counted twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from criteo_provider.core.errors import LedgerUnwritable
from criteo_provider.sandbox.running import Sandbox
from criteo_provider.sandbox.state import CLIENT_ID, CLIENT_SECRET
from criteo_provider.store.engine import sqlite_path
from criteo_provider.store.pacer import pacer_url
from criteo_provider.wiring import CriteoConnection, House, Surroundings
from tests.disk import room_for
from tests.flow.shop import Person, Sealer, Shop, sync, write_canvas


@pytest.fixture
def open_one(sandbox: Sandbox, shop: Shop, include: Path, sqlite_url: str) -> Callable[..., House]:
    """A house that adds the shop's people to a list; every one opened has the same ledger."""
    write_canvas(include, "vip", sync("add", "Shoppers"))
    connection = CriteoConnection(CLIENT_ID, CLIENT_SECRET, sandbox.url, requests_per_minute=60_000)
    around = Surroundings(include, sqlite_url, lambda _name: connection, shop.source, Sealer())
    return lambda **more: House(around, **more)


class Later:
    """Ten minutes ahead: the leases of what could not be settled are over."""

    def now_us(self) -> int:
        return time.time_ns() // 1_000 + 600_000_000


def assert_says_where(full: LedgerUnwritable, url: str) -> None:
    """One sentence has what, where, and how to mend."""
    assert str(full).startswith(f"There is no room left on the disk of the ledger ({sqlite_path(url)}); make room ")


@pytest.mark.slow
def test_a_drain_on_a_full_disk(
    open_one: Callable[..., House], sqlite_url: str, sandbox: Sandbox, shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    """However soon it is full, the drain ends with the sentence and the laws hold; with room all are Synced."""
    with closing(open_one()) as house:
        house.drain("fresh", stop=threading.Event(), max_s=60)
    people = [Person(number) for number in range(1, 800)]
    shop.add(people)
    refused = 0
    for pages in range(0, 400, 2):
        with room_for(pages, sqlite_url), closing(open_one()) as house:
            try:
                house.drain("fresh", stop=threading.Event(), max_s=60)
            except LedgerUnwritable as full:
                assert_says_where(full, sqlite_url)
                refused += 1
            else:
                break
        with closing(open_one()) as house:
            assert house.prove() == []
    assert refused > 3
    assert "Traceback" not in caplog.text
    with closing(open_one(clock=Later())) as house:
        house.drain("fresh", stop=threading.Event(), max_s=60)
        house.drain("retry", stop=threading.Event(), max_s=60)
        (step,) = house.numbers()
        assert house.prove() == []
    wanted = [one for one in people if one.email and one.ads]
    assert (step.synced, step.pending, step.errored) == (len(wanted), 0, 0)
    (segment,) = sandbox.state()["segments"]
    assert segment["size"] == len(wanted)


@pytest.mark.parametrize("which", ["ledger", "pacer"])
def test_a_deployment_that_begins_on_a_full_disk(open_one: Callable[..., House], sqlite_url: str, which: str) -> None:
    """There is not even room for the tables: the sentence, and with room it begins."""
    url = sqlite_url if which == "ledger" else pacer_url(sqlite_url)
    with room_for(1, url), closing(open_one()) as house, pytest.raises(LedgerUnwritable) as full:
        house.drain("fresh", stop=threading.Event(), max_s=60)
    assert_says_where(full.value, url)
    with closing(open_one()) as house:
        house.drain("fresh", stop=threading.Event(), max_s=60)
        assert house.prove() == []
