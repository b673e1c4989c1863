from __future__ import annotations

import gzip
import json
import os
import random
import time
import weakref
from collections.abc import Callable, Collection, Iterable
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from criteo_provider.core.errors import SourceFailed
from criteo_provider.core.ports import Columns, Json
from criteo_provider.sources import file_formats
from criteo_provider.sources.file_formats import Batch
from criteo_provider.sources.files import FilesSource
from tests.sources.table import nothing_seen

PAST_S = time.time() - 3600


class Ledger:
    """What *enter* remembers of files: position, finished units, rows."""

    def __init__(self) -> None:
        self.position: Json = None
        self.finished: set[str] = set()
        self.ids: list[str] = []

    def seen(self, units: Collection[str]) -> set[str]:
        return self.finished & set(units)

    def enter(self, source: FilesSource, *, max_rows: int = 1000, pages: int = 10**9) -> None:
        for page in source.pages(self.position, max_rows=lambda: max_rows, seen=self.seen):
            assert page.rows <= max_rows
            self.position = page.position
            self.finished |= set(page.completes)
            self.ids += [str(value) for value in page.columns.get("id", ())]
            pages -= 1
            if not pages:
                return


def source(folder: Any, **settings: Any) -> FilesSource:
    settings = {"columns": ["id", "email"], "now_us": lambda: int(time.time() * 1e6)} | settings
    return FilesSource(folder, **settings)


def people(first: int, last: int) -> list[dict[str, str | None]]:
    return [{"id": str(n), "email": None if n % 3 else f"p{n}@example.com", "other": "x"} for n in range(first, last)]


def put(path: Path, rows: Iterable[dict[str, str | None]], *, modified_s: float = PAST_S) -> None:
    """Write a file in the format its name says, changed long ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = list(rows)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if ".csv" in path.name:
        lines = [",".join(value or "" for value in row.values()) for row in rows]
        text = "\n".join(["id,email,other", *lines]) + "\n"
    if path.suffix == ".parquet":
        pq.write_table(
            pa.Table.from_pylist(rows, pa.schema([(n, pa.string()) for n in ("id", "email", "other")])),
            path,
            row_group_size=4,
        )
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    os.utime(path, (modified_s, modified_s))


NAMES = ["a.parquet", "a.csv", "a.ndjson", "a.csv.gz", "a.jsonl.gz"]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_read_once(tmp_path: Path, name: str) -> None:
    """Every row of a file arrives once, with its empty fields as no value, and the file is never read again."""
    put(tmp_path / name, people(0, 10))
    ledger = Ledger()
    assert source(tmp_path).is_ahead(None, ledger.seen)
    (page,) = source(tmp_path).pages(None, max_rows=lambda: 100, seen=ledger.seen)
    assert page.columns == {
        "id": [str(n) for n in range(10)],
        "email": [None if n % 3 else f"p{n}@example.com" for n in range(10)],
    }
    ledger.enter(source(tmp_path))
    ledger.enter(source(tmp_path))
    assert len(ledger.ids) == 10
    assert not source(tmp_path).is_ahead(ledger.position, ledger.seen)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("max_rows", [1, 3, 4, 7])
def test_an_interrupted_file_goes_on_at_its_next_row(tmp_path: Path, name: str, max_rows: int) -> None:
    """A reader that stops after every page and begins anew loses and repeats no row."""
    put(tmp_path / name, people(0, 10))
    ledger = Ledger()
    for _ in range(10):
        ledger.enter(source(tmp_path), max_rows=max_rows, pages=1)
    assert ledger.ids == [str(n) for n in range(10)]
    assert ledger.position == {}


def test_files_come_oldest_first_and_small_ones_share_a_page(tmp_path: Path) -> None:
    """The order of people is that of their files, and many small files do not make many pages."""
    for n in range(9):
        put(tmp_path / f"day{n % 2}" / f"{9 - n}.csv", people(n, n + 1), modified_s=PAST_S + n)
    put(tmp_path / "empty.csv", [], modified_s=PAST_S + 4.5)
    ledger = Ledger()
    pages = list(source(tmp_path).pages(None, max_rows=lambda: 4, seen=ledger.seen))
    assert [page.rows for page in pages] == [4, 4, 1]
    assert [value for page in pages for value in page.columns["id"]] == [str(n) for n in range(9)]
    assert sum(len(page.completes) for page in pages) == 10


def test_pieces_are_let_go_of_once_they_are_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever works on a page holds all there is of its rows: the pieces it was made of are gone."""

    class Piece(dict[str, Any]):
        """Columns of which can be told whether anybody holds them."""

    pieces: list[weakref.ref[Piece]] = []

    def watched(rows: int, columns: Callable[[], Columns]) -> Batch:
        def make() -> Columns:
            piece = Piece(columns())
            pieces.append(weakref.ref(piece))
            return piece

        return Batch(rows, make)

    put(tmp_path / "people.parquet", people(0, 12))
    monkeypatch.setattr(file_formats, "PIECE_ROWS", 2)
    monkeypatch.setattr(file_formats, "Batch", watched)
    held = []
    for page in source(tmp_path).pages(None, max_rows=lambda: 6, seen=nothing_seen):
        assert page.rows == 6
        held.append(sum(piece() is not None for piece in pieces))
    assert len(pieces) == 6
    assert held == [0, 0]
    for _page in source(tmp_path).pages(None, max_rows=lambda: 5, seen=nothing_seen):
        held.append(sum(piece() is not None for piece in pieces))
    assert held[2:4] == [0, 0]  # nor is what is left of a piece that was cut


