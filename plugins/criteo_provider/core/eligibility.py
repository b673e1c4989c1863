"""Eligibility: who of a page of source rows may enter a canvas.

One condition per column, and all of them have to hold: a plain value (equality), or any of ``in``, ``not``,
``min`` and ``max`` (both inclusive). A missing value, and one that cannot be read as what it is compared
with, satisfies nothing, ``not`` included: who is unsure stays out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from math import isfinite
from numbers import Real
from operator import ge, le
from typing import Any

from criteo_provider.core.errors import Misconfigured
from criteo_provider.core.source_values import is_missing, text_of

OPERATORS = ("in", "not", "min", "max")

Test = Callable[[object], bool]
Read = Callable[[object], Any]  # a source value as the kind a condition compares with, or None


@dataclass(frozen=True, slots=True)
class Rule:
    """Conditions compiled once, asked about whole pages."""

    columns: tuple[str, ...]
    _tests: tuple[Test, ...] = field(repr=False)

    def __and__(self, other: Rule) -> Rule:
        """Return the rule that holds where both hold."""
        return Rule(self.columns + other.columns, self._tests + other._tests)

    def mask(self, columns: Mapping[str, Sequence[object]]) -> list[bool]:
        """Tell for each row whether all conditions hold; ``columns`` are the page's columns, equally long."""
        mask = [True] * len(next(iter(columns.values()), ()))
        for name, test in zip(self.columns, self._tests, strict=True):
            if name not in columns:
                raise Misconfigured(f"The source has no column {name!r}, which a condition needs. Select it.")
            held = _verdicts(test, columns[name])
            if not all(held):
                mask = [before and now for before, now in zip(mask, held, strict=True)]
        return mask


# Within one of these types, values that are equal read alike; True, 1 and 1.0 do not.
_ALIKE = ({bool}, {int}, {str})
_FEW = 64


def _verdicts(test: Test, column: Sequence[object]) -> list[bool]:
    """Test a column; where it holds few different values, each of them once."""
    if set(map(type, column)) - {type(None)} in _ALIKE and len(different := set(column)) <= _FEW:
        known = {value: test(value) for value in different}
        return [True] * len(column) if all(known.values()) else [known[value] for value in column]
    return [test(value) for value in column]


def compile(conditions: Mapping[str, object]) -> Rule:
    """Compile the conditions of a canvas, by column; raise Misconfigured with what is wrong and the mend."""
    return Rule(tuple(conditions), tuple(_condition(wanted) for wanted in conditions.values()))


def _condition(wanted: object) -> Test:
    if not isinstance(wanted, Mapping):
        return _one_of([wanted])
    unknown = [str(name) for name in wanted if name not in OPERATORS]
    if unknown or not wanted:
        found = f"{', '.join(unknown)} is not known" if unknown else "there is none"
        raise Misconfigured(
            f"A condition is one value, or a block of {', '.join(OPERATORS)}; {found} here. Write one of them."
        )
    tests = [_MAKERS[name](bound) for name, bound in wanted.items()]
    if "min" in wanted and "max" in wanted:
        _check_order(wanted["min"], wanted["max"])
    return tests[0] if len(tests) == 1 else lambda value: all(test(value) for test in tests)


def _check_order(low: object, high: object) -> None:
    (read, bound), (read_high, bound_high) = _bound(low), _bound(high)
    if read is not read_high:
        raise Misconfigured("min and max are of different kinds. Write two numbers, two days or two moments.")
    if bound > bound_high:
        raise Misconfigured("min is above max, so nobody could enter. Swap them.")


# --- equality --------------------------------------------------------------------------------------------


def _one_of(wanted: object) -> Test:
    """Hold for a value equal to any of the wanted ones."""
    tests = [_equal(read, expected) for read, expected in _expectations(wanted, "in")]
    return tests[0] if len(tests) == 1 else lambda value: any(test(value) for test in tests)


def _none_of(wanted: object) -> Test:
    """Hold for a value that can be compared with all of the unwanted ones, and equals none."""
    listed = wanted if isinstance(wanted, list) else [wanted]
    tests = [_different(read, expected) for read, expected in _expectations(listed, "not")]
    return tests[0] if len(tests) == 1 else lambda value: all(test(value) for test in tests)


