"""Values as sources hand them over: what means nothing, and what stands for a text."""

from __future__ import annotations

from decimal import Decimal
from math import isfinite
from uuid import UUID


def is_missing(value: object) -> bool:
    """Tell whether a source value means "nothing": None, NaN, NaT, pandas' NA."""
    if value is None:
        return True
    if isinstance(value, (str, int, bytes)):
        return False
    try:
        return bool(value != value)  # only NaN and NaT differ from themselves
    except (TypeError, ValueError, ArithmeticError):
        return True  # pandas' NA refuses to be true or false; a signalling NaN refuses to be compared


def text_of(value: object) -> str | None:
    """Return the trimmed text of a value that stands for one, or None."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, UUID)):
        return str(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        try:
            return bytes(value).decode().strip()
        except UnicodeDecodeError:
            return None
    if isinstance(value, (float, Decimal)) and not is_missing(value) and isfinite(value):
        return str(int(value)) if value == int(value) else None  # pandas widens whole numbers beside a null
    return None
