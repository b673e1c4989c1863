"""The spacing of calls: the bound that must hold whatever happens, and what Criteo's headers change."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import format_datetime
from random import Random

import pytest
from hypothesis import HealthCheck, Phase, assume, find, given, settings
from hypothesis import strategies as st

from criteo_provider.core.errors import Misconfigured
from criteo_provider.core.pacing import (
    HOLD_MAX_S,
    INTERACTIVE_REACH_S,
    LIMIT_MAX,
    NEAR_S,
    REMEMBERED,
    SECOND_US,
    Adjustment,
    Pace,
    observed,
    reach_s,
    slot_is_fresh,
)
from tests.slots import Row

NOW_S = 1_790_000_000.0


@dataclass(frozen=True)
class Ask:
    """One caller asks for a slot, with all that can go wrong before it sends, in microseconds."""

    after_us: int
    """since the ask before it, on the database's clock"""
    asked_us: int = 0
    """how long the question was on its way"""
    answered_us: int = 0
    """how long the answer was on its way: a slow network, or the process stopped meanwhile"""
    overslept_us: int = 0
    reach_us: int = 10**9
    hold_us: int = 0
    """a brake that somebody pulls first"""
    lowered_by: int = 0
    """what Criteo takes off the limit for this slot"""
    is_honest: bool = True
    """gives back what it could not use (a process that died does not)"""


def sends(
    asks: list[Ask], limit: int, window_us: int, margin_us: int, span_margin_us: int, *, careless: bool = False
) -> list[int]:
    """Play a schedule against one row and return when the calls really start (database clock)."""
    row = Row(Pace(limit, margin_us / SECOND_US, window_us / SECOND_US), window_us + span_margin_us)
    clock_us, started = 0, []
    for ask in asks:
        clock_us += ask.after_us
        row.hold_us = max(row.hold_us, clock_us + ask.hold_us if ask.hold_us else 0)
        granted = max(1, limit - ask.lowered_by)
        slot_us = row.reserve(clock_us, granted, ask.reach_us)
        if slot_us is None:
            continue  # not near enough yet: it asks again later
        asked_at_us, wait_us = clock_us - ask.asked_us, slot_us - clock_us
        start_us = clock_us + ask.answered_us + max(0, wait_us) + ask.overslept_us
        if careless or slot_is_fresh(asked_at_us + wait_us, start_us, margin_us):
            started.append(start_us)
        elif ask.is_honest:
            row.give_back(slot_us, granted)
    return sorted(started)


def largest_in_any_window(times_us: list[int], window_us: int) -> int:
    """Count the most sends any half-open window holds; the fullest one begins at a send."""
    return max((sum(t <= u < t + window_us for u in times_us) for t in times_us), default=0)


# Mostly nothing goes wrong: only callers that follow each other closely can fill a window.
small = st.integers(0, 12)
seldom = st.sampled_from([0] * 6 + list(range(1, 7)))
asks = st.lists(
    st.builds(
        Ask,
        after_us=st.one_of(st.just(0), small),
        asked_us=seldom,
        answered_us=seldom,
        overslept_us=seldom,
        reach_us=st.sampled_from([10**9] * 4 + [12, 4]),
        hold_us=st.sampled_from([0] * 8 + [3, 9]),
        lowered_by=st.sampled_from([0] * 8 + [1, 3]),
        is_honest=st.booleans(),
    ),
    max_size=40,
)


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(asks=asks, limit=st.integers(1, 5), window_us=st.integers(4, 40), margin_us=st.integers(0, 12))
def test_no_window_ever_holds_more_than_the_limit(asks: list[Ask], limit: int, window_us: int, margin_us: int) -> None:
    """Whoever asks when, stalls, is answered late, holds or reaches: no window holds more than L calls."""
    assume(margin_us < window_us)
    assert Pace(limit, margin_us / SECOND_US, window_us / SECOND_US).span_us == window_us + margin_us
    started = sends(asks, limit, window_us, margin_us, margin_us)
    assert largest_in_any_window(started, window_us) <= limit


LATE_ONCE = [Ask(980), Ask(20, overslept_us=2), Ask(0), Ask(8), Ask(0)]


