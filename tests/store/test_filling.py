"""How full a request is: small chunks go together, a large one is cut where much room is left; on both engines."""

from __future__ import annotations

from itertools import islice

import pytest
from sqlalchemy import func, select, update

from criteo_provider.core.outcome import Refused
from criteo_provider.store.claim import FRESH_TURN
from criteo_provider.store.schema import audience, part
from tests.world import World, canvas, crowd, digest, step


def begin_with_the_newest(world: World) -> None:
    """Let the next claim be one that begins with the newest chunk."""
    with world.engine.begin() as connection:
        connection.execute(update(audience).values(served=FRESH_TURN - 1))


def test_small_chunks_are_merged_and_a_big_one_fills_the_request(world: World) -> None:
    """A request takes small chunks of one audience together, and of what is too large for the rest the beginning."""
    world.declare(canvas("vip", step("add")))
    for first in range(0, 30, 10):
        world.enter("vip", crowd(range(first, first + 10)))
    world.enter("vip", crowd(range(100, 50_090)))
    claimed = world.claim()
    assert claimed is not None
    assert (len(claimed.parts), claimed.identifiers) == (4, 50_000)
    second = world.claim()
    assert second is not None
    assert second.identifiers == 20
    assert sorted(world.sent(claimed) + world.sent(second)) == sorted(map(digest, [*range(30), *range(100, 50_090)]))
    world.settle(claimed)
    assert world.numbers("add") == (50_020, 50_000, 0, 20, 0)
    world.settle(second)
    assert world.numbers("add") == (50_020, 50_020, 0, 0, 0)


def test_a_chunk_is_not_cut_for_a_little_room(world: World) -> None:
    """Two pieces cost twice as much to settle: what a request could hold beside nine tenths is not worth that."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd(range(45_001)))
    world.enter("vip", crowd(range(50_000, 60_000)))
    sizes = [claimed.identifiers for claimed in iter(world.claim, None)]
    assert sizes == [45_001, 10_000]
    with world.engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(part)).scalar() == 2


@pytest.mark.parametrize("fresh_turn", [False, True])
def test_a_chunk_too_large_for_any_request_is_not_passed_over(world: World, *, fresh_turn: bool) -> None:
    """More people had an address than those before: whose turn it is goes, all that fits of them, not who fits well."""
    world.declare(canvas("vip", step("add")))
    if fresh_turn:
        begin_with_the_newest(world)
    sizes = [50_000, 50_000, 50_010] if fresh_turn else [50_010, 50_000, 50_000]
    people = iter(range(150_010))
    for size in sizes:
        world.enter("vip", crowd([*islice(people, size)]))
    first = world.claim()
    assert first is not None
    assert first.identifiers == 50_000
    assert set(world.sent(first)) <= set(map(digest, range(100_000, 150_010) if fresh_turn else range(50_010)))
    claimed = [first, *iter(world.claim, None)]
    assert sorted(value for one in claimed for value in world.sent(one)) == sorted(map(digest, range(150_010)))


@pytest.mark.parametrize("fresh_turn", [False, True])
def test_a_rule_that_lets_few_through_does_not_leave_requests_half_empty(world: World, *, fresh_turn: bool) -> None:
    """Chunks of 30,000 people each go out in full requests, whichever end of the backlog is begun with."""
    world.declare(canvas("vip", step("add")))
    if fresh_turn:
        begin_with_the_newest(world)
    for first in range(0, 150_000, 30_000):
        world.enter("vip", crowd(range(first, first + 30_000)))
    claimed = list(iter(world.claim, None))
    assert [one.identifiers for one in claimed] == [50_000] * 3
    assert sorted(value for one in claimed for value in world.sent(one)) == sorted(map(digest, range(150_000)))
    for one in claimed:
        world.settle(one)
    assert world.numbers("add") == (150_000, 150_000, 0, 0, 0)


def test_who_was_cut_off_and_refused_is_found_and_the_others_are_synced(world: World) -> None:
    """Both pieces of a chunk end by themselves: one is narrowed, the other given back, and nobody is lost."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd(range(30_000)))
    world.enter("vip", crowd(range(50_000, 80_000)))
    first, second = world.claim(), world.claim()
    assert first
    assert second
    world.ledger.release(second, now_us=world.now_us)
    world.settle(first, Refused("invalid", "Criteo refuses the content."))
    assert world.numbers("add") == (60_000, 0, 0, 60_000, 0)
    sent = []
    while (claimed := world.claim()) is not None:
        sent.append(claimed.identifiers)
        world.settle(claimed)
    assert sum(sent) == 60_000
    assert max(sent) <= 50_000
    assert world.numbers("add") == (60_000, 60_000, 0, 0, 0)
