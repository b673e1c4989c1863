"""Packing in the process beside gives what packing here gives, and its death costs speed only."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from criteo_provider.core.errors import LostClaim
from criteo_provider.core.identifiers import EmailHash
from criteo_provider.core.ports import CursorHold
from criteo_provider.flow import packing
from criteo_provider.flow.packing import FieldColumn
from criteo_provider.wiring import beside
from criteo_provider.wiring.beside import Beside

FIELDS = (
    FieldColumn("email", "email", email_hashes=(EmailHash.SHA256, EmailHash.MD5)),
    FieldColumn("gum", "gum", caller_id=7),
)
values = st.none() | st.just("") | st.text(max_size=5) | st.builds("{}@Example.com".format, st.integers(0, 9))


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[Beside]:
    """A process beside, to which even the smallest chunk is sent."""
    monkeypatch.setattr(beside, "WORTH_SENDING", 0)
    with closing(Beside()) as process:
        yield process


def crowd(count: int) -> tuple[list[str], dict[str, list[object]]]:
    """Keys and columns of some people."""
    emails: list[object] = [None if number % 5 == 0 else f"user{number}@example.com" for number in range(count)]
    return [f"user-{number}" for number in range(count)], {"email": emails, "gum": [f"g{n}" for n in range(count)]}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(st.lists(st.tuples(values, values), max_size=6))
def test_it_packs_as_we_do(process: Beside, rows: list[tuple[str | None, str | None]]) -> None:
    """Keys, identifiers, masks and reasons come back just as they are made here."""
    keys = [f"user-{number}" for number in range(len(rows))]
    columns = {"email": [email for email, _ in rows], "gum": [gum for _, gum in rows]}
    assert process.begin_packing(FIELDS, keys, columns)() == packing.packed(FIELDS, keys, columns)
    assert process._process is not None


def test_what_is_not_plain_is_packed_here(process: Beside) -> None:
    """A Decimal cannot go through the pipe, and is packed all the same."""
    keys, columns = ["user-1"], {"email": ["user1@example.com"], "gum": [Decimal(7)]}
    assert process.begin_packing(FIELDS, keys, columns)() == packing.packed(FIELDS, keys, columns)
    assert process._process is None


def test_its_death_costs_nobody(process: Beside) -> None:
    """Killed between order and result, before an order, or never startable: the chunk is packed here."""
    keys, columns = crowd(2_000)
    expected = packing.packed(FIELDS, keys, columns)
    assert process.begin_packing(FIELDS, keys, columns)() == expected
    assert process._process is not None
    process._process.send_signal(signal.SIGSTOP)
    waiting = process.begin_packing(FIELDS, *crowd(3))
    process._process.kill()
    assert waiting() == packing.packed(FIELDS, *crowd(3))
    assert process.begin_packing(FIELDS, keys, columns)() == expected
    assert process._process is None


def test_it_ends_with_us(process: Beside) -> None:
    """Closing ends the process; so does the end of ours, for its input ends then."""
    keys, columns = crowd(3)
    process.begin_packing(FIELDS, keys, columns)()
    running = process._process
    assert running is not None
    process.close()
    assert running.returncode == 0


def test_a_result_nobody_took_is_not_taken_for_another(process: Beside) -> None:
    """Whoever loses the cursor leaves an order behind; the next one gets its own people, however large both are."""
    for _ in range(3):
        process.begin_packing(FIELDS, *crowd(60_000))
    expected = packing.packed(FIELDS, *crowd(5))
    assert process.begin_packing(FIELDS, *crowd(5))() == expected
    assert process._process is not None


def test_there_are_no_more_processes_than_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all places taken a chunk is packed here; a place given back is taken."""
    monkeypatch.setattr(beside, "WORTH_SENDING", 0)
    places = threading.Semaphore(1)
    with closing(Beside(places)) as first, closing(Beside(places)) as second:
        assert first.begin_packing(FIELDS, *crowd(3))() == second.begin_packing(FIELDS, *crowd(3))()
        assert first._process is not None
        assert second._process is None
        first.close()
        second.begin_packing(FIELDS, *crowd(3))()
        assert second._process is not None


def test_closing_does_not_wait_for_a_ledger_that_does_not_answer(process: Beside) -> None:
    """A seal that hangs is left behind, with the reader it belongs to; one that is begun later still happens."""
    answers, hold = threading.Event(), CursorHold("vip", "me", None, 1)

    def seal() -> CursorHold:
        assert answers.wait(60)
        return hold

    hanging = process.begin_sealing(seal)
    process.close()
    assert not answers.is_set()
    answers.set()
    assert hanging() is hold
    assert process.begin_sealing(lambda: hold)() is hold


def test_what_sealing_raises_is_raised_where_it_is_waited_for(process: Beside) -> None:
    """Nothing of a failure is lost between two threads."""

    def seal() -> CursorHold:
        raise LostClaim("Another process reads this source now.")

    sealed = process.begin_sealing(seal)
    with pytest.raises(LostClaim):
        sealed()
