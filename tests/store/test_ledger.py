"""The life of a chunk: sealed, claimed, settled, given up; on both engines."""

from __future__ import annotations

import pytest
from sqlalchemy import event, func, select

from criteo_provider.core.errors import LostClaim
from criteo_provider.core.model import Operation, Role
from criteo_provider.core.outcome import Accepted, AccessLost, AudienceGone, Busy, Refused, Unavailable
from criteo_provider.store.schema import part, stage_exception, upload
from tests.world import HOUR_US, World, canvas, crowd, digest, step


def test_people_are_counted_from_seal_to_settlement(world: World) -> None:
    """Whoever enters is Pending, then Synced; whoever lacks the field is Not Synced at once and never sent."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd(range(10), lacking=[3, 7]))
    assert world.numbers("add") == (10, 0, 2, 8, 0)
    claimed = world.claim()
    assert claimed is not None
    assert sorted(world.sent(claimed)) == sorted(digest(number) for number in range(10) if number not in (3, 7))
    assert world.settle(claimed) == 0
    assert world.numbers("add") == (10, 8, 2, 0, 0)
    statuses = world.statuses("add")
    assert statuses["user-3"] == "Not Synced"
    assert statuses["user-4"] == "Synced"
    assert len(statuses) == 10
    assert world.claim() is None


def test_a_moved_cursor_refuses_the_seal_and_leaves_nothing(world: World) -> None:
    """Two readers of one source: the second to seal gets LostClaim and leaves no trace."""
    world.declare(canvas("vip", step("add")))
    slow = world.ledger.hold_cursor("vip", "slow", now_us=world.now_us, lease_s=1)
    assert slow is not None
    assert world.ledger.hold_cursor("vip", "quick", now_us=world.now_us, lease_s=1) is None
    world.pass_time(2)
    world.enter("vip", crowd(range(5)), position=5, owner="quick")
    with pytest.raises(LostClaim):
        world.ledger.seal(
            slow, crowd(range(5)), world.plans["vip"], position=5, units=(), looks=(), now_us=world.now_us
        )
    assert world.numbers("add")[0] == 5
    assert world.ledger.position("vip") == 5


def test_same_sign_overlaps_and_the_opposite_sign_waits(world: World) -> None:
    """Requests of one sign fly together; a change of sign waits for them, and its turn comes next."""
    world.declare(
        canvas("in", step("add")),
        canvas("out", step("remove", Operation.REMOVE)),
        canvas("else", step("other", audience="Others")),
    )
    world.enter("in", crowd(range(50_000)))
    world.enter("in", crowd(range(50_000, 100_000)))
    first, second = world.claim(), world.claim()
    assert first
    assert second
    world.pass_time(1)
    world.enter("out", crowd(range(5)))
    world.enter("in", crowd(range(200_000, 200_010)))
    world.settle(first)
    waiting = world.claim()
    # The oldest waiting intent is the removal: nothing of this audience starts until it had its turn.
    assert waiting is None
    world.enter("else", crowd(range(3)))
    other = world.claim()
    assert other is not None
    assert other.operation is Operation.ADD
    assert other.identifiers == 3
    world.settle(second)
    removal = world.claim()
    assert removal is not None
    assert removal.operation is Operation.REMOVE
    assert world.claim() is None
    for claimed in (other, removal):
        world.settle(claimed)
    last = world.claim()
    assert last is not None
    assert last.identifiers == 10
    world.settle(last)


def test_a_retried_add_does_not_send_who_was_removed_since(world: World) -> None:
    """An intent overtaken by a later, opposite one is Not Synced (superseded), for exactly those people."""
    world.declare(canvas("in", step("add")), canvas("out", step("remove", Operation.REMOVE)))
    world.enter("in", crowd(range(10)))
    failing = world.claim()
    assert failing is not None
    world.settle(failing, Unavailable("http-500", "Criteo's servers have trouble.", maybe_applied=False))
    world.pass_time(1)
    world.enter("out", crowd([2, 3, 4, 8]))
    removal = world.claim()
    assert removal is not None
    assert removal.operation is Operation.REMOVE
    world.settle(removal)
    world.pass_time(60)
    again = world.claim()
    assert again is not None
    assert sorted(world.sent(again)) == sorted(digest(number) for number in (0, 1, 5, 6, 7, 9))
    world.settle(again)
    assert world.numbers("add") == (10, 6, 4, 0, 0)
    reasons = next(one for one in world.ledger.numbers(now_us=world.now_us) if one.step == "add")
    assert reasons.not_synced_reasons == {"superseded by a later intent": 4}


def test_failures_keep_people_pending_until_the_window_is_over(world: World) -> None:
    """An API error costs an attempt and nobody; 13 hours after the first attempt the people are Errored."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd(range(4)))
    world.pass_time(3600)  # waiting for the pacer does not start the clock
    claimed = world.claim()
    assert claimed is not None
    world.settle(claimed, Unavailable("http-503", "Criteo's servers have trouble.", maybe_applied=False))
    assert world.claim() is None
    first_attempt_us = world.now_us
    world.now_us = first_attempt_us + 13 * HOUR_US - 1_000_000
    assert world.numbers("add") == (4, 0, 0, 4, 0)
    world.now_us = first_attempt_us + 13 * HOUR_US + 1_000_000
    assert world.numbers("add") == (4, 0, 0, 0, 4)
    assert world.claim(Role.RETRY) is None
    world.ledger.sweep(now_us=world.now_us)
    assert world.numbers("add") == (4, 0, 0, 0, 4)
    assert world.statuses("add")["user-1"] == "Errored"


