"""Chunks are as large as fills a request: neither who lacks an address nor who is not eligible leaves it emptier."""

from __future__ import annotations

import math
import random
from collections.abc import Generator, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from criteo_provider.core.model import MAX_IDENTIFIERS, PackedForm, SealedPeople
from criteo_provider.core.ports import Page
from criteo_provider.flow import enter as enters
from criteo_provider.flow.enter import Entered
from criteo_provider.flow.filling import ENOUGH_TO_TELL, MOST_PEOPLE, Filling
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


def wanted(*chunks: SealedPeople, sent: tuple[str, ...] = ("email", "madid")) -> int:
    """How many people the next chunk is to hold, after these."""
    filling = Filling(sent)
    for chunk in chunks:
        filling.sealed(chunk)
    return filling.people


@given(st.integers(0, 60_000), st.integers(0, 60_000), st.integers(0, 60_000))
def test_a_chunk_is_never_smaller_than_a_request_nor_much_larger(people: int, email: int, maid: int) -> None:
    """Whatever came before: 50,000 people, or up to a tenth more where not everybody has what most have."""
    chunk = sealed(people, email_sha256=min(email, people), madid=min(maid, people))
    assert MAX_IDENTIFIERS <= wanted(chunk) <= MOST_PEOPLE


def test_what_most_people_have_tells_how_many_it_takes() -> None:
    """The identifier most have counts, of those that are sent; few people tell nothing, whole chunks nearly all."""
    assert wanted(sealed(10, email_sha256=1)) == MAX_IDENTIFIERS
    both = sealed(50_000, email_sha256=47_000, madid=48_000)
    assert 0.99 * MAX_IDENTIFIERS < wanted(both) * 0.96 < MAX_IDENTIFIERS
    assert 0.99 * MAX_IDENTIFIERS < wanted(both, sent=("email",)) * 0.94 < MAX_IDENTIFIERS
    assert wanted(sealed(50_000)) == MOST_PEOPLE
    assert wanted(both, sealed(50_000, email_sha256=50_000)) == MAX_IDENTIFIERS


def test_forms_that_share_a_request_fill_it_together() -> None:
    """Addresses of some and hashes of others are one kind of identifier; whoever has both fills a request with each."""
    assert wanted(sealed(50_000, email_sha256=30_000, email_md5=20_000)) == MAX_IDENTIFIERS
    assert wanted(sealed(50_000, email_sha256=48_000, email_md5=48_000)) * 0.96 > 0.99 * MAX_IDENTIFIERS


@pytest.mark.parametrize("seen", [1_000, 5_000, 50_000])
def test_hardly_any_chunk_is_too_large_however_few_were_seen(seen: int) -> None:
    """What few people have says less about others: of 200 chunks after small and large ones none is to be cut."""
    dice, share = random.Random(seen), 0.96
    for _ in range(200):
        before = sum(dice.random() < share for _ in range(seen))
        spread = math.sqrt(MAX_IDENTIFIERS * share * (1 - share))
        assert dice.gauss(wanted(sealed(seen, email_sha256=before)) * share, spread) <= MAX_IDENTIFIERS


@given(st.integers(1, MOST_PEOPLE), st.integers(0, 100_000), st.integers(0, 100_000))
def test_a_page_is_asked_for_that_is_likely_to_fit(lacking: int, people: int, more_rows: int) -> None:
    """As many rows as bring who is lacking, a little fewer for chance; few rows alone say nothing about others."""
    filling, rows = Filling(["email"]), people + more_rows
    filling.read(rows, eligible=people)
    share = people / rows if rows >= ENOUGH_TO_TELL else 1.0
    asked = filling.rows_for(lacking)
    assert 1 <= asked <= MOST_PEOPLE
    assert asked == 1 or asked * share <= lacking
    assert asked == MOST_PEOPLE or (asked + 1) * share >= lacking - 4 * math.sqrt(lacking * (1 - share))
    if rows == 0 or rows >= ENOUGH_TO_TELL:
        filling.read(10, eligible=0)
        assert filling.rows_for(lacking) == asked
        filling.read(ENOUGH_TO_TELL - 10, eligible=0)
        assert filling.rows_for(lacking) == MOST_PEOPLE


def test_a_stretch_of_nobody_does_not_make_pages_small(world: World) -> None:
    """Where many were eligible and then none are, the rest is read in large pages, not in crumbs of what is lacking."""
    people: list[tuple[object, ...]] = [(f"u{n}", f"p{n}@example.com", None, n % 2 == 0) for n in range(99_000)]
    nobody: list[tuple[object, ...]] = [(f"n{n}", f"n{n}@example.com", None, False) for n in range(300_000)]
    source = Rows(people + nobody, page=MAX_IDENTIFIERS * 2)
    pages, sizes = source.pages, []

    def watched(*words: Any, **named: Any) -> Generator[Page]:
        for page in pages(*words, **named):
            sizes.append(page.rows)
            yield page

    source.pages = watched  # type: ignore[method-assign]
    assert reader(world, source).tick(GOING_ON).people == 49_500
    assert len(sizes) < 15
