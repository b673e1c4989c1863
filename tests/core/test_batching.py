"""Packing people into a chunk: regrouped, never changed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from criteo_provider.core.batching import pack, unsendable
from criteo_provider.core.identifiers import Form, decode, encode
from criteo_provider.core.model import Reason, SealedPeople, Span, Status
from criteo_provider.core.spans import slots

FORMS = {
    Form.EMAIL_SHA256: st.binary(min_size=32, max_size=32),
    Form.EMAIL_MD5: st.binary(min_size=16, max_size=16),
    Form.MADID: st.binary(min_size=16, max_size=16),
    Form.GUM: st.binary(min_size=1, max_size=9),
}
FIELDS = ("email", "madid", "gum")
WHY = st.sampled_from([Reason.MISSING, Reason.BLANK, Reason.MALFORMED])


@st.composite
def crowds(draw: st.DrawFn) -> list[dict]:
    """Some people: a key, a value or None per form, and per field the reason where no form of it has a value."""
    count = draw(st.integers(0, 12))
    return [
        {
            "key": f"user-{number}",
            "values": (values := {form: draw(st.none() | made) for form, made in FORMS.items()}),
            "lacking": {
                field: None if any(values[form] is not None for form in FORMS if form.field == field) else draw(WHY)
                for field in FIELDS
            },
        }
        for number in range(count)
    ]


def packed(people: list[dict]) -> SealedPeople:
    """Pack these people as the enter side does: columns, not rows."""
    return pack(
        [person["key"] for person in people],
        {
            (form.value, 7 if form is Form.GUM else None): [person["values"][form] for person in people]
            for form in FORMS
        },
        {field: [person["lacking"][field] for person in people] for field in FIELDS},
        lambda values, form: encode(values, Form(form)),
    )


@given(crowds())
def test_everybody_is_in_the_chunk_once_with_their_own_identifiers(people: list[dict]) -> None:
    """The same people come out; each identifier stands with the person who brought it, and nobody has another's."""
    chunk = packed(people)
    assert sorted(chunk.user_keys) == sorted(person["key"] for person in people)
    assert len(chunk) == len(people)
    by_key = {person["key"]: person for person in people}
    told: dict[str, dict] = {key: {} for key in by_key}
    for held in chunk.forms:
        values = decode(held.blob, Form(held.form))
        assert held.count == len(values) == sum(len(span) for span in held.present)
        assert held.gum_caller_id == (7 if held.form == Form.GUM else None)
        for ordinal, key in enumerate(chunk.user_keys):
            for first, last in slots(held.present, (Span(ordinal, ordinal + 1),)):
                told[key][held.form] = values[first:last]
    for key, person in by_key.items():
        assert told[key] == {form: [value] for form, value in person["values"].items() if value is not None}


@given(crowds())
def test_who_lacks_a_field_is_told_with_the_reason(people: list[dict]) -> None:
    """A shortfall covers exactly the people who lack the field for that reason."""
    chunk = packed(people)
    told = {
        (chunk.user_keys[ordinal], short.field): short.reason
        for short in chunk.shortfalls
        for ordinal in range(short.span.first, short.span.last)
    }
    assert told == {
        (person["key"], field): reason
        for person in people
        for field, reason in person["lacking"].items()
        if reason is not None
    }


@given(crowds(), st.sets(st.sampled_from(FIELDS), min_size=1))
def test_unsendable_is_whoever_has_nothing_among_the_chosen_fields(people: list[dict], fields: set[str]) -> None:
    """Nobody with a usable chosen identifier is given up; everybody else is, with the reason to act on first."""
    chunk = packed(people)
    chosen = {held.form for held in chunk.forms if Form(held.form).field in fields}
    told = {}
    for stand in unsendable(chunk, chosen, fields):
        assert stand.status is Status.NOT_SYNCED
        for ordinal in range(stand.span.first, stand.span.last):
            assert chunk.user_keys[ordinal] not in told
            told[chunk.user_keys[ordinal]] = stand.reason
    worst_first = [Reason.MALFORMED, Reason.BLANK, Reason.MISSING]
    expected = {}
    for person in people:
        reasons = [person["lacking"][field] for field in fields]
        if None not in reasons:
            expected[person["key"]] = min(reasons, key=worst_first.index)
    assert told == expected


@given(crowds())
def test_people_who_lack_the_same_stand_together(people: list[dict]) -> None:
    """A chunk has at most one span per kind of person, so exceptions stay sparse however the source is sorted."""
    kinds = {
        (tuple(value is not None for value in person["values"].values()), tuple(person["lacking"].values()))
        for person in people
    }
    for held in packed(people).forms:
        assert len(held.present) <= max(1, len(kinds))
