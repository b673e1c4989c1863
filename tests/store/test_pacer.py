"""The pacer's row on both engines, in one process; `test_pacer_processes.py` has the several processes."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from criteo_provider.core.errors import Busy
from criteo_provider.core.pacing import HOLD_MAX_S, REMEMBERED, SECOND_US, reach_s
from criteo_provider.store import pacer as pacer_module
from criteo_provider.store.engine import open_engine
from criteo_provider.store.pacer import Pacer, Slot, application_key, create, pacer_url
from tests.slots import Row

KEY = application_key("https://api.example.com", "made-up-client")
START_US = 1_790_000_000 * SECOND_US
OLDER_TABLE = (
    "CREATE TABLE pacer (application VARCHAR(64) PRIMARY KEY, due_us BIGINT NOT NULL, hold_until_us BIGINT NOT NULL, "
    "granted_limit INTEGER, refusals INTEGER NOT NULL)"
)


@pytest.fixture
def engine(ledger_url: str) -> Iterator[Engine]:
    """An engine on the pacer's database, on SQLite and on PostgreSQL."""
    engine = open_engine(pacer_url(ledger_url))
    yield engine
    engine.dispose()


@pytest.fixture
def set_clock(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the pacer read its time from a table, and return what sets it (microseconds)."""
    monkeypatch.setitem(pacer_module._NOW_US, engine.dialect.name, "(SELECT us FROM test_clock)")
    execute(engine, "CREATE TABLE test_clock (us BIGINT)")
    execute(engine, "INSERT INTO test_clock VALUES (:us)", us=START_US)
    return lambda us: execute(engine, "UPDATE test_clock SET us = :us", us=us)


def execute(engine: Engine, statement: str, **values: object) -> None:
    """Change the pacer's database behind its back."""
    with engine.begin() as connection:
        connection.execute(sa.text(statement), values)


def column(engine: Engine, name: str) -> Any:
    """Read one column of the only row."""
    with engine.connect() as connection:
        return connection.execute(sa.select(pacer_module.pacer.c[name])).scalar_one()


def test_the_pacer_of_a_sqlite_ledger_has_a_file_of_its_own() -> None:
    """The slot row is not in the file where people are sealed; on PostgreSQL it is in the same database."""
    assert pacer_url("sqlite:////data/criteo.db") == "sqlite:////data/criteo-pacer.db"
    assert pacer_url("sqlite:///criteo.sqlite3") == "sqlite:///criteo-pacer.db"
    assert pacer_url("sqlite://") == "sqlite://"
    assert pacer_url("postgresql+psycopg://u:p%2B@h/db") == "postgresql+psycopg://u:p%2B@h/db"


def test_an_application_is_named_by_a_digest() -> None:
    """One application has one row however its address is written, and the row shows nothing of it."""
    assert application_key("https://API.example.com/ ", "made-up-client") == KEY
    assert application_key("https://api.example.com", "another") != KEY
    assert len(KEY) == 64
    assert "made-up" not in KEY


def test_many_may_create_the_table_at_once(ledger_url: str) -> None:
    """Eight openers of a database that does not exist yet all find the table and one row."""
    engines = [open_engine(pacer_url(ledger_url)) for _ in range(8)]
    start = threading.Barrier(len(engines))

    def open_pacer(engine: Engine) -> None:
        start.wait()
        create(engine)
        Pacer(engine, KEY)

    with ThreadPoolExecutor(len(engines)) as pool:
        list(pool.map(open_pacer, engines))
    with engines[0].connect() as connection:
        rows = connection.execute(sa.select(sa.func.count()).select_from(pacer_module.pacer)).scalar_one()
    for engine in engines:
        engine.dispose()
    assert rows == 1


def test_no_slot_is_handed_out_twice(engine: Engine) -> None:
    """Eight threads take forty slots at once, and the row has moved by exactly forty steps."""
    shared = Pacer(engine, KEY, limit_per_min=60)
    first = shared.reserve(interactive=True)
    before_us = column(engine, "due_us")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: shared.reserve(interactive=True), range(40)))
    assert column(engine, "due_us") - before_us == 40 * shared.pace.step_us
    assert first.step_s == shared.pace.step_us / SECOND_US


