"""Telling the ledger what the canvas files say now, while people of older versions are still in flight."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import BindParameter, Connection, Row, Select, bindparam, func, insert, select, update

from criteo_provider.core.consent import FEED_PREFIX
from criteo_provider.core.model import (
    AudienceKey,
    CanvasDeclaration,
    Operation,
    PartState,
    StepDeclaration,
    StepPlan,
    WhenDeleted,
)
from criteo_provider.store.engine import DECLARE_LOCK, in_turn
from criteo_provider.store.holding import pausing, resting_since, resume
from criteo_provider.store.in_use import close_unused
from criteo_provider.store.schema import audience, canvas, part, source_cursor, stage, step, step_version
from criteo_provider.store.standings import refold
from criteo_provider.store.unwanted import close_unwanted, open_stages


def declare(
    connection: Connection, declarations: Sequence[CanvasDeclaration], *, broken: Collection[str] = (), now_us: int
) -> dict[str, tuple[StepPlan, ...]]:
    """Make the ledger agree with ``declarations`` (all canvases there are) and return the step plans per canvas.

    A changed audience or operation applies to new entries; a field no longer chosen is never sent again; a step or
    canvas that is gone holds its people until it is declared again or dropped. ``broken`` names canvases whose file
    is there and cannot be read now: their people go on under the last declaration that could.
    """
    in_turn(connection, DECLARE_LOCK)
    plans = {one.canvas_id: _declare_canvas(connection, one, now_us) for one in declarations}
    kept = {*plans, *broken}
    connection.execute(_GONE_CANVASES, {"kept": list(kept)})
    connection.execute(_STEPS_OF_GONE_CANVASES, {"kept": list(kept), "now_us": now_us})
    close_unused(connection, now_us=now_us)
    _say_when_deleted(connection, _policies(declarations))
    return plans


_KEPT: BindParameter[str] = bindparam("kept", expanding=True)
_GONE_CANVASES = (
    update(canvas)
    .where(canvas.c.id.not_in(_KEPT), ~canvas.c.id.startswith(FEED_PREFIX, autoescape=True), canvas.c.declared)
    .values(declared=False)
)
# The removals of an opt-out feed go on whatever becomes of its file.
_STEPS_OF_GONE_CANVASES = pausing(
    step.c.canvas_id.not_in(_KEPT), ~step.c.canvas_id.startswith(FEED_PREFIX, autoescape=True)
)
_GONE_STEPS = pausing(step.c.canvas_id == bindparam("canvas"), step.c.name.not_in(_KEPT))


def drop(connection: Connection, canvas_id: str, step_name: str, *, now_us: int) -> int:
    """Close everything still open in a step that is no longer declared; return how many parts that were."""
    found = connection.execute(
        select(step.c.id).where(step.c.canvas_id == canvas_id, step.c.name == step_name, ~step.c.declared)
    ).scalar()
    if found is None:
        return 0
    latest = connection.execute(select(func.max(stage.c.id)).where(stage.c.step_id == found)).scalar()
    connection.execute(update(step).where(step.c.id == found).values(dropped_upto=latest))
    stage_ids = open_stages(connection, found)
    closed = close_unwanted(connection, stage_ids)
    refold(connection, stage_ids, cause=f"drop:{canvas_id}/{step_name}", now_us=now_us)
    return closed


def _declare_canvas(connection: Connection, declared: CanvasDeclaration, now_us: int) -> tuple[StepPlan, ...]:
    values = {
        "name": declared.name,
        "owner": declared.owner,
        "connection_id": declared.connection_id,
        "retry_for_us": round(declared.retry_for_s * 1e6),
        "fingerprint": declared.fingerprint,
        "declared": True,
    }
    known = connection.execute(_KNOWN_CANVAS, {"canvas": declared.canvas_id}).one_or_none()
    if known is None:
        connection.execute(_NEW_CANVAS, {"id": declared.canvas_id, **values})
        connection.execute(_NEW_CURSOR, {"canvas_id": declared.canvas_id, "position": "null", "version": 0})
    elif _differs(known, values):
        connection.execute(_CHANGE_CANVAS, {"canvas": declared.canvas_id, **values})
    plans = tuple(_declare_step(connection, declared.canvas_id, one, now_us) for one in declared.steps)
    kept = [one.name for one in declared.steps]
    connection.execute(_GONE_STEPS, {"canvas": declared.canvas_id, "kept": kept, "now_us": now_us})
    return plans


_KNOWN_CANVAS = select(canvas).where(canvas.c.id == bindparam("canvas"))
_NEW_CANVAS = insert(canvas)
_NEW_CURSOR = insert(source_cursor)
_CHANGE_CANVAS = update(canvas).where(canvas.c.id == bindparam("canvas"))


def _differs(known: Row[Any], values: Mapping[str, Any]) -> bool:
    """Whether a row has to be written: most files say what they said before, and whoever seals reads these rows."""
    return any(getattr(known, name) != value for name, value in values.items())


def _declare_step(connection: Connection, canvas_id: str, declared: StepDeclaration, now_us: int) -> StepPlan:
    wanted = {"canvas": canvas_id, "named": declared.name}
    known = connection.execute(_KNOWN_STEP, wanted).one_or_none()
    if known is None:
        fresh = {"canvas_id": canvas_id, "name": declared.name, "position": declared.position, "declared": True}
        connection.execute(_NEW_STEP, fresh)
        known = connection.execute(_KNOWN_STEP, wanted).one()
    step_id = int(known.id)
    audience_id = _audience_id(connection, declared.audience)
    rested_us = resting_since(known.paused_us, known.held_us)
    version_id = _version_id(connection, known, audience_id, declared, now_us)
    values = {
        "position": declared.position,
        "declared": True,
        "paused_us": None,
        "held_us": (rested_us or now_us) if declared.paused else None,
        "version_id": version_id,
    }
    if _differs(known, values):
        connection.execute(_CHANGE_STEP, {"step": step_id, **values})
    if rested_us is not None and not declared.paused:
        resume(connection, step_id, now_us - rested_us, now_us=now_us)
    if known.version_id not in (None, version_id):
        stage_ids = open_stages(connection, step_id)
        close_unwanted(connection, stage_ids)
        refold(connection, stage_ids, cause=f"declare:{step_id}", now_us=now_us)
    return StepPlan(
        step_id,
        version_id,
        audience_id,
        declared.operation,
        declared.fields,
        declared.delay_s,
        declared.is_last,
    )


_KNOWN_STEP: Select[Any] = (
    select(
        step.c.id,
        step.c.position,
        step.c.declared,
        step.c.paused_us,
        step.c.held_us,
        step.c.version_id,
        step_version.c.audience_id,
        step_version.c.operation,
        step_version.c.fields,
        step_version.c.delay_s,
        step_version.c.is_last,
    )
    .outerjoin(step_version, step_version.c.id == step.c.version_id)
    .where(step.c.canvas_id == bindparam("canvas"), step.c.name == bindparam("named"))
)
_NEW_STEP = insert(step)
_CHANGE_STEP = update(step).where(step.c.id == bindparam("step"))


def _version_id(
    connection: Connection, known: Row[Any], audience_id: int, declared: StepDeclaration, now_us: int
) -> int:
    values = {
        "audience_id": audience_id,
        "operation": declared.operation.value,
        "fields": msgspec.json.encode(sorted(declared.fields)).decode(),
        "delay_s": int(declared.delay_s),
        "is_last": declared.is_last,
    }
    if known.version_id is not None and not _differs(known, values):
        return int(known.version_id)
    return int(connection.execute(_NEW_VERSION, {"step_id": known.id, "since_us": now_us, **values}).scalar_one())


def _audience_id(connection: Connection, key: AudienceKey) -> int:
    values = {"connection_id": key.connection_id, "ad_account": key.ad_account, "name": key.name}
    found = connection.execute(_KNOWN_AUDIENCE, values).scalar()
    if found is None:
        found = connection.execute(_NEW_AUDIENCE, values).scalar_one()
    return int(found)


_NEW_VERSION = insert(step_version).returning(step_version.c.id)
_KNOWN_AUDIENCE = select(audience.c.id).where(
    *(audience.c[name] == bindparam(name) for name in ("connection_id", "ad_account", "name"))
)
_NEW_AUDIENCE = insert(audience).returning(audience.c.id)


def _policies(declarations: Sequence[CanvasDeclaration]) -> dict[AudienceKey, WhenDeleted]:
    """What becomes of deleted audiences; a step that says nothing leaves it to the others, and at last they wait."""
    steps = [one for declaration in declarations for one in declaration.steps]
    policies = {one.audience: WhenDeleted.WAIT for one in steps}
    policies.update({one.audience: one.when_deleted for one in steps if one.when_deleted is not None})
    return policies


def _say_when_deleted(connection: Connection, policies: Mapping[AudienceKey, WhenDeleted]) -> None:
    for row in connection.execute(_AUDIENCES).all():
        policy = policies.get(AudienceKey(row.connection_id, row.ad_account, row.name))
        if policy is not None and policy.value != row.when_deleted:
            changed = {"when_deleted": policy.value, "resolver_until_us": 0}
            connection.execute(_CHANGE_AUDIENCE, {"audience": row.id, **changed})


_AUDIENCES = select(
    audience.c.id, audience.c.connection_id, audience.c.ad_account, audience.c.name, audience.c.when_deleted
)
_CHANGE_AUDIENCE = update(audience).where(audience.c.id == bindparam("audience"))


def creators(connection: Connection, audience_id: int) -> bool:
    """Tell whether a step of a launched canvas adds people to this audience: only such a step may create it."""
    to = {"audience": audience_id}
    return any(connection.execute(add, to).first() is not None for add in (_LAUNCHED_ADD, _ADD_UNDER_WAY))


_LAUNCHED_ADD = (
    select(step.c.id)
    .join(step_version, step_version.c.id == step.c.version_id)
    .join(canvas, canvas.c.id == step.c.canvas_id)
    .where(
        canvas.c.launched_us.is_not(None),
        step.c.declared,
        step_version.c.audience_id == bindparam("audience"),
        step_version.c.operation == Operation.ADD.value,
    )
    .limit(1)
)
_ADD_UNDER_WAY = (
    select(part.c.id)
    .join(step, step.c.id == part.c.step_id)
    .where(
        step.c.declared,
        part.c.audience_id == bindparam("audience"),
        part.c.operation == Operation.ADD.value,
        part.c.state == PartState.OPEN,
    )
    .limit(1)
)
