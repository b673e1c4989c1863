"""One clock for all workers: the database's, read rarely and carried on by this machine's monotonic clock."""

from __future__ import annotations

import threading
import time
from typing import Protocol

from sqlalchemy import ColumnElement, Connection, Engine, or_, text

from criteo_provider.store.engine import looking

# A machine's monotonic clock drifts by less than 50 ppm, so a minute costs at most 3 ms.
REFRESH_S = 60.0

# Whatever is put off or leased is so for less than this: what is further ahead was written by a clock set back since.
FURTHEST_US = 3_600_000_000

_NOW = {
    "sqlite": text("SELECT (julianday('now') - 2440587.5) * 86400000000.0"),
    "postgresql": text("SELECT extract(epoch FROM clock_timestamp()) * 1000000"),
}


def read_us(connection: Connection) -> int:
    """Return what the database's clock says."""
    return int(connection.execute(_NOW[connection.dialect.name]).scalar_one())


def caught_up(connection: Connection, now_us: int) -> int:
    """Return ``now_us``, or the database's own time where that is later: its reader may have been stopped since.

    Whoever takes leases back asks inside its transaction: by an old reading, a live lease lies so far ahead that it
    looks as if a clock had stepped back.
    """
    return max(now_us, read_us(connection))


def is_over(moment: ColumnElement[int], now_us: int | ColumnElement[int]) -> ColumnElement[bool]:
    """The condition that a lease or a wait has ended, or was set by a clock that has stepped back since."""
    return or_(moment <= now_us, moment > now_us + FURTHEST_US)


class Clock(Protocol):
    """Tells the time in microseconds since the epoch."""

    def now_us(self) -> int:
        """Return the present moment."""


class DatabaseClock:
    """The database's clock."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._asked_s = float("-inf")
        self._ahead_us = 0

    def now_us(self) -> int:
        """Return the present moment by the database's clock."""
        with self._lock:
            if time.monotonic() - self._asked_s > REFRESH_S:
                self._ask()
            return int(time.monotonic() * 1e6) + self._ahead_us

    def _ask(self) -> None:
        with looking(self._engine) as connection:
            told_us = read_us(connection)
        self._asked_s = time.monotonic()
        self._ahead_us = told_us - int(self._asked_s * 1e6)
