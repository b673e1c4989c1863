"""The page Audiences as people see it: in a real browser, inside the frame of a real Airflow.

Needs Chromium (`chromium` on the PATH, or CHROMIUM=/path/to/it). SHOTS=folder keeps pictures of what was seen.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, FrameLocator, Page, expect, sync_playwright

from tests.ui import scene

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or ""
# However busy this machine is with the rest of the suite.
READY_WITHIN_S, PATIENCE_MS = 400, 60_000
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed"),
]
AIRFLOW = Path(sys.executable).with_name("airflow")
Login = Callable[..., Page]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the scene: its ledger, its include folder, and what this Airflow writes."""
    home = tmp_path_factory.mktemp("airflow")
    include = scene.make_include_folder(home / "include")
    scene.make_ledger(f"sqlite:///{home / 'ledger.db'}", include)
    (home / "passwords.json").write_text('{"viewer": "viewer"}')
    return home


@pytest.fixture(scope="module")
def airflow(home: Path) -> Iterator[str]:
    """The address of an Airflow API server, behind a path as many are, with our plugin in it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}/airflow"
    settings = {
        "core__simple_auth_manager_users": "viewer:viewer",
        "core__simple_auth_manager_passwords_file": str(home / "passwords.json"),
        "core__load_examples": "False",
        "core__plugins_folder": str(scene.EXAMPLES.parent / "plugins"),
        "database__sql_alchemy_conn": f"sqlite:///{home / 'airflow.db'}",
        "api__base_url": address,
        "api__secret_key": "s" * 32,
        "api_auth__jwt_secret": "j" * 64,
        "criteo__ledger_path": str(home / "ledger.db"),
        "criteo__include_folder": str(home / "include"),
    }
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW_", "_AIRFLOW"))}
    env |= {"AIRFLOW_HOME": str(home), **{f"AIRFLOW__{name.upper()}": value for name, value in settings.items()}}
    subprocess.run([AIRFLOW, "db", "migrate"], env=env, check=True, capture_output=True, timeout=READY_WITHIN_S)
    with _running(["api-server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"], env, home / "api.log"):
        _wait(f"{address}/api/v2/monitor/health", home / "api.log")
        yield address


@contextmanager
def _running(arguments: list[str], env: dict[str, str], log: Path) -> Iterator[None]:
    with log.open("w") as out:
        server = subprocess.Popen([AIRFLOW, *arguments], env=env, stdout=out, stderr=out, start_new_session=True)
        try:
            yield
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()


def _wait(url: str, log: Path) -> None:
    end_s = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < end_s:
        try:
            if httpx.get(url, timeout=2).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.3)
    pytest.fail(f"The API server did not answer within {READY_WITHIN_S} s: {log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, which takes everything it shows from this machine, and may be slow beside the other tests."""
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def login(browser: Browser, airflow: str) -> Iterator[Login]:
    """Open a page of Airflow as a viewer; at the end the console must hold no error."""
    complaints: list[str] = []
    contexts = []

    def make(theme: str = "light", *, trouble_expected: bool = False) -> Page:
        context = browser.new_context(viewport={"width": 1440, "height": 1000})
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        answer = context.request.post(f"{airflow}/auth/token", data={"username": "viewer", "password": "viewer"})
        cookie = {"name": "_token", "value": answer.json()["access_token"], "url": f"{airflow}/", "httpOnly": True}
        context.add_cookies([cookie])  # type: ignore[list-item]
        context.add_init_script(f"localStorage.setItem('theme', '{theme}')")
        page = context.new_page()
        if not trouble_expected:
            page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
            page.on("pageerror", lambda error: complaints.append(str(error)))
        return page

    yield make
    for context in contexts:
        context.close()
    assert complaints == []


def framed(page: Page, airflow: str) -> FrameLocator:
    """Open our page where people find it, and return what is in Airflow's frame."""
    page.goto(f"{airflow}/plugin/audience_sync")
    frame = page.frame_locator("iframe[title='Audiences']")
    expect(frame.get_by_role("row", name="add_vip")).to_be_visible()
    return frame


def keep_picture(page: Page, name: str) -> None:
    if folder := os.environ.get("SHOTS"):
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


@pytest.mark.parametrize(("theme", "dark"), [("light", False), ("dark", True)])
def test_inside_airflow(login: Login, airflow: str, theme: str, dark: bool) -> None:
    """Airflow's navigation leads to the page, and the page has Airflow's colours, light and dark."""
    page = login(theme)
    frame = framed(page, airflow)
    expect(page.get_by_role("link", name="Audiences")).to_be_visible()
    expect(frame.get_by_role("status")).to_have_text("3 things to mend.")
    host, ours = "document.documentElement", "document.body"
    colour = "getComputedStyle({}).backgroundColor"
    assert page.frames[1].evaluate(colour.format(ours)) == page.evaluate(colour.format(host))
    assert page.frames[1].evaluate("document.documentElement.classList.contains('dark')") is dark
    keep_picture(page, f"audiences_{theme}")


