"""From an empty Airflow to people at Criteo: on pages only, and by the commands of docs/tutorial.md only."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import httpx
import local_airflow
import pytest
from local_airflow import PROJECT, LocalAirflow
from playwright.sync_api import Browser, FrameLocator, Page, expect
from processes import Household

from criteo_provider.sandbox.running import Sandbox, running_sandbox
from tests.ui.test_browser import browser, keep_picture

__all__ = ["browser"]

PAGE = PROJECT / "docs" / "tutorial.md"
PLACE = ("A place to try it", "An Airflow, and a Criteo")
CANVAS, AUDIENCE = "high_value_targeting", "High-value customers"
WHO_BELONGS = (
    "SELECT count(*) FROM customers WHERE orders > 0 AND lifetime_value >= 500 AND ads_tracking_enabled = 1 "
    "AND do_not_sell_or_share = 0"
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def commands(*headings: str) -> list[str]:
    """What the sections under these headings of the page have a reader type, in its order."""
    sections = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]
    chosen = [section for section in sections if section.startswith(headings)]
    assert len(chosen) == len(headings)
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", "".join(chosen), re.MULTILINE | re.DOTALL)
    return [line for kind, block in blocks if not kind for line in block.splitlines()]


class Shell:
    """Somebody at a prompt, who types the commands of a section in their order."""

    def __init__(self, airflow: LocalAirflow, sandbox: Sandbox, place: Path, lines: list[str]) -> None:
        self._environment = {
            **airflow.environment,
            "TUTORIAL": str(place),
            "CRITEO": sandbox.url,
            "CLIENT_ID": sandbox.client_id,
            "CLIENT_SECRET": sandbox.client_secret,
        }
        self._lines = lines

    @property
    def is_done(self) -> bool:
        """Whether every command was typed."""
        return not self._lines

    def next(self, expected: str, returns: int = 0) -> str:
        """Type the next command, which begins with these words; return what it prints."""
        line = self._lines.pop(0)
        assert line.startswith(expected), line
        return self.type(line, returns)

    def consent(self, expected: str) -> str:
        """Type the next command, approve at the address it prints, and paste the one Criteo sends a person back to."""
        line = self._lines.pop(0)
        assert line == expected
        with self._start(line) as process:
            assert process.stdout is not None
            assert process.stdin is not None
            printed = ""
            while "Paste the whole address" not in printed:
                told = process.stdout.readline()
                assert told, printed
                printed += told
            address = re.search(r"^http\S+/request\?\S+$", printed, re.MULTILINE)
            assert address is not None, printed
            approved = httpx.post(address[0], data={"decision": "allow", "advertiser": "1001"}, timeout=30)
            said, _ = process.communicate(approved.headers["location"] + "\n", timeout=180)
        assert process.returncode == 0, said
        return said

    def numbers(self) -> dict[str, int]:
        """Ask for the numbers of the canvas's first step, as a script does."""
        said = self.type(f"airflow criteo status {CANVAS} --output json")
        row = json.loads(said[said.index("[") : said.rindex("]") + 1])[0]  # Airflow writes every value as text
        return {name: int(row[name]) for name in ("entered", "synced", "not_synced", "pending")}

    def type(self, line: str, returns: int = 0) -> str:
        """Type a command; return what it prints."""
        with self._start(line) as process:
            said, _ = process.communicate(timeout=180)
        assert process.returncode == returns, said
        return said

    def _start(self, line: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["/bin/bash", "-c", line], env=self._environment, text=True, cwd=PROJECT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip


@dataclass(frozen=True)
class Newcomer:
    """Somebody who has done the first two sections: a place, an empty Airflow, and the sandbox."""

    airflow: LocalAirflow
    sandbox: Sandbox
    place: Path

    @property
    def people(self) -> int:
        """How many of the shop are to enter the canvas."""
        with closing(sqlite3.connect(self.place / "shop.db")) as shop:
            return int(shop.execute(WHO_BELONGS).fetchone()[0])

    def shell(self, *headings: str) -> Shell:
        """Open a shell, to type what stands under these headings."""
        return Shell(self.airflow, self.sandbox, self.place, commands(*headings))


@pytest.fixture
def newcomer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Newcomer]:
    """The empty Airflow runs; everything is gone afterwards."""
    monkeypatch.setattr(local_airflow, "READY_WITHIN_S", 400.0)  # however busy this machine is
    place, logs = tmp_path / "tutorial", tmp_path / "logs"
    logs.mkdir()
    airflow = LocalAirflow(place / "airflow", place / "ledger.db", place / "include", usual_ports=False)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    try:
        with running_sandbox() as sandbox, Household(logs) as household:
            for number, handler in before.items():  # pytest's own; it ends the household
                signal.signal(number, handler)
            here = Newcomer(airflow, sandbox, place)
            shell = here.shell(*PLACE)
            for beginning in ("mkdir", "cp", "cp", "python include/example_data.py create"):
                shell.next(beginning)
            airflow.start(household)
            shell.next("airflow connections add example_shop")
            shell.next("curl")
            assert shell.is_done
            yield here
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_by_command_line_only(newcomer: Newcomer) -> None:
    """The commands of the tutorial, as they stand there, take a new user from nothing to people who are Synced."""
    shell = newcomer.shell("On a command line\n")
    shell.next("airflow connections add criteo_default")
    assert "Nobody has connected" in in_one_line(shell.next("airflow criteo preflight", returns=1))
    assert "1001" in shell.consent("airflow criteo accounts connect")
    assert "Connection criteo_default uses 1001." in shell.next("airflow criteo accounts choose")
    shell.next("airflow criteo accounts check")
    assert "nothing to mend" in in_one_line(shell.next("airflow criteo preflight"))
    shell.next("airflow dags unpause criteo_audience_sync")
    shell.next("airflow dags unpause criteo_audience_retry")
    deadline = time.monotonic() + 300
    while (numbers := shell.numbers())["entered"] != newcomer.people or numbers["pending"]:
        assert time.monotonic() < deadline, numbers
        time.sleep(2)
    assert numbers["synced"] > numbers["not_synced"] > 0
    assert CANVAS in shell.next("airflow criteo status")
    assert "1001" in shell.next("airflow criteo accounts list")
    assert AUDIENCE in in_one_line(shell.next("airflow criteo audiences list"))
    assert shell.is_done


