"""The ``sql`` source: a SELECT read forward by a keyset cursor, with late commits found by a further look."""

from __future__ import annotations

import logging
import re
import threading
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from typing import Any, Protocol

from criteo_provider.core.errors import CriteoSyncError, SourceFailed
from criteo_provider.core.ports import Json, Look, MaxRows, Page, Seen
from criteo_provider.sources import late_commits
from criteo_provider.sources.cursor_values import decode_row, does_not_fit, encode_row, kind_of
from criteo_provider.sources.folded import can_fold, folded
from criteo_provider.sources.keyset import Keyset, Statement
from criteo_provider.sources.rows import Row, Rows, fetched

log = logging.getLogger(__name__)

LOOK_ROWS = 50_000
# Who came shortly before a source was split is fresh, too; more rows stamped in the future than that, and it is not.
NEWEST_ROWS = 1_000
# Read both ways before the pages that follow are read in the quicker one.
SAMPLE_ROWS = 1_000

Read = Callable[[Statement], Rows]


class DbApiConnection(Protocol):
    """What is used of a DB-API 2.0 connection (PEP 249)."""

    def cursor(self) -> Any:
        """Open a cursor."""

    def close(self) -> None:
        """Close the connection."""


class SqlSource:
    """Rows of a segment in the order of its cursor columns, each exactly once, though writers commit late.

    ``connect`` opens a DB-API connection; one is kept per thread, never inside a transaction. ``cursor``
    names the columns that say how new a row is, most significant first; together they should be unique (a
    time of change and the primary key) and never go down for a changed row. ``late_commit_s`` promises that
    a transaction that writes here takes at most that long; 0 means a single writer. ``user_key`` helps to
    tell late rows from known ones. Rows without a value in a cursor column are refused at the first reading
    and left out later, until they have one; rows stamped in the future wait for their time. From the second
    page on SQLite gives a page in one row, where a sample has shown that nothing else differs. Memory: one page
    of ``max_rows()`` rows.
    """

    def __init__(
        self,
        connect: Callable[[], DbApiConnection],
        *,
        query: str,
        cursor: Sequence[str],
        columns: Sequence[str],
        now_us: Callable[[], int],
        user_key: str | None = None,
        paramstyle: str = "qmark",
        late_commit_s: float = 60.0,
        first_look_s: float = late_commits.FIRST_LOOK_S,
        quote: str = '"',
        name: str = "the segment's query",
    ) -> None:
        self._connect = connect
        self._keyset = Keyset(query, paramstyle=paramstyle, quote=quote)
        self._cursor = tuple(cursor)
        self._columns = tuple(dict.fromkeys(columns))
        self._fetched = tuple(dict.fromkeys([*cursor, *columns, *([user_key] if user_key else [])]))
        self._user_key = user_key
        self._now_us = now_us
        self._late_commit_s = late_commit_s
        self._first_look_s = first_look_s
        self._name = name
        self._there: dict[str, str] | None = None
        self._folds: bool | None = None  # whether a page in one row is the same; nobody has tried yet
        self._kept: dict[int, DbApiConnection] = {}  # by thread: sqlite3 demands it
        weakref.finalize(self, _close, self._kept)

    def is_ahead(self, position: Json, seen: Seen) -> bool:
        """Tell whether a row waits behind ``position``: one or two index look-ups."""
        return self._due(self._rows(self._decode(position), None, limit=1)) > 0

    def pages(self, position: Json, *, max_rows: MaxRows, seen: Seen) -> Generator[Page]:
        """Yield pages behind ``position`` until dry; those that may get late rows carry a look."""
        if position is None:
            self._refuse_empty_cursors()
        more, most = True, 0
        read: Read = self._read_rows
        while more:
            after, limit = self._decode(position), max_rows()
            most = max(most, limit)
            rows, more = self._stretch(after, None, limit=limit, most_alike=most, read=read)
            if not rows:
                return
            if more:
                read = self._quicker_than_rows(rows, after, None)
            upto = self._last_position(rows)
            yield Page(self._as_columns(rows), len(rows), upto, look=self._first_look(rows, position, upto))
            position = upto
            del rows  # or they would be held while the next ones are read

    def split_at(self, position: Json) -> Json:
        """Return a position that leaves the newest thousand rows behind it, None when hardly more are left."""
        if len(self._rows(self._decode(position), None, limit=NEWEST_ROWS + 1)) <= NEWEST_ROWS:
            return None
        names = self._names()
        rows, _ = self._read(self._keyset.newest([names[column] for column in self._cursor], limit=NEWEST_ROWS))
        oldest = rows.row(-1, len(self._cursor)) if rows and not self._is_early(rows, -1) else None
        # Rows deleted since the first question must not take the cursor back: who was read would enter twice.
        if not oldest or not self._rows(self._decode(position), oldest, limit=1):
            return None
        return encode_row(oldest, self._cursor)

    def between(self, position: Json, upto: Json, *, max_rows: MaxRows) -> Generator[Page]:
        """Yield the rows in (``position``, ``upto``]; what is committed late behind the last of them is looked for."""
        end, more, most = self._decode(upto), True, 0
        read: Read = self._read_rows
        while more:
            after, limit = self._decode(position), max_rows()
            most = max(most, limit)
            rows, more = self._stretch(after, end, limit=limit, most_alike=most, read=read)
            if more:
                read = self._quicker_than_rows(rows, after, end)
            reached = self._last_position(rows) if more else upto
            yield Page(self._as_columns(rows), len(rows), reached, look=self._first_look(rows, position, reached))
            position = reached
            del rows

    def recheck(self, look: Look) -> Iterator[tuple[Page, Look | None]]:
        """Read a stretch again and give the rows that came since, at most 50,000 at a time."""
        after, upto, more = late_commits.after(look), self._decode(look.upto), True
        new_marks: list[bytes] = []
        while more and not new_marks:
            rows, more = self._stretch(self._decode(after), upto, limit=LOOK_ROWS, most_alike=LOOK_ROWS)
            found = self._marks(rows, len(upto or self._cursor))
            indexes = late_commits.unmarked(found, look.marks)
            new_marks = [found[index] for index in indexes]
            after = self._last_position(rows) if rows else after
        new = rows.chosen(indexes)
        page = Page(self._as_columns(new), len(new), look.upto)
        following = self._next_look(look, upto, look.marks + b"".join(new_marks))
        if more and following is None:
            # More than a page came late, and nothing more can come: go on behind it at once.
            following = late_commits.rest_of(look, after)
        yield page, following

    def close(self) -> None:
        """Close the connections kept; the next call opens another."""
        _close(self._kept)

    def _stretch(
        self, after: Row | None, upto: Row | None, *, limit: int, most_alike: int, read: Read | None = None
    ) -> tuple[Rows, bool]:
        """Read up to ``limit`` rows and tell whether more follow; rows of one cursor value stay together.

        Those may be as many as ever had room on a page, however little room is left on this one.
        """
        # One row more than wanted shows where the next page begins.
        rows = self._rows(after, upto, limit=limit + 1, read=read)
        more = len(rows) > limit
        if more:
            end = self._end_of_groups(rows)
            if end:
                rows.cut(end)
            else:
                rows = self._first_alike(after, rows, most_alike, read)
                if not rows:  # all of them were changed since: there are others first now
                    return self._stretch(after, upto, limit=limit, most_alike=most_alike, read=read)
        if upto is None and (due := self._due(rows)) < len(rows):
            rows.cut(due)
            more = False
        return rows, more

    def _rows(self, after: Row | None, upto: Row | None, *, limit: int, read: Read | None = None) -> Rows:
        read = read or self._read_rows
        names = self._names()
        statements = self._keyset.ranges(
            [names[column] for column in self._fetched],
            [names[column] for column in self._cursor],
            after=after,
            upto=upto,
            limit=limit,
        )
        rows = Rows([[] for _ in self._fetched])
        for statement in statements:
            found = read(statement)
            if rows:
                rows.extend(found)
            else:
                rows = found
            if len(rows) >= limit:
                rows.cut(limit)
                break
        return rows

    def _quicker_than_rows(self, rows: Rows, after: Row | None, upto: Row | None) -> Read:
        """Return the quickest way to read on that gives the same rows, as the beginning of a page has shown."""
        if self._folds is None:
            self._folds = self._comes_alike(rows.first(SAMPLE_ROWS), after, upto)
        return self._read_folded if self._folds else self._read_rows

    def _comes_alike(self, sample: Rows, after: Row | None, upto: Row | None) -> bool:
        if not can_fold(self._kept.get(threading.get_ident())):
            return False
        try:
            return self._rows(after, upto, limit=len(sample), read=self._fold).are(sample)
        except Exception:  # why not does not matter: row by row it was read a moment ago
            return False

    def _read_folded(self, statement: Statement) -> Rows:
        try:
            return self._fold(statement)
        except Exception as error:
            # Whatever it is, row by row it can be read, or is told better.
            log.info("%s is read row by row from now on (%s).", self._name, type(error).__name__)
            self._folds = False
            return self._read_rows(statement)

    def _fold(self, statement: Statement) -> Rows:
        quoted = [self._keyset.quoted(self._names()[column]) for column in self._fetched]
        return folded(self._kept[threading.get_ident()], statement, quoted)

    def _end_of_groups(self, rows: Rows) -> int:
        """Return where the rows end that do not share the cursor value of the last one; 0 when all do."""
        width = len(self._cursor)
        following = rows.row(-1, width)
        for end in range(len(rows) - 1, 0, -1):
            if rows.row(end - 1, width) != following:
                return end
        return 0

    def _first_alike(self, after: Row | None, rows: Rows, most: int, read: Read | None) -> Rows:
        """Read all rows up to the cursor value of the first one, so that they are on one page."""
        alike = self._rows(after, rows.row(0, len(self._cursor)), limit=most + 1, read=read)
        if len(alike) > most:
            raise SourceFailed(
                f"{self._name}: more than {most} rows share one value of the cursor "
                f"({', '.join(self._cursor)}); add a column that makes it unique, usually the primary key"
            )
        return alike

    def _due(self, rows: Rows) -> int:
        """Return how many rows there are before those at the end that are stamped in the future."""
        end = len(rows)
        while end and self._is_early(rows, end - 1):
            end -= 1
        return end

    def _is_early(self, rows: Rows, index: int) -> bool:
        return late_commits.is_ahead_of_its_time(rows.columns[0][index], self._now_us() / 1e6)

    def _first_look(self, rows: Rows, after: Json, upto: Json) -> Look | None:
        now_s = self._now_us() / 1e6
        newest = self._decode(upto)
        left_s = late_commits.unsettled_s(newest[0] if newest else None, now_s=now_s, late_commit_s=self._late_commit_s)
        if left_s <= 0:
            return None
        marks = b"".join(self._marks(rows, len(self._cursor)))
        return late_commits.first_look(
            after, upto, marks, now_s=now_s, unsettled_s=left_s, first_look_s=self._first_look_s
        )

    def _next_look(self, look: Look, upto: Row | None, marks: bytes) -> Look | None:
        now_s = self._now_us() / 1e6
        since_read_s = now_s - late_commits.read_s(look)
        left_s = late_commits.unsettled_s(
            upto[0] if upto else None,
            now_s=now_s,
            late_commit_s=self._late_commit_s,
            since_read_s=since_read_s,
        )
        # As long again as it has been: looks after 3, 6, 12, 24, ... s.
        wait_s = max(since_read_s, self._first_look_s)
        return late_commits.next_look(look, marks, wait_s=wait_s, unsettled_s=left_s)

    def _marks(self, rows: Rows, width: int) -> list[bytes]:
        """Fingerprint rows by the first ``width`` cursor columns (all there were when the look began) and user key."""
        naming = rows.columns[:width]
        if self._user_key is not None and self._user_key not in self._cursor[:width]:
            naming.append(rows.columns[self._fetched.index(self._user_key)])
        return late_commits.marks_of(naming)

    def _decode(self, position: Json) -> Row | None:
        """Return the cursor values of a position, fewer where the cursor was given more columns since."""
        row = decode_row(position, self._cursor, fewer=True)
        if row is not None and len(row) < len(self._cursor):
            names = self._names()
            columns = [names[column] for column in self._cursor[: len(row)]]
            # Nothing but the kind of the values tells whether the first columns are still the same.
            newest, _ = self._read(self._keyset.newest(columns, limit=1))
            if newest and [*map(kind_of, newest.row(0, len(row)))] != [*map(kind_of, row)]:
                raise does_not_fit(self._cursor)
        return row

    def _last_position(self, rows: Rows) -> Json:
        return encode_row(rows.row(-1, len(self._cursor)), self._cursor)

    def _as_columns(self, rows: Rows) -> dict[str, Sequence[object]]:
        return {column: rows.columns[self._fetched.index(column)] for column in self._columns}

    def _refuse_empty_cursors(self) -> None:
        for column in self._cursor:
            if self._read(self._keyset.without_value(self._names()[column]))[0]:
                raise SourceFailed(
                    f"{self._name}: some rows have no value in the cursor column {column!r}, so they would "
                    f"never be read; add `WHERE {column} IS NOT NULL` to the query, or use COALESCE"
                )

    def _names(self) -> dict[str, str]:
        """Map declared names to those the database gives, which may differ in case (Snowflake, Oracle)."""
        if self._there is None:
            _, there = self._read(self._keyset.describe())
            self._there = {column: _found(column, there, self._name) for column in self._fetched}
        return self._there

    def _read_rows(self, statement: Statement) -> Rows:
        return self._read(statement)[0]

    def _read(self, statement: Statement) -> tuple[Rows, list[str]]:
        thread = threading.get_ident()
        if thread in self._kept:
            try:
                return _run(self._kept[thread], statement)
            except Exception:  # it may have died while idle: once more on a new one
                self._drop(thread)
        try:
            self._kept[thread] = self._connect()
            return _run(self._kept[thread], statement)
        except CriteoSyncError:
            raise
        except Exception as error:
            self._drop(thread)
            # The driver's own text may quote rows, so the chain ends here.
            raise SourceFailed(f"{self._name} cannot be read now: {_reason(error)}") from None

    def _drop(self, thread: int) -> None:
        _close({thread: self._kept.pop(thread)} if thread in self._kept else {})


