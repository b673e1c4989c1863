"""What is read in a process beside is what is read here, whatever happens to that process."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from criteo_provider.core.errors import SourceFailed
from criteo_provider.core.ports import Page
from criteo_provider.sources import reading_beside
from criteo_provider.sources.file_formats import Batch, Unreadable, read_parquet
from criteo_provider.sources.files import FilesSource
from criteo_provider.sources.reading_beside import ReadingBeside

COLUMNS = ["id", "email"]
ROWS = 45_000


@pytest.fixture
def beside() -> ReadingBeside:
    """Readers beside, none started yet."""
    return ReadingBeside()


@pytest.fixture
def only_beside(beside: ReadingBeside, monkeypatch: pytest.MonkeyPatch) -> ReadingBeside:
    """Readers beside, and nothing can be read here."""

    def refuse(*_: object) -> None:
        raise AssertionError("this was to be read beside")

    monkeypatch.setattr(reading_beside, "read_parquet", refuse)
    return beside


def write(path: Path, rows: int = ROWS) -> Path:
    """Make a file of several pieces."""
    emails = [None if number % 7 == 0 else f"user{number}@example.com" for number in range(rows)]
    pq.write_table(pa.table({"id": list(range(rows)), "email": emails}), path, row_group_size=20_000)
    return path


def here(path: Path, columns: list[str], skip: int = 0) -> list[Mapping[str, Any]]:
    """What reading in this process gives."""
    with path.open("rb") as stream:
        return [batch.columns() for batch in read_parquet(stream, columns, skip, 50_000)]


def there(beside: ReadingBeside, path: Path, columns: list[str], skip: int = 0) -> list[Mapping[str, Any]]:
    """What reading beside gives."""
    with path.open("rb") as stream:
        return [batch.columns() for batch in asked(beside, stream, columns, skip)]


def asked(beside: ReadingBeside, stream: BinaryIO, columns: list[str] = COLUMNS, skip: int = 0) -> Iterator[Batch]:
    """Begin to read beside."""
    return beside.batches(stream, columns, skip, 50_000, with_values=True)


def ids(pieces: list[Mapping[str, Any]]) -> list[int]:
    """The ids of all rows, as they came."""
    return [number for piece in pieces for number in piece["id"]]


@pytest.mark.parametrize("skip", [0, 1, 20_000, 44_999, ROWS])
def test_rows_are_those_that_are_read_here(only_beside: ReadingBeside, tmp_path: Path, skip: int) -> None:
    """The same pieces with the same values, from any row on; the same process reads the next file."""
    path = write(tmp_path / "a.parquet")
    for _ in range(2):
        assert there(only_beside, path, COLUMNS, skip) == here(path, COLUMNS, skip)
    assert len(only_beside._idle) == 1


def test_values_of_any_type_come_back_as_they_are(only_beside: ReadingBeside, tmp_path: Path) -> None:
    """Times with their zone, decimals, bytes, lists and nothing at all."""
    values: dict[str, list[Any]] = {
        "when": [datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC), None],
        "day": [date(2026, 1, 2), None],
        "money": [Decimal("1.20"), None],
        "blob": [b"\xff\x00", None],
        "list": [["a", None], []],
        "real": [float("inf"), 0.1],
    }
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(values), path)
    read = there(only_beside, path, list(values))
    assert read == here(path, list(values)) == [values]
    assert len(only_beside._idle) == 1


def test_a_file_that_is_only_checked_sends_no_values(only_beside: ReadingBeside, tmp_path: Path) -> None:
    """All rows are counted, and their values stay where they are."""
    with write(tmp_path / "a.parquet").open("rb") as stream:
        read = list(only_beside.batches(stream, COLUMNS, 0, 50_000, with_values=False))
    assert sum(batch.rows for batch in read) == ROWS
    assert {len(batch.columns()) for batch in read} == {0}


def cut_off(path: Path) -> None:
    """Leave the end of a file away."""
    path.write_bytes(path.read_bytes()[:-100])


def not_utf8(path: Path) -> None:
    """Let an address be no text."""
    broken = pa.array([b"\xff\xfe"]).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"id": [1], "email": broken}), path)


@pytest.mark.parametrize("spoil", [cut_off, not_utf8])
def test_a_damaged_file_is_told_as_it_is_here(only_beside: ReadingBeside, tmp_path: Path, spoil: Any) -> None:
    """The same sentence, and the process reads the next file."""
    path = write(tmp_path / "a.parquet")
    spoil(path)
    with pytest.raises(Unreadable) as expected:
        here(path, COLUMNS)
    with pytest.raises(Unreadable, match=str(expected.value)):
        there(only_beside, path, COLUMNS)
    (reader,) = only_beside._idle
    assert ids(there(only_beside, write(tmp_path / "b.parquet"), COLUMNS)) == list(range(ROWS))
    assert only_beside._idle == [reader]


def test_a_column_that_is_missing_is_named(only_beside: ReadingBeside, tmp_path: Path) -> None:
    """With the columns there are, as here."""
    with pytest.raises(Unreadable, match="there is no column 'age'; the file has id, email"):
        there(only_beside, write(tmp_path / "a.parquet"), ["id", "age"])


def test_a_process_that_dies_loses_and_doubles_nobody(beside: ReadingBeside, tmp_path: Path) -> None:
    """What it has not given is read here, and the next file is read beside again."""
    path = write(tmp_path / "a.parquet", 400_000)
    with path.open("rb") as stream:
        reading = asked(beside, stream)
        read = [next(reading).columns()]
        kill_the_children()
        read += [batch.columns() for batch in reading]
    assert ids(read) == list(range(400_000))
    assert beside._idle == []
    assert ids(there(beside, path, COLUMNS)) == list(range(400_000))
    assert len(beside._idle) == 1


def children() -> list[psutil.Process]:
    """All processes that read beside."""
    found = [child for child in psutil.Process().children() if reading_beside.__name__ in child.cmdline()]
    assert found
    return found


def kill_the_children() -> None:
    """End every process that reads beside."""
    for child in children():
        child.kill()
        child.wait()


def test_whoever_stops_in_the_middle_leaves_no_answers_behind(only_beside: ReadingBeside, tmp_path: Path) -> None:
    """The next file gives its own rows and not those that were still in the pipe."""
    long, short = write(tmp_path / "a.parquet", 400_000), write(tmp_path / "b.parquet", 3)
    with long.open("rb") as stream, closing(asked(only_beside, stream)) as reading:  # type: ignore[type-var]
        next(reading)
    assert only_beside._idle == []
    assert ids(there(only_beside, short, COLUMNS)) == [0, 1, 2]


def test_a_file_that_took_the_name_of_another_is_not_read(beside: ReadingBeside, tmp_path: Path) -> None:
    """What was opened is read, whatever its name stands for now."""
    path, other = write(tmp_path / "a.parquet", 3), write(tmp_path / "b.parquet", 5)
    with path.open("rb") as stream:
        other.replace(path)
        assert ids([batch.columns() for batch in asked(beside, stream)]) == [0, 1, 2]
    assert len(beside._idle) == 1


def test_only_so_many_processes_read_at_once(beside: ReadingBeside, tmp_path: Path) -> None:
    """A third file is read here meanwhile; each gives its own rows."""
    path = write(tmp_path / "a.parquet")
    streams = [path.open("rb") for _ in range(reading_beside.MOST_AT_ONCE + 1)]
    readings = [asked(beside, stream) for stream in streams]
    first = [next(reading).columns() for reading in readings]
    rest = [[batch.columns() for batch in reading] for reading in readings]
    for stream in streams:
        stream.close()
    assert [ids([one, *others]) for one, others in zip(first, rest, strict=True)] == [list(range(ROWS))] * len(streams)
    assert len(beside._idle) == reading_beside.MOST_AT_ONCE


def test_processes_end_with_whoever_started_them(tmp_path: Path) -> None:
    """Nothing is left running once the source is gone."""
    beside = ReadingBeside()
    there(beside, write(tmp_path / "a.parquet"), COLUMNS)
    process = beside._idle[0].process
    assert process.poll() is None
    del beside
    gc.collect()
    assert process.poll() == 0


def test_a_signal_to_the_whole_group_is_for_the_task(only_beside: ReadingBeside, tmp_path: Path) -> None:
    """SIGTERM and SIGINT do not end a reader in the middle of a file: the task says when it is over."""
    with write(tmp_path / "a.parquet", 400_000).open("rb") as stream:
        reading = asked(only_beside, stream)
        read = [next(reading).columns()]
        for number in (signal.SIGTERM, signal.SIGINT):
            for child in children():
                child.send_signal(number)
        read += [batch.columns() for batch in reading]
    assert ids(read) == list(range(400_000))


def test_one_that_died_while_it_had_nothing_to_do_is_replaced(only_beside: ReadingBeside, tmp_path: Path) -> None:
    """The next file is read beside all the same."""
    path = write(tmp_path / "a.parquet")
    there(only_beside, path, COLUMNS)
    kill_the_children()
    assert ids(there(only_beside, path, COLUMNS)) == list(range(ROWS))


def test_values_that_cannot_be_made_are_told_by_whoever_reads_here(beside: ReadingBeside, tmp_path: Path) -> None:
    """What came before them was given once, and the fault is that of reading here."""
    path = never(tmp_path / "a.parquet")
    read: list[Mapping[str, Any]] = []
    with path.open("rb") as stream, pytest.raises((OverflowError, ValueError)):
        read.extend(batch.columns() for batch in asked(beside, stream, ["id", "until"]))
    assert ids(read) == list(range(10_000))
    assert len(beside._idle) == 1


def test_rows_that_could_not_be_given_are_not_passed_over(tmp_path: Path) -> None:
    """A file whose values cannot be made stays where it was, whatever other files give; mended, it gives the rest."""
    os.utime(never(tmp_path / "a.parquet"), (1, 1))
    source = FilesSource(tmp_path, columns=["id", "until"], now_us=lambda: int(1e15))
    pq.write_table(pa.table({"id": [7], "until": [None]}), tmp_path / "b.parquet")
    given: list[Any] = []
    with pytest.raises(SourceFailed, match=r"a\.parquet cannot be read now"):
        given.extend(source.pages(None, max_rows=lambda: 50_000, seen=lambda _units: set()))
    assert ids([page.columns for page in given]) == [*range(10_000), 7]
    (given_of_a,) = given[-1].position.values()
    assert given_of_a == 10_000


def never(path: Path) -> Path:
    """Make a file whose second piece has a time no Python value can hold, as databases write infinity."""
    until = pa.array([0] * 10_000 + [2**63 - 1] * 10, pa.int64()).cast(pa.timestamp("us"))
    pq.write_table(pa.table({"id": list(range(10_010)), "until": until}), path)
    return path


def test_where_no_process_can_be_started_files_are_read_here(
    beside: ReadingBeside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slower to share a task with, and nothing else."""

    def refuse(*_: object) -> None:
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(reading_beside.side_process, "start", refuse)
    assert ids(there(beside, write(tmp_path / "a.parquet"), COLUMNS)) == list(range(ROWS))


