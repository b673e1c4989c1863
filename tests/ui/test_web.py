"""The pages inside Airflow's API application: who is let in, and what a browser is told."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from airflow.api_fastapi.core_api.security import get_user
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.routing import Mount

from criteo_provider.ui import plugin
from tests.ui.conftest import PREFIX, Client
from tests.world import digest

PAGE, DATA = f"{PREFIX}/", f"{PREFIX}/api/steps"
LOOK_AT_THE_PLUGIN = """
import sys
from criteo_provider.ui.plugin import CriteoPlugin
assert CriteoPlugin().name == "criteo_audience_sync"
print(sorted({"fastapi", "airflow.api_fastapi", "criteo_provider.ui.web", "criteo_provider.wiring"} & set(sys.modules)))
"""


def dependencies(needed: Any) -> Iterator[Any]:
    yield needed.call
    for each in needed.dependencies:
        yield from dependencies(each)


def test_every_route_wants_a_signed_in_user(pages: FastAPI) -> None:
    """No route of ours is open: each has Airflow's user among its dependencies, but for the static files."""
    static = [route for route in pages.routes if isinstance(route, Mount)]
    routes = [route for route in pages.routes if isinstance(route, APIRoute)]
    assert [route.path for route in static] == ["/static"]
    assert {"/", "/api/steps", "/accounts", "/api/accounts"} <= {route.path for route in routes}
    assert len(static) + len(routes) == len(pages.routes)
    assert [
        route.path for route in routes if get_user not in dependencies(route.dependant)
    ] == []  # codespell:ignore dependant


@pytest.mark.parametrize("path", [PAGE, DATA])
@pytest.mark.parametrize("headers", [{}, {"Cookie": "_token=garbage"}, {"Authorization": "Bearer garbage"}])
def test_nobody_sees_nothing(client: Client, path: str, headers: dict[str, str]) -> None:
    """Without a valid session every route answers 401."""
    assert client(**headers).get(path).status_code in {401, 403}
    assert client().get(path).status_code == 401


@pytest.mark.parametrize("role", ["viewer", "user", "op", "admin"])
@pytest.mark.usefixtures("ledger")
def test_every_signed_in_user_reads(client: Client, role: str) -> None:
    """Whoever may sign in may read, and nobody can write."""
    assert client(role).get(PAGE).status_code == 200
    assert client(role).get(DATA).json()["no_ledger"] is None
    assert client(role).post(DATA).status_code == 405


def test_a_browser_without_a_session_gets_a_page(client: Client) -> None:
    """A person whose session has ended is shown where to sign in, and comes back to the page."""
    answer = client(Accept="text/html").get(PAGE)
    assert answer.status_code == 401
    assert 'href="/api/v2/auth/login?next=%2Fplugin%2Faudience_sync"' in answer.text


@pytest.mark.parametrize("path", [PAGE, DATA, f"{PREFIX}/static/frame.js"])
def test_headers(client: Client, path: str) -> None:
    """Every answer forbids foreign frames and foreign content; data is not kept by the browser."""
    headers = client("viewer").get(path).headers
    assert "frame-ancestors 'self'" in headers["content-security-policy"]
    assert "default-src 'self'" in headers["content-security-policy"]
    assert (headers["x-frame-options"], headers["x-content-type-options"]) == ("SAMEORIGIN", "nosniff")
    assert headers["cache-control"] == ("no-cache" if "static" in path else "no-store")


def test_the_page_brings_everything_itself(client: Client) -> None:
    """Every address in the page is one of ours below the prefix, and there is no script or style in the page itself."""
    page = client("viewer").get(PAGE).text
    addresses = [part.split('"')[0] for key in ("src=", "href=", "data-from=") for part in page.split(f'{key}"')[1:]]
    assert len(addresses) >= 6
    assert [each for each in addresses if not each.startswith(("/audience-sync/", "/api/v2/auth/login"))] == []
    assert "<script>" not in page
    assert "style=" not in page


def test_nothing_describes_the_api_to_strangers(client: Client) -> None:
    """There is no public API description of the pages."""
    assert [client().get(f"{PREFIX}/{path}").status_code for path in ("docs", "redoc", "openapi.json")] == [404] * 3


@pytest.mark.usefixtures("ledger")
def test_how_often_people_are_sent_is_told(client: Client) -> None:
    """The page says of each connection how often its people are sent."""
    assert client("viewer").get(DATA).json()["pace"] == ["Connection criteo_default: flush every 5 s."]


@pytest.mark.usefixtures("ledger")
def test_no_identifier_and_no_user_key_is_shown(client: Client) -> None:
    """The data of the page holds counts and names of canvases, and nobody's key or identifier."""
    text = client("admin").get(DATA).text
    assert "High-value" in text
    assert "user-" not in text
    assert "@" not in text
    assert not [number for number in range(60) if digest(number).hex() in text]


def test_behind_a_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a path in `[api] base_url`, the navigation leads below that path."""
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://data.example.com/airflow/")
    view = plugin.CriteoPlugin().external_views[0]
    assert view["href"] == "/airflow/audience-sync/"
    assert view["icon"] == "/airflow/audience-sync/static/icon.svg"
    assert view["url_route"] == "audience_sync"


def test_the_plugin_costs_a_task_nothing() -> None:
    """A process that loads the plugin and asks for no page imports neither FastAPI nor our pages."""
    seen = subprocess.run([sys.executable, "-c", LOOK_AT_THE_PLUGIN], capture_output=True, text=True, check=False)
    assert seen.stdout.splitlines()[-1:] == ["[]"], seen.stderr
