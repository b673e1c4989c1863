"""Live streams: lanes of a connection that have people under way, each of which wants a request per flush."""

from __future__ import annotations

from sqlalchemy import Connection, func, select, union

from criteo_provider.core.model import PartState
from criteo_provider.store.schema import audience, part, step, step_version

LIVE_FOR_US = 600_000_000


def live_streams(connection: Connection, conn_id: str, *, now_us: int) -> int:
    """Count lanes (audience, operation, identifier type) of declared steps that had people lately, or have some due."""
    at_work = step.c.declared, step.c.paused_us.is_(None), step.c.held_us.is_(None)
    lanes = (
        select(step_version.c.audience_id, step_version.c.operation)
        .join(step, step.c.id == step_version.c.step_id)
        .join(audience, audience.c.id == step_version.c.audience_id)
        .where(audience.c.connection_id == conn_id, *at_work)
        .distinct()
    )
    # One lane at a time: over all at once PostgreSQL would read every part there ever was.
    return sum(_types_alive(connection, *lane, now_us) for lane in connection.execute(lanes).all())


def _types_alive(connection: Connection, audience_id: int, operation: str, now_us: int) -> int:
    of_lane = select(part.c.identifier_type).where(part.c.audience_id == audience_id, part.c.operation == operation)
    lately = of_lane.where(part.c.intent_us > now_us - LIVE_FOR_US, part.c.intent_us <= now_us)
    due = of_lane.where(part.c.state == PartState.OPEN, part.c.due_us <= now_us)
    return int(connection.execute(select(func.count()).select_from(union(lately, due).subquery())).scalar_one())