def test_busy_costs_no_attempt(world: World) -> None:
    """A 429 gives the people back as they were; only their clock has started."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd(range(4)))
    for _ in range(5):
        claimed = world.claim()
        assert claimed is not None
        assert claimed.parts[0].attempts == 1
        world.settle(claimed, Busy(30))
    claimed = world.claim()
    assert claimed is not None
    world.settle(claimed)
    assert world.numbers("add") == (4, 4, 0, 0, 0)


def test_a_claim_that_outlives_its_owner_is_taken_over_and_settles_once(world: World) -> None:
    """After the lease somebody else sends the people; the first owner's settlement changes nothing."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd(range(4)))
    dead = world.claim(lease_s=60)
    assert dead is not None
    assert world.claim() is None
    world.pass_time(61)
    taken = world.claim(owner="other")
    assert taken is not None
    assert world.settle(dead) == 1
    assert world.numbers("add") == (4, 0, 0, 4, 0)
    assert world.settle(taken) == 0
    assert world.numbers("add") == (4, 4, 0, 0, 0)


def test_a_lost_answer_counts_as_in_flight_until_its_lease_is_over(world: World) -> None:
    """A removal does not start while an unanswered add may still take effect at Criteo."""
    world.declare(canvas("in", step("add")), canvas("out", step("remove", Operation.REMOVE)))
    world.enter("in", crowd(range(4)))
    lost = world.claim(lease_s=100)
    assert lost is not None
    world.settle(lost, Unavailable("no-answer", "Criteo did not answer in time.", maybe_applied=True))
    world.enter("out", crowd(range(4)))
    assert world.claim() is None
    world.pass_time(101)
    removal = world.claim()
    assert removal is not None
    assert removal.operation is Operation.REMOVE
    world.settle(removal)


def test_invalid_identifiers_named_by_criteo_are_not_synced(world: World) -> None:
    """Who stands in the sample is Not Synced, everybody else of the request is Synced, and 7 cost 7 exceptions."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd(range(1000)))
    claimed = world.claim()
    assert claimed is not None
    bad = [5, 17, 18, 400, 401, 402, 999]
    world.settle(claimed, Accepted(993, 7, tuple(digest(number).hex() for number in bad)))
    assert world.numbers("add") == (1000, 993, 7, 0, 0)
    statuses = world.statuses("add")
    assert {key for key, status in statuses.items() if status == "Not Synced"} == {f"user-{n}" for n in bad}
    with world.engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(stage_exception)).scalar_one() <= 7


def test_invalid_identifiers_not_named_are_found_by_halving(world: World) -> None:
    """Where a 200 counts more invalid identifiers than it names, the rest is narrowed down; nobody is guessed."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd(range(64)))
    bad = {digest(11), digest(40)}
    calls = 0
    while (claimed := world.claim()) is not None:
        calls += 1
        invalid = sum(1 for value in world.sent(claimed) if value in bad)
        world.settle(claimed, Accepted(claimed.identifiers - invalid, invalid))
        world.pass_time(1)
    assert world.numbers("add") == (64, 62, 2, 0, 0)
    assert calls <= 2 * 2 * 7
    assert world.statuses("add")["user-11"] == "Not Synced"


def test_a_refused_merge_is_narrowed_along_chunks_then_halves(world: World) -> None:
    """One person Criteo refuses holds nobody else back."""
    world.declare(canvas("vip", step("add")))
    for first in range(0, 40, 10):
        world.enter("vip", crowd(range(first, first + 10)))
    poison = digest(23)
    while (claimed := world.claim() or world.claim(Role.RETRY)) is not None:
        outcome = Refused("invalid", "Criteo refuses the content.") if poison in world.sent(claimed) else None
        world.settle(claimed, outcome)
    assert world.numbers("add") == (40, 39, 1, 0, 0)
    assert world.statuses("add")["user-23"] == "Not Synced"


