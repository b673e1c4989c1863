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
from functools import partial
from typing import IO, BinaryIO

from criteo_provider.core.ports import Columns
from criteo_provider.flow import side_process
from criteo_provider.sources.file_formats import Batch, Unreadable, is_of_disk, read_parquet

log = logging.getLogger(__name__)

# So many files are read beside at once, whatever the number of canvases; others are read here.
MOST_BESIDE = 2
_ROWS, _END, _FAULT, _ELSEWHERE = "rows", "end", "fault", "elsewhere"


class ReadingBeside:
    """Reads Parquet files in processes beside, started when they are needed; they end with this object.

    What cannot be read there is read here: another file under that name, values that cannot be sent, a process that
    has died. Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._places = MOST_BESIDE
        self._idle: list[subprocess.Popen[bytes]] = []
        weakref.finalize(self, _end_all, self._idle)

    def batches(
        self, stream: BinaryIO, columns: Sequence[str], skip: int, batch_rows: int, *, with_values: bool
    ) -> Iterator[Batch]:
        """Read an opened file as ``read_parquet`` does; without values, only to see that it can be read."""
        process = self._taken() if is_of_disk(stream) else None
        given = 0
        if process is not None:
            is_idle, is_read = False, False
            try:
                for answer in _asked(process, _order(stream, columns, skip, batch_rows, with_values)):
                    if not isinstance(answer, Batch):
                        is_idle, is_read = True, answer
                        break
                    given += answer.rows
                    yield answer
            except Unreadable:
                is_idle = True
                raise
            finally:
                # Whoever does not read to the end leaves answers in the pipe that nobody has asked for.
                self._give_back(process, is_idle=is_idle)
            if is_read:
                return
        yield from read_parquet(stream, columns, skip + given, batch_rows)

    def _taken(self) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if self._idle:
                return self._idle.pop()
            if not self._places:
                return None
            self._places -= 1
        try:
            return side_process.start(__name__, os.pathsep.join(filter(None, sys.path)))
        except OSError:
            return None  # its place is not given back: what could not be started is not tried again and again

    def _give_back(self, process: subprocess.Popen[bytes], *, is_idle: bool) -> None:
        if is_idle:
            with self._lock:
                self._idle.append(process)
            return
        side_process.end(process, kill=True)
        with self._lock:
            self._places += 1


def _order(stream: BinaryIO, columns: Sequence[str], skip: int, batch_rows: int, with_values: bool) -> bytes:
    known = os.fstat(stream.fileno())
    return marshal.dumps((stream.name, known.st_dev, known.st_ino, [*columns], skip, batch_rows, with_values))


def _asked(process: subprocess.Popen[bytes], order: bytes) -> Iterator[Batch | bool]:
    """Yield what was read, and at last whether that was all; nothing where the process has died."""
    if process.stdin is None or process.stdout is None:
        return
    try:
        side_process.write(process.stdin, order)
        while True:
            # Written by our own process beside.
            kind, rows, text = marshal.loads(_next(process.stdout))  # noqa: S302
            if kind == _FAULT:
                raise Unreadable(text)
            if kind != _ROWS:
                yield kind == _END
                return
            yield Batch(rows, partial(pickle.loads, _next(process.stdout)))  # noqa: S301
    except (OSError, EOFError) as error:
        log.warning("The process that reads files has ended (%s); this file is read here.", type(error).__name__)


def _next(pipe: IO[bytes]) -> bytes:
    message = side_process.read(pipe)
    if message is None:
        raise EOFError
    return message


def _end_all(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        side_process.end(process, kill=False)


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
    pipe = io.BytesIO()
    pickler = pickle.Pickler(pipe, pickle.HIGHEST_PROTOCOL)
    pickler.fast = True  # looks for no value among those before, which takes four times as long
    pickler.dump(columns)
    return pipe.getvalue()


def _answer(kind: str, rows: int = 0, text: str = "") -> bytes:
    return marshal.dumps((kind, rows, text))


def main() -> None:
    """Read whatever is asked for, until nobody asks any more."""
    while (order := side_process.read(sys.stdin.buffer)) is not None:
        try:
            for answer in _answers(order):
                side_process.write(sys.stdout.buffer, answer)
        except BrokenPipeError:
            return


if __name__ == "__main__":
    main()
