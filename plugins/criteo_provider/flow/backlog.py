"""Backlog: enter what a far-behind source had when it was split, while Enter goes on with whoever comes fresh."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Protocol

from criteo_provider.core.errors import LostClaim, SourceFailed
from criteo_provider.core.ports import CursorHold, Source, Splits
from criteo_provider.flow import enter
from criteo_provider.flow.enter import Enter, Entered, EntryLedger, EntryPlan, lease_kept
from criteo_provider.flow.hands import Hands

log = logging.getLogger(__name__)


class BacklogBook(Protocol):
    """What reading a backlog asks of the ledger; each verb is one transaction."""

    def hold(self, canvas_id: str, owner: str, *, now_us: int, lease_s: float) -> CursorHold | None: ...

    def keep(self, hold: CursorHold, *, now_us: int, lease_s: float) -> None: ...

    def release(self, hold: CursorHold) -> None: ...


class Backlog(Enter):
    """Enters the backlogs of one canvas, oldest first; any number may run, one enters each."""

    def __init__(
        self,
        plan: EntryPlan,
        source: Source,
        ledger: EntryLedger,
        now_us: Callable[[], int],
        owner: str,
        *,
        split: Splits,
        book: BacklogBook,
        hands: Hands | None = None,
    ) -> None:
        super().__init__(plan, source, ledger, now_us, owner, hands=hands)
        self._split, self._book = split, book
        self._chunks_before = 0  # its last failure

    def tick(self, stop: threading.Event) -> Entered:
        """Enter all backlogs nobody else is at; return what was done. Raises SourceFailed as Enter does."""
        done = Entered()
        while not stop.is_set():
            hold = self._book.hold(
                self._plan.canvas_id, self._owner, now_us=self._now_us(), lease_s=enter.CURSOR_LEASE_S
            )
            if hold is None:
                break
            self._enter_all(hold, done, stop)
        self._say(done)
        return done

    @property
    def has_read(self) -> bool:
        """Whether people were entered since the source last failed."""
        return self.done.chunks > self._chunks_before

    def _enter_all(self, hold: CursorHold, done: Entered, stop: threading.Event) -> None:
        renew = lambda: self._book.keep(  # noqa: E731 - for one lease only
            hold, now_us=self._now_us(), lease_s=enter.CURSOR_LEASE_S
        )
        try:
            reading = self._split.between(hold.position, hold.upto, max_rows=self._max_rows)
            with lease_kept(renew), closing(reading) as pages:
                self._enter(pages, hold, done, stop)
        except LostClaim:
            log.info("Another process reads the backlog of canvas %s now.", self._plan.canvas_id)
        except SourceFailed as failure:
            self._chunks_before = self.done.chunks
            self._ledger.source_failed(self._plan.canvas_id, str(failure), now_us=self._now_us())
            raise
        finally:
            self._book.release(hold)
