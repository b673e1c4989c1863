"""Troubles end when nothing uses any more what they are about, and not before."""

from __future__ import annotations

from dataclasses import replace

import pytest

from criteo_provider.core.consent import FeedDeclaration, Withdrawal, key_marks
from criteo_provider.core.model import AudienceKey, CanvasDeclaration
from criteo_provider.core.outcome import AudienceGone, Unavailable
from tests.world import World, canvas, crowd, step

GONE = AudienceGone("audience-gone", "The audience is not at Criteo any more.")
DOWN = Unavailable("http-503", "Criteo's servers have trouble.", maybe_applied=False)
FEED = "opt_outs/do_not_sell"
OLD, NEW = "criteo_default", "criteo_new"


def vip(connection_id: str, ad_account: str = "1001", *, delay_s: float = 0) -> CanvasDeclaration:
    """A canvas of one step on this connection and ad account."""
    return canvas("vip", replace(step("add", delay_s=delay_s), audience=AudienceKey(connection_id, ad_account, "VIP")))


def begin(world: World, *troubles: tuple[str, str]) -> None:
    """Let these troubles begin, and be told."""
    for scope, key in troubles:
        world.ledger.trouble(scope, key, code="bad", sentence=f"The {scope} is bad.", now_us=world.now_us)
    news(world)


def news(world: World) -> list[str]:
    """What nobody was told of yet."""
    return world.ledger.take_news(now_us=world.now_us)


def open_scopes(world: World) -> set[str]:
    """The scopes of the open troubles."""
    return {str(row.scope) for row in world.ledger.troubles()}


@pytest.mark.parametrize(("connection_id", "ad_account"), [(NEW, "1001"), (OLD, "1002")])
def test_what_a_canvas_has_moved_away_from_is_no_trouble(world: World, connection_id: str, ad_account: str) -> None:
    """The troubles of the place of before are over, told once; the place is not in use, others keep their troubles."""
    world.declare(vip(OLD))
    begin(world, ("audience", "1"), ("ad_account", f"{OLD}/1001"), ("quota", f"{OLD}/1001"), ("connection", OLD))
    world.declare(vip(connection_id, ad_account), resolve=False)
    stays = {"connection"} if connection_id == OLD else set()
    assert open_scopes(world) == stays
    told = {
        "Over, audience 'VIP' is not used any more. It was: The audience is bad.",
        f"Over, ad account {OLD}/1001 is not used any more. It was: The quota is bad.",
    }
    assert told <= set(news(world))
    assert world.ledger.launches.ad_accounts_in_use() == {connection_id: {ad_account}}
    assert set(world.ledger.launches.last_used()) == {connection_id}
    world.declare(vip(connection_id, ad_account), resolve=False)
    assert (open_scopes(world), news(world)) == (stays, [])


def test_a_trouble_nobody_was_told_of_ends_silently(world: World) -> None:
    """What was covered by a wider trouble is not told as over either: one cause, one message, one end."""
    world.declare(vip(OLD))
    begin(world, ("connection", OLD), ("ad_account", f"{OLD}/1001"), ("audience", "1"))
    world.declare(vip(NEW), resolve=False)
    assert news(world) == [f"Over, connection {OLD} is not used any more. It was: The connection is bad."]


@pytest.mark.parametrize("where", ["open", "in flight", "behind a delay", "held"])
def test_a_trouble_people_wait_behind_stays(world: World, where: str) -> None:
    """Whoever entered before the canvas moved, or is held by a step that is gone, is still to be sent there."""
    world.declare(vip(OLD, delay_s=3600 if where == "behind a delay" else 0))
    world.enter("vip", crowd(range(3)))
    claimed = world.claim() if where == "in flight" else None
    begin(world, ("audience", "1"), ("ad_account", f"{OLD}/1001"), ("connection", OLD))
    moved = [] if where == "held" else [vip(NEW)]
    for _ in range(2):
        world.declare(*moved, resolve=False)
        assert open_scopes(world) == {"audience", "ad_account", "connection"}
        assert news(world) == []
        assert world.ledger.launches.ad_accounts_in_use()[OLD] == {"1001"}
        assert OLD in world.ledger.launches.last_used()
    world.declare()
    world.ledger.drop("vip", "add", now_us=world.now_us)
    if claimed is not None:
        world.settle(claimed, DOWN)
    world.declare()
    assert open_scopes(world) == set()
    assert world.ledger.launches.ad_accounts_in_use() == {}


