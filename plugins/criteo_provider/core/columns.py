"""Columns most of whose rows have a value: no pass over all of them is needed to tell the few that have none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Column(Generic[T]):
    """The values of a column in the order of its rows, and the rows that have none, ascending."""

    there: Sequence[T] = field(repr=False)
    holes: Sequence[int] = ()

    @classmethod
    def of(cls, rows: Sequence[T | None]) -> Column[T]:
        """Take a column with None in the rows that have no value."""
        there = [value for value in rows if value is not None]
        holes = [row for row, value in enumerate(rows) if value is None] if len(there) < len(rows) else ()
        return cls(there, holes)

    def rows(self) -> list[T | None]:
        """Return the column with None in the rows that have no value."""
        rows: list[T | None] = []
        for before, hole in enumerate(self.holes):
            rows += self.there[len(rows) - before : hole - before]
            rows.append(None)
        rows += self.there[len(rows) - len(self.holes) :]
        return rows
