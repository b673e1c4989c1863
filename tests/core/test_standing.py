"""The fold of parts into one status per user, against the rule applied to one user at a time."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from criteo_provider.core.model import PartState, Span, Status
from criteo_provider.core.spans import from_ordinals
from criteo_provider.core.standing import (
    PartFate,
    Stand,
    complete,
    counts,
    default_and_exceptions,
    fold,
)

PEOPLE = 12
REASONS = {
    PartState.ERRORED: ["http-500", "Criteo was never reached."],
    PartState.REFUSED: ["refused by Criteo"],
    PartState.CLOSED: ["superseded by a later intent", "field no longer chosen"],
}

# What one form may bring: per person nothing, or a state with its reason.
fate = st.sampled_from(PartState).flatmap(
    lambda state: st.tuples(st.just(state), st.sampled_from(REASONS.get(state, [None])))
)
form = st.lists(st.none() | fate, min_size=PEOPLE, max_size=PEOPLE)
some_stand = st.sampled_from(
    [
        (Status.PENDING, None),
        (Status.NOT_SYNCED, "no usable identifier: missing"),
        (Status.NOT_SYNCED, "no usable identifier: blank"),
        (Status.SYNCED, None),
    ]
)
everybody = st.lists(some_stand, min_size=PEOPLE, max_size=PEOPLE)


def cut(column: list, make: type) -> list:
    """Write one value per person as spans."""
    pieces = []
    for value in dict.fromkeys(value for value in column if value is not None):
        for span in from_ordinals(person for person, held in enumerate(column) if held == value):
            pieces.append(make(span, *value))
    return pieces


def per_person(stands: tuple[Stand, ...]) -> list[tuple[Status, str | None]]:
    """Write stands as one value per person; everybody exactly once, in order."""
    told = [(ordinal, (stand.status, stand.reason)) for stand in stands for ordinal in range(*_ends(stand.span))]
    assert [ordinal for ordinal, _ in told] == list(range(PEOPLE))
    return [value for _, value in told]


def _ends(span: Span) -> tuple[int, int]:
    return span.first, span.last


def by_the_rule(states: set[PartState]) -> Status:
    """Synced if any was accepted; else Pending while any is open; else Errored if any was given up; else Not Synced."""
    if PartState.ACCEPTED in states:
        return Status.SYNCED
    if states & {PartState.WAITING, PartState.OPEN, PartState.CLAIMED}:
        return Status.PENDING
    return Status.ERRORED if PartState.ERRORED in states else Status.NOT_SYNCED


@given(st.lists(form, max_size=3), everybody, st.randoms())
def test_the_fold_is_the_rule_applied_to_each_person(forms: list, before: list, shuffle: object) -> None:
    """Whoever has parts stands where the rule says, with a reason that one of the parts gave; the rest stays put."""
    fates = [piece for column in forms for piece in cut(column, PartFate)]
    shuffle.shuffle(fates)  # type: ignore[attr-defined]
    told = per_person(fold(PEOPLE, fates, cut(before, Stand)))
    for person in range(PEOPLE):
        held = [column[person] for column in forms if column[person] is not None]
        if not held:
            assert told[person] == before[person]
            continue
        status, reason = told[person]
        assert status is by_the_rule({state for state, _ in held})
        if status in (Status.SYNCED, Status.PENDING):
            assert reason is None
        else:
            assert reason in {text for state, text in held if state >= PartState.REFUSED}


@given(form, everybody)
def test_neighbours_who_stand_alike_share_one_span(column: list, before: list) -> None:
    """The fold is as short as it can be: what is stored is sparse."""
    told = fold(PEOPLE, cut(column, PartFate), cut(before, Stand))
    stands = [(stand.status, stand.reason) for stand in told]
    assert all(one != other for one, other in pairwise(stands))


@given(everybody)
def test_default_and_exceptions_lose_nobody(stands: list) -> None:
    """Default and exceptions together are the stands they came from, and the default is the most common of them."""
    told = fold(PEOPLE, [], cut(stands, Stand))
    default, exceptions = default_and_exceptions(told)
    assert per_person(complete(PEOPLE, default, reversed(exceptions))) == stands
    assert stands.count(default) == max(stands.count(value) for value in stands)
    assert all((stand.status, stand.reason) != default for stand in exceptions)


@given(everybody)
def test_counts_name_every_status_and_add_up(stands: list) -> None:
    """Each of the four statuses has a number, and together they are everybody."""
    totals = counts(cut(stands, Stand))
    assert set(totals) == set(Status)
    assert all(totals[status] == sum(1 for held, _ in stands if held is status) for status in Status)
