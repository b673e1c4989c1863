"""How calls to Criteo are spaced, so that no rolling minute ever holds more of them than the limit.

One row hands out slots. A slot is used within the margin after it is due, or given back unused. The row remembers
when the last slots were due, and the next one is due no earlier than window and margin after the one L before
it. A call is never earlier than its slot nor later than the margin, so it is a window or more after the call
L before it: no half-open window ``[t, t + W)`` holds more than L, whatever stalls, dies or restarts.

The ``step`` between slots is even spacing, no more: it is a little longer than the bound asks for, so that what
came late is made good (for ``CATCH_UP_S`` at most) and the crowding that leaves behind fades.
Where the limit is larger than what a row remembers, nothing is made good, and the step alone is the bound.

Times are whole microseconds (``_us``) or seconds (``_s``) on a clock the caller names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from criteo_provider.core.errors import Misconfigured

SECOND_US = 1_000_000

# Nobody reserves far ahead: a person at a page then has only a few promised slots in front, and a brake bites
# soon. The near reach must cover a late wake-up and a slow database: a slot nobody reserved in time is lost.
NEAR_S = 0.25
REACH_PER_WAITED_S = 0.1
REACH_GROWS_FOR_S = 5.0
INTERACTIVE_REACH_S = 60.0

# A stop of this machine, or of its database, is made good afterwards if it was no longer than so many seconds.
# Beyond that nobody had anything to send, and calls begin one step after the other.
CATCH_UP_S = 2.0
# So many slots a row remembers. Criteo grants 250 calls a minute, or 10 for each of the ad accounts that consented.
REMEMBERED = 500

# Criteo speaks of one-minute windows: a wait beyond two of them is a wrong clock, not a wish of Criteo's.
HOLD_MAX_S = 120.0
FIRST_BLIND_HOLD_S = 1.0
LAST_BLIND_HOLD_S = 64.0

LIMIT_MAX = 1_000_000
TOO_MANY_REQUESTS = 429


@dataclass(frozen=True, slots=True)
class Pace:
    """The spacing of slots that keeps every half-open window within the limit.

    ``limit_per_min`` calls per window (at least 1); ``margin_s`` is how late a slot may be used; ``window_s``
    is 60 outside tests. Raises Misconfigured.
    """

    limit_per_min: int
    margin_s: float = 0.25
    window_s: float = 60.0

    def __post_init__(self) -> None:
        if self.limit_per_min < 1:
            msg = (
                f"Requests per minute is {self.limit_per_min}, but must be 1 or more: "
                "change it in the Criteo connection (250 for a client-credentials application)."
            )
            raise Misconfigured(msg)
        if not 0 <= self.margin_s < self.window_s:
            msg = f"The pacer's margin is {self.margin_s} s, but must lie between 0 and {self.window_s:g} s."
            raise Misconfigured(msg)

    @property
    def window_us(self) -> int:
        """Length of the rolling window."""
        return round(self.window_s * SECOND_US)

    @property
    def margin_us(self) -> int:
        """How late a slot may be used."""
        return round(self.margin_s * SECOND_US)

    @property
    def overdue_us(self) -> int:
        """How long before it is handed out a slot may have been due: then half of the margin is left to use it."""
        return self.margin_us // 2

    @property
    def is_remembered(self) -> bool:
        """Whether a row remembers as many slots as a window holds."""
        return self.limit_per_min <= REMEMBERED

    @property
    def catch_up_us(self) -> int:
        """How far even spacing may lie behind the clock, to be made good, while slots are being handed out."""
        return round(CATCH_UP_S * SECOND_US) if self.is_remembered else self.overdue_us

    @property
    def span_us(self) -> int:
        """Window and margin together: a slot is due so long after the one ``limit_per_min`` before it, or later."""
        return self.window_us + self.margin_us

    @property
    def round_us(self) -> int:
        """How long as many slots as the limit take when evenly spaced: a fifth of the margin beyond the span."""
        return self.span_us + self.margin_us // 5

    @property
    def step_us(self) -> int:
        """Even distance of two slots: ``ceil(round / limit)``."""
        return -(-self.round_us // self.limit_per_min)

    @property
    def ahead_max_us(self) -> int:
        """How far ahead of the clock the next free slot can be; beyond it, somebody moved the clock."""
        return round(INTERACTIVE_REACH_S * SECOND_US) + self.span_us


def slot_is_fresh(due_us: int, now_us: int, margin_us: int) -> bool:
    """Tell whether a slot may be used now: it is due, and due for no longer than the margin."""
    return due_us <= now_us <= due_us + margin_us


def reach_s(waited_s: float, *, interactive: bool) -> float:
    """Tell how far ahead (seconds) a caller may reserve after waiting ``waited_s``.

    Whoever has waited longer reaches further and so comes first, without any queue being kept; a caller
    for whom a person waits takes the next slot nobody was promised, wherever it is.
    """
    if interactive:
        return INTERACTIVE_REACH_S
    return NEAR_S + REACH_PER_WAITED_S * min(waited_s, REACH_GROWS_FOR_S)


@dataclass(frozen=True, slots=True)
class Adjustment:
    """What one answer of Criteo changes for everybody: the limit granted (None: not said), and a hold.

    ``blind``: Criteo named no moment, so a hold that already runs is long enough.
    """

    granted_limit: int | None
    hold_s: float = 0.0
    blind: bool = False


def observed(status: int, headers: Mapping[str, str], *, now_s: float, refusals: int = 0) -> Adjustment:
    """Read the rate-limit headers of one answer: what to grant, and how long to hold.

    ``now_s`` is epoch seconds, ``refusals`` the refused holds in a row so far. ``x-ratelimit-limit`` is the
    limit granted; 429, or nothing remaining, holds until ``x-ratelimit-reset`` (epoch seconds). A 429 that
    names no credible moment holds 1, 2, 4 … 64 s. Values that make no sense count as absent.
    Source: Criteo's page "rate-limits"; ``Retry-After`` is not in it, and is honoured up to HOLD_MAX_S.
    """
    values = {name.lower(): value for name, value in headers.items()}
    limit = _number(values.get("x-ratelimit-limit"))
    granted = int(limit) if limit is not None and 1 <= limit <= LIMIT_MAX else None
    until_reset_s = _credible_wait_s(values.get("x-ratelimit-reset"), now_s)
    if status == TOO_MANY_REQUESTS:
        named_s = _retry_after_s(values.get("retry-after"), now_s) or until_reset_s
        blind_s = min(FIRST_BLIND_HOLD_S * 2 ** min(refusals, 10), LAST_BLIND_HOLD_S)
        return Adjustment(granted, named_s or blind_s, blind=not named_s)
    if _number(values.get("x-ratelimit-remaining")) == 0:
        return Adjustment(granted, until_reset_s)
    return Adjustment(granted)


def _credible_wait_s(reset: str | None, now_s: float) -> float:
    reset_s = _number(reset)
    wait_s = 0.0 if reset_s is None else reset_s - now_s
    return wait_s if 0 < wait_s <= HOLD_MAX_S else 0.0


def _retry_after_s(value: str | None, now_s: float) -> float:
    if value is None:
        return 0.0
    wait_s = _number(value)
    if wait_s is None:
        try:
            wait_s = parsedate_to_datetime(value).timestamp() - now_s
        except (ValueError, OverflowError):
            return 0.0
    return min(max(wait_s, 0.0), HOLD_MAX_S)


def _number(value: str | None) -> float | None:
    """Read a plain decimal number of a sane size; anything else is None."""
    text = (value or "").strip()
    digits = text.replace(".", "", 1)
    return float(text) if digits.isascii() and digits.isdigit() and len(text) <= 20 else None
