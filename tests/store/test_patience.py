"""Thirteen hours of patience: when the clock of people starts, when it is over, and who reads what in between."""

from __future__ import annotations

import pytest
from sqlalchemy import select, update

from criteo_provider.core.batching import pack
from criteo_provider.core.identifiers import Form, encode
from criteo_provider.core.model import Operation, PartState, Role
from criteo_provider.core.outcome import Accepted, AccessLost, Busy, Unavailable
from criteo_provider.store.engine import writing
from criteo_provider.store.schema import metric, part
from tests.world import HOUR_US, World, canvas, crowd, digest, step

DOWN = Unavailable("http-503", "Criteo's servers have trouble.", maybe_applied=False)
REFUSED_TOKEN = AccessLost("connection", "token-refused", "Criteo refuses the access token.")
SECOND_US = 1_000_000
WINDOW_US = 13 * HOUR_US


def failed(world: World, people: int = 4) -> int:
    """Enter people whose first attempt fails; return when that was."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd(range(people)))
    claimed = world.claim()
    assert claimed is not None
    world.settle(claimed, DOWN)
    return world.now_us


def deadlines(world: World) -> list[int | None]:
    """When the patience of each part ends."""
    with world.engine.connect() as connection:
        return list(connection.execute(select(part.c.deadline_us).order_by(part.c.id)).scalars())


def test_whoever_reads_sees_the_same_on_both_sides_of_the_deadline(world: World) -> None:
    """Pending at 12:59:59 and Errored at 13:00:01 in numbers and view, before any sweep; the last reason is kept."""
    began_us = failed(world)
    world.now_us = began_us + WINDOW_US - SECOND_US
    assert world.numbers("add") == (4, 0, 0, 4, 0)
    assert {row["status"] for row in world.seen("add")} == {"Pending"}
    world.now_us = began_us + WINDOW_US + SECOND_US
    told = {("Errored", "Criteo's servers have trouble.")}
    for _ in ("before the sweep", "after it"):
        assert world.numbers("add") == (4, 0, 0, 0, 4)
        assert {(row["status"], row["reason"]) for row in world.seen("add")} == told
        world.ledger.sweep(now_us=world.now_us)


def test_the_view_tells_apart_who_is_late_in_one_chunk(world: World) -> None:
    """Of one chunk some are Synced, some are past the deadline, some have another identifier open: each reads right."""
    world.declare(canvas("vip", step("add", fields=("email", "madid"))))
    emails = [digest(number) for number in range(6)]
    devices = [None, None, None, None, digest(4)[:16], digest(5)[:16]]
    people = pack(
        [f"user-{number}" for number in range(6)],
        {(Form.EMAIL_SHA256.value, None): emails, (Form.MADID.value, None): devices},
        {"email": [None] * 6, "madid": [None] * 6},
        lambda values, form: encode(values, Form(form)),
    )
    world.enter("vip", people)
    while (claimed := world.claim()) is not None and claimed.identifier_type != "email":
        world.ledger.release(claimed, now_us=world.now_us)
        world.pass_time(1)
    assert claimed is not None
    world.settle(claimed, Accepted(4, 2, tuple(digest(number).hex() for number in (0, 1))))
    with writing(world.engine) as connection:  # two of the accepted are tried again, as if Criteo had not taken them
        connection.execute(
            update(part)
            .where(part.c.form == Form.EMAIL_SHA256.value, part.c.state == PartState.REFUSED)
            .values(state=PartState.OPEN, deadline_us=world.now_us + SECOND_US)
        )
        connection.execute(
            update(part)
            .where(part.c.state == PartState.ACCEPTED)
            .values(state=PartState.OPEN, deadline_us=world.now_us + SECOND_US)
        )
    from criteo_provider.store.standings import refold

    with writing(world.engine) as connection:
        refold(connection, [1], cause="test", now_us=world.now_us)
    world.pass_time(2)
    assert world.numbers("add") == (6, 0, 0, 2, 4)
    assert sorted(world.statuses("add").items()) == [
        *((f"user-{number}", "Errored") for number in range(4)),
        ("user-4", "Pending"),
        ("user-5", "Pending"),
    ]


def test_an_answer_to_a_request_in_flight_at_the_deadline_counts(world: World) -> None:
    """Sent a moment before the deadline and answered after it: Pending in between, then Synced."""
    began_us = failed(world)
    world.now_us = began_us + WINDOW_US - SECOND_US
    claimed = world.claim(Role.RETRY)
    assert claimed is not None
    world.pass_time(10)
    world.ledger.sweep(now_us=world.now_us)
    assert world.numbers("add") == (4, 0, 0, 4, 0)
    assert set(world.statuses("add").values()) == {"Pending"}
    world.settle(claimed)
    assert world.numbers("add") == (4, 4, 0, 0, 0)


def test_a_failure_in_flight_at_the_deadline_ends_it(world: World) -> None:
    """Sent a moment before the deadline and failed after it: Errored, with that last reason."""
    began_us = failed(world)
    world.now_us = began_us + WINDOW_US - SECOND_US
    claimed = world.claim(Role.RETRY)
    assert claimed is not None
    world.pass_time(10)
    world.settle(claimed, Unavailable("no-answer", "Criteo did not answer in time."))
    told = {(row["status"], row["reason"]) for row in world.seen("add")}
    assert told == {("Errored", "Criteo did not answer in time.")}
    assert world.numbers("add") == (4, 0, 0, 0, 4)


def test_whoever_was_given_up_before_the_deadline_is_picked_up_again(world: World) -> None:
    """A clock that leapt ahead for an hour too many gives people up; set right, the sweep takes them back, counted."""
    began_us = failed(world)
    world.now_us = began_us + WINDOW_US + SECOND_US
    world.ledger.sweep(now_us=world.now_us)
    assert world.numbers("add") == (4, 0, 0, 0, 4)
    world.now_us = began_us + HOUR_US
    assert world.ledger.open_work(now_us=world.now_us).overdue > 0
    world.ledger.sweep(now_us=world.now_us)
    assert world.numbers("add") == (4, 0, 0, 4, 0)
    again = world.claim(Role.RETRY)
    assert again is not None
    world.settle(again)
    assert world.numbers("add") == (4, 4, 0, 0, 0)
    with world.engine.connect() as connection:
        causes = set(connection.execute(select(metric.c.cause)).scalars())
    assert "errored too early" in causes


# --- when the clock starts


def test_waiting_for_the_pacer_and_a_claim_given_back_start_no_clock(world: World) -> None:
    """Due for a day behind other people, claimed and given back unsent: the 13 hours have not begun."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd(range(4)))
    world.pass_time(24 * 3600)
    claimed = world.claim()
    assert claimed is not None
    world.ledger.release(claimed, now_us=world.now_us)
    world.ledger.sweep(now_us=world.now_us)
    assert deadlines(world) == [None]


