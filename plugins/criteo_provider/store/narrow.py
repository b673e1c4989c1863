"""Narrowing: a refusal is sent again in smaller pieces, until the lone bad ones are found, within a bound of calls.

A merged request is cut along chunk borders first, then chunks are cut in halves. At most 64 extra calls are made for a
request within half an hour; what is left is cut and sent in the half hours that follow, while patience lasts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, Connection, Row, bindparam, func, or_, select, update

from criteo_provider.core.model import ClaimedRequest, PartState, Reason
from criteo_provider.core.spans import halves
from criteo_provider.store.intents import split
from criteo_provider.store.reopen import close, reopen, retry_later
from criteo_provider.store.schema import part, request
from criteo_provider.store.standings import refold, spans_from_text

# At most so many extra calls a request …
MAX_CALLS = 64
# … within so long.
ROUND_US = 1_800_000_000
# Both halves at both of these levels decide whether it is the content or the call that is refused.
DECIDING = (1, 2)
# Marks lone people who are refused while that is not decided yet …
HELD = 98
# … and what was refused as a whole: it goes together, and is not narrowed again.
WHOLE = 99

_REFUSED = {"state": PartState.REFUSED, "reason": Reason.INVALID_AT_CRITEO}


def narrow(
    connection: Connection,
    claimed: ClaimedRequest,
    rows: Sequence[Row[Any]],
    code: str,
    sentence: str,
    now_us: int,
    jitter: float,
) -> None:
    """Cut the parts of a refused request in two groups that are sent one by one, or end or put off what is left."""
    if not rows:
        return
    root, level = rows[0].narrow_root or claimed.request_id, rows[0].narrow_level
    if level == WHOLE and code == "accepted":
        # The refusal of the whole is over: what is looked for now is another matter, from its beginning.
        root, level = claimed.request_id, 0
    is_lone = len(rows) == 1 and rows[0].identifiers == 1
    if level == WHOLE:
        retry_later(connection, rows, now_us, jitter, sentence)
        return
    if root != claimed.request_id and code != "accepted" and (is_lone or level == DECIDING[-1]):
        alike = _all_alike(connection, root, claimed, rows, code)
        if alike:
            _refuse_whole(connection, rows, root, now_us, jitter, sentence)
            return
        if alike is None and is_lone:
            held = {"narrow_level": HELD, "narrow_group": 2 * claimed.request_id, "reason": sentence}
            reopen(connection, rows, now_us + ROUND_US, attempts_back=1, **held)
            return
    judged(connection, rows, code, now_us=now_us)
    if is_lone:
        close(connection, rows, _REFUSED)
    else:
        _halve(connection, claimed, rows, root, level, now_us, sentence)


def judged(connection: Connection, rows: Sequence[Row[Any]], code: str, *, now_us: int) -> None:
    """Let go of lone people who were held: some of their request were judged otherwise, so it is they who are bad."""
    root = rows[0].narrow_root if rows else None
    if root is None or rows[0].narrow_level == WHOLE:
        return
    if code != "accepted" and connection.execute(_OTHERWISE, {"root": root, "code": code, "but": 0}).first() is None:
        return
    let_go = connection.execute(_LET_GO, {"root": root}).scalars()
    refold(connection, set(let_go), cause=f"narrowing:{root}", now_us=now_us)


_OF_ROOT = part.c.narrow_root == bindparam("root")
_LET_GO = (
    update(part)
    .where(_OF_ROOT, part.c.narrow_level == HELD, part.c.state == PartState.OPEN)
    .values(_REFUSED)
    .returning(part.c.stage_id)
)


def _halve(
    connection: Connection,
    claimed: ClaimedRequest,
    rows: Sequence[Row[Any]],
    root: int,
    level: int,
    now_us: int,
    sentence: str,
) -> None:
    due_us = _next_round(connection, root, now_us)
    # A request is cut once, so its id makes two group names nobody else uses.
    front, back = 2 * claimed.request_id, 2 * claimed.request_id + 1
    again = {"narrow_level": level + 1, "narrow_root": root, "reason": sentence}
    if len(rows) > 1:
        middle = len(rows) // 2
        reopen(connection, rows[:middle], due_us, attempts_back=1, narrow_group=front, **again)
        reopen(connection, rows[middle:], due_us, attempts_back=1, narrow_group=back, **again)
        return
    row = rows[0]
    reopen(connection, rows, due_us, attempts_back=1, narrow_group=back, **again)
    people, _ = halves(spans_from_text(row.spans))
    opened = {"state": PartState.OPEN, "request_id": None, "due_us": due_us, "attempts": row.attempts - 1}
    split(connection, row, people, {**opened, **again, "narrow_group": front})


# Requests that Criteo has judged otherwise: the narrowed one, or its halves of the deciding levels; but one (0: none).
_HALVED = (request.c.narrow_root == bindparam("root")) & request.c.narrow_level.in_(DECIDING)
_OTHERWISE = (
    select(request.c.id)
    .where(
        or_(request.c.id == bindparam("root"), _HALVED) & (request.c.state == "settled"),
        request.c.id != bindparam("but"),
        request.c.code != bindparam("code"),
    )
    .limit(1)
)


def _all_alike(
    connection: Connection, root: int, claimed: ClaimedRequest, rows: Sequence[Row[Any]], code: str
) -> bool | None:
    """Whether all halves of the deciding levels were refused with this code; None while some were not judged yet."""
    otherwise = {"root": root, "code": code, "but": claimed.request_id}
    if connection.execute(_OTHERWISE, otherwise).first() is not None:
        return False
    waiting = connection.execute(_UNDECIDED, {"root": root, "parts": [row.id for row in rows]}).first()
    return None if waiting is not None else True


_UNDECIDED = (
    select(part.c.id)
    .where(
        _OF_ROOT,
        part.c.narrow_level.in_(DECIDING),
        part.c.state.in_((PartState.OPEN, PartState.CLAIMED)),
        part.c.id.not_in(bindparam("parts", expanding=True)),
    )
    .limit(1)
)


def _refuse_whole(
    connection: Connection, rows: Sequence[Row[Any]], root: int, now_us: int, jitter: float, sentence: str
) -> None:
    together = {"narrow_level": WHOLE, "narrow_root": root, "narrow_group": 2 * root}
    retry_later(connection, rows, now_us, jitter, sentence, **together)
    values = {**together, "attempts": max(row.attempts for row in rows), "reason": sentence}
    connection.execute(_TOGETHER, {"root": root, "parts": [row.id for row in rows], **values})


_LATEST = select(func.max(part.c.due_us)).where(part.c.id.in_(bindparam("parts", expanding=True))).scalar_subquery()
_TOGETHER = update(part).where(_OF_ROOT, part.c.state == PartState.OPEN).values(due_us=_LATEST)


def _next_round(connection: Connection, root: int, now_us: int) -> int:
    """Return when two more calls of a narrowing may be made: now, or in the first half hour that has room for them."""
    wanted = {"root": root, "now_us": now_us}
    made = int(connection.execute(_MADE, wanted).scalar_one())
    if made + int(connection.execute(_DUE, wanted).scalar_one()) + 2 <= MAX_CALLS:
        return now_us
    later = int(connection.execute(_LATER, wanted).scalar_one())
    return now_us + ROUND_US * (1 + (later + 2) // MAX_CALLS)


_NOW = bindparam("now_us", type_=BigInteger)
_MADE = select(func.count()).where(request.c.narrow_root == bindparam("root"), request.c.claimed_us > _NOW - ROUND_US)
_GROUPS = select(func.count(func.distinct(part.c.narrow_group))).where(_OF_ROOT, part.c.state == PartState.OPEN)
_DUE = _GROUPS.where(part.c.due_us <= _NOW)
_LATER = _GROUPS.where(part.c.due_us > _NOW)
