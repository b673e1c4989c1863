"""The page Accounts to test: who signs in, the way to Criteo and back, and what is shown and written down."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest
from airflow.models import Log
from airflow.models import connection as metadata
from airflow.utils.session import create_session
from cryptography.fernet import Fernet
from fastapi import FastAPI
from sqlalchemy import select
from starlette.testclient import TestClient

from criteo_provider.sandbox.running import Sandbox, running_sandbox
from tests.ui.conftest import PREFIX

BASE = "http://airflow.example.com/data"
BACK = f"{BASE}{PREFIX}/oauth/callback"
HOME = f"/data{PREFIX}"
CONNECTION = "criteo_default"
ROLES = ("viewer", "user", "op", "admin")
READS = [("GET", "/accounts"), ("GET", "/api/accounts")]
WRITES = [
    ("POST", "/api/connections"),
    ("POST", f"/api/connections/{CONNECTION}/check"),
    ("GET", f"/api/connections/{CONNECTION}/offer"),
    ("POST", f"/api/connections/{CONNECTION}/choice"),
    ("POST", f"/api/connections/{CONNECTION}/handover"),
    ("POST", f"/api/connections/{CONNECTION}/handover/anyway"),
    ("DELETE", f"/api/connections/{CONNECTION}/handover"),
    ("PUT", f"/api/connections/{CONNECTION}/accounts/1001"),
    ("DELETE", f"/api/connections/{CONNECTION}/accounts/1001"),
    ("GET", f"/oauth/start/{CONNECTION}"),
]
BODIES: dict[str, dict[str, Any]] = {
    "/api/connections": {"connection_id": "", "client_id": "a", "client_secret": "b"},
    f"/api/connections/{CONNECTION}/choice": {"ad_accounts": []},
}
SignIn = Callable[..., TestClient]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with running_sandbox(limit=60_000) as running:
        running.application(redirect_uris=[BACK], limit=60_000)
        yield running


@pytest.fixture
def sign_in(
    airflow_app: FastAPI, sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SignIn]:
    """Make a client that is signed in in a role, or nobody; with ``cookie`` as a browser is."""
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "server")
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", Fernet.generate_key().decode())
    monkeypatch.setenv("AIRFLOW__CRITEO__LEDGER_PATH", str(tmp_path / "ledger.db"))
    monkeypatch.setenv("AIRFLOW__CRITEO__INCLUDE_FOLDER", str(tmp_path / "include"))
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", BASE)
    forget_keys()
    with create_session() as session:
        session.query(metadata.Connection).delete()
        session.query(Log).delete()

    def make(role: str | None = None, *, name: str | None = None, cookie: bool = False, **headers: str) -> TestClient:
        client = TestClient(airflow_app, follow_redirects=False, headers=headers, base_url="http://airflow.example.com")
        if role:
            token = get_auth_manager().generate_jwt(SimpleAuthManagerUser(username=name or role, role=role))
            if cookie:
                client.cookies.set("_token", token)
            else:
                client.headers["Authorization"] = f"Bearer {token}"
        return client

    yield make
    forget_keys()


def forget_keys() -> None:
    """Both halves of Airflow remember the Fernet key of their first use."""
    from airflow.models.crypto import get_fernet as of_core
    from airflow.sdk.crypto import get_fernet as of_tasks

    of_core.cache_clear()
    of_tasks.cache_clear()


def ask(client: TestClient, method: str, path: str) -> httpx.Response:
    """Make a call as a page of ours would."""
    return client.request(method, f"{PREFIX}{path}", json=BODIES.get(path))


def create(client: TestClient, sandbox: Sandbox, conn_id: str = CONNECTION, **more: str) -> httpx.Response:
    """Make a connection on the page."""
    fields = {"connection_id": conn_id, "client_id": sandbox.client_id, "client_secret": sandbox.client_secret}
    answer = client.post(f"{PREFIX}/api/connections", json={**fields, "base_url": sandbox.url, **more})
    if answer.is_success:  # a limit out of the way, as a person would set it under Admin > Connections
        with create_session() as session:
            made = session.query(metadata.Connection).filter_by(conn_id=conn_id).one()
            assert made.extra_dejson == {"grant_type": "authorization_code"}
            made.set_extra(json.dumps({**made.extra_dejson, "requests_per_minute": 60_000}))
    return answer


def go_to_criteo(client: TestClient, conn_id: str = CONNECTION) -> str:
    """Press Connect; return the address of the consent page, keeping the cookie where the browser would."""
    answer = client.get(f"{PREFIX}/oauth/start/{conn_id}")
    assert answer.status_code == 302, answer.text
    name, _, rest = answer.headers["set-cookie"].partition("=")
    client.cookies.set(name, rest.split(";")[0])
    return answer.headers["location"]


def consent(address: str, *advertisers: str) -> str:
    """Approve on Criteo's page, or cancel where no advertiser is ticked; return where Criteo sends the browser."""
    pairs = [("advertiser", one) for one in advertisers] + [("decision", "allow" if advertisers else "deny")]
    body = urlencode(pairs)
    answer = httpx.post(address, content=body, headers={"Content-Type": "application/x-www-form-urlencoded"})
    assert answer.status_code == 302, answer.text
    return answer.headers["location"]


def come_back(client: TestClient, address: str) -> httpx.Response:
    """Follow Criteo's redirect (the proxy keeps the prefix in front of Airflow; this client needs none)."""
    parts = urlsplit(address)
    return client.get(f"{parts.path.removeprefix('/data')}?{parts.query}", headers={"Accept": "text/html"})


def connect(client: TestClient, sandbox: Sandbox, *advertisers: str) -> None:
    """From nothing to a consent that waits for ad accounts to be chosen."""
    create(client, sandbox)
    answer = come_back(client, consent(go_to_criteo(client), *advertisers))
    assert parse_qs(urlsplit(answer.headers["location"]).query)["returned"] == ["consented"]


def choose(client: TestClient, *ad_accounts: str) -> httpx.Response:
    return client.post(f"{PREFIX}/api/connections/{CONNECTION}/choice", json={"ad_accounts": list(ad_accounts)})


def shown(client: TestClient) -> dict[str, Any]:
    """The only connection on the page."""
    (one,) = client.get(f"{PREFIX}/api/accounts").json()["connections"]
    return dict(one)


def audit() -> list[tuple[str, str, Any]]:
    with create_session() as session:
        rows = session.scalars(select(Log).where(Log.event.like("criteo.%")).order_by(Log.id)).all()
        return [(row.event, row.owner, json.loads(row.extra)) for row in rows]
