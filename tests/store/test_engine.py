"""Engines: a kept connection is asked whether it lives when it has lain idle, and not otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, text

from criteo_provider.core.errors import LedgerUnwritable
from criteo_provider.store import engine as engines
from criteo_provider.store.engine import open_engine


@pytest.fixture
def engine(postgres_url: str) -> Iterator[Engine]:
    """An engine on PostgreSQL with one connection in its pool."""
    engine = open_engine(postgres_url)
    yield engine
    engine.dispose()


def backend(engine: Engine) -> int:
    """Return the server process of the connection that is taken from the pool."""
    with engine.connect() as connection:
        return int(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())


def cut_off(engine: Engine, pid: int) -> None:
    """End a connection from another one, as a firewall or a restarted server would."""
    other = open_engine(engine.url.render_as_string(hide_password=False))
    with other.connect() as connection:
        assert connection.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid}).scalar_one()
    other.dispose()


def test_a_connection_cut_while_it_lay_idle_costs_no_failure(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked before it is used, and there is a new one; one that lives is kept."""
    first = backend(engine)
    monkeypatch.setattr(engines, "TRUSTED_S", 0.0)
    assert backend(engine) == first
    cut_off(engine, first)
    assert backend(engine) != first


def test_a_busy_connection_is_not_asked(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """That would be a way to the server for nothing; what is cut just then fails once, with a sentence."""
    asked: list[Any] = []
    monkeypatch.setattr(engine.dialect, "do_ping", asked.append)
    monkeypatch.setattr(engines, "TRUSTED_S", 60.0)
    pids = {backend(engine) for _ in range(10)}
    assert (len(pids), asked) == (1, [])
    cut_off(engine, pids.pop())
    with pytest.raises(LedgerUnwritable, match="no way to the ledger's PostgreSQL server"):
        backend(engine)
    assert backend(engine)


def test_a_server_that_is_gone_is_told_in_a_sentence() -> None:
    """Where no new connection can be made either, the sentence says where to look."""
    nowhere = open_engine("postgresql+psycopg://nobody@127.0.0.1:1/nothing")
    with pytest.raises(LedgerUnwritable, match="no way to the ledger's PostgreSQL server"):
        backend(nowhere)