def test_an_empty_file_is_finished_like_any_other(tmp_path: Path) -> None:
    """A file without rows is not looked at for ever."""
    put(tmp_path / "empty.parquet", [])
    ledger = Ledger()
    (page,) = source(tmp_path).pages(None, max_rows=lambda: 5, seen=nothing_seen)
    assert {name: list(values) for name, values in page.columns.items()} == {"id": [], "email": []}
    ledger.enter(source(tmp_path))
    assert not source(tmp_path).is_ahead(ledger.position, ledger.seen)


def test_a_new_version_of_a_file_is_a_new_file(tmp_path: Path) -> None:
    """A file that is replaced is read again, as people may enter again."""
    put(tmp_path / "a.csv", people(0, 2))
    ledger = Ledger()
    ledger.enter(source(tmp_path))
    put(tmp_path / "a.csv", people(0, 3), modified_s=PAST_S + 60)
    assert source(tmp_path).is_ahead(ledger.position, ledger.seen)
    ledger.enter(source(tmp_path))
    assert ledger.ids == ["0", "1", "0", "1", "2"]


def test_a_file_still_being_written_is_left_for_the_next_look(tmp_path: Path) -> None:
    """A file changed a moment ago waits until it has been quiet for two seconds."""
    now_s = [time.time()]
    put(tmp_path / "a.csv", people(0, 2), modified_s=now_s[0] - 1)
    reader = source(tmp_path, now_us=lambda: int(now_s[0] * 1e6))
    ledger = Ledger()
    assert not reader.is_ahead(None, ledger.seen)
    assert list(reader.pages(None, max_rows=lambda: 9, seen=ledger.seen)) == []
    now_s[0] += 1.5
    assert reader.is_ahead(None, ledger.seen)


def test_a_file_that_grows_while_it_is_checked_waits(tmp_path: Path) -> None:
    """What was checked must be what is read: a file changed in between is taken at the next look."""
    put(tmp_path / "a.csv", people(0, 2))
    reader = source(tmp_path)
    opened = reader._folder.open

    def grow(file: Any) -> Any:
        stream = opened(file)
        with (tmp_path / "a.csv").open("a") as writer:
            writer.write("9,,x\n")
        return stream

    reader._folder.open = grow  # type: ignore[method-assign]
    ledger = Ledger()
    ledger.enter(reader)
    assert ledger.ids == []
    assert ledger.finished == set()


