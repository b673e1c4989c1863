"""The last intent wins: what a later, opposite intent has overtaken is not sent any more."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, bindparam, insert, or_, select, update

from criteo_provider.core import identifiers as forms
from criteo_provider.core.model import Operation, PartState, Reason, Span
from criteo_provider.core.spans import from_ordinals, ordinal_at, size, slots, subtract
from criteo_provider.store.engine import AS_KEPT
from criteo_provider.store.schema import identifiers, part
from criteo_provider.store.schema_order import earlier
from criteo_provider.store.standings import refold, spans_from_text, spans_to_text


def drop_superseded(connection: Connection, rows: Sequence[Row[Any]], *, now_us: int) -> list[Row[Any]]:
    """Close those people of open parts for whom a later opposite intent was sent (or, on an add's retry, exists).

    ``rows`` are open parts of one audience and operation; returns the parts that still have somebody to send,
    as they stand now. An intent is (audience, form, identifier) at the time the person reached the step.

    A removal gives way to what was sent only: an add that still waits comes to nothing when its person opts out. An
    add gives way to a removal that was given up as well: that may never have been sent, and nobody sends it later.
    """
    if not rows:
        return []
    rivals = _later_opposites(connection, rows)
    if not rivals:
        return list(rows)
    overtaken: dict[int, set[int]] = {row.id: set() for row in rows}
    own = {row.id: values_of(connection, row) for row in rows}
    for rival in rivals:
        facing = [
            row
            for row in rows
            if rival.form == row.form
            and (rival.intent_us, rival.upload_id) > (row.intent_us, row.upload_id)
            and _yields(row, rival)
        ]
        if not facing:
            continue
        # One rival at a time: memory stays flat however many there are.
        spans = spans_from_text(rival.spans)
        theirs = set(values_in(connection, rival.chunk_id, rival.form, rival.earlier_id, spans))
        for row in facing:
            if not theirs.isdisjoint(own[row.id]):
                named = theirs.intersection(own[row.id])
                overtaken[row.id].update(people_of(connection, row, named))
    kept: list[int] = []
    touched: set[int] = set()
    for row in rows:
        if overtaken[row.id]:
            touched.add(row.stage_id)
            _close(connection, row, from_ordinals(overtaken[row.id]))
        if len(overtaken[row.id]) < row.identifiers:
            kept.append(row.id)
    refold(connection, touched, cause="superseded", now_us=now_us)
    if not touched:
        return list(rows)
    current = {row.id: row for row in connection.execute(_THESE, {"parts": kept})}
    return [current[part_id] for part_id in kept]


_THESE = select(part).where(part.c.id.in_(bindparam("parts", expanding=True)))


def _yields(row: Row[Any], rival: Row[Any]) -> bool:
    is_add = row.operation == Operation.ADD
    return bool(rival.attempts or (is_add and (row.attempts or rival.state == PartState.ERRORED)))


def people_of(connection: Connection, row: Row[Any], named: Collection[bytes]) -> dict[int, bytes]:
    """Return who of a part has one of the ``named`` values: ordinal to value."""
    present, values = stored_of(connection, row.chunk_id, row.form, row.earlier_id)
    stretches = slots(present, spans_from_text(row.spans))
    return {
        ordinal_at(present, index): values[index]
        for first, last in stretches
        for index in range(first, last)
        if values[index] in named
    }


def values_of(connection: Connection, row: Row[Any]) -> list[bytes]:
    """Return the stored values of a part, in order, duplicates included."""
    return values_in(connection, row.chunk_id, row.form, row.earlier_id, spans_from_text(row.spans))


def values_in(
    connection: Connection, chunk_id: int, form: str, earlier_id: int | None, spans: Sequence[Span]
) -> list[bytes]:
    """Return the stored values of these people, in order, duplicates included."""
    present, values = stored_of(connection, chunk_id, form, earlier_id)
    return [value for first, last in slots(present, spans) for value in values[first:last]]


def stored_of(
    connection: Connection, chunk_id: int, form: str, earlier_id: int | None
) -> tuple[Sequence[Span], list[bytes]]:
    """Return who has a value, and the values, in the same order."""
    present, blob = packed_of(connection, chunk_id, form, earlier_id)
    return present, forms.decode(blob, forms.Form(form))


def packed_of(connection: Connection, chunk_id: int, form: str, earlier_id: int | None) -> tuple[Sequence[Span], bytes]:
    """Return who has a value, and all of them packed: of a form of the chunk, or of what was added before."""
    if earlier_id is None:
        found = connection.execute(_OF_CHUNK, {"chunk": chunk_id, "named": form}).one()
    else:
        found = connection.execute(_BEFORE, {"key": earlier_id}).one()
    return spans_from_text(found.present), bytes(found.packed)


_OF_CHUNK = (
    select(identifiers.c.present, identifiers.c.packed)
    .where(identifiers.c.chunk_id == bindparam("chunk"), identifiers.c.form == bindparam("named"))
    .execution_options(**{AS_KEPT: True})
)
_BEFORE = (
    select(earlier.c.present, earlier.c.packed)
    .where(earlier.c.id == bindparam("key"))
    .execution_options(**{AS_KEPT: True})
)


def split(connection: Connection, row: Row[Any], people: Sequence[Span], values: dict[str, Any]) -> Row[Any]:
    """Take ``people`` out of the part ``row`` into a part of their own with ``values``, and return that."""
    fresh = {**row._mapping, "spans": spans_to_text(people), "identifiers": size(people), **values}
    fresh.pop("id")
    new = connection.execute(_NEW_PART, fresh).one()
    left = subtract(spans_from_text(row.spans), people)
    connection.execute(CHANGE_PART, {"part": row.id, "spans": spans_to_text(left), "identifiers": size(left)})
    return new


def _close(connection: Connection, row: Row[Any], people: Sequence[Span]) -> None:
    closed = {"state": PartState.CLOSED, "reason": Reason.SUPERSEDED, "request_id": None}
    if size(people) == row.identifiers:
        connection.execute(CHANGE_PART, {"part": row.id, **closed})
    else:
        split(connection, row, people, closed)


# Changes one part, in whatever it is given beside the id.
CHANGE_PART = update(part).where(part.c.id == bindparam("part"))
_NEW_PART = insert(part).returning(part)


def _later_opposites(connection: Connection, rows: Sequence[Row[Any]]) -> Sequence[Any]:
    opposite = Operation(rows[0].operation).opposite.value
    wanted = {
        "audience": rows[0].audience_id,
        "opposite": opposite,
        "since_us": min(row.intent_us for row in rows),
        "forms": list({row.form for row in rows}),
    }
    unsent_too = rows[0].operation == Operation.ADD and any(row.attempts for row in rows)
    return connection.execute(_LATER_UNSENT_TOO if unsent_too else _LATER_SENT, wanted).all()


def _later(*which: ColumnElement[bool]) -> Select[Any]:
    return select(
        part.c.upload_id,
        part.c.operation,
        part.c.chunk_id,
        part.c.form,
        part.c.earlier_id,
        part.c.spans,
        part.c.intent_us,
        part.c.state,
        part.c.attempts,
    ).where(
        and_(
            part.c.audience_id == bindparam("audience"),
            part.c.operation == bindparam("opposite"),
            part.c.intent_us >= bindparam("since_us"),
            part.c.form.in_(bindparam("forms", expanding=True)),
            part.c.state.not_in((PartState.WAITING, PartState.CLOSED)),
            *which,
        )
    )


# While a connection is in trouble only probes are sent: whoever was given up then was never tried.
_LATER_SENT = _later(or_(part.c.attempts > 0, part.c.state == PartState.ERRORED))
_LATER_UNSENT_TOO = _later(or_(part.c.attempts > 0, part.c.state.in_((PartState.OPEN, PartState.ERRORED))))
