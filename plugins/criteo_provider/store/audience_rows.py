"""What the ledger knows of audiences, for people: who uses them, when they were last sent to, and how they fare."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, select

from criteo_provider.store.engine import reading
from criteo_provider.store.outages import outages
from criteo_provider.store.schema import audience, canvas, step, step_version, trouble
from criteo_provider.store.troubles import keys_of


@dataclass(frozen=True, slots=True)
class AudienceRow:
    """One audience; ``steps`` are those that use it now, ``state`` says how it fares."""

    audience_id: int
    connection_id: str
    ad_account: str
    name: str
    criteo_id: str | None
    created_here: bool
    last_request_us: int | None
    steps: tuple[str, ...]
    state: str


def audience_rows(engine: Engine, *, now_us: int) -> list[AudienceRow]:
    """Return all audiences by ad account and name."""
    unanswered = {("connection", each.connection_id): each.sentence for each in outages(engine, now_us=now_us)}
    with reading(engine) as connection:
        steps = _steps(connection)
        troubles = unanswered | {(row.scope, row.key): row.sentence for row in connection.execute(select(trouble))}
        rows = connection.execute(select(audience).order_by(audience.c.ad_account, audience.c.name)).all()
    found = []
    for row in rows:
        keys = keys_of(row.id, row.connection_id, row.ad_account).items()
        sentences = [troubles[key] for key in keys if key in troubles]
        state = " ".join(sentences) or ("ok" if row.criteo_id else "not at Criteo yet: nobody has needed it")
        found.append(
            AudienceRow(
                row.id,
                row.connection_id,
                row.ad_account,
                row.name,
                row.criteo_id,
                row.created_here,
                row.served_us or None,
                tuple(steps[row.id]),
                state,
            )
        )
    return found


def step_states(engine: Engine, *, now_us: int) -> dict[tuple[str, str], str]:
    """Say in a few words how each step fares, by canvas and step id."""
    audiences = {row.audience_id: row for row in audience_rows(engine, now_us=now_us)}
    query = (
        select(step, step_version.c.audience_id, canvas.c.launched_us)
        .join(step_version, step_version.c.id == step.c.version_id)
        .join(canvas, canvas.c.id == step.c.canvas_id)
    )
    states = {}
    with reading(engine) as connection:
        for row in connection.execute(query):
            if not row.declared:
                state = "paused (no longer declared)"
            elif row.held_us is not None:
                state = "paused in its file"
            elif row.launched_us is None:
                state = "not launched"
            else:
                state = audiences[row.audience_id].state
            states[row.canvas_id, row.name] = state
    return states


def _steps(connection: Connection) -> dict[int, list[str]]:
    query = (
        select(step_version.c.audience_id, step.c.canvas_id, step.c.name, step_version.c.operation)
        .join(step, step.c.version_id == step_version.c.id)
        .where(step.c.declared)
        .order_by(step.c.canvas_id, step.c.position)
    )
    steps: dict[int, list[str]] = defaultdict(list)
    for row in connection.execute(query):
        steps[row.audience_id].append(f"{row.canvas_id} / {row.name} ({row.operation})")
    return steps
