"""Keeping a ledger small and quick: the index of people, metric rows rolled up per minute, old people as counts only.

Everything here happens in short transactions, by the way; nobody who seals or settles waits for it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection
from typing import Any

from sqlalchemy import Connection, Engine, Table, case, delete, func, insert, literal_column, or_, select, text

from criteo_provider.core.model import PartState, StageState
from criteo_provider.store.engine import reading
from criteo_provider.store.people_index import forget, keep_segment, make_segment
from criteo_provider.store.person import PersonStep, person
from criteo_provider.store.schema import (
    chunk,
    identifiers,
    metric,
    part,
    request,
    stage,
    stage_exception,
    step_version,
    upload,
)
from criteo_provider.store.schema_growth import COUNTED, people_page, people_segment
from criteo_provider.store.schema_order import earlier, key_filter

DAY_US = 86_400_000_000
MINUTE_US = 60_000_000
# What the rows of one minute become when they are a day old.
ROLLED_UP = "a minute"
_MINUTES_AT_ONCE = 60
_CHUNKS_AT_ONCE = 20
_REQUESTS_AT_ONCE = 20_000
_UNFINISHED = (PartState.WAITING, PartState.OPEN, PartState.CLAIMED)


class Keeping:
    """The ledger's housekeeping; ``write`` runs a verb in one transaction that writes."""

    def __init__(self, engine: Engine, write: Callable[[Callable[[Connection], Any]], Any]) -> None:
        self._engine, self._write = engine, write

    def tidy(self, *, now_us: int) -> bool:
        """Do a short piece of what is to be kept up; False when nothing is left to do."""
        return self.index_more() or self.roll_up(now_us=now_us)

    def index_more(self) -> bool:
        """Index the next stretch of chunks; False when none deserves it yet."""
        with reading(self._engine) as connection:
            segment = make_segment(connection)
        return segment is not None and bool(self._write(lambda connection: keep_segment(connection, segment)))

    def roll_up(self, *, now_us: int) -> bool:
        """Make one metric row a minute of those older than a day; False when there are none."""
        return bool(self._write(lambda connection: _roll_up(connection, now_us - DAY_US)))

    def prune(self, *, before_us: int) -> int:
        """Keep counts only of a few chunks sealed before then that are finished; return how many people that were."""
        return int(self._write(lambda connection: _prune(connection, before_us)))

    def prune_requests(self, *, before_us: int) -> int:
        """Forget some requests that ended before then and that nobody's upload refers to; return how many."""
        return int(self._write(lambda connection: _prune_requests(connection, before_us)))

    def person(self, named: str, *, now_us: int) -> list[PersonStep]:
        """Return everything the ledger knows of whoever is named by user key or identifier."""
        with reading(self._engine) as connection:
            return person(connection, named, now_us=now_us)


def _roll_up(connection: Connection, before_us: int) -> int:
    single = metric.c.cause != literal_column(f"'{ROLLED_UP}'")  # as the index of single rows says it
    oldest = connection.execute(select(func.min(metric.c.at_us)).where(single)).scalar()
    if oldest is None or oldest >= before_us - before_us % MINUTE_US:
        return 0
    upto_us = min(before_us - before_us % MINUTE_US, oldest - oldest % MINUTE_US + _MINUTES_AT_ONCE * MINUTE_US)
    gone = connection.execute(
        delete(metric)
        .where(single, metric.c.at_us < upto_us)
        .returning(metric.c.at_us, metric.c.canvas_id, metric.c.step_id, metric.c.metric, metric.c.value)
    ).all()
    sums: dict[tuple[int, str, int, str], int] = defaultdict(int)
    for row in gone:
        sums[row.at_us - row.at_us % MINUTE_US, row.canvas_id, row.step_id, row.metric] += row.value
    rows = [
        {"at_us": at_us, "cause": ROLLED_UP, "canvas_id": canvas_id, "step_id": step_id, "metric": name, "value": value}
        for (at_us, canvas_id, step_id, name), value in sorted(sums.items())
        if value
    ]
    if rows:
        connection.execute(insert(metric), rows)
    return len(gone)


