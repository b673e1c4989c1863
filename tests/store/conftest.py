"""The store tier: every test on SQLite and on PostgreSQL, and the laws proven at the end of each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.world import World


@pytest.fixture
def world(ledger_url: str) -> Iterator[World]:
    """An empty ledger on either engine."""
    world = World(ledger_url)
    yield world
    world.close()
