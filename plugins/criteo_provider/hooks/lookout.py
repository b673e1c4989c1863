"""The lookout: one look a second at all canvases, shared by everything that waits in one process."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress
from functools import cached_property
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from criteo_provider.core.errors import SourceFailed
from criteo_provider.hooks.surroundings import include_folder, open_house

if TYPE_CHECKING:
    from collections.abc import Callable

    from criteo_provider.wiring import House, Waiting

    _Asked = tuple[asyncio.AbstractEventLoop, asyncio.Future[Any], Callable[[], Any]]

T = TypeVar("T")

# Connections may be corrected and configuration mended while nothing is edited in the include folder.
REOPEN_AFTER_S = 60.0
_WATCHED = ("canvases/*.y*ml", "opt_outs/*.y*ml", "segments/*.sql")

Stamp = frozenset[tuple[str, int, int]]


class Lookout:
    """Keeps one house open for looking, and opens it anew when canvases change, once a minute, and after an error.

    Looking talks to databases and to Airflow, so it has a thread of its own, always the same one, because database
    connections belong to threads. A daemon one: a look that waits for an Airflow that is shutting down must not
    keep the process alive.
    """

    def __init__(self, *, same_look_s: float = 0.5) -> None:
        self.same_look_s = same_look_s
        self._house: House | None = None
        self._opened_s = 0.0
        self._stamp: Stamp = frozenset()
        self._waiting: Waiting | None = None
        self._looked_s = 0.0

    async def look(self) -> Waiting:
        """Tell what is waiting; callers within ``same_look_s`` share one look.

        Raises what the house raises; the next look starts with a house opened anew.
        """
        return await self._ask(self._look)

    async def is_retry_due(self, *, tells: bool) -> bool:
        """Tell what ``is_retry_due`` says of the house kept open; raises what the house raises."""
        return await self._ask(lambda: self._is_retry_due(tells=tells))

    async def _ask(self, question: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        self._questions.put((loop, answer, question))
        return await answer

    @cached_property
    def _questions(self) -> SimpleQueue[_Asked]:
        questions: SimpleQueue[_Asked] = SimpleQueue()
        threading.Thread(target=self._answer, args=(questions,), name="criteo-lookout", daemon=True).start()
        return questions

    def _answer(self, questions: SimpleQueue[_Asked]) -> None:
        while True:
            loop, future, question = questions.get()
            try:
                answer = question()
            except Exception as error:
                answer = error
            except BaseException as error:
                # Here it would end the only thread that looks, and in a coroutine the whole triggerer.
                answer = SourceFailed(
                    f"A look at all canvases has ended with {type(error).__name__}; let code that sources run raise an "
                    "error instead."
                )
            with suppress(RuntimeError):  # the loop is closed: nobody asks any more
                loop.call_soon_threadsafe(_settle, future, answer)

    def _look(self) -> Waiting:
        if self._waiting is None or time.monotonic() - self._looked_s > self.same_look_s:
            self._waiting = None
            self._waiting = self._fresh_look()
            self._looked_s = time.monotonic()
        return self._waiting

    def _is_retry_due(self, *, tells: bool) -> bool:
        waiting = self._look()
        try:
            return is_retry_due(self._current(), waiting, tells=tells)
        except BaseException:
            self._close()
            raise

    def _close(self) -> None:
        house, self._house = self._house, None
        if house is not None:
            house.close()

    def _fresh_look(self) -> Waiting:
        try:
            return self._current().waiting(sparing=True)
        except BaseException:
            self._close()
            raise

    def _current(self) -> House:
        stamp = canvases_stamp()
        if self._house is None or stamp != self._stamp or time.monotonic() - self._opened_s > REOPEN_AFTER_S:
            self._close()
            self._house = open_house()
            self._stamp, self._opened_s = stamp, time.monotonic()
        return self._house


def is_retry_due(house: House, waiting: Waiting, *, tells: bool) -> bool:
    """Tell whether the retry DAG has something to do; ``tells``: news nobody was told of are something, too.

    Whether somebody waits for too long is seen here, even when nothing else is at work.
    """
    house.alarms.look()
    return waiting.retry or (tells and house.alarms.is_untold())


def _settle(future: asyncio.Future[Any], answer: object) -> None:
    if future.done():  # cancelled meanwhile
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)


def canvases_stamp() -> Stamp:
    """Return what the canvases and their SQL look like from outside: names, sizes, times of change."""
    folder = include_folder()
    stats = {str(file): file.stat() for kind in _WATCHED for file in folder.glob(kind)}
    return frozenset((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items())
