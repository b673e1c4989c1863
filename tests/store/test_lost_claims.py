"""An owner that wakes after its claim was lost: whatever arrived late, the last intent stands at Criteo in the end."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event, select

from criteo_provider.core.errors import LedgerUnwritable
from criteo_provider.core.model import ClaimedRequest, Operation, Role
from criteo_provider.core.outcome import Accepted, Outcome, Refused, Unavailable
from criteo_provider.store import clock
from criteo_provider.store.claim import ClaimTerms
from criteo_provider.store.engine import writing
from criteo_provider.store.schema import chunk
from tests.postgres import PostgresServer
from tests.world import World, canvas, crowd, digest, step

NO_ANSWER = Unavailable("no-answer", "Criteo did not answer in time.", maybe_applied=True)
DOWN = Unavailable("http-503", "Criteo's servers have trouble.", maybe_applied=False)


class Lists:
    """The one audience at Criteo."""

    def __init__(self, world: World) -> None:
        self.world, self.members = world, set[bytes]()

    def take(self, claimed: ClaimedRequest) -> Outcome:
        values = set(self.world.sent(claimed))
        self.members = self.members | values if claimed.operation is Operation.ADD else self.members - values
        return Accepted(len(values), 0)

    def drain(self) -> int:
        """Send all that is due; return how many requests that were."""
        for requests in range(1_000):
            claimed = self.world.claim() or self.world.claim(Role.RETRY)
            if claimed is None:
                return requests
            self.world.settle(claimed, self.take(claimed))
        pytest.fail("the drain does not end")


def stalled_and_taken_over(world: World, first: Operation) -> tuple[Lists, ClaimedRequest]:
    """Somebody claims and stalls; the claim is taken over."""
    world.declare(canvas("one", step("one", first)), canvas("two", step("two", first.opposite)))
    lists = Lists(world)
    world.enter("one", crowd(range(6)))
    stalled = world.claim(lease_s=60)
    assert stalled is not None
    world.pass_time(61)
    lists.drain()
    return lists, stalled


def stalled_and_overtaken(world: World, first: Operation) -> tuple[Lists, ClaimedRequest]:
    """The same, and the opposite of some of its people follows."""
    lists, stalled = stalled_and_taken_over(world, first)
    world.enter("two", crowd([2, 3, 9]))
    lists.drain()
    return lists, stalled


@pytest.mark.parametrize("first", Operation)
@pytest.mark.parametrize("answer", [Accepted(6, 0), NO_ANSWER])
def test_the_last_intent_is_sent_again_after_a_late_arrival(world: World, first: Operation, answer: Outcome) -> None:
    """What came late is put right for exactly the people who have a later intent, and no number changes."""
    lists, stalled = stalled_and_overtaken(world, first)
    in_the_end = set(lists.members)
    numbers = [world.numbers(name) for name in ("one", "two")]
    lists.take(stalled)
    assert lists.members != in_the_end
    assert world.settle(stalled, answer) == 1
    assert [world.numbers(name) for name in ("one", "two")] == numbers
    again = world.claim()
    assert again is not None
    assert sorted(world.sent(again)) == sorted(map(digest, [2, 3]))
    world.settle(again, lists.take(again))
    assert lists.members == in_the_end
    assert lists.drain() == 0
    assert [world.numbers(name) for name in ("one", "two")] == numbers


@pytest.mark.parametrize("answer", [Refused("invalid", "Criteo refuses the content."), DOWN])
def test_what_did_not_arrive_puts_nothing_right(world: World, answer: Outcome) -> None:
    """A late refusal, or a 503, has changed nothing at Criteo: nothing is sent again."""
    lists, stalled = stalled_and_overtaken(world, Operation.ADD)
    assert world.settle(stalled, answer) == 1
    assert lists.drain() == 0


def test_people_without_a_later_intent_are_not_sent_again(world: World) -> None:
    """The claim was lost and taken over, and nobody left since: the late request said what is true."""
    world.declare(canvas("one", step("one")))
    lists = Lists(world)
    world.enter("one", crowd(range(6)))
    stalled = world.claim(lease_s=60)
    assert stalled is not None
    world.pass_time(61)
    assert lists.drain() == 1
    world.settle(stalled, lists.take(stalled))
    assert lists.drain() == 0
    assert world.numbers("one") == (6, 6, 0, 0, 0)


def test_a_still_later_intent_wins_over_what_is_sent_again(world: World) -> None:
    """Added, removed and added again: a first request that arrives last needs no second removal."""
    lists, stalled = stalled_and_overtaken(world, Operation.ADD)
    world.pass_time(1)
    world.enter("one", crowd([2]))
    lists.drain()
    world.settle(stalled, lists.take(stalled))
    lists.drain()
    assert digest(2) in lists.members
    assert digest(3) not in lists.members


def test_failing_again_to_put_it_right_makes_nobody_errored(world: World) -> None:
    """Whoever is Synced stays so, even if 13 hours are not enough to send the last intent once more."""
    lists, stalled = stalled_and_overtaken(world, Operation.ADD)
    world.settle(stalled, lists.take(stalled))
    again = world.claim()
    assert again is not None
    world.settle(again, DOWN)
    world.pass_time(14 * 3600)
    world.ledger.sweep(now_us=world.now_us)
    assert world.numbers("two") == (3, 3, 0, 0, 0)
    assert world.ledger.take_news(now_us=world.now_us) == []


# --- several at once


def test_what_is_sent_once_more_has_no_more_patience_than_the_request_it_repeats(world: World) -> None:
    """A late request meets the last intent in flight: 13 hours after its first attempt those users are Errored."""
    lists, stalled = stalled_and_taken_over(world, Operation.ADD)
    world.enter("two", crowd([2, 3]))
    last = world.claim()
    assert last is not None
    world.settle(stalled, lists.take(stalled))
    world.settle(last, DOWN)
    for _ in range(26):
        world.pass_time(1_795)
        while (claimed := world.claim() or world.claim_retry()) is not None:
            world.settle(claimed, DOWN)
    assert world.numbers("two") == (2, 0, 0, 2, 0)
    world.pass_time(200)
    world.ledger.sweep(now_us=world.now_us)
    assert world.numbers("two") == (2, 0, 0, 0, 2)


def test_two_sweeps_and_two_claims_at_once_count_once(ledger_url: str) -> None:
    """Expired claims, deadlines and due people met by two processes at the same moment are dealt with once."""
    world = World(ledger_url)
    world.declare(*(canvas(f"c{number}", step(f"s{number}", audience=f"A{number}")) for number in range(8)))
    for number in range(8):
        world.enter(f"c{number}", crowd(range(4)))
    for number in range(8):
        claimed = world.claim(lease_s=60)
        assert claimed is not None
        if number % 2:
            world.settle(claimed, DOWN)
    world.pass_time(14 * 3600)
    barrier = threading.Barrier(4)

    def work(number: int) -> None:
        barrier.wait()
        world.ledger.sweep(now_us=world.now_us)
        claimed = world.claim(Role.RETRY, owner=f"owner {number}")
        if claimed is not None:
            world.settle(claimed)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    world.ledger.sweep(now_us=world.now_us)
    numbers = [world.numbers(f"s{number}") for number in range(8)]
    assert {one for number, one in enumerate(numbers) if number % 2} == {(4, 0, 0, 0, 4)}
    assert all(one in ((4, 0, 0, 0, 4), (4, 4, 0, 0, 0)) for one in numbers)
    world.close()


def test_a_full_disk_leaves_nothing_half_written(sqlite_url: str) -> None:
    """At whatever page of whatever verb the disk is full: as if it had not begun, with a sentence; then it goes on."""
    world = World(sqlite_url)
    world.declare(canvas("in", step("add")), canvas("out", step("remove", Operation.REMOVE)))
    state: dict[str, ClaimedRequest] = {}

    def claim() -> None:
        claimed = world.claim() or world.claim(Role.RETRY)
        assert claimed is not None
        state["claimed"] = claimed

    verbs = [
        lambda: world.enter("in", crowd(range(3_000))),
        claim,
        lambda: world.settle(
            state["claimed"], Accepted(2_000, 1_000, tuple(digest(3 * n).hex() for n in range(1_000)))
        ),
        lambda: world.enter("out", crowd(range(1, 3_000, 7))),
        claim,
        lambda: world.settle(state["claimed"], DOWN),
        lambda: (world.pass_time(14 * 3600), world.ledger.sweep(now_us=world.now_us)),
    ]
    told: list[str] = []
    for verb in verbs:
        for spare in range(200):
            with room_for(world, spare):
                try:
                    verb()
                except LedgerUnwritable as full:
                    told.append(str(full))
                else:
                    break
            assert world.ledger.broken_laws() == []
    assert len(told) > 5
    assert all("no room left" in sentence for sentence in told)
    assert world.numbers("add") == (3000, 2000, 1000, 0, 0)
    assert world.numbers("remove")[4] == world.numbers("remove")[0] == 429
    world.close()


@contextmanager
def room_for(world: World, pages: int) -> Iterator[None]:
    """Let the file grow by so many pages only."""
    world.engine.dispose()

    def limit(connection: sqlite3.Connection, _record: object) -> None:
        (used,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {used + pages}")

    event.listen(world.engine, "connect", limit)
    yield
    event.remove(world.engine, "connect", limit)
    world.engine.dispose()


def test_a_server_without_room_or_without_a_way_to_it_says_so(durable_postgres: PostgresServer) -> None:
    """PostgreSQL's disk is full, or it is killed in a transaction, or away: a sentence for reads and writes alike."""
    world = World(durable_postgres.url())
    world.declare(canvas("in", step("add")))

    no_room = "DO $$ BEGIN RAISE EXCEPTION 'no space left' USING ERRCODE = '53100'; END $$", ()

    def full(_connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> Any:
        return no_room if statement.startswith("INSERT INTO chunk") else (statement, parameters)

    event.listen(world.engine, "before_cursor_execute", full, retval=True)
    with pytest.raises(LedgerUnwritable, match="no room left on the disk of the ledger's PostgreSQL server"):
        world.enter("in", crowd(range(3)))
    event.remove(world.engine, "before_cursor_execute", full)

    def killed_meanwhile() -> None:
        with writing(world.engine) as connection:
            connection.execute(select(chunk.c.id))
            durable_postgres.kill()
            connection.execute(select(chunk.c.id))

    for verb in (killed_meanwhile, lambda: world.enter("in", crowd(range(3))), world.ledger.troubles):
        with pytest.raises(LedgerUnwritable, match="no way to the ledger's PostgreSQL server"):
            verb()
    durable_postgres.start()
    world.enter("in", crowd(range(3)))
    assert world.numbers("add") == (3, 0, 0, 3, 0)
    world.close()


def test_a_busy_ledger_says_so_and_goes_on(sqlite_url: str) -> None:
    """Somebody keeps the write lock for longer than is waited for: a sentence, and nothing lost."""
    world = World(sqlite_url)
    world.declare(canvas("in", step("add")))
    world.engine.dispose()
    event.listen(world.engine, "connect", lambda connection, _: connection.execute("PRAGMA busy_timeout = 50"))
    hog = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
    hog.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerUnwritable, match=r"kept the ledger \(.*ledger\.db\) to itself"):
        world.enter("in", crowd(range(3)))
    hog.execute("ROLLBACK")
    hog.close()
    world.enter("in", crowd(range(3)))
    assert world.numbers("add") == (3, 0, 0, 3, 0)
    world.close()


