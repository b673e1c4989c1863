"""How many requests a minute there are, and how often each stream gets one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criteo_provider.core.budget import Tempo, budget_per_min

tempos = st.builds(Tempo, st.floats(1, 3600), st.integers(0, 2_000), st.integers(1, 100_000))


@pytest.mark.parametrize(
    ("grant_type", "ad_accounts", "configured", "budget"),
    [
        ("client_credentials", None, None, 250),
        ("client_credentials", 7, None, 250),
        ("client_credentials", 7, 100, 100),
        ("authorization_code", None, None, 10),
        ("authorization_code", 0, None, 10),
        ("authorization_code", 1, None, 10),
        ("authorization_code", 7, None, 70),
        ("authorization_code", 7, 25, 25),
    ],
)
def test_budget_by_grant(grant_type: str, ad_accounts: int | None, configured: int | None, budget: int) -> None:
    """250 for an application, 10 for each ad account of a consent, at least for one; the connection overrides."""
    assert budget_per_min(grant_type, ad_accounts, configured) == budget  # type: ignore[arg-type]


def test_a_stretched_interval_says_why() -> None:
    """Four streams that share ten requests a minute are flushed every 24 s; twenty at 250 keep their five."""
    assert Tempo(5, 4, 10).sentence == "flush every 24 s: 4 streams share 10 requests a minute"
    assert Tempo(5, 1, 1).sentence == "flush every 60 s: 1 stream shares 1 request a minute"
    assert (Tempo(5, 20, 250).sentence, Tempo(5, 20, 250).flush_s) == ("", 5)
    assert Tempo(5, 0, 10).look_every_s == 2.5


@given(tempos)
def test_no_stream_asks_for_more_than_its_share(tempo: Tempo) -> None:
    """At its flush interval every stream gets its request within the budget, and never more often than declared."""
    assert tempo.flush_s >= tempo.declared_s
    assert tempo.streams * 60 / tempo.flush_s <= tempo.budget_per_min * (1 + 1e-9)
    assert tempo.flush_s == tempo.declared_s or tempo.flush_s == tempo.needed_s
    assert bool(tempo.sentence) == tempo.is_stretched == (tempo.flush_s > tempo.declared_s)


@given(tempos)
def test_sources_are_read_in_time_and_not_beyond_the_budget(tempo: Tempo) -> None:
    """A look is never later than the flush it is for, and the people it finds ask for no more than the budget."""
    assert tempo.declared_s / 2 <= tempo.look_every_s <= tempo.flush_s
    assert tempo.streams * 60 / tempo.look_every_s <= tempo.budget_per_min * (1 + 1e-9)


@given(tempos, st.integers(0, 50), st.integers(0, 1_000))
def test_more_streams_never_make_it_faster_nor_more_budget_slower(tempo: Tempo, streams: int, budget: int) -> None:
    """The interval grows with the streams and shrinks with the budget."""
    assert Tempo(tempo.declared_s, tempo.streams + streams, tempo.budget_per_min).flush_s >= tempo.flush_s
    assert Tempo(tempo.declared_s, tempo.streams, tempo.budget_per_min + budget).flush_s <= tempo.flush_s