def _prune(connection: Connection, before_us: int) -> int:
    unfinished = (
        select(stage.c.id)
        .outerjoin(part, part.c.stage_id == stage.c.id)
        .where(
            stage.c.chunk_id == chunk.c.id,
            or_(stage.c.state == StageState.WAITING, stage.c.pending > 0, part.c.state.in_(_UNFINISHED)),
        )
    )
    query = select(chunk.c.id, chunk.c.people).where(chunk.c.sealed_us < before_us, ~unfinished.exists())
    oldest = query.order_by(chunk.c.sealed_us).limit(_CHUNKS_AT_ONCE).with_for_update(of=chunk)
    chunk_ids = list(connection.execute(oldest).scalars())
    if not chunk_ids:
        return 0
    _lock(connection, chunk_ids)
    # Whoever was brought back before the locks were had stays.
    chosen = connection.execute(query.where(chunk.c.id.in_(chunk_ids))).all()
    chunk_ids = [row.id for row in chosen]
    forget(connection, chunk_ids)
    stage_ids = list(connection.execute(select(stage.c.id).where(stage.c.chunk_id.in_(chunk_ids))).scalars())
    _keep_counts(connection, stage_ids)
    for table, column, ids in (
        (part, part.c.stage_id, stage_ids),
        (upload, upload.c.stage_id, stage_ids),
        (stage_exception, stage_exception.c.stage_id, stage_ids),
        (earlier, earlier.c.stage_id, stage_ids),
        (stage, stage.c.id, stage_ids),
        (identifiers, identifiers.c.chunk_id, chunk_ids),
        (key_filter, key_filter.c.chunk_id, chunk_ids),
        (chunk, chunk.c.id, chunk_ids),
    ):
        _delete(connection, table, column, ids)
    _drop_empty_segments(connection)
    return sum(row.people for row in chosen)


def _lock(connection: Connection, chunk_ids: Collection[int]) -> None:
    """Keep everybody else from the parts and stages of these chunks, in the order in which others lock them."""
    stages = select(stage.c.id).where(stage.c.chunk_id.in_(chunk_ids)).order_by(stage.c.id)
    stage_ids = list(connection.execute(stages).scalars())
    parts = select(part.c.id).where(part.c.stage_id.in_(stage_ids)).order_by(part.c.id)
    connection.execute(parts.with_for_update())
    connection.execute(stages.with_for_update())


def _delete(connection: Connection, table: Table, column: Any, ids: Collection[int]) -> None:
    connection.execute(delete(table).where(column.in_(ids)))


def _keep_counts(connection: Connection, stage_ids: Collection[int]) -> None:
    onward = case((step_version.c.is_last, 0), else_=stage.c.people)
    query = (
        select(
            stage.c.step_id,
            func.sum(stage.c.people).label("entered"),
            func.sum(onward).label("proceeded"),
            func.sum(stage.c.people - onward).label("exited"),
            *(func.sum(stage.c[name]).label(name) for name in ("synced", "not_synced", "pending", "errored")),
        )
        .join(step_version, step_version.c.id == stage.c.version_id)
        .where(stage.c.id.in_(stage_ids))
        .group_by(stage.c.step_id)
        .order_by(stage.c.step_id)
    )
    rows = [dict(row._mapping) for row in connection.execute(query)]
    if rows:
        connection.execute(_ADD_PRUNED, rows)


def _drop_empty_segments(connection: Connection) -> None:
    """Forget the segments whose chunks are all gone; of the last one only its pages: it says how far the index goes."""
    there = select(chunk.c.id).where(chunk.c.id.between(people_segment.c.first_chunk, people_segment.c.last_chunk))
    newest = connection.execute(select(func.max(people_segment.c.last_chunk))).scalar()
    rows = connection.execute(select(people_segment.c.id, people_segment.c.last_chunk).where(~there.exists())).all()
    if rows:
        _delete(connection, people_page, people_page.c.segment_id, [row.id for row in rows])
        _delete(connection, people_segment, people_segment.c.id, [row.id for row in rows if row.last_chunk != newest])


def _prune_requests(connection: Connection, before_us: int) -> int:
    # A part refers to its last request, and to the one whose refusal is being narrowed.
    oldest = min(
        connection.execute(select(func.min(column))).scalar() or 2**62
        for column in (part.c.request_id, part.c.narrow_root)
    )
    query = (
        select(request.c.id)
        .where(request.c.id < oldest, request.c.ended_us < before_us, request.c.state.not_in(("in_flight", "unknown")))
        .limit(_REQUESTS_AT_ONCE)
    )
    ids = list(connection.execute(query).scalars())
    if ids:
        connection.execute(delete(request).where(request.c.id.in_(ids)))
    return len(ids)


_ADD_PRUNED = text(
    f"INSERT INTO step_pruned (step_id, {', '.join(COUNTED)}) "  # noqa: S608 - names of our own columns
    f"VALUES (:step_id, {', '.join(':' + name for name in COUNTED)}) ON CONFLICT (step_id) DO UPDATE SET "
    + ", ".join(f"{name} = step_pruned.{name} + excluded.{name}" for name in COUNTED)
)
