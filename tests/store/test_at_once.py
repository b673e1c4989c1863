"""Two verbs at once on PostgreSQL: who has waited for a lock sees what the other one has made of the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

import pytest
from sqlalchemy import Connection, func, select, text

from criteo_provider.core.consent import FeedDeclaration
from criteo_provider.core.model import Role
from criteo_provider.core.outcome import Accepted, AudienceGone, Unavailable
from criteo_provider.store import claim as claiming
from criteo_provider.store import declare, earlier, gone, opt_outs, requeue, seal, settle
from criteo_provider.store.engine import writing
from criteo_provider.store.schema import chunk, request
from criteo_provider.store.schema_opt_outs import opt_out_feed
from criteo_provider.store.schema_order import key_filter
from tests.world import World, canvas, crowd, step

T = TypeVar("T")
S = TypeVar("S")
DOWN = Unavailable("http-503", "Criteo's servers have trouble.", maybe_applied=False)


@pytest.fixture
def world(postgres_url: str) -> Iterator[World]:
    """An empty ledger on PostgreSQL: SQLite has one writer at a time."""
    world = World(postgres_url)
    yield world
    world.close()


def at_once(world: World, first: Callable[[Connection], T], second: Callable[[], S]) -> tuple[T, S]:
    """Begin ``second`` when ``first`` is done and not committed; commit once it waits for a lock, or has not had to."""
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    with ThreadPoolExecutor(1) as beside:
        with writing(world.engine) as connection:
            done = first(connection)
            later: Future[S] = beside.submit(second)
            for _ in range(200):
                # A look of its own: within one transaction PostgreSQL goes on telling what it saw first.
                with world.engine.connect() as onlooker:
                    if onlooker.execute(waiting).scalar_one() or wait([later], 0.05).done:
                        break
        return done, later.result(30)


def files(field: str) -> tuple:
    """All canvases there are: one that sends this field."""
    return (canvas("vip", step("add", fields=(field,))),)


def edit_beside(world: World, verb: Callable[[Connection], object], *, edit_begins: bool) -> None:
    """Do this while the field is given up for another one."""

    def edit(connection: Connection) -> object:
        return declare.declare(connection, files("madid"), now_us=world.now_us)

    def alone(later: Callable[[Connection], object]) -> object:
        with writing(world.engine) as connection:
            return later(connection)

    first, second = (edit, verb) if edit_begins else (verb, edit)
    at_once(world, first, lambda: alone(second))


def test_a_field_removed_while_a_claim_is_made_flies_and_is_settled(world: World) -> None:
    """An edit that waits for a claim leaves its people to the request: what Criteo accepts is Synced."""
    world.declare(*files("email"))
    world.enter("vip", crowd(range(3)))
    terms = claiming.ClaimTerms("criteo_default", frozenset({"1001"}), Role.FRESH, "me", 120)
    claimed, _ = at_once(
        world,
        lambda connection: claiming.claim(connection, terms, now_us=world.now_us),
        lambda: world.ledger.declare(files("madid"), now_us=world.now_us),
    )
    assert claimed is not None
    assert world.settle(claimed) == 0
    assert world.numbers("add") == (3, 3, 0, 0, 0)


@pytest.mark.parametrize("edit_begins", [False, True])
def test_a_field_removed_while_people_are_sealed_is_not_sent(world: World, edit_begins: bool) -> None:
    """Sealing and an edit of the same step come one after the other, whichever begins."""
    world.declare(*files("email"))
    yesterday = world.plans["vip"]

    def enter(connection: Connection) -> object:
        return seal.seal(connection, "vip", crowd(range(3)), yesterday, now_us=world.now_us)

    edit_beside(world, enter, edit_begins=edit_begins)
    assert world.claim() is None
    assert world.numbers("add") == (3, 0, 3, 0, 0)


@pytest.mark.parametrize("edit_begins", [False, True])
def test_a_field_removed_while_a_request_comes_back_is_not_sent_again(world: World, edit_begins: bool) -> None:
    """A settlement that gives people back and an edit of their step come one after the other, whichever begins."""
    world.declare(*files("email"))
    world.enter("vip", crowd(range(3)))
    failing = world.claim()
    assert failing is not None

    def come_back(connection: Connection) -> object:
        return settle.settle(connection, failing, DOWN, now_us=world.now_us, jitter=0.5)

    edit_beside(world, come_back, edit_begins=edit_begins)
    world.pass_time(3600)
    assert world.claim() is None
    assert world.numbers("add") == (3, 0, 3, 0, 0)


def test_whoever_is_brought_back_while_old_people_are_pruned_stays(world: World) -> None:
    """A prune that waits for a re-queue leaves its people: they are Pending, and sent."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd(range(3)))
    failing = world.claim()
    assert failing is not None
    world.settle(failing, DOWN)
    world.pass_time(14 * 3600)
    world.ledger.sweep(now_us=world.now_us)
    assert world.numbers("add") == (3, 0, 0, 0, 3)

    def bring_back(connection: Connection) -> None:
        asked = requeue.begin(connection, None, None, who="ana", why="mended", now_us=world.now_us)
        requeue.bring_back(connection, asked, now_us=world.now_us)

    _, pruned = at_once(world, bring_back, lambda: world.ledger.keeping.prune(before_us=world.now_us))
    assert pruned == 0
    assert world.numbers("add") == (3, 0, 0, 3, 0)
    claimed = world.claim_retry()
    assert claimed is not None
    world.settle(claimed)
    assert world.numbers("add") == (3, 3, 0, 0, 0)


