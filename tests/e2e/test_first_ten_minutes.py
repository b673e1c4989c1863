"""From an empty Airflow to people at Criteo, by the commands of docs/tutorial.md and nothing else."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import local_airflow
import pytest
from local_airflow import LocalAirflow
from processes import Household

from criteo_provider.sandbox.running import Sandbox, running_sandbox
from tests.e2e.live import CANVAS
from tests.e2e.people import Shop

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
PEOPLE = 5

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Shell:
    """Somebody at a prompt, who types the commands of the page in their order."""

    def __init__(self, airflow: LocalAirflow, sandbox: Sandbox, shop: Shop) -> None:
        self._airflow, self._sandbox = airflow, sandbox
        blocks = re.findall(r"^```\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
        self._page = [line for block in blocks for line in block.splitlines()]
        self._values = {
            "$SHOP": str(shop.path),
            "$CRITEO": sandbox.url,
            "$CLIENT_ID": sandbox.client_id,
            "$CLIENT_SECRET": sandbox.client_secret,
        }

    @property
    def is_done(self) -> bool:
        """Whether every command of the page was typed."""
        return not self._page

    def next(self, *expected: str, returns: int = 0) -> str:
        """Type the next command of the page, which begins with these words; return what it prints."""
        line = self._page.pop(0)
        words = [self._values.get(word, word) for word in shlex.split(line)]
        assert words[1 : 1 + len(expected)] == list(expected), line
        with self._start(words) as process:
            said, _ = process.communicate(timeout=180)
        assert process.returncode == returns, said
        return said

    def consent(self, *expected: str) -> str:
        """Type the next command, approve at the address it prints, and paste the one Criteo sends a person back to."""
        words = shlex.split(self._page.pop(0))
        assert words[1:] == list(expected)
        with self._start(words) as process:
            assert process.stdout is not None
            assert process.stdin is not None
            printed = ""
            while "Paste the whole address" not in printed:
                line = process.stdout.readline()
                assert line, printed
                printed += line
            address = re.search(r"^http\S+/request\?\S+$", printed, re.MULTILINE)
            assert address is not None, printed
            approved = httpx.post(address[0], data={"decision": "allow", "advertiser": "1001"}, timeout=30)
            said, _ = process.communicate(approved.headers["location"] + "\n", timeout=180)
        assert process.returncode == 0, said
        return said

    def numbers(self) -> dict[str, int]:
        """Ask for the numbers of the canvas's step, as a script does."""
        words = ["airflow", "criteo", "status", "vip", "--output", "json"]
        with self._start(words) as process:
            said, _ = process.communicate(timeout=180)
        row = json.loads(said[said.index("[") :])[0]  # Airflow writes every value as text
        return {name: int(row[name]) for name in ("entered", "synced", "pending")}

    def _start(self, words: list[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            words, env=self._airflow.environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    """A prompt in an empty Airflow, which has a canvas and no connection, beside a shop and the sandbox."""
    monkeypatch.setattr(local_airflow, "READY_WITHIN_S", 400.0)  # however busy this machine is
    include, logs = tmp_path / "include", tmp_path / "logs"
    for folder in (include / "canvases", include / "segments", logs):
        folder.mkdir(parents=True)
    (include / "segments" / "vip.sql").write_text("SELECT * FROM customers")
    parts = {"name": "Vip", "canvas": "vip", "audience": "Shoppers", "ad_account": "1001"}
    (include / "canvases" / "vip.yaml").write_text(CANVAS.format(connection="criteo_default", **parts))
    shop = Shop(tmp_path / "shop.db")
    shop.add(PEOPLE)
    airflow = LocalAirflow(tmp_path / "airflow", tmp_path / "ledger.db", include)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    try:
        with running_sandbox() as sandbox, Household(logs) as household:
            for number, handler in before.items():  # pytest's own; it ends the household
                signal.signal(number, handler)
            sandbox.application(redirect_uris=[f"{airflow.url}/audience-sync/oauth/callback"])
            airflow.start(household)
            yield Shell(airflow, sandbox, shop)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_by_command_line_only(shell: Shell) -> None:
    """The commands of the tutorial, as they stand there, take a new user from nothing to people who are Synced."""
    shell.next("connections", "add", "shop")
    shell.next("connections", "add", "criteo_default")
    assert "Nobody has connected" in re.sub(r"[\s|]+", " ", shell.next("criteo", "preflight", returns=1))
    assert "1001" in shell.consent("criteo", "accounts", "connect")
    assert "Connection criteo_default uses 1001." in shell.next("criteo", "accounts", "choose")
    shell.next("criteo", "accounts", "check")
    assert "nothing to mend" in re.sub(r"[\s|]+", " ", shell.next("criteo", "preflight"))
    shell.next("dags", "unpause", "criteo_audience_sync")
    shell.next("dags", "unpause", "criteo_audience_retry")
    deadline = time.monotonic() + 300
    while shell.numbers()["synced"] != PEOPLE:
        assert time.monotonic() < deadline, shell.numbers()
        time.sleep(2)
    shell.next("criteo", "status")
    assert "1001" in shell.next("criteo", "accounts", "list")
    assert "Shoppers" in shell.next("criteo", "audiences", "list")
    assert shell.is_done
