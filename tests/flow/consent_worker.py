"""A process that speaks for a connection, told by its parent what to do; it may be killed at a chosen moment.

Its clocks are ahead by what stands in a file, so that a whole hour passes in seconds, here as at the sandbox.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

from criteo_provider.core.errors import CriteoSyncError
from criteo_provider.criteo_api import auth, grants
from criteo_provider.criteo_api.client import CriteoClient
from criteo_provider.sandbox.state import CLIENT_ID, CLIENT_SECRET
from criteo_provider.store.clock import DatabaseClock
from criteo_provider.store.consent_tokens import ConsentTokens
from criteo_provider.wiring import CriteoConnection, House, Surroundings
from tests.flow.shop import Sealer

CONN = "criteo_default"
STAGES = ("before the call", "before the commit", "after the commit")


def sleep_for_ever(mark: Path) -> NoReturn:
    """Say that the moment has come, and wait for the end."""
    mark.touch()
    while True:
        time.sleep(60)


def stall(stage: str, mark: Path) -> None:
    """Make the next exchange stop at a stage of it, so that the kill hits exactly there."""
    finish: Callable[..., Any] = ConsentTokens.finish_renewal

    def stop(*_: Any, **__: Any) -> NoReturn:
        sleep_for_ever(mark)

    def finish_and_stop(*given: Any, **more: Any) -> NoReturn:
        finish(*given, **more)
        sleep_for_ever(mark)

    match stage:
        case "before the call":
            auth.fetch = stop
        case "before the commit":
            ConsentTokens.finish_renewal = stop  # type: ignore[method-assign]
        case "after the commit":
            ConsentTokens.finish_renewal = finish_and_stop  # type: ignore[method-assign]


def move_clocks(file: Path) -> None:
    """Let this process live as many seconds ahead as the file says."""
    ahead_s = lambda: float(file.read_text() or 0) if file.exists() else 0.0  # noqa: E731
    auth.time = SimpleNamespace(monotonic=lambda: time.monotonic() + ahead_s(), sleep=time.sleep)  # type: ignore[assignment]
    real_now_us = DatabaseClock.now_us
    DatabaseClock.now_us = lambda self: real_now_us(self) + round(ahead_s() * 1e6)  # type: ignore[method-assign]


def call(clients: list[CriteoClient]) -> list[str]:
    """Make one call with each client at the same time; return how each ended."""

    def ask(client: CriteoClient) -> str:
        try:
            client.application()
        except CriteoSyncError as error:
            return str(getattr(error, "code", type(error).__name__))
        return "ok"

    with ThreadPoolExecutor(len(clients)) as threads:
        return list(threads.map(ask, clients))


def main() -> None:
    """Answer each line of the input with a line of JSON."""
    task = json.loads(sys.argv[1])
    auth.LEASE_S = task["lease_s"]
    grants.TOKEN_PATIENCE = grants.Patience(connect_s=5, read_s=30, write_s=5, pool_s=5, deadline_s=30)
    move_clocks(Path(task["ahead"]))
    connection = CriteoConnection(
        CLIENT_ID, CLIENT_SECRET, task["criteo"], requests_per_minute=60_000, grant_type=task["grant_type"]
    )
    around = Surroundings(
        Path(task["include"]),
        task["ledger"],
        lambda _: connection,
        None,
        Sealer(task["key"].encode()),  # type: ignore[arg-type]
    )
    house = House(around)
    clients = [house.criteo.open(CONN)[1] for _ in range(task["clients"])]
    print(json.dumps(os.getpid()), flush=True)
    for line in sys.stdin:
        verb, _, rest = line.strip().partition(" ")
        if verb == "stall":
            stall(rest, Path(task["mark"]))
            print(json.dumps("ready"), flush=True)
        else:
            print(json.dumps(call(clients)), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
