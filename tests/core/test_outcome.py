"""What an answer of Criteo means."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criteo_provider.core.answer import Answer, busy_wait_s, plain_words, read_envelope, retry_after_s
from criteo_provider.core.outcome import (
    Accepted,
    AccessLost,
    AudienceGone,
    Busy,
    Outcome,
    Refused,
    Trouble,
    Unavailable,
    answer_of,
    failure_in,
    outcome_of,
    outcome_of_exception,
    retry_wait_s,
)

NOW_S = 1_763_900_000.0
OUTCOMES = (Accepted, Busy, Unavailable, AccessLost, AudienceGone, Refused)


def outcome(status: int, body: object = b"", headers: dict[str, str] | None = None) -> Outcome:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return outcome_of(status, headers or {}, raw, now_s=NOW_S)


def envelope(type_: str, code: str, **more: object) -> dict[str, Any]:
    problem = {"traceId": "3f1c", "type": type_, "code": code, "instance": "/x", "title": "t", **more}
    return {"errors": [problem], "warnings": []}


def amended(**attributes: object) -> dict[str, Any]:
    return {"data": {"type": "ContactlistAmendment", "attributes": attributes}, "errors": [], "warnings": []}


# ---- the documented cases ---------------------------------------------------------------------------
DOCUMENTED = [
    (400, envelope("validation", "required-field"), Refused, "required-field"),
    (400, envelope("validation", "invalid-range"), Refused, "invalid-range"),
    (400, envelope("validation", "audience-invalid"), AudienceGone, "audience-gone"),
    (401, envelope("authorization", "authorization-token-missing"), AccessLost, "token-refused"),
    (401, envelope("authorization", "authorization-token-expired"), AccessLost, "token-refused"),
    (401, b"", AccessLost, "token-refused"),
    (403, envelope("access-control", "insufficient-advertiser-permissions"), AccessLost, "not-permitted"),
    (403, envelope("access-control", "insufficient-advertisers-permissions"), AccessLost, "not-permitted"),
    (403, b"<html>denied</html>", AccessLost, "not-permitted"),
    (403, envelope("validation", "audience-invalid"), AudienceGone, "audience-gone"),
    (404, envelope("validation", "audience-invalid"), AudienceGone, "audience-gone"),
    (404, envelope("validation", "route-not-found"), Unavailable, "unknown-address"),
    (404, b"<html>nothing here</html>", Unavailable, "unknown-address"),
    (405, b"", Unavailable, "unknown-address"),
    (410, envelope("deprecation", "endpoint-deprecated"), Unavailable, "api-version-gone"),
    (413, b"too large", Refused, "too-large"),
    (415, b"", Unavailable, "wrong-content-type"),
    (422, b"{}", Refused, "refused-422"),
    (429, envelope("quota", "too-many-requests"), Busy, "busy"),
    (429, b"{}", Busy, "busy"),
    (429, b"<html>slow down</html>", Busy, "busy"),
    (429, b"", Busy, "busy"),
    (500, envelope("availability", "internal-error"), Unavailable, "http-500"),
    (502, b"<html>bad gateway</html>", Unavailable, "http-502"),
    (503, b"", Unavailable, "http-503"),
    (504, b"", Unavailable, "http-504"),
    (407, b"", Unavailable, "proxy"),
    (408, b"", Unavailable, "http-408"),
    (302, b"", Unavailable, "redirected"),
    (204, b"", Unavailable, "unreadable-answer"),
    (201, amended(nbValidIdentifiers=1, nbInvalidIdentifiers=0), Unavailable, "unreadable-answer"),
    (200, b"", Unavailable, "unreadable-answer"),
    (200, b"<html>log in</html>", Unavailable, "unreadable-answer"),
    (200, b'{"data": {"attrib', Unavailable, "unreadable-answer"),
    (200, b"[" * 100_000, Unavailable, "unreadable-answer"),
    (200, b'"text"', Unavailable, "unreadable-answer"),
    (200, {"data": None}, Unavailable, "unreadable-answer"),
    (200, amended(nbValidIdentifiers=None, nbInvalidIdentifiers=0), Unavailable, "unreadable-answer"),
    (200, amended(nbValidIdentifiers=True, nbInvalidIdentifiers=0), Unavailable, "unreadable-answer"),
    (200, amended(nbValidIdentifiers=-1, nbInvalidIdentifiers=0), Unavailable, "unreadable-answer"),
    (200, envelope("validation", "invalid"), Refused, "invalid"),
    (200, envelope("validation", "audience-not-found"), AudienceGone, "audience-gone"),
    (200, envelope("access_control", "no-access"), AccessLost, "not-permitted"),
    (200, envelope("authentication", "x"), AccessLost, "token-refused"),
    (200, envelope("availability", "internal-error"), Unavailable, "internal-error"),
    (200, envelope("unknown", "whatever"), Unavailable, "whatever"),
    (
        200,
        {"warnings": envelope("validation", "audience-not-found")["errors"]},
        AudienceGone,
        "audience-gone",
    ),
]


@pytest.mark.parametrize(("status", "body", "kind", "code"), DOCUMENTED)
def test_documented_answer(status: int, body: object, kind: type, code: str) -> None:
    """Each documented status, type and code has the fate written in the table."""
    got = outcome(status, body)
    assert (type(got), got.code) == (kind, code)


def test_counts_of_a_200_are_taken() -> None:
    """A 200 with counts is Accepted with the numbers and the sample of the invalid ones."""
    got = outcome(
        200,
        amended(nbValidIdentifiers=2, nbInvalidIdentifiers=1, sampleInvalidIdentifiers=["jkl@gmail", None, 7]),
    )
    assert got == Accepted(2, 1, ("jkl@gmail",))


def test_null_in_the_contract_is_read_as_none() -> None:
    """The nullable members of the contract (no invalid ones, no sample) do not spoil an accepted request."""
    body = amended(nbValidIdentifiers=2, nbInvalidIdentifiers=None, sampleInvalidIdentifiers=None)
    assert outcome(200, body) == Accepted(2, 0, ())


def test_counts_outweigh_complaints() -> None:
    """Errors beside readable counts do not turn an accepted request into a failure."""
    body = amended(nbValidIdentifiers=1, nbInvalidIdentifiers=0) | envelope("validation", "invalid")
    assert outcome(200, body) == Accepted(1, 0)


def test_a_lone_surrogate_in_the_sample_is_dropped() -> None:
    """A sample text that cannot be encoded never reaches the code that matches samples."""
    body = amended(nbValidIdentifiers=0, nbInvalidIdentifiers=2, sampleInvalidIdentifiers=["\ud800", "ok"])
    assert outcome(200, body) == Accepted(0, 2, ("ok",))


def test_the_page_says_what_the_function_does() -> None:
    """docs/outcomes.md lists every documented answer with the fate the function gives it, and no other."""
    page = (Path(__file__).parents[2] / "docs" / "outcomes.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith(("| HTTP", "|--"))]
    assert rows == [row for row in dict.fromkeys(map(table_row, DOCUMENTED))] + [
        f"| no answer | {kind.value} | Unavailable | {outcome_of_exception(kind).code} | "
        f"{'yes' if outcome_of_exception(kind).maybe_applied else 'no'} |"
        for kind in Trouble
    ]


def table_row(case: tuple[int, object, type, str]) -> str:
    """The line of the page that tells of an answer."""
    status, body, _, _ = case
    got = outcome(status, body)
    applied = "yes" if isinstance(got, Unavailable) and got.maybe_applied else "no"
    return f"| {status} | {_told(body)} | {type(got).__name__} | {got.code} | {applied} |"


def _told(body: object) -> str:
    if isinstance(body, bytes):
        if not body:
            return "nothing"
        if body.startswith(b"<html"):
            return "HTML"
        return "an empty object" if body == b"{}" else "no JSON object"
    assert isinstance(body, dict)
    problems = [*body.get("errors", ()), *body.get("warnings", ())]
    if problems:
        where = "warnings" if not body.get("errors") else "errors"
        return f"{where}: {problems[0]['type']} / {problems[0]['code']}"
    counts = body.get("data") and body["data"]["attributes"]
    return "data without counts" if not counts else f"counts {counts['nbValidIdentifiers']} valid"


# ---- every answer there can be ----------------------------------------------------------------------
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
attributes = st.dictionaries(
    st.sampled_from(["nbValidIdentifiers", "nbInvalidIdentifiers", "sampleInvalidIdentifiers", "operation"]),
    json_values,
)
problems = st.lists(
    st.fixed_dictionaries({}, optional={"type": json_values, "code": json_values, "detail": json_values}) | json_values
)
envelopes = st.fixed_dictionaries(
    {},
    optional={
        "data": json_values | st.fixed_dictionaries({"attributes": attributes | json_values}),
        "errors": problems | json_values,
        "warnings": problems | json_values,
        "meta": json_values,
    },
)
bodies = st.binary(max_size=60) | envelopes.map(lambda value: json.dumps(value).encode())
headers = st.dictionaries(
    st.sampled_from(["Retry-After", "x-ratelimit-reset", "X-RateLimit-Reset", "date"]), st.text(max_size=40)
)


@given(status=st.integers(-1, 1000), body=bodies, headers=headers, busy_before=st.integers(-5, 10_000))
def test_every_answer_has_one_fate(status: int, body: bytes, headers: dict[str, str], busy_before: int) -> None:
    """Any status, headers and body yield exactly one outcome, with a code and a sentence, and never raise."""
    got = outcome_of(status, headers, body, now_s=NOW_S, busy_before=busy_before)
    assert isinstance(got, OUTCOMES)
    assert got.code
    assert got.sentence.endswith(".")
    assert isinstance(got, Accepted) <= (status == 200)
    if isinstance(got, Busy):
        assert 0 <= got.wait_s <= 1200


@given(status=st.integers(100, 599), secret=st.text(min_size=1), counted=st.booleans())
def test_no_text_of_criteo_is_repeated(status: int, secret: str, counted: bool) -> None:
    """Titles, details, sources and sample identifiers of an answer are in no code, sentence or repr."""
    marked = f"person-7{secret}@example.com"
    body = envelope("validation", marked, title=marked, detail=marked, source={"x": marked})
    if counted:
        body |= amended(nbValidIdentifiers=0, nbInvalidIdentifiers=1, sampleInvalidIdentifiers=[marked])
    got = outcome(status, body)
    assert "person" not in f"{got!r} {got.code} {got.sentence}"


@pytest.mark.parametrize(
    "text", ["375320dd9ae7ed408002f3768e16cb5f", "abcdef" * 6, "a@example.com", "A-b", "", None, 7]
)
def test_a_code_that_could_be_an_identifier_is_dropped(text: object) -> None:
    """Only kebab-case words of letters are repeated as a code."""
    assert plain_words(text) == ""


def test_unlike_refusals_keep_their_codes() -> None:
    """Two refusals for different reasons can be told apart, so that halves refused alike are recognised."""
    one, other = (outcome(400, envelope("validation", code)) for code in ("invalid", "required-field"))
    assert one.code != other.code


# ---- waits ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("headers", "busy_before", "wait_s"),
    [
        ({"Retry-After": "7"}, 0, 7),
        ({"retry-after": "Sun, 23 Nov 2025 12:13:30 GMT"}, 0, 10),
        ({"retry-after": "86400"}, 0, 1200),
        ({"retry-after": "-3", "x-ratelimit-reset": str(NOW_S + 20)}, 0, 20),
        ({"retry-after": "soon"}, 0, 1),
        ({"X-RateLimit-Reset": f"{NOW_S + 60:.0f}"}, 0, 60),
        ({"x-ratelimit-reset": str(NOW_S - 1)}, 2, 4),
        ({"x-ratelimit-reset": str(NOW_S + 121)}, 2, 4),
        ({"x-ratelimit-reset": "nan"}, 1, 2),
        ({}, 0, 1),
        ({}, 5, 32),
        ({}, 99, 60),
    ],
)
def test_wait_after_429(headers: dict[str, str], busy_before: int, wait_s: float) -> None:
    """Retry-After wins, then a believable reset, else the wait doubles from 1 s to 60 s."""
    assert busy_wait_s(headers, now_s=1_763_900_000.0, busy_before=busy_before) == wait_s


def test_a_503_may_name_its_time() -> None:
    """Retry-After of a 503 is handed on, and such an answer was not applied."""
    got = outcome(503, b"", {"Retry-After": "30"})
    assert isinstance(got, Unavailable)
    assert (got.wait_s, got.maybe_applied) == (30, False)
    assert retry_after_s({}, now_s=NOW_S) is None


@given(attempt=st.integers(-3, 10_000), jitter=st.floats(0, 1, exclude_max=True))
def test_retry_waits_are_bounded(attempt: int, jitter: float) -> None:
    """A retry waits at least a second, a few seconds at first, never more than 20 minutes."""
    assert 1 <= retry_wait_s(attempt, jitter=jitter) <= min(1200, 5 * 2 ** min(max(attempt - 1, 0), 20))


@pytest.mark.parametrize(("jitter", "attempts"), [(0.5, 80), (0.999, 40)])
def test_patience_holds_tens_of_attempts(jitter: float, attempts: int) -> None:
    """Thirteen hours hold tens of attempts, whatever the jitter."""
    waited_s, attempt = 0.0, 0
    while waited_s < 13 * 3600:
        attempt += 1
        waited_s += retry_wait_s(attempt, jitter=jitter)
    assert attempts <= attempt <= 10 * attempts


def test_a_long_outage_ends_without_a_stampede() -> None:
    """Two thousand requests that failed together for six hours come back spread over 20 minutes, not at once."""
    chance = Random(1)
    back_s: list[float] = []
    for _ in range(2_000):
        at_s, attempt = 0.0, 0
        while at_s < 6 * 3600:
            attempt += 1
            at_s += retry_wait_s(attempt, jitter=chance.random())
        back_s.append(at_s - 6 * 3600)
    minutes = Counter(int(wait_s // 60) for wait_s in back_s)
    assert max(back_s) <= 1200
    assert max(minutes.values()) <= 250  # an even spread is 100 a minute; full jitter favours the first ones
    assert len(minutes) >= 18


# ---- no answer --------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", Trouble)
def test_no_answer(kind: Trouble) -> None:
    """A call without an answer is Unavailable, and may have been applied only if it was sent."""
    got = outcome_of_exception(kind)
    assert got.code == kind.value
    assert got.maybe_applied == (kind in (Trouble.NO_ANSWER, Trouble.CUT_OFF))


# ---- other calls ------------------------------------------------------------------------------------
def test_an_empty_page_is_an_answer() -> None:
    """A 200 with empty data and no complaint is a readable answer without a failure."""
    got = answer_of(200, {}, b'{"data": [], "meta": {"totalItems": 0}}', now_s=NOW_S)
    assert isinstance(got, Answer)
    assert failure_in(got) is None
    assert got.meta == {"totalItems": 0}


def test_a_code_is_found_in_any_container() -> None:
    """A problem code is found in errors and in warnings alike."""
    got = read_envelope(b'{"warnings": [{"type": "validation", "code": "name-must-be-unique"}, 7]}')
    assert got is not None
    assert got.names("name-must-be-unique")
    assert not got.names("other")
