"""Eligibility: who may enter, and how a condition nobody could mean is told."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from criteo_provider.core import eligibility
from criteo_provider.core.errors import Misconfigured

MISSING = [None, float("nan"), np.float64("nan"), pd.NA, pd.NaT, Decimal("NaN"), Decimal("sNaN")]
CONDITIONS = [True, False, 1, "DE", date(2026, 1, 1), {"in": ["DE", 1, True]}, {"not": "DE"}, {"not": False},
              {"not": 3}, {"min": 1}, {"max": 9}, {"min": "2026-01-01"}, {"max": "2026-01-01T00:00:00Z"}]  # fmt: skip


def held(condition: object, *values: object) -> list[bool]:
    """Which of the values satisfy the condition."""
    return eligibility.compile({"c": condition}).mask({"c": values})


@pytest.mark.parametrize("condition", CONDITIONS, ids=str)
def test_a_missing_value_satisfies_nothing(condition: object) -> None:
    """NULL, NaN, NaT and NA are not eligible under any condition, `not` included."""
    assert held(condition, *MISSING) == [False] * len(MISSING)


@pytest.mark.parametrize(
    ("yes", "no"),
    [
        (True, False),
        (1, 0),
        ("true", "false"),
        ("T", "f"),
        (" TRUE ", "False"),
        ("1", "0"),
        (1.0, 0.0),
        (Decimal(1), Decimal(0)),
        (np.True_, np.False_),
    ],
)
def test_truth_is_read_in_every_dress_of_csv_and_sqlite(yes: object, no: object) -> None:
    """0 and 1, true and false, t and f, as numbers or text in any case, are what they mean."""
    assert held(True, yes, no) == [True, False]
    assert held(False, yes, no) == [False, True]
    assert held("true", yes, no) == [True, False]
    assert held({"not": False}, yes, no) == [True, False]


@pytest.mark.parametrize("unclear", ["maybe", "", 2, -1, 0.5, [1], object()])
def test_unclear_consent_is_no_consent(unclear: object) -> None:
    """A value that is neither true nor false satisfies no condition about truth."""
    assert (
        held(True, unclear)
        == held(False, unclear)
        == held({"not": True}, unclear)
        == held({"not": False}, unclear)
        == [False]
    )


def test_equality_compares_numbers_as_numbers_and_text_as_text() -> None:
    """A number equals numeric text of the same value; text is compared exactly, but for blanks around it."""
    assert held(5, 5, 5.0, Decimal("5.0"), "5", " 5.00 ", "five", 6) == [True] * 5 + [False] * 2
    assert held("DE", "DE", " DE ", "de", "FR", 5) == [True, True, False, False, False]
    assert held("007", "007", 7, "7") == [True, False, False]


def test_in_and_not_take_lists() -> None:
    """`in` holds for any of its values, `not` for none of them."""
    assert held({"in": ["DE", 5]}, "DE", "5", "FR", None) == [True, True, False, False]
    assert held({"not": ["DE", "FR"]}, "DE", "GB", None) == [False, True, False]
    assert held({"not": 5}, 5, 6, "six") == [False, True, False]


def test_bounds_are_inclusive_and_read_numeric_text() -> None:
    """`min` and `max` include their bound and compare numbers, decimals and numeric text by value."""
    assert held({"min": 500}, 500, 499.99, "500", "1e3", Decimal(501), "many", float("inf")) == [
        True,
        False,
        True,
        True,
        True,
        False,
        False,
    ]
    assert held({"min": 1, "max": 3}, 0, 1, 3, 3.5, np.int64(2)) == [False, True, True, False, True]
    assert held({"min": 1, "not": 2}, 1, 2, 3) == [True, False, True]


def test_days_and_moments_are_compared_in_utc() -> None:
    """A day covers all of it in UTC, a moment is exact; values may be dates, times in any zone, or ISO text."""
    late = datetime(2026, 1, 31, 23, 30, tzinfo=UTC)
    west = datetime(2026, 1, 31, 23, 30, tzinfo=timezone(timedelta(hours=-5)))
    assert held({"max": date(2026, 1, 31)}, late, west, "2026-01-31", "2026-02-01T00:00:00Z", pd.Timestamp(late)) == [
        True,
        False,
        True,
        False,
        True,
    ]
    assert held({"min": "2026-01-31T23:00:00Z"}, late, "2026-01-31 22:59:59", date(2026, 2, 1), "soon", 5) == [
        True,
        False,
        True,
        False,
        False,
    ]
    assert held({"min": "2026-01-01"}, "9999-12-31T23:59:59-05:00") == [False]  # no such moment in UTC


def test_all_columns_have_to_hold() -> None:
    """A person is eligible when every condition of every column holds, and a rule may be joined with another."""
    consent = eligibility.compile({"ads": True, "dns": False})
    rule = eligibility.compile({"value": {"min": 500}}) & consent
    assert rule.columns == ("value", "ads", "dns")
    assert rule.mask({"value": [600, 600, 400], "ads": [1, None, 1], "dns": [0, 0, 0], "other": [1, 2, 3]}) == [
        True,
        False,
        False,
    ]


def test_no_condition_lets_everybody_in() -> None:
    """An empty rule holds for each row of a page."""
    assert eligibility.compile({}).mask({"a": [1, None]}) == [True, True]


def test_a_column_the_source_lacks_is_named() -> None:
    """A page without a column of a condition is refused by the column's name."""
    with pytest.raises(Misconfigured, match=r"no column 'consent', which a condition needs. Select it."):
        eligibility.compile({"consent": True}).mask({"id": [1]})


