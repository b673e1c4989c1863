"""From an empty Airflow to people at Criteo: on pages only, and by the commands of docs/tutorial.md only."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import local_airflow
import pytest
from local_airflow import LocalAirflow
from playwright.sync_api import Browser, FrameLocator, Page, expect
from processes import Household

from criteo_provider.sandbox.running import Sandbox, running_sandbox
from tests.e2e.live import CANVAS
from tests.e2e.people import Shop
from tests.ui.test_browser import browser, keep_picture

__all__ = ["browser"]

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

    def type(self, *words: str) -> str:
        """Type a command of one's own, which goes well; return what it prints."""
        with self._start(list(words)) as process:
            said, _ = process.communicate(timeout=180)
        assert process.returncode == 0, said
        return said

    def _start(self, words: list[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            words, env=self._airflow.environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip


@dataclass(frozen=True)
class Newcomer:
    """Somebody before an empty Airflow, which has a canvas and no connection, beside a shop and the sandbox."""

    airflow: LocalAirflow
    sandbox: Sandbox
    shop: Shop


@pytest.fixture
def newcomer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Newcomer]:
    """The empty Airflow runs; everything is gone afterwards."""
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
            yield Newcomer(airflow, sandbox, shop)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_by_command_line_only(newcomer: Newcomer) -> None:
    """The commands of the tutorial, as they stand there, take a new user from nothing to people who are Synced."""
    shell = Shell(newcomer.airflow, newcomer.sandbox, newcomer.shop)
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


def test_on_pages_only(newcomer: Newcomer, browser: Browser) -> None:
    """Signed in, both DAGs switched on, told what is missing, connected and an account chosen: people are Synced.

    Only the shop's connection is there before, as whoever deploys brings it along. A shell then sees what was made.
    """
    airflow, sandbox = newcomer.airflow, newcomer.sandbox
    airflow.connect("shop", conn_type="sqlite", host=str(newcomer.shop.path))
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
    expect(frame.get_by_text("Vip is not launched").or_(frame.get_by_text("not launched")).first).to_be_visible(
        timeout=120_000
    )
    keep_picture(page, "first_not_launched")
    _connect(page, frame, sandbox)
    frame.get_by_role("link", name="Audiences").click()
    row = frame.get_by_role("row", name=re.compile("Shoppers"))
    expect(row).to_contain_text(re.compile(rf"\b{PEOPLE}\b"), timeout=180_000)
    deadline = time.monotonic() + 180
    while newcomer.airflow.ask("GET", "/dags/criteo_audience_sync")["is_paused"] or not _synced(newcomer):
        assert time.monotonic() < deadline, row.inner_text()
        time.sleep(1)
    keep_picture(page, "first_synced")
    shell = Shell(airflow, sandbox, newcomer.shop)
    assert "1001" in shell.type("airflow", "criteo", "accounts", "list")
    assert "nothing to mend" in re.sub(r"[\s|]+", " ", shell.type("airflow", "criteo", "preflight", "vip"))


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


def _synced(newcomer: Newcomer) -> bool:
    """Whether Criteo has everybody of the shop."""
    ids = [str(one["id"]) for one in newcomer.sandbox.state()["segments"] if one["name"] == "Shoppers"]
    digests = [person.email_sha256 for person in newcomer.shop.people]
    return bool(ids) and all(newcomer.sandbox.is_member(ids[0], digests))
