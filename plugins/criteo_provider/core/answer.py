"""Answer: Criteo's envelope and headers, read without ever raising and without keeping anything of a person.

Sources: Criteo's pages api-response, api-error-types and rate-limits. Titles and details of problems are
dropped, they may hold identifiers; a code is kept when it is plain words.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime

LONGEST_WAIT_S = 1200.0
LONGEST_BUSY_WAIT_S = 60.0
CLOCK_SKEW_S = 120.0
_PLAIN_WORDS = re.compile(r"[a-z]{1,24}(-[a-z]{1,24}){0,7}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Problem:
    """One entry of ``errors`` or ``warnings``: its type, and its code if that is plain words (else '')."""

    type: str
    code: str


@dataclass(frozen=True, slots=True)
class Answer:
    """A readable envelope: ``data`` and ``meta`` as they came, and what Criteo complains of."""

    data: object = field(repr=False)
    meta: Mapping[str, object] = field(repr=False)
    errors: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Errors first: bulk calls put failures in either."""
        return self.errors + self.warnings

    def names(self, code: str) -> bool:
        """Tell whether any error or warning has this code."""
        return any(problem.code == code for problem in self.problems)


def read_envelope(body: bytes) -> Answer | None:
    """Read a body; None when it is not a JSON object (empty, HTML, cut off, …)."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    meta = document.get("meta")
    return Answer(
        data=document.get("data"),
        meta=meta if isinstance(meta, dict) else {},
        errors=_problems(document.get("errors")),
        warnings=_problems(document.get("warnings")),
    )


def plain_words(text: object) -> str:
    """Return a kebab-case code of letters only, else '': what has digits or signs could be an identifier."""
    return text if isinstance(text, str) and _PLAIN_WORDS.fullmatch(text) else ""


def busy_wait_s(headers: Mapping[str, str], *, now_s: float, busy_before: int = 0) -> float:
    """Seconds a 429 asks us to wait: Retry-After, else x-ratelimit-reset (epoch seconds), else 1, 2, 4 … 60.

    A reset in the past or more than 120 s ahead comes from a clock that disagrees with ours, and is ignored.
    ``busy_before`` is the number of 429s in a row before this one.
    """
    told_s = retry_after_s(headers, now_s=now_s)
    if told_s is not None:
        return told_s
    reset_s = _number(_header(headers, "x-ratelimit-reset"))
    if reset_s is not None and 0 < reset_s - now_s <= CLOCK_SKEW_S:
        return reset_s - now_s
    return min(LONGEST_BUSY_WAIT_S, 2.0 ** min(max(busy_before, 0), 10))


def retry_after_s(headers: Mapping[str, str], *, now_s: float) -> float | None:
    """Seconds until Retry-After (seconds or an HTTP date), at most 20 min; None when absent or nonsense."""
    text = _header(headers, "retry-after")
    if text is None:
        return None
    wait_s = _number(text)
    if wait_s is None:
        try:
            moment = parsedate_to_datetime(text)
            wait_s = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now_s
        except (ValueError, TypeError, OverflowError, IndexError):
            return None
    return min(wait_s, LONGEST_WAIT_S) if wait_s >= 0 else None


def _problems(entries: object) -> tuple[Problem, ...]:
    if not isinstance(entries, list):
        return ()
    return tuple(_problem(entry) for entry in entries if isinstance(entry, dict))


def _problem(entry: Mapping[str, object]) -> Problem:
    kind = entry.get("type")
    # the contract of advertisers/me spells its types with underscores
    return Problem(
        plain_words(kind.replace("_", "-") if isinstance(kind, str) else "") or "unknown",
        plain_words(entry.get("code")),
    )


def _header(headers: Mapping[str, str], name: str) -> str | None:
    return next((value for key, value in headers.items() if key.lower() == name), None)


def _number(text: str | None) -> float | None:
    try:
        number = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None
