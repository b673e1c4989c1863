"""Live streams: what wants a request per flush, and what does not any more."""

from __future__ import annotations

from dataclasses import replace

from criteo_provider.core.model import Operation
from tests.world import World, canvas, crowd, step


def streams(world: World) -> int:
    """Count the streams of the connection."""
    return world.ledger.live_streams("criteo_default", now_us=world.now_us)


def test_a_stream_is_a_lane_that_had_people_lately(world: World) -> None:
    """Two steps into one audience share a lane; another operation is one more; ten minutes later they are quiet."""
    world.declare(
        canvas("vip", step("add", is_last=False), step("out", Operation.REMOVE, audience="Others", position=1)),
        canvas("also", step("add_too")),
    )
    assert streams(world) == 0
    world.enter("vip", crowd(range(5)))
    world.enter("also", crowd(range(5)))
    assert streams(world) == 2
    assert world.ledger.live_streams("another", now_us=world.now_us) == 0
    while (claimed := world.claim()) is not None:
        world.settle(claimed)
    world.pass_time(599)
    assert streams(world) == 2
    world.pass_time(2)
    assert streams(world) == 0


def test_people_who_are_due_keep_their_stream_alive(world: World) -> None:
    """However long ago they came, as long as they are to be sent they want a request."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd(range(5)))
    world.pass_time(3600)
    assert streams(world) == 1


def test_a_step_that_is_not_declared_wants_nothing(world: World) -> None:
    """Its people wait for a person; people behind a delay do not want a request yet."""
    world.declare(canvas("vip", step("add", is_last=False), step("later", audience="Late", delay_s=3600, position=1)))
    world.enter("vip", crowd(range(5)))
    assert streams(world) == 1
    world.declare(canvas("vip", replace(step("add"), paused=True)))
    assert streams(world) == 0
    world.declare(canvas("vip", step("add")))
    assert streams(world) == 1
    world.declare()
    assert streams(world) == 0
