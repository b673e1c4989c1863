"""The laws of the ledger, looked at as a whole: ``airflow criteo db check`` and the end of every test."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

from sqlalchemy import Connection, case, func, select

from criteo_provider.core.model import Metric, PartState, StageState, Status
from criteo_provider.core.spans import size
from criteo_provider.core.standing import counts, fold
from criteo_provider.store.schema import chunk, identifiers, metric, part, request, stage, step, step_version, upload
from criteo_provider.store.schema_growth import COUNTED, step_pruned, step_reason, step_total
from criteo_provider.store.schema_order import earlier
from criteo_provider.store.standings import METRIC_OF_STATUS, load, slices, spans_from_text
from criteo_provider.store.totals import COLUMN_OF


def broken_laws(connection: Connection) -> list[str]:
    """Return one sentence for each law that does not hold; an empty list proves all of them."""
    return [
        *_stages(connection),
        *_parts(connection),
        *_metrics(connection),
        *_reasons(connection),
        *_claims(connection),
    ]


def _stages(connection: Connection) -> Iterator[str]:
    """Entered = Synced + Not Synced + Pending + Errored, and every stand follows from the parts."""
    stage_ids = connection.execute(_STAGES).scalars().all()
    for ids in slices(stage_ids):
        for standing in load(connection, ids, lock=False):
            row = standing.row
            held = {
                Status.PENDING: row.pending,
                Status.SYNCED: row.synced,
                Status.NOT_SYNCED: row.not_synced,
                Status.ERRORED: row.errored,
            }
            if row.state == StageState.WAITING:
                if any(held.values()):
                    yield f"Stage {row.id} counts people who have not reached it."
                continue
            if sum(held.values()) != row.people:
                yield f"Stage {row.id} holds {row.people} people but counts {sum(held.values())}."
            stands = fold(row.people, standing.fates, standing.before)
            if counts(stands) != held:
                yield f"Stage {row.id} counts other people than its parts say."
            elif stands != fold(row.people, (), standing.before):
                yield f"Stage {row.id} stores other stands than its parts say."


def _parts(connection: Connection) -> Iterator[str]:
    """The parts of an upload hold each of its identifiers exactly once."""
    present = {(row.chunk_id, row.form): spans_from_text(row.present) for row in connection.execute(_PRESENT)}
    held: dict[int, list[tuple[int, int]]] = defaultdict(list)
    held_before: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for one in connection.execute(_PARTS):
        spans = spans_from_text(one.spans)
        if size(spans) != one.identifiers:
            yield f"Part {one.id} counts {one.identifiers} identifiers but spans {size(spans)}."
        if not one.again:
            pieces = held[one.upload_id] if one.earlier_id is None else held_before[one.earlier_id]
            pieces += [(span.first, span.last) for span in spans]
    for row in connection.execute(_UPLOADS):
        people = present.get((row.chunk_id, row.form), ())
        if not _once(held[row.id], row.identifiers) or row.identifiers != size(people):
            yield f"The parts of upload {row.id} do not hold each of its identifiers exactly once."
    for found in connection.execute(_EARLIER):
        if not _once(held_before[found.id], found[2]) or found[2] != size(spans_from_text(found.present)):
            yield f"The parts that look back to {found.id} do not hold each of its identifiers exactly once."
    if wrong := connection.execute(_ASTRAY).scalar_one():
        yield f"{wrong} parts are ahead of or behind their stage."


def _once(pieces: list[tuple[int, int]], identifiers: int) -> bool:
    pieces = sorted(pieces)
    overlap = any(one[1] > other[0] for one, other in pairwise(pieces))
    return not overlap and sum(last - first for first, last in pieces) == identifiers


def _metrics(connection: Connection) -> Iterator[str]:
    """Sums of metric rows equal the counts in the stages, those of pruned people and the running totals."""
    told: dict[int, dict[str, int]] = defaultdict(lambda: dict.fromkeys(COUNTED, 0))
    for row in connection.execute(_SUMS):
        told[row.step_id][COLUMN_OF[Metric(row.metric)]] = int(row.value)
    held: dict[int, dict[str, int]] = defaultdict(lambda: dict.fromkeys(COUNTED, 0))
    for source in (_COUNTS, _PRUNED):
        for row in connection.execute(source):
            for name in COUNTED:
                held[row.step_id][name] += int(row._mapping[name])
    totals = {row.step_id: row._mapping for row in connection.execute(_TOTALS)}
    names = {row.id: f"{row.canvas_id}/{row.name}" for row in connection.execute(_STEPS)}
    for step_id in sorted({*told, *held, *totals}):
        by_rows, by_stages = told[step_id], held[step_id]
        for name in COUNTED:
            if by_rows[name] != by_stages[name]:
                yield f"Step {names[step_id]}: {name} is {by_rows[name]} by metric rows, {by_stages[name]} by stages."
            total = int(totals[step_id][name]) if step_id in totals else 0
            if total != by_rows[name]:
                yield f"Step {names[step_id]}: {name} is {total} as a running total, {by_rows[name]} by metric rows."


def _reasons(connection: Connection) -> Iterator[str]:
    """Why people are Not Synced adds up to how many are."""
    told = {row.step_id: int(row.people) for row in connection.execute(_REASONS)}
    for row in connection.execute(_TOTALS):
        if told.get(row.step_id, 0) != row.not_synced:
            yield f"The reasons of step {row.step_id} add up to {told.get(row.step_id, 0)}, not {row.not_synced}."


def _claims(connection: Connection) -> Iterator[str]:
    """A claimed part belongs to a request in flight, and nobody else's part does."""
    if wrong := connection.execute(_CLAIMED_BY_NOBODY).scalar_one():
        yield f"{wrong} parts are claimed by no request in flight."
    if wrong := connection.execute(_EMPTY).scalar_one():
        yield f"{wrong} chunks hold nobody."