def test_a_renamed_audience_is_no_trouble_once_its_people_are_given_up(world: World) -> None:
    """While people wait for the old audience its trouble stays; nobody waits, nothing probes it: it is over."""
    world.declare(canvas("vip", step("add", audience="Old quota")))
    world.enter("vip", crowd(range(3)))
    claimed = world.claim()
    assert claimed is not None
    world.settle(claimed, GONE)
    news(world)
    renamed = canvas("vip", step("add", audience="New"))
    world.declare(renamed, resolve=False)
    assert open_scopes(world) == {"audience"}
    world.pass_time(14 * 3600)
    world.ledger.sweep(now_us=world.now_us)
    assert world.numbers("add") == (3, 0, 0, 0, 3)
    news(world)
    world.declare(renamed, resolve=False)
    assert open_scopes(world) == {"people"}  # that ends by itself
    assert news(world) == [
        "Over, audience 'Old quota' is not used any more. It was: The audience is not at Criteo any more."
    ]


def test_the_source_of_a_deleted_canvas_is_no_trouble(world: World) -> None:
    """Nothing reads it any more, whoever of it is held; with a file that cannot be read now it stays as it was."""
    world.declare(canvas("vip", step("add")), canvas("other", step("add_too")))
    world.enter("vip", crowd(range(3)))
    begin(world, ("source", "vip"), ("source", "other"), ("source", FEED))
    world.ledger.declare([], broken={"vip", "other"}, now_us=world.now_us)
    assert news(world) == []
    world.declare(canvas("other", step("add_too")))
    assert [row.key for row in world.ledger.troubles()] == ["other", FEED]
    assert news(world) == ["Over, source vip is not used any more. It was: The source is bad."]


def test_a_feed_needs_an_audience_while_it_removes_somebody(world: World) -> None:
    """A removal that waits keeps the trouble of an audience no canvas names; one that was sent does not."""
    world.declare(canvas("vip", step("add", audience="Old")))
    world.ledger.opt_outs.declare(
        [FeedDeclaration(FEED, "Do not sell", "privacy-team", 13 * 3600, "1", None)], now_us=world.now_us
    )
    world.enter("vip", crowd(range(3)))
    claimed = world.claim()
    assert claimed is not None
    world.settle(claimed)
    world.pass_time(1)
    hold = world.ledger.hold_cursor(FEED, "me", now_us=world.now_us, lease_s=30)
    assert hold is not None
    told = [Withdrawal("user_key", mark) for mark in key_marks(["user-1"])]
    world.ledger.opt_outs.withdraw(hold, told, position=1, units=(), looks=(), now_us=world.now_us)
    while world.ledger.opt_outs.follow(now_us=world.now_us):
        pass
    begin(world, ("audience", str(claimed.audience_id)))
    world.declare(vip(NEW), resolve=False)
    assert open_scopes(world) == {"audience"}
    assert OLD in world.ledger.launches.ad_accounts_in_use()
    world.pass_time(61)
    removal = world.claim()
    assert removal is not None
    world.settle(removal)
    begin(world, ("audience", str(claimed.audience_id)))
    world.declare(vip(NEW), resolve=False)
    assert open_scopes(world) == set()
    assert OLD not in world.ledger.launches.ad_accounts_in_use()


def test_a_trouble_of_a_canvas_that_waits_for_its_launch_stays(world: World) -> None:
    """A declared step needs its ad account before it is launched; drains leave it to the launch to tell."""
    world.declare(vip(OLD), launch=False, resolve=False)
    begin(world, ("ad_account", f"{OLD}/1001"), ("launch", "vip"))
    world.declare(vip(OLD), launch=False, resolve=False)
    assert open_scopes(world) == {"ad_account", "launch"}
    assert world.ledger.launches.ad_accounts_in_use() == {}
