"""What the hook floor hands down to the house: ledger, sources, cipher, as this Airflow has them."""

from __future__ import annotations

import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import ErrorResponse

from criteo_provider.core.errors import Misconfigured, Unavailable
from criteo_provider.core.ports import Source
from criteo_provider.hooks import airflow_inside, surroundings
from criteo_provider.hooks.segment_sources import SegmentSources
from criteo_provider.settings.load import load_canvases

POSTGRES = "postgres://reader:p%40ss@db.example.com:5433/ledger?sslmode=require&cursor=dictcursor"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home of its own for each test: where the ledger has been is remembered there."""
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))


@pytest.fixture
def no_ledger_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_CRITEO_LEDGER", raising=False)


def test_ledger_is_a_file_by_default(
    no_ledger_connection: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without a ledger connection the ledger is a SQLite file in Airflow's home, or where the setting says."""
    assert surroundings.ledger_url() == f"sqlite:///{tmp_path}/criteo/ledger.db"
    monkeypatch.setenv("AIRFLOW__CRITEO__LEDGER_PATH", str(tmp_path / "elsewhere.db"))
    assert surroundings.ledger_url() == f"sqlite:///{tmp_path}/elsewhere.db"


def test_ledger_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection criteo_ledger moves the ledger to PostgreSQL, special signs and options included."""
    monkeypatch.setenv("AIRFLOW_CONN_CRITEO_LEDGER", POSTGRES)
    url = sqlalchemy.make_url(surroundings.ledger_url())
    assert (url.drivername, url.username, url.password) == ("postgresql+psycopg", "reader", "p@ss")
    assert (url.host, url.port, url.database) == ("db.example.com", 5433, "ledger")
    assert dict(url.query) == {"sslmode": "require"}


def test_a_ledger_that_was_in_its_connection_is_not_begun_anew_in_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Airflow says "not found" also when its database fails: then an empty ledger would send everybody again."""
    monkeypatch.setenv("AIRFLOW_CONN_CRITEO_LEDGER", POSTGRES)
    surroundings.ledger_url()
    monkeypatch.delenv("AIRFLOW_CONN_CRITEO_LEDGER")
    with pytest.raises(Unavailable, match="does not find that now; trying again later") as refused:
        surroundings.ledger_url()
    note = tmp_path / "criteo" / "ledger.db.moved"
    assert f"delete {note}" in str(refused.value)
    assert "p@ss" not in note.read_text()
    note.unlink()
    assert surroundings.ledger_url().startswith("sqlite:///")


def test_ledger_connection_of_another_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger connection that is no PostgreSQL is refused by name."""
    monkeypatch.setenv("AIRFLOW_CONN_CRITEO_LEDGER", "mysql://db.example.com/ledger")
    with pytest.raises(Misconfigured, match=r"Connection criteo_ledger: .* 'mysql'; choose the type Postgres"):
        surroundings.ledger_url()


def test_a_named_ledger_connection_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once [criteo] ledger_connection names a connection, its absence is an error and never a new SQLite file."""
    monkeypatch.setenv("AIRFLOW__CRITEO__LEDGER_CONNECTION", "my_ledger")
    with pytest.raises(Misconfigured, match="there is no Airflow connection 'my_ledger'"):
        surroundings.ledger_url()


