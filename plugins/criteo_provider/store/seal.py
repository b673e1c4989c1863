"""Sealing: one transaction writes the chunk, its stages and uploads, the metric rows and the source's cursor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import BigInteger, Connection, bindparam, insert, select, update

from criteo_provider.core.batching import unsendable
from criteo_provider.core.identifiers import Form
from criteo_provider.core.model import (
    Operation,
    PackedForm,
    PartState,
    SealedPeople,
    StageState,
    Status,
    StepPlan,
)
from criteo_provider.core.standing import PartFate, Stand, complete, counts, default_and_exceptions, fold
from criteo_provider.store.schema import chunk, identifiers, part, stage, stage_exception, step, upload
from criteo_provider.store.standings import (
    METRIC_OF_STATUS,
    count_entering,
    count_reasons,
    entered_values,
    exception_values,
    refold,
    spans_to_text,
)
from criteo_provider.store.totals import Deltas
from criteo_provider.store.unwanted import close_unwanted


def seal(
    connection: Connection,
    canvas_id: str,
    people: SealedPeople,
    steps: Sequence[StepPlan],
    *,
    now_us: int,
    intent_us: int | None = None,
) -> int | None:
    """Write one chunk of ``canvas_id`` with everything that follows from it; return its id, None for no people.

    ``intent_us`` is when these people came, if that was earlier: what others want since then is later.
    """
    if not people:
        return None
    keys = msgspec.json.encode(people.user_keys).decode()
    values = {"canvas_id": canvas_id, "sealed_us": now_us, "people": len(people), "user_keys": keys}
    chunk_id = int(connection.execute(_NEW_CHUNK, values).scalar_one())
    if people.forms:
        connection.execute(_NEW_IDENTIFIERS, [_identifiers_values(chunk_id, packed) for packed in people.forms])
    deltas, outdated = Deltas(), []
    for plan in steps:
        if _is_current(connection, plan):
            fresh = _standing(canvas_id, people, plan, deltas)
            _add_stage(connection, chunk_id, people, plan, fresh, now_us, intent_us)
        else:
            stage_id = _add_stage(connection, chunk_id, people, plan, _waiting(people, plan), now_us, intent_us)
            close_unwanted(connection, [stage_id])
            outdated += [] if plan.delay_s else [stage_id]
    refold(connection, outdated, cause=f"seal:{chunk_id}", now_us=now_us, entering=True, deltas=deltas)
    return chunk_id


_NEW_CHUNK = insert(chunk).returning(chunk.c.id)
_NEW_IDENTIFIERS = insert(identifiers)
_NEW_STAGE = insert(stage).returning(stage.c.id)
_NEW_EXCEPTION = insert(stage_exception)
_NEW_UPLOAD = insert(upload).returning(upload.c.id)
_NEW_PART = insert(part)


def _is_current(connection: Connection, plan: StepPlan) -> bool:
    """Whether the files have not changed since this process read them; they do not until this transaction is over."""
    return connection.execute(_VERSION, {"step": plan.step_id}).scalar() == plan.version_id


# An edit either comes before (and is seen) or waits, and finds the people sealed meanwhile.
_VERSION = select(step.c.version_id).where(step.c.id == bindparam("step")).with_for_update(read=True)


def enter_due_steps(connection: Connection, *, now_us: int, limit: int = 500) -> int:
    """Let people reach the steps whose delays are over; return how many stages that were."""
    stage_ids = connection.execute(_DELAY_OVER, {"now_us": now_us, "most": limit}).scalars().all()
    if stage_ids:
        connection.execute(_LET_IN, {"stages": stage_ids, "now_us": now_us})
        refold(connection, stage_ids, cause="due steps", now_us=now_us, entering=True)
    return len(stage_ids)


_NOW = bindparam("now_us", type_=BigInteger)
_DELAY_OVER = (
    select(stage.c.id)
    .join(step, step.c.id == stage.c.step_id)
    .where(stage.c.state == StageState.WAITING, stage.c.enters_us <= _NOW, step.c.declared)
    .order_by(stage.c.id)
    .limit(bindparam("most"))
    # SQLite, where there is one writer, has no locks of rows, and leaves this out.
    .with_for_update(of=stage, skip_locked=True)
)
_LET_IN = (
    update(part)
    .where(part.c.stage_id.in_(bindparam("stages", expanding=True)), part.c.state == PartState.WAITING)
    # Their intent is as old as the end of the delay, however late they are let in.
    .values(state=PartState.OPEN, due_us=_NOW)
)


def _identifiers_values(chunk_id: int, packed: PackedForm) -> dict[str, Any]:
    return {
        "chunk_id": chunk_id,
        "form": packed.form,
        "gum_caller_id": packed.gum_caller_id,
        "count": packed.count,
        "present": spans_to_text(packed.present),
        "packed": packed.blob,
    }


# Columns of a stage, and who does not stand like most of it.
_Fresh = tuple[dict[str, Any], Sequence[Stand]]


def _standing(canvas_id: str, people: SealedPeople, plan: StepPlan, deltas: Deltas) -> _Fresh:
    """Tell where people stand who are sealed now; whoever has reached the step is counted, as a refold would."""
    columns, lacking = _waiting(people, plan)
    if plan.delay_s:
        return columns, lacking
    fates = [PartFate(span, PartState.OPEN) for packed in _sent(people, plan) for span in packed.present]
    stands = fold(len(people), fates, complete(len(people), (Status.PENDING, None), lacking))
    (status, reason), exceptions = default_and_exceptions(stands)
    totals = counts(stands)
    count_entering(deltas, canvas_id, plan.step_id, len(people), is_last=plan.is_last)
    for of, total in totals.items():
        deltas.add(canvas_id, plan.step_id, METRIC_OF_STATUS[of], total)
    count_reasons(deltas, plan.step_id, stands)
    return entered_values(status, reason, totals), exceptions


def _waiting(people: SealedPeople, plan: StepPlan) -> _Fresh:
    """Tell where people stand who are still to reach their step."""
    lacking = unsendable(people, {packed.form for packed in _sent(people, plan)}, plan.fields)
    totals = dict.fromkeys(Status, 0)
    return {**entered_values(Status.PENDING, None, totals), "state": StageState.WAITING}, lacking


def _sent(people: SealedPeople, plan: StepPlan) -> list[PackedForm]:
    return [packed for packed in people.forms if Form(packed.form).field in plan.fields]


def _add_stage(
    connection: Connection,
    chunk_id: int,
    people: SealedPeople,
    plan: StepPlan,
    fresh: _Fresh,
    now_us: int,
    intent_us: int | None,
) -> int:
    columns, exceptions = fresh
    enters_us = now_us + round(plan.delay_s * 1e6)
    values = {
        "chunk_id": chunk_id,
        "step_id": plan.step_id,
        "version_id": plan.version_id,
        "enters_us": enters_us,
        "people": len(people),
        **columns,
    }
    stage_id = int(connection.execute(_NEW_STAGE, values).scalar_one())
    if exceptions:
        connection.execute(_NEW_EXCEPTION, exception_values(stage_id, exceptions))
    for packed in _sent(people, plan):
        _add_upload(connection, chunk_id, stage_id, plan, packed, enters_us, intent_us)
    return stage_id


def _add_upload(
    connection: Connection,
    chunk_id: int,
    stage_id: int,
    plan: StepPlan,
    packed: PackedForm,
    enters_us: int,
    intent_us: int | None,
) -> None:
    sent = {"stage_id": stage_id, "form": packed.form, "identifiers": packed.count}
    values = {
        **sent,
        "upload_id": connection.execute(_NEW_UPLOAD, sent).scalar_one(),
        "chunk_id": chunk_id,
        "step_id": plan.step_id,
        "audience_id": plan.audience_id,
        "operation": plan.operation.value,
        "identifier_type": Form(packed.form).identifier_type,
        "gum_caller_id": packed.gum_caller_id,
        "spans": spans_to_text(packed.present),
        "intent_us": enters_us if plan.delay_s or intent_us is None else intent_us,
        "state": PartState.WAITING if plan.delay_s else PartState.OPEN,
        "attempts": 0,
        "due_us": enters_us,
        "narrow_level": 0,
        "look_back": 1 if plan.operation is Operation.REMOVE else 0,
    }
    connection.execute(_NEW_PART, values)
