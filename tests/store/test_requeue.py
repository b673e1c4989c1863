"""Re-queues: whoever is Errored is tried again when a person says so, counted right, with who, why and when."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from criteo_provider.core.model import Operation, Role
from criteo_provider.core.outcome import Accepted, AccessLost, Unavailable
from criteo_provider.store import requeue
from criteo_provider.store.schema import metric
from tests.world import HOUR_US, World, canvas, crowd, digest, step

DOWN = Unavailable("http-503", "Criteo's servers have trouble.", maybe_applied=False)
REVOKED = AccessLost("connection", "token-refused", "Criteo refuses the access token.")


def errored(world: World, chunks: int = 1) -> None:
    """Ten people a chunk: one invalid, nine given up after 13 hours."""
    world.declare(canvas("vip", step("add"), step("also", audience="Others")))
    for number in range(chunks):
        world.enter("vip", crowd(range(10 * number, 10 * number + 10), lacking=[10 * number]))
    while (claimed := world.claim()) is not None:
        world.settle(claimed, DOWN)
    world.pass_time(13 * 3600 + 1)


def test_errored_users_are_pending_again_for_a_fresh_window(world: World) -> None:
    """Only who is Errored comes back, at once, with 13 new hours from the next attempt; the metric rows say why."""
    errored(world)
    assert world.numbers("add") == (10, 0, 1, 0, 9)
    assert world.ledger.requeues.requeue("vip", "add", who="ada", why="Criteo was down", now_us=world.now_us) == 9
    assert world.numbers("add") == (10, 0, 1, 9, 0)
    assert world.numbers("also") == (10, 0, 1, 0, 9)
    claimed = world.claim()
    assert claimed is not None
    world.settle(claimed, DOWN)
    began_us = world.now_us
    world.now_us = began_us + 13 * HOUR_US - 1_000_000
    assert world.numbers("add") == (10, 0, 1, 9, 0)
    last = world.claim(Role.RETRY)
    assert last is not None
    world.settle(last)
    assert world.numbers("add") == (10, 9, 1, 0, 0)
    (told,) = world.ledger.requeues.told()
    assert (told.canvas, told.step, told.who, told.why, told.people) == ("vip", "add", "ada", "Criteo was down", 9)
    with world.engine.connect() as connection:
        rows = connection.execute(select(metric.c.metric, metric.c.value).where(metric.c.cause == "requeue:1"))
        assert {tuple(row) for row in rows} == {("Users Errored", -9), ("Users Pending", 9)}


def test_all_of_a_canvas_or_of_everything_and_nobody_twice(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many chunks come back a few at a time; what is pending, synced or refused stays as it is."""
    monkeypatch.setattr(requeue, "MOST_STAGES", 3)
    errored(world, chunks=7)
    world.declare(canvas("vip", step("add"), step("also", audience="Others")), canvas("else", step("more")))
    world.enter("else", crowd(range(200, 204)))
    synced = world.claim()
    assert synced is not None
    world.settle(synced, Accepted(3, 1, (digest(200).hex(),)))
    assert world.ledger.requeues.requeue(None, None, who="ada", why="all of it", now_us=world.now_us) == 2 * 63
    assert world.numbers("add") == world.numbers("also") == (70, 0, 7, 63, 0)
    assert world.numbers("more") == (4, 3, 1, 0, 0)
    assert world.ledger.requeues.requeue("vip", None, who="ada", why="again", now_us=world.now_us) == 0


def test_a_later_intent_wins_over_a_re_queue(world: World) -> None:
    """Whoever was removed since is not added again: superseded, while the others are."""
    world.declare(canvas("in", step("add")), canvas("out", step("remove", Operation.REMOVE)))
    world.enter("in", crowd(range(4)))
    claimed = world.claim()
    assert claimed is not None
    world.settle(claimed, DOWN)
    world.pass_time(14 * 3600)
    world.enter("out", crowd([2]))
    removal = world.claim()
    assert removal is not None
    world.settle(removal)
    world.ledger.requeues.requeue("in", None, who="ada", why="again", now_us=world.now_us)
    again = world.claim()
    assert again is not None
    assert sorted(world.sent(again)) == sorted(map(digest, [0, 1, 3]))
    world.settle(again)
    assert world.numbers("add") == (4, 3, 1, 0, 0)


def test_a_re_queue_adds_nobody_who_has_left_in_an_outage(world: World) -> None:
    """Add and removal were both given up unsent: the add alone is asked for again, and nobody is added back by it."""
    probed, left = canvas("probed", step("also", audience="Others")), canvas("out", step("remove", Operation.REMOVE))
    world.declare(canvas("in", step("add")), left, probed)
    world.enter("probed", crowd([9]))
    probe = world.claim()
    assert probe is not None
    world.settle(probe, REVOKED)
    world.enter("in", crowd([1, 2]))
    world.pass_time(1)
    world.enter("out", crowd([1]))
    world.pass_time(14 * 3600)
    world.ledger.sweep(now_us=world.now_us)
    assert world.numbers("add") == (2, 0, 0, 0, 2)
    assert world.numbers("remove") == (1, 0, 0, 0, 1)
    assert world.ledger.requeues.requeue("in", None, who="ada", why="connected again", now_us=world.now_us) == 2
    again = world.claim()
    assert again is not None
    assert world.sent(again) == [digest(2)]
    world.settle(again)
    assert world.numbers("add") == (2, 1, 1, 0, 0)
    assert world.ledger.requeues.requeue("out", None, who="ada", why="this too", now_us=world.now_us) == 1
    removal = world.claim()
    assert removal is not None
    assert world.sent(removal) == [digest(1)]
    world.settle(removal)
    assert world.numbers("remove") == (1, 1, 0, 0, 0)


def test_an_add_gives_way_to_a_removal_that_was_given_up_unsent(world: World) -> None:
    """A removal that is less patient than the add before it was never tried: its person is not added all the same."""
    probed = canvas("probed", step("also", audience="Others"))
    left = canvas("out", step("remove", Operation.REMOVE), retry_for_s=3600)
    world.declare(canvas("in", step("add")), left, probed)
    world.enter("probed", crowd([9]))
    probe = world.claim()
    assert probe is not None
    world.settle(probe, REVOKED)
    world.enter("in", crowd([1, 2]))
    world.pass_time(1)
    world.enter("out", crowd([1]))
    world.pass_time(2 * 3600)
    world.ledger.sweep(now_us=world.now_us)
    assert world.numbers("remove") == (1, 0, 0, 0, 1)
    added = world.claim()
    assert added is not None
    assert world.sent(added) == [digest(2)]
    world.settle(added)
    assert world.numbers("add") == (2, 1, 1, 0, 0)