def test_a_request_settled_while_its_claim_is_taken_back_stays_settled(world: World) -> None:
    """A sweep that waits for a late settlement does not call the request expired."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd(range(3)))
    slow = world.claim(lease_s=60)
    assert slow is not None
    world.pass_time(61)
    at_once(
        world,
        lambda connection: settle.settle(connection, slow, Accepted(3, 0), now_us=world.now_us, jitter=0.5),
        lambda: world.ledger.sweep(now_us=world.now_us),
    )
    with world.engine.connect() as connection:
        assert connection.execute(select(request.c.state, request.c.code)).one() == ("settled", "accepted")
    assert world.numbers("add") == (3, 3, 0, 0, 0)


def test_two_processes_may_make_the_same_filter(world: World) -> None:
    """Looking back for two removals at once, both keep what they found, in whatever order they made it."""
    world.declare(canvas("vip", step("add")))
    for number in range(3):
        world.enter("vip", crowd([number]))
    with world.engine.connect() as connection:
        chunk_ids = list(connection.execute(select(chunk.c.id)).scalars())

    def keep(connection: Connection, order: list[int]) -> None:
        found = earlier.LookedUp(filters={chunk_id: b"" for chunk_id in order})
        earlier.keep(connection, found, now_us=world.now_us)

    def keep_too() -> None:
        with writing(world.engine) as connection:
            keep(connection, chunk_ids[::-1])

    at_once(world, lambda connection: keep(connection, chunk_ids[:2]), keep_too)
    with world.engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(key_filter)).scalar() == 3


def test_one_process_at_a_time_looks_for_a_deleted_audience(world: World) -> None:
    """Of two that look at the same moment one is told to, so that nobody makes an audience anew twice."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd(range(3)))
    claimed = world.claim()
    assert claimed is not None
    world.settle(claimed, AudienceGone("audience-invalid", "Criteo does not know it."))

    def look(connection: Connection) -> int:
        found = gone.to_look_for(connection, "criteo_default", ["1001"], now_us=world.now_us)
        return len(found)

    def look_too() -> int:
        with writing(world.engine) as connection:
            return look(connection)

    assert at_once(world, look, look_too) == (1, 0)


def test_who_is_tried_again_while_a_sweep_waits_is_not_given_up(world: World) -> None:
    """A sweep that has seen people past their deadline leaves those alone who were given a new one meanwhile."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd(range(3)))
    claimed = world.claim()
    assert claimed is not None
    world.settle(claimed, DOWN)
    world.pass_time(14 * 3600)

    def retry(connection: Connection) -> None:
        settle.expire(connection, now_us=world.now_us)
        asked = requeue.begin(connection, None, None, who="ana", why="mended", now_us=world.now_us)
        requeue.bring_back(connection, asked, now_us=world.now_us)

    at_once(world, retry, lambda: world.ledger.sweep(now_us=world.now_us))
    assert world.numbers("add") == (3, 0, 0, 3, 0)


def test_two_processes_may_declare_the_same_new_feed(world: World) -> None:
    """Who comes second finds the feed declared."""
    feed = FeedDeclaration("opt_outs/do_not_sell", "Do not sell", "privacy-team", 3600, "1", None)
    at_once(
        world,
        lambda connection: opt_outs.declare_feeds(connection, [feed], now_us=world.now_us),
        lambda: world.ledger.opt_outs.declare([feed], now_us=world.now_us),
    )
    with world.engine.connect() as connection:
        assert connection.execute(select(opt_out_feed.c.canvas_id)).scalars().all() == [feed.feed_id]
