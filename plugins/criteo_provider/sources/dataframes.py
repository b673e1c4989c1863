"""The ``python`` source: a team's own callable that yields pandas DataFrames."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from criteo_provider.core.errors import CriteoSyncError, SourceFailed
from criteo_provider.core.ports import Json, Look, MaxRows, Page, Seen
from criteo_provider.sources.cursor_values import decode, encode

if TYPE_CHECKING:
    import pandas as pd

Frames = Callable[..., Iterable["pd.DataFrame"]]


class DataFrameSource:
    """Rows of the DataFrames a callable yields, ordered by a cursor column over all of them.

    ``callable_`` is the callable or its dotted path, resolved at the first look; a module whose file has changed is
    imported anew for that. It is called with the cursor value reached (None at first), so that it can leave out
    what is known, or with nothing if it takes no argument; rows up to there are skipped in any case. The position
    is that value and how many rows that have it are entered: rows of one value must keep their order, and rows
    with a smaller one must not come later. NaN, NaT and NA are no value. Memory: one DataFrame.
    """

    def __init__(self, callable_: Frames | str, *, cursor: str, columns: Sequence[str]) -> None:
        self._callable = callable_
        self._cursor = cursor
        self._columns = tuple(dict.fromkeys(columns))
        self._name = callable_ if isinstance(callable_, str) else getattr(callable_, "__qualname__", "callable")

    def is_ahead(self, position: Json, seen: Seen) -> bool:
        """Tell whether the callable yields a row behind ``position``; asked no further than to the first."""
        return next(self.pages(position, max_rows=lambda: 1, seen=seen), None) is not None

    def pages(self, position: Json, *, max_rows: MaxRows, seen: Seen) -> Generator[Page]:
        """Yield the rows behind ``position``."""
        after, ties = _reached(position)
        for frame in self._fresh(after, ties):
            start = 0
            while start < len(frame):
                part = frame.iloc[start : start + max_rows()]
                start += len(part)
                newest = part[self._cursor].iloc[-1]
                same = int((part[self._cursor] == newest).sum())
                ties = ties + same if after is not None and newest == after else same
                after = newest
                yield Page(self._as_columns(part), len(part), [encode(newest, self._cursor), ties])

    def recheck(self, look: Look) -> Iterator[tuple[Page, Look | None]]:
        """Nothing comes late: a callable gives its rows in order."""
        yield Page({}, 0, look.upto), None

    def _fresh(self, after: Any, ties: int) -> Iterator[pd.DataFrame]:
        """Yield non-empty frames without the rows known already, each checked for columns and order."""
        newest, to_skip = None, ties
        for number, frame in enumerate(self._frames(after), 1):
            try:
                self._check(frame, number, newest)
                newest = frame[self._cursor].iloc[-1] if len(frame) else newest
                frame, skipped = _behind(frame, self._cursor, after, to_skip)
            except TypeError:
                raise SourceFailed(
                    f"{self._name}: the values of the cursor column {self._cursor!r} in DataFrame {number} cannot "
                    "be compared with those before; give it one type, and keep that"
                ) from None
            to_skip -= skipped
            if len(frame):
                yield frame

    def _frames(self, after: Any) -> Iterator[pd.DataFrame]:
        function = self._callable = _resolved(self._callable)
        try:
            yield from function(after) if _takes_an_argument(function) else function()
        except CriteoSyncError:
            raise
        except (Exception, SystemExit) as error:
            raise SourceFailed(f"{self._name} failed with {_what_and_where(error)}") from None

    def _check(self, frame: object, number: int, newest: Any) -> None:
        import pandas as pd

        if not isinstance(frame, pd.DataFrame):
            raise SourceFailed(f"{self._name}: item {number} is a {type(frame).__name__}; yield pandas DataFrames")
        for column in (self._cursor, *self._columns):
            if list(frame.columns).count(column) != 1:
                raise SourceFailed(
                    f"{self._name}: DataFrame {number} has no single column {column!r}; add it there, "
                    "or correct the name in the canvas"
                )
        reached = frame[self._cursor]
        if reached.isna().any():
            raise SourceFailed(
                f"{self._name}: DataFrame {number} has rows without a value in the cursor column "
                f"{self._cursor!r}; leave them out, or give them one"
            )
        if not reached.is_monotonic_increasing or (newest is not None and len(frame) and reached.iloc[0] < newest):
            raise SourceFailed(
                f"{self._name}: DataFrame {number} is not ordered by the cursor column {self._cursor!r}; "
                "sort by it, over all DataFrames"
            )

    def _as_columns(self, frame: pd.DataFrame) -> dict[str, Sequence[object]]:
        return {name: _python_values(frame[name]) for name in self._columns}


def _behind(frame: pd.DataFrame, cursor: str, after: Any, to_skip: int) -> tuple[pd.DataFrame, int]:
    """Leave out the rows before ``after``, and up to ``to_skip`` that have just that value; return how many."""
    if after is None:
        return frame, 0
    frame = frame[frame[cursor] >= after]
    known = min(to_skip, int((frame[cursor] == after).sum()))
    return frame.iloc[known:], known


def _python_values(series: pd.Series[Any]) -> list[object]:
    values = series.tolist()  # Python scalars, not those of numpy
    return [None if gone else value for value, gone in zip(values, series.isna(), strict=True)]


def _reached(position: Json) -> tuple[Any, int]:
    if position is None:
        return None, 0
    if not isinstance(position, list) or len(position) != 2 or not isinstance(position[1], int):
        raise SourceFailed("the stored position is not that of a `python` source: was the kind of source changed?")
    return decode(position[0]), position[1]


def _takes_an_argument(function: Frames) -> bool:
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return False
    return True


def _resolved(dotted: Frames | str) -> Frames:
    if not isinstance(dotted, str):
        return dotted
    module, _, name = dotted.rpartition(".")
    try:
        found = getattr(_imported(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SourceFailed(
            f"`callable: {dotted}` cannot be imported ({type(error).__name__}); it must be module.function, "
            "on the Python path of the Airflow workers and triggerer (for example in plugins/)"
        ) from None
    except (Exception, SystemExit) as error:
        raise SourceFailed(
            f"`callable: {dotted}` cannot be imported ({_what_and_where(error)}); mend its module"
        ) from None
    if not callable(found):
        raise SourceFailed(f"`callable: {dotted}` is not callable; name a function that yields DataFrames")
    return cast("Frames", found)


def _what_and_where(error: BaseException) -> str:
    """Name an error and its place; what a team's code says may quote people, where it failed does not."""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__} in line {error.lineno}"
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {place.name}, line {place.lineno}"


# What the file of each module looked like when it was run; None: it did not run to its end.
_ran: dict[str, tuple[int, ...] | None] = {}


def _imported(name: str) -> ModuleType:
    """Import a module, anew if its file has changed: the triggerer lives for weeks, and files are mended meanwhile."""
    importlib.invalidate_caches()
    file = getattr(importlib.util.find_spec(name), "origin", None) or ""
    seen = _as_seen(file)
    has_changed = _ran.get(name, seen) != seen
    if has_changed and file.endswith(".py"):
        # Python takes bytecode for that of any file of the same size and second.
        with suppress(OSError, NotImplementedError):
            os.unlink(importlib.util.cache_from_source(file))
    known = sys.modules.get(name)
    try:
        module = importlib.reload(known) if has_changed and known else importlib.import_module(name)
    except BaseException:
        _ran[name] = None
        raise
    _ran[name] = seen
    return module


def _as_seen(file: str) -> tuple[int, ...]:
    try:
        stat = os.stat(file)
    except OSError:
        return ()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
