"""What every tier shares: an Airflow home that is not yours, and databases that are empty."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parent.parent

# Airflow reads its settings at import, so these come before any test module is imported.
_AIRFLOW_HOME = tempfile.mkdtemp(prefix="criteo-airflow-")
atexit.register(shutil.rmtree, _AIRFLOW_HOME, ignore_errors=True)
os.environ.update(
    AIRFLOW_HOME=_AIRFLOW_HOME,
    AIRFLOW__CORE__DAGS_FOLDER=str(PROJECT / "dags"),
    AIRFLOW__CORE__PLUGINS_FOLDER=str(PROJECT / "plugins"),
    AIRFLOW__CORE__LOAD_EXAMPLES="False",
    AIRFLOW__CORE__UNIT_TEST_MODE="False",
)

from tests.postgres import PostgresServer, fresh_database, running_postgres  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    """How much is told in `tests/simulator`."""
    parser.addoption("--schedules", type=int, default=100, help="how many stories the simulator tells")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Deal out tests one by one; a browser's story stays in one process, and at most two whole Airflows run at a time.

    xdist's own groups (`--dist loadgroup`) do not reach the workers under pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class OneStoryInOneProcess(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            if file.startswith("tests/e2e/"):
                # Two halves that take about as long.
                return "one Airflow" if file.endswith(("faults.py", "green.py")) else "another Airflow"
            return file if file.endswith("browser.py") else nodeid

    return OneStoryInOneProcess(config, log)


@pytest.fixture(scope="session")
def postgres_server_url() -> Iterator[str]:
    """URL of a PostgreSQL server for this test process: `CRITEO_TEST_PG` if set, else an embedded one.

    Fast and unsafe (no fsync). A test that stops or kills its server takes `durable_postgres`.
    """
    given = os.environ.get("CRITEO_TEST_PG")
    if given:
        yield given.replace("postgresql://", "postgresql+psycopg://", 1)
        return
    with running_postgres() as server:
        yield server.url()


@pytest.fixture
def postgres_url(postgres_server_url: str) -> Iterator[str]:
    """SQLAlchemy URL of an empty PostgreSQL database, dropped after the test."""
    with fresh_database(postgres_server_url) as url:
        yield url


@pytest.fixture
def durable_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server of this test's own, with fsync, to be stopped, killed and started again."""
    with running_postgres(durable=True) as server:
        yield server


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """SQLAlchemy URL of a SQLite file that does not exist yet."""
    return f"sqlite:///{tmp_path / 'ledger.db'}"


@pytest.fixture(params=["sqlite", "postgres"])
def ledger_url(request: pytest.FixtureRequest) -> str:
    """SQLAlchemy URL of an empty database: the test runs once on SQLite and once on PostgreSQL."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url
