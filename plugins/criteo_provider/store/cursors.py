"""Cursors: who reads a source, how far it is read, and what of it is to be read again."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import msgspec
from sqlalchemy import BigInteger, Connection, bindparam, delete, insert, select, update

from criteo_provider.core.errors import LostClaim
from criteo_provider.core.ports import CursorHold, Json, Look
from criteo_provider.store import backlogs
from criteo_provider.store.clock import is_over
from criteo_provider.store.schema import look, source_cursor, source_unit
from criteo_provider.store.standings import slices

_NOW = bindparam("now_us", type_=BigInteger)


def hold(connection: Connection, canvas_id: str, owner: str, *, now_us: int, lease_s: float) -> CursorHold | None:
    """Take the right to read a source, None while another process has it; an expired lease may be taken."""
    values = {"owner": owner, "lease_until_us": now_us + round(lease_s * 1e6)}
    wanted = {"canvas": canvas_id, "reader": owner, "now_us": now_us}
    row = connection.execute(_HOLD, {**wanted, **values}).one_or_none()
    return CursorHold(canvas_id, owner, msgspec.json.decode(row.position), row.version) if row else None


def release(connection: Connection, held: CursorHold) -> None:
    """Let another process read this source."""
    connection.execute(_RELEASE, {"canvas": held.canvas_id, "reader": held.owner})


def position(connection: Connection, canvas_id: str) -> Json:
    """Return where the cursor of a canvas stands."""
    text = connection.execute(_POSITION, {"canvas": canvas_id}).scalar()
    stands: Json = msgspec.json.decode(text) if text else None
    return stands


_OF_CANVAS = source_cursor.c.canvas_id == bindparam("canvas")
_HOLD = (
    update(source_cursor)
    .where(
        _OF_CANVAS,
        (source_cursor.c.owner == bindparam("reader")) | is_over(source_cursor.c.lease_until_us, _NOW),
    )
    .returning(source_cursor.c.position, source_cursor.c.version)
)
_RELEASE = (
    update(source_cursor)
    .where(_OF_CANVAS, source_cursor.c.owner == bindparam("reader"))
    .values(owner="", lease_until_us=0)
)
_POSITION = select(source_cursor.c.position).where(_OF_CANVAS)


def move(connection: Connection, held: CursorHold, position: Json, *, now_us: int) -> CursorHold:
    """Move a source's cursor, fenced: LostClaim when somebody else has moved it since."""
    if held.backlog_id is not None:
        return backlogs.move(connection, held, position)
    behind = msgspec.json.encode(position).decode()
    values = {"position": behind, "version": held.version + 1, "owner": held.owner, "read_us": now_us}
    if connection.execute(_AS_HELD, {"canvas": held.canvas_id, "held": held.version, **values}).rowcount != 1:
        raise LostClaim(f"The cursor of canvas {held.canvas_id} was moved by another process.")
    return CursorHold(held.canvas_id, held.owner, position, held.version + 1)


_AS_HELD = update(source_cursor).where(_OF_CANVAS, source_cursor.c.version == bindparam("held"))


def complete_units(connection: Connection, canvas_id: str, units: Sequence[str], *, now_us: int) -> None:
    """Record finished units (files), so that they are never read again."""
    if units:
        rows = [{"canvas_id": canvas_id, "unit": unit_digest(unit), "done_us": now_us} for unit in units]
        connection.execute(_NEW_UNIT, rows)


_NEW_UNIT = insert(source_unit)


def completed_units(connection: Connection, canvas_id: str, units: Sequence[str]) -> set[str]:
    """Return those of ``units`` that are finished."""
    by_digest = {unit_digest(unit): unit for unit in units}
    done: set[str] = set()
    for digests in slices(list(by_digest)):
        found = connection.execute(_FINISHED, {"canvas": canvas_id, "digests": list(digests)}).scalars()
        done.update(by_digest[bytes(digest)] for digest in found)
    return done


_FINISHED = select(source_unit.c.unit).where(
    source_unit.c.canvas_id == bindparam("canvas"), source_unit.c.unit.in_(bindparam("digests", expanding=True))
)


def keep_look(connection: Connection, canvas_id: str, wanted: Look, *, now_us: int) -> None:
    """Remember a stretch of the source that is to be read once more."""
    values = {
        "canvas_id": canvas_id,
        "after": msgspec.json.encode(wanted.after).decode(),
        "upto": msgspec.json.encode(wanted.upto).decode(),
        "due_us": now_us + round(wanted.due_after_s * 1e6),
        "last": wanted.last,
        "marks": wanted.marks,
    }
    connection.execute(_NEW_LOOK, values)


def end_look(connection: Connection, look_id: int) -> None:
    """End a second look: LostClaim when another process did."""
    if connection.execute(_END_LOOK, {"look": look_id}).rowcount != 1:
        raise LostClaim(f"Another process has taken the second look {look_id}.")


_NEW_LOOK = insert(look)
_END_LOOK = delete(look).where(look.c.id == bindparam("look"))


def due_looks(connection: Connection, canvas_id: str, *, now_us: int, limit: int) -> list[tuple[int, Look]]:
    """Return stretches of a source that are to be read again now, oldest first."""
    rows = connection.execute(_DUE_LOOKS, {"canvas": canvas_id, "now_us": now_us, "most": limit}).all()
    decode = msgspec.json.decode
    return [(row.id, Look(decode(row.after), decode(row.upto), bytes(row.marks), 0.0, row.last)) for row in rows]


_DUE_LOOKS = (
    select(look)
    .where(look.c.canvas_id == bindparam("canvas"), look.c.due_us <= _NOW)
    .order_by(look.c.due_us)
    .limit(bindparam("most"))
)


def unit_digest(unit: str) -> bytes:
    """Return the 16 bytes under which a unit is remembered (names may be long, and may hold people's names)."""
    return blake2b(unit.encode(), digest_size=16).digest()
