"""What a removal takes out beside its own identifiers: those under which its people were added to the audience before.

They become parts of the removal's stage, with identifiers of their own in ``earlier``; from then on they are parts like
any others. It is looked for when a removal is due, outside of every transaction that writes: sealing never waits.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import msgspec
from sqlalchemy import BigInteger, Connection, Row, and_, bindparam, case, insert, or_, select, update

from criteo_provider.core import identifiers as forms
from criteo_provider.core.batching import FormKey
from criteo_provider.core.consent import USER_KEY
from criteo_provider.core.identifiers import Form
from criteo_provider.core.model import Operation, PartState, Span
from criteo_provider.core.spans import from_ordinals, intersect, rank
from criteo_provider.store import people_index
from criteo_provider.store.engine import insert_into
from criteo_provider.store.intents import stored_of
from criteo_provider.store.schema import chunk, part, step
from criteo_provider.store.schema_order import earlier, key_filter
from criteo_provider.store.standings import spans_from_text, spans_to_text

# Ordinal -> the values of one form a person was added under before, newest first.
People = dict[int, dict[bytes, None]]
# Place among the intents of an audience: time, then sequence.
Place = tuple[int, int]

# So many removals are looked up at once …
MOST_STAGES = 20
# … and so many filters are made for it; the rest waits for the next time.
MOST_FILTERS = 20
# The keys of a chunk this small are read as quickly as a filter of them.
SMALL = 200
# For fewer keys than this it is quicker to seek each in a filter than to read it all.
FEW = 200
# So many chunks are read in one statement: 20 MB of filters.
READ_AT_ONCE = 100

_WANTED = part.c.look_back == 1


class Unfinished(Exception):
    """There are more filters to be made than may be made at once; those made so far are worth keeping."""


@dataclass(slots=True)
class LookedUp:
    """What looking back has found for each stage, and the filters it has made on the way."""

    stages: dict[int, dict[FormKey, People]] = field(default_factory=dict)
    filters: dict[int, bytes] = field(default_factory=dict)


def stages_to_look_up(connection: Connection, *, now_us: int) -> list[int]:
    """Return the stages of due removals nobody has looked up yet, oldest intents first; mostly none."""
    return list(connection.execute(_TO_LOOK_UP, {"now_us": now_us}).scalars())


# Made once, for every claim asks it.
_TO_LOOK_UP = (
    select(part.c.stage_id, part.c.intent_us)
    .join(step, step.c.id == part.c.step_id)
    .where(_WANTED, part.c.state == PartState.OPEN, part.c.due_us <= bindparam("now_us"), step.c.declared)
    .distinct()
    .order_by(part.c.intent_us)
    .limit(MOST_STAGES)
)


def look_up(connection: Connection, stage_ids: Sequence[int]) -> LookedUp:
    """Find what the people of these stages were added under before; changes nothing."""
    found = LookedUp()
    for stage_id in stage_ids:
        rows = connection.execute(_OF_STAGE, {"stage": stage_id}).all()
        rows = [row for row in rows if row.state == PartState.OPEN]
        if not rows:
            found.stages[stage_id] = {}
            continue
        before = rows[0].intent_us, min(row.upload_id for row in rows)
        try:
            held = earlier_identifiers(
                connection, rows[0].audience_id, rows[0].chunk_id, _people(rows), before=before, filters=found.filters
            )
        except Unfinished:
            return found
        found.stages[stage_id] = _beside_own(connection, rows, held)
    return found


_OF_STAGE = select(part).where(part.c.stage_id == bindparam("stage"), _WANTED)


def keep(connection: Connection, found: LookedUp, *, now_us: int) -> None:
    """Add what was found as parts of their stages, unless another process has."""
    if found.filters:
        # In one order, so that two who made the same ones do not wait for each other; of pruned people none is kept.
        there = select(chunk.c.id).where(chunk.c.id.in_(found.filters)).order_by(chunk.c.id)
        chunk_ids = connection.execute(there.with_for_update(read=True, key_share=True)).scalars()
        rows = [{"chunk_id": one, "hashes": found.filters[one]} for one in chunk_ids]
        if rows:
            connection.execute(insert_into(connection, key_filter).on_conflict_do_nothing(), rows)
    for stage_id, held in sorted(found.stages.items()):
        looked_at = connection.execute(_LOOKED_UP, {"stage": stage_id}).all()
        # Whoever was closed in between has a final status: nothing is sent for them.
        still_open = [row for row in looked_at if row.state == PartState.OPEN]
        if still_open and held:
            _add_parts(connection, min(still_open, key=lambda row: row.upload_id), _people(still_open), held, now_us)


_LOOKED_UP = update(part).where(part.c.stage_id == bindparam("stage"), _WANTED).values(look_back=0).returning(part)


def earlier_identifiers(
    connection: Connection,
    audience_id: int,
    chunk_id: int,
    spans: Sequence[Span],
    *,
    before: Place,
    filters: dict[int, bytes] | None = None,
) -> dict[FormKey, People]:
    """Return, by form, under what the people ``spans`` of a chunk were added to the audience by intents ``before``.

    People are the same when their user key is. ``filters`` takes in the filters that had to be made, raising
    Unfinished when that were too many.
    """
    made = {} if filters is None else filters
    keys = _keys(connection, chunk_id)
    wanted: dict[str, list[int]] = defaultdict(list)
    for span in spans:
        for ordinal in range(span.first, span.last):
            wanted[keys[ordinal]].append(ordinal)
    added = {"audience": audience_id, "before_us": before[0], "before_id": before[1]}
    chunk_ids = connection.execute(_HOLDERS, added).scalars()
    found: dict[FormKey, People] = defaultdict(dict)
    for holder, theirs in _holders(connection, sorted(chunk_ids, reverse=True), wanted, made):
        ordinals = from_ordinals(theirs)
        for row in connection.execute(_HELD, {"chunk": holder, **added}).all():
            held = intersect(spans_from_text(row.spans), ordinals)
            if not held:
                continue
            present, values = stored_of(connection, row.chunk_id, row.form, row.earlier_id)
            people = found[row.form, row.gum_caller_id]
            for span in held:
                first = rank(present, span.first)
                for ordinal in range(span.first, span.last):
                    value = values[first + ordinal - span.first]
                    for mine in wanted[theirs[ordinal]]:
                        people.setdefault(mine, {})[value] = None
    return found


_BEFORE_US = bindparam("before_us", type_=BigInteger)
_ADDED = and_(
    part.c.audience_id == bindparam("audience"),
    part.c.operation == Operation.ADD.value,
    part.c.intent_us <= _BEFORE_US,
    or_(part.c.intent_us < _BEFORE_US, part.c.upload_id < bindparam("before_id")),
    part.c.state != PartState.REFUSED,
    # A narrowing costs no attempt.
    or_(part.c.state != PartState.CLOSED, part.c.attempts > 0, part.c.narrow_root.is_not(None)),
)
_HOLDERS = select(part.c.chunk_id).where(_ADDED).distinct()
_HELD = select(part).where(part.c.chunk_id == bindparam("chunk"), _ADDED)


def _holders(
    connection: Connection, chunk_ids: Sequence[int], wanted: Collection[str], made: dict[int, bytes]
) -> Iterator[tuple[int, dict[int, str]]]:
    """Yield those chunks that hold any of the wanted user keys: whose key stands at which ordinal."""
    for chunk_id in _candidates(connection, chunk_ids, set(wanted), made):
        theirs = {ordinal: key for ordinal, key in enumerate(_keys(connection, chunk_id)) if key in wanted}
        if theirs:
            yield chunk_id, theirs


def _candidates(
    connection: Connection, chunk_ids: Sequence[int], wanted: set[str], made: dict[int, bytes]
) -> Iterator[int]:
    """Yield the chunks that may hold one of the wanted keys, and few others: by the index of people, then by filters.

    A crowd is looked for by filters alone: the index would be read almost whole for it.
    """
    if len(wanted) <= FEW:
        holders, indexed_upto = people_index.indexed_with(connection, USER_KEY, wanted)
        yield from _behind(connection, [one for one in chunk_ids if one > indexed_upto], wanted, made)
        yield from (one for one in chunk_ids if one <= indexed_upto and one in holders)
    else:
        yield from _behind(connection, chunk_ids, wanted, made)


def _behind(
    connection: Connection, chunk_ids: Sequence[int], wanted: set[str], made: dict[int, bytes]
) -> Iterator[int]:
    """Yield the chunks that may hold one of the wanted keys, by filters which are made where there are none."""
    hashes = {_hash(key) for key in wanted}
    ascending = sorted(hashes)
    for at in range(0, len(chunk_ids), READ_AT_ONCE):
        these = {"chunks": list(chunk_ids[at : at + READ_AT_ONCE]), "small": SMALL}
        for row in connection.execute(_FILTERS, these).all():
            if row.few_keys is not None:
                if not wanted.isdisjoint(msgspec.json.decode(row.few_keys)):
                    yield row.id
                continue
            held = row.hashes or made.get(row.id)
            if held is None:
                if len(made) >= MOST_FILTERS:
                    raise Unfinished
                held = made[row.id] = filter_of(_keys(connection, row.id))
            if _may_hold(array("I", bytes(held)), hashes, ascending):
                yield row.id


_FILTERS = (
    select(
        chunk.c.id,
        case((chunk.c.people <= bindparam("small"), chunk.c.user_keys)).label("few_keys"),
        key_filter.c.hashes,
    )
    .outerjoin(key_filter, key_filter.c.chunk_id == chunk.c.id)
    .where(chunk.c.id.in_(bindparam("chunks", expanding=True)))
    .order_by(chunk.c.id.desc())
)


def filter_of(keys: Sequence[str]) -> bytes:
    """Return the ascending 4-byte hashes of user keys."""
    return array("I", sorted(map(_hash, keys))).tobytes()


def _may_hold(hashes: array[int], wanted: set[int], ascending: Sequence[int]) -> bool:
    if len(ascending) > FEW:
        return not wanted.isdisjoint(hashes)
    for one in ascending:
        at = bisect_left(hashes, one)
        if at < len(hashes) and hashes[at] == one:
            return True
    return False


def _hash(key: str) -> int:
    return crc32(key.encode("utf-8", "surrogatepass"))


def _keys(connection: Connection, chunk_id: int) -> list[str]:
    keys: list[str] = msgspec.json.decode(connection.execute(_KEYS, {"chunk": chunk_id}).scalar_one())
    return keys


_KEYS = select(chunk.c.user_keys).where(chunk.c.id == bindparam("chunk"))


def _people(rows: Sequence[Row[Any]]) -> tuple[Span, ...]:
    return from_ordinals(
        ordinal for row in rows for span in spans_from_text(row.spans) for ordinal in range(span.first, span.last)
    )


def _beside_own(
    connection: Connection, rows: Sequence[Row[Any]], held: Mapping[FormKey, People]
) -> dict[FormKey, People]:
    """Leave out what the parts themselves send."""
    left: dict[FormKey, People] = {}
    for key, people in held.items():
        own: dict[int, bytes] = {}
        for row in rows:
            if (row.form, row.gum_caller_id) == key:
                present, values = stored_of(connection, row.chunk_id, row.form, row.earlier_id)
                for span in spans_from_text(row.spans):
                    first = rank(present, span.first)
                    own.update(
                        (ordinal, values[first + ordinal - span.first]) for ordinal in range(span.first, span.last)
                    )
        others = {
            ordinal: {value: None for value in values if value != own.get(ordinal)}
            for ordinal, values in people.items()
        }
        left[key] = {ordinal: values for ordinal, values in others.items() if values}
    return {key: people for key, people in left.items() if people}


def _add_parts(
    connection: Connection,
    like: Row[Any],
    people: Sequence[Span],
    held: Mapping[FormKey, People],
    now_us: int,
) -> None:
    """Add a part for each form, and another where somebody was added under several values of it."""
    open_still = {ordinal for span in people for ordinal in range(span.first, span.last)}
    for (form, gum_caller_id), values in held.items():
        pending = {ordinal: list(some) for ordinal, some in values.items() if ordinal in open_still}
        while pending:
            ordinals = sorted(pending)
            taken = {
                "stage_id": like.stage_id,
                "form": form,
                "gum_caller_id": gum_caller_id,
                "count": len(ordinals),
                "present": spans_to_text(from_ordinals(ordinals)),
                "packed": forms.encode([pending[ordinal].pop(0) for ordinal in ordinals], Form(form)),
            }
            earlier_id = connection.execute(_NEW_EARLIER, taken).scalar_one()
            fresh = {
                **like._mapping,
                "form": form,
                "identifier_type": Form(form).identifier_type,
                "gum_caller_id": gum_caller_id,
                "spans": taken["present"],
                "identifiers": taken["count"],
                "due_us": now_us,
                "earlier_id": earlier_id,
            }
            fresh.pop("id")
            connection.execute(_NEW_PART, fresh)
            pending = {ordinal: some for ordinal, some in pending.items() if some}


_NEW_EARLIER = insert(earlier).returning(earlier.c.id)
_NEW_PART = insert(part)
