"""What tasks under test reach: a sandbox Criteo, an example shop, and a chat that takes messages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from criteo_provider.sandbox.running import Sandbox, running_sandbox
from tests.flow.shop import Shop
from tests.webhook import Webhook, running_webhook


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with running_sandbox(limit=60_000) as running:
        yield running


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path / "shop.db")


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    with running_webhook() as server:
        monkeypatch.setenv("AIRFLOW_CONN_CHAT", f"http://127.0.0.1:{server.server_port}")
        yield server
