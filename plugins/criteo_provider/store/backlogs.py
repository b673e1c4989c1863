"""Backlogs set aside: what a far-behind source had when its cursor was split, with a position and a fence of its own.

The cursor goes on behind the end of the backlog, so the two stretches never meet, whoever reads them and whoever dies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from sqlalchemy import Connection, Engine, delete, insert, select, update

from criteo_provider.core.errors import LostClaim
from criteo_provider.core.ports import CursorHold, Json
from criteo_provider.store.clock import is_over
from criteo_provider.store.engine import looking
from criteo_provider.store.schema import source_cursor
from criteo_provider.store.schema_growth import backlog


class Backlogs:
    """The backlogs of all canvases; ``write`` runs a verb in one transaction that writes."""

    def __init__(self, engine: Engine, write: Callable[[Callable[[Connection], Any]], Any]) -> None:
        self._engine, self._write = engine, write

    def is_left(self, canvas_id: str) -> bool:
        """Tell whether a canvas has a backlog set aside."""
        with looking(self._engine) as connection:
            found = connection.execute(select(backlog.c.id).where(backlog.c.canvas_id == canvas_id).limit(1))
            return found.first() is not None

    def set_aside(self, hold: CursorHold, upto: Json, *, now_us: int) -> CursorHold:
        """Split a cursor: what lies up to ``upto`` becomes a backlog, the cursor goes on behind it; may be lost."""
        split: CursorHold = self._write(lambda connection: _set_aside(connection, hold, upto, now_us=now_us))
        return split

    def hold(self, canvas_id: str, owner: str, *, now_us: int, lease_s: float) -> CursorHold | None:
        """Take the right to read the oldest backlog of a canvas that nobody else has."""
        if not self.is_left(canvas_id):
            return None
        held: CursorHold | None = self._write(
            lambda connection: _hold(connection, canvas_id, owner, now_us=now_us, lease_s=lease_s)
        )
        return held

    def keep(self, hold: CursorHold, *, now_us: int, lease_s: float) -> None:
        """Keep a backlog ours for a while longer."""
        mine = backlog.c.id == hold.backlog_id, backlog.c.owner == hold.owner
        until_us = now_us + round(lease_s * 1e6)
        self._write(lambda connection: connection.execute(update(backlog).where(*mine).values(lease_until_us=until_us)))

    def release(self, hold: CursorHold) -> None:
        """Let another process read this backlog, if any of it is left."""
        mine = backlog.c.id == hold.backlog_id, backlog.c.owner == hold.owner
        self._write(
            lambda connection: connection.execute(update(backlog).where(*mine).values(owner="", lease_until_us=0))
        )


def move(connection: Connection, hold: CursorHold, position: Json) -> CursorHold:
    """Move the position of a backlog, fenced, and forget it at its end: LostClaim when somebody else has moved it."""
    mine = backlog.c.id == hold.backlog_id, backlog.c.version == hold.version
    if position == hold.upto:
        moved = connection.execute(delete(backlog).where(*mine)).rowcount
    else:
        values = {"position": _text(position), "version": hold.version + 1, "owner": hold.owner}
        moved = connection.execute(update(backlog).where(*mine).values(values)).rowcount
    if moved != 1:
        raise LostClaim(f"The backlog {hold.backlog_id} of canvas {hold.canvas_id} was read by another process.")
    return CursorHold(hold.canvas_id, hold.owner, position, hold.version + 1, hold.backlog_id, hold.upto, hold.since_us)


def _set_aside(connection: Connection, hold: CursorHold, upto: Json, *, now_us: int) -> CursorHold:
    moved = connection.execute(
        update(source_cursor)
        .where(source_cursor.c.canvas_id == hold.canvas_id, source_cursor.c.version == hold.version)
        .values(position=_text(upto), version=hold.version + 1, owner=hold.owner, read_us=now_us)
    ).rowcount
    if moved != 1:
        raise LostClaim(f"The cursor of canvas {hold.canvas_id} was moved by another process.")
    stretch = {"position": _text(hold.position), "upto": _text(upto)}
    connection.execute(insert(backlog).values(canvas_id=hold.canvas_id, version=0, since_us=now_us, **stretch))
    return CursorHold(hold.canvas_id, hold.owner, upto, hold.version + 1)


def _hold(connection: Connection, canvas_id: str, owner: str, *, now_us: int, lease_s: float) -> CursorHold | None:
    free = (backlog.c.owner == owner) | is_over(backlog.c.lease_until_us, now_us)
    oldest = select(backlog.c.id).where(backlog.c.canvas_id == canvas_id, free).order_by(backlog.c.id).limit(1)
    row = connection.execute(
        update(backlog)
        .where(backlog.c.id == oldest.scalar_subquery(), free)
        .values(owner=owner, lease_until_us=now_us + round(lease_s * 1e6))
        .returning(backlog)
    ).one_or_none()
    if row is None:
        return None
    decode = msgspec.json.decode
    return CursorHold(canvas_id, owner, decode(row.position), row.version, row.id, decode(row.upto), row.since_us)


def _text(position: object) -> str:
    return msgspec.json.encode(position).decode()
