"""A removal takes out everything its people were added under, whatever their addresses are today."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select

from criteo_provider.core.batching import pack
from criteo_provider.core.consent import value_marks
from criteo_provider.core.identifiers import Form, encode
from criteo_provider.core.model import ClaimedRequest, Operation, Reason, Role, SealedPeople, Span
from criteo_provider.core.outcome import Accepted, Refused, Unavailable
from criteo_provider.store import earlier, people_index
from criteo_provider.store.engine import writing
from criteo_provider.store.schema import chunk, metadata, part
from criteo_provider.store.schema_growth import people_segment
from criteo_provider.store.schema_order import key_filter
from tests.world import World, canvas, crowd, digest, step

EMAIL, MADID = Form.EMAIL_SHA256, Form.MADID
DOWN = Unavailable("http-503", "Criteo's servers have trouble.", maybe_applied=False)


def people(*told: tuple[str, int | None, int | None]) -> SealedPeople:
    """People by user key, each with the address of one made-up person and the device of another, or none."""
    emails = [None if email is None else digest(email) for _, email, _ in told]
    devices = [None if device is None else digest(device)[:16] for _, _, device in told]
    return pack(
        [key for key, _, _ in told],
        {(EMAIL.value, None): emails, (MADID.value, None): devices},
        {
            "email": [None if value else Reason.MISSING for value in emails],
            "madid": [None if value else Reason.MISSING for value in devices],
        },
        lambda values, form: encode(values, Form(form)),
    )


class Lists:
    """What is in the one audience at Criteo."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.members: set[bytes] = set()

    def take(self, claimed: ClaimedRequest) -> None:
        """Apply a request."""
        values = set(self.world.sent(claimed))
        assert len(values) <= 50_000
        self.members = self.members | values if claimed.operation is Operation.ADD else self.members - values

    def drain(self) -> int:
        """Send all that is due and accept it; return how many requests that were."""
        for requests in range(1_000):
            claimed = self.world.claim() or self.world.claim(Role.RETRY)
            if claimed is None:
                return requests
            self.take(claimed)
            self.world.settle(claimed)
        pytest.fail("the drain does not end")


@pytest.fixture
def lists(world: World) -> Lists:
    """A canvas that adds people by address and device, and one that removes them by address."""
    world.declare(
        canvas("in", step("add", fields=("email", "madid"))),
        canvas("out", step("remove", Operation.REMOVE)),
    )
    return Lists(world)


def test_who_was_sent_in_a_request_that_is_narrowed_leaves_with_that_address(world: World, lists: Lists) -> None:
    """A narrowing costs no attempt, and whoever is given up in the middle of it was sent, and taken, all the same."""
    world.enter("in", people(("anna", 1, None), ("ben", 2, None), ("cleo", 7, None)))
    sent = world.claim()
    assert sent is not None
    lists.take(sent)
    world.settle(sent, Accepted(2, 1))
    world.declare(canvas("out", step("remove", Operation.REMOVE)))
    assert world.ledger.drop("in", "add", now_us=world.now_us) > 0
    world.pass_time(1)
    world.enter("out", people(("anna", 11, None)))
    lists.drain()
    assert digest(1) not in lists.members
    assert digest(2) in lists.members


def test_who_has_changed_the_address_leaves_with_the_old_one(world: World, lists: Lists) -> None:
    """Added as one address, then another, removed under a third: nothing of the person stays, one user is counted."""
    world.enter("in", people(("anna", 1, None), ("ben", 2, None)))
    lists.drain()
    world.enter("in", people(("anna", 11, None)))
    lists.drain()
    assert lists.members == {digest(1), digest(2), digest(11)}
    world.pass_time(60)
    world.enter("out", people(("anna", 21, None)))
    lists.drain()
    assert lists.members == {digest(2)}
    assert world.numbers("remove") == (1, 1, 0, 0, 0)


def test_a_device_that_was_added_is_removed_by_a_step_that_knows_addresses_only(world: World, lists: Lists) -> None:
    """Every form in which the user key was added to the audience is taken out again."""
    world.enter("in", people(("anna", 1, 1), ("ben", 2, 2)))
    lists.drain()
    world.enter("out", people(("anna", 1, None)))
    assert lists.drain() == 2
    assert lists.members == {digest(2), digest(2)[:16]}
    assert world.numbers("remove") == (1, 1, 0, 0, 0)


