"""Outcome: what an answer of Criteo, or the lack of one, means for the people in the request.

Sources: Criteo's pages api-error-types and partial-success-for-bulk-operations. Every outcome has a stable
``code`` and a plain ``sentence`` with the mend; neither ever holds an identifier.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar, Literal, TypeAlias

from criteo_provider.core.answer import (
    LONGEST_WAIT_S,
    Answer,
    Problem,
    busy_wait_s,
    read_envelope,
    retry_after_s,
)

FIRST_WAIT_S = 5.0
_GONE = frozenset({"audience-invalid", "audience-not-found", "segment-not-found"})
_AGAIN = "People stay pending and are tried again by themselves."
_ADDRESS = "Check base URL and API version in the Criteo connection."


@dataclass(frozen=True, slots=True)
class Accepted:
    """Criteo took the request: so many identifiers valid, so many not, some of the latter in ``sample``."""

    valid: int
    invalid: int
    sample: tuple[str, ...] = field(default=(), repr=False)
    code: ClassVar[str] = "accepted"

    @property
    def sentence(self) -> str:
        return f"Criteo accepted {self.valid:,} identifiers and called {self.invalid:,} invalid."


@dataclass(frozen=True, slots=True)
class Busy:
    """Criteo's rate limit: the whole house waits ``wait_s`` seconds, nobody loses an attempt."""

    wait_s: float
    code: ClassVar[str] = "busy"

    @property
    def sentence(self) -> str:
        return f"Criteo's rate limit is reached; the next call goes out in {self.wait_s:.0f} s."


@dataclass(frozen=True, slots=True)
class Unavailable:
    """No useful answer: again later, in ``wait_s`` if the server named a time; it may have been applied."""

    code: str
    sentence: str
    wait_s: float | None = None
    maybe_applied: bool = True


@dataclass(frozen=True, slots=True)
class AccessLost:
    """Criteo does not let us in; ``scope`` is how far the trouble reaches."""

    scope: Literal["connection", "ad_account"]
    code: str
    sentence: str


@dataclass(frozen=True, slots=True)
class AudienceGone:
    """The audience is not at Criteo, or no longer ours."""

    code: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Refused:
    """Criteo refuses the content: the same request would be refused again."""

    code: str
    sentence: str


Failure: TypeAlias = Busy | Unavailable | AccessLost | AudienceGone | Refused
Outcome: TypeAlias = Accepted | Failure


class Trouble(StrEnum):
    """Why no answer came."""

    UNREACHABLE = "unreachable"
    UNTRUSTED = "untrusted-certificate"
    PROXY = "proxy"
    NOT_SENT = "not-sent"
    NO_ANSWER = "no-answer"
    CUT_OFF = "cut-off"


def outcome_of(status: int, headers: Mapping[str, str], body: bytes, *, now_s: float, busy_before: int = 0) -> Outcome:
    """Tell what the answer to a contact-list PATCH means; never raises.

    ``now_s`` is epoch seconds; ``busy_before`` counts the 429s in a row before this one.
    """
    answer = answer_of(status, headers, body, now_s=now_s, busy_before=busy_before)
    if not isinstance(answer, Answer):
        return answer
    return _accepted(answer.data) or failure_in(answer) or _unreadable(status)


def outcome_of_exception(kind: Trouble) -> Unavailable:
    """Tell what a call without an answer means."""
    return _NO_ANSWER[kind]


def retry_wait_s(attempt: int, *, jitter: float) -> float:
    """Tell how many seconds to wait after the ``attempt``-th failure (1, 2, …), ``jitter`` in [0, 1).

    Exponential with full jitter, from at most 5 s up to at most 20 min: 13 h hold about 85 attempts.
    """
    ceiling_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(max(attempt, 1) - 1, 30))
    return 1.0 + (ceiling_s - 1.0) * jitter


def answer_of(
    status: int, headers: Mapping[str, str], body: bytes, *, now_s: float, busy_before: int = 0
) -> Answer | Failure:
    """Read the answer to any call: the envelope of a 200, or what the failure means; never raises."""
    if status == 429:
        return Busy(busy_wait_s(headers, now_s=now_s, busy_before=busy_before))
    envelope = read_envelope(body)
    if status == 200:
        return envelope or _unreadable(status)
    problems = envelope.problems if envelope else ()
    code = next((problem.code for problem in problems if problem.code), "")
    if status in (400, 403, 404) and any(problem.code in _GONE for problem in problems):
        return _gone(code)
    if status == 401:
        return _token_refused(code)
    if status == 403:
        return _not_permitted(code)
    if status in (404, 405, 410, 415):
        return _wrong_address(status)
    if status in (407, 408, 425) or not 400 <= status < 500:
        return _server_trouble(status, retry_after_s(headers, now_s=now_s))
    return _refused(status, code)


def failure_in(answer: Answer) -> Failure | None:
    """Tell what the complaints of a 200 without data mean, typed ones first; None when there are none."""
    for problem in answer.problems:
        if problem.type != "unknown" or problem.code in _GONE:
            return _complaint(problem)
    return _complaint(answer.problems[0]) if answer.problems else None


