"""What may become of claimed parts when their request is over: given back, tried later, or ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, bindparam, update

from criteo_provider.core.model import PartState
from criteo_provider.core.outcome import retry_wait_s
from criteo_provider.store.schema import part
from criteo_provider.store.standings import slices


def reopen(
    connection: Connection, rows: Sequence[Row[Any]], due_us: int, *, attempts_back: int = 0, **values: Any
) -> None:
    """Give claimed parts back, due at ``due_us``."""
    opened = {"state": PartState.OPEN, "request_id": None, "due_us": due_us, **values}
    for ids in slices([row.id for row in rows]):
        connection.execute(_GIVEN_BACK, {"parts": list(ids), "attempts_back": attempts_back, **opened})


def retry_later(
    connection: Connection,
    rows: Sequence[Row[Any]],
    now_us: int,
    jitter: float,
    sentence: str,
    *,
    wait_s: float | None = None,
    **values: Any,
) -> None:
    """Give claimed parts back for another try, later and later."""
    by_attempts: dict[int, list[Row[Any]]] = {}
    for row in rows:
        by_attempts.setdefault(row.attempts, []).append(row)
    for attempts, alike in by_attempts.items():
        # A time Criteo names is waited out first: whoever was named the same does not come back at once together.
        pause_s = (wait_s or 0.0) + retry_wait_s(attempts, jitter=jitter)
        reopen(connection, alike, now_us + round(pause_s * 1e6), reason=sentence, **values)


def close(connection: Connection, rows: Sequence[Row[Any]], values: dict[str, Any]) -> None:
    """End claimed parts."""
    for ids in slices([row.id for row in rows]):
        connection.execute(_CLAIMED, {"parts": list(ids), **values})


_CLAIMED = update(part).where(part.c.id.in_(bindparam("parts", expanding=True)), part.c.state == PartState.CLAIMED)
_GIVEN_BACK = _CLAIMED.values(attempts=part.c.attempts - bindparam("attempts_back"))
