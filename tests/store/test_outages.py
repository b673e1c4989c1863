"""Outages: what nobody is stopped by is told all the same, once it lasts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from criteo_provider.core.model import CanvasDeclaration
from criteo_provider.core.outcome import AccessLost, Busy, Outcome, Refused, Unavailable, outcome_of
from criteo_provider.store.audience_rows import step_states
from criteo_provider.store.outages import Outage, outages
from tests.world import World, canvas, crowd, step

BAD_GATEWAY = outcome_of(502, {}, b"", now_s=0)
RETIRED = outcome_of(410, {}, b"", now_s=0)


def fail(world: World, outcome: Outcome) -> None:
    claimed = world.claim() or world.claim_retry()
    assert claimed is not None
    world.settle(claimed, outcome)


def seen(world: World) -> list[Outage]:
    return outages(world.engine, now_us=world.now_us)


@pytest.fixture
def waiting(world: World) -> World:
    """A world with three people to be sent."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd(range(3)))
    return world


def test_an_outage_is_told_when_it_lasts_and_is_over_with_the_first_answer(waiting: World) -> None:
    """One server error is not told; a minute of them is, with beginning and next try, until a request gets through."""
    began_us = waiting.now_us
    fail(waiting, BAD_GATEWAY)
    assert seen(waiting) == []
    waiting.pass_time(45)
    fail(waiting, BAD_GATEWAY)
    waiting.pass_time(45)
    (outage,) = seen(waiting)
    assert (outage.connection_id, outage.since_us) == ("criteo_default", began_us)
    assert outage.next_try_us > began_us + 45_000_000
    assert outage.sentence == (
        "None of the last 2 requests got through to Criteo; 3 people wait. Criteo's servers have trouble (HTTP 502). "
        "People stay pending and are tried again by themselves."
    )
    assert step_states(waiting.engine, now_us=waiting.now_us) == {("vip", "add"): outage.sentence}
    claimed = waiting.claim() or waiting.claim_retry()
    assert claimed is not None
    assert seen(waiting) == [outage]  # also while the next try is on its way
    waiting.settle(claimed)
    assert seen(waiting) == []


def test_a_retired_version_is_told_at_once(waiting: World) -> None:
    """An API version that is gone does not come back: it is told at the first answer, with what to do."""
    fail(waiting, RETIRED)
    (outage,) = seen(waiting)
    assert "Criteo has retired this API version." in outage.sentence
    assert "update this provider" in outage.sentence


@pytest.mark.parametrize(
    "outcome",
    [
        Busy(30),
        AccessLost("connection", "token-refused", "Criteo refuses the access token."),
        AccessLost("ad_account", "not-permitted", "Criteo denies this application the ad account."),
        Refused("refused", "Criteo refuses this request."),
    ],
)
def test_what_is_told_elsewhere_is_no_outage(waiting: World, outcome: Outcome) -> None:
    """Criteo's limit, a breaker and refused content are not called an outage."""
    fail(waiting, outcome)
    waiting.pass_time(90)
    assert seen(waiting) == []


@pytest.mark.parametrize("canvases", [[canvas("vip", replace(step("add"), paused=True))], []])
def test_who_is_held_is_not_tried_again(waiting: World, canvases: list[CanvasDeclaration]) -> None:
    """While a step rests, in its file or with its file gone, its last failure is no outage; it is when it goes on."""
    fail(waiting, RETIRED)
    waiting.declare(*canvases, resolve=False)
    assert seen(waiting) == []
    waiting.declare(canvas("vip", step("add")), resolve=False)
    assert len(seen(waiting)) == 1


def test_what_nobody_waits_for_is_no_outage(waiting: World) -> None:
    """Once everybody was given up, the last failures are history."""
    fail(waiting, Unavailable("http-500", "Criteo's servers have trouble.", maybe_applied=False))
    waiting.pass_time(14 * 3600)
    waiting.ledger.sweep(now_us=waiting.now_us)
    assert seen(waiting) == []
