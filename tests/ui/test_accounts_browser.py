"""The page Accounts as people use it: a real browser, a real Airflow behind a path, and the sandbox's consent page.

Airflow is at localhost and the sandbox at 127.0.0.1, which are two sites: cookies are tried as in the wild.
SHOTS=folder keeps pictures of what was seen.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from collections.abc import Callable, Iterator

import httpx
import pytest
from playwright.sync_api import Browser, FrameLocator, Page, expect

from criteo_provider.sandbox.running import Sandbox, running_sandbox
from tests.flow.shop import sync, write_canvas
from tests.ui import scene
from tests.ui.test_browser import AIRFLOW, PATIENCE_MS, READY_WITHIN_S, _running, _wait, browser, keep_picture
from tests.ui.test_browser import pytestmark as pytestmark

__all__ = ["browser"]
USERS = {"ada": "admin", "bob": "admin", "val": "viewer"}
CONNECTION = "criteo_default"
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with running_sandbox(limit=60_000) as running:
        yield running


@pytest.fixture(scope="module")
def airflow(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an empty Airflow, with one canvas that needs two ad accounts."""
    home = tmp_path_factory.mktemp("airflow")
    write_canvas(home / "include", "vip", sync("add", "Shoppers"), sync("elsewhere", "Others", ad_account="1002"))
    (home / "passwords.json").write_text(json.dumps({name: name for name in USERS}))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://localhost:{port}/airflow"
    settings = {
        "core__simple_auth_manager_users": ",".join(f"{name}:{role}" for name, role in USERS.items()),
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
    sandbox.application(redirect_uris=[f"{address}/audience-sync/oauth/callback"], limit=60_000)
    subprocess.run([AIRFLOW, "db", "migrate"], env=env, check=True, capture_output=True, timeout=READY_WITHIN_S)
    log = home / "api.log"
    with _running(["api-server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"], env, log):
        _wait(f"{address}/api/v2/monitor/health", log)
        yield address
    said = log.read_text()
    assert "oauth/callback" in said
    secrets = [sandbox.client_secret, *sandbox.world.refresh_tokens, *sandbox.world.tokens]
    assert [one for one in secrets if one in said] == []
    assert re.search(r"[?&](code|state)=(?!\*|%2A)", said) is None


@pytest.fixture
def sign_in(browser: Browser, airflow: str) -> Iterator[Open]:
    """Open the page Accounts in Airflow's frame as somebody; at the end the console must hold no error."""
    complaints: list[str] = []
    contexts = []

    def make(name: str = "ada", theme: str = "light") -> Page:
        context = browser.new_context(viewport={"width": 1360, "height": 900}, reduced_motion="reduce")
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        answer = context.request.post(f"{airflow}/auth/token", data={"username": name, "password": name})
        cookie = {"name": "_token", "value": answer.json()["access_token"], "url": f"{airflow}/", "sameSite": "Lax"}
        context.add_cookies([cookie])  # type: ignore[list-item]
        context.add_init_script(f"localStorage.setItem('theme', '{theme}')")
        page = context.new_page()
        ours = lambda said: said.type == "error" and said.location["url"].startswith(airflow)  # noqa: E731
        page.on("console", lambda said: complaints.append(said.text) if ours(said) else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"{airflow}/plugin/audience_sync")
        framed(page).get_by_role("link", name="Accounts").click()
        expect(framed(page).get_by_role("heading", name="Accounts", exact=True)).to_be_visible()
        return page

    yield make
    for context in contexts:
        context.close()
    assert complaints == []


def framed(page: Page) -> FrameLocator:
    return page.frame_locator("iframe[title='Audiences']")


def be_quick(airflow: str) -> None:
    """Put Criteo's limit out of the way, as under Admin > Connections."""
    token = httpx.post(f"{airflow}/auth/token", json={"username": "ada", "password": "ada"}).json()["access_token"]
    extra = json.dumps({"grant_type": "authorization_code", "requests_per_minute": 60_000})
    body = {"connection_id": CONNECTION, "conn_type": "criteo", "extra": extra}
    address = f"{airflow}/api/v2/connections/{CONNECTION}"
    headers = {"Authorization": f"Bearer {token}"}
    assert httpx.patch(address, params={"update_mask": "extra"}, json=body, headers=headers).is_success


def consent(page: Page, *, only: str | None = None, cancel: bool = False) -> None:
    """Decide on Criteo's page, which fills the window."""
    expect(page.get_by_role("heading", name="Sandbox Criteo")).to_be_visible()
    if only:
        for box in page.get_by_role("checkbox").all():
            box.set_checked(box.get_attribute("value") == only)
    page.get_by_role("button", name="Cancel" if cancel else "Approve").click()
    expect(page).to_have_url(re.compile("/airflow/plugin/audience_sync"))


def row_of(page: Page, name: str) -> str:
    return framed(page).get_by_role("row", name=name).inner_text()


def test_the_first_ten_minutes(sign_in: Open, sandbox: Sandbox, airflow: str) -> None:
    """From no connection to two connected ad accounts: cancel, connect, choose, disconnect, reconnect, take over."""
    page = sign_in("ada")
    frame = framed(page)
    expect(frame.get_by_text("No Criteo connection yet")).to_be_hidden()  # the canvas names one already
    expect(frame.get_by_role("region", name=CONNECTION).first).to_contain_text("criteo_default")
    keep_picture(page, "accounts_empty")

    frame.get_by_role("button", name="Connect Criteo").click()
    dialog = frame.get_by_role("dialog", name="Connect Criteo")
    expect(dialog).to_contain_text(f"{airflow}/audience-sync/oauth/callback")
    expect(dialog.get_by_label("Connection id")).to_be_focused()
    dialog.get_by_label("Connection id").fill(CONNECTION)
    dialog.get_by_label("Client id").fill(sandbox.client_id)
    dialog.get_by_label("Client secret").fill(sandbox.client_secret)
    dialog.get_by_text("More").click()
    dialog.get_by_label("API base URL").fill(sandbox.url)
    keep_picture(page, "accounts_new")
    dialog.get_by_role("button", name="Go to Criteo").click()
    consent(page, cancel=True)
    expect(frame.get_by_role("status")).to_have_text("You cancelled at Criteo. Nothing was stored.")
    expect(frame.get_by_text("Nobody has given consent yet")).to_be_visible()
    keep_picture(page, "accounts_cancelled")
    be_quick(airflow)

    frame.get_by_role("button", name="Connect", exact=True).click()
    consent(page)
    dialog = frame.get_by_role("dialog", name="Choose ad accounts")
    expect(dialog.get_by_role("checkbox", name=re.compile("Example Shop DE"))).to_be_checked()
    expect(dialog).to_contain_text("used by vip / elsewhere")
    keep_picture(page, "accounts_choose")
    dialog.get_by_role("button", name="Use these").click()
    expect(frame.get_by_role("status")).to_have_text(f"{CONNECTION} works.")
    expect(frame.get_by_role("row", name="1001")).to_contain_text("Works")
    assert "Chosen by ada" in row_of(page, "1002")
    expect(frame.get_by_text("Connected by ada")).to_be_visible()
    keep_picture(page, "accounts_connected")

    frame.get_by_role("button", name="Disconnect Example Shop DE (1002)").click()
    dialog = frame.get_by_role("dialog", name="Disconnect Example Shop DE (1002)?")
    expect(dialog.get_by_role("listitem")).to_have_text(["vip / elsewhere"])
    keep_picture(page, "accounts_disconnect")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(frame.get_by_role("row", name="1002")).to_contain_text("Works")
    frame.get_by_role("button", name="Disconnect Example Shop DE (1002)").click()
    frame.get_by_role("dialog").get_by_role("button", name="Disconnect").click()
    expect(frame.get_by_role("row", name="1002")).to_contain_text("was disconnected by ada")
    keep_picture(page, "accounts_disconnected")
    frame.get_by_role("button", name="Reconnect Example Shop DE (1002)").click()
    expect(frame.get_by_role("row", name="1002")).to_contain_text("Works")

    other = sign_in("bob")
    theirs = framed(other)
    theirs.get_by_role("button", name="Reconnect", exact=True).click()
    consent(other, only="1001")
    dialog = theirs.get_by_role("dialog", name="Choose ad accounts")
    expect(dialog).to_contain_text("Another consent is in force")
    dialog.get_by_role("button", name="Use these").click()
    expect(theirs.get_by_text("The new consent does not reach everything")).to_be_visible()
    expect(
        theirs.get_by_text("Ad account 1002: the new consent does not cover it; used by vip / elsewhere.")
    ).to_be_visible()
    keep_picture(other, "accounts_handover")
    theirs.get_by_role("button", name="Keep the old consent").click()
    expect(theirs.get_by_text("The new consent does not reach everything")).to_be_hidden()
    expect(theirs.get_by_text("Connected by ada")).to_be_visible()
    theirs.get_by_role("button", name="Reconnect", exact=True).click()
    consent(other)
    theirs.get_by_role("dialog").get_by_role("button", name="Use these").click()
    expect(theirs.get_by_text("Connected by bob")).to_be_visible()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_who_may_only_read(sign_in: Open, theme: str) -> None:
    """A viewer sees every account in Airflow's colours and finds no button that changes anything; all has a name."""
    page = sign_in("val", theme)
    frame = framed(page)
    expect(frame.get_by_role("row", name="1001")).to_be_visible()
    buttons = [one for one in frame.get_by_role("button").all() if one.is_visible()]
    assert buttons == []
    inside = page.frames[1]
    assert inside.evaluate("document.documentElement.classList.contains('dark')") is (theme == "dark")
    colour = "getComputedStyle({}).backgroundColor"
    assert inside.evaluate(colour.format("document.body")) == page.evaluate(colour.format("document.documentElement"))
    unnamed = "[...document.querySelectorAll('section, [role=region]')].filter(it => !it.ariaLabel && !it.{}).length"
    assert inside.evaluate(unnamed.format("getAttribute('aria-labelledby')")) == 0
    keep_picture(page, f"accounts_viewer_{theme}")


def test_with_the_keyboard_alone(sign_in: Open) -> None:
    """Tab reaches every button in order, a dialog keeps the focus and gives it back, and Enter in it is its button."""
    page = sign_in("ada", "dark")
    frame = framed(page)
    start = frame.get_by_role("button", name="Connect Criteo")
    expect(start).to_be_visible()
    start.focus()
    page.keyboard.press("Enter")
    dialog = frame.get_by_role("dialog", name="Connect Criteo")
    expect(dialog).to_be_visible()
    for _ in range(12):
        page.keyboard.press("Tab")
        inside = "document.activeElement === document.body || !!document.activeElement.closest('dialog')"
        assert page.frames[1].evaluate(inside)
    keep_picture(page, "accounts_new_dark")
    dialog.get_by_role("button", name="Cancel").focus()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(start).to_be_focused()
    page.keyboard.press("Tab")
    assert page.frames[1].evaluate("document.activeElement.textContent") == "Check now"
    keep_picture(page, "accounts_connected_dark")