steps = st.one_of(
    st.tuples(st.just("pass"), st.integers(0, 400_000)),
    st.tuples(st.just("pass"), st.integers(0, 5_000_000)),
    st.tuples(st.just("reserve"), st.integers(0, 3_000_000)),
    st.tuples(st.just("reserve"), st.integers(0, 60_000_000)),
    st.tuples(st.just("give back"), st.integers(0, 3)),
    st.tuples(st.just("hold"), st.integers(1, 2_000_000)),
    st.tuples(st.just("grant"), st.integers(1, 600)),
)


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(limit=st.sampled_from([3, 7, 250]), played=st.lists(steps, max_size=40))
def test_the_sql_does_what_the_proof_assumes(
    engine: Engine, set_clock: Any, limit: int, played: list[tuple[str, int]]
) -> None:
    """Played step by step on a clock that stands still, the row moves exactly as in the property test."""
    pacer = Pacer(engine, KEY, limit_per_min=limit)
    execute(engine, "UPDATE pacer SET due_us = 0, hold_until_us = 0, granted_limit = NULL, recent = ''")
    set_clock(START_US)
    row = Row(pacer.pace, pacer.pace.span_us)
    now_us, granted, unused = START_US, limit, []
    for what, amount in played:
        if what == "pass":
            now_us += amount
            set_clock(now_us)
        elif what == "hold":
            pacer.hold(amount / SECOND_US)
            row.hold_us = max(row.hold_us, now_us + amount)
        elif what == "grant":
            pacer.observed(200, {"x-ratelimit-limit": str(amount)})
            granted = min(limit, amount)
        elif what == "give back":
            if amount < len(unused):
                slot = unused.pop(amount)
                pacer._give_back(slot)
                row.give_back(slot.due_us, granted)
        else:
            due_us = row.reserve(now_us, granted, amount)
            slot_or_none = pacer._reserve_within(amount / SECOND_US)
            assert (slot_or_none and slot_or_none.due_us) == due_us
            if slot_or_none is not None and due_us is not None:
                unused.append(slot := slot_or_none)
                assert slot.step_s == row.step_us(granted) / SECOND_US
                wait_s = (due_us - now_us) / SECOND_US
                # Not early by the later reading of our clock, not later than the margin by the earlier one.
                assert slot.due_s <= time.monotonic() + max(0.0, wait_s)
                assert slot.good_until_s < slot.due_s + pacer.pace.margin_s + min(0.0, wait_s)
        assert column(engine, "due_us") == row.due_us
        assert column(engine, "recent") == "".join(f"{us};" for us in row.recent)
        assert pacer.queue_s() == max(0, row.free_us(now_us, granted) - now_us) / SECOND_US


def test_a_row_remembers_no_more_than_it_has_to(engine: Engine, set_clock: Any) -> None:
    """Of more slots than a window can hold only the newest stay in the row; a limit beyond that keeps one."""
    pacer = Pacer(engine, KEY, limit_per_min=REMEMBERED)
    stamps = "".join(f"{START_US - (REMEMBERED - at) * SECOND_US};" for at in range(REMEMBERED))
    execute(engine, "UPDATE pacer SET recent = :stamps", stamps=stamps)
    slot = pacer.reserve(interactive=True)
    assert column(engine, "recent") == stamps[len(str(START_US)) + 1 :] + f"{slot.due_us};"
    fast = Pacer(engine, KEY, limit_per_min=60_000)
    slot = fast.reserve(interactive=True)
    assert column(engine, "recent") == f"{slot.due_us};"


def test_a_row_from_before_slots_were_remembered_is_taken_over(engine: Engine) -> None:
    """A pacer's table of an earlier version gets its new column, whoever opens it, and keeps what it says."""
    execute(engine, OLDER_TABLE)
    execute(engine, "INSERT INTO pacer VALUES (:key, 5, 0, 40, 2)", key=KEY)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: Pacer(engine, KEY), range(4)))
    assert (column(engine, "due_us"), column(engine, "granted_limit"), column(engine, "recent")) == (5, 40, "")
    Pacer(engine, KEY).take()
    assert column(engine, "recent").count(";") == 1


def test_a_slot_of_somebody_who_came_too_late_goes_to_the_next(engine: Engine, set_clock: Any) -> None:
    """What could not be used is given back: with the limit reached, its place is the only one."""
    pacer = Pacer(engine, KEY, limit_per_min=2)
    first = pacer._reserve_within(60)
    second = pacer._reserve_within(60)
    assert first is not None
    assert second is not None
    set_clock(second.due_us)
    assert pacer._reserve_within(1) is None
    pacer._give_back(second)
    again = pacer._reserve_within(1)
    assert again is not None
    assert again.due_us == second.due_us
    pacer._give_back(first)
    pacer._give_back(first)  # once is enough
    assert column(engine, "recent") == f"{again.due_us};"


