"""Running totals per step, moved in the transaction that writes the metric rows: no number is a sum over all stages."""

from __future__ import annotations

from collections import defaultdict

from sqlalchemy import Connection, insert, text

from criteo_provider.core.model import Metric
from criteo_provider.store.schema import metric
from criteo_provider.store.schema_growth import COUNTED

COLUMN_OF = dict(
    zip(Metric, ("entered", "proceeded", "synced", "not_synced", "pending", "errored", "exited"), strict=True)
)


class Deltas:
    """Changes of the seven numbers, added up per canvas and step before they are written."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, int, Metric], int] = defaultdict(int)
        self._reasons: dict[tuple[int, str], int] = defaultdict(int)

    def add(self, canvas_id: str, step_id: int, name: Metric, value: int) -> None:
        """Add ``value`` to one number of one step."""
        self._values[(canvas_id, step_id, name)] += value

    def total(self, name: Metric) -> int:
        """Return by how much a number has changed in all steps together."""
        return sum(value for (_, _, of), value in self._values.items() if of is name)

    def add_reason(self, step_id: int, reason: str, people: int) -> None:
        """Add ``people`` to those who are Not Synced for ``reason``."""
        self._reasons[(step_id, reason)] += people

    def write(self, connection: Connection, cause: str, now_us: int) -> None:
        """Write one metric row for each number that changed, and move the totals by the same."""
        rows = [
            {
                "at_us": now_us,
                "cause": cause,
                "canvas_id": canvas_id,
                "step_id": step_id,
                "metric": name,
                "value": value,
            }
            for (canvas_id, step_id, name), value in self._values.items()
            if value
        ]
        if rows:
            connection.execute(_NEW_ROW, rows)
        moved: dict[int, dict[str, int]] = {}
        for (_canvas_id, step_id, name), value in self._values.items():
            moved.setdefault(step_id, dict.fromkeys(COUNTED, 0))[COLUMN_OF[name]] += value
        # In the order of the steps, so that two who write the same ones do not wait for each other.
        if totals := [
            {"step_id": step_id, **values} for step_id, values in sorted(moved.items()) if any(values.values())
        ]:
            connection.execute(_MOVE_TOTAL, totals)
        reasons = [
            {"step_id": step_id, "reason": reason, "people": people}
            for (step_id, reason), people in sorted(self._reasons.items())
            if people
        ]
        if reasons:
            connection.execute(_MOVE_REASON, reasons)


_NEW_ROW = insert(metric)
_MOVE_TOTAL = text(
    f"INSERT INTO step_total (step_id, {', '.join(COUNTED)}) "  # noqa: S608 - names of our own columns
    f"VALUES (:step_id, {', '.join(':' + name for name in COUNTED)}) ON CONFLICT (step_id) DO UPDATE SET "
    + ", ".join(f"{name} = step_total.{name} + excluded.{name}" for name in COUNTED)
)
_MOVE_REASON = text(
    "INSERT INTO step_reason (step_id, reason, people) VALUES (:step_id, :reason, :people) "
    "ON CONFLICT (step_id, reason) DO UPDATE SET people = step_reason.people + excluded.people"
)
