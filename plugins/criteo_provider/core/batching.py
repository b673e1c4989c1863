"""Packing people into a chunk: grouped by what they lack, so that every exception is a span and not a row per user."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

from criteo_provider.core.model import PackedForm, Reason, SealedPeople, Shortfall, Span, Status
from criteo_provider.core.standing import Stand

Values = Sequence[bytes | None]
FormKey = tuple[str, int | None]
T = TypeVar("T")

# Which reason is told when a user lacks several chosen fields: the one a data team can act on first.
_WORST_FIRST = (Reason.MALFORMED, Reason.BLANK, Reason.MISSING)


def pack(
    user_keys: Sequence[str],
    values: Mapping[FormKey, Values],
    lacking: Mapping[str, Sequence[Reason | None]],
    encode: Callable[[Sequence[bytes], str], bytes],
) -> SealedPeople:
    """Pack people into one chunk: the same people, regrouped so that those who lack the same stand together.

    ``values`` holds one column per identifier form, ``lacking`` one per field (the reason, None where usable);
    all columns are as long as ``user_keys``. ``encode(values, form)`` makes the stored bytes.
    """
    order, groups = _grouped([*values.values()], [*lacking.values()], len(user_keys))
    forms = []
    for number, ((form, caller_id), column) in enumerate(values.items()):
        present = _spans(span for span, (has, _) in groups if has[number])
        held = [value for value in _picked(column, order) if value is not None]
        if held:
            forms.append(PackedForm(form, caller_id, present, len(held), encode(held, form)))
    shortfalls = [
        Shortfall(field, span, reason)
        for number, field in enumerate(lacking)
        for span, (_, reasons) in groups
        if (reason := reasons[number]) is not None
    ]
    return SealedPeople(tuple(_picked(user_keys, order)), tuple(forms), tuple(shortfalls))


def unsendable(people: SealedPeople, forms: Collection[str], fields: Collection[str]) -> tuple[Stand, ...]:
    """Return who of a chunk has no usable identifier among the chosen fields, as final Not Synced stands."""
    sendable = sorted(
        (span.first, span.last) for packed in people.forms if packed.form in forms for span in packed.present
    )
    stands = []
    for first, last in _gaps(sendable, len(people)):
        cuts = sorted(
            {first, last}
            | {
                edge
                for short in people.shortfalls
                for edge in (short.span.first, short.span.last)
                if first < edge < last
            }
        )
        for begin, end in pairwise(cuts):
            reason = _told_reason(people.shortfalls, fields, begin)
            stands.append(Stand(Span(begin, end), Status.NOT_SYNCED, reason))
    return tuple(stands)


def _grouped(
    values: Sequence[Values], lacking: Sequence[Sequence[Reason | None]], people: int
) -> tuple[list[int] | None, list[tuple[Span, tuple[tuple[bool, ...], tuple[Reason | None, ...]]]]]:
    if not any(None in column for column in values) and not any(map(any, lacking)):
        everybody = (Span(0, people), ((True,) * len(values), (None,) * len(lacking)))
        return None, [everybody] if people else []
    has_columns = [[value is not None for value in column] for column in values]
    members: dict[tuple[bool | Reason | None, ...], list[int]] = defaultdict(list)
    for person, signature in enumerate(zip(*has_columns, *lacking, strict=True)):
        members[signature].append(person)
    groups, first = [], 0
    for signature, alike in members.items():
        span = Span(first, first := first + len(alike))
        groups.append((span, (signature[: len(values)], signature[len(values) :])))
    order = [person for alike in members.values() for person in alike]
    return (order if len(groups) > 1 else None), groups  # type: ignore[return-value]


def _picked(column: Sequence[T], order: list[int] | None) -> Sequence[T]:
    return column if order is None else list(map(column.__getitem__, order))


def _spans(pieces: Iterable[Span]) -> tuple[Span, ...]:
    joined: list[Span] = []
    for span in pieces:
        if joined and joined[-1].last == span.first:
            joined[-1] = Span(joined[-1].first, span.last)
        else:
            joined.append(span)
    return tuple(joined)


def _gaps(covered: Iterable[tuple[int, int]], people: int) -> Iterable[tuple[int, int]]:
    at = 0
    for first, last in covered:
        if first > at:
            yield at, first
        at = max(at, last)
    if at < people:
        yield at, people


def _told_reason(shortfalls: Sequence[Shortfall], fields: Collection[str], ordinal: int) -> Reason:
    reasons = {
        short.reason for short in shortfalls if short.field in fields and short.span.first <= ordinal < short.span.last
    }
    return next((reason for reason in _WORST_FIRST if reason in reasons), Reason.MISSING)
