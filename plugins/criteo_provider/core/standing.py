"""Where people stand: the fold of all parts of a stage into one status per user, over spans of people.

One user, several identifiers, one status: Synced if any was accepted; else Pending while any is open; else
Errored if any was given up; else Not Synced.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from criteo_provider.core.model import PartState, Span, Status


@dataclass(frozen=True, slots=True)
class Stand:
    """The people of ``span`` stand at ``status``, for ``reason`` where there is one."""

    span: Span
    status: Status
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class PartFate:
    """What became of the people of ``span`` as far as one identifier form goes."""

    span: Span
    state: PartState
    reason: str | None = None


def fold(people: int, part_fates: Iterable[PartFate], before: Sequence[Stand]) -> tuple[Stand, ...]:
    """Return the stands of ``people`` users from what became of their parts.

    ``part_fates`` come from all forms, cut to the people who have a value of that form, in any order. Whoever has no
    part at all keeps the stand of ``before`` (nobody can be synced without an identifier).
    """
    cuts = {0, people}
    starting: dict[int, list[PartFate]] = {}
    for fate in part_fates:
        starting.setdefault(fate.span.first, []).append(fate)
        cuts.update((fate.span.first, fate.span.last))
    for stand in before:
        cuts.update((stand.span.first, stand.span.last))
    edges = sorted(cut for cut in cuts if 0 <= cut <= people)
    standing = _Walker(before)
    alive: list[PartFate] = []
    stands: list[Stand] = []
    for first, last in pairwise(edges):
        alive = [fate for fate in alive if fate.span.last > first]
        alive.extend(starting.get(first, ()))
        status, reason = _status(alive) if alive else standing.at(first)
        if stands and (stands[-1].status, stands[-1].reason) == (status, reason):
            stands[-1] = Stand(Span(stands[-1].span.first, last), status, reason)
        else:
            stands.append(Stand(Span(first, last), status, reason))
    return tuple(stands)


def counts(stands: Iterable[Stand]) -> dict[Status, int]:
    """Count the people of each status."""
    totals = dict.fromkeys(Status, 0)
    for stand in stands:
        totals[stand.status] += len(stand.span)
    return totals


def default_and_exceptions(stands: Sequence[Stand]) -> tuple[tuple[Status, str | None], tuple[Stand, ...]]:
    """Split stands into the most common one and the rest, which is all that has to be stored."""
    weight: dict[tuple[Status, str | None], int] = {}
    for stand in stands:
        weight[(stand.status, stand.reason)] = weight.get((stand.status, stand.reason), 0) + len(stand.span)
    default = max(weight, key=lambda key: weight[key])
    return default, tuple(stand for stand in stands if (stand.status, stand.reason) != default)


def complete(people: int, default: tuple[Status, str | None], exceptions: Iterable[Stand]) -> tuple[Stand, ...]:
    """Put the default back between the exceptions; the inverse of default_and_exceptions."""
    stands: list[Stand] = []
    at = 0
    for stand in sorted(exceptions, key=lambda exception: exception.span.first):
        if stand.span.first > at:
            stands.append(Stand(Span(at, stand.span.first), *default))
        stands.append(stand)
        at = stand.span.last
    if at < people:
        stands.append(Stand(Span(at, people), *default))
    return tuple(stands)


def _status(alive: Sequence[PartFate]) -> tuple[Status, str | None]:
    states = {fate.state for fate in alive}
    if PartState.ACCEPTED in states:
        return Status.SYNCED, None
    if any(state.is_open for state in states):
        return Status.PENDING, None
    if PartState.ERRORED in states:
        return Status.ERRORED, _first_reason(alive, PartState.ERRORED)
    if PartState.REFUSED in states:
        return Status.NOT_SYNCED, _first_reason(alive, PartState.REFUSED)
    return Status.NOT_SYNCED, _first_reason(alive, PartState.CLOSED)


def _first_reason(alive: Sequence[PartFate], state: PartState) -> str | None:
    return min((fate.reason or "" for fate in alive if fate.state is state), default="") or None


class _Walker:
    """Looks stands up in ascending order of ordinals."""

    def __init__(self, stands: Sequence[Stand]) -> None:
        self._stands = sorted(stands, key=lambda stand: stand.span.first)
        self._next = 0

    def at(self, ordinal: int) -> tuple[Status, str | None]:
        while self._next < len(self._stands) and self._stands[self._next].span.last <= ordinal:
            self._next += 1
        if self._next < len(self._stands) and self._stands[self._next].span.first <= ordinal:
            stand = self._stands[self._next]
            return stand.status, stand.reason
        return Status.PENDING, None
