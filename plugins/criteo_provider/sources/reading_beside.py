"""Parquet files of the disk, read in a process beside: Arrow and NumPy take 75 MB, which a task need not hold itself.

``python -m criteo_provider.sources.reading_beside`` is that process: it answers orders on standard input until they
end. The task's other threads do not wait for its decoding, nor it for them.
"""

from __future__ import annotations

import io
import logging
import marshal
import os
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import IO, BinaryIO

from criteo_provider.core.ports import Columns
from criteo_provider.flow import side_process
from criteo_provider.sources.file_formats import ALLOCATOR, Batch, Unreadable, is_of_disk, read_parquet

log = logging.getLogger(__name__)

# So many files are read beside at once, whatever the number of canvases; others are read here.
MOST_AT_ONCE = 2
_ROWS, _END, _FAULT, _ELSEWHERE = "rows", "end", "fault", "elsewhere"


@dataclass(slots=True)
class _Reader:
    """A process that reads; ``has_answered`` tells one that works from one that cannot even begin."""

    process: subprocess.Popen[bytes]
    has_answered: bool = False
    is_idle: bool = False


class ReadingBeside:
    """Reads Parquet files in processes beside, started when they are needed; they end with this object.

    What cannot be read there is read here: another file under that name, values that cannot be sent, a process that
    has died. Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._places = MOST_AT_ONCE
        self._idle: list[_Reader] = []
        weakref.finalize(self, _end_all, self._idle)

    def batches(
        self, stream: BinaryIO, columns: Sequence[str], skip: int, batch_rows: int, *, with_values: bool
    ) -> Iterator[Batch]:
        """Read an opened file as ``read_parquet`` does; without values, only to see that it can be read."""
        reader, given = self._taken() if is_of_disk(stream) else None, 0
        if reader is not None:
            try:
                for batch in _asked(reader, _order(stream, columns, skip, batch_rows, with_values)):
                    if batch is None:
                        return
                    given += batch.rows
                    yield batch
            finally:
                self._give_back(reader)
        yield from read_parquet(stream, columns, skip + given, batch_rows)

    def _taken(self) -> _Reader | None:
        with self._lock:
            while self._idle:
                reader = self._idle.pop()
                if reader.process.poll() is None:
                    return reader
                self._end(reader)
            if not self._places:
                return None
            self._places -= 1
        try:
            return _Reader(_start())
        except OSError:
            return None  # its place is not given back: what could not be started is not tried again and again

    def _give_back(self, reader: _Reader) -> None:
        """Keep a process for the next file; whoever has not read to the end has left answers in the pipe."""
        if not reader.is_idle:
            self._end(reader)
            return
        with self._lock:
            self._idle.append(reader)

    def _end(self, reader: _Reader) -> None:
        side_process.end(reader.process, kill=True)
        with self._lock:
            self._places += 1 if reader.has_answered else 0


def _start() -> subprocess.Popen[bytes]:
    chosen = {ALLOCATOR: os.environ[ALLOCATOR]} if ALLOCATOR in os.environ else {}
    python_path = os.pathsep.join(str(path) for path in sys.path if path)
    # It computes nothing that is worth a thread for each core.
    return side_process.start(__name__, python_path, {"OPENBLAS_NUM_THREADS": "1", **chosen})


def _order(stream: BinaryIO, columns: Sequence[str], skip: int, batch_rows: int, with_values: bool) -> bytes:
    known = os.fstat(stream.fileno())
    return marshal.dumps((stream.name, known.st_dev, known.st_ino, [*columns], skip, batch_rows, with_values))


def _asked(reader: _Reader, order: bytes) -> Iterator[Batch | None]:
    """Yield what a process reads, and None behind the last row; it ends sooner where the rest is to be read here."""
    process, reader.is_idle = reader.process, False
    if process.stdin is None or process.stdout is None:
        return
    try:
        side_process.write(process.stdin, order)
        while True:
            # Written by our own process beside.
            kind, rows, text = marshal.loads(_next(process.stdout))  # noqa: S302
            reader.has_answered = True
            if kind == _ROWS:
                yield Batch(rows, partial(pickle.loads, _next(process.stdout)))  # noqa: S301
                continue
            reader.is_idle = True
            if kind == _FAULT:
                raise Unreadable(text)
            if kind == _END:
                yield None
            return
    except (OSError, EOFError, ValueError, TypeError) as error:
        reader.is_idle = False
        log.warning(
            "The process that reads files has ended (%s, exit code %s); this file is read here.",
            type(error).__name__,
            process.poll(),
        )


def _next(pipe: IO[bytes]) -> bytes:
    message = side_process.read(pipe)
    if message is None:
        raise EOFError
    return message


def _end_all(idle: list[_Reader]) -> None:
    while idle:
        side_process.end(idle.pop().process, kill=False)


def _answers(order: bytes) -> Iterator[bytes]:
    path, device, inode, columns, skip, batch_rows, with_values = marshal.loads(order)  # noqa: S302 - see ``_order``
    try:
        with open(path, "rb") as stream:
            opened = os.fstat(stream.fileno())
            if (opened.st_dev, opened.st_ino) != (device, inode):
                yield _answer(_ELSEWHERE)  # another file has taken its name
                return
            for batch in read_parquet(stream, columns, skip, batch_rows):
                values = _written(batch.columns() if with_values else {})
                yield _answer(_ROWS, batch.rows)
                yield values
        yield _answer(_END)
    except Unreadable as fault:
        yield _answer(_FAULT, text=str(fault))
    except Exception:
        yield _answer(_ELSEWHERE)  # whoever reads it there sees what it is


def _written(columns: Columns) -> bytes:
    text = io.BytesIO()
    pickler = pickle.Pickler(text, pickle.HIGHEST_PROTOCOL)
    pickler.fast = True  # looks for no value among those before, which takes four times as long
    pickler.dump(columns)
    return text.getvalue()


def _answer(kind: str, rows: int = 0, text: str = "") -> bytes:
    return marshal.dumps((kind, rows, text))


def main() -> None:
    """Read whatever is asked for, until nobody asks any more."""
    side_process.serve(_answers)


if __name__ == "__main__":
    main()
