"""Audiences deleted at Criteo: told at once, and then what their steps say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from criteo_provider.core.model import CanvasDeclaration, Role, WhenDeleted
from criteo_provider.core.outcome import AudienceGone
from tests.world import World, canvas, crowd, step

GONE = AudienceGone("audience-gone", "The audience is not at Criteo any more.")


def vip(policy: WhenDeleted | None) -> CanvasDeclaration:
    """A canvas of one step."""
    return canvas("vip", replace(step("add"), when_deleted=policy))


def lose(world: World, policy: WhenDeleted | None) -> None:
    """Let three people meet a deleted audience, with three more waiting behind them."""
    world.declare(vip(policy))
    world.enter("vip", crowd(range(3)))
    claimed = world.claim()
    assert claimed is not None
    world.enter("vip", crowd(range(10, 13)))
    world.settle(claimed, GONE)
    (told,) = world.ledger.take_news(now_us=world.now_us)
    assert told.startswith("Trouble with audience 'Shoppers'")


def looked_for(world: World) -> list[bool]:
    """Whether each deleted audience that is to be looked for now may be created."""
    found = world.ledger.deleted_audiences("criteo_default", {"1001"}, now_us=world.now_us)
    return [may_create for _, _, _, may_create, _ in found]


@pytest.mark.parametrize("policy", [None, WhenDeleted.WAIT, WhenDeleted.RECREATE])
def test_people_are_held_and_the_name_is_looked_for(world: World, policy: WhenDeleted | None) -> None:
    """Everybody stays Pending; the name is looked for now and again, and only `recreate` may make it anew."""
    lose(world, policy)
    assert world.numbers("add") == (6, 0, 0, 6, 0)
    assert looked_for(world) == [policy is WhenDeleted.RECREATE]
    assert looked_for(world) == []
    world.pass_time(16 * 60)
    assert looked_for(world) == [policy is WhenDeleted.RECREATE]


def test_an_audience_found_under_another_id_lets_people_go_on(world: World) -> None:
    """People go to the new one; a late answer about the old one changes nothing."""
    lose(world, WhenDeleted.RECREATE)
    world.pass_time(61)
    late = world.claim()
    assert late is not None
    audience_id = world.plans["vip"][0].audience_id
    world.ledger.resolved(audience_id, "9999", created=True, now_us=world.now_us)
    assert "works again" in world.ledger.take_news(now_us=world.now_us)[0]
    world.settle(late, GONE)
    assert world.ledger.troubles() == []
    assert looked_for(world) == []
    claimed = world.claim()
    assert claimed is not None
    assert claimed.criteo_id == "9999"
    world.settle(claimed)
    assert world.numbers("add") == (6, 6, 0, 0, 0)


def test_a_restored_audience_takes_its_people_at_the_next_probe(world: World) -> None:
    """Under its old id it heals by the next probe, with no click."""
    lose(world, None)
    world.pass_time(16 * 60)
    claimed = world.claim()
    assert claimed is not None
    world.settle(claimed)
    assert world.numbers("add") == (6, 6, 0, 0, 0)
    world.pass_time(16 * 60)
    assert looked_for(world) == []


def test_fail_gives_up_at_once_and_while_it_lasts(world: World) -> None:
    """The people of the step are Errored with the reason, later ones too, until the audience is back."""
    lose(world, WhenDeleted.FAIL)
    assert world.numbers("add") == (6, 0, 0, 3, 3)
    work = world.ledger.open_work(now_us=world.now_us)
    assert work.anything_due(Role.FRESH)
    assert world.ledger.sweep(now_us=world.now_us) == 1
    assert world.numbers("add") == (6, 0, 0, 0, 6)
    assert not world.ledger.open_work(now_us=world.now_us).anything_due(Role.FRESH)
    world.enter("vip", crowd(range(20, 22)))
    world.pass_time(60)
    world.ledger.sweep(now_us=world.now_us)
    world.ledger.sweep(now_us=world.now_us)
    assert world.numbers("add") == (8, 0, 0, 0, 8)
    with world.engine.connect() as connection:
        reasons = connection.exec_driver_sql("SELECT DISTINCT reason FROM user_status").scalars().all()
    assert all("not at Criteo any more" in reason and "when_deleted: fail" in reason for reason in reasons)
    assert looked_for(world) == [False]
    world.ledger.resolved(world.plans["vip"][0].audience_id, "9999", created=False, now_us=world.now_us)
    world.enter("vip", crowd(range(30, 33)))
    claimed = world.claim()
    assert claimed is not None
    world.settle(claimed)
    assert world.numbers("add") == (11, 3, 0, 0, 8)


def test_another_policy_in_the_file_is_followed_at_once(world: World) -> None:
    """People who wait are given up, or the audience made anew, as soon as the file says so."""
    lose(world, None)
    assert looked_for(world) == [False]
    world.declare(vip(WhenDeleted.RECREATE), resolve=False)
    assert looked_for(world) == [True]
    world.declare(vip(WhenDeleted.FAIL), resolve=False)
    world.ledger.sweep(now_us=world.now_us)
    assert world.numbers("add") == (6, 0, 0, 0, 6)


def test_a_paused_step_gives_nobody_up(world: World) -> None:
    """Whoever is held by a pause is held, whatever becomes of the audience."""
    lose(world, WhenDeleted.FAIL)
    world.declare(canvas("vip", replace(step("add"), when_deleted=WhenDeleted.FAIL, paused=True)), resolve=False)
    world.ledger.sweep(now_us=world.now_us)
    assert world.numbers("add") == (6, 0, 0, 3, 3)
