"""What happened to one user, metric rows per minute, and old people as counts: nothing is lost that was promised."""

from __future__ import annotations

from collections.abc import Iterator
from zlib import crc32

import pytest
from sqlalchemy import func, select, text

from criteo_provider.core.model import Operation, Role
from criteo_provider.core.outcome import Accepted, Unavailable
from criteo_provider.store import earlier, people_index
from criteo_provider.store.engine import reading, writing
from criteo_provider.store.keeping import DAY_US, ROLLED_UP
from criteo_provider.store.person import PersonStep, names_of
from criteo_provider.store.schema import chunk, metadata, metric, part, request, stage
from criteo_provider.store.schema_growth import people_page, people_segment
from tests.world import World, canvas, crowd, digest, step


@pytest.fixture
def world(ledger_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A ledger with a canvas of two steps, the second a month later."""
    monkeypatch.setattr(people_index, "SEGMENT_PEOPLE", 6)
    monkeypatch.setattr(people_index, "_SETTLED_US", -(10**16))
    world = World(ledger_url)
    leave = step("leave", Operation.REMOVE, position=1, delay_s=30 * 86_400)
    world.declare(canvas("vip", step("add", is_last=False), leave))
    yield world
    world.close()


def story(world: World, named: str) -> list[PersonStep]:
    """What the ledger tells of somebody."""
    return world.ledger.keeping.person(named, now_us=world.now_us)


def test_the_story_of_a_user(world: World) -> None:
    """By key, address, digest in any case: each entry with its steps, stands, uploads and Criteo's answer."""
    world.enter("vip", crowd([1, 2, 3], lacking=[3]))
    claimed = world.claim()
    assert claimed is not None
    world.settle(claimed, Unavailable("http-503", "Criteo's servers have trouble.", maybe_applied=False))
    added, left = story(world, "user-2")
    assert (added.canvas, added.step, added.status, added.audience) == ("vip", "add", "Pending", "Shoppers")
    (upload,) = added.uploads
    assert (upload.form, upload.attempts, upload.reason) == ("email_sha256", 1, "Criteo's servers have trouble.")
    assert upload.next_attempt_us is not None
    assert upload.next_attempt_us > world.now_us
    assert upload.deadline_us == world.now_us + 13 * 3_600_000_000
    assert (left.step, left.status) == ("leave", "On the way")
    world.pass_time(60)
    claimed = world.claim()
    assert claimed is not None
    world.settle(claimed, Accepted(2, 0))
    for named in ("user-2", " PERSON2@example.com", crowd([2]).forms[0].blob.hex().upper()):
        assert story(world, named)[0] == story(world, "user-2")[0], named
    added = story(world, "user-2")[0]
    assert (added.status, added.reason) == ("Synced", None)
    assert (added.uploads[0].code, added.uploads[0].request_id) == ("accepted", claimed.request_id)
    missing = story(world, "user-3")[0]
    assert (missing.status, missing.reason, missing.uploads) == ("Not Synced", "no usable identifier: missing", ())
    assert story(world, "nobody@example.com") == []


def test_each_entry_is_told_newest_first(world: World) -> None:
    """Entering twice is two entries; past the deadline reads as Errored before a sweep has seen it."""
    world.enter("vip", crowd([1, 1]))
    world.pass_time(10)
    world.enter("vip", crowd([1]))
    added = [one for one in story(world, "user-1") if one.step == "add"]
    assert [one.entered_us for one in added] == [world.now_us, world.now_us - 10_000_000, world.now_us - 10_000_000]
    claimed = world.claim()
    assert claimed is not None
    world.settle(claimed, Unavailable("http-503", "Trouble.", maybe_applied=False))
    world.pass_time(14 * 3600)
    assert {one.status for one in story(world, "user-1") if one.step == "add"} == {"Errored"}


def test_an_address_is_looked_for_in_every_form() -> None:
    """One address is four names: the hashed key, and three digests; what nobody is called is no name."""
    assert set(names_of("Somebody@example.com")) == {
        "user_key", "email_sha256", "email_md5", "email_sha256_md5", "gum", "identity_link",
    }  # fmt: skip
    assert names_of("  ") == {}


def test_metric_rows_a_day_old_become_one_a_minute(world: World) -> None:
    """Rolling up changes no sum, no number and no minute; today's rows stay single; a second time does nothing."""
    for _ in range(3):
        world.enter("vip", crowd([1, 2]))
        claimed = world.claim()
        assert claimed is not None
        world.settle(claimed)
        world.pass_time(40)
    sums = select(metric.c.metric, func.sum(metric.c.value)).group_by(metric.c.metric)
    with world.engine.connect() as connection:
        before = {name: value for name, value in connection.execute(sums).all()}
    numbers = world.numbers("add")
    world.now_us += DAY_US + 60_000_000
    world.enter("vip", crowd([5]))
    while world.ledger.keeping.roll_up(now_us=world.now_us):
        pass
    with world.engine.connect() as connection:
        rolled = connection.execute(select(metric).where(metric.c.cause == ROLLED_UP)).all()
        single = connection.execute(select(metric.c.at_us).where(metric.c.cause != ROLLED_UP)).scalars().all()
    assert set(single) == {world.now_us}
    assert all(row.at_us % 60_000_000 == 0 for row in rolled)
    assert len(rolled) == len({(row.at_us, row.step_id, row.metric) for row in rolled})
    told: dict[str, int] = {}
    for row in rolled:
        told[row.metric] = told.get(row.metric, 0) + row.value
    assert told == {name: value for name, value in before.items() if value}
    assert world.numbers("add") == (numbers[0] + 1, numbers[1], numbers[2], numbers[3] + 1, numbers[4])


def test_old_people_are_kept_as_counts(world: World) -> None:
    """Pruned people are gone by name and still counted; whoever is not finished stays; the laws hold throughout."""
    for number in range(4):
        world.enter("vip", crowd([2 * number, 2 * number + 1], lacking=[1]))
    while (claimed := world.claim()) is not None:
        world.settle(claimed)
    while world.ledger.keeping.index_more():
        pass
    keeping = world.ledger.keeping
    assert keeping.prune(before_us=world.now_us + 1) == 0  # the second step is still to come
    world.pass_time(31 * 86_400)
    world.ledger.enter_due_steps(now_us=world.now_us)
    while (claimed := world.claim()) is not None:
        world.settle(claimed)
    world.enter("vip", crowd([9]))
    added, left = world.numbers("add"), world.numbers("leave")
    reasons = [one.not_synced_reasons for one in world.ledger.numbers(now_us=world.now_us)]
    assert keeping.prune(before_us=world.now_us) == 8
    assert keeping.prune(before_us=world.now_us) == 0
    assert keeping.prune_requests(before_us=world.now_us + 1) == 2
    assert (world.numbers("add"), world.numbers("leave")) == (added, left)
    assert [one.not_synced_reasons for one in world.ledger.numbers(now_us=world.now_us)] == reasons
    assert story(world, "user-2") == []
    assert len(story(world, "user-9")) == 2
    with world.engine.connect() as connection:
        for table, left_over in ((chunk, 1), (stage, 2), (part, 2), (request, 0)):
            assert connection.execute(select(func.count()).select_from(table)).scalar() == left_over, table.name
    claimed = world.claim(Role.FRESH)
    assert claimed is not None
    world.settle(claimed)
    assert story(world, "user-9")[0].status == "Synced"


def traces(world: World, number: int) -> set[str]:
    """The columns of the ledger that still hold a name of a made-up person, or a fingerprint of one."""
    key = f"user-{number}".encode()
    shortened = crc32(key), int.from_bytes(digest(number)[:4])
    names = [b'"%b"' % key, digest(number), digest(number).hex().encode()]
    prints = [short.to_bytes(4, "little") for short in shortened]
    found = set()
    with world.engine.connect() as connection:
        for table in metadata.sorted_tables:
            for row in connection.execute(select(table)).mappings():
                for column, value in row.items():
                    raw = value.encode() if isinstance(value, str) else value
                    sought = [*names, *prints] if column in ("entries", "hashes") else names
                    if isinstance(raw, bytes) and any(one in raw for one in sought):
                        found.add(f"{table.name}.{column}")
    return found


@pytest.mark.parametrize("pages", ["one", "many"])
def test_of_pruned_people_not_even_a_fingerprint_stays(
    world: World, monkeypatch: pytest.MonkeyPatch, pages: str
) -> None:
    """Keys, identifiers, earlier identifiers, filters and index pages go with their people; others are found still."""
    monkeypatch.setattr(people_index, "_ONE_PAGE_PEOPLE", 0 if pages == "many" else 1_000)
    monkeypatch.setattr(earlier, "SMALL", 0)
    monkeypatch.setattr(earlier, "FEW", 0)
    for number in range(4):
        world.enter("vip", crowd([2 * number, 2 * number + 1]))
    while (claimed := world.claim()) is not None:
        world.settle(claimed)
    world.pass_time(31 * 86_400)
    world.ledger.enter_due_steps(now_us=world.now_us)
    for number in (4, 5):  # in one segment with those before, and not finished
        world.enter("vip", crowd([2 * number, 2 * number + 1]))
    while (claimed := world.claim()) is not None:
        world.settle(claimed)
    while world.ledger.keeping.index_more():
        pass
    kept = {"chunk.user_keys", "identifiers.packed", "key_filter.hashes", "people_page.entries"}
    assert traces(world, 1) == kept
    while world.ledger.keeping.prune(before_us=world.now_us):
        pass
    assert [traces(world, number) for number in range(8)] == [set()] * 8
    assert "people_page.entries" in traces(world, 9)
    assert len(story(world, "user-9")) == 2


def test_people_pruned_while_they_are_indexed_are_not_indexed(world: World) -> None:
    """Whoever is slow to keep a segment leaves those out who were pruned in between."""
    for number in range(4):
        world.enter("vip", crowd([2 * number, 2 * number + 1]))
    world.pass_time(31 * 86_400)
    world.ledger.enter_due_steps(now_us=world.now_us)
    while (claimed := world.claim()) is not None:
        world.settle(claimed)
    with reading(world.engine) as connection:
        slow = people_index.make_segment(connection)
    assert slow is not None
    while world.ledger.keeping.prune(before_us=world.now_us):
        pass
    with writing(world.engine) as connection:
        people_index.keep_segment(connection, slow)
    assert [traces(world, number) for number in range(8)] == [set()] * 8


def test_a_total_that_is_wrong_breaks_a_law(ledger_url: str) -> None:
    """`db check` compares running totals and reasons with the rows they run along with."""
    world = World(ledger_url)
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd([1, 2], lacking=[2]))
    with writing(world.engine) as connection:
        connection.execute(text("UPDATE step_total SET pending = pending + 1"))
        connection.execute(text("UPDATE step_reason SET people = people + 1"))
    assert len(world.ledger.broken_laws()) == 2
    with writing(world.engine) as connection:
        connection.execute(text("UPDATE step_total SET pending = pending - 1"))
        connection.execute(text("UPDATE step_reason SET people = people - 1"))
    world.close()


def test_dropping_segments_never_forgets_how_far_they_go(world: World) -> None:
    """Old segments go with their people; the last one stays, so that nobody is indexed twice."""
    for number in range(12):
        world.enter("vip", crowd([number, number + 100]))
    world.pass_time(31 * 86_400)
    world.ledger.enter_due_steps(now_us=world.now_us)
    while (claimed := world.claim()) is not None:
        world.settle(claimed)
    while world.ledger.keeping.index_more():
        pass
    with world.engine.connect() as connection:
        assert (connection.execute(select(func.count()).select_from(people_segment)).scalar() or 0) > 1
    while world.ledger.keeping.prune(before_us=world.now_us):
        pass
    with world.engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(people_segment)).scalar() == 1
        assert connection.execute(select(func.count()).select_from(people_page)).scalar() == 0
    assert not world.ledger.keeping.index_more()
