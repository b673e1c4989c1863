"""Troubles are told of once when they begin and once when they are over."""

from __future__ import annotations

import pytest

from criteo_provider.core.outcome import AccessLost, AudienceGone, Busy, Outcome, Unavailable
from tests.world import HOUR_US, World, canvas, crowd, step

LOST = AccessLost("connection", "token-refused", "Criteo refuses the access token.")
GONE = AudienceGone("audience-gone", "The audience is not at Criteo any more.")


def fail(world: World, outcome: Outcome) -> None:
    """Let the next request end like this."""
    claimed = world.claim() or world.claim_retry()
    assert claimed is not None
    world.settle(claimed, outcome)


def test_a_lasting_trouble_is_told_once_and_its_end_once(world: World) -> None:
    """However many probes fail, there is one message when it began and one when it is over."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd(range(3)))
    fail(world, LOST)
    assert world.ledger.take_news(now_us=world.now_us) == [
        "Trouble with connection criteo_default: Criteo refuses the access token."
    ]
    for _ in range(4):
        world.pass_time(16 * 60)
        claimed = world.claim() or world.claim_retry()
        assert claimed is not None
        world.settle(claimed, LOST)
        assert world.ledger.take_news(now_us=world.now_us) == []
    world.pass_time(16 * 60)
    claimed = world.claim_retry()
    assert claimed is not None
    world.settle(claimed)
    told = world.ledger.take_news(now_us=world.now_us)
    assert len(told) == 1
    assert told[0].startswith("Over, connection criteo_default works again.")
    assert world.ledger.take_news(now_us=world.now_us) == []


def test_an_audience_is_named_as_people_name_it(world: World) -> None:
    """The message about a deleted audience carries its name, not the ledger's number for it."""
    world.declare(canvas("vip", step("add", audience="Best customers")))
    world.enter("vip", crowd(range(3)))
    fail(world, GONE)
    assert "audience 'Best customers'" in world.ledger.take_news(now_us=world.now_us)[0]


def test_people_given_up_are_news(world: World) -> None:
    """When the patience is over, somebody is told, once."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd(range(3)))
    fail(world, Unavailable("http-500", "Criteo's servers have trouble.", maybe_applied=False))
    assert world.ledger.take_news(now_us=world.now_us) == []
    world.pass_time(14 * 3600)
    world.ledger.sweep(now_us=world.now_us)
    world.ledger.sweep(now_us=world.now_us)
    assert len(world.ledger.take_news(now_us=world.now_us)) == 1


def test_a_source_that_works_again_is_told(world: World) -> None:
    """A source's trouble begins with its sentence and ends when it could be read."""
    world.declare(canvas("vip", step("add")))
    world.ledger.source_failed("vip", "The query has no column 'email'.", now_us=world.now_us)
    world.ledger.source_failed("vip", "The query has no column 'email'.", now_us=world.now_us)
    assert not world.ledger.may_probe("source", "vip", now_us=world.now_us)
    world.ledger.healed("source", "vip", now_us=world.now_us)
    world.ledger.healed("source", "vip", now_us=world.now_us)
    told = world.ledger.take_news(now_us=world.now_us)
    assert told == [
        "Trouble with source vip: The query has no column 'email'.",
        "Over, source vip works again. It was: The query has no column 'email'.",
    ]


def test_probes_double_to_a_quarter_of_an_hour(world: World) -> None:
    """A minute, two, four, eight, then fifteen: three hours of a lasting trouble are sixteen probes."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd(range(3)))
    fail(world, LOST)
    began_us, waits = world.now_us, []
    while world.now_us - began_us < 3 * HOUR_US:
        (row,) = world.ledger.troubles()
        waits.append((row.next_probe_us - world.now_us) // 60_000_000)
        world.now_us = row.next_probe_us
        claimed = world.claim() or world.claim_retry()
        assert claimed is not None
        world.settle(claimed, LOST)
    assert waits[:6] == [1, 1, 2, 4, 8, 15]
    assert set(waits[5:]) == {15}
    assert len(waits) <= 16


def test_what_was_in_flight_when_a_trouble_began_puts_off_no_probe(world: World) -> None:
    """Six requests that meet one blip are no six probes: the first one goes a minute after the trouble was met."""
    world.declare(canvas("vip", step("add")))
    flying = []
    for number in range(6):
        world.enter("vip", crowd([number]))
        flying.append(world.claim())
    began_us = world.now_us
    for claimed in flying:
        assert claimed is not None
        world.settle(claimed, AccessLost("ad_account", "forbidden", "No permission for ad account 1001."))
        world.pass_time(1)
    (row,) = world.ledger.troubles()
    assert row.next_probe_us == began_us + 60_000_000
    world.now_us = row.next_probe_us
    probe = world.claim()
    assert probe is not None
    assert world.claim() is None, "one probe at a time"
    world.settle(probe)
    assert world.ledger.troubles() == []


def test_a_disconnected_ad_account_is_no_work(world: World) -> None:
    """What a person has disconnected is never due, however long it lasts: no run begins for it."""
    world.declare(canvas("vip", step("add")), canvas("later", step("soon", delay_s=60)))
    world.enter("vip", crowd(range(3)))
    world.enter("later", crowd(range(3)))
    key = "criteo_default/1001"
    world.ledger.trouble("ad_account", key, code="disconnected", sentence="Disconnected.", now_us=world.now_us)
    for _ in range(2):
        world.pass_time(3600)
        work = world.ledger.open_work(now_us=world.now_us)
        assert (work.due_fresh, work.due_retry, work.due_steps, work.unresolved) == (0, 0, 0, 0)
        assert world.ledger.stopped_audiences(now_us=world.now_us) == {1}
        assert world.claim() is None


def test_one_cause_seen_at_two_places_is_one_message(world: World) -> None:
    """A revoked consent shows as 403 at the ad account and later as a dead token: told once, and once when over."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd(range(3)))
    fail(world, AccessLost("ad_account", "forbidden", "No permission for ad account 1001."))
    assert len(world.ledger.take_news(now_us=world.now_us)) == 1
    world.pass_time(61)
    claimed = world.claim()
    assert claimed is not None
    world.settle(claimed, LOST)
    assert len(world.ledger.troubles()) == 2
    assert world.ledger.take_news(now_us=world.now_us) == []
    world.pass_time(200)
    claimed = world.claim() or world.claim_retry()
    assert claimed is not None
    world.settle(claimed)
    (over,) = world.ledger.take_news(now_us=world.now_us)
    assert over.startswith("Over, ad account criteo_default/1001 works again.")


