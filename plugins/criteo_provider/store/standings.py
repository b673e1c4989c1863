"""Bringing stages up to what became of their parts, and writing the difference as metric rows: always both at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec
from sqlalchemy import BindParameter, Connection, Row, bindparam, delete, insert, select, update

from criteo_provider.core.model import Metric, PartState, Span, StageState, Status
from criteo_provider.core.standing import (
    PartFate,
    Stand,
    complete,
    counts,
    default_and_exceptions,
    fold,
)
from criteo_provider.store.schema import part, stage, stage_exception, step, step_version
from criteo_provider.store.totals import Deltas

METRIC_OF_STATUS = {
    Status.PENDING: Metric.PENDING,
    Status.SYNCED: Metric.SYNCED,
    Status.NOT_SYNCED: Metric.NOT_SYNCED,
    Status.ERRORED: Metric.ERRORED,
}
# SQLite takes 32,766 variables in one statement; slices keep far below.
SLICE = 5_000


class Standing(NamedTuple):
    """A stage with everything that decides where its people stand."""

    row: Row[Any]
    fates: list[PartFate]
    before: tuple[Stand, ...]
    exceptions: tuple[Stand, ...]
    """As they are kept: those of ``before`` who do not stand like most."""


def refold(
    connection: Connection,
    stage_ids: Collection[int],
    *,
    cause: str,
    now_us: int,
    entering: bool = False,
    deltas: Deltas | None = None,
) -> Deltas:
    """Make counts, default and exceptions of these stages true again; write what changed as metric rows, return it.

    ``entering`` marks stages whose people reach their step now; ``deltas`` are what has changed beside, to be written
    with it. Stages are locked in id order.
    """
    deltas = deltas or Deltas()
    for ids in slices(sorted(stage_ids)):
        changed, dropped, added = [], [], []
        for standing in load(connection, ids, lock=True):
            row = standing.row
            if not entering and row.state != StageState.ENTERED:
                continue
            stands = fold(row.people, standing.fates, standing.before)
            (status, reason), exceptions = default_and_exceptions(stands)
            totals = counts(stands)
            if entering:
                count_entering(deltas, row.canvas_id, row.step_id, row.people, is_last=row.is_last)
            _count(deltas, row, totals)
            count_reasons(deltas, row.step_id, stands, () if entering else standing.before)
            changed.append({"key": row.id, **entered_values(status, reason, totals)})
            if {*exceptions} != {*standing.exceptions}:
                if standing.exceptions:
                    dropped.append(row.id)
                added.extend(exception_values(row.id, exceptions))
        if changed:
            connection.execute(_UPDATE_STAGE, changed)
        if dropped:
            connection.execute(_DROP_EXCEPTIONS, {"stages": dropped})
        if added:
            connection.execute(_ADD_EXCEPTIONS, added)
    deltas.write(connection, cause, now_us)
    return deltas


def load(
    connection: Connection, stage_ids: Sequence[int], *, lock: bool, as_of_us: int | None = None
) -> list[Standing]:
    """Read stages with the fates of their parts and their present stands.

    With ``as_of_us``, open parts whose deadline is past by then read as given up.
    """
    wanted = {"stages": list(stage_ids)}
    rows = connection.execute(_STAGES_LOCKED if lock else _STAGES, wanted).all()
    part_fates: dict[int, list[PartFate]] = defaultdict(list)
    for found in connection.execute(_FATES, wanted):
        state, of_stage = PartState(found.state), part_fates[found.stage_id]
        if as_of_us is not None and state is PartState.OPEN and (found.deadline_us or as_of_us + 1) <= as_of_us:
            state = PartState.ERRORED
        of_stage.extend(PartFate(span, state, found.reason) for span in spans_from_text(found.spans))
    exceptions: dict[int, list[Stand]] = defaultdict(list)
    for found in connection.execute(_EXCEPTIONS, wanted):
        exceptions[found.stage_id].append(Stand(Span(found.first, found.last), Status(found.status), found.reason))
    return [
        Standing(
            row,
            part_fates[row.id],
            complete(row.people, (Status(row.status), row.reason), exceptions[row.id]),
            tuple(exceptions[row.id]),
        )
        for row in rows
    ]


def exception_values(stage_id: int, exceptions: Iterable[Stand]) -> list[dict[str, Any]]:
    """Return the rows that store these exceptions of a stage."""
    return [
        {
            "stage_id": stage_id,
            "first": stand.span.first,
            "last": stand.span.last,
            "status": stand.status,
            "reason": stand.reason,
        }
        for stand in exceptions
    ]


def spans_to_text(spans: Iterable[Span]) -> str:
    """Write spans as the JSON kept in ``identifiers.present``."""
    return msgspec.json.encode([[span.first, span.last] for span in spans]).decode()


def spans_from_text(text: str) -> tuple[Span, ...]:
    """Read spans back from the JSON kept in ``identifiers.present``."""
    return tuple(Span(first, last) for first, last in msgspec.json.decode(text))


_T = TypeVar("_T")


def slices(ids: Sequence[_T]) -> Iterable[Sequence[_T]]:
    """Cut a list of ids into pieces that fit one statement."""
    return (ids[at : at + SLICE] for at in range(0, len(ids), SLICE))


def count_entering(deltas: Deltas, canvas_id: str, step_id: int, people: int, *, is_last: bool) -> None:
    """Count people who have reached a step: nobody waits there, so they go on at the same moment."""
    deltas.add(canvas_id, step_id, Metric.ENTERED, people)
    deltas.add(canvas_id, step_id, Metric.EXITED if is_last else Metric.PROCEEDED, people)


def _count(deltas: Deltas, row: Row[Any], totals: dict[Status, int]) -> None:
    held = {
        Status.PENDING: row.pending,
        Status.SYNCED: row.synced,
        Status.NOT_SYNCED: row.not_synced,
        Status.ERRORED: row.errored,
    }
    for status, total in totals.items():
        deltas.add(row.canvas_id, row.step_id, METRIC_OF_STATUS[status], total - held[status])


def count_reasons(deltas: Deltas, step_id: int, now: Iterable[Stand], before: Iterable[Stand] = ()) -> None:
    """Count why people are Not Synced now, and no longer are as before."""
    for sign, stands in ((1, now), (-1, before)):
        for stand in stands:
            if stand.status is Status.NOT_SYNCED:
                deltas.add_reason(step_id, stand.reason or "", sign * len(stand.span))


def entered_values(status: Status, reason: str | None, totals: Mapping[Status, int]) -> dict[str, Any]:
    """Return the columns of a stage whose people have reached their step."""
    return {
        "status": status,
        "reason": reason,
        "pending": totals[Status.PENDING],
        "synced": totals[Status.SYNCED],
        "not_synced": totals[Status.NOT_SYNCED],
        "errored": totals[Status.ERRORED],
        "state": StageState.ENTERED,
    }


# These are made once: every settlement asks them.
_THESE: BindParameter[int] = bindparam("stages", expanding=True)
_STAGES = (
    select(stage, step.c.canvas_id, step_version.c.is_last)
    .join(step, step.c.id == stage.c.step_id)
    .join(step_version, step_version.c.id == stage.c.version_id)
    .where(stage.c.id.in_(_THESE))
    .order_by(stage.c.id)
)
_STAGES_LOCKED = _STAGES.with_for_update(of=stage)
_FATES = select(part.c.stage_id, part.c.spans, part.c.state, part.c.reason, part.c.deadline_us).where(
    part.c.stage_id.in_(_THESE)
)
_EXCEPTIONS = select(stage_exception).where(stage_exception.c.stage_id.in_(_THESE))
_DROP_EXCEPTIONS = delete(stage_exception).where(stage_exception.c.stage_id.in_(_THESE))
_ADD_EXCEPTIONS = insert(stage_exception)
_UPDATE_STAGE = update(stage).where(stage.c.id == bindparam("key"))
