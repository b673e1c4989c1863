"""One clock for all workers: the database's, read rarely and carried on by this machine's monotonic clock."""

from __future__ import annotations

import threading
import time
from typing import Protocol

from sqlalchemy import Engine, text

# A machine's monotonic clock drifts by less than 50 ppm, so a minute costs at most 3 ms.
REFRESH_S = 60.0

_NOW = {
    "sqlite": "SELECT (julianday('now') - 2440587.5) * 86400000000.0",
    "postgresql": "SELECT extract(epoch FROM clock_timestamp()) * 1000000",
}


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
        with self._engine.connect() as connection:
            told_us = int(connection.execute(text(_NOW[self._engine.dialect.name])).scalar_one())
        self._asked_s = time.monotonic()
        self._ahead_us = told_us - int(self._asked_s * 1e6)
