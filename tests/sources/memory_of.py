"""Read a made-up source of N rows from end to end and print the peak memory: ``memory_of.py KIND N``."""

from __future__ import annotations

import resource
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from criteo_provider.core.ports import Source
from criteo_provider.sources.dataframes import DataFrameSource
from criteo_provider.sources.files import FilesSource
from criteo_provider.sources.sql import SqlSource

COLUMNS = ["id", "email"]
BLOCK = 100_000


def sql(folder: Path, rows: int) -> Source:
    """Make a SQLite table; everything is recent enough to need marks for a further look."""
    connection = sqlite3.connect(folder / "shop.db")
    connection.execute("CREATE TABLE people (id INTEGER PRIMARY KEY, email TEXT)")
    connection.execute(
        "INSERT INTO people WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
        "SELECT i, 'p' || i || '@example.com' FROM n",
        (rows,),
    )
    connection.commit()
    connection.close()
    return SqlSource(
        lambda: sqlite3.connect(folder / "shop.db"),
        query="SELECT * FROM people",
        cursor=["id"],
        columns=COLUMNS,
        now_us=lambda: int(time.time() * 1e6),
    )


def files(folder: Path, rows: int, suffix: str) -> Source:
    """Make one file in one row group."""
    path = folder / f"people.{suffix}"
    if suffix == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        with pq.ParquetWriter(path, pa.schema([("id", pa.int64()), ("email", pa.string())])) as writer:
            for first in range(0, rows, BLOCK):
                block = range(first, first + BLOCK)
                emails = [f"p{n}@example.com" for n in block]
                writer.write_batch(pa.record_batch({"id": list(block), "email": emails}), row_group_size=rows)
    else:
        with path.open("w") as stream:
            stream.write("id,email\n" if suffix == "csv" else "")
            line = "{0},p{0}@example.com\n" if suffix == "csv" else '{{"id": {0}, "email": "p{0}@example.com"}}\n'
            stream.writelines(line.format(n) for n in range(rows))
    return FilesSource(folder, columns=COLUMNS, now_us=lambda: int((time.time() + 10) * 1e6))


def dataframes(folder: Path, rows: int) -> Source:
    """Make DataFrames as a team's generator would."""
    import pandas as pd

    def people() -> Any:
        for first in range(0, rows, BLOCK):
            block = range(first, first + BLOCK)
            yield pd.DataFrame({"id": block, "email": [f"p{n}@example.com" for n in block]})

    return DataFrameSource(people, cursor="id", columns=COLUMNS)


MAKERS: dict[str, Callable[[Path, int], Source]] = {
    "sql": sql,
    "parquet": lambda folder, rows: files(folder, rows, "parquet"),
    "csv": lambda folder, rows: files(folder, rows, "csv"),
    "ndjson": lambda folder, rows: files(folder, rows, "ndjson"),
    "dataframes": dataframes,
}


def main(kind: str, rows: int) -> None:
    """Make the source, read it, print rows, seconds and the peak resident memory in MB."""
    with tempfile.TemporaryDirectory() as folder:
        source = MAKERS[kind](Path(folder), rows)
        begin_s, read = time.process_time(), 0
        for page in source.pages(None, max_rows=lambda: 50_000, seen=lambda units: set()):
            read += page.rows
        cpu_s = time.process_time() - begin_s
    print(read, round(cpu_s, 2), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
