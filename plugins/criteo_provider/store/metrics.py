"""The numbers people read: the seven metrics per step, and what is open."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from sqlalchemy import BigInteger, ColumnElement, Connection, bindparam, func, select

from criteo_provider.core.model import MAX_IDENTIFIERS, PartState, Role, StageState, Status, WhenDeleted
from criteo_provider.core.standing import counts, fold
from criteo_provider.store.claim import sendable
from criteo_provider.store.clock import FURTHEST_US
from criteo_provider.store.holding import at_work
from criteo_provider.store.schema import (
    audience,
    part,
    stage,
    step,
    step_version,
    trouble,
)
from criteo_provider.store.schema_growth import COUNTED, step_reason, step_total
from criteo_provider.store.standings import load, slices
from criteo_provider.store.troubles import is_holding, troubled


@dataclass(frozen=True, slots=True)
class StepNumbers:
    """The seven metrics of one step at one instant; ``not_synced_reasons`` adds up to ``not_synced``."""

    canvas: str
    step: str
    audience: str
    ad_account: str
    operation: str
    declared: bool
    entered: int
    proceeded: int
    synced: int
    not_synced: int
    pending: int
    errored: int
    exited: int
    waiting: int  # people on their way here whose delay is still running
    not_synced_reasons: dict[str, int]
    as_of_us: int
    paused: bool = False  # by its file; a step that no file declares is not ``declared``


@dataclass(frozen=True, slots=True)
class OpenWork:
    """How much is still to be done: what could be sent now, and what has to happen first."""

    due_fresh: int
    due_retry: int
    due_steps: int
    unresolved: int
    overdue: int  # what only a sweep sets right
    next_due_us: int | None
    doomed: int = 0  # to be given up by a sweep, their audience being deleted

    def anything_due(self, role: Role) -> bool:
        """Tell whether ``role`` has something to do now."""
        if role is Role.RETRY:
            return bool(self.due_retry or self.doomed)
        return bool(self.doomed or self.due_fresh or self.due_steps or self.unresolved)


def step_numbers(connection: Connection, *, now_us: int) -> list[StepNumbers]:
    """Return the numbers of every step; whoever is past the deadline with nothing in flight reads as Errored."""
    waiting = _waiting(connection)
    late = _past_deadline(connection, now_us)
    reasons = _reasons(connection)
    return [
        StepNumbers(
            canvas=row.canvas_id,
            step=row.name,
            audience=row.audience,
            ad_account=row.ad_account,
            operation=row.operation,
            declared=row.declared,
            entered=row.entered,
            proceeded=row.proceeded,
            synced=row.synced,
            not_synced=row.not_synced,
            pending=row.pending - late[row.id],
            errored=row.errored + late[row.id],
            exited=row.exited,
            waiting=waiting[row.id],
            not_synced_reasons=reasons[row.id],
            as_of_us=now_us,
            paused=row.held_us is not None,
        )
        for row in connection.execute(_STEPS)
    ]


_STEPS = (
    select(
        step.c.id,
        step.c.canvas_id,
        step.c.name,
        step.c.declared,
        step.c.held_us,
        audience.c.name.label("audience"),
        audience.c.ad_account,
        step_version.c.operation,
        *(func.coalesce(step_total.c[name], 0).label(name) for name in COUNTED),
    )
    .join(step_version, step_version.c.id == step.c.version_id)
    .join(audience, audience.c.id == step_version.c.audience_id)
    .outerjoin(step_total, step_total.c.step_id == step.c.id)
    .order_by(step.c.canvas_id, step.c.position, step.c.id)
)


def open_work(connection: Connection, *, now_us: int) -> OpenWork:
    """Look, cheaply, at what is still open."""
    due = select(func.count()).select_from(part).join(step, step.c.id == part.c.step_id)
    resolved = due.join(audience, audience.c.id == part.c.audience_id).where(audience.c.criteo_id.is_not(None))
    # A known trouble keeps its people back; only the probe of it is work.
    waiting = stage.c.state == StageState.WAITING
    due_steps = (
        select(func.count())
        .select_from(stage)
        .join(step, step.c.id == stage.c.step_id)
        .where(waiting, stage.c.enters_us <= now_us, step.c.declared)
    )
    if connection.execute(select(trouble.c.scope).where(is_holding(now_us)).limit(1)).first():
        resolved = resolved.where(~stopped(now_us))
        due_steps = (
            due_steps.join(step_version, step_version.c.id == stage.c.version_id)
            .join(audience, audience.c.id == step_version.c.audience_id)
            .where(~stopped(now_us))
        )
    return OpenWork(
        due_fresh=connection.execute(resolved.where(sendable(Role.FRESH, now_us))).scalar_one(),
        due_retry=connection.execute(resolved.where(sendable(Role.RETRY, now_us))).scalar_one(),
        due_steps=connection.execute(due_steps).scalar_one(),
        unresolved=connection.execute(
            select(func.count(func.distinct(part.c.audience_id)))
            .join(audience, audience.c.id == part.c.audience_id)
            .join(step, step.c.id == part.c.step_id)
            .where(part.c.state == PartState.OPEN, audience.c.criteo_id.is_(None), at_work(), ~stopped(now_us))
        ).scalar_one(),
        overdue=connection.execute(
            due.where(part.c.state == PartState.OPEN, part.c.deadline_us <= now_us, at_work())
        ).scalar_one()
        + _astray(connection, now_us),
        next_due_us=connection.execute(
            select(func.min(part.c.due_us)).where(part.c.state == PartState.OPEN)
        ).scalar_one(),
        doomed=_doomed(connection),
    )


def _astray(connection: Connection, now_us: int) -> int:
    """Count what only a sweep sets right: given up before the deadline, or put off by a clock that has stepped back."""
    early = select(func.count()).where(part.c.state == PartState.ERRORED, part.c.deadline_us > now_us)
    far = select(func.count()).where(
        part.c.state == PartState.OPEN, part.c.due_us > now_us + FURTHEST_US, part.c.narrow_root.is_(None)
    )
    return int(connection.execute(early).scalar_one()) + int(connection.execute(far).scalar_one())


def full_requests_waiting(connection: Connection, *, now_us: int) -> int:
    """Tell roughly how many requests first attempts alone would fill now."""
    query = (
        select(func.coalesce(func.sum(part.c.identifiers), 0))
        .join(step, step.c.id == part.c.step_id)
        .where(sendable(Role.FRESH, now_us), part.c.attempts == 0)
    )
    people = int(connection.execute(query).scalar_one())
    return -(-people // MAX_IDENTIFIERS)


def _doomed(connection: Connection) -> int:
    """Count the open parts of deleted audiences whose steps give their people up."""
    failing = select(audience.c.id).where(audience.c.gone_us.is_not(None), audience.c.when_deleted == WhenDeleted.FAIL)
    if connection.execute(failing.limit(1)).first() is None:
        return 0
    query = select(func.count()).select_from(part).join(step, step.c.id == part.c.step_id)
    which = part.c.state == PartState.OPEN, part.c.audience_id.in_(failing), at_work()
    return int(connection.execute(query.where(*which)).scalar_one())


def stopped(now_us: int | ColumnElement[int]) -> ColumnElement[bool]:
    """The condition that a known trouble holds an audience back, its next probe not being due yet."""
    return troubled(is_holding(now_us))


def _past_deadline(connection: Connection, now_us: int) -> dict[int, int]:
    """Count, per step, the pending users whom the next sweep will record as Errored."""
    late: dict[int, int] = defaultdict(int)
    for ids in slices(sorted(connection.execute(_LATE, {"now_us": now_us}).scalars())):
        for standing in load(connection, ids, lock=False, as_of_us=now_us):
            stands = fold(standing.row.people, standing.fates, standing.before)
            late[standing.row.step_id] += standing.row.pending - counts(stands)[Status.PENDING]
    return late


_LATE = (
    select(part.c.stage_id)
    .join(step, step.c.id == part.c.step_id)
    .where(part.c.state == PartState.OPEN, part.c.deadline_us <= bindparam("now_us", type_=BigInteger), at_work())
    .distinct()
)


def _waiting(connection: Connection) -> dict[int, int]:
    """Count, per step, the people on their way whose delay is still running."""
    return defaultdict(int, {row.step_id: int(row.people) for row in connection.execute(_ON_THEIR_WAY)})


# The sum keeps SQLite from walking through all stages in the order of their steps.
_STEP_ID = (stage.c.step_id + 0).label("step_id")
_ON_THEIR_WAY = (
    select(_STEP_ID, func.sum(stage.c.people).label("people"))
    .join(step, step.c.id == stage.c.step_id)
    .where(stage.c.state == StageState.WAITING, stage.c.id > func.coalesce(step.c.dropped_upto, 0))
    .group_by(_STEP_ID)
)


def _reasons(connection: Connection) -> dict[int, dict[str, int]]:
    reasons: dict[int, dict[str, int]] = defaultdict(dict)
    for row in connection.execute(_REASONS):
        reasons[row.step_id][row.reason] = int(row.people)
    return reasons


_REASONS = select(step_reason).where(step_reason.c.people != 0)