def test_a_refusal_of_everything_costs_a_bounded_number_of_calls(world: World) -> None:
    """When Criteo refuses all there is, narrowing stops within its bound and the people stay Pending."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd(range(5_000)))
    calls = 0
    while (claimed := world.claim() or world.claim(Role.RETRY)) is not None:
        calls += 1
        world.settle(claimed, Refused("invalid", "Criteo refuses the content."))
    assert calls <= 70
    assert world.numbers("add")[3] > 4_900


@pytest.mark.parametrize(
    ("trouble", "others_go_on"),
    [
        (AccessLost("connection", "token-refused", "Criteo refuses the token."), False),
        (AccessLost("ad_account", "not-permitted", "Criteo denies the ad account."), False),
        (AudienceGone("audience-gone", "The audience is gone."), True),
    ],
)
def test_a_trouble_stops_what_it_concerns_and_heals_by_a_probe(
    world: World, trouble: AccessLost | AudienceGone, others_go_on: bool
) -> None:
    """A breaker stops its scope, lets one probe through a minute later, and heals with no click."""
    world.declare(canvas("vip", step("add")), canvas("else", step("other", audience="Others")))
    world.enter("vip", crowd(range(4)))
    claimed = world.claim()
    assert claimed is not None
    world.settle(claimed, trouble)
    world.enter("vip", crowd(range(10, 14)))
    world.enter("else", crowd(range(4)))
    other = world.claim()
    assert (other is not None) is others_go_on
    if other is not None:
        world.settle(other)
    assert world.claim() is None
    world.pass_time(61)
    probe = world.claim()
    assert probe is not None
    assert probe.is_probe
    assert world.claim() is None
    world.settle(probe)
    assert list(world.ledger.troubles()) == []
    while (claimed := world.claim()) is not None:
        world.settle(claimed)
    assert world.numbers("add")[1] == 8
    assert world.numbers("other")[1] == 4


def test_a_delay_lets_people_reach_the_later_step_in_time(world: World) -> None:
    """People advance at once; the step behind a delay counts and sends them only when the delay is over."""
    world.declare(canvas("vip", step("add", is_last=False), step("remove", Operation.REMOVE, delay_s=3600, position=2)))
    world.enter("vip", crowd(range(6), lacking=[0]))
    claimed = world.claim()
    assert claimed is not None
    world.settle(claimed)
    assert world.claim() is None
    assert world.numbers("remove") == (0, 0, 0, 0, 0)
    world.pass_time(3601)
    assert world.ledger.enter_due_steps(now_us=world.now_us) == 1
    assert world.numbers("remove") == (6, 0, 1, 5, 0)
    removal = world.claim()
    assert removal is not None
    assert removal.operation is Operation.REMOVE
    world.settle(removal)
    numbers = {one.step: one for one in world.ledger.numbers(now_us=world.now_us)}
    assert (numbers["add"].proceeded, numbers["add"].exited) == (6, 0)
    assert (numbers["remove"].proceeded, numbers["remove"].exited) == (0, 6)


def test_an_empty_page_moves_the_cursor_and_leaves_no_trace(world: World) -> None:
    """When nobody of a page is eligible the cursor moves, and no chunk, stage or number appears."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd([]), position="2026-01-01")
    assert world.ledger.position("vip") == "2026-01-01"
    assert world.numbers("add") == (0, 0, 0, 0, 0)
    with world.engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(upload)).scalar_one() == 0


def test_the_newest_chunk_does_not_wait_behind_a_backfill(world: World) -> None:
    """While a backfill of one audience drains, somebody fresh is in one of the next four requests."""
    world.declare(canvas("vip", step("add")))
    for first in range(0, 500_000, 50_000):
        world.enter("vip", crowd(range(first, first + 50_000)))
    world.pass_time(1)
    world.enter("vip", crowd([900_000]))
    requests = []
    for _ in range(4):
        claimed = world.claim()
        assert claimed is not None
        requests.append(digest(900_000) in world.sent(claimed))
        world.settle(claimed)
    assert any(requests)


def test_no_row_is_written_per_user(world: World) -> None:
    """Sealing and settling 10,000 people writes one part, not 10,000."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd(range(10_000)))
    claimed = world.claim()
    assert claimed is not None
    world.settle(claimed)
    with world.engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(part)).scalar_one() == 1


def test_exceptions_that_stay_as_they_are_are_not_written_again(world: World) -> None:
    """Who lacks the field is written at the seal; a settlement that changes nothing for them leaves them alone."""
    world.declare(canvas("vip", step("add")))
    written: list[str] = []

    @event.listens_for(world.engine, "before_cursor_execute")
    def remember(_c: object, _cursor: object, statement: str, *_rest: object) -> None:
        if "stage_exception" in statement and not statement.startswith("SELECT"):
            written.append(statement.split()[0])

    world.enter("vip", crowd(range(10), lacking=[3, 7]))
    claimed = world.claim()
    assert claimed is not None
    world.settle(claimed)
    assert written == ["INSERT"]
    assert world.numbers("add") == (10, 8, 2, 0, 0)
    written.clear()
    world.enter("vip", crowd(range(10, 13), lacking=[10, 11, 12]))
    assert written == []  # as all of them lack it, nobody is an exception
    assert world.numbers("add") == (13, 8, 5, 0, 0)
