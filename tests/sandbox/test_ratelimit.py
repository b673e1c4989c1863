"""The rate limit is a true sliding window over every API call."""

from __future__ import annotations

import time

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from criteo_provider.sandbox.ratelimit import SlidingWindow, largest_in_window
from tests.sandbox.caller import SEGMENTS, Caller, code_of

GAPS = st.lists(st.sampled_from([0.0, 0.125, 1.0, 2.5, 9.875, 10.0, 10.125]), min_size=1, max_size=80)


@given(gaps=GAPS, limit=st.integers(1, 6))
def test_no_window_ever_holds_more_than_the_limit(gaps: list[float], limit: int) -> None:
    """Whatever the pattern of calls, those admitted are at most `limit` in any half-open window."""
    window, now_s, admitted = SlidingWindow(), 100.0, []
    for gap in gaps:
        now_s += gap
        if window.take(now_s, limit=limit, window_s=10.0).allowed:
            admitted.append(now_s)
    assert largest_in_window(admitted, 10.0) <= limit


@given(gaps=GAPS, limit=st.integers(1, 6))
def test_nothing_is_refused_without_need_and_reset_is_true(gaps: list[float], limit: int) -> None:
    """A call is refused only when the window is full, and one made when `reset` says so is admitted."""
    window, now_s, admitted = SlidingWindow(), 100.0, list[float]()
    for gap in gaps:
        now_s += gap
        inside = sum(time_s > now_s - 10.0 for time_s in admitted)
        tally = window.take(now_s, limit=limit, window_s=10.0)
        assert tally.allowed == (inside < limit)
        if not tally.allowed:
            assert tally.reset_in_s > 0
            now_s += tally.reset_in_s
            assert window.take(now_s, limit=limit, window_s=10.0).allowed
        admitted.append(now_s)


def test_a_fixed_window_would_be_caught() -> None:
    """Bursts at the end of one minute and at the start of the next are over the limit, and refused."""
    window = SlidingWindow()
    late = [window.take(59.0 + i / 100, limit=5, window_s=60.0).allowed for i in range(5)]
    early = [window.take(61.0 + i / 100, limit=5, window_s=60.0).allowed for i in range(5)]
    assert (late, early) == ([True] * 5, [False] * 5)


def test_the_251st_call_is_refused_and_the_window_rolls_on(caller: Caller) -> None:
    """250 calls a minute, the token call among them; the next is 429, until the clock moved on."""
    sandbox = caller.sandbox
    answers = [caller.call("GET", "/2026-07/advertisers/me") for _ in range(250)]
    assert [answer.status_code for answer in answers] == [200] * 249 + [429]
    assert code_of(answers[-1]) == "too-many-requests"
    assert "retry-after" not in answers[-1].headers
    reset_s = int(answers[-1].headers["x-ratelimit-reset"])
    assert time.time() < reset_s <= time.time() + 61
    assert sandbox.rate()["refused"] == 1
    sandbox.advance(60)
    assert caller.call("GET", "/2026-07/advertisers/me").status_code == 200


def test_every_answer_carries_the_three_headers(caller: Caller) -> None:
    """Successes, refusals, unknown routes and token errors all say how the limit stands."""
    answers: list[httpx.Response] = [
        caller.ask_token(),
        caller.ask_token(client_secret="wrong"),
        caller.search(),
        caller.call("GET", "/2026-07/nothing/here"),
        caller.http.get("/2026-07/advertisers/me"),
        caller.call("PATCH", f"{SEGMENTS}/1/contact-list", b"not json"),
    ]
    for answer in answers:
        headers = {name: int(answer.headers[f"x-ratelimit-{name}"]) for name in ("limit", "remaining", "reset")}
        assert headers["limit"] == 250
        assert 0 <= headers["remaining"] < 250


def test_applications_do_not_share_a_window_and_a_limit_may_be_lowered(caller: Caller) -> None:
    """Each application has its own window, and one may be given a lower limit while it runs."""
    sandbox = caller.sandbox
    sandbox.application("other", client_secret="s", limit=2)
    with Caller(sandbox) as other:
        other.sign_in(client_id="other", client_secret="s")
        assert other.call("GET", "/2026-07/advertisers/me").status_code == 200
        assert other.call("GET", "/2026-07/advertisers/me").status_code == 429
        assert caller.call("GET", "/2026-07/advertisers/me").status_code == 200
        sandbox.application("other", limit=None)
        assert other.call("GET", "/2026-07/advertisers/me").headers["x-ratelimit-limit"] == "250"


@pytest.mark.parametrize(
    ("body", "expected"),
    [("object", b"{}"), ("empty", b""), ("html", b"<html><body>Too Many Requests</body></html>")],
)
def test_a_429_may_have_another_body(caller: Caller, body: str, expected: bytes) -> None:
    """Criteo does not document the body of a 429, so the sandbox has several, and Retry-After if wanted."""
    caller.sandbox.rules(limit=0, busy_body=body, retry_after=True)
    answer = caller.search()
    assert (answer.status_code, answer.content) == (429, expected)
    assert int(answer.headers["retry-after"]) > 0


def test_a_test_can_count_requests_in_any_rolling_window(caller: Caller) -> None:
    """The log has the real arrival of each header and the end of each body, and nothing about people."""
    segment_id = caller.new_list()
    caller.amend(segment_id, ["ann@example.com", "nonsense"])
    *_, last = caller.sandbox.requests()
    assert last["operation"] == "amend"
    assert (last["valid"], last["invalid"], last["status"], last["applied"]) == (1, 1, 200, True)
    assert last["arrived_s"] <= last["body_end_s"] <= last["answered_s"] <= time.monotonic()
    assert caller.sandbox.rate()["largest"] == 3
    assert "example.com" not in str(caller.sandbox.requests()) + str(caller.sandbox.state())
    assert caller.token not in str(caller.sandbox.requests()) + str(caller.sandbox.state())
