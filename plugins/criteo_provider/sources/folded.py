"""A page in one row: SQLite makes a JSON array of each column, so that Python does not ask for row after row.

Python's driver makes a tuple of every row and lets others at the interpreter after each; one row is one turn. Texts,
whole numbers and nothing come through JSON as they were. A real loses digits and bytes have no place in it, so a page
that holds one is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from criteo_provider.sources.keyset import Statement
from criteo_provider.sources.rows import Rows

# Strict: a real is never read as a whole number.
_decode: Callable[[bytes], list[Any]] = msgspec.json.Decoder(list[str | int | None]).decode


def can_fold(connection: Any) -> bool:
    """Tell whether a connection is one whose pages can come in one row."""
    return type(connection).__module__.partition(".")[0] == "sqlite3"


def folded(connection: Any, statement: Statement, quoted: Sequence[str]) -> Rows:
    """Return the columns of these (quoted) names a statement gives; raises for what JSON does not keep as it is."""
    # As bytes, or the driver would decode a text that is decoded once more below.
    arrays = ", ".join(f"CAST(json_group_array({name}) AS BLOB)" for name in quoted)
    cursor = connection.cursor()
    try:
        # The names are quoted, and the statement is a Keyset's.
        cursor.execute(f"SELECT {arrays} FROM (\n{statement.sql}\n)", statement.parameters)  # noqa: S608
        return Rows([_decode(array) for array in cursor.fetchone()])
    finally:
        cursor.close()
