"""Settling: one transaction takes in what Criteo said of one request, fenced by who owns each part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, assert_never

from sqlalchemy import BigInteger, Connection, Row, ScalarSelect, delete, false, func, insert, literal, select, update

from criteo_provider.core import identifiers as forms
from criteo_provider.core.model import ClaimedRequest, PartState, Reason
from criteo_provider.core.outcome import (
    Accepted,
    AccessLost,
    AudienceGone,
    Busy,
    Outcome,
    Refused,
    Unavailable,
    retry_wait_s,
)
from criteo_provider.core.spans import from_ordinals, halves, size
from criteo_provider.store.claim import put_off_probe
from criteo_provider.store.intents import part_values, split
from criteo_provider.store.schema import audience, canvas, part, request, stage, step, trouble
from criteo_provider.store.standings import refold, slices, spans_from_text
from criteo_provider.store.unwanted import close_unwanted

# Narrowing a refusal never costs more calls than this (DESIGN: at most 64 extra calls a request).
MAX_NARROWING_CALLS = 64
FIRST_PROBE_US = 60_000_000


def settle(connection: Connection, claimed: ClaimedRequest, outcome: Outcome, *, now_us: int, jitter: float) -> int:
    """Write what ``outcome`` means for the people of ``claimed``; return how many of its parts were lost to others."""
    query = select(part).where(part.c.request_id == claimed.request_id, part.c.state == PartState.CLAIMED)
    rows = connection.execute(query.order_by(part.c.id).with_for_update()).all()
    _lock_stages(connection, {row.stage_id for row in rows})
    match outcome:
        case Accepted():
            _accept(connection, claimed, rows, outcome, now_us, jitter)
            _heal(connection, claimed)
        case Busy():
            _reopen(connection, rows, now_us, attempts_back=1)
        case Unavailable():
            _retry_later(connection, rows, now_us, jitter, outcome.sentence, wait_s=outcome.wait_s)
        case AccessLost():
            _reopen(connection, rows, now_us, reason=outcome.sentence)
            _stop(connection, claimed, outcome.scope, outcome, now_us)
        case AudienceGone():
            _reopen(connection, rows, now_us, reason=outcome.sentence)
            _stop(connection, claimed, "audience", outcome, now_us)
        case Refused():
            _narrow(connection, claimed, rows, now_us, jitter, outcome.sentence)
            _heal(connection, claimed)
        case _:
            assert_never(outcome)
    stage_ids = {row.stage_id for row in rows}
    close_unwanted(connection, stage_ids)
    refold(connection, stage_ids, cause=f"request:{claimed.request_id}", now_us=now_us)
    _end_request(connection, claimed, outcome, now_us)
    return len(claimed.parts) - len(rows)


def release(connection: Connection, claimed: ClaimedRequest, *, now_us: int) -> None:
    """Give a claim back unsent: it costs no attempt, and starts no clock."""
    query = select(part).where(part.c.request_id == claimed.request_id, part.c.state == PartState.CLAIMED)
    rows = connection.execute(query.order_by(part.c.id).with_for_update()).all()
    started = select(request.c.claimed_us).where(request.c.id == claimed.request_id).scalar_subquery()
    connection.execute(
        update(part)
        .where(part.c.id.in_([row.id for row in rows]), part.c.deadline_us == started + _patience())
        .values(deadline_us=None)
    )
    _reopen(connection, rows, now_us, attempts_back=1)
    stage_ids = {row.stage_id for row in rows}
    if close_unwanted(connection, stage_ids):
        refold(connection, stage_ids, cause=f"request:{claimed.request_id}", now_us=now_us)
    connection.execute(
        update(request)
        .where(request.c.id == claimed.request_id, request.c.state == "in_flight")
        .values(state="released", ended_us=now_us)
    )


def expire(connection: Connection, *, now_us: int) -> int:
    """Record as Errored whatever is past its deadline with nothing in flight; return how many parts that were."""
    overdue = connection.execute(
        select(part.c.id, part.c.stage_id)
        .join(step, step.c.id == part.c.step_id)
        .where(part.c.state == PartState.OPEN, part.c.deadline_us <= now_us, step.c.declared)
        .order_by(part.c.id)
        .limit(5_000)
    ).all()
    errored: set[int] = set()
    for ids in slices([row.id for row in overdue]):
        errored.update(
            connection.execute(
                update(part)
                .where(part.c.id.in_(ids), part.c.state == PartState.OPEN)
                .values(state=PartState.ERRORED, reason=func.coalesce(part.c.reason, "Criteo was never reached."))
                .returning(part.c.stage_id)
            ).scalars()
        )
    refold(connection, errored, cause="deadline", now_us=now_us)
    return len(overdue)


def start_clocks(connection: Connection, *, now_us: int) -> None:
    """Start the patience clock of people who are due and held back by a known trouble."""
    for row in connection.execute(select(trouble)).all():
        connection.execute(
            update(part)
            .where(
                part.c.state == PartState.OPEN,
                part.c.due_us <= now_us,
                part.c.deadline_us.is_(None),
                part.c.audience_id.in_(_audiences_of(row)),
                part.c.step_id.in_(select(step.c.id).where(step.c.declared)),
            )
            .values(deadline_us=literal(now_us, BigInteger) + _patience(), reason=row.sentence)
        )


def open_trouble(connection: Connection, scope: str, key: str, *, code: str, sentence: str, now_us: int) -> bool:
    """Remember a trouble of ``scope``; return True when it is new."""
    found = trouble.c.scope == scope, trouble.c.key == key
    if connection.execute(update(trouble).where(*found).values(code=code, sentence=sentence)).rowcount:
        return False
    values = {"code": code, "sentence": sentence, "since_us": now_us, "probes": 0}
    connection.execute(insert(trouble).values(scope=scope, key=key, next_probe_us=now_us + FIRST_PROBE_US, **values))
    return True


def _patience() -> ScalarSelect[int]:
    """How long the canvas of a part is patient, in microseconds; for statements over part."""
    return (
        select(canvas.c.retry_for_us)
        .join(step, step.c.canvas_id == canvas.c.id)
        .where(step.c.id == part.c.step_id)
        .scalar_subquery()
    )


def _accept(
    connection: Connection,
    claimed: ClaimedRequest,
    rows: Sequence[Row[Any]],
    outcome: Accepted,
    now_us: int,
    jitter: float,
) -> None:
    refused = {"state": PartState.REFUSED, "reason": Reason.INVALID_AT_CRITEO}
    if outcome.invalid and not outcome.valid:
        _close(connection, rows, refused)
        return
    if outcome.invalid and _carve_out(connection, rows, outcome.sample, refused) < outcome.invalid:
        # Criteo counts more invalid identifiers than it names: the rest is found by sending halves again.
        query = select(part).where(part.c.request_id == claimed.request_id, part.c.state == PartState.CLAIMED)
        left = connection.execute(query).all()
        _narrow(connection, claimed, left, now_us, jitter, "Criteo does not say which identifiers are invalid.")
        return
    _close(
        connection,
        rows,
        {"state": PartState.ACCEPTED, "reason": None},
    )


def _carve_out(connection: Connection, rows: Sequence[Row[Any]], sample: Sequence[str], values: dict[str, Any]) -> int:
    """Take the people of the identifiers in ``sample`` out of their parts; return how many identifiers that were."""
    found: set[bytes] = set()
    for row in rows:
        form = forms.Form(row.form)
        named = {value for text in sample if (value := forms.from_wire(text, form)) is not None}
        held = [pair for pair in part_values(connection, row.chunk_id, row.form, row.spans) if pair[0] in named]
        if held:
            found.update(value for value, _ in held)
            people = from_ordinals(ordinal for _, ordinals in held for ordinal in ordinals)
            if size(people) == row.identifiers:
                connection.execute(update(part).where(part.c.id == row.id).values(values))
            else:
                split(connection, row, people, values)
    return len(found)


def _narrow(
    connection: Connection,
    claimed: ClaimedRequest,
    rows: Sequence[Row[Any]],
    now_us: int,
    jitter: float,
    sentence: str,
) -> None:
    """Send a refused request again in smaller pieces: along chunk borders first, then in halves, within the bound."""
    root = rows[0].narrow_root if rows and rows[0].narrow_root else claimed.request_id
    spent = _narrowing_calls(connection, root)
    if len(rows) == 1 and rows[0].identifiers == 1:
        _close(connection, rows, {"state": PartState.REFUSED, "reason": Reason.INVALID_AT_CRITEO})
    elif spent + (2 if len(rows) == 1 else len(rows)) > MAX_NARROWING_CALLS:
        _retry_later(connection, rows, now_us, jitter, sentence, narrow_root=root)
    elif len(rows) > 1:
        _reopen(connection, rows, now_us, attempts_back=1, reason=sentence, narrow_level=1, narrow_root=root)
    else:
        row = rows[0]
        again = {"narrow_level": row.narrow_level + 1, "narrow_root": root}
        _reopen(connection, rows, now_us, attempts_back=1, reason=sentence, **again)
        front, _ = halves(spans_from_text(row.spans))
        opened = {"state": PartState.OPEN, "request_id": None, "due_us": now_us, "reason": sentence}
        split(connection, row, front, {**opened, **again, "attempts": row.attempts - 1})


def _narrowing_calls(connection: Connection, root: int) -> int:
    """Count the calls a narrowing has cost or will cost for certain."""
    made = select(func.count()).select_from(request).where(request.c.narrow_root == root)
    planned = select(func.count()).select_from(part).where(part.c.narrow_root == root, part.c.state == PartState.OPEN)
    return int(connection.execute(made).scalar_one()) + int(connection.execute(planned).scalar_one())


def _retry_later(
    connection: Connection,
    rows: Sequence[Row[Any]],
    now_us: int,
    jitter: float,
    sentence: str,
    *,
    wait_s: float | None = None,
    **values: Any,
) -> None:
    by_attempts: dict[int, list[Row[Any]]] = {}
    for row in rows:
        by_attempts.setdefault(row.attempts, []).append(row)
    for attempts, alike in by_attempts.items():
        pause_s = max(wait_s or 0.0, retry_wait_s(attempts, jitter=jitter))
        _reopen(connection, alike, now_us + round(pause_s * 1e6), reason=sentence, **values)


def _reopen(
    connection: Connection, rows: Sequence[Row[Any]], due_us: int, *, attempts_back: int = 0, **values: Any
) -> None:
    for ids in slices([row.id for row in rows]):
        connection.execute(
            update(part)
            .where(part.c.id.in_(ids), part.c.state == PartState.CLAIMED)
            .values(
                state=PartState.OPEN,
                request_id=None,
                due_us=due_us,
                attempts=part.c.attempts - attempts_back,
                **values,
            )
        )


def _close(connection: Connection, rows: Sequence[Row[Any]], values: dict[str, Any]) -> None:
    for ids in slices([row.id for row in rows]):
        connection.execute(update(part).where(part.c.id.in_(ids), part.c.state == PartState.CLAIMED).values(values))


def _end_request(connection: Connection, claimed: ClaimedRequest, outcome: Outcome, now_us: int) -> None:
    # A lost answer may still take effect at Criteo: the request counts as in flight until its lease is over.
    lost = isinstance(outcome, Unavailable) and outcome.maybe_applied
    connection.execute(
        update(request)
        .where(request.c.id == claimed.request_id, request.c.state == "in_flight")
        .values(
            state="unknown" if lost else "settled",
            ended_us=now_us,
            code=outcome.code,
            valid=outcome.valid if isinstance(outcome, Accepted) else None,
            invalid=outcome.invalid if isinstance(outcome, Accepted) else None,
        )
    )


def _keys(audience_id: int, connection_id: str, ad_account: str) -> dict[str, str]:
    return {
        "connection": connection_id,
        "ad_account": f"{connection_id}/{ad_account}",
        "audience": str(audience_id),
    }


def _connection_id(connection: Connection, audience_id: int) -> str:
    query = select(audience.c.connection_id).where(audience.c.id == audience_id)
    return str(connection.execute(query).scalar_one())


def _stop(
    connection: Connection,
    claimed: ClaimedRequest,
    scope: str,
    outcome: AccessLost | AudienceGone,
    now_us: int,
) -> None:
    connection_id = _connection_id(connection, claimed.audience_id)
    key = _keys(claimed.audience_id, connection_id, claimed.ad_account)[scope]
    new = open_trouble(connection, scope, key, code=outcome.code, sentence=outcome.sentence, now_us=now_us)
    if not new and not claimed.is_probe:
        put_off_probe(connection, scope, key, now_us=now_us)


def _heal(connection: Connection, claimed: ClaimedRequest) -> None:
    """An answer to the content proves that connection, ad account and audience work."""
    if connection.execute(select(trouble.c.scope).limit(1)).first() is not None:
        connection_id = _connection_id(connection, claimed.audience_id)
        heal(connection, claimed.audience_id, connection_id, claimed.ad_account)


def heal(connection: Connection, audience_id: int, connection_id: str, ad_account: str) -> None:
    """Forget the troubles of an audience, its ad account and its connection: all three have just worked."""
    for scope, key in _keys(audience_id, connection_id, ad_account).items():
        connection.execute(delete(trouble).where(trouble.c.scope == scope, trouble.c.key == key))


def _audiences_of(row: Row[Any]) -> Any:
    ids = select(audience.c.id)
    match row.scope:
        case "connection":
            return ids.where(audience.c.connection_id == row.key)
        case "ad_account":
            return ids.where(audience.c.connection_id + "/" + audience.c.ad_account == row.key)
        case "audience":
            return ids.where(audience.c.id == int(row.key))
        case _:  # a source's trouble holds nobody back who has entered
            return ids.where(false())


def _lock_stages(connection: Connection, stage_ids: set[int]) -> None:
    for ids in slices(sorted(stage_ids)):
        connection.execute(select(stage.c.id).where(stage.c.id.in_(ids)).order_by(stage.c.id).with_for_update())