_STAGES = select(stage.c.id).order_by(stage.c.id)
_PRESENT = select(identifiers.c.chunk_id, identifiers.c.form, identifiers.c.present)
_PARTS = select(part.c.upload_id, part.c.spans, part.c.identifiers, part.c.id, part.c.earlier_id, part.c.again)
_UPLOADS = select(upload.c.id, upload.c.form, upload.c.identifiers, stage.c.chunk_id).join(
    stage, stage.c.id == upload.c.stage_id
)
_EARLIER = select(earlier.c.id, earlier.c.present, earlier.c["count"])
_ASTRAY = (
    select(func.count())
    .select_from(part)
    .join(stage, stage.c.id == part.c.stage_id)
    .where((part.c.state == PartState.WAITING) != (stage.c.state == StageState.WAITING))
    .where(part.c.state.in_((PartState.WAITING, PartState.OPEN, PartState.CLAIMED)))
)
_SUMS = select(metric.c.step_id, metric.c.metric, func.sum(metric.c.value).label("value")).group_by(
    metric.c.step_id, metric.c.metric
)
_ONWARD = case((step_version.c.is_last, 0), else_=stage.c.people)
_COUNTS = (
    select(
        stage.c.step_id,
        func.sum(stage.c.people).label("entered"),
        func.sum(_ONWARD).label("proceeded"),
        func.sum(stage.c.people - _ONWARD).label("exited"),
        *(func.sum(stage.c[status.name.lower()]).label(status.name.lower()) for status in METRIC_OF_STATUS),
    )
    .join(step_version, step_version.c.id == stage.c.version_id)
    .where(stage.c.state == StageState.ENTERED)
    .group_by(stage.c.step_id)
)
_PRUNED = select(step_pruned)
_TOTALS = select(step_total)
_STEPS = select(step.c.id, step.c.canvas_id, step.c.name)
_REASONS = select(step_reason.c.step_id, func.sum(step_reason.c.people).label("people")).group_by(step_reason.c.step_id)
_CLAIMED_BY_NOBODY = (
    select(func.count())
    .select_from(part)
    .outerjoin(request, request.c.id == part.c.request_id)
    .where(part.c.state == PartState.CLAIMED, (request.c.id.is_(None)) | (request.c.state != "in_flight"))
)
_EMPTY = select(func.count()).select_from(chunk).where(chunk.c.people <= 0)