def _close(kept: dict[int, DbApiConnection]) -> None:
    while kept:
        _, connection = kept.popitem()
        with suppress(Exception):
            connection.close()


def _run(connection: DbApiConnection, statement: Statement) -> tuple[Rows, list[str]]:
    cursor = connection.cursor()
    try:
        if statement.parameters:
            cursor.execute(statement.sql, statement.parameters)
        else:
            cursor.execute(statement.sql)
        return fetched(cursor), [column[0] for column in cursor.description]
    finally:
        cursor.close()
        with suppress(Exception):  # some drivers have no transactions, or none open
            connection.rollback()  # type: ignore[attr-defined]


def _found(column: str, there: Sequence[str], name: str) -> str:
    if column in there:
        return column
    alike = [other for other in there if other.lower() == column.lower()]
    if len(alike) == 1:
        return alike[0]
    raise SourceFailed(
        f"{name} gives no column {column!r}; it gives: {', '.join(there)}. "
        "Add it to the SELECT, or correct the name in the canvas"
    )


_HARMLESS = re.compile(
    r"no such (table|column)|does not exist|syntax error|connect|password|permission|locked|unable to open"
)
_HARMLESS_STATES = ("08", "28", "42", "57")  # connection, login, statement, operator intervention


def _reason(error: Exception) -> str:
    """Say what went wrong without the value of a row: kind, SQLSTATE, and the text where it is harmless."""
    kind = type(error).__name__
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    text = (str(error).splitlines() or [""])[0][:200]
    harmless = str(state)[:2] in _HARMLESS_STATES if state else _HARMLESS.search(text) is not None
    shown = [
        kind,
        *([str(state)] if state else []),
        *([text] if text and harmless and "@" not in text else []),
    ]
    return ": ".join(shown)
