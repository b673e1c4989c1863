"""The last intent wins: what a later, opposite intent has overtaken is not sent any more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, and_, insert, or_, select, update

from criteo_provider.core import identifiers as forms
from criteo_provider.core.model import Operation, PartState, Reason, Span
from criteo_provider.core.spans import from_ordinals, ordinal_at, size, slots, subtract
from criteo_provider.store.schema import identifiers, part
from criteo_provider.store.standings import refold, spans_from_text, spans_to_text


def drop_superseded(connection: Connection, rows: Sequence[Row[Any]], *, now_us: int) -> list[Row[Any]]:
    """Close those people of open parts for whom a later opposite intent was sent (or, on a retry, exists).

    ``rows`` are open parts of one audience and operation; returns the parts that still have somebody to send,
    as they stand now. An intent is (audience, form, identifier) at the time the person reached the step.
    """
    if not rows:
        return []
    rivals = _later_opposites(connection, rows)
    if not rivals:
        return list(rows)
    kept: list[int] = []
    touched: set[int] = set()
    known: dict[tuple[int, str, str], set[bytes]] = {}
    for row in rows:
        rival_values: set[bytes] = set()
        for rival in rivals:
            later = (rival.intent_us, rival.upload_id) > (row.intent_us, row.upload_id)
            if rival.form == row.form and later and (rival.attempts or row.attempts):
                key = (rival.chunk_id, rival.form, rival.spans)
                if key not in known:
                    known[key] = set(dict(part_values(connection, *key)))
                rival_values |= known[key]
        overtaken = [
            ordinal
            for value, ordinals in part_values(connection, row.chunk_id, row.form, row.spans)
            if value in rival_values
            for ordinal in ordinals
        ]
        if overtaken:
            touched.add(row.stage_id)
            _close(connection, row, from_ordinals(overtaken))
        if len(overtaken) < row.identifiers:
            kept.append(row.id)
    refold(connection, touched, cause="superseded", now_us=now_us)
    if not touched:
        return list(rows)
    current = {row.id: row for row in connection.execute(select(part).where(part.c.id.in_(kept)))}
    return [current[part_id] for part_id in kept]


def part_values(connection: Connection, chunk_id: int, form: str, spans: str) -> list[tuple[bytes, tuple[int, ...]]]:
    """Return the stored values of a part, each with the ordinals of the people who have it."""
    found = connection.execute(
        select(identifiers.c.present, identifiers.c.packed).where(
            identifiers.c.chunk_id == chunk_id, identifiers.c.form == form
        )
    ).one()
    present = spans_from_text(found.present)
    values = forms.decode(bytes(found.packed), forms.Form(form))
    people: dict[bytes, list[int]] = {}
    for first, last in slots(present, spans_from_text(spans)):
        for index in range(first, last):
            people.setdefault(values[index], []).append(ordinal_at(present, index))
    return [(value, tuple(ordinals)) for value, ordinals in people.items()]


def split(connection: Connection, row: Row[Any], people: Sequence[Span], values: dict[str, Any]) -> None:
    """Take ``people`` out of the part ``row`` into a part of their own with ``values``."""
    fresh = {**row._mapping, "spans": spans_to_text(people), "identifiers": size(people), **values}
    fresh.pop("id")
    connection.execute(insert(part).values(fresh))
    left = subtract(spans_from_text(row.spans), people)
    connection.execute(
        update(part).where(part.c.id == row.id).values(spans=spans_to_text(left), identifiers=size(left))
    )


def _close(connection: Connection, row: Row[Any], people: Sequence[Span]) -> None:
    closed = {"state": PartState.CLOSED, "reason": Reason.SUPERSEDED, "request_id": None}
    if size(people) == row.identifiers:
        connection.execute(update(part).where(part.c.id == row.id).values(closed))
    else:
        split(connection, row, people, closed)


def _later_opposites(connection: Connection, rows: Sequence[Row[Any]]) -> Sequence[Any]:
    opposite = Operation(rows[0].operation).opposite.value
    sent = part.c.attempts > 0
    if any(row.attempts for row in rows):
        sent = or_(sent, part.c.state == PartState.OPEN)
    query = select(
        part.c.upload_id, part.c.chunk_id, part.c.form, part.c.spans, part.c.intent_us, part.c.attempts
    ).where(
        and_(
            part.c.audience_id == rows[0].audience_id,
            part.c.operation == opposite,
            part.c.intent_us >= min(row.intent_us for row in rows),
            part.c.form.in_({row.form for row in rows}),
            part.c.state.not_in((PartState.WAITING, PartState.CLOSED)),
            sent,
        )
    )
    return connection.execute(query).all()
