"""The onlooker: how the pages of one API server process look into the house, without changing anything in it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from sqlalchemy import inspect

from criteo_provider.core.errors import CriteoSyncError, LedgerRefused
from criteo_provider.hooks.lookout import REOPEN_AFTER_S
from criteo_provider.hooks.surroundings import open_house
from criteo_provider.settings.load import Canvases, load_canvases
from criteo_provider.store.engine import open_engine, sqlite_path
from criteo_provider.store.schema import origin
from criteo_provider.ui.directory import read_directory
from criteo_provider.ui.overview import SYNC_DAG, Overview, Trouble, overview, without_ledger

if TYPE_CHECKING:
    from criteo_provider.wiring import House

log = logging.getLogger(__name__)

REFRESH_S = 5.0
# Looking at a large ledger costs time: pages then come back later, so that looking takes a small share of it.
REST_PER_LOOK = 20
PATIENCE_S = 10.0
_NO_ANSWER = "The ledger does not answer. This page tries again by itself."


class Onlooker:
    """Keeps one house open and shares each look among all viewers; opens it anew now and then, and after an error.

    Safe in threads. A ledger that does not answer keeps one thread waiting, not one for each viewer.
    """

    def __init__(self, open_house: Callable[[], House] = open_house) -> None:
        self._open_house = open_house
        self._lock = threading.Lock()
        self._house: House | None = None
        self._opened_s = 0.0
        self._seen: Overview | None = None
        self._seen_s = 0.0

    def overview(self) -> Overview:
        """Return what the page shows; never raises for what is wrong out there, but says it."""
        if not self._lock.acquire(timeout=PATIENCE_S):
            return self._seen or without_ledger(_NO_ANSWER, Canvases(), now_us=_now_us())
        try:
            if self._seen is None or time.monotonic() - self._seen_s > self._seen.refresh_s / 2:
                began_s = time.monotonic()
                seen = self._look()
                self._seen_s = time.monotonic()
                refresh_s = max(REFRESH_S, round(REST_PER_LOOK * (self._seen_s - began_s), 1))
                self._seen = replace(seen, refresh_s=refresh_s)
            return self._seen
        finally:
            self._lock.release()

    def close(self) -> None:
        """Let go of databases."""
        house, self._house = self._house, None
        if house is not None:
            house.close()

    def _look(self) -> Overview:
        try:
            seen = _seen_in(self._current())
        except CriteoSyncError as error:
            seen = self._blind(str(error))
        except Exception as error:
            # Drivers name hosts and logins in their messages: neither page nor log repeats them.
            seen = self._blind(f"The ledger cannot be read ({type(error).__name__}). This page tries again by itself.")
        return seen

    def _current(self) -> House:
        if self._house is None or time.monotonic() - self._opened_s > REOPEN_AFTER_S:
            self.close()
            self._house = self._open_house()
            self._opened_s = time.monotonic()
            refuse_if_missing(self._house.around.ledger_url)
        return self._house

    def _blind(self, sentence: str) -> Overview:
        """Return what can be shown without a ledger, say so once, and start afresh at the next look."""
        if self._seen is None or self._seen.no_ledger != sentence:
            log.warning("The page Audiences shows no numbers: %s", sentence)
        files = load_canvases(self._house.around.include_folder) if self._house else Canvases()
        self.close()
        return without_ledger(sentence, files, now_us=_now_us())


def _seen_in(house: House) -> Overview:
    # The directory is read last: nothing is ever taken out of it, so it knows whatever was seen before.
    numbers, troubles = house.numbers(), house.ledger.troubles()
    return overview(
        load_canvases(house.around.include_folder),  # an edited file shows at once
        numbers,
        read_directory(house.ledger.engine),
        [
            *(Trouble(row.scope, row.key, row.sentence, row.since_us, row.next_probe_us) for row in troubles),
            *(
                Trouble("connection", one.connection_id, one.sentence, one.since_us, one.next_try_us)
                for one in house.outages()
            ),
        ],
        flushes=house.flush(),
        files_are_here=(house.around.include_folder / "canvases").is_dir(),
        now_us=_now_us(),
    )


def refuse_if_missing(ledger_url: str) -> None:
    """Raise LedgerRefused when there is no ledger: opening the house's would make an empty one, full of zeros."""
    file = sqlite_path(ledger_url)
    if file is not None and not file.exists():
        raise LedgerRefused(
            f"There is no ledger file {file} on this API server. The DAG {SYNC_DAG} makes it when it first runs; "
            "if that runs on another host, create the Airflow connection criteo_ledger to a PostgreSQL database."
        )
    engine = open_engine(ledger_url, pool_size=1)
    try:
        if not inspect(engine).has_table(origin.name):
            raise LedgerRefused(f"The ledger is empty: the DAG {SYNC_DAG} has not run yet.")
    finally:
        engine.dispose()


def _now_us() -> int:
    return time.time_ns() // 1_000