def test_everything_of_the_scene_is_told(login: Login, airflow: str) -> None:
    """Numbers, states, notes and problems are on the page in words; where there are no numbers there are no zeros."""
    page = login()
    frame = framed(page, airflow)
    row = frame.get_by_role("row", name="add_vip")
    assert row.get_by_role("cell").all_inner_texts()[:4] == [
        "waiting for Criteo to accept people",
        "1,255",
        "1,255",
        "49",
    ]
    assert "adds to High-value customers" in row.inner_text()
    assert "Criteo id 7001" in row.inner_text()
    assert "1,255 on their way" in frame.get_by_role("row", name="remove_vip").inner_text()
    assert scene.AMBIGUOUS in frame.get_by_role("row", name="add_quiet").inner_text()
    assert "12 people are held" in frame.get_by_role("row", name="add_winter").inner_text()
    assert frame.get_by_role("row", name="add_loyal").inner_text().count("–") == 7
    problems = frame.get_by_role("region", name="To mend").inner_text()
    assert "include/canvases/broken.yaml" in problems
    assert "steps[0].audience_sync.operation (step add_quiet)" in problems
    assert "Source of canvas Suppression" in problems
    assert scene.SOURCE_DOWN in problems


def test_nothing_comes_from_elsewhere(login: Login, airflow: str) -> None:
    """Our page asks no other server for anything."""
    page = login()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{airflow}/audience-sync/")
    expect(page.get_by_role("row", name="add_vip")).to_be_visible()
    assert {url for url in asked if not url.startswith(f"{airflow}/audience-sync/")} == set()
    assert len(asked) >= 4


def test_numbers_come_by_themselves(login: Login, airflow: str, home: Path) -> None:
    """New numbers appear while the reasons a person has opened stay open, and the keyboard stays where it was."""
    page = login()
    frame = framed(page, airflow)
    why = frame.get_by_role("button", name="Why are users of add_vip not synced?")
    why.focus()
    page.keyboard.press("Enter")
    reasons = frame.get_by_role("listitem").filter(has_text="user")
    expect(reasons).to_have_text(["5 users: no usable identifier: missing", "1 user: refused by Criteo"])
    keep_picture(page, "audiences_reasons")
    before = frame.get_by_role("row", name="add_vip").get_by_role("cell").nth(1).inner_text()
    scene.enter_more(f"sqlite:///{home / 'ledger.db'}", home / "include", 1_000)
    expect(frame.get_by_role("row", name="add_vip").get_by_role("cell").nth(1)).not_to_have_text(before)
    expect(reasons).to_have_count(2)
    expect(why).to_be_focused()


def test_definitions_on_focus_and_hover(login: Login, airflow: str) -> None:
    """Each number is explained when its name is hovered or focused, until Escape, and to screen readers always."""
    page = login()
    frame = framed(page, airflow)
    term = frame.get_by_role("button", name="Users Errored")
    expect(term).to_have_accessible_description(re.compile("given up because Criteo's API"))
    term.focus()
    expect(frame.get_by_role("tooltip")).to_contain_text("about 13 h")
    keep_picture(page, "audiences_definition")
    page.keyboard.press("Escape")
    expect(frame.get_by_role("tooltip")).to_be_hidden()
    frame.get_by_role("button", name="Users Not Synced").hover()
    expect(frame.get_by_role("tooltip")).to_contain_text("no usable identifier")
    for button in frame.locator("thead button").all():
        assert (
            len(button.evaluate("it => document.getElementById(it.getAttribute('aria-describedby')).textContent")) > 30
        )


def test_alone_in_a_window(login: Login, airflow: str) -> None:
    """The page works by its own address too, in the colours chosen in Airflow."""
    page = login("dark")
    page.goto(f"{airflow}/audience-sync/")
    expect(page.get_by_role("row", name="add_vip")).to_be_visible()
    assert page.evaluate("document.documentElement.classList.contains('dark')")
    page.get_by_role("button", name="Why are users of add_vip not synced?").click()
    page.get_by_text("What the numbers mean").click()
    keep_picture(page, "audiences_alone_dark")


def test_no_ledger_here(login: Login, airflow: str) -> None:
    """Where this API server has no ledger, the page says why instead of showing zeros."""
    page = login()
    why = "The ledger file was made on another host. Create the Airflow connection `criteo_ledger`."
    nothing = {"as_of": "2027-01-15T08:00:00Z", "problems": [], "canvases": [], "notes": [], "pace": []}
    page.route("**/api/steps", lambda route: route.fulfill(json={**nothing, "no_ledger": why, "refresh_s": 5}))
    page.goto(f"{airflow}/audience-sync/")
    expect(page.get_by_role("region", name="No ledger here")).to_contain_text(why)
    expect(page.get_by_role("status")).to_have_text("No numbers can be shown.")
    expect(page.get_by_role("table")).to_be_hidden()
    keep_picture(page, "no_ledger")


