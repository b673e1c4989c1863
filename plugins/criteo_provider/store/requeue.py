"""Re-queues: a person has whoever is Errored tried again, for a fresh patience window; who, why and when is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, insert, select, update

from criteo_provider.core.model import Metric, PartState
from criteo_provider.store.engine import reading
from criteo_provider.store.schema import part, stage, step
from criteo_provider.store.schema_order import requeue
from criteo_provider.store.settle import expire
from criteo_provider.store.standings import refold
from criteo_provider.store.unwanted import close_unwanted

# So many stages change in one transaction, which others wait for on SQLite.
MOST_STAGES = 200


@dataclass(frozen=True, slots=True)
class Requeue:
    """A re-queue: of which canvas and step (none: all), by whom, why, and how many users it has brought back."""

    canvas: str | None
    step: str | None
    who: str
    why: str
    at_us: int
    people: int


class Requeues:
    """Whom a person has tried again; ``write`` runs a verb in one transaction that writes."""

    def __init__(self, engine: Engine, write: Callable[[Callable[[Connection], Any]], Any]) -> None:
        self._engine, self._write = engine, write

    def requeue(self, canvas_id: str | None, step_name: str | None, *, who: str, why: str, now_us: int) -> int:
        """Have whoever is Errored tried again, for a fresh patience window; return how many users that were."""
        while self._write(lambda connection: expire(connection, now_us=now_us)):
            pass  # whoever reads as Errored is recorded as such first
        asked = self._write(lambda connection: begin(connection, canvas_id, step_name, who=who, why=why, now_us=now_us))
        while self._write(lambda connection: bring_back(connection, asked, now_us=now_us)):
            pass
        return self.told()[0].people

    def told(self) -> list[Requeue]:
        """Return who had whom tried again, and why; latest first."""
        with reading(self._engine) as connection:
            rows = connection.execute(select(requeue).order_by(requeue.c.id.desc())).all()
        return [Requeue(row.canvas_id, row.step, row.who, row.why, row.at_us, row.people) for row in rows]


def begin(
    connection: Connection, canvas_id: str | None, step_name: str | None, *, who: str, why: str, now_us: int
) -> int:
    """Keep who asks for a re-queue and why; return its id."""
    values = {"at_us": now_us, "who": who, "why": why, "canvas_id": canvas_id, "step": step_name}
    made = connection.execute(insert(requeue).values(people=0, parts=0, **values).returning(requeue.c.id))
    return int(made.scalar_one())


def bring_back(connection: Connection, requeue_id: int, *, now_us: int) -> bool:
    """Let some of whom a re-queue names go on as Pending; return whether there may be more."""
    asked = connection.execute(select(requeue).where(requeue.c.id == requeue_id)).one()
    steps = select(step.c.id)
    if asked.canvas_id is not None:
        steps = steps.where(step.c.canvas_id == asked.canvas_id)
    if asked.step is not None:
        steps = steps.where(step.c.name == asked.step)
    found = (
        select(part.c.stage_id)
        .join(stage, stage.c.id == part.c.stage_id)
        .where(part.c.state == PartState.ERRORED, part.c.step_id.in_(steps), stage.c.errored > 0)
        .distinct()
        .limit(MOST_STAGES)
    )
    stage_ids = list(connection.execute(found).scalars())
    opened = connection.execute(
        update(part)
        .where(part.c.stage_id.in_(stage_ids), part.c.state == PartState.ERRORED)
        .values(
            state=PartState.OPEN,
            request_id=None,
            # One attempt is behind them, so an intent that came later goes before theirs.
            attempts=1,
            due_us=now_us,
            deadline_us=None,
            narrow_level=0,
            narrow_root=None,
            narrow_group=None,
        )
    ).rowcount
    close_unwanted(connection, stage_ids)
    back = -refold(connection, stage_ids, cause=f"requeue:{requeue_id}", now_us=now_us).total(Metric.ERRORED)
    connection.execute(
        update(requeue)
        .where(requeue.c.id == requeue_id)
        .values(people=requeue.c.people + back, parts=requeue.c.parts + opened)
    )
    return len(stage_ids) == MOST_STAGES
