"""Chunks are as large as fills a request: neither who lacks an address nor who is not eligible leaves it emptier."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from criteo_provider.core.identifiers import Form
from criteo_provider.core.model import MAX_IDENTIFIERS, PackedForm, SealedPeople
from criteo_provider.flow import enter as enters
from criteo_provider.flow.enter import Entered
from criteo_provider.flow.filling import MOST_PEOPLE, Filling, rows_for
from criteo_provider.store.schema import part
from tests.flow.test_enter import GOING_ON, Rows, reader
from tests.world import World, canvas, step

PEOPLE = 400_000
DEVICE = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"


@pytest.fixture
def world(ledger_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A ledger with one canvas that sends addresses, and a machine that is never slow."""
    monkeypatch.setattr(enters, "SEAL_WITHIN_S", 3_600.0)
    world = World(ledger_url)
    world.declare(canvas("vip", step("add")))
    yield world
    world.close()


def entered(world: World, *, lacking: float, eligible: float = 1.0, page: int = MAX_IDENTIFIERS * 2) -> Entered:
    """Let many people in, of whom some have no address and some said no; a page holds what is asked for, or less."""
    dice = random.Random(7)
    rows: list[tuple[object, ...]] = [
        (f"u{n}", None if dice.random() < lacking else f"p{n}@example.com", None, dice.random() < eligible)
        for n in range(PEOPLE)
    ]
    return reader(world, Rows(rows, page=page)).tick(GOING_ON)


@pytest.mark.parametrize("page", [10_000, MAX_IDENTIFIERS * 2])
def test_requests_are_full_though_some_have_no_address(world: World, page: int) -> None:
    """From the third chunk on one fills a request to more than 99 %, and none is too large for it."""
    assert entered(world, lacking=0.04, page=page).people == PEOPLE
    with world.engine.connect() as connection:
        sizes = list(connection.execute(select(part.c.identifiers).order_by(part.c.id)).scalars())
    assert 0.94 * MAX_IDENTIFIERS < sizes[0] < 0.97 * MAX_IDENTIFIERS
    assert 0.99 * MAX_IDENTIFIERS < min(sizes[2:-1]) <= max(sizes) <= MAX_IDENTIFIERS
    assert sum(one.identifiers for one in iter(world.claim, None)) == sum(sizes) == world.numbers("add")[3]


@pytest.mark.parametrize("page", [10_000, MAX_IDENTIFIERS * 2])
def test_a_rule_that_lets_few_through_makes_no_smaller_chunks(world: World, page: int) -> None:
    """A chunk goes on over as many pages as it takes."""
    done = entered(world, lacking=0.0, eligible=0.3, page=page)
    assert 0.29 * PEOPLE < done.people < 0.31 * PEOPLE
    sizes = [one.identifiers for one in iter(world.claim, None)]
    assert min(sizes[:-1]) > 0.98 * MAX_IDENTIFIERS
    assert sum(sizes) == done.people


def sealed(people: int, **having: int) -> SealedPeople:
    """A chunk of so many people of whom so many have an identifier of each form."""
    forms = tuple(PackedForm(form, None, (), count, b"") for form, count in having.items())
    return SealedPeople(tuple(map(str, range(people))), forms, ())


@given(st.integers(0, 60_000), st.integers(0, 60_000), st.integers(0, 60_000))
def test_a_chunk_is_never_smaller_than_a_request_nor_much_larger(people: int, email: int, maid: int) -> None:
    """Whatever came before: 50,000 people, or up to a tenth more where not everybody has what most have."""
    filling = Filling()
    filling.learn(sealed(people, email_sha256=min(email, people), madid=min(maid, people)))
    assert MAX_IDENTIFIERS <= filling.people <= MOST_PEOPLE


def test_what_most_have_tells_how_many_people_it_takes() -> None:
    """The fullest form counts, few people tell nothing, and where everybody has an identifier nothing is to fill up."""
    filling = Filling()
    filling.learn(sealed(10, email_sha256=1))
    assert filling.people == MAX_IDENTIFIERS
    filling.learn(sealed(50_000, email_sha256=30_000, **{Form.MADID.value: 48_000}))
    assert MAX_IDENTIFIERS < filling.people < MAX_IDENTIFIERS / 0.96
    assert filling.people * 0.96 > 0.99 * MAX_IDENTIFIERS
    filling.learn(sealed(50_000))
    assert filling.people == MOST_PEOPLE
    filling.learn(sealed(50_000, email_sha256=50_000))
    assert filling.people == MAX_IDENTIFIERS


@given(st.integers(1, MOST_PEOPLE), st.integers(0, 100_000), st.integers(0, 100_000))
def test_a_page_is_asked_for_that_is_likely_to_fit(lacking: int, people: int, more_rows: int) -> None:
    """One row at least, and of such rows as before no more than bring who is lacking."""
    of_rows = people + more_rows
    rows = rows_for(lacking, people=people, of_rows=of_rows)
    assert 1 <= rows <= MOST_PEOPLE
    assert rows == 1 or rows * people <= lacking * max(of_rows, 1) or not people
