"""Columns: what is there and which rows have none say together what the rows were."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from criteo_provider.core.columns import Column


@given(st.lists(st.none() | st.integers()))
def test_a_column_comes_back_as_it_was(rows: list[int | None]) -> None:
    """Taking a column apart and putting it together again loses nothing and moves nothing."""
    column = Column.of(rows)
    assert column.rows() == rows
    assert [*column.there] == [value for value in rows if value is not None]
    assert [*column.holes] == [row for row, value in enumerate(rows) if value is None]


def test_a_column_shows_no_value_when_it_is_printed() -> None:
    """Which rows have none is all there is to see."""
    assert repr(Column.of([b"secret", None])) == "Column(holes=[1])"
