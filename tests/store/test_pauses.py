"""Steps paused in their file: people enter and are held, and no clock runs."""

from __future__ import annotations

from dataclasses import replace

from criteo_provider.core.model import CanvasDeclaration, Role
from criteo_provider.core.outcome import AccessLost, Unavailable
from tests.world import HOUR_US, World, canvas, crowd, step

DOWN = Unavailable("http-503", "Criteo's servers have trouble.", maybe_applied=False)
LOST = AccessLost("connection", "token-refused", "Criteo refuses the access token.")


def vip(*, paused: bool) -> CanvasDeclaration:
    """A canvas of one step."""
    return canvas("vip", replace(step("add"), paused=paused))


def states(world: World) -> list[tuple[bool, bool]]:
    """Declared and paused, by step."""
    return [(one.declared, one.paused) for one in world.ledger.numbers(now_us=world.now_us)]


def send(world: World, role: Role = Role.FRESH) -> None:
    """Send what is due, as accepted."""
    claimed = world.claim(role)
    assert claimed is not None
    world.settle(claimed)


def test_people_enter_a_paused_step_and_are_held_without_a_clock(world: World) -> None:
    """They are Pending for as long as the pause lasts, nothing is work for them, and then they go out."""
    world.declare(vip(paused=True))
    world.enter("vip", crowd(range(3)))
    assert world.numbers("add") == (3, 0, 0, 3, 0)
    assert states(world) == [(True, True)]
    for _ in range(3):
        assert world.claim() is None
        world.ledger.sweep(now_us=world.now_us)
        work = world.ledger.open_work(now_us=world.now_us)
        assert not work.anything_due(Role.FRESH)
        assert not work.anything_due(Role.RETRY)
        assert work.overdue == 0
        world.pass_time(20 * 3600)
    world.declare(vip(paused=False))
    assert states(world) == [(True, False)]
    send(world)
    assert world.numbers("add") == (3, 3, 0, 0, 0)


def test_a_delay_before_a_paused_step_goes_on(world: World) -> None:
    """Whoever reaches a paused step enters it, and is held there."""
    files = canvas("vip", step("add", is_last=False), replace(step("later", position=1, delay_s=60), paused=True))
    world.declare(files)
    world.enter("vip", crowd(range(3)))
    world.pass_time(61)
    assert world.ledger.enter_due_steps(now_us=world.now_us) == 1
    send(world)
    assert world.numbers("later") == (3, 0, 0, 3, 0)
    assert world.claim() is None


def test_a_pause_costs_no_patience(world: World) -> None:
    """Ten hours of the thirteen are used before a day of pause; afterwards three are left, to the minute."""
    world.declare(vip(paused=False))
    world.enter("vip", crowd(range(3)))
    claimed = world.claim()
    assert claimed is not None
    world.settle(claimed, DOWN)
    world.pass_time(10 * 3600)
    world.declare(vip(paused=True))
    world.pass_time(24 * 3600)
    world.ledger.sweep(now_us=world.now_us)
    assert world.numbers("add")[3:] == (3, 0)
    assert set(world.statuses("add").values()) == {"Pending"}
    world.declare(vip(paused=False))
    world.pass_time(3 * 3600 - 60)
    world.ledger.sweep(now_us=world.now_us)
    assert world.numbers("add")[3:] == (3, 0)
    world.pass_time(120)
    assert world.numbers("add")[3:] == (0, 3)
    world.ledger.sweep(now_us=world.now_us)
    assert world.numbers("add")[3:] == (0, 3)


def test_a_pause_and_a_missing_step_are_one_rest(world: World) -> None:
    """A paused step that is taken out of its file and put back has rested from the first to the last moment."""
    world.declare(vip(paused=False))
    world.enter("vip", crowd(range(3)))
    claimed = world.claim()
    assert claimed is not None
    world.settle(claimed, DOWN)
    began_us = world.now_us
    world.declare(vip(paused=True))
    world.pass_time(14 * 3600)
    world.declare()
    assert states(world) == [(False, True)]
    world.pass_time(14 * 3600)
    world.declare(vip(paused=True))
    world.pass_time(14 * 3600)
    world.declare(vip(paused=False))
    assert world.now_us - began_us == 42 * HOUR_US
    world.pass_time(12 * 3600)
    assert world.numbers("add")[3:] == (3, 0)
    send(world, Role.RETRY)
    assert world.numbers("add") == (3, 3, 0, 0, 0)


def test_a_trouble_starts_no_clock_of_paused_people(world: World) -> None:
    """People held by a pause while their connection is broken have all their patience when the pause is over."""
    other = canvas("other", step("also", audience="Others"))
    world.declare(vip(paused=True), other)
    world.enter("vip", crowd(range(3)))
    world.enter("other", crowd(range(3)))
    claimed = world.claim()
    assert claimed is not None
    world.settle(claimed, LOST)
    world.ledger.sweep(now_us=world.now_us)
    world.pass_time(14 * 3600)
    world.ledger.sweep(now_us=world.now_us)
    assert world.numbers("also")[3:] == (0, 3)
    world.declare(vip(paused=False), other, resolve=False)
    assert world.ledger.troubles() != []
    world.ledger.sweep(now_us=world.now_us)
    assert world.numbers("add")[3:] == (3, 0)
    world.pass_time(13 * 3600 - 1)
    world.ledger.sweep(now_us=world.now_us)
    assert world.numbers("add")[3:] == (3, 0)
    world.pass_time(2)
    assert world.numbers("add")[3:] == (0, 3)
