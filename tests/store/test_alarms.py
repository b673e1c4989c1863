"""Bad states that time makes, each told once when it begins and once when it is over."""

from __future__ import annotations

from typing import Any

from sqlalchemy import event

from criteo_provider.core.outcome import AccessLost, Unavailable
from tests.world import World, canvas, crowd, step

AWAY = Unavailable("http-500", "Criteo's servers have trouble.", maybe_applied=False)
LATE_AFTER_S = 15 * 60


def look(world: World) -> list[tuple[str, bool]]:
    """Let time make its troubles, and take what is new."""
    world.ledger.look_for_alarms(late_after_s=LATE_AFTER_S, now_us=world.now_us)
    return [(one.sentence, one.is_broken) for one in world.ledger.take_alarms(now_us=world.now_us)]


def test_late_users_are_told_once_and_when_they_are_on_time_again(world: World) -> None:
    """The oldest pending user passes the threshold: one message; nobody does any more: one message."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd([1]))
    world.pass_time(LATE_AFTER_S)
    assert look(world) == []
    world.pass_time(1)
    told = "The oldest pending user of canvas vip has waited for more than 15 min. Nothing has been sent yet."
    assert look(world) == [(told, True)]
    world.pass_time(3600)
    assert look(world) == []
    claimed = world.claim()
    assert claimed is not None
    world.settle(claimed)
    assert look(world) == [("Over: the users of canvas vip are on time again.", False)]
    assert look(world) == []


def test_who_is_in_flight_is_late_still(world: World) -> None:
    """A look in the middle of another try tells neither that lateness is over nor, after it failed, that it began."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd([1]))
    world.pass_time(LATE_AFTER_S + 1)
    assert [is_broken for _, is_broken in look(world)] == [True]
    claimed = world.claim()
    assert claimed is not None
    assert look(world) == []
    world.settle(claimed, AWAY)
    assert look(world) == []


def test_an_answer_in_the_middle_of_a_look_hides_nobody(postgres_url: str) -> None:
    """Whoever goes back from in flight to open while it is looked who is late was late all the while."""
    world = World(postgres_url)
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd([1]))
    world.pass_time(LATE_AFTER_S + 1)
    assert [is_broken for _, is_broken in look(world)] == [True]
    claimed = [world.claim()]

    def settle(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "JOIN stage ON stage.id = part.stage_id" in statement and claimed:
            request = claimed.pop()
            assert request is not None
            world.settle(request, AWAY)

    event.listen(world.engine, "after_cursor_execute", settle)
    assert look(world) == []
    assert not claimed
    world.close()


def test_why_users_are_late(world: World) -> None:
    """The message carries the last answer."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd([1]))
    claimed = world.claim()
    assert claimed is not None
    world.settle(claimed, AWAY)
    world.pass_time(LATE_AFTER_S + 1)
    ((sentence, _),) = look(world)
    assert sentence.endswith("The last answer: Criteo's servers have trouble.")


def test_who_is_late_because_of_a_known_trouble_is_told_by_that_trouble(world: World) -> None:
    """Three hours without a connection are one message and one when it is over, not two of each."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd([1]))
    claimed = world.claim()
    assert claimed is not None
    world.settle(claimed, AccessLost("connection", "token-refused", "Criteo refuses the access token."))
    told = look(world)
    for _ in range(18):
        world.pass_time(600)
        told += look(world)
    claimed = world.claim() or world.claim_retry()
    assert claimed is not None
    world.settle(claimed)
    told += look(world)
    assert [is_broken for _, is_broken in told] == [True, False]


def test_a_delay_is_not_lateness(world: World) -> None:
    """People on their way to a step are not pending there; people of a step no longer declared are held, not late."""
    world.declare(canvas("vip", step("add", delay_s=86_400)), canvas("old", step("add_old")))
    world.enter("vip", crowd([1]))
    world.enter("old", crowd([1]))
    world.declare(canvas("vip", step("add", delay_s=86_400)))
    world.pass_time(LATE_AFTER_S * 2)
    assert look(world) == []


def test_users_given_up_over_hours_are_one_message(world: World) -> None:
    """However many sweeps give users of a canvas up, there is one message, and one after an hour without any."""
    world.declare(canvas("vip", step("add")), canvas("quiet", step("add_quiet")))
    told: list[tuple[str, bool]] = []
    for number in range(4):
        world.enter("vip", crowd([number]))
        claimed = world.claim()
        assert claimed is not None
        world.settle(claimed, AWAY)
        world.pass_time(1200)
    world.pass_time(13 * 3600 - 4 * 1200)
    for _ in range(6):
        world.ledger.sweep(now_us=world.now_us)
        told += look(world)
        world.pass_time(1200)
    errored = [one for one in told if "given up" in one[0]]
    assert errored == [
        (
            "Users of canvas vip were given up after 13 h of retries: Users Errored. The last reason was: Criteo's "
            "servers have trouble. When it is mended, `airflow criteo retry vip --reason ...` sends them again.",
            True,
        )
    ]
    world.pass_time(3600)
    assert ("Over: nobody of canvas vip was given up for an hour.", False) in look(world)


def test_what_is_over_before_anybody_was_told_is_no_alarm(world: World) -> None:
    """A trouble that came and went is told in one breath, and nothing is broken."""
    world.declare(canvas("vip", step("add")))
    world.ledger.source_failed("vip", "The query has no column 'email'.", now_us=world.now_us)
    world.ledger.healed("source", "vip", now_us=world.now_us)
    assert [is_broken for _, is_broken in look(world)] == [False, False]


def test_news_put_back_are_told_again(world: World) -> None:
    """Whoever could not reach anybody leaves the news to the next."""
    world.declare(canvas("vip", step("add")))
    world.ledger.source_failed("vip", "Away.", now_us=world.now_us)
    (taken,) = world.ledger.take_alarms(now_us=world.now_us)
    assert not world.ledger.is_untold()
    world.ledger.put_back_news([taken.id])
    assert world.ledger.is_untold()
    assert world.ledger.take_alarms(now_us=world.now_us) == [taken]


def test_who_was_held_back_is_not_late_once_the_way_is_free(world: World) -> None:
    """Right after a long outage the people it held back are sent, not told of a second time."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd([1]))
    world.enter("vip", crowd([2]))
    claimed = world.claim()
    assert claimed is not None
    world.settle(claimed, AccessLost("connection", "token-refused", "Criteo refuses the access token."))
    world.pass_time(3 * 3600)
    assert len(look(world)) == 1
    world.ledger.healed("connection", "criteo_default", now_us=world.now_us)
    assert [is_broken for _, is_broken in look(world)] == [False]
    world.pass_time(LATE_AFTER_S - 60)
    assert look(world) == []
    world.pass_time(120)
    assert [is_broken for _, is_broken in look(world)] == [True]


def test_a_covered_trouble_is_told_when_it_stands_alone(world: World) -> None:
    """A dead connection behind a deleted audience is told once the audience is back."""
    world.declare(canvas("vip", step("add")))
    now_us = world.now_us
    for scope, key in (("audience", "1"), ("connection", "criteo_default")):
        world.ledger.trouble(scope, key, code="bad", sentence=f"The {scope} is bad.", now_us=now_us)
    assert look(world) == [("Trouble with audience 'Shoppers': The audience is bad.", True)]
    world.ledger.healed("audience", "1", now_us=now_us)
    assert look(world) == [
        ("Over, audience 'Shoppers' works again. It was: The audience is bad.", False),
        ("Trouble with connection criteo_default: The connection is bad.", True),
    ]
    assert look(world) == []
