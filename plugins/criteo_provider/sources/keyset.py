"""Keyset statements: portable SQL that reads a segment forward, in the order of its cursor columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from criteo_provider.core.errors import Misconfigured

_PLACEHOLDERS = {"qmark": "?", "format": "%s", "numeric": ":{n}", "named": ":p{n}", "pyformat": "%(p{n})s"}
_HOLE = "\x00"  # stands for a parameter until the whole text is there


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL text and its parameters, a sequence or a mapping as the driver wants them."""

    sql: str
    parameters: Sequence[object] | dict[str, object] = field(repr=False)


class Keyset:
    """The statements over one segment query.

    What lies behind ``(a, b)`` is read as ``c1 = a AND c2 > b`` and then as ``c1 > a``: each is one range
    of an index on the cursor columns, also when a million rows share one time of change. The usual ``OR``
    is not.
    """

    def __init__(self, query: str, *, paramstyle: str, quote: str) -> None:
        if paramstyle not in _PLACEHOLDERS:
            raise Misconfigured(
                f"the database driver's paramstyle {paramstyle!r} is not one of {', '.join(_PLACEHOLDERS)}"
            )
        self._query = query.strip().rstrip(";").rstrip()
        self._style = paramstyle
        self._quote = quote

    def describe(self) -> Statement:
        """Ask for no row, only for the names of the columns."""
        return self._select("*", "1 = 0", [])

    def without_value(self, column: str) -> Statement:
        """Ask for one row that has no value in ``column``."""
        name = self.quoted(column)
        return self._select(name, f"{name} IS NULL LIMIT 1", [])

    def newest(self, cursor: Sequence[str], *, limit: int) -> Statement:
        """Ask for the newest cursor values there are, newest first."""
        names = [self.quoted(column) for column in cursor]
        there = " AND ".join(f"{name} IS NOT NULL" for name in names)
        order = ", ".join(f"{name} DESC" for name in names)
        return self._select(", ".join(names), f"{there} ORDER BY {order} LIMIT {int(limit)}", [])

    def ranges(
        self,
        columns: Sequence[str],
        cursor: Sequence[str],
        *,
        after: Sequence[object] | None,
        upto: Sequence[object] | None,
        limit: int,
    ) -> Iterator[Statement]:
        """Yield statements that give, one after the other, the rows in (``after``, ``upto``] in order.

        None is no bound, and a bound may leave out the last columns: all rows that share its values belong to it. Each
        gives at most ``limit`` rows; rows without a value in a cursor column are left out.
        """
        names = [self.quoted(column) for column in cursor]
        wanted = ", ".join(self.quoted(column) for column in columns)
        for depth in [-1] if after is None else range(len(after) - 1, -1, -1):
            conditions, values = _behind(names, after or (), depth)
            if upto is not None:
                # The first bound alone tells the index where to stop.
                conditions += [f"{names[0]} <= {_HOLE}", _at_most(names[: len(upto)])]
                values += [upto[0], *(value for last in range(len(upto)) for value in upto[: last + 1])]
            condition = f"{' AND '.join(conditions)} ORDER BY {', '.join(names)} LIMIT {int(limit)}"
            yield self._select(wanted, condition, values)

    def quoted(self, name: str) -> str:
        """Write a column's name as this database wants it."""
        return self._quote + name.replace(self._quote, self._quote * 2) + self._quote

    def _select(self, columns: str, condition: str, values: list[object]) -> Statement:
        # The line breaks end a comment in the segment's last line; no AS, which Oracle does not know here.
        # Names are quoted and values bound; the query is the deployment's own.
        sql = f"SELECT {columns} FROM (\n{self._query}\n) criteo_segment WHERE {condition}"  # noqa: S608
        if values and self._style in ("format", "pyformat"):
            # Drivers with % placeholders look for them in the segment, too, but only with parameters.
            sql = sql.replace("%", "%%")
        for number in range(1, len(values) + 1):
            sql = sql.replace(_HOLE, _PLACEHOLDERS[self._style].format(n=number), 1)
        if self._style in ("named", "pyformat"):
            return Statement(sql, {f"p{number}": value for number, value in enumerate(values, 1)})
        return Statement(sql, tuple(values))


def _behind(names: Sequence[str], after: Sequence[object], depth: int) -> tuple[list[str], list[object]]:
    """Equal to ``after`` before column ``depth``, greater in it, any value behind it."""
    conditions = [f"{name} = {_HOLE}" for name in names[: max(depth, 0)]]
    if depth >= 0:
        conditions.append(f"{names[depth]} > {_HOLE}")
    conditions += [f"{name} IS NOT NULL" for name in names[depth + 1 :]]
    return conditions, list(after[: depth + 1])


def _at_most(names: Sequence[str]) -> str:
    alternatives = [
        " AND ".join(
            [f"{name} = {_HOLE}" for name in names[:last]]
            + [f"{names[last]} {'<=' if last == len(names) - 1 else '<'} {_HOLE}"]
        )
        for last in range(len(names))
    ]
    return "(" + " OR ".join(f"({alternative})" for alternative in alternatives) + ")"