def test_who_comes_back_stays(world: World, lists: Lists) -> None:
    """An old address that is added again after the removal is not taken out by a late retry of it."""
    world.enter("in", people(("anna", 1, None)))
    lists.drain()
    world.enter("out", people(("anna", 11, None)))
    removals = [world.claim()]
    assert removals[0] is not None
    assert set(world.sent(removals[0])) == {digest(1), digest(11)}
    world.settle(removals[0], DOWN)
    world.pass_time(1)
    world.enter("in", people(("anna", 1, None)))
    for _ in range(5):
        lists.drain()
        world.pass_time(60)
    assert lists.members == {digest(1)}


def test_an_add_that_still_waits_is_overtaken_by_the_removal(world: World, lists: Lists) -> None:
    """The old address is still being retried when the person leaves under a new one: it is never sent."""
    world.enter("in", people(("anna", 1, None)))
    failing = world.claim()
    assert failing is not None
    world.settle(failing, DOWN)
    world.pass_time(1)
    world.enter("out", people(("anna", 11, None)))
    for _ in range(5):
        lists.drain()
        world.pass_time(60)
    assert lists.members == set()
    assert world.numbers("add") == (1, 0, 1, 0, 0)


def test_other_people_and_other_audiences_are_left_alone(world: World, lists: Lists) -> None:
    """Only adds of the same user key, to the same audience, before the removal."""
    world.declare(
        canvas("in", step("add", fields=("email", "madid"))),
        canvas("out", step("remove", Operation.REMOVE)),
        canvas("else", step("other", audience="Others")),
    )
    world.enter("else", people(("anna", 5, None)))
    other = world.claim()
    assert other is not None
    world.settle(other)
    world.enter("in", people(("ann", 1, None), ("anna2", 2, None)))
    lists.drain()
    world.enter("out", people(("anna", 11, None)))
    claimed = world.claim()
    assert claimed is not None
    assert world.sent(claimed) == [digest(11)]
    lists.take(claimed)
    world.settle(claimed)
    assert lists.drain() == 0


def test_invalid_old_identifiers_are_narrowed_like_any_others(world: World, lists: Lists) -> None:
    """A refused request of own and earlier identifiers ends with the good ones out, and the numbers add up."""
    world.enter("in", people(*((f"user-{number}", number, None) for number in range(20))))
    lists.drain()
    world.enter("out", people(*((f"user-{number}", 100 + number, None) for number in range(20))))
    for _ in range(100):
        claimed = world.claim()
        if claimed is None:
            break
        values = set(world.sent(claimed))
        if digest(7) in values or digest(113) in values:
            world.settle(claimed, Refused("invalid", "Criteo refuses the content."))
        else:
            lists.take(claimed)
            world.settle(claimed)
    assert lists.members == {digest(7)}
    # Whoever has one identifier accepted is Synced; nobody here had both refused.
    assert world.numbers("remove") == (20, 20, 0, 0, 0)


def test_a_sample_names_earlier_identifiers_too(world: World, lists: Lists) -> None:
    """An earlier identifier in the sample of invalid ones is refused; its person's own one is accepted."""
    world.enter("in", people(("anna", 1, None), ("ben", 2, None)))
    lists.drain()
    world.enter("out", people(("anna", 11, None), ("ben", 12, None)))
    claimed = world.claim()
    assert claimed is not None
    assert claimed.identifiers == 4
    world.settle(claimed, Accepted(2, 2, (digest(1).hex(), digest(12).hex())))
    assert world.numbers("remove") == (2, 2, 0, 0, 0)


