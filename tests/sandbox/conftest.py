"""A fresh sandbox for each test, and somebody to call it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from criteo_provider.sandbox.running import Sandbox, running_sandbox
from tests.sandbox.caller import Caller


@pytest.fixture(scope="module")
def shared_sandbox() -> Iterator[Sandbox]:
    """One server for all tests of a module: starting and stopping takes longer than most of them."""
    with running_sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(shared_sandbox: Sandbox) -> Sandbox:
    """A sandbox that was just started, as far as anybody can tell."""
    shared_sandbox.reset()
    return shared_sandbox


@pytest.fixture
def caller(sandbox: Sandbox) -> Iterator[Caller]:
    """A caller that has a token."""
    with Caller(sandbox) as caller:
        yield caller.sign_in()
