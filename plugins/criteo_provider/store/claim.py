"""Claiming: which request is next, who owns it and until when. A claim touches small rows only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Row,
    Select,
    and_,
    bindparam,
    func,
    insert,
    not_,
    or_,
    select,
    update,
)

from criteo_provider.core.model import (
    MAX_IDENTIFIERS,
    ClaimedPart,
    ClaimedRequest,
    Operation,
    PartState,
    Role,
)
from criteo_provider.core.spans import cut
from criteo_provider.store.clock import caught_up, is_over
from criteo_provider.store.holding import at_work
from criteo_provider.store.intents import drop_superseded, split
from criteo_provider.store.opt_outs import lock_claims
from criteo_provider.store.schema import audience, canvas, part, request, step
from criteo_provider.store.standings import refold, spans_from_text
from criteo_provider.store.troubles import Troubles
from criteo_provider.store.unwanted import close_unwanted
from criteo_provider.store.withdraw import close_opted_out

# A merged request of many small chunks must still settle in one short transaction.
MAX_PARTS = 2_000
# A chunk whose people go in two requests is settled twice, which costs more than a request that is almost full.
WORTH_CUTTING = MAX_IDENTIFIERS // 10
# Every fourth request of an audience starts with its newest chunk, so fresh people do not queue behind a backfill.
FRESH_TURN = 4
# Retries due within the first few attempts stay with the high-frequency DAG; the rest belongs to the retry DAG.
SHORT_ATTEMPTS = 3
# A look that finds only people overtaken by later intents is followed by another, for other work may wait.
LOOKS = 20
# A sign that waits behind a barrier keeps the other one back for so long; who waits may not be at work just now.
TURN_US = 10_000_000

# Statements of every claim are made once: to make one takes longer than the database needs for it.
_NOW = bindparam("now_us", type_=BigInteger)
_AUDIENCE = bindparam("audience_id", type_=BigInteger)


@dataclass(frozen=True, slots=True)
class Lane:
    """What could go into one request next: one audience, operation and identifier type, with something due."""

    audience_id: int
    operation: Operation
    identifier_type: str
    gum_caller_id: int | None
    criteo_id: str
    ad_account: str
    served: int
    served_us: int
    turn: str | None
    turn_until_us: int
    oldest: tuple[int, int]
    newest: tuple[int, int]


@dataclass(frozen=True, slots=True)
class ClaimTerms:
    """Who claims, for which connection, ad accounts and DAG, and for how long a claim holds without an answer."""

    connection_id: str
    ad_accounts: frozenset[str]
    role: Role
    owner: str
    lease_s: float


def claim(connection: Connection, terms: ClaimTerms, *, now_us: int) -> ClaimedRequest | None:
    """Claim the next request of a connection, or None when nothing may be sent now."""
    lock_claims(connection)
    now_us = caught_up(connection, now_us)
    reclaim_expired(connection, now_us=now_us)
    troubles = Troubles(connection, terms.connection_id, now_us)
    for _ in range(LOOKS):
        lanes = [one for one in _lanes(connection, terms, now_us) if troubles.admits(one.audience_id, one.ad_account)]
        if not lanes:
            return None
        in_flight = _in_flight(connection, {lane.audience_id for lane in lanes}, now_us)
        lane = _choose(connection, lanes, in_flight, now_us)
        if lane is None:
            return None
        rows = _parts(connection, lane, terms, now_us, newest_first=_is_fresh_turn(lane))
        rows = close_opted_out(connection, rows, now_us=now_us)
        rows = drop_superseded(connection, rows, now_us=now_us)
        if rows:
            is_probe = troubles.is_probe(lane.audience_id, lane.ad_account)
            if is_probe:
                troubles.put_off(connection, lane.audience_id, lane.ad_account, now_us)
            return _take(connection, lane, rows, terms, now_us, is_probe=is_probe)
    return None


def reclaim_expired(connection: Connection, *, now_us: int) -> int:
    """Open the parts of requests whose owner has let the lease run out; return how many requests that were."""
    ids = list(connection.execute(_LOST, {"now_us": now_us}).scalars())
    if ids:
        stage_ids = set(connection.execute(_TAKE_BACK, {"requests": ids, "now_us": now_us}).scalars())
        # Its owner may have settled at the last moment: then its parts were not ours to open either.
        connection.execute(_EXPIRE, {"requests": ids, "now_us": now_us})
        if close_unwanted(connection, stage_ids):
            refold(connection, stage_ids, cause="owner lost", now_us=now_us)
    return len(ids)


_LOST = select(request.c.id).where(request.c.state == "in_flight", is_over(request.c.lease_until_us + 1, _NOW))
_TAKE_BACK = (
    update(part)
    .where(part.c.request_id.in_(bindparam("requests", expanding=True)), part.c.state == PartState.CLAIMED)
    .values(state=PartState.OPEN, request_id=None, due_us=_NOW)
    .returning(part.c.stage_id)
)
_EXPIRE = (
    update(request)
    .where(request.c.id.in_(bindparam("requests", expanding=True)), request.c.state == "in_flight")
    .values(state="expired", ended_us=_NOW, code="owner-lost")
)


def sendable(role: Role, now_us: int | ColumnElement[int]) -> ColumnElement[bool]:
    """The condition on parts that ``role`` may send now; steps must be joined."""
    mine = part.c.attempts < SHORT_ATTEMPTS if role is Role.FRESH else part.c.attempts > 0
    not_over = or_(part.c.deadline_us.is_(None), part.c.deadline_us > now_us)
    return and_(part.c.state == PartState.OPEN, part.c.due_us <= now_us, at_work(), mine, not_over)


@cache
def _lanes_query(role: Role) -> Select[Any]:
    return (
        select(
            part.c.audience_id,
            part.c.operation,
            part.c.identifier_type,
            part.c.gum_caller_id,
            audience.c.criteo_id,
            audience.c.ad_account,
            audience.c.served,
            audience.c.served_us,
            audience.c.turn,
            audience.c.turn_until_us,
            func.min(part.c.intent_us).label("oldest_us"),
            func.max(part.c.intent_us).label("newest_us"),
            func.min(part.c.upload_id).label("first_id"),
            func.max(part.c.upload_id).label("last_id"),
        )
        .join(step, step.c.id == part.c.step_id)
        .join(audience, audience.c.id == part.c.audience_id)
        .where(
            audience.c.connection_id == bindparam("connection_id"),
            audience.c.ad_account.in_(bindparam("ad_accounts", expanding=True)),
            audience.c.criteo_id.is_not(None),
            part.c.look_back == 0,
            sendable(role, _NOW),
        )
        .group_by(part.c.audience_id, part.c.operation, part.c.identifier_type, part.c.gum_caller_id, audience.c.id)
    )


def _lanes(connection: Connection, terms: ClaimTerms, now_us: int) -> list[Lane]:
    wanted = {"connection_id": terms.connection_id, "ad_accounts": list(terms.ad_accounts), "now_us": now_us}
    return [
        Lane(
            row.audience_id,
            Operation(row.operation),
            row.identifier_type,
            row.gum_caller_id,
            row.criteo_id,
            row.ad_account,
            row.served,
            row.served_us,
            row.turn,
            row.turn_until_us,
            (row.oldest_us, row.first_id),
            (row.newest_us, row.last_id),
        )
        for row in connection.execute(_lanes_query(terms.role), wanted)
    ]


def _choose(connection: Connection, lanes: Sequence[Lane], in_flight: dict[int, set[str]], now_us: int) -> Lane | None:
    """Serve the audience that has waited longest; inside it the sign whose turn it is, then the oldest intent."""
    by_audience: dict[int, list[Lane]] = {}
    for lane in lanes:
        by_audience.setdefault(lane.audience_id, []).append(lane)
    for candidates in sorted(by_audience.values(), key=lambda group: (group[0].served_us, group[0].audience_id)):
        wanted = _wanted(candidates, now_us)
        if wanted is None:
            continue
        if wanted.operation.opposite.value not in in_flight.get(wanted.audience_id, ()):
            return wanted
        # The other sign is in flight: nobody else of this audience may start until this sign had its turn.
        # It keeps its turn as long as somebody at work waits for it, however slow Criteo is.
        if wanted.turn != wanted.operation.value or wanted.turn_until_us < now_us + TURN_US // 2:
            turn = {"turn": wanted.operation.value, "turn_until_us": now_us + TURN_US}
            connection.execute(_GIVE_TURN, {"audience": wanted.audience_id, **turn})
    return None


_GIVE_TURN = update(audience).where(audience.c.id == bindparam("audience"))


def _wanted(candidates: Sequence[Lane], now_us: int) -> Lane | None:
    turn = candidates[0].turn if now_us <= candidates[0].turn_until_us <= now_us + TURN_US else None
    if turn is not None:
        # Whose turn it is may be work of the other DAG: then nobody here is wanted.
        candidates = [lane for lane in candidates if lane.operation.value == turn]
    elif _is_fresh_turn(candidates[0]):
        return max(candidates, key=lambda lane: lane.newest)
    return min(candidates, key=lambda lane: lane.oldest, default=None)


def _is_fresh_turn(lane: Lane) -> bool:
    return lane.served % FRESH_TURN == FRESH_TURN - 1


@cache
def _parts_query(role: Role, *, newest_first: bool) -> Select[Any]:
    order = (part.c.intent_us, part.c.upload_id)
    ordered = [column.desc() if newest_first else column.asc() for column in order]
    return (
        select(part)
        .join(step, step.c.id == part.c.step_id)
        .where(
            part.c.audience_id == _AUDIENCE,
            part.c.operation == bindparam("operation"),
            part.c.identifier_type == bindparam("identifier_type"),
            part.c.gum_caller_id.is_not_distinct_from(bindparam("gum_caller_id", type_=part.c.gum_caller_id.type)),
            part.c.look_back == 0,
            sendable(role, _NOW),
        )
        # What is being narrowed goes last, each group alone.
        .order_by(part.c.narrow_level.asc(), part.c.narrow_group.asc(), *ordered)
        .limit(MAX_PARTS)
        # SQLite, where there is one writer, has no locks of rows, and leaves this out.
        .with_for_update(of=part, skip_locked=True)
    )


def _parts(connection: Connection, lane: Lane, terms: ClaimTerms, now_us: int, *, newest_first: bool) -> list[Row[Any]]:
    wanted = {
        "audience_id": lane.audience_id,
        "operation": lane.operation.value,
        "identifier_type": lane.identifier_type,
        "gum_caller_id": lane.gum_caller_id,
        "now_us": now_us,
    }
    rows = connection.execute(_parts_query(terms.role, newest_first=newest_first), wanted).all()
    if rows and rows[0].narrow_level:
        return [row for row in rows if row.narrow_group == rows[0].narrow_group]
    return _fill(connection, [row for row in rows if not row.narrow_level])


def _fill(connection: Connection, rows: Sequence[Row[Any]]) -> list[Row[Any]]:
    """Take what fits into a request, and then the beginning of what does not, if much room is left.

    Whose turn it is goes first, also when that alone is more than fits.
    """
    if rows and rows[0].identifiers > MAX_IDENTIFIERS:
        return [_beginning(connection, rows[0], MAX_IDENTIFIERS)]
    taken, too_large, room = [], [], MAX_IDENTIFIERS
    for row in rows:
        if row.identifiers <= room:
            taken.append(row)
            room -= row.identifiers
        else:
            too_large.append(row)
    if too_large and room >= WORTH_CUTTING:
        taken.append(_beginning(connection, too_large[0], room))
    return taken


def _beginning(connection: Connection, row: Row[Any], identifiers: int) -> Row[Any]:
    """Make a part of its own of the first people of one."""
    people, _ = cut(spans_from_text(row.spans), identifiers)
    return split(connection, row, people, {})


def _take(
    connection: Connection,
    lane: Lane,
    rows: Sequence[Row[Any]],
    terms: ClaimTerms,
    now_us: int,
    *,
    is_probe: bool,
) -> ClaimedRequest:
    lease_until_us = now_us + round(terms.lease_s * 1e6)
    values = {
        "audience_id": lane.audience_id,
        "operation": lane.operation.value,
        "identifier_type": lane.identifier_type,
        "identifiers": sum(row.identifiers for row in rows),
        "parts": len(rows),
        "owner": terms.owner,
        "role": terms.role.value,
        "claimed_us": now_us,
        "lease_until_us": lease_until_us,
        "state": "in_flight",
        "narrow_root": rows[0].narrow_root,
        "narrow_level": rows[0].narrow_level,
    }
    request_id = int(connection.execute(_NEW_REQUEST, values).scalar_one())
    connection.execute(_TAKEN, {"ids": [row.id for row in rows], "request": request_id, "now_us": now_us})
    connection.execute(_SERVED, {"audience": lane.audience_id, "now_us": now_us})
    return ClaimedRequest(
        request_id,
        lane.audience_id,
        lane.criteo_id,
        lane.ad_account,
        lane.operation,
        lane.identifier_type,
        lane.gum_caller_id,
        tuple(_claimed_part(row) for row in rows),
        lease_until_us,
        is_probe,
    )


_NEW_REQUEST = insert(request).returning(request.c.id)
_PATIENCE = (
    select(canvas.c.retry_for_us)
    .join(step, step.c.canvas_id == canvas.c.id)
    .where(step.c.id == part.c.step_id)
    .scalar_subquery()
)
_TAKEN = (
    update(part)
    .where(part.c.id.in_(bindparam("ids", expanding=True)))
    .values(
        state=PartState.CLAIMED,
        request_id=bindparam("request"),
        attempts=part.c.attempts + 1,
        deadline_us=func.coalesce(part.c.deadline_us, _NOW + _PATIENCE),
    )
)
_SERVED = (
    update(audience)
    .where(audience.c.id == bindparam("audience"))
    .values(served=audience.c.served + 1, served_us=_NOW, turn=None, turn_until_us=0)
)


def _claimed_part(row: Row[Any]) -> ClaimedPart:
    return ClaimedPart(
        row.id,
        row.stage_id,
        row.chunk_id,
        row.form,
        spans_from_text(row.spans),
        row.identifiers,
        row.attempts + 1,
        row.narrow_level,
        row.narrow_root,
        row.intent_us,
        row.earlier_id,
    )


def _in_flight(connection: Connection, audience_ids: Iterable[int], now_us: int) -> dict[int, set[str]]:
    """Which signs may still reach Criteo; a lost answer counts until its lease is over."""
    signs: dict[int, set[str]] = {}
    for row in connection.execute(_UNDER_WAY, {"audiences": list(audience_ids), "now_us": now_us}):
        signs.setdefault(row.audience_id, set()).add(row.operation)
    return signs


_UNDER_WAY = select(request.c.audience_id, request.c.operation).where(
    request.c.audience_id.in_(bindparam("audiences", expanding=True)),
    or_(request.c.state == "in_flight", request.c.state == "unknown"),
    not_(is_over(request.c.lease_until_us + 1, _NOW)),
)