def test_without_the_margin_one_late_call_breaks_the_limit() -> None:
    """A span without the margin is falsified by one call that starts 4 µs late; the real span is not."""
    assert largest_in_any_window(sends(LATE_ONCE, 2, 10, margin_us=4, span_margin_us=0), 10) > 2
    assert largest_in_any_window(sends(LATE_ONCE, 2, 10, margin_us=4, span_margin_us=4), 10) <= 2


def test_the_same_schedules_break_a_span_without_the_margin() -> None:
    """The property test has teeth: some of its schedules break a span that leaves the margin out."""

    def is_broken(case: tuple[list[Ask], int, int, int]) -> bool:
        played, limit, window_us, margin_us = case
        started = sends(played, limit, window_us, margin_us, span_margin_us=0)
        return largest_in_any_window(started, window_us) > limit

    cases = st.tuples(asks, st.integers(1, 5), st.integers(13, 40), st.integers(1, 12))
    first_found = settings(max_examples=5000, database=None, phases=[Phase.generate], deadline=None)
    assert is_broken(find(cases, is_broken, settings=first_found, random=Random(1)))


def test_without_the_check_before_sending_a_stall_breaks_the_limit() -> None:
    """The bound needs the look at the clock right before sending: a stalled call would join later ones."""
    stalled = [LATE_ONCE[0], replace(LATE_ONCE[1], overslept_us=18), Ask(14), Ask(0)]
    assert largest_in_any_window(sends(stalled, 2, 10, margin_us=4, span_margin_us=4, careless=True), 10) == 3
    assert largest_in_any_window(sends(stalled, 2, 10, margin_us=4, span_margin_us=4), 10) <= 2


def test_the_step_at_criteos_limits() -> None:
    """250 calls a minute are 0.2412 s apart (99.5 % of the limit), 10 a minute 6.03 s."""
    assert Pace(250).step_us == 241_200
    assert Pace(10).step_us == 6_030_000
    assert Pace(7).step_us == 8_614_286  # rounded up


@pytest.mark.parametrize(("stop_s", "made_good"), [(0.5, 2), (1.5, 6), (1.99, 8), (2.01, 1), (3600, 1)])
def test_what_a_stop_cost_is_made_good(stop_s: float, made_good: int) -> None:
    """After a stop of up to two seconds the slots of that time are handed out at once; after a pause none are."""
    pace = Pace(250)
    now_us = 100 * SECOND_US
    row = Row(pace, pace.span_us, due_us=now_us + pace.step_us, recent=[now_us])
    now_us += round(stop_s * SECOND_US)
    assert len(list(iter(lambda: row.reserve(now_us, 250, 0), None))) == made_good


@pytest.mark.parametrize("limit", [REMEMBERED + 1, 60_000])
def test_a_limit_larger_than_what_a_row_remembers_is_kept_by_the_step(limit: int) -> None:
    """Where the step alone is the bound nothing is made good, and L steps are longer than window and margin."""
    pace = Pace(limit)
    assert pace.catch_up_us == pace.overdue_us <= pace.margin_us
    assert pace.step_us * limit >= pace.span_us


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused_with_the_mend(limit: int) -> None:
    """A limit nobody can keep is refused in a sentence that says where to change it."""
    with pytest.raises(Misconfigured, match=rf"Requests per minute is {limit}.*Criteo connection"):
        Pace(limit)


@pytest.mark.parametrize("margin_s", [-0.1, 60.0])
def test_a_margin_outside_the_window_is_refused(margin_s: float) -> None:
    """A margin below nothing or as long as the window is refused."""
    with pytest.raises(Misconfigured, match="margin"):
        Pace(250, margin_s)


def test_a_slot_is_good_from_its_due_time_for_the_margin() -> None:
    """A slot may be used neither early nor later than the margin."""
    assert [slot_is_fresh(100, now_us, 5) for now_us in (99, 100, 105, 106)] == [False, True, True, False]


def test_whoever_waited_longer_reaches_further_but_never_far() -> None:
    """Waiting longer reaches further, so nobody starves; a person at a page reaches furthest of all."""
    reaches = [reach_s(waited_s, interactive=False) for waited_s in (0, 1, 3, 5, 500)]
    assert reaches == sorted(reaches)
    assert reaches[0] == NEAR_S
    assert reaches[-1] < 1
    assert reach_s(0, interactive=True) == INTERACTIVE_REACH_S > reaches[-1]