def test_after_a_429_nothing_is_made_good(engine: Engine, set_clock: Any) -> None:
    """When a refusal's hold is over, calls start again one step after the other, not all at once."""
    pacer = Pacer(engine, KEY)
    pacer.observed(429, {"retry-after": "3"})
    set_clock(START_US + 3 * SECOND_US)
    first, second = pacer._reserve_within(1), pacer._reserve_within(1)
    assert first is not None
    assert second is not None
    assert second.due_us - first.due_us == pacer.pace.step_us


def test_a_window_filled_by_our_own_calls_holds_nobody(engine: Engine, set_clock: Any) -> None:
    """ "Nothing remaining" holds when others used the limit; when we did, the row knows to the millisecond."""
    pacer = Pacer(engine, KEY, limit_per_min=3)
    soon = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(math.ceil(time.time()) + 30)}
    for _ in range(3):
        pacer._reserve_within(60)
    pacer.observed(200, soon)
    assert column(engine, "hold_until_us") == 0
    set_clock(START_US + 200 * SECOND_US)
    pacer.observed(200, soon)
    assert column(engine, "hold_until_us") > START_US + 225 * SECOND_US


def test_a_person_gets_the_next_slot_nobody_was_promised(engine: Engine, set_clock: Any) -> None:
    """However many are waiting, nobody has reserved further ahead than the reach, and a person comes next."""
    row = Pacer(engine, KEY, limit_per_min=250)
    furthest_s = reach_s(10**6, interactive=False)
    while row._reserve_within(furthest_s) is not None:
        pass
    ahead_s = row.queue_s()
    assert ahead_s <= furthest_s + row.pace.step_us / SECOND_US
    next_free_us = column(engine, "due_us")
    row.reserve(interactive=True)
    assert column(engine, "due_us") == next_free_us + row.pace.step_us
    assert row._reserve_within(furthest_s) is None


def test_work_that_may_wait_takes_a_quarter(engine: Engine) -> None:
    """With spacing 4, one process takes slots at least four steps apart even when nobody else wants them."""
    pacer = Pacer(engine, KEY, limit_per_min=250, margin_s=0.5, window_s=6)
    dues = [pacer.take(spacing=4).due_s for _ in range(6)]
    quarter_s = 4 * pacer.pace.step_us / SECOND_US
    assert all(later - earlier >= quarter_s for earlier, later in pairwise(dues))