HALF = {
    "cut.parquet": (lambda data: data[: len(data) // 2], "the file is damaged or cut off"),
    "cut.csv": (lambda data: data[: data.rindex(b",")], "row 20: 3 fields were expected and 2 found"),
    "quote.csv": (lambda data: data + b'7,"p@example.com\n', "behind row 20: the file is damaged or cut off"),
    "cut.ndjson": (lambda data: data[:-9], "row 20: the line is not complete JSON"),
    "list.ndjson": (lambda data: data + b"[1]\n", "row 21: a JSON object was expected"),
    "cut.csv.gz": (lambda data: data[:-20], "the compressed file is damaged or cut off"),
    "latin.csv": (lambda data: data + "7,é@example.com,x\n".encode("latin-1"), "the text is not UTF-8"),
    "nohead.csv": (
        lambda data: data.partition(b"\n")[2],
        "there is no column 'id'; the header line has 3 columns; is the first line a header?",
    ),
    "twice.csv": (lambda data: data.replace(b"other", b"id", 1), "several columns are called 'id'"),
}


@pytest.mark.parametrize("name", HALF)
def test_a_damaged_file_enters_nothing_and_holds_nobody_up(tmp_path: Path, name: str) -> None:
    """A half-written file is named with its row and no value; the others are read, and it is when it is mended."""
    damage, said = HALF[name]
    put(tmp_path / name, people(0, 20))
    (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
    os.utime(tmp_path / name, (PAST_S, PAST_S))
    put(tmp_path / "whole.csv", people(50, 52))
    ledger = Ledger()
    with pytest.raises(SourceFailed) as failure:
        ledger.enter(source(tmp_path), max_rows=5)
    assert f"{name}, " in str(failure.value)
    assert said in str(failure.value)
    assert "put a complete one in its place" in str(failure.value)
    assert "example.com" not in str(failure.value)
    assert ledger.ids == ["50", "51"]
    put(tmp_path / name, people(0, 20))
    ledger.enter(source(tmp_path), max_rows=5)
    assert len(ledger.ids) == 22


def test_a_missing_column_of_a_parquet_file_is_named(tmp_path: Path) -> None:
    """The column and those there are named."""
    put(tmp_path / "a.parquet", people(0, 2))
    with pytest.raises(SourceFailed, match=r"a.parquet, there is no column 'mail'; the file has id, email, other"):
        list(source(tmp_path, columns=["mail"]).pages(None, max_rows=lambda: 5, seen=nothing_seen))


def test_only_files_that_are_meant_are_read(tmp_path: Path) -> None:
    """Pattern, hidden and temporary names, and unknown kinds: what is not meant is not read; a wrong name is told."""
    for name in ("a.csv", "b.ndjson", ".hidden.csv", "_temporary/c.csv", "_SUCCESS", "readme.txt"):
        put(tmp_path / name, people(0, 1))
    ledger = Ledger()
    ledger.enter(source(tmp_path))
    assert {unit.partition("#")[0] for unit in ledger.finished} == {"a.csv", "b.ndjson"}
    other = Ledger()
    other.enter(source(tmp_path, pattern="*.csv"))
    assert {unit.partition("#")[0] for unit in other.finished} == {"a.csv"}
    with pytest.raises(SourceFailed, match=r"readme.txt, its format is not known: name it with `format: parquet`"):
        list(source(tmp_path, pattern="*.txt").pages(None, max_rows=lambda: 5, seen=nothing_seen))
    third = Ledger()
    third.enter(source(tmp_path, pattern="readme.txt", file_format="ndjson"))
    assert third.ids == ["0"]


def test_a_single_file_may_stand_for_the_folder(tmp_path: Path) -> None:
    """`path:` may name one file."""
    put(tmp_path / "a.csv", people(0, 1))
    ledger = Ledger()
    ledger.enter(source(tmp_path / "a.csv"))
    assert ledger.ids == ["0"]


def test_a_folder_that_cannot_be_listed_is_one_sentence(tmp_path: Path) -> None:
    """Trouble with the store is SourceFailed, without an address."""

    class Broken:
        path = "/x"

        @property
        def fs(self) -> Any:
            raise PermissionError("s3://bucket/people@example.com")

    with pytest.raises(SourceFailed, match=r"^the folder cannot be listed now: PermissionError$"):
        source(Broken()).is_ahead(None, nothing_seen)


def test_an_opened_store_reads_like_a_disk(tmp_path: Path) -> None:
    """A path with an fsspec file system gives the same files in the same order."""

    class Opened:
        fs = fsspec.filesystem("file")
        path = str(tmp_path)

    for n in range(3):
        put(tmp_path / f"sub{n}" / f"{3 - n}.csv", people(n, n + 1), modified_s=PAST_S + n)
    ledger = Ledger()
    ledger.enter(source(Opened()))
    assert ledger.ids == ["0", "1", "2"]
    assert not source(Opened()).is_ahead(ledger.position, ledger.seen)


def test_parquet_types_come_as_python_values(tmp_path: Path) -> None:
    """Numbers, booleans and decimals of Parquet are Python's own, nulls are None."""
    table = pa.table({"id": pa.array([1, None], pa.int64()), "email": pa.array([Decimal("1.5"), None])})
    pq.write_table(table, tmp_path / "a.parquet")
    os.utime(tmp_path / "a.parquet", (PAST_S, PAST_S))
    (page,) = source(tmp_path).pages(None, max_rows=lambda: 5, seen=nothing_seen)
    assert page.columns == {"id": [1, None], "email": [Decimal("1.5"), None]}


@pytest.mark.parametrize("seed", range(6))
def test_pages_are_as_large_as_there_is_room_whatever_the_files(tmp_path: Path, seed: int) -> None:
    """Room that changes from page to page is filled to the last row, and reading goes on behind any page."""
    dice = random.Random(seed)
    first = 0
    for number in range(5):
        count = dice.choice([0, 1, 3, 20])
        put(tmp_path / f"{number}.{dice.choice(['parquet', 'csv'])}", people(first, first + count),
            modified_s=PAST_S + number)  # fmt: skip
        first += count
    ledger = Ledger()
    while source(tmp_path).is_ahead(ledger.position, ledger.seen):
        room = [dice.randint(1, 7)]
        for page in source(tmp_path).pages(ledger.position, max_rows=partial(room.__getitem__, -1), seen=ledger.seen):
            left = first - len(ledger.ids)
            assert page.rows == min(room[-1], left)
            room.append(dice.randint(1, 7))
            ledger.position = page.position
            ledger.finished |= set(page.completes)
            ledger.ids += [str(value) for value in page.columns["id"]]
            if dice.random() < 0.3:
                break
    assert ledger.ids == [str(n) for n in range(first)]


def test_a_page_ends_where_the_room_does(tmp_path: Path) -> None:
    """Small files share a page and a large one is cut: each page holds exactly what was asked for."""
    for number, count in enumerate((3, 9, 0, 2)):
        put(tmp_path / f"{number}.csv", people(0, count), modified_s=PAST_S + number)
    rooms = [5, 4, 1, 4, 100]
    rows: list[int] = []
    for page in source(tmp_path).pages(None, max_rows=lambda: rooms[len(rows)], seen=nothing_seen):
        rows.append(page.rows)
    assert rows == [5, 4, 1, 4]