def test_on_pages_only(newcomer: Newcomer, browser: Browser) -> None:
    """Signed in, both DAGs switched on, told what is missing, connected and an account chosen: people are Synced.

    Only the shop's connection is there before, as whoever deploys brings it along. A shell then sees what was made.
    """
    airflow, sandbox = newcomer.airflow, newcomer.sandbox
    page = browser.new_context(viewport={"width": 1360, "height": 900}, reduced_motion="reduce").new_page()
    page.goto(airflow.url)
    page.get_by_label("Username").fill(airflow.user)
    page.get_by_label("Password").fill(airflow.password)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_test_id("main-content")).to_be_visible(timeout=60_000)
    for dag_id in ("criteo_audience_sync", "criteo_audience_retry"):
        _switch_on(page, airflow, dag_id)
    page.goto(f"{airflow.url}/plugin/audience_sync")
    frame = page.frame_locator("iframe[title='Audiences']")
    expect(frame.get_by_text("not launched").first).to_be_visible(timeout=120_000)
    keep_picture(page, "first_not_launched")
    _connect(page, frame, sandbox)
    frame.get_by_role("link", name="Audiences").click()
    row = frame.get_by_role("row", name=re.compile(AUDIENCE)).first
    expect(row).to_contain_text(re.compile(rf"\b{newcomer.people}\b"), timeout=180_000)
    shell = newcomer.shell()
    deadline = time.monotonic() + 180
    while (numbers := shell.numbers())["pending"]:
        assert time.monotonic() < deadline, row.inner_text()
        time.sleep(1)
    assert numbers["synced"] > 0
    assert any(one["name"] == AUDIENCE and one["size"] for one in sandbox.state()["segments"])
    assert not newcomer.airflow.ask("GET", "/dags/criteo_audience_sync")["is_paused"]
    keep_picture(page, "first_synced")
    assert "1001" in shell.type("airflow criteo accounts list")
    assert "nothing to mend" in in_one_line(shell.type(f"airflow criteo preflight {CANVAS}"))


def in_one_line(table: str) -> str:
    """The words of a table, whose cells are folded."""
    return re.sub(r"[\s|]+", " ", table)


def _switch_on(page: Page, airflow: LocalAirflow, dag_id: str) -> None:
    """Use the switch in the head of a DAG's page."""
    page.goto(f"{airflow.url}/dags/{dag_id}")
    switch = page.locator("[data-scope=switch][data-part=control]").first
    expect(switch).to_be_visible(timeout=60_000)
    switch.click()
    expect(switch).to_have_attribute("data-state", "checked", timeout=20_000)


def _connect(page: Page, frame: FrameLocator, sandbox: Sandbox) -> None:
    """Connect Criteo on the Accounts page, approve at Criteo, and choose an ad account."""
    frame.get_by_role("link", name="Accounts").click()
    frame.get_by_role("button", name="Connect Criteo").click()
    dialog = frame.get_by_role("dialog", name="Connect Criteo")
    dialog.get_by_label("Connection id").fill("criteo_default")
    dialog.get_by_label("Client id").fill(sandbox.client_id)
    dialog.get_by_label("Client secret").fill(sandbox.client_secret)
    dialog.get_by_text("More").click()
    dialog.get_by_label("API base URL").fill(sandbox.url)
    dialog.get_by_role("button", name="Go to Criteo").click()
    expect(page.get_by_role("heading", name="Sandbox Criteo")).to_be_visible(timeout=30_000)
    page.get_by_role("button", name="Approve").click()
    dialog = frame.get_by_role("dialog", name="Choose ad accounts")
    expect(dialog.get_by_role("checkbox").first).to_be_visible(timeout=60_000)
    dialog.get_by_role("button", name="Use these").click()
    expect(frame.get_by_role("status")).to_have_text("criteo_default works.", timeout=90_000)
    keep_picture(page, "first_connected")
