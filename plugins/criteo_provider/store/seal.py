"""Sealing: one transaction writes the chunk, its stages and uploads, the metric rows and the source's cursor."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import msgspec
from sqlalchemy import Connection, bindparam, delete, insert, select, update

from criteo_provider.core.batching import unsendable
from criteo_provider.core.errors import LostClaim
from criteo_provider.core.identifiers import Form
from criteo_provider.core.model import (
    CursorHold,
    Operation,
    PackedForm,
    PartState,
    SealedPeople,
    StageState,
    Status,
    StepPlan,
)
from criteo_provider.core.ports import Json, Look
from criteo_provider.store import backlogs
from criteo_provider.store.schema import (
    chunk,
    identifiers,
    look,
    part,
    source_cursor,
    source_unit,
    stage,
    stage_exception,
    step,
    upload,
)
from criteo_provider.store.standings import exception_values, refold, slices, spans_to_text
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
    chunk_id = int(connection.execute(insert(chunk).values(values).returning(chunk.c.id)).scalar_one())
    if people.forms:
        connection.execute(insert(identifiers), [_identifiers_values(chunk_id, packed) for packed in people.forms])
    entered = []
    for plan in steps:
        is_current = _is_current(connection, plan)
        stage_id = _add_stage(connection, chunk_id, people, plan, now_us, intent_us)
        if not plan.delay_s:
            entered.append(stage_id)
        if not is_current:
            close_unwanted(connection, [stage_id])
    refold(connection, entered, cause=f"seal:{chunk_id}", now_us=now_us, entering=True)
    return chunk_id


def _is_current(connection: Connection, plan: StepPlan) -> bool:
    """Whether the files have not changed since this process read them; they do not until this transaction is over."""
    return connection.execute(_VERSION, {"step": plan.step_id}).scalar() == plan.version_id


# An edit either comes before (and is seen) or waits, and finds the people sealed meanwhile.
_VERSION = select(step.c.version_id).where(step.c.id == bindparam("step")).with_for_update(read=True)


def move_cursor(connection: Connection, hold: CursorHold, position: Json, *, now_us: int) -> CursorHold:
    """Move a source's cursor, fenced: LostClaim when somebody else has moved it since."""
    if hold.backlog_id is not None:
        return backlogs.move(connection, hold, position)
    moved = connection.execute(
        update(source_cursor)
        .where(source_cursor.c.canvas_id == hold.canvas_id, source_cursor.c.version == hold.version)
        .values(
            position=msgspec.json.encode(position).decode(),
            version=hold.version + 1,
            owner=hold.owner,
            read_us=now_us,
        )
    ).rowcount
    if moved != 1:
        raise LostClaim(f"The cursor of canvas {hold.canvas_id} was moved by another process.")
    return CursorHold(hold.canvas_id, hold.owner, position, hold.version + 1)


def complete_units(connection: Connection, canvas_id: str, units: Sequence[str], *, now_us: int) -> None:
    """Record finished units (files), so that they are never read again."""
    if units:
        rows = [{"canvas_id": canvas_id, "unit": unit_digest(unit), "done_us": now_us} for unit in units]
        connection.execute(insert(source_unit), rows)


def completed_units(connection: Connection, canvas_id: str, units: Sequence[str]) -> set[str]:
    """Return those of ``units`` that are finished."""
    by_digest = {unit_digest(unit): unit for unit in units}
    done: set[str] = set()
    for digests in slices(list(by_digest)):  # type: ignore[arg-type]
        query = select(source_unit.c.unit).where(source_unit.c.canvas_id == canvas_id, source_unit.c.unit.in_(digests))
        done.update(by_digest[bytes(digest)] for digest in connection.execute(query).scalars())
    return done


def keep_look(connection: Connection, canvas_id: str, wanted: Look, *, now_us: int) -> None:
    """Remember a stretch of the source that is to be read once more."""
    connection.execute(
        insert(look).values(
            canvas_id=canvas_id,
            after=msgspec.json.encode(wanted.after).decode(),
            upto=msgspec.json.encode(wanted.upto).decode(),
            due_us=now_us + round(wanted.due_after_s * 1e6),
            last=wanted.last,
            marks=wanted.marks,
        )
    )