def test_a_wider_trouble_is_told_all_the_same(world: World) -> None:
    """When the connection breaks after one of its audiences did, others are concerned: that is news."""
    world.declare(canvas("vip", step("add"), step("add_too", audience="Others", position=1)))
    world.enter("vip", crowd(range(3)))
    fail(world, GONE)
    assert len(world.ledger.take_news(now_us=world.now_us)) == 1
    fail(world, LOST)
    assert len(world.ledger.take_news(now_us=world.now_us)) == 1


@pytest.mark.parametrize("unsent", ["given back", "busy"])
def test_a_probe_that_found_out_nothing_goes_again_at_once(world: World, unsent: str) -> None:
    """A probe that was cut off before it was sent, or met a 429, does not use up the quarter of an hour of its turn."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd(range(3)))
    fail(world, LOST)
    for _ in range(5):
        world.pass_time(16 * 60)
        probe = world.claim() or world.claim_retry()
        assert probe is not None
        world.settle(probe, LOST)
    world.pass_time(16 * 60)
    probe = world.claim_retry()
    assert probe is not None
    if unsent == "busy":
        world.settle(probe, Busy(1.0))
    else:
        world.ledger.release(probe, now_us=world.now_us)
    world.pass_time(1)
    again = world.claim_retry()
    assert again is not None
    assert world.claim_retry() is None, "one probe at a time"
    world.settle(again)
    assert world.numbers("add") == (3, 3, 0, 0, 0)


@pytest.mark.parametrize(
    ("blamed", "ended"),
    [
        (GONE, {"connection", "ad_account"}),
        (AccessLost("ad_account", "forbidden", "No permission for ad account 1001."), {"connection"}),
        (LOST, set()),
    ],
    ids=lambda one: getattr(one, "code", None),
)
def test_who_blames_one_thing_vouches_for_what_leads_there(world: World, blamed: Outcome, ended: set[str]) -> None:
    """An answer that blames an audience or ad account ends the troubles of what is wider, and says so, once."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd(range(3)))
    fail(world, LOST)
    world.ledger.trouble("ad_account", "criteo_default/1001", code="forbidden", sentence="No.", now_us=world.now_us)
    world.ledger.take_news(now_us=world.now_us)
    world.pass_time(16 * 60)
    fail(world, blamed)
    left = {row.scope for row in world.ledger.troubles()}
    assert {"connection", "ad_account"} - left == ended
    told = world.ledger.take_news(now_us=world.now_us)
    assert ("Over, connection criteo_default works again" in " ".join(told)) is ("connection" in ended)


def test_a_look_up_that_finds_no_list_vouches_for_the_token(world: World) -> None:
    """Criteo, asked for an audience and saying there is none, has let us in: the connection's trouble is over."""
    world.declare(canvas("vip", step("add")))
    connection = {"code": "token-refused", "sentence": "Criteo refuses the access token."}
    world.ledger.trouble("connection", "criteo_default", **connection, now_us=world.now_us)
    nobody = {"code": "audience-not-created-yet", "sentence": "There is no such audience yet."}
    world.ledger.trouble("audience", "1", **nobody, now_us=world.now_us)
    assert {row.scope for row in world.ledger.troubles()} == {"connection", "audience"}
    world.ledger.trouble("audience", "1", **nobody, now_us=world.now_us, is_answer=True)
    assert {row.scope for row in world.ledger.troubles()} == {"audience"}
