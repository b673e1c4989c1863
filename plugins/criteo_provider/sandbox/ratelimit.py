"""The rate limit, counted over a true sliding window."""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tally:
    """What one call is told about the limit; ``reset_in_s`` is when a call is possible again (0 if now)."""

    allowed: bool
    limit: int
    remaining: int
    reset_in_s: float

    def headers(self) -> dict[str, str]:
        """Say it the way Criteo does: ``x-ratelimit-reset`` is a (real) epoch second, never a delta."""
        return {
            "x-ratelimit-limit": str(self.limit),
            "x-ratelimit-remaining": str(self.remaining),
            "x-ratelimit-reset": str(math.ceil(time.time() + self.reset_in_s)),
        }


class SlidingWindow:
    """At most ``limit`` admitted calls in any half-open ``window_s`` seconds, whatever their pattern.

    Refused calls are answered 429 and do not fill the window, so that ``x-ratelimit-reset`` stays true.
    """

    def __init__(self) -> None:
        self._admitted: deque[float] = deque()

    def take(self, now_s: float, *, limit: int, window_s: float) -> Tally:
        """Count one call at ``now_s`` (monotonic) and tell whether it is admitted."""
        self._roll(now_s, window_s)
        allowed = len(self._admitted) < limit
        if allowed:
            self._admitted.append(now_s)
        return self._tally(now_s, allowed=allowed, limit=limit, window_s=window_s)

    def look(self, now_s: float, *, limit: int, window_s: float) -> Tally:
        """Tell how things stand without counting a call."""
        self._roll(now_s, window_s)
        return self._tally(now_s, allowed=True, limit=limit, window_s=window_s)

    def _roll(self, now_s: float, window_s: float) -> None:
        while self._admitted and self._admitted[0] <= now_s - window_s:
            self._admitted.popleft()

    def _tally(self, now_s: float, *, allowed: bool, limit: int, window_s: float) -> Tally:
        remaining = max(0, limit - len(self._admitted))
        if limit <= 0:
            return Tally(allowed, 0, 0, window_s)
        # With the window full, a call is possible once all but limit-1 of the admitted ones have left it.
        blocking = len(self._admitted) - limit
        reset_in_s = self._admitted[blocking] + window_s - now_s if blocking >= 0 else 0.0
        return Tally(allowed, limit, remaining, max(0.0, reset_in_s))


def largest_in_window(times_s: list[float], window_s: float) -> int:
    """Return the largest number of ``times_s`` that any half-open window of ``window_s`` seconds holds."""
    ordered = sorted(times_s)
    largest = first = 0
    for last, time_s in enumerate(ordered):
        while ordered[first] <= time_s - window_s:
            first += 1
        largest = max(largest, last - first + 1)
    return largest