def test_who_was_stopped_for_hours_before_its_claim_takes_no_live_request(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a reading of the clock that is hours old, a live lease looks set by a clock that has stepped back since."""
    monkeypatch.setattr(clock, "read_us", lambda _connection: world.now_us)
    world.declare(canvas("tour", step("add")))
    stale = ClaimTerms("criteo_default", frozenset({"1001"}), Role.FRESH, "stopped", 120)
    read_before_us = world.now_us
    world.pass_time(2 * 3600)
    world.enter("tour", crowd(range(3)))
    live = world.claim()
    assert live is not None
    assert world.ledger.claim(stale, now_us=read_before_us) is None
    world.ledger.sweep(now_us=read_before_us)
    assert world.settle(live) == 0
    assert world.numbers("add") == (3, 3, 0, 0, 0)


def test_a_lease_of_before_the_clock_stepped_back_is_over(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that was set back for real does not hold people back for as long as it was set back."""
    monkeypatch.setattr(clock, "read_us", lambda _connection: world.now_us)
    world.declare(canvas("tour", step("add")))
    world.pass_time(3 * 3600)
    world.enter("tour", crowd(range(3)))
    assert world.claim() is not None
    world.pass_time(-2 * 3600)
    assert world.ledger.sweep(now_us=world.now_us) == 0
    again = world.claim(Role.RETRY)
    assert again is not None
    assert again.identifiers == 3