LONG = "A_name_without_any_space_that_somebody_has_pasted_from_a_spreadsheet_and_that_no_small_screen_can_hold"


def fits(page: Page) -> bool:
    """Whether nothing but a table, which scrolls by itself, is wider than the window."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def test_audiences_on_a_small_screen(login: Login, airflow: str) -> None:
    """Long names break, what a canvas has to say is as wide as the window, and the table scrolls by itself."""
    page = login("dark")
    page.set_viewport_size({"width": 400, "height": 900})
    page.goto(f"{airflow}/audience-sync/")
    expect(page.get_by_role("row", name="add_vip")).to_be_visible()
    assert fits(page)
    seen = page.request.get(f"{airflow}/audience-sync/api/steps").json()
    seen["problems"] = [{"where": LONG, "what": LONG, "mend": "", "points": [LONG], "since": None, "next_try": None}]
    said = {"notes": [LONG], "findings": [LONG], "told_above": 1, "checked": seen["as_of"]}
    seen["canvases"][0] |= {"name": LONG, **said}
    page.route("**/api/steps", lambda route: route.fulfill(json=seen))
    page.reload()
    expect(page.get_by_text("1 to mend, told above; 1 finding.")).to_be_visible()
    assert fits(page)
    assert page.get_by_role("heading", name="Audiences").bounding_box()["height"] < 40  # type: ignore[index]
    for name in ("name", "owner", "note", "checked", "findings"):
        said_at = page.locator(f".canvas [data-part={name}]").first.bounding_box()
        assert said_at is not None
        assert said_at["x"] + said_at["width"] <= 400, name
    keep_picture(page, "audiences_small")


def test_accounts_on_a_small_screen(login: Login, airflow: str) -> None:
    """A page of long names fits; a dead consent is not called in force, and who may only look is told whom to ask."""
    page = login()
    page.set_viewport_size({"width": 400, "height": 900})
    account = {
        "ad_account": "1001",
        "name": LONG,
        "usable": True,
        "state": "invalid",
        "sentence": "Revoked.",
        "by": "ada",
    }
    check = {"running": False, "done": 2, "total": 2, "failures": [LONG], "old_is_dead": True}
    connection = {
        "connection_id": LONG, "lives_in": None, "grant_type": "authorization_code", "state": "invalid",
        "sentence": "Press Reconnect.", "by": "ada", "at": "2027-01-15T08:00:00Z", "checked": None,
        "accounts": [{**account, "by": "ada", "at": "2027-01-15T08:00:00Z", "used_by": [LONG]}],
        "handover": check, "has_candidate": True,
    }  # fmt: skip
    book = {"connections": [connection], "may_write": False, "redirect_uri": None, "cannot_connect": None}
    page.route("**/api/accounts", lambda route: route.fulfill(json={**book, "no_ledger": None}))
    page.goto(f"{airflow}/audience-sync/accounts")
    old = "The new consent does not reach everything. The old one does not work any more."
    expect(page.get_by_role("heading", name=old)).to_be_visible()
    expect(page.get_by_text("To connect or reconnect, ask somebody")).to_be_visible()
    assert fits(page)
    keep_picture(page, "accounts_small")
    check["running"] = True
    page.reload()
    expect(page.get_by_role("progressbar", name="Audiences checked")).to_be_visible()


def test_a_session_that_ends(login: Login, airflow: str) -> None:
    """When the session ends the numbers stay, the page says so, and leads out of the frame to sign in."""
    page = login(trouble_expected=True)
    frame = framed(page, airflow)
    page.context.clear_cookies()
    expect(frame.get_by_role("status")).to_contain_text("session has ended")
    expect(frame.get_by_role("row", name="add_vip")).to_be_visible()
    keep_picture(page, "audiences_session_ended")
    frame.get_by_role("link", name="Sign in").click()
    page.wait_for_url(re.compile("/airflow/auth/login"))
    keep_picture(page, "sign_in")


def test_an_airflow_that_does_not_answer(login: Login, airflow: str) -> None:
    """While Airflow does not answer the last numbers stay, with a word about it; then they go on by themselves."""
    page = login(trouble_expected=True)
    frame = framed(page, airflow)
    page.context.set_offline(True)
    expect(frame.get_by_role("status")).to_contain_text("Airflow does not answer")
    keep_picture(page, "audiences_offline")
    page.context.set_offline(False)
    expect(frame.get_by_role("status")).to_have_text("3 things to mend.")
