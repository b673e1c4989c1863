"""Which steps let their people go: those a file declares and does not pause. A rest costs no patience."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, Update, and_, bindparam, update

from criteo_provider.core.model import PartState
from criteo_provider.store.schema import part, step


def at_work() -> ColumnElement[bool]:
    """The condition on steps that their people may be sent and their clocks run."""
    return and_(step.c.declared, step.c.held_us.is_(None))


def pausing(*which: ColumnElement[bool]) -> Update:
    """Make the statement that holds the people of steps that are declared no longer."""
    return update(step).where(*which, step.c.declared).values(declared=False, paused_us=bindparam("now_us"))


def resting_since(paused_us: int | None, held_us: int | None) -> int | None:
    """Return since when a step rests, declared no longer or paused in its file; None when it is at work."""
    return min((since for since in (paused_us, held_us) if since is not None), default=None)


def resume(connection: Connection, step_id: int, rested_us: int, *, now_us: int) -> None:
    """Give back the patience of people who were held."""
    held = update(part).where(part.c.step_id == step_id, part.c.state == PartState.OPEN)
    connection.execute(held.where(part.c.deadline_us.is_not(None)).values(deadline_us=part.c.deadline_us + rested_us))
    # A known trouble starts a clock from when people were due: those who only rested so far are due from now on.
    connection.execute(held.where(part.c.deadline_us.is_(None), part.c.due_us < now_us).values(due_us=now_us))
