"""`airflow criteo preflight`: all that is missing, together, each with what, why and how to mend it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from airflow.models import connection as metadata
from airflow.sdk.configuration import conf
from airflow.utils.session import create_session

from tests.airflow.command_line import (
    CANVAS,
    Airflow,
    airflow,
    forget_keys,
    include,
    metadata_database,
    preflight,
    sandbox,
)

__all__ = ["airflow", "include", "metadata_database", "sandbox"]


def test_preflight(airflow: Airflow) -> None:
    """`preflight` says what a launch will do, creates nothing, and is fine: exit code 0."""
    code, rows = preflight(airflow)
    assert (code, {row["severity"] for row in rows}) == (0, {"ok"})
    assert [row["what"] for row in rows] == [
        "audience “Everybody” (1001): will be created",
        "ready: nothing to mend",
    ]
    code, said = airflow("preflight")
    assert code == 0
    assert "will be created" in said


def test_preflight_of_a_broken_canvas(airflow: Airflow, include: Path) -> None:
    """The four things people forget are told together, with file, key and mend; the others are still checked."""
    broken = CANVAS.replace("audience: Everybody, fields: [email]", "fields: []").replace('ad_account: "1001",', "")
    (include / "canvases" / "broken.yaml").write_text(broken.replace("name: Example", "name: B\nconnection: nowhere"))
    code, rows = preflight(airflow)
    assert code == 1
    failed = {row["code"]: row for row in rows if row["severity"] == "failure"}
    assert set(failed) == {"no-ad-account", "no-audience-name", "no-fields", "not-connected"}
    assert failed["no-fields"]["where"] == "include/canvases/broken.yaml"
    assert "steps[0].audience_sync.fields (step add)" in failed["no-fields"]["what"]
    assert "there is no Airflow connection 'nowhere'" in failed["not-connected"]["what"]
    assert all(row["mend"] and row["why"] for row in failed.values())
    assert {row["canvas"] for row in rows} == {"broken", "example"}
    assert preflight(airflow, "example")[0] == 0


def test_preflight_of_an_unreachable_source(airflow: Airflow, include: Path) -> None:
    """A source that cannot be read, or lacks a column, is a failure that names its canvas."""
    (include / "segments" / "all.sql").write_text("SELECT * FROM nowhere")
    code, rows = preflight(airflow)
    (failed,) = [row for row in rows if row["severity"] == "failure"]
    assert (code, failed["code"], failed["where"]) == (1, "source-unreadable", "source of canvas example")
    (include / "segments" / "all.sql").write_text("SELECT customer_id, email, updated_at FROM customers")
    code, rows = preflight(airflow)
    assert code == 1
    assert "gives no column 'ads_tracking_enabled'" in rows[0]["what"]


def test_preflight_of_no_canvas(airflow: Airflow, include: Path) -> None:
    """A canvas that does not exist is a failure, and so is none at all; the folder that was looked into is named."""
    code, rows = preflight(airflow, "nobody")
    assert (code, [row["code"] for row in rows]) == (1, ["no-canvas"])
    assert rows[0]["mend"].startswith(f"Write nobody.yaml in {include / 'canvases'}, or ")
    (include / "canvases" / "example.yaml").unlink()
    code, rows = preflight(airflow)
    assert (code, [row["what"] for row in rows]) == (1, ["There is no canvas yet."])
    assert rows[0]["mend"].startswith(f"Write a YAML file in {include / 'canvases'}, or ")


def test_preflight_asks_for_the_guidelines_where_they_are_required(
    airflow: Airflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the setting demands it a connection has to say so; the tick in its form is enough."""
    monkeypatch.setenv("AIRFLOW__CRITEO__GUIDELINES_ACKNOWLEDGED", "required")
    code, rows = preflight(airflow)
    assert (code, [row["code"] for row in rows if row["severity"] == "failure"]) == (1, ["guidelines"])
    with create_session() as session:
        connection = session.query(metadata.Connection).filter_by(conn_id="criteo_default").one()
        connection.set_extra(json.dumps({"guidelines_acknowledged": True}))
    assert preflight(airflow)[0] == 0


def test_preflight_without_a_fernet_key(airflow: Airflow, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a Fernet key nothing is stored in plain text: the connection's line says which setting is missing."""
    monkeypatch.setenv("AIRFLOW_CONN_CRITEO_DEFAULT", "criteo://a:b@")
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", "")
    forget_keys()
    assert not conf.get("core", "fernet_key")
    code, said = airflow("accounts", "check")
    assert code == 1
    assert "fernet_key" in said
