from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from criteo_provider.core.errors import SourceFailed
from criteo_provider.core.ports import Json
from criteo_provider.sources.dataframes import DataFrameSource
from tests.sources.table import nothing_seen


def frame(*rows: tuple[object, object]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["at", "id"])


def source(*frames: object, columns: tuple[str, ...] = ("id",)) -> DataFrameSource:
    def people() -> Iterator[Any]:
        yield from frames

    return DataFrameSource(people, cursor="at", columns=columns)


def entered(reader: DataFrameSource, position: Json = None, max_rows: int = 100) -> tuple[list[object], Json]:
    ids: list[object] = []
    for page in reader.pages(position, max_rows=lambda: max_rows, seen=nothing_seen):
        assert page.rows <= max_rows
        ids += page.columns["id"]
        position = json.loads(json.dumps(page.position))
    return ids, position


TIED = [frame((1, "a"), (1, "b"), (2, "c")), frame(), frame((2, "d"), (2, "e")), frame((3, "f"))]


@pytest.mark.parametrize("max_rows", [1, 2, 3, 100])
def test_reading_goes_on_behind_any_page_also_between_equal_cursor_values(max_rows: int) -> None:
    """A reader that stops after any page loses and repeats no row, though DataFrames share cursor values."""
    position, ids = None, []
    while page := next(iter(source(*TIED).pages(position, max_rows=lambda: max_rows, seen=nothing_seen)), None):
        assert source(*TIED).is_ahead(position, nothing_seen)
        ids += page.columns["id"]
        position = json.loads(json.dumps(page.position))
    assert ids == list("abcdef")
    assert not source(*TIED).is_ahead(position, nothing_seen)


def test_rows_added_later_are_found() -> None:
    """New rows behind the cursor value reached, or with the same one, are entered once."""
    _, position = entered(source(*TIED))
    assert entered(source(*TIED, frame((3, "g"), (4, "h"))), position)[0] == ["g", "h"]


def test_the_callable_is_told_how_far_we_are() -> None:
    """A callable with an argument gets the cursor value reached, None at first."""
    told: list[object] = []

    def people(after: object) -> Iterator[pd.DataFrame]:
        told.append(after)
        yield frame((7, "a"))

    reader = DataFrameSource(people, cursor="at", columns=["id"])
    _, position = entered(reader)
    entered(reader, position)
    assert told == [None, 7]


@pytest.mark.parametrize("unit", ["s", "us", "ns"])
def test_timestamps_of_pandas_are_positions(unit: str) -> None:
    """A time column of any resolution is a cursor."""
    times = pd.Series(pd.to_datetime([1, 2, 3], unit="s", utc=True)).dt.as_unit(unit)  # type: ignore[arg-type]
    reader = source(pd.DataFrame({"at": times, "id": ["a", "b", "c"]}))
    _, position = entered(reader)
    assert not reader.is_ahead(position, nothing_seen)
    assert reader.is_ahead([{"timestamp": times[1].isoformat()}, 1], nothing_seen)


def test_no_value_is_none_whatever_pandas_calls_it() -> None:
    """NaN, NaT and NA become None; numbers and texts become Python's own."""
    values = {
        "a": pd.Series([1.5, float("nan")]),
        "b": pd.Series([1, pd.NA], dtype="Int64"),
        "c": pd.Series(["x", None], dtype="string"),
        "d": pd.Series([True, pd.NA], dtype="boolean"),
        "e": pd.to_datetime(pd.Series(["2026-07-01", None])),
        "f": pd.Series([1, 2], dtype="int32"),
        "g": pd.Series(["x", None], dtype="category"),
    }
    reader = source(pd.DataFrame({"at": [1, 2], **values}), columns=tuple(values))
    (page,) = reader.pages(None, max_rows=lambda: 9, seen=nothing_seen)
    assert [page.columns[name][1] for name in values] == [None, None, None, None, None, 2, None]
    assert [type(page.columns[name][0]) for name in "abcdf"] == [float, int, str, bool, int]


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        ([frame((2, "a"), (1, "b"))], "DataFrame 1 is not ordered by the cursor column 'at'"),
        ([frame((2, "a")), frame((1, "b"))], "DataFrame 2 is not ordered by the cursor column 'at'"),
        ([frame((1.0, "a"), (None, "b"))], "DataFrame 1 has rows without a value in the cursor column 'at'"),
        ([frame((1, "a"))[["at"]]], "DataFrame 1 has no single column 'id'"),
        ([frame((1, "a")), frame(("x", "b"))], "'at' in DataFrame 2 cannot be compared with those before"),
        ([frame((1, "a"), ("x", "b"))], "DataFrame 1 is not ordered by the cursor column 'at'"),
        ([[1]], "item 1 is a list; yield pandas DataFrames"),
    ],
)
def test_what_a_callable_does_wrong_is_told(frames: list[object], said: str) -> None:
    """Order, missing values, missing columns and other things than DataFrames are named, with the mend."""
    with pytest.raises(SourceFailed) as refusal:
        entered(source(*frames))
    assert said in str(refusal.value)
    assert "people" in str(refusal.value)


