"""Each kind of finding is brought about, and `airflow criteo preflight` tells it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import pytest
from airflow.models import connection as metadata
from airflow.utils.session import create_session

from criteo_provider.hooks.surroundings import open_house
from criteo_provider.sandbox.running import Sandbox, running_sandbox
from criteo_provider.wiring.findings import KINDS
from tests.airflow.command_line import (
    CANVAS,
    FEED,
    Airflow,
    airflow,
    forget_keys,
    include,
    metadata_database,
    preflight,
)

__all__ = ["airflow", "include", "metadata_database"]

AD_ACCOUNT = "1001"


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """A sandbox of this test's own, whose limit is out of the way."""
    with running_sandbox(limit=60_000, limit_per_account=60_000) as running:
        yield running


@dataclass(frozen=True)
class Deployment:
    """An Airflow that lacks nothing, with the canvas `example`: what a test breaks."""

    sandbox: Sandbox
    include: Path
    place: Path
    patch: pytest.MonkeyPatch

    def setting(self, key: str, value: str, section: str = "CRITEO") -> None:
        """Set an option of Airflow."""
        self.patch.setenv(f"AIRFLOW__{section}__{key.upper()}", value)

    def canvas(self, was: str = "", becomes: str = "", name: str = "example") -> None:
        """Write a canvas file, with another text in one place."""
        (self.include / "canvases" / f"{name}.yaml").write_text(CANVAS.replace(was, becomes) if was else CANVAS)

    def source(self, source: str) -> None:
        """Let the canvas read from another source."""
        self.canvas("sql: {connection: shop, query: segments/all.sql, cursor: [updated_at, customer_id]}", source)

    def file(self, name: str, content: bytes) -> None:
        """Put a file into the folder `people`, a minute ago."""
        file = self.place / "people" / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
        os.utime(file, (time.time() - 60,) * 2)

    def connection(self, **fields: str) -> None:
        """Change the Criteo connection."""
        with create_session() as session:
            criteo = session.query(metadata.Connection).filter_by(conn_id="criteo_default").one()
            for name, value in fields.items():
                getattr(criteo, f"set_{name}")(value) if name in ("password", "extra") else setattr(criteo, name, value)

    def launch(self) -> None:
        """Let the DAG launch the canvas."""
        with closing(open_house()) as house:
            house.drain("fresh", stop=Event(), max_s=60)
            assert house.launch.unlaunched() == set()


@pytest.fixture
def deployment(
    airflow: Airflow, sandbox: Sandbox, include: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Deployment:
    return Deployment(sandbox, include, tmp_path, monkeypatch)


def no_canvas(here: Deployment) -> None:
    (here.include / "canvases" / "example.yaml").unlink()


def no_encryption(here: Deployment) -> None:
    # Airflow keeps connections under its key: the one in the environment can be read without.
    here.patch.setenv("AIRFLOW_CONN_CRITEO_DEFAULT", f"criteo://a:b@{here.sandbox.url.partition('//')[2]}")
    here.setting("fernet_key", "", "CORE")
    forget_keys()


def ledger_unusable(here: Deployment) -> None:
    (here.place / "ledger.db").write_text("This is no database, it is a letter." * 100)


def opt_out_file(here: Deployment) -> None:
    (here.include / "opt_outs").mkdir()
    (here.include / "opt_outs" / "register.yaml").write_text(FEED.replace("CANVASES", "[]"))


def opt_outs_unreadable(here: Deployment) -> None:
    opt_out_file(here)
    (here.include / "segments" / "nowhere.sql").write_text("SELECT * FROM nowhere")
    feed = FEED.replace("CANVASES", "all").replace("all.sql", "nowhere.sql")
    (here.include / "opt_outs" / "register.yaml").write_text(feed)


def audience_gone(here: Deployment) -> None:
    here.launch()
    here.sandbox.throw("segment-deleted")


def audiences(number: int) -> Callable[[Deployment], None]:
    def fill(here: Deployment) -> None:
        for count in range(number):
            here.sandbox.world.new_segment(AD_ACCOUNT, f"List {count:04d}")

    return fill


def read_only(here: Deployment) -> None:
    here.sandbox.add_segment(AD_ACCOUNT, "Everybody")
    here.sandbox.throw("read-only-application")


def column_empty(here: Deployment) -> None:
    here.source(f"files: {{path: {here.place / 'people'}}}")
    here.file("today.ndjson", b'{"customer_id": 1, "ads_tracking_enabled": true}\n')


BREAK: dict[str, Callable[[Deployment], object]] = {
    "no-canvas": no_canvas,
    "no-audience-name": lambda here: here.canvas("audience: Everybody, "),
    "no-fields": lambda here: here.canvas("[email]", "[]"),
    "no-ad-account": lambda here: here.canvas('ad_account: "1001", '),
    "canvas-file": lambda here: here.canvas("name: Example", 'name: ""'),
    "no-encryption": no_encryption,
    "ledger-unusable": ledger_unusable,
    "opt-out-file": opt_out_file,
    "opt-outs-unreadable": opt_outs_unreadable,
    "not-connected": lambda here: here.canvas("name: Example", "name: Example\nconnection: nowhere"),
    "access-lost": lambda here: here.connection(password="another"),
    "not-consented": lambda here: here.connection(extra='{"grant_type": "authorization_code"}'),
    "criteo-unavailable": lambda here: here.sandbox.fault(operation="advertisers", status=503, times=None),
    "guidelines": lambda here: here.setting("guidelines_acknowledged", "required"),
    "ad-account-not-chosen": lambda here: here.connection(extra='{"allowed_ad_accounts": "1002"}'),
    "ad-account-not-consented": lambda here: here.sandbox.application(advertisers=["1002"]),
    "no-permission": lambda here: here.sandbox.throw("no-permission"),
    "read-only-permission": read_only,
    "quota-near": audiences(950),
    "quota-reached": audiences(1_000),
    "audience-gone": audience_gone,
    "audience-ambiguous": lambda here: [here.sandbox.add_segment(AD_ACCOUNT, "Everybody") for _ in range(2)],
    "audience-unsuitable": lambda here: here.sandbox.add_segment(AD_ACCOUNT, "Everybody", kind="InMarket"),
    "audience-nobody-creates": lambda here: here.canvas("operation: add", "operation: remove"),
    "audience-refused": lambda here: here.sandbox.fault(
        operation="search", status=400, times=None, error_type="validation", code="invalid"
    ),
    "source-unreadable": lambda here: (here.include / "segments" / "all.sql").write_text("SELECT * FROM nowhere"),
    "column-empty": column_empty,
}  # fmt: skip


def test_each_kind_is_here() -> None:
    """There is no finding that nothing brings about."""
    assert list(BREAK) == list(KINDS)


# Commands hide this from their users, too.
@pytest.mark.filterwarnings("ignore:ProvidersManager.hooks is deprecated")
@pytest.mark.parametrize("code", list(KINDS))
def test_a_finding_is_told(deployment: Deployment, airflow: Airflow, code: str) -> None:
    """What is broken is told under its code, once, with what, why and mend; a failure is exit code 1."""
    assert preflight(airflow)[0] == 0
    BREAK[code](deployment)
    returned, rows = preflight(airflow)
    told = [row for row in rows if row["severity"] != "ok"]
    assert [row["code"] for row in told] == [code], told
    assert returned == int(told[0]["severity"] == "failure")
    assert told[0]["severity"] == KINDS[code].severity
    assert all(told[0][part] for part in ("where", "what", "why", "mend")), told
