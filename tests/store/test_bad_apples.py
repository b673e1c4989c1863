"""Bad apples: the few Criteo refuses are found, nobody else is held back, and it costs a bounded number of calls."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from criteo_provider.core.model import Role
from criteo_provider.core.outcome import Accepted, Outcome, Refused, Unavailable
from criteo_provider.store.narrow import MAX_CALLS, ROUND_US
from tests.world import World, canvas, crowd, digest, step

REFUSED = Refused("invalid", "Criteo refuses the content.")
OTHERWISE = Refused("required-field", "Criteo misses a field.")
DOWN = Unavailable("http-503", "Criteo's servers have trouble.", maybe_applied=False)
Answer = Callable[[set[bytes]], Outcome]


def entered(world: World, people: int, *, retry_for_s: float = 13 * 3600) -> None:
    """One chunk of so many people."""
    world.declare(canvas("vip", step("add"), retry_for_s=retry_for_s))
    world.enter("vip", crowd(range(people)))


def send(world: World, answer: Answer, *, in_flight: int = 1) -> int:
    """Send and answer all that is due, several at a time; return how many calls that took."""
    calls = 0
    while True:
        flying = [one for one in (world.claim() or world.claim(Role.RETRY) for _ in range(in_flight)) if one]
        if not flying:
            return calls
        for claimed in flying:
            calls += 1
            world.settle(claimed, answer(set(world.sent(claimed))))


def without_names(bad: set[bytes]) -> Answer:
    """A Criteo that counts invalid identifiers and names none."""
    return lambda values: Accepted(len(values - bad), len(values & bad))


@pytest.mark.slow
@pytest.mark.parametrize("in_flight", [1, 7])
def test_unnamed_invalid_people_beyond_the_bound_are_found_in_later_rounds(world: World, in_flight: int) -> None:
    """Fifteen unnamed bad ones among 900: a half hour costs 64 calls at most, and in the end every status is right."""
    entered(world, 900)
    bad = {digest(number) for number in range(25, 900, 60)}
    calls = [send(world, without_names(bad), in_flight=in_flight)]
    synced = [world.numbers("add")[1]]
    while world.numbers("add")[3]:
        world.now_us += ROUND_US
        world.ledger.sweep(now_us=world.now_us)
        calls.append(send(world, without_names(bad), in_flight=in_flight))
        synced.append(world.numbers("add")[1])
    assert world.numbers("add") == (900, 885, 15, 0, 0)
    assert all(world.statuses("add")[f"user-{number}"] == "Not Synced" for number in (25, 865))
    assert max(calls) <= 1 + MAX_CALLS
    assert len(calls) > 2
    assert synced == sorted(synced)


@pytest.mark.slow
def test_too_many_bad_ones_for_the_window_end_with_it(world: World) -> None:
    """Where patience ends before everybody is found, whoever was in an accepted piece is Synced, the rest Errored."""
    entered(world, 300, retry_for_s=3 * 3600)
    bad = {digest(number) for number in range(0, 300, 3)}
    for _ in range(7):
        send(world, without_names(bad))
        world.now_us += ROUND_US
        world.ledger.sweep(now_us=world.now_us)
    total, synced, not_synced, pending, errored = world.numbers("add")
    assert (total, pending) == (300, 0)
    assert min(synced, not_synced, errored) > 0
    told = world.statuses("add")
    assert all(told[f"user-{number}"] != "Synced" for number in range(0, 300, 3))
    assert all(told[f"user-{number}"] != "Not Synced" for number in range(1, 300, 3))


@pytest.mark.parametrize("in_flight", [1, 4])
@pytest.mark.parametrize("people", [2, 3, 4, 5, 6, 7, 16])
def test_a_call_refused_as_a_whole_calls_nobody_bad(world: World, people: int, in_flight: int) -> None:
    """Two or more people, everybody refused alike: it is the call that is refused. Pending, then Errored."""
    entered(world, people)
    assert send(world, lambda _: REFUSED, in_flight=in_flight) <= 7 + 2 * in_flight
    assert world.numbers("add") == (people, 0, 0, people, 0)
    world.pass_time(1300)
    assert send(world, lambda _: REFUSED) == 1
    world.pass_time(13 * 3600)
    world.ledger.sweep(now_us=world.now_us)
    assert world.numbers("add") == (people, 0, 0, 0, people)
    assert {row["reason"] for row in world.seen("add")} == {REFUSED.sentence}


@pytest.mark.parametrize("people", [2, 3, 4, 5, 16])
def test_a_refusal_of_the_whole_that_ends_syncs_everybody(world: World, people: int) -> None:
    """Once the call is taken again, nobody has to do anything."""
    entered(world, people)
    send(world, lambda _: REFUSED)
    world.pass_time(1300)
    assert send(world, lambda values: Accepted(len(values), 0)) == 1
    assert world.numbers("add") == (people, people, 0, 0, 0)


def test_a_lone_person_refused_is_not_synced(world: World) -> None:
    """With nobody beside them there is nothing to compare: refused by Criteo, at once."""
    entered(world, 1)
    assert send(world, lambda _: REFUSED) == 1
    assert world.numbers("add") == (1, 0, 1, 0, 0)


@pytest.mark.parametrize("in_flight", [1, 4])
@pytest.mark.parametrize("good", range(4))
@pytest.mark.parametrize("people", [2, 3, 4])
def test_one_good_person_among_bad_ones_is_told_apart(world: World, people: int, good: int, in_flight: int) -> None:
    """As soon as anybody is taken the others are bad themselves: Not Synced, and none of them waits.

    From five people on, a good one in a quarter with a bad one is not seen by the rule of the first two levels.
    """
    good = good % people
    entered(world, people)
    fine = digest(good)
    send(world, lambda values: Accepted(1, 0) if values == {fine} else REFUSED, in_flight=in_flight)
    assert world.numbers("add") == (people, 1, people - 1, 0, 0)
    assert world.statuses("add")[f"user-{good}"] == "Synced"


def test_refusals_for_different_reasons_are_about_people(world: World) -> None:
    """Refused one by one with different codes is no refusal of the whole."""
    entered(world, 2)
    send(world, lambda values: OTHERWISE if values == {digest(1)} else REFUSED)
    assert world.numbers("add") == (2, 0, 2, 0, 0)


def test_a_failure_in_between_does_not_decide(world: World) -> None:
    """A 503 while it is narrowed says nothing about the content: still a refusal of the whole."""
    entered(world, 16)
    answers = iter([REFUSED, DOWN, REFUSED, DOWN])
    for _ in range(4):
        send(world, lambda _: next(answers, REFUSED))
        world.pass_time(30)
    assert world.numbers("add") == (16, 0, 0, 16, 0)


@pytest.mark.slow
@pytest.mark.parametrize("in_flight", [1, 8])
def test_nobody_else_waits_for_the_bad_ones(world: World, in_flight: int) -> None:
    """Three poisoned people in forty chunks of a merged request: all others are Synced in the same half hour."""
    world.declare(canvas("vip", step("add")))
    for number in range(40):
        world.enter("vip", crowd(range(50 * number, 50 * number + 50)))
    poison = {digest(number) for number in (7, 777, 1_777)}
    calls = send(world, lambda values: REFUSED if values & poison else Accepted(len(values), 0), in_flight=in_flight)
    assert world.numbers("add") == (2_000, 1_997, 3, 0, 0)
    assert calls <= 1 + MAX_CALLS
