"""Packing people into a chunk: grouped by what they lack, so that every exception is a span and not a row per user."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress, pairwise, repeat
from typing import TypeVar

from criteo_provider.core.columns import Column
from criteo_provider.core.model import PackedForm, Reason, SealedPeople, Shortfall, Span, Status
from criteo_provider.core.standing import Stand

FormKey = tuple[str, int | None]
# Which forms a person has, and why which fields are lacking.
Kind = tuple[tuple[bool, ...], tuple[Reason | None, ...]]
T = TypeVar("T")

# Which reason is told when a user lacks several chosen fields: the one a data team can act on first.
_WORST_FIRST = (Reason.MALFORMED, Reason.BLANK, Reason.MISSING)


@dataclass(frozen=True, slots=True)
class Unnamed:
    """The people of one chunk but for their keys; ``others`` are the places of those who lack something.

    In the chunk, whoever lacks nothing stands first, in the order they came, and behind them stand ``others``.
    """

    others: Sequence[int]
    forms: tuple[PackedForm, ...]
    shortfalls: tuple[Shortfall, ...]

    def named(self, user_keys: Sequence[str]) -> SealedPeople:
        """Give these people their keys, which come in the order the people came in."""
        return SealedPeople(tuple(_picked(user_keys, self.others)), self.forms, self.shortfalls)


def pack(
    user_keys: Sequence[str],
    values: Mapping[FormKey, Sequence[bytes | None]],
    lacking: Mapping[str, Sequence[Reason | None]],
    encode: Callable[[Sequence[bytes], str], bytes],
) -> SealedPeople:
    """Pack people into one chunk: the same people, regrouped so that those who lack the same stand together.

    ``values`` holds one column per identifier form, ``lacking`` one per field (the reason, None where usable);
    all columns are as long as ``user_keys``. ``encode(values, form)`` makes the stored bytes.
    """
    columns = {key: Column.of(column) for key, column in values.items()}
    by_row = {
        field: {row: reason for row, reason in enumerate(column) if reason is not None}
        for field, column in lacking.items()
    }
    return pack_unnamed(len(user_keys), columns, by_row, encode).named(user_keys)


def pack_unnamed(
    people: int,
    values: Mapping[FormKey, Column[bytes]],
    lacking: Mapping[str, Mapping[int, Reason]],
    encode: Callable[[Sequence[bytes], str], bytes],
) -> Unnamed:
    """Pack so many people without their keys, told of each field who lacks it; otherwise as ``pack``."""
    others, groups = _grouped([*values.values()], [*lacking.values()], people)
    forms = []
    for number, ((form, caller_id), column) in enumerate(values.items()):
        present = _spans(span for span, (has, _) in groups if has[number])
        # Where all of the others lack it, those who have it stand as they came.
        alike = len(column.holes) == len(others)
        held = column.there if alike else Column.of(_picked(column.rows(), others)).there
        if held:
            forms.append(PackedForm(form, caller_id, present, len(held), encode(held, form)))
    shortfalls = [
        Shortfall(field, span, reason)
        for number, field in enumerate(lacking)
        for span, (_, reasons) in groups
        if (reason := reasons[number]) is not None
    ]
    return Unnamed(others, tuple(forms), tuple(shortfalls))


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
    values: Sequence[Column[bytes]], lacking: Sequence[Mapping[int, Reason]], people: int
) -> tuple[list[int], list[tuple[Span, Kind]]]:
    """Tell where those stand who lack something, as they are to stand, and which spans are of which kind then.

    Most people lack nothing: what is done for each of the others is not done for them.
    """
    holes = [frozenset(column.holes) for column in values]
    places = sorted(frozenset().union(*holes, *lacking))
    has = _rows([[place not in without for place in places] for without in holes], len(places))
    whys = _rows([[*map(column.get, places)] for column in lacking], len(places))
    members: dict[Kind, list[int]] = defaultdict(list)
    for place, kind in zip(places, zip(has, whys, strict=True), strict=True):
        members[kind].append(place)
    whole = people - len(places)
    groups: list[tuple[Span, Kind]] = []
    if whole:
        groups.append((Span(0, whole), ((True,) * len(values), (None,) * len(lacking))))
    for kind, alike in members.items():
        groups.append((Span(whole, whole := whole + len(alike)), kind))
    return [place for alike in members.values() for place in alike], groups


def _rows(columns: Sequence[Sequence[T]], rows: int) -> Iterable[tuple[T, ...]]:
    return zip(*columns, strict=True) if columns else repeat((), rows)


def _picked(column: Sequence[T], others: Sequence[int]) -> Sequence[T]:
    """Put a column into the order of the chunk."""
    if not others:
        return column
    stays = bytearray(b"\1") * len(column)
    for place in others:
        stays[place] = 0
    return [*compress(column, stays), *map(column.__getitem__, others)]


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
