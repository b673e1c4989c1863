"""Narrowing: a refusal is sent again in smaller pieces, until the lone bad ones are found, within a bound of calls.

A merged request is cut along chunk borders first, then chunks are cut in halves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, func, select, update

from criteo_provider.core.model import ClaimedRequest, PartState, Reason
from criteo_provider.core.spans import halves
from criteo_provider.store.intents import split
from criteo_provider.store.reopen import close, reopen, retry_later
from criteo_provider.store.schema import part, request
from criteo_provider.store.standings import spans_from_text

# At most so many extra calls a request.
MAX_CALLS = 64
# Both halves at both of the first two levels: six calls that were all refused alike.
ALIKE = 6
# Marks what was refused as a whole: it goes together, and is not narrowed again.
WHOLE = 99


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
    if level == WHOLE:
        retry_later(connection, rows, now_us, jitter, sentence)
    elif len(rows) == 1 and rows[0].identifiers == 1:
        close(connection, rows, {"state": PartState.REFUSED, "reason": Reason.INVALID_AT_CRITEO})
    elif level == 2 and _all_alike(connection, root, claimed, code):
        _refuse_whole(connection, rows, root, now_us, jitter, sentence)
    elif _calls(connection, root) + 2 > MAX_CALLS:
        retry_later(connection, rows, now_us, jitter, sentence, narrow_root=root)
    else:
        _halve(connection, claimed, rows, root, level, now_us, sentence)


def _halve(
    connection: Connection,
    claimed: ClaimedRequest,
    rows: Sequence[Row[Any]],
    root: int,
    level: int,
    now_us: int,
    sentence: str,
) -> None:
    # A request is cut once, so its id makes two group names nobody else uses.
    front, back = 2 * claimed.request_id, 2 * claimed.request_id + 1
    again = {"narrow_level": level + 1, "narrow_root": root, "reason": sentence}
    if len(rows) > 1:
        middle = len(rows) // 2
        reopen(connection, rows[:middle], now_us, attempts_back=1, narrow_group=front, **again)
        reopen(connection, rows[middle:], now_us, attempts_back=1, narrow_group=back, **again)
        return
    row = rows[0]
    reopen(connection, rows, now_us, attempts_back=1, narrow_group=back, **again)
    people, _ = halves(spans_from_text(row.spans))
    opened = {"state": PartState.OPEN, "request_id": None, "due_us": now_us, "attempts": row.attempts - 1}
    split(connection, row, people, {**opened, **again, "narrow_group": front})


def _all_alike(connection: Connection, root: int, claimed: ClaimedRequest, code: str) -> bool:
    """Whether every call of the first two levels, this one included, was refused with the same code."""
    query = select(request.c.code).where(
        request.c.narrow_root == root, request.c.narrow_level.in_((1, 2)), request.c.id != claimed.request_id
    )
    codes = [*connection.execute(query).scalars(), code]
    return code != "accepted" and len(codes) == ALIKE and set(codes) == {code}


def _refuse_whole(
    connection: Connection, rows: Sequence[Row[Any]], root: int, now_us: int, jitter: float, sentence: str
) -> None:
    together = {"narrow_level": WHOLE, "narrow_root": root, "narrow_group": 2 * root}
    retry_later(connection, rows, now_us, jitter, sentence, **together)
    due_us = select(func.max(part.c.due_us)).where(part.c.id.in_([row.id for row in rows])).scalar_subquery()
    connection.execute(
        update(part)
        .where(part.c.narrow_root == root, part.c.state == PartState.OPEN)
        .values(**together, due_us=due_us, attempts=max(row.attempts for row in rows), reason=sentence)
    )


def _calls(connection: Connection, root: int) -> int:
    """Count the calls a narrowing has cost, or will cost for certain."""
    made = select(func.count()).select_from(request).where(request.c.narrow_root == root)
    planned = select(func.count(func.distinct(part.c.narrow_group))).where(
        part.c.narrow_root == root, part.c.state == PartState.OPEN
    )
    return int(connection.execute(made).scalar_one()) + int(connection.execute(planned).scalar_one())
