"""Spans against Python sets: the same people, counted and cut the same way."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criteo_provider.core import spans
from criteo_provider.core.model import Span

people = st.sets(st.integers(0, 60))


def members(some: spans.Spans) -> list[int]:
    """Everybody in a set of spans, in its own order."""
    return [ordinal for span in some for ordinal in range(span.first, span.last)]


def assert_well_formed(some: spans.Spans) -> None:
    """Spans ascend, hold somebody each, and do not overlap."""
    assert all(span.first < span.last for span in some)
    assert all(one.last <= other.first for one, other in pairwise(some))


@given(people)
def test_ordinals_come_back_as_the_fewest_spans(some: set[int]) -> None:
    """from_ordinals holds exactly these people, ascending, and no two spans touch."""
    made = spans.from_ordinals([*some, *some])
    assert members(made) == sorted(some)
    assert spans.size(made) == len(some)
    assert all(one.last < other.first for one, other in pairwise(made))


@given(people, people)
def test_intersect_and_subtract_are_those_of_sets(one: set[int], other: set[int]) -> None:
    """Who is in both, and who is in one only, is what Python's sets say."""
    left, right = spans.from_ordinals(one), spans.from_ordinals(other)
    both, rest = spans.intersect(left, right), spans.subtract(left, right)
    assert members(both) == sorted(one & other)
    assert members(rest) == sorted(one - other)
    assert_well_formed(both)
    assert_well_formed(rest)


@given(people.filter(lambda some: len(some) >= 2))
def test_halves_are_two_and_nobody_is_lost(some: set[int]) -> None:
    """Halves differ by one person at most, keep the order, and together are the whole."""
    front, back = spans.halves(spans.from_ordinals(some))
    assert members(front) + members(back) == sorted(some)
    assert 0 <= spans.size(back) - spans.size(front) <= 1
    assert spans.size(front) >= 1
    assert_well_formed(front)
    assert_well_formed(back)


@given(people, st.integers(0, 200))
def test_a_cut_has_the_first_so_many_and_then_the_others(some: set[int], wanted: int) -> None:
    """Nobody is lost or moved; who is not there cannot be cut off."""
    front, back = spans.cut(spans.from_ordinals(some), wanted)
    assert members(front) == sorted(some)[:wanted]
    assert members(back) == sorted(some)[wanted:]
    assert_well_formed(front)
    assert_well_formed(back)


@given(people, people)
def test_slots_pick_exactly_the_values_of_the_people_asked_for(present: set[int], asked: set[int]) -> None:
    """Slots are the indexes, in packed values, of everybody asked for who has a value, each once and in order."""
    packed = sorted(present)
    stretches = spans.slots(spans.from_ordinals(present), spans.from_ordinals(asked))
    indexes = [index for first, last in stretches for index in range(first, last)]
    assert [packed[index] for index in indexes] == sorted(present & asked)
    assert all(one[1] < other[0] for one, other in pairwise(stretches))


@given(people.filter(bool))
def test_rank_and_ordinal_at_undo_each_other(present: set[int]) -> None:
    """The rank of the person at an index is that index; behind the last value there is nobody."""
    held = spans.from_ordinals(present)
    for index, ordinal in enumerate(sorted(present)):
        assert spans.rank(held, ordinal) == index
        assert spans.ordinal_at(held, index) == ordinal
    with pytest.raises(IndexError):
        spans.ordinal_at(held, len(present))


def test_a_span_knows_its_length() -> None:
    """The last ordinal of a span is not in it."""
    assert len(Span(3, 7)) == 4