def test_the_process_beside_has_nothing_to_log_in_with(
    beside: ReadingBeside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the environment it has where programs are, and no secret."""
    monkeypatch.setenv("AIRFLOW_CONN_CRITEO_DEFAULT", "a secret")
    there(beside, write(tmp_path / "a.parquet"), COLUMNS)
    (reader,) = beside._idle
    held = Path(f"/proc/{reader.process.pid}/environ").read_bytes().split(b"\0")
    known = {b"PATH", b"LD_LIBRARY_PATH", b"PYTHONPATH", b"OPENBLAS_NUM_THREADS", b"ARROW_DEFAULT_MEMORY_POOL"}
    assert {line.partition(b"=")[0] for line in held if line} <= known


def test_a_folder_read_beside_gives_each_file_once(beside: ReadingBeside, tmp_path: Path) -> None:
    """All rows of all good files in order, the damaged one named, and a file half-read goes on at its row."""
    for number, rows in enumerate((30_000, 5, 0)):
        path = write(tmp_path / f"{number}.parquet", rows)
        os.utime(path, (number, number))
    cut_off(write(tmp_path / "damaged.parquet"))
    source = FilesSource(tmp_path, columns=COLUMNS, now_us=lambda: int(1e16), beside=beside)
    pages = pages_of(source, None)
    assert ids([page.columns for page in pages]) == [*range(30_000), *range(5)]
    assert len([unit for page in pages for unit in page.completes]) == 3
    rest = pages_of(source, pages[0].position)
    assert ids([pages[0].columns, *(page.columns for page in rest)]) == [*range(30_000), *range(5)]


def pages_of(source: FilesSource, position: Any) -> list[Page]:
    """Read a folder in which one file is damaged."""
    pages: list[Page] = []
    with pytest.raises(SourceFailed, match=r"damaged\.parquet, behind row 0: the file is damaged or cut off"):
        pages.extend(source.pages(position, max_rows=lambda: 50_000, seen=lambda _units: set()))
    return pages
