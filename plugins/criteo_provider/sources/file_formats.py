"""Parquet, CSV and newline-delimited JSON as streams of columns; faults are told without a value."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from criteo_provider.core.ports import Columns

LINE_BYTES = 4_000_000


class Unreadable(Exception):
    """A file is not what its format promises; the text names the row and the fault, no value."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows of a file; ``columns`` makes Python values of them, when they are wanted."""

    rows: int
    columns: Callable[[], Columns]


Reader = Callable[[BinaryIO, Sequence[str], int, int], Iterator[Batch]]


def reader_for(name: str, declared: str | None) -> Reader | None:
    """Return ``read(stream, columns, skip_rows, batch_rows)`` by declaration or suffix; None if unknown."""
    plain = name.lower().removesuffix(".gz")
    kind = declared or _KIND_OF_SUFFIX.get(plain.rpartition(".")[2])
    reader = _READERS.get(kind or "")
    return _unzipped(reader) if reader is not None and plain != name.lower() else reader


def read_csv(stream: BinaryIO, columns: Sequence[str], skip: int, batch_rows: int) -> Iterator[Batch]:
    """Read CSV with a header line, UTF-8; an empty field is no value."""
    yield from _delimited(stream, columns, skip, batch_rows, ",")


def read_tsv(stream: BinaryIO, columns: Sequence[str], skip: int, batch_rows: int) -> Iterator[Batch]:
    """Read tab-separated values with a header line, UTF-8; an empty field is no value."""
    yield from _delimited(stream, columns, skip, batch_rows, "\t")


def read_ndjson(stream: BinaryIO, columns: Sequence[str], skip: int, batch_rows: int) -> Iterator[Batch]:
    """Read one JSON object a line; a key that is absent is no value. Blank lines count as rows nowhere."""
    number = 0
    held: list[dict[str, object]] = []
    with _naming_the_row(lambda: number):
        while line := stream.readline(LINE_BYTES):
            if not line.strip():
                continue
            number += 1
            record = json.loads(line)
            if not isinstance(record, dict):
                raise Unreadable(f"row {number}: a JSON object was expected")
            if number > skip:
                held.append(record)
            if len(held) == batch_rows:
                yield _of_records(held, columns)
                held = []
    if held:
        yield _of_records(held, columns)


def read_parquet(stream: BinaryIO, columns: Sequence[str], skip: int, batch_rows: int) -> Iterator[Batch]:
    """Read the wanted columns of a Parquet file, a part of a row group at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    with _naming_the_row(lambda: number, pa.ArrowException):
        # buffer_size: read a column bit by bit; without it a whole row group is held.
        file = pq.ParquetFile(stream, buffer_size=1 << 20, pre_buffer=False)
        _demand(columns, file.schema_arrow.names, "the file has " + ", ".join(file.schema_arrow.names))
        groups = range(file.metadata.num_row_groups)
        while groups and number + (rows := file.metadata.row_group(groups[0]).num_rows) <= skip:
            number += rows
            groups = groups[1:]
        names = list(dict.fromkeys(columns))
        for piece in file.iter_batches(batch_rows, row_groups=list(groups), columns=names, use_threads=False):
            begin = min(max(skip - number, 0), piece.num_rows)
            number += piece.num_rows
            if begin < piece.num_rows:
                yield Batch(piece.num_rows - begin, cast("Any", piece.slice(begin)).to_pydict)


def _delimited(stream: BinaryIO, columns: Sequence[str], skip: int, batch_rows: int, delimiter: str) -> Iterator[Batch]:
    number = 0
    held: list[list[str]] = []
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    with _naming_the_row(lambda: number + 1, csv.Error), text:
        rows = csv.reader(text, delimiter=delimiter, strict=True)
        header = next(rows, [])
        _demand(columns, header, f"the header line has {len(header)} columns; is the first line a header?")
        places = {column: header.index(column) for column in columns}
        for row in rows:
            if not row:
                continue
            number += 1
            if len(row) != len(header):
                raise Unreadable(f"row {number}: {len(header)} fields were expected and {len(row)} found")
            if number > skip:
                held.append(row)
            if len(held) == batch_rows:
                yield _of_fields(held, places)
                held = []
    if held:
        yield _of_fields(held, places)


def _of_fields(rows: list[list[str]], places: Mapping[str, int]) -> Batch:
    return Batch(len(rows), lambda: {name: [row[at] or None for row in rows] for name, at in places.items()})


def _of_records(records: list[dict[str, object]], columns: Sequence[str]) -> Batch:
    return Batch(len(records), lambda: {name: [record.get(name) for record in records] for name in columns})


def _demand(columns: Sequence[str], there: Sequence[str], otherwise: str) -> None:
    for column in columns:
        if there.count(column) != 1:
            fault = "there is no column" if column not in there else "several columns are called"
            raise Unreadable(f"{fault} {column!r}; {otherwise}")


@contextmanager
def _naming_the_row(row: Callable[[], int], *faults: type[Exception]) -> Iterator[None]:
    """Turn whatever a parser says, which may quote the row, into a sentence that only names the row."""
    try:
        yield
    except UnicodeDecodeError:
        raise Unreadable(f"near row {row()}: the text is not UTF-8") from None
    except json.JSONDecodeError:
        raise Unreadable(f"row {row()}: the line is not complete JSON") from None
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise Unreadable(f"after row {row()}: the compressed file is cut off or damaged") from None
    except faults:
        raise Unreadable(f"near row {row()}: the file is cut off or damaged") from None


def _unzipped(reader: Reader) -> Reader:
    def read(stream: BinaryIO, columns: Sequence[str], skip: int, batch_rows: int) -> Iterator[Batch]:
        with gzip.open(stream) as plain:
            yield from reader(cast("BinaryIO", plain), columns, skip, batch_rows)

    return read


_READERS: dict[str, Reader] = {
    "parquet": read_parquet,
    "csv": read_csv,
    "tsv": read_tsv,
    "ndjson": read_ndjson,
}
_KIND_OF_SUFFIX = {
    "parquet": "parquet",
    "pq": "parquet",
    "csv": "csv",
    "tsv": "tsv",
    "ndjson": "ndjson",
    "jsonl": "ndjson",
}
