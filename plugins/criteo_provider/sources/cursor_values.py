"""Values of cursor columns as JSON and back, without loss: a position in the ledger is made of these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

from criteo_provider.core.errors import SourceFailed
from criteo_provider.core.ports import Json

# The first type that fits wins: a datetime is a date, too, and a pandas Timestamp is a datetime.
_KINDS: tuple[tuple[str, type, Callable[[Any], str], Callable[[str], object]], ...] = (
    ("datetime", datetime, datetime.isoformat, datetime.fromisoformat),
    ("date", date, date.isoformat, date.fromisoformat),
    ("decimal", Decimal, str, Decimal),
    ("uuid", UUID, str, UUID),
    ("bytes", bytes, bytes.hex, bytes.fromhex),
)


def encode(value: object, column: str) -> Json:
    """Turn one cursor value into JSON: ``7``, ``"a"``, ``{"datetime": "2026-07-01T12:00:00+00:00"}``.

    Raises SourceFailed, naming ``column``, for a type without an order that survives, and for text that
    looks like an e-mail address: a position is kept in the ledger, where plain addresses have no place.
    """
    if hasattr(value, "asm8"):  # pandas Timestamp: nanoseconds would be lost in a datetime
        return {"timestamp": cast("Any", value).isoformat()}
    if hasattr(value, "item") and not isinstance(value, (bytes, str)):  # a numpy scalar
        value = cast("Any", value).item()
    if isinstance(value, str) and "@" in value:
        raise SourceFailed(
            f"cursor column {column!r} seems to hold e-mail addresses; choose one that only says how new "
            "a row is, such as a time of change or a serial number"
        )
    if isinstance(value, (int, float, str)):
        return value
    if isinstance(value, memoryview):
        value = bytes(value)
    for name, kind, write, _ in _KINDS:
        if isinstance(value, kind):
            return {name: write(value)}
    raise SourceFailed(
        f"cursor column {column!r} is of type {type(value).__name__}, which has no stable order; "
        "use a number, text, date, time or UUID column"
    )


def decode(stored: Json) -> object:
    """Turn what ``encode`` made back into the same value, of the same type."""
    if not isinstance(stored, dict):
        return stored
    ((name, text),) = stored.items()
    if name == "timestamp":
        import pandas as pd

        return pd.Timestamp(str(text))
    for known, _, _, read in _KINDS:
        if known == name:
            return read(str(text))
    raise SourceFailed(
        f"the stored position holds a value of the unknown kind {name!r}; it was written by a newer version"
    )


def encode_row(values: Sequence[object], columns: Sequence[str]) -> Json:
    """Turn the cursor values of one row into a position."""
    return [encode(value, column) for value, column in zip(values, columns, strict=True)]


def decode_row(position: Json, columns: Sequence[str], *, fewer: bool = False) -> tuple[object, ...] | None:
    """Turn a position back into cursor values; None is the very beginning.

    ``fewer``: columns may have been added behind those it was made of. Raises SourceFailed.
    """
    if position is None:
        return None
    if not isinstance(position, list) or not (1 if fewer else len(columns)) <= len(position) <= len(columns):
        raise does_not_fit(columns)
    return tuple(decode(value) for value in position)


def does_not_fit(columns: Sequence[str]) -> SourceFailed:
    """Say that a position was made of other cursor columns."""
    return SourceFailed(
        f"the stored position does not fit the cursor columns {', '.join(columns)}: were they changed? "
        "Put the former cursor back, or declare a new canvas"
    )


def kind_of(value: object) -> str:
    """Name the kind of a cursor value; values of one kind can be compared."""
    encoded = encode(value, "")
    if isinstance(encoded, dict):
        return next(iter(encoded))
    return "text" if isinstance(encoded, str) else "number"


def canonical(value: object) -> str:
    """Write a value so that equal values give equal text, whatever driver or session time zone brought it."""
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC).isoformat()
    if isinstance(value, memoryview):
        return bytes(value).hex()
    return str(value)
