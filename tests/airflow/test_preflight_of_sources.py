"""A preflight of folders, object stores and endpoints, there or not, as canvases name them."""

from __future__ import annotations

import http.server
import io
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from criteo_provider.sources import files
from tests.airflow.command_line import Airflow, airflow, include, metadata_database, preflight
from tests.airflow.test_findings import Deployment, deployment, sandbox
from tests.sources.test_files_s3 import bucket, s3_url

__all__ = ["airflow", "bucket", "deployment", "include", "metadata_database", "s3_url", "sandbox"]

PERSON = {"customer_id": 1, "email": "ada@example.com", "ads_tracking_enabled": True}
WITHOUT_CONSENT = {"customer_id": 1, "email": "ada@example.com"}


def written(kind: str, person: dict[str, Any]) -> bytes:
    """One made-up person in a file format."""
    if kind == "parquet":
        file = io.BytesIO()
        pq.write_table(pa.Table.from_pylist([person]), file)
        return file.getvalue()
    if kind == "ndjson":
        return json.dumps(person).encode() + b"\n"
    return "\n".join([",".join(person), ",".join(map(str, person.values())), ""]).encode()


def findings(airflow: Airflow) -> tuple[int, list[tuple[str, str]]]:
    """The exit code of a preflight, and code and sentence of what it found."""
    returned, rows = preflight(airflow)
    return returned, [(row["code"], row["what"]) for row in rows if row["severity"] != "ok"]


def unreadable(airflow: Airflow) -> str:
    """The sentence of the one failure, which is that of the source."""
    returned, ((code, what),) = findings(airflow)
    assert (returned, code) == (1, "source-unreadable")
    return what


@pytest.mark.parametrize("kind", ["csv", "parquet", "ndjson"])
def test_a_folder_of_files(deployment: Deployment, airflow: Airflow, kind: str) -> None:
    """Files that hold every column are fine; of one that lacks a column it is named, before anybody enters."""
    deployment.source(f"files: {{path: {deployment.place / 'people'}}}")
    deployment.file(f"today.{kind}", written(kind, PERSON))
    assert findings(airflow) == (0, [])
    deployment.file(f"today.{kind}", written(kind, WITHOUT_CONSENT))
    if kind == "ndjson":  # where a column that is not there reads as empty
        sentence = "The first records have no value in: ads_tracking_enabled."
        assert findings(airflow) == (0, [("column-empty", sentence)])
    else:
        assert f"today.{kind}, there is no column 'ads_tracking_enabled'; " in unreadable(airflow)


def test_one_bad_file_among_good_ones(deployment: Deployment, airflow: Airflow) -> None:
    """A small folder is looked at whole: a good file does not hide one that lacks a column."""
    deployment.source(f"files: {{path: {deployment.place / 'people'}}}")
    deployment.file("monday.csv", written("csv", WITHOUT_CONSENT))
    deployment.file("tuesday.csv", written("csv", PERSON))
    assert "monday.csv, there is no column 'ads_tracking_enabled'; " in unreadable(airflow)


def test_a_folder_that_is_not_there(deployment: Deployment, airflow: Airflow) -> None:
    """A folder that was never made or is not mounted is a failure; an empty one waits for its first file."""
    deployment.source(f"files: {{path: {deployment.place / 'people'}}}")
    assert "no folder" in unreadable(airflow)
    (deployment.place / "people").mkdir()
    assert findings(airflow) == (0, [])