def end_look(connection: Connection, look_id: int) -> None:
    """End a second look: LostClaim when another process did."""
    if connection.execute(delete(look).where(look.c.id == look_id)).rowcount != 1:
        raise LostClaim(f"Another process has taken the second look {look_id}.")


def enter_due_steps(connection: Connection, *, now_us: int, limit: int = 500) -> int:
    """Let people reach the steps whose delays are over; return how many stages that were."""
    query = (
        select(stage.c.id)
        .join(step, step.c.id == stage.c.step_id)
        .where(stage.c.state == StageState.WAITING, stage.c.enters_us <= now_us, step.c.declared)
        .order_by(stage.c.id)
        .limit(limit)
    )
    if connection.dialect.name == "postgresql":
        query = query.with_for_update(of=stage, skip_locked=True)
    stage_ids = list(connection.execute(query).scalars())
    if stage_ids:
        connection.execute(
            update(part)
            .where(part.c.stage_id.in_(stage_ids), part.c.state == PartState.WAITING)
            # Their intent is as old as the end of the delay, however late they are let in.
            .values(state=PartState.OPEN, due_us=now_us)
        )
        refold(connection, stage_ids, cause="due steps", now_us=now_us, entering=True)
    return len(stage_ids)


def unit_digest(unit: str) -> bytes:
    """Return the 16 bytes under which a unit is remembered (names may be long, and may hold people's names)."""
    return blake2b(unit.encode(), digest_size=16).digest()


def _identifiers_values(chunk_id: int, packed: PackedForm) -> dict[str, Any]:
    return {
        "chunk_id": chunk_id,
        "form": packed.form,
        "gum_caller_id": packed.gum_caller_id,
        "count": packed.count,
        "present": spans_to_text(packed.present),
        "packed": packed.blob,
    }


def _add_stage(
    connection: Connection,
    chunk_id: int,
    people: SealedPeople,
    plan: StepPlan,
    now_us: int,
    intent_us: int | None,
) -> int:
    enters_us = now_us + round(plan.delay_s * 1e6)
    sent = [packed for packed in people.forms if Form(packed.form).field in plan.fields]
    lacking = unsendable(people, {packed.form for packed in sent}, plan.fields)
    values = {
        "chunk_id": chunk_id,
        "step_id": plan.step_id,
        "version_id": plan.version_id,
        "state": StageState.WAITING,
        "enters_us": enters_us,
        "people": len(people),
        "status": Status.PENDING,
        "pending": 0,
        "synced": 0,
        "not_synced": 0,
        "errored": 0,
    }
    stage_id = int(connection.execute(insert(stage).values(values).returning(stage.c.id)).scalar_one())
    if lacking:
        connection.execute(insert(stage_exception), exception_values(stage_id, lacking))
    for packed in sent:
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
    values = {"stage_id": stage_id, "form": packed.form, "identifiers": packed.count}
    upload_id = connection.execute(insert(upload).values(values).returning(upload.c.id)).scalar_one()
    connection.execute(
        insert(part).values(
            upload_id=upload_id,
            stage_id=stage_id,
            chunk_id=chunk_id,
            step_id=plan.step_id,
            audience_id=plan.audience_id,
            operation=plan.operation.value,
            form=packed.form,
            identifier_type=Form(packed.form).identifier_type,
            gum_caller_id=packed.gum_caller_id,
            spans=spans_to_text(packed.present),
            identifiers=packed.count,
            intent_us=enters_us if plan.delay_s or intent_us is None else intent_us,
            state=PartState.WAITING if plan.delay_s else PartState.OPEN,
            attempts=0,
            due_us=enters_us,
            narrow_level=0,
            look_back=1 if plan.operation is Operation.REMOVE else 0,
        )
    )