@pytest.mark.parametrize("outcome", [DOWN, Busy(30)])
def test_the_first_attempt_or_the_first_429_starts_the_clock_once(world: World, outcome: Unavailable | Busy) -> None:
    """Thirteen hours from the first attempt or the first 429; later ones do not move it."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd(range(4)))
    world.pass_time(3600)
    began_us = world.now_us
    for _ in range(3):
        claimed = world.claim() or world.claim(Role.RETRY)
        assert claimed is not None
        world.settle(claimed, outcome)
        world.pass_time(600)
    assert deadlines(world) == [began_us + WINDOW_US]


def test_a_known_trouble_starts_the_clock_when_it_holds_people_back(world: World) -> None:
    """From when they were due and the trouble was known, not from the sweep that finds it out."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd([1]))
    claimed = world.claim()
    assert claimed is not None
    world.settle(claimed, REFUSED_TOKEN)
    known_us = world.now_us
    world.pass_time(600)
    world.enter("vip", crowd([2]))
    entered_us = world.now_us
    world.pass_time(600)
    world.ledger.sweep(now_us=world.now_us)
    assert deadlines(world) == [known_us + WINDOW_US, entered_us + WINDOW_US]


def test_a_pause_starts_no_clock_and_stops_a_running_one(world: World) -> None:
    """Hours in a step that is no longer declared are given back when it is declared again."""
    began_us = failed(world)
    world.declare()
    world.pass_time(5 * 3600)
    world.ledger.sweep(now_us=world.now_us)
    world.declare(canvas("vip", step("add")))
    assert deadlines(world) == [began_us + WINDOW_US + 5 * HOUR_US]


# --- clocks that jump


def test_a_clock_that_steps_back_holds_nobody(world: World) -> None:
    """Leases, waits and probes written two hours ahead are over at once, and nobody is counted twice."""
    world.declare(canvas("vip", step("add")), canvas("late", step("late", audience="Others")))
    world.pass_time(7200)
    world.enter("vip", crowd(range(4)))
    stuck = world.claim()
    assert stuck is not None
    world.enter("late", crowd(range(4)))
    failing = world.claim()
    assert failing is not None
    world.settle(failing, DOWN)
    hold = world.ledger.hold_cursor("vip", "dead", now_us=world.now_us, lease_s=30)
    assert hold is not None
    world.ledger.trouble("source", "vip", code="x", sentence="Down.", now_us=world.now_us)
    world.pass_time(-7200)
    assert world.ledger.may_probe("source", "vip", now_us=world.now_us)
    assert world.ledger.open_work(now_us=world.now_us).overdue > 0
    world.ledger.sweep(now_us=world.now_us)
    taken = [world.claim() or world.claim(Role.RETRY) for _ in range(2)]
    assert all(taken)
    assert world.settle(stuck) == 1
    for claimed in taken:
        assert claimed is not None
        world.settle(claimed)
    assert world.numbers("add") == world.numbers("late") == (4, 4, 0, 0, 0)
    world.enter("vip", crowd(range(4, 6)))
    assert world.numbers("add") == (6, 4, 0, 2, 0)


# --- whose intent is older


def test_an_overdue_delay_is_as_old_as_its_end(world: World) -> None:
    """People let in hours after their delay ended do not overtake who was added in between."""
    world.declare(
        canvas("tour", step("leave", Operation.REMOVE, delay_s=60)),
        canvas("in", step("add")),
    )
    world.enter("tour", crowd([1, 2]))
    world.pass_time(3600)  # nobody looked for an hour
    world.enter("in", crowd([2]))
    added = world.claim()
    assert added is not None
    world.settle(added)
    world.pass_time(10)
    world.ledger.enter_due_steps(now_us=world.now_us)
    removal = world.claim()
    assert removal is not None
    assert world.sent(removal) == [digest(1)]
    world.settle(removal)
    assert world.numbers("leave") == (2, 1, 1, 0, 0)
