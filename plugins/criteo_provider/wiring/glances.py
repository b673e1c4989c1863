"""Glances: looking at one source after the other, so that one that hangs keeps nobody from the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from queue import SimpleQueue

from criteo_provider.core.errors import SourceFailed

# A source that has not answered so soon is left to itself for now, and the next one is looked at.
GO_ON_AFTER_S = 2.0
# A source that has not answered within this is broken; longer than an HTTP source waits, whose own error says more.
LOOK_WITHIN_S = 40.0
# Whoever asks every second has a slow source looked at for this share of the time.
SHARE_OF_TIME = 0.02
# A server may be gone without a word: its connection hangs for ever, and must not hide one that was mended.
FORGOTTEN_AFTER_S = 3600.0


@dataclass(frozen=True, slots=True)
class _Glance:
    """One look at one source, which may be under way."""

    answer: Future[bool]
    began_s: float = field(default_factory=time.monotonic)

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.began_s

    @property
    def is_out_of_date(self) -> bool:
        return self.age_s > (LOOK_WITHIN_S if self.answer.done() else FORGOTTEN_AFTER_S)


@dataclass(frozen=True, slots=True)
class _Rest:
    """What a source deserves after a look; a single slow one is an accident, two in a row are its query."""

    last_look_s: float
    look_before_s: float
    since_s: float = field(default_factory=time.monotonic)

    def is_on(self, most_s: float) -> bool:
        earned_s = min(self.last_look_s, self.look_before_s) / SHARE_OF_TIME
        return time.monotonic() - self.since_s < min(earned_s, most_s)


# Looks nobody waited for. They outlive the house that began them, and the next one must not pile up others.
_under_way: dict[str, _Glance] = {}


class Glances:
    """Looks at sources in a thread of its own; another takes its place while a look in it hangs. Close it.

    A kept thread, because database connections belong to threads; a daemon one, because it may hang for ever.
    """

    def __init__(self) -> None:
        self._lanes: list[_Lane] = []
        self._rests: dict[str, _Rest] = {}

    def is_ahead(self, source: str, look: Callable[[], bool], *, rest_s: float = 0.0) -> bool | None:
        """Return what ``look`` says of ``source``, None while that is still to come; SourceFailed if it takes too long.

        Nobody waits for more than two seconds: an answer that comes later is returned by the next call. ``rest_s``
        is how long a source may be left alone, with None for an answer, because its look is slow.
        """
        rest = self._rests.get(source)
        if rest is not None and rest.is_on(rest_s):
            return None
        glance = _under_way.pop(source, None)
        if glance is None or glance.is_out_of_date:
            glance = _Glance(self._idle_lane().begin(look))
            wait((glance.answer,), GO_ON_AFTER_S)
        if glance.answer.done():
            self._rests[source] = _Rest(glance.age_s, rest.last_look_s if rest else 0.0)
            return glance.answer.result()
        _under_way[source] = glance
        if glance.age_s < LOOK_WITHIN_S:
            return None
        raise SourceFailed(
            f"The source has not answered within {LOOK_WITHIN_S:.0f} s. Look for a lock on its table, a query without "
            "an index on its cursor, or a server that is gone; people enter again once it answers."
        )

    def close(self) -> None:
        """Let the threads end; one that hangs ends when its look does."""
        while self._lanes:
            self._lanes.pop().close()

    def _idle_lane(self) -> _Lane:
        lane = next((one for one in self._lanes if one.is_idle), None)
        if lane is None:
            lane = _Lane()
            self._lanes.append(lane)
        return lane


_Order = tuple[Callable[[], bool], Future[bool]]


class _Lane:
    """One thread that looks, at one source at a time."""

    def __init__(self) -> None:
        self._orders: SimpleQueue[_Order | None] = SimpleQueue()
        self._last: Future[bool] | None = None
        threading.Thread(target=_look, args=(self._orders,), name="criteo-glance", daemon=True).start()

    @property
    def is_idle(self) -> bool:
        return self._last is None or self._last.done()

    def begin(self, look: Callable[[], bool]) -> Future[bool]:
        self._last = Future()
        self._orders.put((look, self._last))
        return self._last

    def close(self) -> None:
        self._orders.put(None)


def _look(orders: SimpleQueue[_Order | None]) -> None:
    while (order := orders.get()) is not None:
        look, answer = order
        try:
            answer.set_result(look())
        except Exception as error:
            answer.set_exception(error)
        except BaseException as error:  # sys.exit() in what a team has written is not the end of this thread
            answer.set_exception(
                SourceFailed(f"The source has ended with {type(error).__name__}; let its code raise an error instead.")
            )
