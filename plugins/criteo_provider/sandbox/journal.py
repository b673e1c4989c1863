"""What was asked of the sandbox and when: counts, sizes and times only, never an identifier or a token."""

from __future__ import annotations

import time
from collections import Counter, deque
from itertools import islice

import msgspec

KEPT = 200_000


class Entry(msgspec.Struct, kw_only=True):
    """One call. Times are real, not of the movable clock: CLOCK_MONOTONIC is one for all processes."""

    number: int
    operation: str
    arrived_s: float
    """Monotonic time the request's header was here; this is what the rate limit counts."""
    arrived_epoch_s: float
    body_end_s: float | None = None
    answered_s: float | None = None
    version: str | None = None
    application: int | None = None
    grant: int | None = None
    segment_id: str | None = None
    status: int | None = None
    code: str | None = None
    body_bytes: int = 0
    change: str | None = None
    identifier_type: str | None = None
    valid: int = 0
    invalid: int = 0
    applied: bool = False
    fault: bool = False
    dropped: bool = False

    def note_body_end(self) -> None:
        """Note that the last byte of the request is here."""
        self.body_end_s = time.monotonic()


class Journal:
    """The last calls, oldest first, and counts of all of them."""

    def __init__(self, kept: int = KEPT) -> None:
        self._entries: deque[Entry] = deque(maxlen=kept)
        self._total = 0
        self.by_status: Counter[str] = Counter()
        self.by_operation: Counter[str] = Counter()

    def open(self, operation: str) -> Entry:
        """Note a call the moment its header is here."""
        self._total += 1
        entry = Entry(number=self._total, operation=operation, arrived_s=time.monotonic(), arrived_epoch_s=time.time())
        self._entries.append(entry)
        self.by_operation[operation] += 1
        return entry

    def close(self, entry: Entry, status: int | None) -> None:
        """Note how the call ended; None: the connection was dropped."""
        entry.answered_s = time.monotonic()
        entry.status = status
        entry.dropped = status is None
        self.by_status["dropped" if status is None else str(status)] += 1

    @property
    def total(self) -> int:
        """How many calls there were since the start."""
        return self._total

    def last(self, count: int) -> list[Entry]:
        """Return the latest calls, the latest first."""
        return list(islice(reversed(self._entries), count))

    def since(self, number: int = 0) -> list[Entry]:
        """Return the calls after the one with this number, oldest first."""
        if not self._entries:
            return []
        return list(islice(self._entries, max(0, number + 1 - self._entries[0].number), None))