def test_a_slot_that_came_too_late_is_thrown_away(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that was stalled past the margin does not send; it takes another slot."""
    pacer = Pacer(engine, KEY, limit_per_min=250, margin_s=0.05, window_s=6)
    past_s = time.monotonic() - 1
    assert not pacer.wait(Slot(due_s=past_s, good_until_s=past_s + 0.05, step_s=0.1))
    real_reserve = pacer.reserve
    stalls = [0.2]

    def reserve(*, interactive: bool = False) -> Slot:
        slot = real_reserve(interactive=interactive)
        time.sleep(stalls.pop() if stalls else 0)
        return slot

    monkeypatch.setattr(pacer, "reserve", reserve)
    pacer.take()
    assert pacer.thrown_away >= 1


def test_a_slow_database_cannot_make_a_call_late(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the answer took longer than the margin, nobody knows how late the slot is, so it is not used."""
    pacer = Pacer(engine, KEY, limit_per_min=250, margin_s=0.05, window_s=6)
    real_execute = pacer._execute

    def slow_execute(statement: sa.Executable, **values: int) -> Any:
        row = real_execute(statement, **values)
        time.sleep(0.1)
        return row

    monkeypatch.setattr(pacer, "_execute", slow_execute)
    slot = pacer.reserve()
    assert not pacer.wait(slot)


def test_a_429_holds_everybody_and_counts_once(engine: Engine, set_clock: Any) -> None:
    """One 429 without a moment holds every process 1 s, its companions change nothing, the next one 2 s."""
    mine, yours = Pacer(engine, KEY), Pacer(engine, KEY)
    for gate in (mine, yours, mine):
        gate.observed(429, {})
    assert yours.queue_s() == 1
    assert column(engine, "refusals") == 1
    mine.observed(200, {})  # a call from before the hold: proves nothing
    assert column(engine, "refusals") == 1
    set_clock(START_US + 1_500_000)
    assert yours.queue_s() == 0
    mine.observed(429, {})
    assert yours.queue_s() == 2
    assert column(engine, "refusals") == 2
    set_clock(START_US + 9_000_000)
    mine.observed(200, {})
    assert column(engine, "refusals") == 0


def test_a_hold_only_grows_and_ends(engine: Engine, set_clock: Any) -> None:
    """A shorter hold does not shorten a longer one, and no hold lasts beyond 120 s."""
    pacer = Pacer(engine, KEY)
    pacer.hold(30)
    pacer.hold(5)
    assert pacer.queue_s() == 30
    assert pacer._reserve_within(29.9) is None
    pacer.hold(100_000)
    assert pacer.queue_s() == HOLD_MAX_S


def test_headers_lower_the_limit_and_restore_it(engine: Engine) -> None:
    """The limit Criteo names is in force for every process at once, but never above the configured one."""
    mine, yours = Pacer(engine, KEY, limit_per_min=250), Pacer(engine, KEY, limit_per_min=250)
    mine.observed(200, {"x-ratelimit-limit": "40"})
    assert yours.granted_limit() == 40
    assert yours.reserve(interactive=True).step_s == pytest.approx(60.3 / 40)
    yours.observed(200, {"x-ratelimit-limit": "100000"})
    assert mine.granted_limit() == 250
    assert mine.reserve(interactive=True).step_s == pytest.approx(60.3 / 250)


def test_an_ordinary_answer_writes_nothing(engine: Engine) -> None:
    """Headers that repeat what is known cost no statement at all."""
    pacer = Pacer(engine, KEY)
    usual = {"x-ratelimit-limit": "250", "x-ratelimit-remaining": "17", "x-ratelimit-reset": "1"}
    pacer.observed(200, usual)
    seen: list[str] = []
    sa.event.listen(engine, "before_cursor_execute", lambda *words: seen.append(words[2]))
    pacer.observed(200, usual)
    assert seen == []
    pacer.observed(200, usual | {"x-ratelimit-limit": "100"})
    assert len(seen) == 1


@pytest.mark.parametrize("moved", ["due_us", "hold_until_us"])
def test_a_moved_clock_costs_a_minute_at_most(
    engine: Engine, set_clock: Any, caplog: pytest.LogCaptureFixture, moved: str
) -> None:
    """A due time or hold an hour ahead is no queue: it is reset to one quiet window, and calls go on."""
    pacer = Pacer(engine, KEY)
    execute(engine, f"UPDATE pacer SET {moved} = :us", us=START_US + 3600 * SECOND_US)
    with caplog.at_level(logging.WARNING):
        assert pacer.queue_s() <= 60
    assert "clock was moved" in caplog.text
    set_clock(START_US + 61 * SECOND_US)
    assert pacer._reserve_within(0) is not None


def test_the_longest_real_queue_is_not_taken_for_a_moved_clock(
    engine: Engine, set_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """All that people at pages may reserve at the lowest limit, behind the longest hold, is left alone."""
    pacer = Pacer(engine, KEY, limit_per_min=1)
    pacer.hold(HOLD_MAX_S)
    set_clock(START_US + 61 * SECOND_US)
    while pacer._reserve_within(60) is not None:
        pass
    assert pacer.queue_s() == pytest.approx(59 + 60.25)
    assert caplog.text == ""


def test_a_lost_row_comes_back(engine: Engine) -> None:
    """When somebody empties the table, the next caller makes its row again."""
    pacer = Pacer(engine, KEY)
    execute(engine, "DELETE FROM pacer")
    pacer.take()
    assert column(engine, "due_us") > 0


def test_stop_ends_the_waiting(engine: Engine) -> None:
    """Callers behind a hold, and those behind them, are let go with Busy when the work is stopped."""
    stop = threading.Event()
    pacer = Pacer(engine, KEY, stop=stop)
    pacer.hold(100)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(pacer.take), pool.submit(pacer.take, interactive=False)]
        threading.Timer(0.2, stop.set).start()
        for caller in waiting:
            with pytest.raises(Busy):
                caller.result(timeout=20)


def test_a_page_is_told_how_long_instead_of_waiting(engine: Engine, set_clock: Any) -> None:
    """With patience, a caller behind a hold gets Busy with the seconds, and no slot is spent."""
    pacer = Pacer(engine, KEY, patience_s=10)
    pacer.hold(58)
    due_us = column(engine, "due_us")
    with pytest.raises(Busy, match="58 s") as busy:
        pacer.enter(interactive=True)
    assert busy.value.wait_s == 58
    assert column(engine, "due_us") == due_us