def test_a_store_nobody_knows(deployment: Deployment, airflow: Airflow) -> None:
    """An address of a kind no installed provider can open is a sentence that says so, and no traceback."""
    deployment.source("files: {path: 'moon://people/in'}")
    assert "moon" in unreadable(airflow)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_an_object_store(
    deployment: Deployment,
    airflow: Airflow,
    bucket: Any,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """S3 through an Airflow connection: fine, a column missing, no such bucket, nobody there, no such connection."""
    monkeypatch.setattr(files, "SETTLED_S", -60.0)  # objects appear whole, and need not be waited for
    capsys.readouterr()  # what the provider of AWS has logged
    deployment.source(f"files: {{connection: {bucket.conn_id}, path: 's3://people/in'}}")
    assert findings(airflow) == (0, [])
    (bucket / f"today.{kind}").write_bytes(written(kind, WITHOUT_CONSENT))
    assert "there is no column 'ads_tracking_enabled'" in unreadable(airflow)
    (bucket / f"today.{kind}").write_bytes(written(kind, PERSON))
    assert findings(airflow) == (0, [])
    deployment.source(f"files: {{connection: {bucket.conn_id}, path: 's3://nobodys-bucket/in'}}")
    assert "no folder" in unreadable(airflow)
    deployment.source("files: {connection: pond, path: 's3://people/in'}")
    assert "there is no Airflow connection 'pond'" in unreadable(airflow)


@pytest.mark.slow
def test_an_object_store_whose_connection_was_mended(
    deployment: Deployment, airflow: Airflow, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that lives long sees what changes in the connection of a store: Airflow itself keeps the first."""
    variable = f"AIRFLOW_CONN_{bucket.conn_id.upper()}"
    good = json.loads(os.environ[variable])
    with closing(socket.socket()) as nobody:
        nobody.bind(("127.0.0.1", 0))
        extra = {
            "endpoint_url": f"http://127.0.0.1:{nobody.getsockname()[1]}",
            "config_kwargs": {"retries": {"max_attempts": 0}},
        }
        deployment.source(f"files: {{connection: {bucket.conn_id}, path: 's3://people/in'}}")
        assert airflow("preflight")[0] == 0
        monkeypatch.setenv(variable, json.dumps({**good, "extra": good["extra"] | extra}))
        code, said = airflow("preflight")
        assert code == 1
        assert "The source cannot be read" in " ".join(said.split())
        monkeypatch.setenv(variable, json.dumps(good))
        assert airflow("preflight")[0] == 0


class Crm(http.server.ThreadingHTTPServer):
    """An endpoint with one person, who may lack something; without the password nobody gets an answer."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.person: dict[str, Any] = PERSON


class _Answer(http.server.BaseHTTPRequestHandler):
    server: Crm

    def do_GET(self) -> None:
        allowed = self.headers["Authorization"] == "Basic cmVhZGVyOnNlY3JldA=="
        self.send_response(200 if allowed else 401)
        self.end_headers()
        self.wfile.write(json.dumps({"data": [self.server.person] if "page=1" in self.path else []}).encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def crm(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> Iterator[Crm]:
    """The endpoint, named by the connection `crm`; the canvas reads from it."""
    server = Crm()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AIRFLOW_CONN_CRM", f"http://reader:secret@127.0.0.1:{server.server_address[1]}")
    page = "{kind: page, param: page, size: 9}"
    deployment.source(f"http: {{connection: crm, endpoint: /people, records: data, page: {page}}}")
    yield server
    server.shutdown()
    server.server_close()


def test_an_endpoint(deployment: Deployment, airflow: Airflow, crm: Crm) -> None:
    """An endpoint that answers is fine; a column no record of its first page has is named, as a warning."""
    assert findings(airflow) == (0, [])
    crm.person = WITHOUT_CONSENT
    sentence = "The first records have no value in: ads_tracking_enabled."
    assert findings(airflow) == (0, [("column-empty", sentence)])


def test_an_endpoint_that_lets_nobody_in(
    deployment: Deployment, airflow: Airflow, crm: Crm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused, nobody there, or no such connection: each is said, without the address's password."""
    monkeypatch.setenv("AIRFLOW_CONN_CRM", f"http://reader:wrong@127.0.0.1:{crm.server_address[1]}")
    assert unreadable(airflow) == "The source cannot be read: /people answered with status 401"
    monkeypatch.setenv("AIRFLOW_CONN_CRM", "http://reader:hidden@127.0.0.1:1")
    what = unreadable(airflow)
    assert "/people cannot be reached now: " in what
    assert "hidden" not in what
    monkeypatch.delenv("AIRFLOW_CONN_CRM")
    assert "there is no Airflow connection 'crm'" in unreadable(airflow)


def test_a_function(deployment: Deployment, airflow: Airflow, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function whose frames hold every column is fine; a missing column, function or module is named."""
    monkeypatch.syspath_prepend(deployment.place)
    frame = "def {}():\n    yield pd.DataFrame([{!r}])\n"
    module = ["import pandas as pd\n", frame.format("people", PERSON), frame.format("fewer", WITHOUT_CONSENT)]
    (deployment.place / "our_segments.py").write_text("".join(module))
    sources = {
        "our_segments.people": None,
        "our_segments.fewer": "ads_tracking_enabled",
        "our_segments.nobody": "our_segments.nobody",
        "their_segments.people": "their_segments",
    }
    for function, named in sources.items():
        deployment.source(f"python: {{callable: {function}, cursor: customer_id}}")
        if named is None:
            assert findings(airflow) == (0, [])
        else:
            assert named in unreadable(airflow)
