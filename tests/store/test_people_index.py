"""The index of people finds every chunk a name is in, indexed or not, on both engines."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select, text

from criteo_provider.core.batching import pack
from criteo_provider.core.consent import USER_KEY
from criteo_provider.core.identifiers import Form, encode
from criteo_provider.core.model import SealedPeople
from criteo_provider.store import people_index
from criteo_provider.store.engine import reading, writing
from criteo_provider.store.people_index import Name, chunks_with, keep_segment, make_segment
from criteo_provider.store.schema import chunk
from criteo_provider.store.schema_growth import people_segment
from tests.world import World, canvas, digest, step

KINDS = (USER_KEY, Form.EMAIL_SHA256.value, Form.MADID.value, Form.GUM.value)


def someone(number: int) -> dict[str, Name]:
    """The names of the made-up person ``number``; one user key holds signs that JSON and SQL might stumble over."""
    key = "quote\"\\ä%_'" if number == 3 else f"user-{number}"
    device, word = digest(number)[:16], b"".join([b"word", bytes([number % 256, 255])])
    return dict(zip(KINDS, (key, digest(number), device, word), strict=True))


def people(numbers: list[int]) -> SealedPeople:
    """These people as a chunk."""
    columns = {(kind, 7 if kind == "gum" else None): [someone(n)[kind] for n in numbers] for kind in KINDS[1:]}
    return pack(
        [str(someone(number)[USER_KEY]) for number in numbers],
        columns,  # type: ignore[arg-type]
        {},
        lambda held, form: encode(held, Form(form)),
    )


def index(world: World) -> bool:
    """Do as a drain does when nobody is left to send."""
    return world.ledger.keeping.index_more()


@pytest.fixture
def world(ledger_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A ledger whose segments are small, and whose transactions settle at once."""
    monkeypatch.setattr(people_index, "SEGMENT_PEOPLE", 6)
    monkeypatch.setattr(people_index, "_SETTLED_US", -(10**16))
    world = World(ledger_url)
    world.declare(canvas("vip", step("add", fields=("email", "madid", "gum"))))
    yield world
    world.close()


@pytest.mark.parametrize("one_page_people", [0, 1_000])
@pytest.mark.parametrize("few", [0, 1_000])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=12, deadline=None)
@given(
    st.lists(st.tuples(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.booleans()), min_size=1, max_size=7),
)
def test_every_chunk_of_a_name_is_found(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    one_page_people: int,
    few: int,
    chunks: list[tuple[list[int], bool]],
) -> None:
    """Whatever is indexed and whatever is not yet, each name finds its chunks, and nobody's name another's."""
    monkeypatch.setattr(people_index, "_ONE_PAGE_PEOPLE", one_page_people)
    monkeypatch.setattr(people_index, "_FEW", few)
    for numbers, then_index in chunks:
        world.enter("vip", people(numbers))
        if then_index:
            while index(world):
                pass
    with reading(world.engine) as connection:
        expected: dict[str, dict[Name, set[int]]] = {kind: defaultdict(set) for kind in KINDS}
        for chunk_id, keys in connection.execute(select(chunk.c.id, chunk.c.user_keys)):
            for number in range(10):
                if someone(number)[USER_KEY] in json.loads(keys):
                    for kind in KINDS:
                        expected[kind][someone(number)[kind]].add(chunk_id)
        for kind in KINDS:
            names = [someone(number)[kind] for number in range(10)]
            assert chunks_with(connection, kind, names) == {name: expected[kind][name] for name in names}


def test_a_chunk_is_indexed_once_however_many_try(world: World) -> None:
    """Of two who have sorted the same chunks one keeps them."""
    for number in range(4):
        world.enter("vip", people([number, number + 1]))
    with reading(world.engine) as connection:
        first, second = make_segment(connection), make_segment(connection)
    assert first is not None
    assert second is not None
    with writing(world.engine) as connection:
        assert keep_segment(connection, first)
    with writing(world.engine) as connection:
        assert not keep_segment(connection, second)


def test_small_ledgers_have_no_segment(world: World) -> None:
    """Until it is worth a segment, a ledger is searched; nothing is written."""
    world.enter("vip", people([1, 2]))
    assert not index(world)
    with reading(world.engine) as connection:
        assert connection.execute(select(func.count()).select_from(people_segment)).scalar() == 0
        assert chunks_with(connection, USER_KEY, ["user-1", "user-9"]) == {"user-1": {1}, "user-9": set()}


def test_a_transaction_that_is_still_open_is_not_passed_by(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a chunk with a lower id may still be committed, nothing behind it is indexed."""
    monkeypatch.setattr(people_index, "SEGMENT_PEOPLE", 2)
    monkeypatch.setattr(people_index, "_SETTLED_US", 0)
    world = World(postgres_url)
    world.declare(canvas("vip", step("add", fields=("email", "madid", "gum"))))
    with world.engine.connect() as late:
        late.execute(text("SELECT pg_current_xact_id()"))
        world.now_us = world_now_us(world)
        for number in range(3):
            world.enter("vip", people([number]))
        assert not index(world)
        late.rollback()
    world.now_us = world_now_us(world)
    with reading(world.engine) as connection:
        assert make_segment(connection) is not None
    world.close()


def world_now_us(world: World) -> int:
    """The database's own clock."""
    with world.engine.connect() as connection:
        return int(connection.execute(text("SELECT extract(epoch FROM clock_timestamp()) * 1000000")).scalar_one())
