"""Late commits: when a stretch of a table must be looked at again, and which of its rows are new then.

Writers stamp a row (a time, a serial number) before they commit it, so rows appear *behind* a cursor that
has gone on: measured, one row in five with four writers at work. ``late_commit_s`` is the promise that
closes the gap: a transaction that writes to the source takes at most that long. A row inside a stretch read
at time t was stamped before t, so it is visible at t + late_commit_s, and one last look finds it. Small
stretches are looked at sooner as well (after 3, 6, 12, ... s), because a live stream shall be on time.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, time
from hashlib import blake2b

from criteo_provider.core.ports import Json, Look
from criteo_provider.sources.cursor_values import canonical

FIRST_LOOK_S = 3.0
SMALL_ROWS = 5_000
CLOCK_SLACK_S = 2.0
FUTURE_SLACK_S = 300
MARK_BYTES = 8

_HOUR_S = 3600
_LOOKS_LIKE_A_TIME = re.compile(r"\d{4}-\d\d-\d\d([ T]\d\d:\d\d.*)?")


def moment(value: object) -> tuple[float, float] | None:
    """Return the earliest and the latest instant (epoch seconds) a cursor value can mean, None for no time.

    A time without zone may be that of any place on earth, a date any second of its day.
    """
    if isinstance(value, str):
        value = _parsed(value)
    if isinstance(value, datetime):
        seconds = value.replace(tzinfo=value.tzinfo or UTC).timestamp()
        return (seconds, seconds) if value.tzinfo else (seconds - 14 * _HOUR_S, seconds + 12 * _HOUR_S)
    if isinstance(value, date):
        seconds = datetime.combine(value, time(), UTC).timestamp()
        return seconds - 14 * _HOUR_S, seconds + 36 * _HOUR_S
    return None


def is_ahead_of_its_time(value: object, now_s: float) -> bool:
    """Tell whether a row is stamped later than now, beyond any doubt.

    Such a row waits until its time has come: a cursor moved to next year would leave everybody else behind
    it.
    """
    instants = moment(value)
    return instants is not None and instants[0] > now_s + FUTURE_SLACK_S


def unsettled_s(newest: object, *, now_s: float, late_commit_s: float, since_read_s: float = 0.0) -> float:
    """Return how long writers may still commit rows up to ``newest``; 0 or less: they no longer can.

    ``since_read_s`` is how long ago the stretch was read. A stretch of old times needs no further look at
    all: no transaction that stamped them can still be open.
    """
    if late_commit_s <= 0:
        return 0.0
    promise_s = late_commit_s + CLOCK_SLACK_S
    left_s = promise_s - since_read_s
    instants = moment(newest)
    if instants is None:
        return left_s
    earliest_s, latest_s = instants
    if latest_s + promise_s <= now_s:
        return 0.0
    return max(left_s, earliest_s + promise_s - now_s)


def first_look(after: Json, upto: Json, marks: bytes, *, now_s: float, unsettled_s: float, first_look_s: float) -> Look:
    """Plan the first further look at the stretch (``after``, ``upto``], just read."""
    beginning: Json = {"after": after, "read_s": now_s}
    return _planned(beginning, upto, marks, wait_s=first_look_s, unsettled_s=unsettled_s)


def next_look(look: Look, marks: bytes, *, wait_s: float, unsettled_s: float) -> Look | None:
    """Plan the look after ``look``, with the marks of the rows known now; None when nothing can come."""
    if look.last or unsettled_s <= 0:
        return None
    return _planned(look.after, look.upto, marks, wait_s=wait_s, unsettled_s=unsettled_s)


def rest_of(look: Look, after: Json) -> Look:
    """Plan to go on at once behind ``after`` with a last look that found more than a page."""
    return Look({"after": after, "read_s": read_s(look)}, look.upto, look.marks, due_after_s=0.0, last=True)


def after(look: Look) -> Json:
    """Return the position behind which the stretch begins."""
    return look.after["after"] if isinstance(look.after, dict) else None


def read_s(look: Look) -> float:
    """Return when the stretch was read first, in epoch seconds."""
    return float(str(look.after["read_s"])) if isinstance(look.after, dict) else 0.0


def _planned(beginning: Json, upto: Json, marks: bytes, *, wait_s: float, unsettled_s: float) -> Look:
    small = len(marks) <= SMALL_ROWS * MARK_BYTES
    last = not small or wait_s >= unsettled_s
    return Look(beginning, upto, marks, due_after_s=unsettled_s if last else wait_s, last=last)


def marks_of(columns: Sequence[Sequence[object]]) -> list[bytes]:
    """Return an 8-byte fingerprint for each row of ``columns`` (those that name it: cursor, user key)."""
    texts = [[canonical(value) for value in column] for column in columns]
    return [blake2b("\x1f".join(row).encode(), digest_size=MARK_BYTES).digest() for row in zip(*texts, strict=True)]


def unmarked(found: Sequence[bytes], marks: bytes) -> list[int]:
    """Return the indexes in ``found`` that ``marks`` does not hold, or not as often."""
    known = Counter(_each(marks))
    new = []
    for index, mark in enumerate(found):
        if known[mark] > 0:
            known[mark] -= 1
        else:
            new.append(index)
    return new


def _each(marks: bytes) -> Iterator[bytes]:
    return (marks[at : at + MARK_BYTES] for at in range(0, len(marks), MARK_BYTES))


def _parsed(text: str) -> datetime | date | None:
    if not _LOOKS_LIKE_A_TIME.fullmatch(text):
        return None
    try:
        return date.fromisoformat(text) if len(text) == len("2026-07-01") else datetime.fromisoformat(text)
    except ValueError:
        return None
