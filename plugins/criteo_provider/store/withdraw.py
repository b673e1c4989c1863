"""What withdrawn consent does: nobody who has opted out is sent any more, and who was sent already is removed.

Removals are people like any others: a chunk of the feed, which has a step for each audience, with uploads, patience,
order and numbers of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import msgspec
from sqlalchemy import Connection, Engine, Row, and_, func, insert, or_, select, update

from criteo_provider.core import identifiers as forms
from criteo_provider.core.batching import FormKey, pack
from criteo_provider.core.consent import FEED_PREFIX, form_of
from criteo_provider.core.model import MAX_IDENTIFIERS, Operation, PartState, Reason, Span, StepPlan
from criteo_provider.core.spans import from_ordinals, intersect, rank, size
from criteo_provider.store.intents import CHANGE_PART, split
from criteo_provider.store.opt_outs import AGAIN, Withdrawn, any_opt_outs, withdrawn_in
from criteo_provider.store.people_index import indexed_marked
from criteo_provider.store.schema import chunk, identifiers, part, stage, step, step_version
from criteo_provider.store.schema_opt_outs import opt_out, opt_out_round
from criteo_provider.store.seal import seal
from criteo_provider.store.standings import refold, slices, spans_from_text

# Small chunks of quiet streams are followed many at a time.
MOST_CHUNKS = 200
# So few opt-outs are looked up in the index of people; for more it is no slower to go through all chunks.
FEW = 200
MOST_FOUND = 5_000


def close_opted_out(connection: Connection, rows: Sequence[Row[Any]], *, now_us: int) -> list[Row[Any]]:
    """Close those people of open parts who have withdrawn consent; return the parts that still have somebody to send.

    Only what adds people is held back: an opt-out never stops a removal.
    """
    if not rows or rows[0].operation != Operation.ADD or not any_opt_outs(connection):
        return list(rows)
    withdrawn = withdrawn_in(connection, {row.chunk_id for row in rows})
    if not withdrawn:
        return list(rows)
    close_people(connection, _spans(withdrawn), now_us=now_us)
    current: dict[int, Row[Any]] = {}
    for ids in slices([row.id for row in rows]):
        query = select(part).where(part.c.id.in_(ids), part.c.state == PartState.OPEN)
        current.update((row.id, row) for row in connection.execute(query))
    return [current[row.id] for row in rows if row.id in current]


def close_people(connection: Connection, people: Mapping[int, Sequence[Span]], *, now_us: int) -> None:
    """Close whatever would still add these people of these chunks to an audience, now or after a delay."""
    touched: set[int] = set()
    closed = {"state": PartState.CLOSED, "reason": Reason.CONSENT_WITHDRAWN, "request_id": None}
    for ids in slices(sorted(people)):
        query = (
            select(part)
            .where(
                part.c.stage_id.in_(select(stage.c.id).where(stage.c.chunk_id.in_(ids))),
                part.c.operation == Operation.ADD,
                part.c.state.in_((PartState.WAITING, PartState.OPEN)),
            )
            .order_by(part.c.id)
            .with_for_update()
        )
        for row in connection.execute(query).all():
            theirs = intersect(spans_from_text(row.spans), people[row.chunk_id])
            if not theirs:
                continue
            touched.add(row.stage_id)
            if size(theirs) == row.identifiers:
                connection.execute(CHANGE_PART, {"part": row.id, **closed})
            else:
                split(connection, row, theirs, closed)
    refold(connection, touched, cause="consent withdrawn", now_us=now_us)


class Stretch(NamedTuple):
    """Some chunks in which the people of some opt-outs are looked for."""

    before: tuple[int, int, int, int]
    after: tuple[int, int, int, int]
    withdrawn: dict[int, list[Withdrawn]]


def next_stretch(connection: Connection) -> Stretch | None:
    """Look for opted-out people in the next few chunks; None when all opt-outs were followed through all chunks.

    Opt-outs told meanwhile wait for the next round; chunks sealed meanwhile need none, their claims ask.
    """
    now = connection.execute(select(opt_out_round)).one()
    before = now.after_id, now.upto_id, now.after_chunk, now.upto_chunk
    after_id, upto_id, after_chunk, upto_chunk = before
    if after_chunk >= upto_chunk:
        after_id, after_chunk = upto_id, 0
        upto_id = connection.execute(select(func.max(opt_out.c.id))).scalar() or 0
        upto_chunk = connection.execute(select(func.max(chunk.c.id))).scalar() or 0
        if upto_id <= after_id:
            return None
    chunk_ids, reached = chunks_after(connection, after_chunk, upto_chunk, _skipping(connection, after_id, upto_id))
    withdrawn = withdrawn_in(connection, chunk_ids, after_id=after_id, upto_id=upto_id)
    return Stretch(before, (after_id, upto_id, reached, upto_chunk), withdrawn)


def is_unfinished(connection: Connection) -> bool:
    """Whether people of some opt-outs were not looked for in all chunks yet."""
    now = connection.execute(select(opt_out_round)).one()
    newest = connection.execute(select(func.max(opt_out.c.id))).scalar() or 0
    return newest > now.upto_id or bool(now.after_chunk < now.upto_chunk)


class _Indexed(NamedTuple):
    """What the index of people knows of a round: the chunks up to ``upto_chunk`` that may hold somebody of it."""

    after_id: int
    upto_id: int
    chunk_ids: Sequence[int]
    upto_chunk: int


_rounds: WeakKeyDictionary[Engine, _Indexed] = WeakKeyDictionary()


def _skipping(connection: Connection, after_id: int, upto_id: int) -> _Indexed | None:
    """Ask the index once for each round; None where there are too many opt-outs to be asked for."""
    known = _rounds.get(connection.engine)
    if known is not None and known[:2] == (after_id, upto_id):
        return known
    query = select(opt_out.c.kind, opt_out.c.mark).where(opt_out.c.id > after_id, opt_out.c.id <= upto_id)
    rows = connection.execute(query.limit(FEW + 1)).all()
    if len(rows) > FEW:
        return None
    marks: dict[str, list[bytes]] = defaultdict(list)
    for kind, mark in rows:
        marks[form_of(kind)].append(bytes(mark))
    chunk_ids, upto_chunk = indexed_marked(connection, marks)
    if len(chunk_ids) > MOST_FOUND:
        return None
    _rounds[connection.engine] = found = _Indexed(after_id, upto_id, sorted(chunk_ids), upto_chunk)
    return found


def chunks_after(
    connection: Connection, after_chunk: int, upto_chunk: int, indexed: _Indexed | None = None
) -> tuple[list[int], int]:
    """Return the next chunks that may hold people of the round, and how far that is; the index lets most be skipped."""
    query = (
        select(chunk.c.id, chunk.c.people)
        .where(
            and_(chunk.c.id > after_chunk, chunk.c.id <= upto_chunk),
            ~chunk.c.canvas_id.startswith(FEED_PREFIX, autoescape=True),
        )
        .order_by(chunk.c.id)
        .limit(MOST_CHUNKS)
    )
    if indexed is not None:
        query = query.where(or_(chunk.c.id > indexed.upto_chunk, chunk.c.id.in_(indexed.chunk_ids)))
    rows = connection.execute(query).all()
    taken: list[int] = []
    people = 0
    for row in rows:
        if taken and people + row.people > MAX_IDENTIFIERS:
            return taken, taken[-1]
        taken.append(row.id)
        people += row.people
    return taken, taken[-1] if len(rows) == MOST_CHUNKS else upto_chunk


def follow(connection: Connection, stretch: Stretch, *, now_us: int) -> int | None:
    """Close and remove the people found in a stretch; return how many were found, None when another process has."""
    names = ("after_id", "upto_id", "after_chunk", "upto_chunk")
    unmoved = [opt_out_round.c[name] == value for name, value in zip(names, stretch.before, strict=True)]
    moved = connection.execute(
        update(opt_out_round).where(*unmoved).values(dict(zip(names, stretch.after, strict=True)))
    )
    if moved.rowcount != 1:
        return None
    close_people(connection, _spans(stretch.withdrawn), now_us=now_us)
    after_id, *_, upto_chunk = stretch.after
    done_upto = upto_chunk if after_id == AGAIN else 0
    for chunk_id, people in sorted(stretch.withdrawn.items()):
        _remove(connection, chunk_id, people, done_upto=done_upto, now_us=now_us)
    return sum(map(len, stretch.withdrawn.values()))


def _spans(withdrawn: Mapping[int, Collection[Withdrawn]]) -> dict[int, Sequence[Span]]:
    return {chunk_id: from_ordinals(one.ordinal for one in people) for chunk_id, people in withdrawn.items()}


class _Goal(NamedTuple):
    """Where a removal goes, who asks for it, and the moment of its intent."""

    feed: str
    audience_id: int
    intent_us: int


def _remove(connection: Connection, chunk_id: int, people: Sequence[Withdrawn], *, done_upto: int, now_us: int) -> None:
    """Seal a removal for each audience that identifiers of these people were sent to, in every form that was sent.

    Whoever is in a removal up to the chunk ``done_upto`` already needs no other.
    """
    query = (
        select(part.c.audience_id, part.c.form, part.c.spans, part.c.intent_us)
        .join(stage, stage.c.id == part.c.stage_id)
        .where(
            stage.c.chunk_id == chunk_id,
            part.c.operation == Operation.ADD,
            # A narrowing costs no attempt, and what is narrowed for its invalid identifiers was sent, and taken.
            or_(part.c.attempts > 0, part.c.narrow_root.is_not(None)),
            part.c.state != PartState.REFUSED,
        )
    )
    sent = connection.execute(query).all()
    if not sent:
        return
    by_ordinal = {one.ordinal: one for one in people}
    everybody = from_ordinals(by_ordinal)
    theirs: dict[tuple[int, int], tuple[int, set[str]]] = {}
    for row in sent:
        for span in intersect(spans_from_text(row.spans), everybody):
            for ordinal in range(span.first, span.last):
                # The opt-out counts from when it was told, or from right after what was sent all the same.
                known = theirs.get((row.audience_id, ordinal), (by_ordinal[ordinal].at_us, set()))
                theirs[row.audience_id, ordinal] = max(known[0], row.intent_us), known[1] | {row.form}
    goals: dict[_Goal, dict[int, set[str]]] = defaultdict(dict)
    for (audience_id, ordinal), (intent_us, sent_forms) in theirs.items():
        goals[_Goal(by_ordinal[ordinal].feed, audience_id, intent_us)][ordinal] = sent_forms
    keys, stored = _contents(connection, chunk_id)
    for goal, chosen in sorted(goals.items()):
        done = _removed(connection, goal, done_upto) if done_upto else ()
        left = {ordinal: sent_forms for ordinal, sent_forms in chosen.items() if keys[ordinal] not in done}
        if left:
            _seal_removal(connection, goal, left, keys, stored, now_us=now_us)


def _removed(connection: Connection, goal: _Goal, upto_chunk: int) -> set[str]:
    """Return the user keys that removals with this very goal hold."""
    query = (
        select(chunk.c.user_keys)
        .join(part, part.c.chunk_id == chunk.c.id)
        .where(
            part.c.audience_id == goal.audience_id,
            part.c.operation == Operation.REMOVE,
            part.c.intent_us == goal.intent_us,
            chunk.c.canvas_id == goal.feed,
            chunk.c.id <= upto_chunk,
        )
        .distinct()
    )
    return {key for held in connection.execute(query).scalars() for key in msgspec.json.decode(held)}


_Stored = Mapping[FormKey, tuple[Sequence[Span], Sequence[bytes]]]


def _contents(connection: Connection, chunk_id: int) -> tuple[Sequence[str], _Stored]:
    text = connection.execute(select(chunk.c.user_keys).where(chunk.c.id == chunk_id)).scalar_one()
    stored = {
        (row.form, row.gum_caller_id): (
            spans_from_text(row.present),
            forms.decode(bytes(row.packed), forms.Form(row.form)),
        )
        for row in connection.execute(select(identifiers).where(identifiers.c.chunk_id == chunk_id))
    }
    return msgspec.json.decode(text), stored


def _seal_removal(
    connection: Connection,
    goal: _Goal,
    chosen: Mapping[int, Collection[str]],
    keys: Sequence[str],
    stored: _Stored,
    *,
    now_us: int,
) -> None:
    ordinals = sorted(chosen)
    values = {
        (form, caller): [held[rank(present, ordinal)] if form in chosen[ordinal] else None for ordinal in ordinals]
        for (form, caller), (present, held) in stored.items()
    }
    people = pack(
        [keys[ordinal] for ordinal in ordinals],
        values,
        {},
        lambda some, form: forms.encode(some, forms.Form(form)),
    )
    sealed = seal(connection, goal.feed, people, [_plan(connection, goal, now_us)], now_us=now_us)
    stages = select(stage.c.id).where(stage.c.chunk_id == sealed)
    connection.execute(update(part).where(part.c.stage_id.in_(stages)).values(intent_us=goal.intent_us))


def _plan(connection: Connection, goal: _Goal, now_us: int) -> StepPlan:
    """Return the step through which a feed removes people from an audience; made when it is first needed."""
    name = f"remove_from_{goal.audience_id}"
    query = select(step.c.id, step.c.version_id).where(step.c.canvas_id == goal.feed, step.c.name == name)
    known = connection.execute(query).one_or_none()
    if known is None:
        place = {"canvas_id": goal.feed, "name": name, "position": goal.audience_id, "declared": True}
        step_id = connection.execute(insert(step).values(place).returning(step.c.id)).scalar_one()
        how = {
            "step_id": step_id,
            "audience_id": goal.audience_id,
            "operation": Operation.REMOVE.value,
            "fields": msgspec.json.encode(sorted(forms.FIELDS)).decode(),
            "delay_s": 0,
            "is_last": True,
            "since_us": now_us,
        }
        version_id = connection.execute(insert(step_version).values(how).returning(step_version.c.id)).scalar_one()
        connection.execute(update(step).where(step.c.id == step_id).values(version_id=version_id))
    else:
        step_id, version_id = known
    return StepPlan(step_id, version_id, goal.audience_id, Operation.REMOVE, forms.FIELDS, 0, True)
