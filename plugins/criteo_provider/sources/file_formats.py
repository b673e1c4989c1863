"""Parquet, CSV and newline-delimited JSON as streams of columns; faults are told without a value."""

from __future__ import annotations

import csv
import gzip
import io
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from types import ModuleType
from typing import Any, BinaryIO, TypeVar, cast

import msgspec

from criteo_provider.core.ports import Columns

LINE_BYTES = 4_000_000
# Rows parsed at once: short-lived, or the garbage collector visits them again and again (half of the time).
BLOCK_ROWS = 1_000
# Rows of a Parquet file decoded at once: Arrow lets the other threads go on meanwhile, and then waits for them.
DECODED_ROWS = 25_000
# Rows that become Python values at once: more leave the processor's cache before they are looked at.
PIECE_ROWS = 10_000
# Where Arrow looks up which allocator it is to use.
ALLOCATOR = "ARROW_DEFAULT_MEMORY_POOL"

T = TypeVar("T")


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
    """Read one JSON object a line; a key that is absent is no value. Blank lines are no rows."""
    decode = msgspec.json.Decoder(dict[str, object]).decode
    number = 0
    with io.BufferedReader(cast("Any", stream)) as lines:
        reading = iter(lambda: lines.readline(LINE_BYTES), b"")
        while taken := _next(reading, min(batch_rows, BLOCK_ROWS), number):
            held = [line for line in taken if not line.isspace()]
            try:
                records = [decode(line) for line in held]
            except msgspec.DecodeError:
                raise _first_fault(decode, held, number) from None
            known = max(skip - number, 0)
            number += len(records)
            if known < len(records):
                yield _of_records(records[known:], columns)


def read_parquet(stream: BinaryIO, columns: Sequence[str], skip: int, batch_rows: int) -> Iterator[Batch]:
    """Read the wanted columns of a Parquet file, a part of a row group at a time, given out in pieces."""
    pa = _arrow()
    import pyarrow.parquet as pq

    number = 0
    try:
        with _of_arrow(stream) as source:
            # buffer_size: read a column bit by bit; without it a whole row group is held.
            file = pq.ParquetFile(source, buffer_size=1 << 20, pre_buffer=False)
            there = file.schema_arrow.names
            _demand(columns, there, f"the file has {', '.join(there)}")
            groups = range(file.metadata.num_row_groups)
            while groups and number + (whole := file.metadata.row_group(groups[0]).num_rows) <= skip:
                number += whole
                groups = groups[1:]
            at_once = min(batch_rows, DECODED_ROWS)
            for rows in file.iter_batches(at_once, row_groups=list(groups), columns=list(columns), use_threads=False):
                rows.validate(full=True)  # texts that are not UTF-8 show here, not when they are used
                known = max(skip - number, 0)
                number += rows.num_rows
                for first in range(known, rows.num_rows, PIECE_ROWS):
                    piece = rows.slice(first, PIECE_ROWS)
                    yield Batch(piece.num_rows, cast("Any", piece).to_pydict)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the store's trouble, not the file's
        raise Unreadable(f"behind row {number}: the file is damaged or cut off") from None


def is_of_disk(stream: BinaryIO) -> bool:
    """Tell whether a stream is a file that can be opened once more by its name."""
    return isinstance(stream, io.BufferedReader) and isinstance(stream.raw, io.FileIO)


@contextmanager
def _of_arrow(stream: BinaryIO) -> Iterator[Any]:
    """Open a file of the disk so that Arrow reads it by itself, without asking Python for every stretch of it."""
    import pyarrow as pa

    if not is_of_disk(stream):
        yield stream
        return
    with pa.OSFile(stream.name, "rb") as opened:
        # Another file may have taken its name since the stream was opened.
        is_same = os.path.samestat(os.fstat(stream.fileno()), os.stat(stream.name))
        yield opened if is_same else stream


def _arrow() -> ModuleType:
    """Import Arrow so that it gives back what it does not use, unless somebody has chosen its allocator.

    The usual one keeps 30 MB for 7 MB in use. This one gives them back, and not so soon that the next page has to ask
    for them anew, which costs 4 us for each page of memory. Arrow chooses for itself when it is imported; whatever has
    imported it before us, we can only choose for what is asked for in Python (16 MB more).
    """
    if "pyarrow" not in sys.modules and sys.platform == "linux":
        os.environ.setdefault(ALLOCATOR, "jemalloc")
    import pyarrow as pa

    if ALLOCATOR not in os.environ and "jemalloc" in pa.supported_memory_backends():
        pa.set_memory_pool(pa.jemalloc_memory_pool())
    return pa


def _delimited(stream: BinaryIO, columns: Sequence[str], skip: int, batch_rows: int, delimiter: str) -> Iterator[Batch]:
    number = 0
    with io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
        reading = csv.reader(text, delimiter=delimiter, strict=True)
        header = (_next(reading, 1, 0) or [[]])[0]
        _demand(columns, header, f"the header line has {len(header)} columns; is the first line a header?")
        places = {column: header.index(column) for column in columns}
        while rows := _next(reading, min(batch_rows, BLOCK_ROWS), number):
            if set(map(len, rows)) != {len(header)}:
                rows = _whole_rows(rows, len(header), number)
            known = max(skip - number, 0)
            number += len(rows)
            if known < len(rows):
                yield _of_fields(rows[known:], places)


def _next(reading: Iterator[T], count: int, number: int) -> list[T]:
    """Take the next rows; what a parser says may quote one, so a fault only names the row."""
    rows: list[T] = []
    try:
        rows.extend(islice(reading, count))
    except UnicodeDecodeError:
        raise Unreadable(f"behind row {number + len(rows)}: the text is not UTF-8") from None
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise Unreadable(f"behind row {number + len(rows)}: the compressed file is damaged or cut off") from None
    except csv.Error:
        raise Unreadable(f"behind row {number + len(rows)}: the file is damaged or cut off") from None
    return rows


def _whole_rows(rows: list[list[str]], width: int, number: int) -> list[list[str]]:
    """Leave out blank lines; a row of another width is a fault."""
    whole = [row for row in rows if row]
    for at, row in enumerate(whole, number + 1):
        if len(row) != width:
            raise Unreadable(f"row {at}: {width} fields were expected and {len(row)} found")
    return whole


def _first_fault(decode: Callable[[bytes], object], lines: Sequence[bytes], number: int) -> Unreadable:
    for at, line in enumerate(lines, number + 1):
        try:
            decode(line)
        except msgspec.ValidationError:
            return Unreadable(f"row {at}: a JSON object was expected")
        except msgspec.DecodeError:
            return Unreadable(f"row {at}: the line is not complete JSON")
    raise AssertionError("one of these lines was refused a moment ago")


def _of_fields(rows: list[list[str]], places: Mapping[str, int]) -> Batch:
    return Batch(len(rows), lambda: {name: [row[at] or None for row in rows] for name, at in places.items()})


def _of_records(records: list[dict[str, object]], columns: Sequence[str]) -> Batch:
    return Batch(len(records), lambda: {name: [record.get(name) for record in records] for name in columns})


def _demand(columns: Sequence[str], there: Sequence[str], otherwise: str) -> None:
    for column in columns:
        if there.count(column) != 1:
            fault = "there is no column" if column not in there else "several columns are called"
            raise Unreadable(f"{fault} {column!r}; {otherwise}")


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
