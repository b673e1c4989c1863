"""Several processes with one consent: none loses it to another, and a kill loses it only where nothing could help."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from criteo_provider.core.errors import AccessLost
from criteo_provider.criteo_api.consent import new_request
from criteo_provider.sandbox.running import Sandbox, running_sandbox
from criteo_provider.sandbox.state import CLIENT_ID, CLIENT_SECRET
from criteo_provider.wiring import CriteoConnection, House, Surroundings
from tests.conftest import PROJECT
from tests.flow.consent_worker import CONN, STAGES
from tests.flow.shop import Sealer

REDIRECT = "https://airflow.example.com/criteo/callback"
STEP_S = 30.0
EARLIEST_S = 840.0  # one token call in 14 minutes


class Worker:
    """One process of ``consent_worker``."""

    def __init__(self, task: dict[str, Any]) -> None:
        environment = {**os.environ, "PYTHONPATH": f"{PROJECT / 'plugins'}{os.pathsep}{PROJECT}"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.flow.consent_worker", json.dumps(task)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=PROJECT,
        )  # fmt: skip

    def hear(self) -> Any:
        """Wait for its answer."""
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def tell(self, words: str) -> None:
        """Give it something to do."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{words}\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        """End it with SIGKILL, and see that this is how it ended."""
        self._process.send_signal(signal.SIGKILL)
        assert self._process.wait(20) == -signal.SIGKILL

    def close(self) -> None:
        """Let it end, if it still lives, and let go of its pipes."""
        try:
            self._process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


class Workshop:
    """A ledger, a sandbox, one consent, and processes that use it."""

    def __init__(self, ledger: str, sandbox: Sandbox, folder: Path, grant_type: str = "authorization_code") -> None:
        self.sandbox, self._sealer = sandbox, Sealer()
        self._ahead, self.mark = folder / "ahead", folder / "mark"
        self._task = {
            "ledger": ledger, "criteo": sandbox.url, "key": self._sealer.key.decode(), "include": str(folder),
            "ahead": str(self._ahead), "mark": str(self.mark), "grant_type": grant_type,
        }  # fmt: skip
        connection = CriteoConnection(
            CLIENT_ID,
            CLIENT_SECRET,
            sandbox.url,
            requests_per_minute=60_000,
            grant_type=grant_type,  # type: ignore[arg-type]
        )
        self.house = House(Surroundings(folder, ledger, lambda _: connection, None, self._sealer))  # type: ignore[arg-type]
        self.house.upgrade()

    def connect(self) -> None:
        """Let a person consent."""
        self.sandbox.application(redirect_uris=[REDIRECT])
        code = self.sandbox.new_code(REDIRECT, ["1001", "1002"])
        self.house.criteo.exchange(CONN, code, REDIRECT, new_request().verifier, "ada")
        self.house.criteo.consents.promote(CONN)

    @contextmanager
    def workers(self, number: int, *, clients: int = 1, lease_s: float = 45.0) -> Iterator[list[Worker]]:
        """Start processes that are ready to call."""
        started = [Worker({**self._task, "clients": clients, "lease_s": lease_s}) for _ in range(number)]
        try:
            for worker in started:
                worker.hear()
            yield started
        finally:
            for worker in started:
                worker.close()

    def pass_time(self, seconds: float, *, for_processes: bool = True) -> None:
        """Let time pass at the sandbox, and for the processes."""
        self.sandbox.advance(seconds)
        if for_processes:
            beside = self._ahead.with_suffix(".new")
            beside.write_text(str(self.ahead_s + seconds))
            beside.rename(self._ahead)

    @property
    def ahead_s(self) -> float:
        """How far the processes live ahead."""
        return float(self._ahead.read_text()) if self._ahead.exists() else 0.0

    def token_calls(self) -> list[float]:
        """When token calls arrived, in real seconds."""
        return [call["arrived_s"] for call in self.sandbox.requests() if call["operation"] == "token"]

    def state(self) -> str:
        """How the consent in force is."""
        told = self.house.criteo.consents.current(CONN)
        assert told is not None
        return told.state


def all_call(workers: list[Worker]) -> list[str]:
    """Let every client of every process call at the same time; return how each call ended."""
    for worker in workers:
        worker.tell("call")
    return [end for worker in workers for end in worker.hear()]


@pytest.mark.slow
@pytest.mark.parametrize("rotation", ["strict", "lenient"])
def test_a_kill_costs_the_consent_only_between_rotation_and_commit_and_only_under_strict_rotation(
    ledger_url: str, tmp_path: Path, rotation: str
) -> None:
    """SIGKILL before, in the middle of and after an exchange: but for the one admitted loss the next one goes on."""
    with running_sandbox(limit=60_000, limit_per_account=60_000, refresh_rotation=rotation) as sandbox:
        shop = Workshop(ledger_url, sandbox, tmp_path)
        with closing(shop.house):
            for stage in STAGES:
                shop.mark.unlink(missing_ok=True)
                shop.connect()
                with shop.workers(1, lease_s=1.0) as (victim,):
                    shop.pass_time(900, for_processes=False)
                    victim.tell(f"stall {stage}")
                    assert victim.hear() == "ready"
                    victim.tell("call")
                    give_up_s = time.monotonic() + 60
                    while not shop.mark.exists() and time.monotonic() < give_up_s:
                        time.sleep(0.02)
                    assert shop.mark.exists()
                    victim.kill()
                if rotation == "strict" and stage == "before the commit":
                    with pytest.raises(AccessLost, match="Reconnect on the Accounts page") as lost:
                        shop.house.ad_accounts(CONN)
                    assert (lost.value.code, shop.state()) == ("consent-lost", "dead")
                    continue
                assert len(shop.house.ad_accounts(CONN)) == 2
                shop.pass_time(900, for_processes=False)
                assert len(shop.house.ad_accounts(CONN)) == 2
                assert shop.state() == "ok"


@pytest.mark.slow
def test_many_processes_and_threads_renew_at_once_and_lose_nothing(ledger_url: str, tmp_path: Path) -> None:
    """Strict rotation; twelve clients of three processes find their token ended: one exchange, round after round."""
    with running_sandbox(limit=60_000, limit_per_account=60_000, refresh_rotation="strict") as sandbox:
        shop = Workshop(ledger_url, sandbox, tmp_path)
        with closing(shop.house):
            shop.connect()
            with shop.workers(3, clients=4) as workers:
                for round_ in range(6):
                    # Refused by Criteo in one round; found by the clock in the next.
                    shop.pass_time(900, for_processes=bool(round_ % 2))
                    assert all_call(workers) == ["ok"] * 12
                    assert len(shop.token_calls()) == 2 + round_
            assert shop.state() == "ok"
            assert len(shop.house.ad_accounts(CONN)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("grant_type", ["authorization_code", "client_credentials"])
def test_one_token_call_in_fourteen_minutes(ledger_url: str, tmp_path: Path, grant_type: str) -> None:
    """An hour of steady calls from four clients of two processes: never two token calls within 14 minutes."""
    with running_sandbox(limit=60_000, limit_per_account=60_000, refresh_rotation="strict") as sandbox:
        shop = Workshop(ledger_url, sandbox, tmp_path, grant_type)
        with closing(shop.house):
            if grant_type == "authorization_code":
                shop.connect()
            arrived_s: list[float] = []
            with shop.workers(2, clients=2) as workers:
                for _ in range(int(3600 / STEP_S)):
                    assert all_call(workers) == ["ok"] * 4
                    arrived_s += [at_s + shop.ahead_s for at_s in shop.token_calls()[len(arrived_s) :]]
                    shop.pass_time(STEP_S)
    gaps = [later - earlier for earlier, later in pairwise(arrived_s)]
    assert len(arrived_s) == 5
    assert min(gaps) >= EARLIEST_S - 1