def test_big_chunks_are_looked_through_by_filters_that_are_made_a_few_at_a_time(
    world: World, lists: Lists, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is to be filtered first does not hold up other work, and is filtered once."""
    monkeypatch.setattr(earlier, "MOST_FILTERS", 2)
    for number in range(5):
        world.enter("in", crowd(range(number * 1000, number * 1000 + 300)))
    lists.drain()
    world.enter("out", people(("user-7", 90_007, None), ("user-3299", 90_008, None)))
    world.enter("in", people(("somebody", 50_000, None)))
    added = world.claim()
    assert added is not None
    assert added.operation is Operation.ADD
    lists.take(added)
    world.settle(added)
    assert world.claim() is None
    lists.drain()
    assert {digest(7), digest(3299)}.isdisjoint(lists.members)
    assert len(lists.members) == 5 * 300 - 1
    with world.engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(key_filter)).scalar_one() == 5


def test_the_index_of_people_finds_what_filters_find(
    world: World, lists: Lists, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Indexed chunks are neither filtered nor read; newer ones are; every way gives the same, newest first."""
    monkeypatch.setattr(people_index, "SEGMENT_PEOPLE", 600)
    monkeypatch.setattr(people_index, "_SETTLED_US", -(10**16))
    for number in range(5):
        world.enter("in", people(*((f"user-{one}", number * 1000 + one, one) for one in range(number, number + 300))))
        world.pass_time(1)
    lists.drain()
    world.enter("out", people(("user-2", 1, None), ("user-303", 2, None), ("nobody", 3, None)))
    with world.engine.connect() as connection:
        (out,) = connection.execute(select(chunk.c.id).where(chunk.c.canvas_id == "out")).scalars()
        (audience_id,) = connection.execute(select(part.c.audience_id).distinct()).scalars()
        asked = (connection, audience_id, out, (Span(0, 3),))
        before = (world.now_us, 10**9)
        filters: dict[int, bytes] = {}
        by_filters = earlier.earlier_identifiers(*asked, before=before, filters=filters)
        assert len(filters) == 5
    while world.ledger.keeping.index_more():
        pass
    with world.engine.connect() as connection:
        covered = connection.execute(select(func.max(people_segment.c.last_chunk))).scalar_one()
        assert covered < out
        asked = (connection, audience_id, out, (Span(0, 3),))
        filters.clear()
        by_index = earlier.earlier_identifiers(*asked, before=before, filters=filters)
        assert filters.keys()
        assert min(filters) > covered
        assert by_index == by_filters
        assert {form: {one: list(values) for one, values in found.items()} for form, found in by_index.items()} == {
            form: {one: list(values) for one, values in found.items()} for form, found in by_filters.items()
        }
        assert [*by_index[EMAIL.value, None][0]] == [digest(2002), digest(1002), digest(2)]


def test_who_is_pruned_is_in_no_table_any_more(world: World, lists: Lists, monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses of before, filters and index of finished people go with them; whoever is not finished keeps all."""
    monkeypatch.setattr(earlier, "SMALL", 0)
    monkeypatch.setattr(people_index, "SEGMENT_PEOPLE", 3)
    monkeypatch.setattr(people_index, "_SETTLED_US", -(10**16))
    world.enter("in", people(("anna", 1, 1), ("ben", 2, None)))
    lists.drain()
    world.pass_time(60)
    world.enter("out", people(("anna", 11, None), ("cleo", 3, None)))
    lists.drain()
    world.enter("in", people(("dora", 4, None)))
    lists.drain()
    while world.ledger.keeping.index_more():
        pass
    anna = {b"anna", digest(1), digest(11), digest(1)[:16], *value_marks("email_sha256", [digest(1)])}
    assert {"chunk", "identifiers", "earlier"} <= tables_with(world, anna)
    assert {"key_filter", "people_page"} <= tables_with_rows(world)
    world.pass_time(31 * 86_400)
    world.enter("out", people(("dora", 41, None)))
    lists.drain()
    assert world.ledger.keeping.prune(before_us=world.now_us) == 5
    assert tables_with(world, anna) == set()
    assert tables_with(world, {b"dora", digest(41)}) == {"chunk", "identifiers"}
    assert tables_with(world, {digest(4)}) == {"earlier"}  # taken out by a removal that is still on record
    world.pass_time(1)
    assert world.ledger.keeping.prune(before_us=world.now_us) == 1
    assert {"chunk", "stage", "part", "identifiers", "earlier", "key_filter", "people_page"}.isdisjoint(
        tables_with_rows(world)
    )


def tables_with(world: World, names: set[bytes]) -> set[str]:
    """The tables in which any of these names is found, in whatever column."""
    with world.engine.connect() as connection:
        return {
            table.name
            for table in metadata.sorted_tables
            for row in connection.execute(select(table))
            for value in row
            if isinstance(value, str | bytes)
            and any(name in (value.encode() if isinstance(value, str) else value) for name in names)
        }


def tables_with_rows(world: World) -> set[str]:
    """The tables that are not empty."""
    with world.engine.connect() as connection:
        return {table.name for table in metadata.sorted_tables if connection.execute(select(table)).first()}


def test_a_filter_of_people_pruned_meanwhile_is_not_kept(world: World) -> None:
    """Whoever looks back while old people are pruned keeps the filters of those who are still there."""
    world.declare(canvas("in", step("add")))
    world.enter("in", crowd([1]))
    with writing(world.engine) as connection:
        here = connection.execute(select(chunk.c.id)).scalar_one()
        found = earlier.LookedUp(filters={here + 1: b"gone", here: b"here"})
        earlier.keep(connection, found, now_us=world.now_us)
        assert connection.execute(select(key_filter.c.chunk_id)).scalars().all() == [here]