def headers(limit: object = 250, remaining: object = 9, reset: object = int(NOW_S) + 5) -> dict[str, str]:
    """Rate-limit headers as Criteo sends them."""
    values = {"X-RateLimit-Limit": limit, "X-RateLimit-Remaining": remaining, "X-RateLimit-Reset": reset}
    return {name: str(value) for name, value in values.items() if value is not None}


@pytest.mark.parametrize(
    ("status", "said", "expected"),
    [
        (200, headers(), Adjustment(250)),
        (200, headers(limit=40), Adjustment(40)),
        (200, headers(limit=0), Adjustment(None)),
        (200, headers(limit=10**12), Adjustment(None)),
        (200, headers(remaining=0), Adjustment(250, 5.0)),
        (200, {}, Adjustment(None)),
        (500, headers(remaining=0), Adjustment(250, 5.0)),
        (429, headers(remaining=0), Adjustment(250, 5.0)),
        (429, headers(remaining=None, limit=None), Adjustment(None, 5.0)),
        (429, headers() | {"Retry-After": "7"}, Adjustment(250, 7.0)),
        (429, {"retry-after": "9999"}, Adjustment(None, HOLD_MAX_S)),
    ],
)
def test_headers_grant_and_hold(status: int, said: dict[str, str], expected: Adjustment) -> None:
    """The limit header grants; 429 or nothing remaining holds until the reset; Retry-After wins."""
    assert observed(status, said, now_s=NOW_S) == expected


@pytest.mark.parametrize("reset", [int(NOW_S) - 1, int(NOW_S), int(NOW_S) + 121, "soon", "-5", "", None])
def test_an_incredible_reset_counts_as_a_wrong_clock(reset: object) -> None:
    """A reset in the past, beyond 120 s, or not a number, holds nobody; a 429 then holds blindly."""
    assert observed(200, headers(remaining=0, reset=reset), now_s=NOW_S).hold_s == 0
    assert observed(429, headers(remaining=0, reset=reset), now_s=NOW_S) == Adjustment(250, 1.0, blind=True)


def test_blind_holds_double_up_to_a_window() -> None:
    """429s that say nothing hold 1, 2, 4 … 64 s, however many there were."""
    holds = [observed(429, {}, now_s=NOW_S, refusals=n).hold_s for n in (0, 1, 2, 3, 6, 7, 5000)]
    assert holds == [1, 2, 4, 8, 64, 64, 64]


@pytest.mark.parametrize(("ahead_s", "hold_s"), [(30, 30.0), (-30, 1.0), (3000, HOLD_MAX_S)])
def test_retry_after_may_be_a_date(ahead_s: int, hold_s: float) -> None:
    """Retry-After as an HTTP date holds until then, within the same bounds."""
    date = format_datetime(datetime.fromtimestamp(NOW_S + ahead_s, UTC), usegmt=True)
    assert observed(429, {"Retry-After": date}, now_s=NOW_S).hold_s == hold_s


words = st.one_of(
    st.text("0123456789.,;:=+-eE naif", max_size=30),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["٣", "²", "250, 250;w=60", "Mon, 99 Foo 2026 25:61:61 GMT", "Mon, 01 Jan 9999 00:00:00 -9999"]),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    status=st.sampled_from([200, 401, 429, 503]),
    said=st.dictionaries(
        st.sampled_from(["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset", "Retry-After"]),
        words,
    ),
    refusals=st.integers(0, 10**6),
)
def test_no_header_can_do_harm(status: int, said: dict[str, str], refusals: int) -> None:
    """Whatever the headers say: no error, no hold beyond 120 s, no absurd limit; a 429 always holds."""
    change = observed(status, said, now_s=NOW_S, refusals=refusals)
    assert 0 <= change.hold_s <= HOLD_MAX_S
    assert change.granted_limit is None or 1 <= change.granted_limit <= LIMIT_MAX
    assert status != 429 or change.hold_s > 0
