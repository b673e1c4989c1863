"""Arithmetic of people: sets of ordinals as ascending, disjoint spans."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from criteo_provider.core.model import Span

Spans = tuple[Span, ...]


def size(spans: Iterable[Span]) -> int:
    """Count the people of a set of spans."""
    return sum(len(span) for span in spans)


def from_ordinals(ordinals: Iterable[int]) -> Spans:
    """Return the spans that hold exactly these ordinals."""
    joined: list[Span] = []
    for ordinal in sorted(set(ordinals)):
        if joined and joined[-1].last == ordinal:
            joined[-1] = Span(joined[-1].first, ordinal + 1)
        else:
            joined.append(Span(ordinal, ordinal + 1))
    return tuple(joined)


def intersect(one: Sequence[Span], other: Sequence[Span]) -> Spans:
    """Return who is in both sets."""
    both: list[Span] = []
    left, right = 0, 0
    while left < len(one) and right < len(other):
        first = max(one[left].first, other[right].first)
        last = min(one[left].last, other[right].last)
        if first < last:
            both.append(Span(first, last))
        if one[left].last < other[right].last:
            left += 1
        else:
            right += 1
    return tuple(both)


def subtract(spans: Sequence[Span], without: Sequence[Span]) -> Spans:
    """Return who is in ``spans`` and not in ``without``."""
    left: list[Span] = []
    at = 0
    for span in spans:
        first = span.first
        while at < len(without) and without[at].last <= first:
            at += 1
        number = at
        while number < len(without) and without[number].first < span.last:
            if without[number].first > first:
                left.append(Span(first, without[number].first))
            first = max(first, without[number].last)
            number += 1
        if first < span.last:
            left.append(Span(first, span.last))
    return tuple(left)


def halves(spans: Sequence[Span]) -> tuple[Spans, Spans]:
    """Split a set of at least two people into two of (almost) equal size, in order."""
    return cut(spans, size(spans) // 2)


def cut(spans: Sequence[Span], people: int) -> tuple[Spans, Spans]:
    """Return the first so many people of a set, and the others, in order."""
    room = people
    front: list[Span] = []
    back: list[Span] = []
    for span in spans:
        cut = min(span.last, span.first + max(room, 0))
        if cut > span.first:
            front.append(Span(span.first, cut))
        if cut < span.last:
            back.append(Span(cut, span.last))
        room -= cut - span.first
    return tuple(front), tuple(back)


def rank(present: Sequence[Span], ordinal: int) -> int:
    """Return how many of ``present`` come before ``ordinal``: the index into packed values."""
    return sum(min(span.last, ordinal) - span.first for span in present if span.first < ordinal)


def slots(present: Sequence[Span], spans: Sequence[Span]) -> list[tuple[int, int]]:
    """Return the stretches [first, last) of packed values that belong to ``spans``, joined where they touch."""
    stretches: list[tuple[int, int]] = []
    for span in intersect(present, spans):
        first = rank(present, span.first)
        if stretches and stretches[-1][1] == first:
            stretches[-1] = (stretches[-1][0], first + len(span))
        else:
            stretches.append((first, first + len(span)))
    return stretches


def ordinal_at(present: Sequence[Span], index: int) -> int:
    """Return whose value stands at ``index`` of the packed values."""
    for span in present:
        if index < len(span):
            return span.first + index
        index -= len(span)
    raise IndexError(index)
