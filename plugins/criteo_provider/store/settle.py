"""Settling: one transaction takes in what Criteo said of one request, fenced by who owns each part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, assert_never

from sqlalchemy import BigInteger, Connection, Row, bindparam, func, literal, select, update

from criteo_provider.core import identifiers as forms
from criteo_provider.core.model import ClaimedRequest, Metric, PartState, Reason
from criteo_provider.core.outcome import (
    Accepted,
    AccessLost,
    AudienceGone,
    Busy,
    Outcome,
    Refused,
    Unavailable,
)
from criteo_provider.core.spans import from_ordinals, size
from criteo_provider.store import gone
from criteo_provider.store.alarms import gave_up
from criteo_provider.store.clock import FURTHEST_US
from criteo_provider.store.holding import at_work
from criteo_provider.store.intents import CHANGE_PART, people_of, split
from criteo_provider.store.late_arrivals import may_have_arrived, send_last_intents_again
from criteo_provider.store.narrow import judged, narrow
from criteo_provider.store.reopen import close, reopen, retry_later
from criteo_provider.store.schema import audience, canvas, part, request, stage, step, trouble
from criteo_provider.store.standings import refold, slices
from criteo_provider.store.troubles import (
    audiences_of,
    give_probe_back,
    heal,
    keys_of,
    open_trouble,
    vouch_for_wider,
)
from criteo_provider.store.unwanted import close_unwanted

_UNNAMED = "Criteo counts invalid identifiers it does not name; they are looked for."


# What a request still holds: whoever settles it may touch nothing else.
_HELD = (
    select(part)
    .where(part.c.request_id == bindparam("request"), part.c.state == PartState.CLAIMED)
    .order_by(part.c.id)
    .with_for_update()
)


def settle(connection: Connection, claimed: ClaimedRequest, outcome: Outcome, *, now_us: int, jitter: float) -> int:
    """Write what ``outcome`` means for the people of ``claimed``; return how many of its parts were lost to others."""
    rows = connection.execute(_HELD, {"request": claimed.request_id}).all()
    if len(rows) < len(claimed.parts) and may_have_arrived(outcome):
        send_last_intents_again(connection, claimed, {row.id for row in rows}, now_us=now_us)
    if not rows:
        # All of it belongs to others by now: an answer changes nobody.
        _end_request(connection, claimed, outcome, now_us)
        return len(claimed.parts)
    _lock_stages(connection, {row.stage_id for row in rows})
    match outcome:
        case Accepted():
            judged(connection, rows, outcome.code, now_us=now_us)
            _accept(connection, claimed, rows, outcome, now_us, jitter)
            _heal(connection, claimed, now_us)
        case Busy():
            reopen(connection, rows, now_us, attempts_back=1)
            _probe_again(connection, claimed, now_us)
        case Unavailable():
            retry_later(connection, rows, now_us, jitter, outcome.sentence, wait_s=outcome.wait_s)
        case AccessLost():
            reopen(connection, rows, now_us, reason=outcome.sentence)
            _stop(connection, claimed, outcome.scope, outcome, now_us)
        case AudienceGone() if gone.is_another_by_now(connection, claimed):
            reopen(connection, rows, now_us, attempts_back=1)
        case AudienceGone():
            if given_up := gone.mark(connection, claimed.audience_id, now_us):
                close(connection, rows, given_up)
            else:
                reopen(connection, rows, now_us, reason=outcome.sentence)
            _stop(connection, claimed, "audience", outcome, now_us)
        case Refused():
            narrow(connection, claimed, rows, outcome.code, outcome.sentence, now_us, jitter)
            _heal(connection, claimed, now_us)
        case _:
            assert_never(outcome)
    stage_ids = {row.stage_id for row in rows}
    close_unwanted(connection, stage_ids)
    refold(connection, stage_ids, cause=f"request:{claimed.request_id}", now_us=now_us)
    _end_request(connection, claimed, outcome, now_us)
    return len(claimed.parts) - len(rows)


def release(connection: Connection, claimed: ClaimedRequest, *, now_us: int) -> None:
    """Give a claim back unsent: it costs no attempt, and starts no clock."""
    rows = connection.execute(_HELD, {"request": claimed.request_id}).all()
    connection.execute(_STOP_CLOCKS, {"parts": [row.id for row in rows], "request": claimed.request_id})
    reopen(connection, rows, now_us, attempts_back=1)
    stage_ids = {row.stage_id for row in rows}
    if close_unwanted(connection, stage_ids):
        refold(connection, stage_ids, cause=f"request:{claimed.request_id}", now_us=now_us)
    connection.execute(_END, {"request": claimed.request_id, "state": "released", "ended_us": now_us})
    _probe_again(connection, claimed, now_us)


def revive(connection: Connection, *, now_us: int) -> int:
    """Pick up again whoever was given up before the deadline; return how many parts that were."""
    stage_ids = connection.execute(_REVIVE, {"now_us": now_us}).scalars().all()
    close_unwanted(connection, set(stage_ids))
    refold(connection, set(stage_ids), cause="errored too early", now_us=now_us)
    return len(stage_ids)


def set_right(connection: Connection, *, now_us: int) -> None:
    """Let go on what waits for a moment further ahead than any wait: the clock has stepped back since."""
    connection.execute(_LET_GO, {"now_us": now_us})


def expire(connection: Connection, *, now_us: int) -> int:
    """Record as Errored whatever is past its deadline with nothing in flight; return how many parts that were."""
    overdue = connection.execute(_OVERDUE, {"now_us": now_us}).scalars().all()
    errored: set[int] = set()
    for ids in slices(overdue):
        errored.update(connection.execute(_GIVE_UP, {"parts": list(ids), "now_us": now_us}).scalars())
    if refold(connection, errored, cause="deadline", now_us=now_us).total(Metric.ERRORED):
        gave_up(connection, errored, now_us=now_us)
    return len(overdue)


def start_clocks(connection: Connection, *, now_us: int) -> None:
    """Start the patience clock of people who are due and held back by a known trouble, from when both were so."""
    later = func.max if connection.dialect.name == "sqlite" else func.greatest
    for row in connection.execute(_TROUBLES).all():
        # A trouble of the future was noted before the clock stepped back: it is one by now, and no longer than that.
        since = later(part.c.due_us, literal(min(row.since_us, now_us), BigInteger))
        connection.execute(
            update(part)
            .where(
                part.c.state == PartState.OPEN,
                part.c.due_us <= now_us,
                part.c.deadline_us.is_(None),
                part.c.audience_id.in_(audiences_of(row.scope, row.key)),
                part.c.step_id.in_(select(step.c.id).where(at_work())),
            )
            .values(deadline_us=since + _PATIENCE, reason=row.sentence)
        )


_NOW = bindparam("now_us", type_=BigInteger)
# How long the canvas of a part is patient, in microseconds.
_PATIENCE = (
    select(canvas.c.retry_for_us)
    .join(step, step.c.canvas_id == canvas.c.id)
    .where(step.c.id == part.c.step_id)
    .scalar_subquery()
)
_STARTED = select(request.c.claimed_us).where(request.c.id == bindparam("request")).scalar_subquery()
_STOP_CLOCKS = (
    update(part)
    .where(part.c.id.in_(bindparam("parts", expanding=True)), part.c.deadline_us == _STARTED + _PATIENCE)
    .values(deadline_us=None)
)
_REVIVE = (
    update(part)
    .where(part.c.state == PartState.ERRORED, part.c.deadline_us > _NOW)
    .values(state=PartState.OPEN, request_id=None, due_us=_NOW)
    .returning(part.c.stage_id)
)
_LET_GO = (
    update(part)
    .where(part.c.state == PartState.OPEN, part.c.due_us > _NOW + FURTHEST_US, part.c.narrow_root.is_(None))
    .values(due_us=_NOW)
)
_OVERDUE = (
    select(part.c.id)
    .join(step, step.c.id == part.c.step_id)
    .where(part.c.state == PartState.OPEN, part.c.deadline_us <= _NOW, at_work())
    .order_by(part.c.id)
    .limit(5_000)
)
_GIVE_UP = (
    update(part)
    # Somebody may have had them tried again since they were looked at.
    .where(part.c.id.in_(bindparam("parts", expanding=True)), part.c.state == PartState.OPEN)
    .where(part.c.deadline_us <= _NOW)
    .values(state=PartState.ERRORED, reason=func.coalesce(part.c.reason, "Criteo was never reached."))
    .returning(part.c.stage_id)
)
_TROUBLES = select(trouble)


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
        close(connection, rows, refused)
        return
    if outcome.invalid and _carve_out(connection, rows, outcome.sample, refused) < outcome.invalid:
        # Criteo counts more invalid identifiers than it names: the rest is found by sending halves again.
        left = connection.execute(_HELD, {"request": claimed.request_id}).all()
        narrow(connection, claimed, left, outcome.code, _UNNAMED, now_us, jitter)
        return
    close(
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
        held = people_of(connection, row, named)
        if held:
            found.update(held.values())
            people = from_ordinals(held)
            if size(people) == row.identifiers:
                connection.execute(CHANGE_PART, {"part": row.id, **values})
            else:
                split(connection, row, people, values)
    return len(found)


def _end_request(connection: Connection, claimed: ClaimedRequest, outcome: Outcome, now_us: int) -> None:
    state = "settled" if isinstance(outcome, (Accepted, Refused)) else "failed"
    if isinstance(outcome, Unavailable) and outcome.maybe_applied:
        # A lost answer may still take effect at Criteo: the request counts as in flight until its lease is over.
        state = "unknown"
    values = {
        "state": state,
        "ended_us": now_us,
        "code": outcome.code,
        "valid": outcome.valid if isinstance(outcome, Accepted) else None,
        "invalid": outcome.invalid if isinstance(outcome, Accepted) else None,
    }
    connection.execute(_END, {"request": claimed.request_id, **values})


_END = update(request).where(request.c.id == bindparam("request"), request.c.state == "in_flight")


def _connection_id(connection: Connection, audience_id: int) -> str:
    return str(connection.execute(_CONNECTION, {"audience": audience_id}).scalar_one())


_CONNECTION = select(audience.c.connection_id).where(audience.c.id == bindparam("audience"))


def _stop(
    connection: Connection,
    claimed: ClaimedRequest,
    scope: str,
    outcome: AccessLost | AudienceGone,
    now_us: int,
) -> None:
    connection_id = _connection_id(connection, claimed.audience_id)
    key = keys_of(claimed.audience_id, connection_id, claimed.ad_account)[scope]
    vouch_for_wider(connection, scope, key, now_us=now_us)
    # A claim has put off the next probe already; what was in flight when the trouble began is none.
    open_trouble(connection, scope, key, code=outcome.code, sentence=outcome.sentence, now_us=now_us)


def _probe_again(connection: Connection, claimed: ClaimedRequest, now_us: int) -> None:
    """A probe that was not sent, or not looked at, has found out nothing: another one may go at once."""
    if claimed.is_probe:
        connection_id = _connection_id(connection, claimed.audience_id)
        give_probe_back(connection, keys_of(claimed.audience_id, connection_id, claimed.ad_account), now_us=now_us)


def _heal(connection: Connection, claimed: ClaimedRequest, now_us: int) -> None:
    """An answer to the content proves that connection, ad account and audience work."""
    if connection.execute(_TROUBLES).first() is not None:
        connection_id = _connection_id(connection, claimed.audience_id)
        heal(connection, claimed.audience_id, connection_id, claimed.ad_account, now_us=now_us)


def _lock_stages(connection: Connection, stage_ids: set[int]) -> None:
    """Lock stages in the order of their ids; SQLite has one writer anyway."""
    for ids in slices(sorted(stage_ids)) if connection.dialect.name == "postgresql" else ():
        connection.execute(_LOCK, {"stages": list(ids)})


_LOCK = (
    select(stage.c.id).where(stage.c.id.in_(bindparam("stages", expanding=True))).order_by(stage.c.id).with_for_update()
)