@pytest.mark.parametrize("way", ["answered", "raised"])
def test_silence_is_not_absence(way: str, no_ledger_connection: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """While Airflow's API server does not answer, no second ledger is opened; when it says "not found", it is."""
    answers = [ErrorType.API_SERVER_ERROR]

    def send(_: Any) -> ErrorResponse:
        answer = ErrorResponse(error=answers[0], detail={})
        if way == "raised":
            raise AirflowRuntimeError(answer)
        return answer

    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", SimpleNamespace(send=send), raising=False)
    with pytest.raises(Unavailable, match="does not say whether the connection 'criteo_ledger' exists"):
        surroundings.ledger_url()
    answers[0] = ErrorType.CONNECTION_NOT_FOUND
    assert surroundings.ledger_url().startswith("sqlite:///")


@pytest.mark.parametrize(
    ("configured", "name"),
    [
        ("LocalExecutor", "LocalExecutor"),
        ("airflow.executors.local_executor.LocalExecutor", "LocalExecutor"),
        ("CeleryExecutor", "CeleryExecutor"),
        ("LocalExecutor,far:airflow.providers.celery.executors.celery_executor.CeleryExecutor", "CeleryExecutor"),
    ],
)
def test_executor(configured: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The executor is told by its class name, and a remote one beside a local one counts."""
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", configured)
    assert surroundings.executor() == name


def test_no_cipher_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty Fernet key is no cipher, though Airflow's encrypt() would pretend."""
    from airflow.sdk.crypto import get_fernet

    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", "")
    get_fernet.cache_clear()
    try:
        assert airflow_inside.cipher() is None
        monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", "A" * 43 + "=")
        get_fernet.cache_clear()
        cipher = airflow_inside.cipher()
        assert cipher is not None
        sealed = cipher.encrypt(b"token")
        assert (cipher.decrypt(sealed), b"token" in sealed, len(cipher.key_id())) == (b"token", False, 12)
    finally:
        get_fernet.cache_clear()


# --- sources ---------------------------------------------------------------------------------------------

CANVAS = """
name: Example
owner: tests
entry:
  user_key: customer_id
  source: {source}
  identifiers: {{email: email}}
  consent: {{require: {{ads: true}}}}
steps:
  - id: add
    audience_sync: {{operation: add, ad_account: "1001", audience: Everybody, fields: [email]}}
"""
PEOPLE = [{"customer_id": number, "email": f"p{number}@example.com", "ads": True} for number in (1, 2, 3)]


def source(include: Path, declared: str) -> Source:
    for folder in ("canvases", "segments"):
        (include / folder).mkdir(exist_ok=True)
    (include / "segments" / "all.sql").write_text("SELECT * FROM people WHERE email LIKE '%@example.com'")
    (include / "canvases" / "example.yaml").write_text(CANVAS.format(source=declared))
    loaded = load_canvases(include)
    assert loaded.problems == ()
    return SegmentSources(include, surroundings.Connections().get).of(loaded.canvases[0])


def keys(source: Source) -> list[str]:
    assert source.is_ahead(None, lambda units: set())
    pages = source.pages(None, max_rows=lambda: 2, seen=lambda units: set())
    return [str(key) for page in pages for key in page.columns["customer_id"]]


SQL = "{sql: {connection: shop, query: segments/all.sql, cursor: [customer_id], late_commit: 1s}}"


def test_sql_over_airflow_connections(ledger_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment's SQL is read through Airflow's own hooks, on SQLite and on PostgreSQL, percent signs included."""
    engine = sqlalchemy.create_engine(ledger_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE people (customer_id INTEGER PRIMARY KEY, email TEXT, ads BOOLEAN)")
        connection.execute(sqlalchemy.text("INSERT INTO people VALUES (:customer_id, :email, :ads)"), PEOPLE)
    engine.dispose()
    url = sqlalchemy.make_url(ledger_url)
    parts = {"host": url.host or url.database, "schema": url.database if url.host else "", "login": url.username}
    shop = {**parts, "password": url.password, "port": url.port, "extra": dict(url.query)}
    kind = "sqlite" if "sqlite" in ledger_url else "postgres"
    monkeypatch.setenv("AIRFLOW_CONN_SHOP", json.dumps({"conn_type": kind, **shop}))
    people = source(tmp_path, SQL)
    assert keys(people) == ["1", "2", "3"]
    people.close()  # type: ignore[attr-defined]  # a SqlSource


@pytest.mark.parametrize(
    ("connection", "sentence"),
    [
        (None, "canvas example, entry.source.sql.connection: there is no Airflow connection 'shop'"),
        ("http://crm.example.com", "entry.source.sql.connection: the Airflow connection 'shop' is no SQL database"),
    ],
)
def test_sql_refusals(connection: str | None, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is missing or no database is told with the canvas and the key that name it."""
    if connection:
        monkeypatch.setenv("AIRFLOW_CONN_SHOP", connection)
    with pytest.raises(Misconfigured) as refusal:
        source(tmp_path, SQL)
    assert sentence in str(refusal.value)


def test_files(tmp_path: Path) -> None:
    """Files are read from a folder beside the canvases, or through Airflow's object storage by URL."""
    people = tmp_path / "people"
    people.mkdir()
    lines = "".join(json.dumps(person) + "\n" for person in PEOPLE)
    (people / "one.ndjson").write_text(lines)
    past = (people / "one.ndjson").stat().st_mtime - 60
    os.utime(people / "one.ndjson", (past, past))
    assert keys(source(tmp_path, "{files: {path: people}}")) == ["1", "2", "3"]
    assert keys(source(tmp_path, f'{{files: {{path: "file://{people}"}}}}')) == ["1", "2", "3"]


@pytest.fixture
def crm() -> Iterator[http.server.ThreadingHTTPServer]:
    """An endpoint that wants a password, and answers with three people."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            allowed = self.headers["Authorization"] == "Basic cmVhZGVyOnNlY3JldA=="
            body = json.dumps({"data": PEOPLE if "offset=0" in self.path else []}).encode()
            self.send_response(200 if allowed else 401)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_http_over_an_airflow_connection(
    crm: http.server.ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An endpoint is called with the address and the credentials of its Airflow connection."""
    monkeypatch.setenv("AIRFLOW_CONN_CRM", f"http://reader:secret@127.0.0.1:{crm.server_address[1]}")
    page = "{kind: offset, param: offset, size: 9}"
    declared = f"{{http: {{connection: crm, endpoint: /people, records: data, page: {page}}}}}"
    assert keys(source(tmp_path, declared)) == ["1", "2", "3"]


def test_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dotted path is a source of DataFrames."""
    (tmp_path / "my_segments.py").write_text(
        f"import pandas as pd\ndef people():\n    yield pd.DataFrame({PEOPLE!r})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert keys(source(tmp_path, "{python: {callable: my_segments.people, cursor: customer_id}}")) == ["1", "2", "3"]


def test_a_token_under_another_fernet_key_is_a_value_error() -> None:
    """The cipher says in its port's words that a secret was encrypted under a key Airflow no longer has."""
    from cryptography.fernet import Fernet

    from criteo_provider.hooks.airflow_inside import FernetCipher

    old, new = (FernetCipher(Fernet(key), key.decode()) for key in (Fernet.generate_key(), Fernet.generate_key()))
    with pytest.raises(ValueError, match="another Fernet key"):
        new.decrypt(old.encrypt(b"made-up token"))
    assert old.key_id() != new.key_id()
    assert new.decrypt(new.encrypt(b"made-up token")) == b"made-up token"


@pytest.mark.parametrize(("written", "seconds"), [(None, 60.0), ("", 60.0), ("1.5", 1.5)])
def test_how_soon_something_broken_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, written: str | None, seconds: float
) -> None:
    """`[criteo] first_probe_s` says it in seconds; a minute where nothing is said."""
    monkeypatch.setattr(airflow_inside, "setting", lambda _section, _key: written or None)
    assert surroundings.first_probe_s() == seconds


@pytest.mark.parametrize(("written", "seconds"), [("", 900.0), ("120", 120.0)])
def test_how_soon_an_idle_connection_is_looked_at(
    monkeypatch: pytest.MonkeyPatch, written: str, seconds: float
) -> None:
    """`[criteo] idle_check` says it in seconds; a quarter of an hour where nothing is said."""
    monkeypatch.setenv("AIRFLOW__CRITEO__IDLE_CHECK", written)
    assert surroundings.idle_check_s() == seconds


@pytest.mark.parametrize("written", ["0", "-1", "3600", "soon", "nan"])
def test_a_probe_setting_that_makes_no_sense_is_refused(monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    """A number that would hammer Criteo or never try again is told with its key."""
    monkeypatch.setattr(airflow_inside, "setting", lambda _section, _key: written)
    with pytest.raises(Misconfigured, match=r"\[criteo\] first_probe_s"):
        surroundings.first_probe_s()
