"""Pace: what each connection may ask of Criteo in a minute, and how often its streams are flushed therefore."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from criteo_provider.core.budget import Tempo
from criteo_provider.core.errors import CriteoSyncError
from criteo_provider.criteo_api.client import CriteoClient
from criteo_provider.settings.canvas import Canvas
from criteo_provider.store.ledger import Ledger
from criteo_provider.store.pacer import Pacer
from criteo_provider.wiring.criteo import CriteoDoor

log = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0
COUNT_EVERY_S = 900.0


class Flush(NamedTuple):
    """How often the streams of a connection are flushed; ``sentence`` says why when that is not as declared."""

    connection_id: str
    flush_s: float
    streams: int
    budget: int
    sentence: str


class Pace:
    """The tempo of every connection, looked up at most once in five seconds; thread-safe."""

    def __init__(
        self, canvases: Iterable[Canvas], ledger: Callable[[], Ledger], door: CriteoDoor, now_us: Callable[[], int]
    ) -> None:
        self._canvases = tuple(canvases)
        self._declared: dict[str, float] = {}
        for canvas in self._canvases:
            known_s = self._declared.get(canvas.connection, float("inf"))
            self._declared[canvas.connection] = min(canvas.flush_s, known_s)
        self._ledger, self._door, self._now_us = ledger, door, now_us
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, int, int]] = {}

    def flush(self) -> list[Flush]:
        """Return how often each connection that canvases use is flushed, as it stands now."""
        return self._flush(look=True)

    def look_every_s(self, canvas: Canvas) -> Callable[[], float]:
        """Return what tells how often to read the source of a canvas."""
        return lambda: self._of(canvas).look_every_s

    def longest_flush_s(self) -> float:
        """Tell how long it can be quiet although people come."""
        return max((self._of(canvas).flush_s for canvas in self._canvases), default=5.0)

    def remarks(self) -> tuple[str, ...]:
        """Return one sentence for each connection that is flushed less often than declared."""
        return tuple(
            f"Connection {one.connection_id}: {one.sentence}." for one in self._flush(look=False) if one.sentence
        )

    def _flush(self, *, look: bool) -> list[Flush]:
        found = []
        for conn_id, declared_s in sorted(self._declared.items()):
            try:
                tempo = self._tempo(conn_id, declared_s, look=look)
            except CriteoSyncError:  # a connection that cannot be used is told of elsewhere, and flushes nothing
                continue
            found.append(Flush(conn_id, tempo.flush_s, tempo.streams, tempo.budget_per_min, tempo.sentence))
        return found

    def _of(self, canvas: Canvas) -> Tempo:
        try:
            return self._tempo(canvas.connection, canvas.flush_s)
        except CriteoSyncError:  # it goes by its own, while its connection cannot be asked
            return Tempo(canvas.flush_s, 0, 1)

    def _tempo(self, conn_id: str, declared_s: float, *, look: bool = False) -> Tempo:
        with self._lock:
            looked_s, streams, budget = self._known.get(conn_id, (float("-inf"), 0, 1))
            if look or time.monotonic() - looked_s > LOOK_EVERY_S:
                streams = self._ledger().live_streams(conn_id, now_us=self._now_us())
                budget = self._door.budget(conn_id)
                self._known[conn_id] = time.monotonic(), streams, budget
        return Tempo(declared_s, streams, budget)


class Allowance:
    """Keeps the pacer of a drain at what the consent of its connection allows, whoever counts or consents meanwhile."""

    def __init__(self, door: CriteoDoor, conn_id: str, pacer: Pacer, client: CriteoClient) -> None:
        self._door, self._conn_id, self._pacer, self._client = door, conn_id, pacer, client
        self._again_s = 0.0

    def keep(self) -> None:
        """Look what is known, and count the ad accounts when nobody has for a quarter of an hour."""
        if time.monotonic() < self._again_s:
            return
        self._again_s = time.monotonic() + LOOK_EVERY_S
        try:
            if self._door.wants_count(self._conn_id, every_s=COUNT_EVERY_S):
                self._client.ad_accounts()
            self._pacer.allow(self._door.limit(self._conn_id))
        except CriteoSyncError as error:
            log.info("The ad accounts of connection %s could not be counted: %s", self._conn_id, error)