def _equal(read: Read, expected: object) -> Test:
    return lambda value: bool(read(value) == expected)


def _different(read: Read, expected: object) -> Test:
    def test(value: object) -> bool:
        found = read(value)
        return found is not None and bool(found != expected)

    return test


def _expectations(wanted: object, name: str) -> Iterable[tuple[Read, object]]:
    if not isinstance(wanted, list) or not wanted:
        raise Misconfigured(f"{name} needs a list of at least one value, as in `{name}: [a, b]`.")
    return [_expectation(value) for value in wanted]


def _expectation(wanted: object) -> tuple[Read, object]:
    """Choose how values are read before they are compared with ``wanted``."""
    if isinstance(wanted, str) and wanted.strip().lower() in ("true", "false"):
        return _boolean, wanted.strip().lower() == "true"
    if isinstance(wanted, bool):
        return _boolean, wanted
    if isinstance(wanted, str):
        return text_of, wanted.strip()
    if is_missing(wanted):
        raise Misconfigured("The condition is empty, and a missing value satisfies nothing. Write a value.")
    if isinstance(wanted, (Mapping, list)):
        raise Misconfigured("A list or block stands where one value belongs. For several, write `in: [a, b]`.")
    return _bound(wanted)


# --- bounds ----------------------------------------------------------------------------------------------


def _at_least(wanted: object) -> Test:
    return _within(ge, *_bound(wanted))


def _at_most(wanted: object) -> Test:
    return _within(le, *_bound(wanted))


def _within(compare: Callable[[Any, Any], Any], read: Read, bound: object) -> Test:
    def test(value: object) -> bool:
        found = read(value)
        return found is not None and bool(compare(found, bound))

    return test


def _bound(wanted: object) -> tuple[Read, Any]:
    """Choose how values are read before they are compared with a number, a day or a moment."""
    if not isinstance(wanted, bool):
        reads: Sequence[Read] = (_number, _moment)
        if isinstance(wanted, date) and not isinstance(wanted, datetime):
            reads = (_day,)
        elif isinstance(wanted, str) and len(wanted.strip()) == len("2026-01-31"):
            reads = (_number, _day)
        for read in reads:
            if (bound := read(wanted)) is not None:
                return read, bound
    raise Misconfigured(
        "A bound has to be a number, a day or a moment. Write it like 500, 2026-01-31 or 2026-01-31T08:00:00Z."
    )


_MAKERS: dict[str, Callable[[object], Test]] = {
    "in": _one_of,
    "not": _none_of,
    "min": _at_least,
    "max": _at_most,
}


# --- reading source values -------------------------------------------------------------------------------

_TRUTH: dict[object, bool] = {1: True, 0: False}  # True, 1, 1.0, Decimal(1) are one key
_TRUTH_WORDS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


def _boolean(value: object) -> bool | None:
    if isinstance(value, str):
        return _TRUTH_WORDS.get(value.strip().lower())
    try:
        return _TRUTH.get(value)
    except TypeError:  # not hashable, so no truth value
        return None


def _number(value: object) -> float | Real | Decimal | None:
    """Read a number, or text that is one; nothing infinite or undefined."""
    if type(value) is int:
        return value
    if isinstance(value, str):
        try:
            value = Decimal(value.strip())
        except InvalidOperation:
            return None
    if isinstance(value, Decimal):
        return value if value.is_finite() else None
    return value if isinstance(value, (float, Real)) and isfinite(value) else None


def _moment(value: object) -> datetime | None:
    """Read a moment in UTC; one without a time zone is taken to be in UTC."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError:
            return None
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    if not isinstance(value, datetime) or is_missing(value):
        return None
    try:
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except OverflowError:  # the very first and last day of the calendar, from another time zone
        return None


def _day(value: object) -> date | None:
    """Read the day, in UTC where the value has a time of day."""
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    moment = _moment(value)
    return None if moment is None else moment.date()
