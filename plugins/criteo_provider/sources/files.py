"""The ``files`` source: every file of a folder once, oldest first, and only after all of it was checked."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import chain
from typing import Any

from criteo_provider.core.errors import SourceFailed
from criteo_provider.core.ports import Columns, Json, Look, MaxRows, Page, Seen
from criteo_provider.sources.file_formats import PIECE_ROWS, Batch, Reader, Unreadable, read_parquet, reader_for
from criteo_provider.sources.folders import FileRef, Folder
from criteo_provider.sources.reading_beside import ReadingBeside

SETTLED_S = 2.0
_CLOCKS_DIFFER_S = 60.0
_ASKED_AT_ONCE = 500
_TROUBLES_SHOWN = 3


class FilesSource:
    """Rows of Parquet, CSV and NDJSON files; each version (path and ETag, or size and time) once.

    ``root`` as for ``Folder``. A file is read from end to end before its first row is given out, so nothing
    of a damaged or half-written one goes on; it is named in SourceFailed after all others have been given,
    and read when it has been put there again. Files changed less than 2 s ago wait. A file that is
    interrupted goes on at its next row: the position is ``{unit: rows given}`` of unfinished files. Memory:
    one page, and twice 25,000 rows of a Parquet file as Arrow holds them; ``beside`` holds them for files of
    the disk.
    """

    def __init__(
        self,
        root: Any,
        *,
        columns: Sequence[str],
        now_us: Callable[[], int],
        pattern: str = "*",
        file_format: str | None = None,
        beside: ReadingBeside | None = None,
    ) -> None:
        self._folder = Folder(root, pattern)
        self._columns = tuple(dict.fromkeys(columns))
        self._now_us = now_us
        self._pattern = pattern
        self._format = file_format
        self._beside = beside
        self._finished: set[str] = set()

    def is_ahead(self, position: Json, seen: Seen) -> bool:
        """Tell whether there is a settled file that is not finished: one listing of the folder."""
        return bool(self._waiting(seen))

    def pages(self, position: Json, *, max_rows: MaxRows, seen: Seen) -> Generator[Page]:
        """Yield the rows of all waiting files, up to 10,000 a page; small files share one, empty files, too."""
        troubles: list[str] = []
        progress = {unit: int(str(rows)) for unit, rows in position.items()} if isinstance(position, dict) else {}
        held = _Held(max_rows)
        for piece in self._pieces(progress, held.room, max_rows(), seen, troubles):
            held.pieces.append(piece)
            del piece  # nothing is held here while others work on what is yielded
            if not held.room():
                yield held.joined()
        if held.pieces:
            yield held.joined()
        if troubles:
            more = len(troubles) - _TROUBLES_SHOWN
            raise SourceFailed(
                f"{'; '.join(troubles[:_TROUBLES_SHOWN])}{f'; and {more} more files' if more > 0 else ''}. "
                "Nothing of such a file is entered; put a complete one in its place"
            )

    def recheck(self, look: Look) -> Iterator[tuple[Page, Look | None]]:
        """Nothing comes late into a file: a changed file is a new one."""
        yield Page({}, 0, look.upto), None

    def _waiting(self, seen: Seen) -> list[FileRef]:
        try:
            there = [file for file in self._folder.files() if self._is_ours(file) and self._is_settled(file)]
        except FileNotFoundError:
            raise SourceFailed(
                "there is no folder (and no file) where `path` says; make or mount it, or correct `path`"
            ) from None
        except Exception as error:
            raise SourceFailed(f"the folder cannot be listed now: {type(error).__name__}") from None
        unknown = [file.unit for file in there if file.unit not in self._finished]
        for start in range(0, len(unknown), _ASKED_AT_ONCE):
            self._finished |= seen(unknown[start : start + _ASKED_AT_ONCE])
        return [file for file in there if file.unit not in self._finished]

    def _is_ours(self, file: FileRef) -> bool:
        """Without a pattern, files of other kinds may lie beside ours; with one, they are spoken of."""
        return self._pattern != "*" or reader_for(file.name, self._format) is not None

    def _is_settled(self, file: FileRef) -> bool:
        age_s = self._now_us() / 1e6 - file.modified_s
        return age_s >= SETTLED_S or age_s < -_CLOCKS_DIFFER_S

    def _pieces(
        self, progress: dict[str, int], room: MaxRows, batch_rows: int, seen: Seen, troubles: list[str]
    ) -> Iterator[Page]:
        for file in self._waiting(seen):
            try:
                yield from self._pieces_of(file, progress, room, batch_rows)
            except FileNotFoundError:  # gone since it was listed
                continue
            except Unreadable as fault:
                troubles.append(f"{file.name}, {fault}")
            except Exception as error:
                troubles.append(f"{file.name} cannot be read now ({type(error).__name__})")

    def _pieces_of(self, file: FileRef, progress: dict[str, int], room: MaxRows, batch_rows: int) -> Iterator[Page]:
        reader = reader_for(file.name, self._format)
        if reader is None:
            raise Unreadable("its format is not known: name it with `format: parquet`, `csv` or `ndjson`")
        if file.unit not in progress:
            for _ in self._batches(reader, file, 0, batch_rows, with_values=False):
                pass
            if not self._folder.is_unchanged(file):
                return  # it was still being written: the next look finds its new version
        nothing = Batch(0, lambda: {column: () for column in self._columns})
        batches = self._batches(reader, file, progress.get(file.unit, 0), batch_rows)
        for batch, is_last in _with_last(nothing, batches):
            yield from _cut(batch, file.unit, progress, room, is_last=is_last)

    def _batches(
        self, reader: Reader, file: FileRef, skip: int, batch_rows: int, *, with_values: bool = True
    ) -> Iterator[Batch]:
        with self._folder.open(file) as stream:
            if reader is read_parquet and self._beside is not None:
                yield from self._beside.batches(stream, self._columns, skip, batch_rows, with_values=with_values)
            else:
                yield from reader(stream, self._columns, skip, batch_rows)


def _cut(batch: Batch, unit: str, progress: dict[str, int], room: MaxRows, *, is_last: bool) -> Iterator[Page]:
    """Make pages of some rows of a file that fit into what is being put together, and note that they were given."""
    # What cannot become values is not given, and no later page may say that it was.
    rest, left = batch.columns(), batch.rows
    while True:
        rows = min(room(), left)
        left -= rows
        cut = [rest] if not left else [{name: values[:rows] for name, values in rest.items()}]
        rest = {name: values[rows:] for name, values in rest.items()} if left else {}
        progress[unit] = progress.get(unit, 0) + rows
        completes = (unit,) if is_last and not left else ()
        if completes:
            del progress[unit]
        # Nothing of it is held here while others work on what is yielded.
        yield Page(cut.pop(), rows, dict(progress), completes)
        if not left:
            return


def _with_last(nothing: Batch, batches: Iterator[Batch]) -> Iterator[tuple[Batch, bool]]:
    """Say of each batch whether it is the last; a file without (further) rows is one ``nothing``."""
    held = next(batches, nothing)
    for batch in batches:
        yield held, False
        held = batch
    yield held, True


class _Held:
    """Neighbouring pieces that become one page."""

    def __init__(self, max_rows: MaxRows) -> None:
        self.pieces: list[Page] = []
        self._max_rows = max_rows

    def room(self) -> int:
        """Return how many rows fit in beside those that are held."""
        return max(0, min(self._max_rows(), PIECE_ROWS) - sum(piece.rows for piece in self.pieces))

    def joined(self) -> Page:
        """Make one page of the pieces, and let go of them."""
        pieces, self.pieces = self.pieces, []
        if len(pieces) == 1:
            return pieces[0]
        columns: Columns = {
            name: list(chain.from_iterable(piece.columns[name] for piece in pieces)) for name in pieces[0].columns
        }
        completes = tuple(unit for piece in pieces for unit in piece.completes)
        return Page(columns, sum(piece.rows for piece in pieces), pieces[-1].position, completes)
