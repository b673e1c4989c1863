"""Outages: connections none of whose requests get through, read off the requests themselves; they hold nobody back."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, Engine, and_, func, select, union_all

from criteo_provider.core.model import PartState
from criteo_provider.store.engine import reading
from criteo_provider.store.holding import at_work
from criteo_provider.store.schema import audience, part, request, step, step_version, trouble
from criteo_provider.store.schema_growth import step_total

# A server that stumbles is nothing to tell of, while everybody is tried again by itself.
LASTING_US = 60_000_000
# What does not pass by itself is told at once.
_NEVER_PASSES = frozenset({"api-version-gone", "unknown-address"})
_OPEN = (PartState.OPEN, PartState.CLAIMED)
# What has a trouble of its own, or is none.
_TOLD_ELSEWHERE = frozenset({"busy", "audience-gone"})


@dataclass(frozen=True, slots=True)
class Outage:
    """A connection whose people wait because Criteo gives no useful answer; times are microseconds since the epoch."""

    connection_id: str
    since_us: int
    next_try_us: int
    sentence: str


def outages(engine: Engine, *, now_us: int) -> list[Outage]:
    """Return the connections for which nothing has got through for a minute, while somebody waits for another try."""
    with reading(engine) as connection:
        found = []
        for conn_id, next_try_us in _waiting(connection):
            outage = _outage(connection, conn_id, next_try_us, now_us)
            if outage is not None:
                found.append(outage)
    return found


def _tried(state: ColumnElement[bool]) -> tuple[ColumnElement[bool], ...]:
    return state, part.c.attempts > 0, part.c.reason.is_not(None)


def _waiting(connection: Connection) -> list[tuple[str, int]]:
    """Return the connections people wait for who were tried in vain, and the next try; quiet ones cost no more.

    Whoever is held in a step that rests is not tried again, and waits for something else.
    """
    # One state at a time, each by its index; who is being tried at this moment waits as well.
    tried = union_all(
        *(
            select(part.c.audience_id, func.min(part.c.due_us).label("due_us"))
            .join(step, step.c.id == part.c.step_id)
            .where(*_tried(part.c.state == state), at_work())
            .group_by(part.c.audience_id)
            for state in _OPEN
        )
    ).subquery()
    told = select(trouble.c.key).where(trouble.c.scope == "connection")
    query = (
        select(audience.c.connection_id, func.min(tried.c.due_us))
        .join(tried, tried.c.audience_id == audience.c.id)
        .where(audience.c.connection_id.not_in(told))
        .group_by(audience.c.connection_id)
        .order_by(audience.c.connection_id)
    )
    return [(conn_id, due_us) for conn_id, due_us in connection.execute(query)]


def _outage(connection: Connection, conn_id: str, next_try_us: int, now_us: int) -> Outage | None:
    ours = request.c.audience_id.in_(select(audience.c.id).where(audience.c.connection_id == conn_id))
    answered = select(request.c.id).where(ours, request.c.state == "settled").order_by(request.c.id.desc()).limit(1)
    last_good = connection.execute(answered).scalar() or 0
    elsewhere = {*_TOLD_ELSEWHERE, *connection.execute(select(trouble.c.code).distinct()).scalars()}
    in_vain = and_(
        request.c.id > last_good, ours, request.c.state.in_(("failed", "unknown")), request.c.code.not_in(elsewhere)
    )
    counted = select(func.count(), func.min(request.c.ended_us), func.max(request.c.id)).where(in_vain)
    many, since_us, last_id = connection.execute(counted).one()
    if not many:
        return None
    last = connection.execute(select(request.c.audience_id, request.c.code).where(request.c.id == last_id)).one()
    if now_us - since_us < LASTING_US and last.code not in _NEVER_PASSES:
        return None
    latest = select(part.c.reason).where(part.c.audience_id == last.audience_id, *_tried(part.c.state.in_(_OPEN)))
    reason = connection.execute(latest.order_by(part.c.due_us.desc()).limit(1)).scalar() or ""
    tries = "The last request" if many == 1 else f"None of the last {many:,} requests"
    what = "did not get through" if many == 1 else "got through"
    people = _pending(connection, conn_id)
    wait = f"{people:,} {'person waits' if people == 1 else 'people wait'}"
    return Outage(conn_id, since_us, next_try_us, f"{tries} {what} to Criteo; {wait}. {reason}".strip())


def _pending(connection: Connection, conn_id: str) -> int:
    """Count the people pending in the steps at work of a connection."""
    query = (
        select(func.coalesce(func.sum(step_total.c.pending), 0))
        .join(step, step.c.id == step_total.c.step_id)
        .join(step_version, step_version.c.id == step.c.version_id)
        .join(audience, audience.c.id == step_version.c.audience_id)
        .where(audience.c.connection_id == conn_id, at_work())
    )
    return int(connection.execute(query).scalar_one())
