"""Databases for stories, and how many stories are told."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.simulator.databases import InMemory, OnPostgres

# So many stories are one test; all of them share an engine.
BATCH = 100
# PostgreSQL answers slower than memory does, and every verb is a few round trips.
ONE_IN = 25


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Cut the seeds that are asked for into batches."""
    stories = int(metafunc.config.getoption("--schedules"))
    for name, wanted in (("seeds", stories), ("postgres_seeds", -(-stories // ONE_IN))):
        if name in metafunc.fixturenames:
            batch = BATCH if name == "seeds" else BATCH // 5
            ranges = [range(first, min(first + batch, wanted)) for first in range(0, wanted, batch)]
            metafunc.parametrize(name, ranges, ids=[f"{one.start}-{one.stop - 1}" for one in ranges])


@pytest.fixture(scope="module")
def in_memory() -> InMemory:
    """SQLite in memory."""
    return InMemory()


@pytest.fixture
def on_postgres(postgres_url: str) -> Iterator[OnPostgres]:
    """A PostgreSQL database."""
    database = OnPostgres(postgres_url)
    yield database
    database.close()
