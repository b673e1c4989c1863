"""Source states: how all sources stand, read at once, for whoever looks every second and mostly finds nothing to do."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import msgspec
from sqlalchemy import Engine, func, select

from criteo_provider.core.ports import Json
from criteo_provider.store.clock import is_over
from criteo_provider.store.engine import reading
from criteo_provider.store.schema import look, source_cursor, trouble
from criteo_provider.store.schema_growth import backlog


@dataclass(frozen=True, slots=True)
class SourceStates:
    """How the sources of all canvases and feeds stand at one moment."""

    now_us: int
    _positions: dict[str, str]
    _troubles: dict[str, tuple[str, bool]]
    _left: frozenset[str]
    _looks: dict[str, list[tuple[bool, int]]]

    def may_look(self, canvas_id: str) -> bool:
        """Tell whether there is no trouble with the source, or it wants to be tried again now."""
        return self._troubles.get(canvas_id, ("", True))[1]

    def trouble(self, canvas_id: str) -> str | None:
        """Return the sentence about what is wrong with the source, as far as is known."""
        return self._troubles.get(canvas_id, (None,))[0]

    def has_backlog(self, canvas_id: str) -> bool:
        """Tell whether a backlog is set aside."""
        return canvas_id in self._left

    def position(self, canvas_id: str) -> Json:
        """Return where the cursor stands."""
        text = self._positions.get(canvas_id)
        position: Json = msgspec.json.decode(text) if text else None
        return position

    def look_presses(self, canvas_id: str, *, grace_s: float, last_grace_s: float) -> bool:
        """Tell whether a second look is worth starting work for: it is overdue by its grace, shorter for the last one.

        Meanwhile other work may come, and the look is taken with it.
        """
        grace_us = {False: round(grace_s * 1e6), True: round(last_grace_s * 1e6)}
        return any(due_us <= self.now_us - grace_us[last] for last, due_us in self._looks.get(canvas_id, ()))


def source_states(engine: Engine, *, now_us: int) -> SourceStates:
    """Read how all sources stand: four statements, however many there are."""
    positions = select(source_cursor.c.canvas_id, source_cursor.c.position)
    may_look = is_over(trouble.c.next_probe_us, now_us).label("may_look")
    troubles = select(trouble.c.key, trouble.c.sentence, may_look).where(trouble.c.scope == "source")
    due = select(look.c.canvas_id, look.c.last, func.min(look.c.due_us).label("due_us"))
    due = due.where(look.c.due_us <= now_us).group_by(look.c.canvas_id, look.c.last)
    looks: dict[str, list[tuple[bool, int]]] = defaultdict(list)
    with reading(engine) as connection:
        for row in connection.execute(due):
            looks[row.canvas_id].append((row.last, row.due_us))
        return SourceStates(
            now_us,
            {row.canvas_id: row.position for row in connection.execute(positions)},
            {row.key: (row.sentence, bool(row.may_look)) for row in connection.execute(troubles)},
            frozenset(connection.execute(select(backlog.c.canvas_id).distinct()).scalars()),
            looks,
        )
