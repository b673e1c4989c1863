"""A command line to test: `airflow criteo ...` in this process, with a canvas, a shop, a ledger and the sandbox."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from airflow.cli.cli_parser import get_parser
from airflow.models import connection as metadata
from airflow.utils.db import initdb
from airflow.utils.session import create_session
from cryptography.fernet import Fernet

from criteo_provider.hooks.surroundings import open_house
from criteo_provider.sandbox.running import Sandbox, running_sandbox
from criteo_provider.store.engine import writing
from criteo_provider.store.seal import seal
from tests.world import crowd

CANVAS = """
name: Example
owner: tests
entry:
  user_key: customer_id
  source:
    sql: {connection: shop, query: segments/all.sql, cursor: [updated_at, customer_id]}
  identifiers: {email: email}
  consent: {require: {ads_tracking_enabled: true}}
steps:
  - id: add
    audience_sync: {operation: add, ad_account: "1001", audience: Everybody, fields: [email]}
"""
COLUMNS = "customer_id INTEGER PRIMARY KEY, email TEXT, ads_tracking_enabled INTEGER, updated_at TEXT"

Airflow = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def metadata_database() -> None:
    """An Airflow metadata database, as every deployment has one."""
    initdb()


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with running_sandbox(limit=60_000, limit_per_account=60_000) as running:
        yield running


@pytest.fixture
def include(tmp_path: Path) -> Path:
    for folder in ("canvases", "segments"):
        (tmp_path / "include" / folder).mkdir(parents=True)
    (tmp_path / "include" / "canvases" / "example.yaml").write_text(CANVAS)
    (tmp_path / "include" / "segments" / "all.sql").write_text("SELECT * FROM customers")
    return tmp_path / "include"


@pytest.fixture
def airflow(
    metadata_database: None,
    include: Path,
    sandbox: Sandbox,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Airflow]:
    """Run `airflow <words>` in this process; returns exit code and what was printed."""
    with closing(sqlite3.connect(tmp_path / "shop.db")) as shop:
        shop.execute(f"CREATE TABLE customers ({COLUMNS})")
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "")
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", Fernet.generate_key().decode())
    monkeypatch.setenv("AIRFLOW__CRITEO__INCLUDE_FOLDER", str(include))
    monkeypatch.setenv("AIRFLOW__CRITEO__LEDGER_PATH", str(tmp_path / "ledger.db"))
    forget_keys()
    criteo = metadata.Connection(
        conn_id="criteo_default",
        conn_type="criteo",
        host=sandbox.url,
        login=sandbox.client_id,
        password=sandbox.client_secret,
    )
    shop_connection = metadata.Connection(conn_id="shop", conn_type="sqlite", host=str(tmp_path / "shop.db"))
    with create_session() as session:
        session.query(metadata.Connection).delete()
        session.add_all([criteo, shop_connection])

    def run(*words: str) -> tuple[int, str]:
        args = get_parser().parse_args(["criteo", *words])
        try:
            args.func(args)
            code = 0
        except SystemExit as ending:
            code = int(ending.code or 0)
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    yield run
    forget_keys()


def forget_keys() -> None:
    """Both halves of Airflow remember the Fernet key of their first use."""
    from airflow.models.crypto import get_fernet as of_core
    from airflow.sdk.crypto import get_fernet as of_tasks

    of_core.cache_clear()
    of_tasks.cache_clear()


FEED = """
name: Do not sell
owner: privacy-team
source:
  sql: {connection: shop, query: segments/all.sql, cursor: [updated_at, customer_id]}
user_key: customer_id
canvases: CANVASES
"""


def preflight(airflow: Airflow, *words: str) -> tuple[int, list[dict[str, str]]]:
    """Run `preflight --output json`; return the exit code and the rows."""
    code, said = airflow("preflight", *words, "--output", "json")
    return code, json.loads(said)


def enter_people(numbers: list[int]) -> None:
    """Put made-up people into the ledger of this deployment."""
    with closing(open_house()) as house:
        plan = house._plans["example"]
        with writing(house.ledger.engine) as connection:
            seal(connection, "example", crowd(numbers), plan, now_us=house.now_us())