@pytest.mark.parametrize(
    ("condition", "sentence"),
    [
        (None, "The condition is empty, and a missing value satisfies nothing. Write a value."),
        ({"mn": 5}, "mn is not known here. Write one of them."),
        ({}, "there is none here. Write one of them."),
        ([1, 2], "For several, write `in: [a, b]`."),
        ({"in": []}, "in needs a list of at least one value"),
        ({"in": "DE"}, "in needs a list of at least one value"),
        ({"not": []}, "not needs a list of at least one value"),
        ({"min": "soon"}, "A bound has to be a number, a day or a moment. Write it like 500"),
        ({"min": True}, "A bound has to be a number, a day or a moment."),
        ({"max": None}, "A bound has to be a number, a day or a moment."),
        ({"min": 5, "max": 4}, "min is above max, so nobody could enter. Swap them."),
        ({"min": 5, "max": "2026-01-01"}, "min and max are of different kinds."),
    ],
)
def test_a_condition_nobody_could_mean_is_told_with_its_mend(condition: object, sentence: str) -> None:
    """Each wrong condition is refused when it is compiled, in a sentence that says what to write."""
    with pytest.raises(Misconfigured) as refusal:
        eligibility.compile({"c": condition})
    assert sentence in str(refusal.value)


values = st.one_of(st.none(), st.text(), st.integers(), st.floats(), st.decimals(), st.datetimes(), st.dates(),
                   st.binary(), st.booleans(), st.lists(st.integers()), st.sampled_from([pd.NA, pd.NaT]))  # fmt: skip


@given(st.lists(values), st.sampled_from(CONDITIONS))
def test_any_value_is_judged_without_an_error(column: list[object], condition: object) -> None:
    """No source value makes a compiled condition fail: it holds or it does not."""
    assert {type(verdict) for verdict in held(condition, *column)} <= {bool}


@given(
    st.sampled_from([{"in": ["1", "a"]}, True, False, {"not": "1"}, {"min": 1}, {"max": "2"}, "a", {"not": True}]),
    st.lists(st.sampled_from([True, False, 1, 0, 1.0, "1", "true", "a", " a", "", None, 2, Decimal(1)]), max_size=8),
)
def test_a_column_of_few_values_is_judged_as_each_of_them_alone(condition: object, values: list[object]) -> None:
    """True, 1, 1.0 and "1" are not taken for one another, however few different values a column holds."""
    assert held(condition, *values) == [held(condition, value)[0] for value in values]