def test_a_failing_callable_is_told_by_place_not_by_value() -> None:
    """The team's exception is named with the line it came from, without its text; earlier pages stand."""

    def people() -> Iterator[pd.DataFrame]:
        yield frame((1, "a"))
        raise ValueError("kate@example.com")

    pages = DataFrameSource(people, cursor="at", columns=["id"]).pages(None, max_rows=lambda: 9, seen=nothing_seen)
    assert next(pages).rows == 1
    with pytest.raises(SourceFailed, match=r"failed with ValueError in people, line \d+$") as failure:
        next(pages)
    assert "example.com" not in str(failure.value)


def test_a_dotted_path_is_resolved_at_the_first_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module is imported when it is needed, and a wrong path is named with the mend."""
    (tmp_path / "made_up_segments.py").write_text(
        "import pandas\nSIZE = 3\ndef people(after):\n    yield pandas.DataFrame({'at': [1], 'id': ['a']})\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    reader = DataFrameSource("made_up_segments.people", cursor="at", columns=["id"])
    assert entered(reader)[0] == ["a"]
    for path, said in [
        ("made_up_segments.folk", "`callable: made_up_segments.folk` cannot be imported (AttributeError)"),
        ("not_there.people", "`callable: not_there.people` cannot be imported (ModuleNotFoundError)"),
        ("people", "cannot be imported (ValueError)"),
        ("made_up_segments.SIZE", "is not callable"),
    ]:
        with pytest.raises(SourceFailed) as refusal:
            DataFrameSource(path, cursor="at", columns=["id"]).is_ahead(None, nothing_seen)
        assert said in str(refusal.value)


def segments(answer: str) -> str:
    """Write a module whose callable has one person."""
    return (
        f"import pandas\nANSWER = {answer}\ndef people():\n    yield pandas.DataFrame({{'at': [1], 'id': [ANSWER]}})\n"
    )


@pytest.mark.parametrize("sooner", [True, False], ids=["within the same second", "later"])
def test_a_mended_module_is_read_by_the_next_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sooner: bool
) -> None:
    """In a process that lives for weeks: broken at first, mended, broken again, mended again, never stale bytecode."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    name = f"mended_segments_{sooner}"
    file = tmp_path / f"{name}.py"
    for turn, (answer, said) in enumerate([
        ("1 / 0", "cannot be imported (ZeroDivisionError in <module>, line 2)"),
        ("'abc'", None), ("'xyz'", None),
        ("1 / 0", "cannot be imported (ZeroDivisionError in <module>, line 2)"),
        ("12345", None),
        ("= = =", "cannot be imported (SyntaxError in line 2)"),
        ("exit(", "cannot be imported (SyntaxError in line 2)"),
        ("exit()", "cannot be imported (SystemExit in"),
        ("'abc'", None),
    ]):  # fmt: skip
        file.write_text(segments(answer))
        changed_ns = 1_700_000_000_000_000_000 + turn * (1 if sooner else 10**9)
        os.utime(file, ns=(changed_ns, changed_ns))
        for _ in range(2):  # what is wrong stays wrong until it is mended
            reader = DataFrameSource(f"{name}.people", cursor="at", columns=["id"])
            if said is None:
                assert entered(reader)[0] == [ast.literal_eval(answer)]
            else:
                with pytest.raises(SourceFailed) as failure:
                    entered(reader)
                assert said in str(failure.value)


def test_a_module_that_has_not_changed_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a team keeps in its module is not lost each time a source is built."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "steady_segments.py").write_text(segments("object()"))
    first, second = (
        entered(DataFrameSource("steady_segments.people", cursor="at", columns=["id"]))[0] for _ in range(2)
    )
    assert first == second


def test_a_callable_that_ends_the_process_has_failed() -> None:
    """`sys.exit()` in a team's code is SourceFailed like any of its errors."""

    def people() -> Iterator[pd.DataFrame]:
        sys.exit(1)
        yield frame((1, "a"))

    with pytest.raises(SourceFailed, match=r"failed with SystemExit in people, line \d+$"):
        entered(DataFrameSource(people, cursor="at", columns=["id"]))


def test_importing_the_sources_brings_nothing_heavy() -> None:
    """pandas and pyarrow are imported when a source needs them, not before."""
    program = (
        "import sys\n"
        "from criteo_provider.sources import dataframes, files, paged_http, sql\n"
        "print(sorted({'pandas', 'pyarrow', 'airflow', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("position", [{"a#1": 7}, [7], [1, "b"], ["x", 1]])
def test_a_position_of_another_source_is_refused(position: Json) -> None:
    """A stored position that does not fit is SourceFailed, so that only this canvas waits."""
    with pytest.raises(SourceFailed, match=r"was the kind of source changed|cannot be compared"):
        entered(source(*TIED), position)
