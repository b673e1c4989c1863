"""The laws of the ledger, looked at as a whole: ``airflow criteo db check`` and the end of every test."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

from sqlalchemy import Connection, func, select

from criteo_provider.core.model import Metric, PartState, StageState, Status
from criteo_provider.core.spans import size
from criteo_provider.core.standing import counts, fold
from criteo_provider.store.schema import chunk, identifiers, metric, part, request, stage, step, upload
from criteo_provider.store.schema_order import earlier
from criteo_provider.store.standings import METRIC_OF_STATUS, load, slices, spans_from_text


def broken_laws(connection: Connection) -> list[str]:
    """Return one sentence for each law that does not hold; an empty list proves all of them."""
    return [
        *_stages(connection),
        *_parts(connection),
        *_metrics(connection),
        *_claims(connection),
    ]


def _stages(connection: Connection) -> Iterator[str]:
    """Entered = Synced + Not Synced + Pending + Errored, and every stand follows from the parts."""
    stage_ids = list(connection.execute(select(stage.c.id).order_by(stage.c.id)).scalars())
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
    present = {
        (row.chunk_id, row.form): spans_from_text(row.present)
        for row in connection.execute(
            select(identifiers.c.chunk_id, identifiers.c.form, identifiers.c.present, identifiers.c.count)
        )
    }
    held: dict[int, list[tuple[int, int]]] = defaultdict(list)
    held_before: dict[int, list[tuple[int, int]]] = defaultdict(list)
    columns = part.c.upload_id, part.c.spans, part.c.identifiers, part.c.id, part.c.earlier_id, part.c.again
    for one in connection.execute(select(*columns)):
        spans = spans_from_text(one.spans)
        if size(spans) != one.identifiers:
            yield f"Part {one.id} counts {one.identifiers} identifiers but spans {size(spans)}."
        if not one.again:
            pieces = held[one.upload_id] if one.earlier_id is None else held_before[one.earlier_id]
            pieces += [(span.first, span.last) for span in spans]
    query = select(upload.c.id, upload.c.form, upload.c.identifiers, stage.c.chunk_id).join(
        stage, stage.c.id == upload.c.stage_id
    )
    for row in connection.execute(query):
        people = present.get((row.chunk_id, row.form), ())
        if not _once(held[row.id], row.identifiers) or row.identifiers != size(people):
            yield f"The parts of upload {row.id} do not hold each of its identifiers exactly once."
    for found in connection.execute(select(earlier.c.id, earlier.c.present, earlier.c["count"])).all():
        if not _once(held_before[found.id], found[2]) or found[2] != size(spans_from_text(found.present)):
            yield f"The parts that look back to {found.id} do not hold each of its identifiers exactly once."
    waiting = (
        select(func.count())
        .select_from(part)
        .join(stage, stage.c.id == part.c.stage_id)
        .where((part.c.state == PartState.WAITING) != (stage.c.state == StageState.WAITING))
        .where(part.c.state.in_((PartState.WAITING, PartState.OPEN, PartState.CLAIMED)))
    )
    if wrong := connection.execute(waiting).scalar_one():
        yield f"{wrong} parts are ahead of or behind their stage."


def _once(pieces: list[tuple[int, int]], identifiers: int) -> bool:
    pieces = sorted(pieces)
    overlap = any(one[1] > other[0] for one, other in pairwise(pieces))
    return not overlap and sum(last - first for first, last in pieces) == identifiers


def _metrics(connection: Connection) -> Iterator[str]:
    """Sums of metric rows equal the counts in the stages; Proceeded + Exited = Entered."""
    told: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    sums = select(metric.c.step_id, metric.c.metric, func.sum(metric.c.value).label("value"))
    for row in connection.execute(sums.group_by(metric.c.step_id, metric.c.metric)):
        told[row.step_id][row.metric] = int(row.value)
    query = select(
        stage.c.step_id,
        func.sum(stage.c.people).label(Metric.ENTERED),
        *(func.sum(stage.c[status.name.lower()]).label(name) for status, name in METRIC_OF_STATUS.items()),
    ).where(stage.c.state == StageState.ENTERED)
    names = {row.id: f"{row.canvas_id}/{row.name}" for row in connection.execute(select(step))}
    for row in connection.execute(query.group_by(stage.c.step_id)):
        values = told.pop(row.step_id, defaultdict(int))
        for name in (Metric.ENTERED, *METRIC_OF_STATUS.values()):
            if values[name] != row._mapping[name]:
                held = row._mapping[name]
                yield f"Step {names[row.step_id]}: {name} is {values[name]} by metric rows, {held} by stages."
        if values[Metric.PROCEEDED] + values[Metric.EXITED] != values[Metric.ENTERED]:
            yield f"Step {names[row.step_id]}: Proceeded + Exited is not Entered."
    for step_id, values in told.items():
        if any(values.values()):
            yield f"Step {names[step_id]} has metric rows but no people."


def _claims(connection: Connection) -> Iterator[str]:
    """A claimed part belongs to a request in flight, and nobody else's part does."""
    query = (
        select(func.count())
        .select_from(part)
        .outerjoin(request, request.c.id == part.c.request_id)
        .where(part.c.state == PartState.CLAIMED, (request.c.id.is_(None)) | (request.c.state != "in_flight"))
    )
    if wrong := connection.execute(query).scalar_one():
        yield f"{wrong} parts are claimed by no request in flight."
    empty = select(func.count()).select_from(chunk).where(chunk.c.people <= 0)
    if wrong := connection.execute(empty).scalar_one():
        yield f"{wrong} chunks hold nobody."