def _complaint(problem: Problem) -> Failure:
    if problem.code in _GONE:
        return _gone(problem.code)
    if problem.type == "access-control":
        return _not_permitted(problem.code)
    if problem.type in ("authentication", "authorization"):
        return _token_refused(problem.code)
    if problem.type == "validation":
        return _refused(200, problem.code)
    code = problem.code or f"{problem.type}-problem"
    return Unavailable(code, f"Criteo answered with a problem instead of data ({code}). {_AGAIN}")


def _accepted(data: object) -> Accepted | None:
    attributes = data.get("attributes") if isinstance(data, dict) else None
    if not isinstance(attributes, dict):
        return None
    valid, invalid = _count(attributes.get("nbValidIdentifiers")), attributes.get("nbInvalidIdentifiers")
    invalid = _count(0 if invalid is None else invalid)  # nullable in the contract
    if valid is None or invalid is None:
        return None
    sample = attributes.get("sampleInvalidIdentifiers")
    return Accepted(valid, invalid, tuple(filter(_is_text, sample if isinstance(sample, list) else [])))


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _is_text(value: object) -> bool:
    """Tell whether a value is a string we may have sent; one with a lone surrogate never was."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def _named(code: str) -> str:
    return f" ({code})" if code else ""


def _gone(code: str) -> AudienceGone:
    return AudienceGone(
        "audience-gone",
        f"The audience is not at Criteo any more{_named(code)}. People stay pending; "
        "restore it at Criteo, or give the step another audience name.",
    )


def _token_refused(code: str) -> AccessLost:
    return AccessLost(
        "connection",
        "token-refused",
        f"Criteo refuses the access token{_named(code)}. People stay pending; "
        "check client id and secret in the Criteo connection, and that the application still exists.",
    )


def _not_permitted(code: str) -> AccessLost:
    return AccessLost(
        "ad_account",
        "not-permitted",
        f"Criteo denies this application the ad account{_named(code)}. People stay pending; "
        "ask its Criteo admin to consent again, with the Audiences permission set to Manage.",
    )


def _wrong_address(status: int) -> Unavailable:
    code, what, mend = "unknown-address", f"Nothing we know answers there (HTTP {status}).", _ADDRESS
    if status == 410:
        code, what = "api-version-gone", "Criteo has retired this API version."
        mend = "Check base URL and API version in the Criteo connection, or update this provider."
    if status == 415:
        # What is wrong with it is the same for everybody: nobody may be called bad for it.
        code, what = "wrong-content-type", "Criteo does not take JSON here (HTTP 415)."
    return Unavailable(code, f"{what} {mend} {_AGAIN}", maybe_applied=False)


def _server_trouble(status: int, wait_s: float | None) -> Unavailable:
    if 500 <= status < 600:
        sentence = f"Criteo's servers have trouble (HTTP {status}). {_AGAIN}"
        return Unavailable(f"http-{status}", sentence, wait_s, maybe_applied=status != 503)
    if 300 <= status < 400:
        sentence = f"Criteo's address redirects (HTTP {status}). {_ADDRESS} {_AGAIN}"
        return Unavailable("redirected", sentence, maybe_applied=False)
    if status == 407:
        return _NO_ANSWER[Trouble.PROXY]
    if status in (408, 425):
        sentence = f"Criteo asks to send again (HTTP {status}). {_AGAIN}"
        return Unavailable(f"http-{status}", sentence, wait_s, maybe_applied=False)
    return _unreadable(status)


def _unreadable(status: int) -> Unavailable:
    return Unavailable(
        "unreadable-answer",
        f"The answer is not one of Criteo's API (HTTP {status}). Check proxy and base URL. {_AGAIN}",
    )


def _refused(status: int, code: str) -> Refused:
    if status == 413:
        return Refused("too-large", "Criteo calls the request too large; it is sent again in smaller pieces.")
    return Refused(
        code or f"refused-{status}",
        f"Criteo refuses the content of the call (HTTP {status}){_named(code)}. If smaller pieces of it are "
        "refused as well, check the fields of the step and the API version in the Criteo connection.",
    )


_NO_ANSWER: Mapping[Trouble, Unavailable] = {
    kind: Unavailable(kind.value, f"{sentence} {_AGAIN}", maybe_applied=maybe_applied)
    for kind, sentence, maybe_applied in (
        (Trouble.UNREACHABLE, "Criteo cannot be reached. Check base URL, DNS and firewall.", False),
        (
            Trouble.UNTRUSTED,
            "The TLS certificate is not trusted. Check base URL, proxy and SSL_CERT_FILE.",
            False,
        ),
        (Trouble.PROXY, "The proxy does not let the call through. Check HTTPS_PROXY and NO_PROXY.", False),
        (Trouble.NOT_SENT, "The request could not be sent in time.", False),
        (Trouble.NO_ANSWER, "Criteo did not answer in time.", True),
        (Trouble.CUT_OFF, "The connection broke before Criteo answered.", True),
    )
}
