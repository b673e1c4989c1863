"""Telling the ledger what the canvas files say now, while people of older versions are still in flight."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import msgspec
from sqlalchemy import Connection, func, insert, select, update

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
from criteo_provider.store.holding import pause, resting_since, resume
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
    gone = canvas.c.id.not_in(kept) & ~canvas.c.id.startswith(FEED_PREFIX, autoescape=True)
    connection.execute(update(canvas).where(gone, canvas.c.declared).values(declared=False))
    # The removals of an opt-out feed go on whatever becomes of its file.
    gone = step.c.canvas_id.not_in(kept) & ~step.c.canvas_id.startswith(FEED_PREFIX, autoescape=True)
    pause(connection, gone, now_us)
    close_unused(connection, now_us=now_us)
    _say_when_deleted(connection, _policies(declarations))
    return plans


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
    known = connection.execute(select(canvas.c.id).where(canvas.c.id == declared.canvas_id)).scalar()
    if known is None:
        connection.execute(insert(canvas).values(id=declared.canvas_id, **values))
        connection.execute(insert(source_cursor).values(canvas_id=declared.canvas_id, position="null", version=0))
    else:
        connection.execute(update(canvas).where(canvas.c.id == known).values(**values))
    plans = tuple(_declare_step(connection, declared.canvas_id, one, now_us) for one in declared.steps)
    gone = step.c.name.not_in([one.name for one in declared.steps])
    pause(connection, (step.c.canvas_id == declared.canvas_id) & gone, now_us)
    return plans


def _declare_step(connection: Connection, canvas_id: str, declared: StepDeclaration, now_us: int) -> StepPlan:
    query = select(step.c.id, step.c.paused_us, step.c.held_us, step.c.version_id)
    known = connection.execute(query.where(step.c.canvas_id == canvas_id, step.c.name == declared.name)).one_or_none()
    if known is None:
        values = {"canvas_id": canvas_id, "name": declared.name, "position": declared.position, "declared": True}
        step_id = int(connection.execute(insert(step).values(values).returning(step.c.id)).scalar_one())
    else:
        step_id = int(known.id)
    audience_id = _audience_id(connection, declared.audience)
    rested_us = resting_since(known.paused_us, known.held_us) if known is not None else None
    version_id = _version_id(connection, step_id, audience_id, declared, now_us)
    connection.execute(
        update(step)
        .where(step.c.id == step_id)
        .values(
            position=declared.position,
            declared=True,
            paused_us=None,
            held_us=(rested_us or now_us) if declared.paused else None,
            version_id=version_id,
        )
    )
    if rested_us is not None and not declared.paused:
        resume(connection, step_id, now_us - rested_us, now_us=now_us)
    if known is not None and known.version_id != version_id:
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


def _version_id(connection: Connection, step_id: int, audience_id: int, declared: StepDeclaration, now_us: int) -> int:
    values = {
        "audience_id": audience_id,
        "operation": declared.operation.value,
        "fields": msgspec.json.encode(sorted(declared.fields)).decode(),
        "delay_s": int(declared.delay_s),
        "is_last": declared.is_last,
    }
    latest = connection.execute(
        select(step_version).join(step, step.c.version_id == step_version.c.id).where(step.c.id == step_id)
    ).one_or_none()
    if latest is not None and all(getattr(latest, name) == value for name, value in values.items()):
        return int(latest.id)
    query = insert(step_version).values(step_id=step_id, since_us=now_us, **values).returning(step_version.c.id)
    return int(connection.execute(query).scalar_one())


def _audience_id(connection: Connection, key: AudienceKey) -> int:
    where = (
        audience.c.connection_id == key.connection_id,
        audience.c.ad_account == key.ad_account,
        audience.c.name == key.name,
    )
    found = connection.execute(select(audience.c.id).where(*where)).scalar()
    if found is None:
        values = {"connection_id": key.connection_id, "ad_account": key.ad_account, "name": key.name}
        found = connection.execute(insert(audience).values(values).returning(audience.c.id)).scalar_one()
    return int(found)


def _policies(declarations: Sequence[CanvasDeclaration]) -> dict[AudienceKey, WhenDeleted]:
    """What becomes of deleted audiences; a step that says nothing leaves it to the others, and at last they wait."""
    steps = [one for declaration in declarations for one in declaration.steps]
    policies = {one.audience: WhenDeleted.WAIT for one in steps}
    policies.update({one.audience: one.when_deleted for one in steps if one.when_deleted is not None})
    return policies


def _say_when_deleted(connection: Connection, policies: Mapping[AudienceKey, WhenDeleted]) -> None:
    columns = (audience.c[name] for name in ("id", "connection_id", "ad_account", "name", "when_deleted"))
    for row in connection.execute(select(*columns)).all():
        policy = policies.get(AudienceKey(row.connection_id, row.ad_account, row.name))
        if policy is not None and policy.value != row.when_deleted:
            changed = update(audience).where(audience.c.id == row.id)
            connection.execute(changed.values(when_deleted=policy.value, resolver_until_us=0))


def creators(connection: Connection, audience_id: int) -> bool:
    """Tell whether a step of a launched canvas adds people to this audience: only such a step may create it."""
    query = (
        select(step.c.id)
        .join(step_version, step_version.c.id == step.c.version_id)
        .join(canvas, canvas.c.id == step.c.canvas_id)
        .where(
            canvas.c.launched_us.is_not(None),
            step.c.declared,
            step_version.c.audience_id == audience_id,
            step_version.c.operation == Operation.ADD.value,
        )
        .limit(1)
    )
    if connection.execute(query).first() is not None:
        return True
    entered = (
        select(part.c.id)
        .join(step, step.c.id == part.c.step_id)
        .where(
            step.c.declared,
            part.c.audience_id == audience_id,
            part.c.operation == Operation.ADD.value,
            part.c.state == PartState.OPEN,
        )
        .limit(1)
    )
    return connection.execute(entered).first() is not None
