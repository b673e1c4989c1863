"""The flow tier: the whole house but Airflow, against the sandbox."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from criteo_provider.sandbox.running import Sandbox, running_sandbox
from tests.flow.shop import Shop


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """A sandbox whose limit is out of the way."""
    with running_sandbox(limit=60_000) as sandbox:
        yield sandbox


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    """An empty shop."""
    return Shop(tmp_path / "shop.db")


@pytest.fixture
def include(tmp_path: Path) -> Path:
    """An include folder without canvases."""
    return tmp_path / "include"
