"""Short stories that once went wrong: claims that were lost, narrowing in merged chunks, and whose turn it is."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from sqlalchemy import select, text, update

from criteo_provider.core.batching import pack
from criteo_provider.core.identifiers import Form, encode
from criteo_provider.core.model import (
    ClaimedRequest,
    Operation,
    Role,
)
from criteo_provider.core.outcome import Accepted, AccessLost, Outcome, Refused, Unavailable
from criteo_provider.store import troubles
from criteo_provider.store.engine import writing
from criteo_provider.store.schema import stage_exception, trouble
from tests.world import World, canvas, crowd, digest, step

REFUSED = Refused("invalid", "Criteo refuses the content.")
DOWN = Unavailable("http-503", "Criteo's servers have trouble.", maybe_applied=False)
UNNAMED = Accepted(3, 1)


def in_and_out(world: World) -> None:
    """Two canvases that pull people in and out of one audience."""
    world.declare(canvas("in", step("add")), canvas("out", step("remove", Operation.REMOVE)))


def send_until_dry(world: World, answer: Callable[[set[bytes], int], Outcome | None], *, most: int) -> int:
    """Send and settle what is due, at most ``most`` calls; return how many calls it took."""
    for calls in range(most):
        claimed = world.claim() or world.claim(Role.RETRY)
        if claimed is None:
            return calls
        world.settle(claimed, answer(set(world.sent(claimed)), claimed.identifiers))
    return most


@pytest.mark.parametrize("outcome", [REFUSED, UNNAMED, DOWN, AccessLost("connection", "token-refused", "No.")])
def test_an_answer_after_the_claim_was_lost_changes_nobody(world: World, outcome: Outcome) -> None:
    """Whatever a late answer says, the people belong to somebody else by then, and the settlement says so."""
    world.declare(canvas("in", step("add")))
    world.enter("in", crowd(range(4)))
    slow = world.claim(lease_s=60)
    assert slow is not None
    world.pass_time(61)
    quick = world.claim(owner="other")
    assert quick is not None
    assert world.settle(slow, outcome) == 1
    assert world.settle(quick) == 0
    assert world.numbers("add") == (4, 4, 0, 0, 0)


def test_a_split_part_keeps_its_place_among_intents(world: World) -> None:
    """Of two intents at the same microsecond the later sealed one wins, also after the first was narrowed."""
    in_and_out(world)
    world.enter("in", crowd(range(4)))
    world.enter("out", crowd(range(4)))
    members: set[bytes] = set()
    refused_once = False
    for _ in range(20):
        claimed = world.claim()
        if claimed is None:
            break
        values = set(world.sent(claimed))
        if claimed.operation is Operation.ADD and not refused_once:
            refused_once = True
            world.settle(claimed, REFUSED)
            continue
        members = members | values if claimed.operation is Operation.ADD else members - values
        world.settle(claimed)
    assert members == set()
    assert world.numbers("remove") == (4, 4, 0, 0, 0)


def test_a_reader_sees_as_errored_only_who_has_nothing_open_left(world: World) -> None:
    """One identifier is past its deadline and another is not: the person is Pending, before and after the sweep."""
    world.declare(canvas("in", step("add", fields=("email", "madid"))))
    people = pack(
        ["user-1", "user-2"],
        {
            (Form.EMAIL_SHA256.value, None): [digest(1), digest(2)],
            (Form.MADID.value, None): [digest(1)[:16], digest(2)[:16]],
        },
        {"email": [None, None], "madid": [None, None]},
        lambda values, form: encode(values, Form(form)),
    )
    world.enter("in", people)
    first = world.claim()
    assert first is not None
    world.settle(first, DOWN)
    world.pass_time(14 * 3600)
    before = world.numbers("add")
    world.ledger.sweep(now_us=world.now_us)
    assert before == world.numbers("add") == (2, 0, 0, 2, 0)


def test_a_claim_goes_on_when_everybody_it_looked_at_was_superseded(world: World) -> None:
    """A lane whose people are all overtaken does not hide other work."""
    world.declare(
        canvas("in", step("add")),
        canvas("out", step("remove", Operation.REMOVE)),
        canvas("else", step("other", audience="Others")),
    )
    world.enter("in", crowd(range(4)))
    failing = world.claim()
    assert failing is not None
    world.settle(failing, DOWN)
    world.pass_time(1)
    world.enter("out", crowd(range(4)))
    removal = world.claim()
    assert removal is not None
    world.settle(removal)
    world.pass_time(60)
    world.enter("else", crowd(range(3)))
    found = world.claim()
    assert found is not None
    assert found.identifiers == 3
    world.settle(found)


def test_one_bad_person_in_many_merged_chunks_holds_nobody_else_back(world: World) -> None:
    """A refused merge of more chunks than a narrowing may cost calls is narrowed all the same, within its bound."""
    world.declare(canvas("in", step("add")))
    for number in range(100):
        world.enter("in", crowd([2 * number, 2 * number + 1]))
    poison = digest(77)
    calls = send_until_dry(world, lambda values, _count: REFUSED if poison in values else None, most=150)
    assert world.numbers("add") == (200, 199, 1, 0, 0)
    assert calls <= 1 + 64


def test_an_unnamed_invalid_person_in_many_merged_chunks_is_found(world: World) -> None:
    """A 200 over 100 chunks that counts one invalid identifier without naming it: 199 of 200 are Synced."""
    world.declare(canvas("in", step("add")))
    for number in range(100):
        world.enter("in", crowd([2 * number, 2 * number + 1]))
    bad = digest(77)

    def answer(values: set[bytes], count: int) -> Outcome:
        return Accepted(count - 1, 1) if bad in values else Accepted(count, 0)

    calls = send_until_dry(world, answer, most=150)
    assert world.numbers("add") == (200, 199, 1, 0, 0)
    assert calls <= 1 + 64


def test_a_refusal_of_the_whole_calls_nobody_invalid(world: World) -> None:
    """When both halves at the first two levels are refused alike it is the call that is refused: all stay Pending."""
    world.declare(canvas("in", step("add")))
    world.enter("in", crowd(range(16)))
    calls = send_until_dry(world, lambda _values, _count: REFUSED, most=150)
    assert world.numbers("add") == (16, 0, 0, 16, 0)
    assert calls <= 7


def test_a_waiting_removal_that_only_retries_may_send_gets_its_turn(world: World) -> None:
    """Adds that never stop do not keep a retried removal behind the barrier for ever."""
    in_and_out(world)
    world.enter("out", crowd(range(4)))
    for _ in range(3):
        failing = world.claim()
        assert failing is not None
        world.settle(failing, DOWN)
        world.pass_time(60)
    flying = []
    removed = None
    for number in range(40):
        world.enter("in", crowd(range(100 + number * 10, 110 + number * 10)))
        added = world.claim(Role.FRESH)
        if added is not None:
            assert added.operation is Operation.ADD
            flying.append(added)
        removed = removed or world.claim(Role.RETRY)
        if len(flying) > 1 or added is None:  # one is always in flight while there are adds to send
            for one in flying[:1]:
                world.settle(one)
            flying = flying[1:]
        world.pass_time(1)
    for one in flying:
        world.settle(one)
    assert removed is not None
    assert removed.operation is Operation.REMOVE
    world.settle(removed)


def test_what_was_refused_as_a_whole_is_narrowed_once_criteo_takes_it(world: World) -> None:
    """After a refusal of the whole is over, an invalid identifier Criteo does not name holds nobody else back."""
    world.declare(canvas("in", step("add")))
    world.enter("in", crowd(range(16)))
    send_until_dry(world, lambda _values, _count: REFUSED, most=150)
    assert world.numbers("add") == (16, 0, 0, 16, 0)
    bad = digest(7)
    for _ in range(20):
        world.pass_time(1201)
        send_until_dry(
            world, lambda values, count: Accepted(count - 1, 1) if bad in values else Accepted(count, 0), most=50
        )
    assert world.numbers("add") == (16, 15, 1, 0, 0)


def test_a_waiting_removal_gets_its_turn_however_slow_criteo_is(world: World) -> None:
    """Adds that take 15 seconds each, one after the other for ever, do not keep a retried removal out."""
    in_and_out(world)
    world.enter("out", crowd(range(4)))
    for _ in range(3):
        failing = world.claim()
        assert failing is not None
        world.settle(failing, DOWN)
        world.pass_time(60)
    flying: list[tuple[int, ClaimedRequest]] = []
    removed = None
    for second in range(120):
        world.enter("in", crowd([1000 + second]))
        for landed in [one for one in flying if one[0] <= second]:
            world.settle(landed[1])
            flying.remove(landed)
        added = world.claim(Role.FRESH)
        if added is not None:
            assert added.operation is Operation.ADD
            flying.append((second + 15, added))
        removed = world.claim(Role.RETRY)
        if removed is not None:
            break
        world.pass_time(1)
    for _, one in flying:
        world.settle(one)
    assert removed is not None
    assert removed.operation is Operation.REMOVE
    world.settle(removed)


def test_two_requests_may_meet_the_same_trouble_at_once(ledger_url: str) -> None:
    """Two answers that tell of one new trouble at the same moment are both settled."""
    world = World(ledger_url)
    if world.engine.dialect.name == "sqlite":
        world.close()
        return  # one writer at a time
    told: list[bool] = []

    def tell() -> None:
        with writing(world.engine) as connection:
            new = troubles.open_trouble(
                connection, "connection", "criteo_default", code="x", sentence="No.", now_us=world.now_us
            )
            told.append(new)

    with writing(world.engine) as connection:
        new = troubles.open_trouble(
            connection, "connection", "criteo_default", code="x", sentence="No.", now_us=world.now_us
        )
        second = threading.Thread(target=tell)
        second.start()
        waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        for _ in range(200):
            # A look of its own: within one transaction PostgreSQL goes on telling what it saw first.
            with world.engine.connect() as onlooker:
                if onlooker.execute(waiting).scalar_one():
                    break
            second.join(0.05)
    second.join(30)
    assert (new, told) == (True, [False])
    with world.engine.connect() as connection:
        assert len(connection.execute(select(trouble)).all()) == 1
    world.close()


def test_db_check_notices_exceptions_that_name_the_wrong_people(world: World) -> None:
    """The laws are about people: as many Not Synced as the parts say, but others, is a broken law."""
    world.declare(canvas("in", step("add")))
    world.enter("in", crowd(range(8)))
    claimed = world.claim()
    assert claimed is not None
    world.settle(claimed, Accepted(7, 1, (digest(3).hex(),)))
    moved = update(stage_exception)
    with writing(world.engine) as connection:
        connection.execute(moved.values(first=stage_exception.c.first + 1, last=stage_exception.c.last + 1))
    assert world.ledger.broken_laws() != []
    with writing(world.engine) as connection:
        connection.execute(moved.values(first=stage_exception.c.first - 1, last=stage_exception.c.last - 1))
