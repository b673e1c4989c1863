"""Opt-out feeds whose canvases change: who was sent by a canvas a feed was not for, once it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.store.opt_out_world import FEED, OptOutWorld, by_key
from tests.world import canvas, crowd, digest, step


@pytest.fixture
def world(ledger_url: str) -> Iterator[OptOutWorld]:
    world = OptOutWorld(ledger_url)
    yield world
    world.close()


def removals(world: OptOutWorld) -> list[tuple[str, int, int]]:
    """How many people the feed is to remove, and how many of those it has removed, by audience."""
    told = (one for one in world.ledger.numbers(now_us=world.now_us) if one.canvas == FEED)
    return sorted((one.audience, one.entered, one.synced) for one in told)


def test_a_feed_that_is_widened_takes_out_who_was_sent_elsewhere(world: OptOutWorld) -> None:
    """Whoever opted out of one canvas leaves the others when the feed is for them, too; nobody is removed twice."""
    world.declare_feed(("quiet",))
    world.declare(canvas("vip", step("add")), canvas("quiet", step("add_quiet", audience="Quiet")))
    world.enter("vip", crowd([1, 2]))
    world.enter("quiet", crowd([1, 2]))
    world.drain()
    world.tell(*by_key(1))
    world.drain()
    assert removals(world) == [("Quiet", 1, 1)]
    for canvases in (("quiet", "vip"), ("quiet",), None):
        world.declare_feed(canvases)
        world.look_for_people()
        world.drain()
        assert world.members() == {digest(2)}
        assert removals(world) == [("Quiet", 1, 1), ("Shoppers", 1, 1)]
    assert not world.ledger.opt_outs.is_unfinished()
    assert world.ledger.opt_outs.counts() == {FEED: (1, 0)}


@pytest.mark.parametrize("followed", [False, True])
def test_a_feed_is_widened_before_everybody_was_looked_for(world: OptOutWorld, followed: bool) -> None:
    """Opt-outs not yet followed through all chunks, and those told since, are followed all the same, once."""
    world.declare_feed(("quiet",))
    world.declare(canvas("vip", step("add")), canvas("quiet", step("add_quiet", audience="Quiet")))
    world.enter("vip", crowd([1, 2, 3]))
    world.enter("quiet", crowd([1, 2, 3]))
    world.drain()
    world.tell(*by_key(1), follow=followed)
    world.declare_feed(None)
    world.tell(*by_key(2))
    world.drain()
    assert world.members() == {digest(3)}
    assert removals(world) == [("Quiet", 2, 2), ("Shoppers", 2, 2)]


def test_a_user_who_was_removed_for_one_canvas_leaves_for_the_others_too(world: OptOutWorld) -> None:
    """What another canvas has put into the same audience before and after the opt-out leaves with the wider feed."""
    world.declare_feed(("quiet",))
    world.declare(canvas("vip", step("add")), canvas("quiet", step("add_quiet")))
    world.enter("quiet", crowd([1]))
    world.enter("vip", replace(crowd([5]), user_keys=("user-1",)))
    world.drain()
    world.tell(*by_key(1))
    world.enter("vip", replace(crowd([6]), user_keys=("user-1",)))
    world.drain()
    assert digest(6) in world.members()
    world.declare_feed(None)
    world.look_for_people()
    world.drain()
    assert world.members() == set()


def test_a_feed_that_is_narrowed_or_edited_otherwise_is_not_followed_again(world: OptOutWorld) -> None:
    """Nothing is undone, and nothing is looked for, when a feed is for fewer canvases or says the same."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd([1]))
    world.drain()
    world.tell(*by_key(1))
    world.drain()
    for canvases in (("vip", "quiet"), ("quiet",)):
        world.declare_feed(canvases)
        assert not world.ledger.opt_outs.is_unfinished()
    assert world.members() == set()
