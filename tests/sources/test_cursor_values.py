from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from uuid import UUID

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from criteo_provider.core.errors import SourceFailed
from criteo_provider.sources.cursor_values import canonical, decode, decode_row, encode, encode_row

ZONES = st.one_of(st.none(), st.integers(-720, 840).map(lambda m: timezone(timedelta(minutes=m))))
VALUES = st.one_of(
    st.integers(),
    st.floats(allow_nan=False),
    st.text().filter(lambda text: "@" not in text),
    st.datetimes(timezones=ZONES),
    st.dates(),
    st.decimals(allow_nan=False),
    st.uuids(),
    st.binary(),
)


@given(VALUES)
def test_every_kind_of_cursor_value_survives_the_way_through_json(value: object) -> None:
    """A position read back from the ledger holds the same value of the same type."""
    back = decode(json.loads(json.dumps(encode(value, "c"))))
    assert back == value
    assert type(back) is type(value)


def test_a_pandas_timestamp_keeps_its_nanoseconds() -> None:
    """A position of nanoseconds is not rounded, or rows would be entered twice."""
    value = pd.Timestamp("2026-07-01T12:00:00.123456789+02:00")
    assert decode(json.loads(json.dumps(encode(value, "c")))) == value


def test_numpy_numbers_become_plain_ones() -> None:
    """A numpy scalar is stored as the number it is."""
    assert encode(pd.Series([7]).iloc[0], "c") == 7


@pytest.mark.parametrize(("value", "said"), [("a@example.com", "e-mail"), (object(), "object"), (None, "NoneType")])
def test_values_that_must_not_be_a_position_are_refused(value: object, said: str) -> None:
    """An e-mail address or a type without order is refused, naming the column and never the value."""
    with pytest.raises(SourceFailed) as refusal:
        encode(value, "updated")
    assert "'updated'" in str(refusal.value)
    assert said in str(refusal.value)
    assert "example.com" not in str(refusal.value)


def test_a_position_of_other_columns_is_refused() -> None:
    """When the cursor columns of a canvas changed, the stored position is not guessed at."""
    with pytest.raises(SourceFailed, match="were they changed"):
        decode_row([1], ["updated_at", "id"])
    assert decode_row(encode_row([1, "x"], ["a", "b"]), ["a", "b"]) == (1, "x")


def test_equal_moments_are_written_alike() -> None:
    """A driver or session with another time zone does not make a known row look new."""
    moment = datetime(2026, 7, 1, 12, tzinfo=UTC)
    assert canonical(moment) == canonical(moment.astimezone(timezone(timedelta(hours=5))))
    assert canonical(memoryview(b"ab")) == "6162"
    assert {canonical(value) for value in (date(2026, 7, 1), Decimal("1.50"), UUID(int=1))} == {
        "2026-07-01",
        "1.50",
        "00000000-0000-0000-0000-000000000001",
    }
