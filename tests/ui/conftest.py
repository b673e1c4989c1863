"""The UI tier: our pages inside Airflow's real API application, and who may see them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.routing import Mount
from starlette.testclient import TestClient

from criteo_provider.ui.onlooker import Onlooker
from criteo_provider.wiring import CriteoConnection, House, Surroundings
from tests.ui import scene

PREFIX = "/audience-sync"
Client = Callable[..., TestClient]


@pytest.fixture(scope="session")
def airflow_app() -> FastAPI:
    """Airflow's own API application with our plugin in it, as `airflow api-server` makes it."""
    os.environ.setdefault("AIRFLOW__API__SECRET_KEY", "x" * 32)
    os.environ.setdefault("AIRFLOW__API_AUTH__JWT_SECRET", "y" * 64)
    from airflow.api_fastapi.app import create_app
    from airflow.utils.db import initdb

    initdb()
    return create_app(apps="core")


@pytest.fixture
def pages(airflow_app: FastAPI) -> FastAPI:
    """Our app, found where Airflow has mounted it."""
    return next(route.app for route in airflow_app.routes if isinstance(route, Mount) and route.path == PREFIX)


@pytest.fixture
def include(tmp_path: Path) -> Path:
    """The include folder of the scene."""
    return scene.make_include_folder(tmp_path / "include")


@pytest.fixture
def surroundings(tmp_path: Path, include: Path) -> Surroundings:
    """Where the house of the scene stands; its ledger is made by ``ledger``."""
    connection = CriteoConnection("client", "secret", "http://criteo.example.com")
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    return Surroundings(include, url, lambda _: connection, lambda _: None, cipher=None)  # type: ignore[arg-type, return-value]


@pytest.fixture
def ledger(surroundings: Surroundings) -> str:
    """The URL of the scene's ledger."""
    scene.make_ledger(surroundings.ledger_url, surroundings.include_folder)
    return surroundings.ledger_url


@pytest.fixture
def client(airflow_app: FastAPI, pages: FastAPI, surroundings: Surroundings) -> Iterator[Client]:
    """Make a client that is signed in in a role, or nobody at all; the pages look at the scene."""
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

    usual = pages.state.onlooker
    pages.state.onlooker = onlooker = Onlooker(lambda: House(surroundings))

    def make(role: str | None = None, **headers: Any) -> TestClient:
        if role:
            user = SimpleAuthManagerUser(username=role, role=role)
            headers["Authorization"] = f"Bearer {get_auth_manager().generate_jwt(user)}"
        return TestClient(airflow_app, follow_redirects=False, headers=headers)

    yield make
    onlooker.close()
    pages.state.onlooker = usual
