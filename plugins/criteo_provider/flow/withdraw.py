"""Withdraw: read an opt-out feed behind its cursor, and keep who has withdrawn consent."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

from criteo_provider.core import identifiers
from criteo_provider.core.consent import Withdrawal, withdrawals
from criteo_provider.core.eligibility import Rule
from criteo_provider.core.errors import LostClaim, SourceFailed
from criteo_provider.core.ports import Columns, CursorHold, Json, Look, Source
from criteo_provider.flow.enter import CURSOR_LEASE_S, Entered, Leases, lease_kept
from criteo_provider.flow.packing import FieldColumn

log = logging.getLogger(__name__)

# Claims wait while a page of opt-outs is written, so it is short.
PAGE_ROWS = 5_000


@dataclass(frozen=True, slots=True)
class FeedPlan:
    """All that is to be known of one feed; without conditions no row takes an opt-out back."""

    feed_id: str
    user_key: str | None
    fields: tuple[FieldColumn, ...]
    taken_back: Rule | None


class FeedLedger(Leases, Protocol):
    """What withdraw asks of the ledger's cursors."""

    def source_failed(self, canvas_id: str, sentence: str, *, now_us: int) -> None: ...

    def completed_units(self, canvas_id: str, units: Collection[str]) -> set[str]: ...

    def due_looks(self, canvas_id: str, *, now_us: int) -> list[tuple[int, Look]]: ...


class OptOutBook(Protocol):
    """Where withdrawals are kept; each verb is one transaction."""

    def withdraw(
        self,
        hold: CursorHold,
        told: Sequence[Withdrawal],
        *,
        position: Json,
        units: Sequence[str],
        looks: Sequence[Look],
        now_us: int,
    ) -> CursorHold: ...

    def withdraw_late(
        self, look_id: int, feed_id: str, told: Sequence[Withdrawal], *, again: Look | None, now_us: int
    ) -> None: ...


class Withdraw:
    """Brings what one feed says into the ledger; any number may run, one reads."""

    def __init__(
        self,
        plan: FeedPlan,
        source: Source,
        ledger: FeedLedger,
        book: OptOutBook,
        now_us: Callable[[], int],
        owner: str,
    ) -> None:
        self._plan, self._source, self._ledger, self._book = plan, source, ledger, book
        self._now_us, self._owner = now_us, owner
        self.done = Entered()

    def tick(self, stop: threading.Event) -> Entered:
        """Keep everything behind the cursor; return the rows read (none while another process reads).

        Raises SourceFailed after noting it in the ledger; what was kept before stays, the cursor is behind it.
        """
        done = Entered()
        feed_id = self._plan.feed_id
        hold = self._renew()
        if hold is None:
            return done
        try:
            with lease_kept(self._renew):
                self._look_again(done, stop)
                self._read_on(hold, done, stop)
        except LostClaim:
            log.info("Another process reads the opt-out feed %s now.", feed_id)
        except SourceFailed as failure:
            self._ledger.source_failed(feed_id, str(failure), now_us=self._now_us())
            raise
        finally:
            self._ledger.release_cursor(hold)
        if done.without_key:
            log.warning("Feed %s: %d rows name nobody and were left out.", feed_id, done.without_key)
        return done

    def _renew(self) -> CursorHold | None:
        return self._ledger.hold_cursor(self._plan.feed_id, self._owner, now_us=self._now_us(), lease_s=CURSOR_LEASE_S)

    def _read_on(self, hold: CursorHold, done: Entered, stop: threading.Event) -> None:
        with closing(self._source.pages(hold.position, max_rows=lambda: PAGE_ROWS, seen=self._seen)) as pages:
            for page in pages:
                hold = self._book.withdraw(
                    hold,
                    self._told(page.columns, page.rows, done),
                    position=page.position,
                    units=page.completes,
                    looks=() if page.look is None else (page.look,),
                    now_us=self._now_us(),
                )
                if stop.is_set():
                    return

    def _look_again(self, done: Entered, stop: threading.Event) -> None:
        for look_id, look in self._ledger.due_looks(self._plan.feed_id, now_us=self._now_us()):
            if stop.is_set():
                return
            for page, again in self._source.recheck(look):
                told = self._told(page.columns, page.rows, done)
                self._book.withdraw_late(look_id, self._plan.feed_id, told, again=again, now_us=self._now_us())

    def _told(self, columns: Columns, rows: int, done: Entered) -> list[Withdrawal]:
        if not rows:
            return []
        keys = identifiers.user_key(columns[self._plan.user_key]) if self._plan.user_key else [None] * rows
        values: dict[tuple[str, int | None], Sequence[bytes | None]] = {}
        for chosen in self._plan.fields:
            read = identifiers.normalise(
                chosen.field,
                columns[chosen.column],
                email_hashes=chosen.email_hashes,
                email_input=chosen.email_input,
            )
            values.update(((form.value, chosen.caller_id), column.rows()) for form, column in read.values.items())
        taken_back = self._plan.taken_back.mask(columns) if self._plan.taken_back else [False] * rows
        told = withdrawals(keys, values, taken_back)
        nameless = sum(
            keys[row] is None and all(column[row] is None for column in values.values()) for row in range(rows)
        )
        for counted in (done, self.done):
            counted.rows += rows
            counted.without_key += nameless
        return told

    def _seen(self, units: Collection[str]) -> set[str]:
        return self._ledger.completed_units(self._plan.feed_id, units)
