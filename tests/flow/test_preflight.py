"""Preflight and checks: what is said of audiences that are gone, of permissions, choices and opt-out feeds; a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import update

from criteo_provider.criteo_api.client import CriteoClient
from criteo_provider.sandbox.running import Sandbox
from criteo_provider.store.engine import writing
from criteo_provider.store.launches import KnownAudience, Launches
from criteo_provider.store.schema import audience
from criteo_provider.wiring import House
from tests.conftest import PROJECT
from tests.flow.shop import AD_ACCOUNT, Person, Sealer, Shop, open_house, sync, write_canvas
from tests.flow.test_house import drain, numbers, size
from tests.flow.test_launch import last_call, with_policy

CONN = "criteo_default"


@pytest.fixture
def open_vip(ledger_url: str, sandbox: Sandbox, shop: Shop, include: Path) -> Callable[[], House]:
    """Open a house with ten people in the shop."""
    shop.add(Person(number) for number in range(1, 11))
    cipher = Sealer()
    return lambda: open_house(include, ledger_url, sandbox.url, shop.source, cipher=cipher)


def codes(house: House, canvas_id: str | None = None) -> list[str]:
    return [one.code for report in house.preflight.reports(canvas_id) for one in report.findings]


@pytest.mark.parametrize("policy", ["wait", "recreate", "fail"])
def test_an_audience_that_is_gone_is_told(
    open_vip: Callable[[], House], sandbox: Sandbox, include: Path, policy: str
) -> None:
    """A launched canvas whose audience was deleted at Criteo is not promised a new one, unless its step says so."""
    write_canvas(include, "vip", with_policy(sync("add", "Shoppers"), policy))
    with closing(open_vip()) as house:
        drain(house)
        (old,) = [str(one["id"]) for one in sandbox.state()["segments"]]
        sandbox.delete_segment(old)
        (report,) = house.preflight.reports("vip")
    if policy == "recreate":
        assert report.findings == ()
        assert "made anew" in report.targets[0].state
    else:
        assert [one.code for one in report.findings] == ["audience-gone"]
        assert f"(Criteo id {old}) is not at Criteo any more; its people are" in report.findings[0].what
        assert report.targets == ()


def test_an_audience_made_after_the_listing_is_not_called_gone(
    open_vip: Callable[[], House], sandbox: Sandbox, include: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Canvases launched side by side share one listing; what one of them has made since is there for the others."""
    write_canvas(include, "vip", sync("add", "Shoppers"))
    with closing(open_vip()) as house:
        drain(house)
    listing = CriteoClient.listing
    stale = lambda client, ad_account: replace(listing(client, ad_account), audiences=())  # noqa: E731
    monkeypatch.setattr(CriteoClient, "listing", stale)
    with closing(open_vip()) as house:
        (report,) = house.preflight.reports("vip")
    assert report.findings == ()
    assert report.targets[0].criteo_id == str(sandbox.state()["segments"][0]["id"])


def test_an_audience_made_during_the_check_is_not_called_gone(
    open_vip: Callable[[], House], sandbox: Sandbox, include: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another launch makes known between two looks at the ledger is no audience Criteo has lost."""
    write_canvas(include, "vip", sync("add", "Shoppers"))
    with closing(open_vip()) as house:
        drain(house)
    listing, audiences, asked = CriteoClient.listing, Launches.audiences, Counter[str]()

    def as_of_then(launches: Launches, canvas_id: str) -> list[KnownAudience]:
        asked[canvas_id] += 1
        known = audiences(launches, canvas_id)
        return [replace(one, criteo_id=None) for one in known] if asked[canvas_id] == 1 else known

    stale = lambda client, ad_account: replace(listing(client, ad_account), audiences=())  # noqa: E731
    monkeypatch.setattr(CriteoClient, "listing", stale)
    monkeypatch.setattr(Launches, "audiences", as_of_then)
    with closing(open_vip()) as house:
        (report,) = house.preflight.reports("vip")
    assert asked["vip"]
    assert report.findings == ()


def test_a_permission_that_only_reads_is_found_before_anybody_is_sent(
    open_vip: Callable[[], House], sandbox: Sandbox, shop: Shop, include: Path
) -> None:
    """Where a list exists nobody is removed from it and the finding says Manage; where none does nothing is tried."""
    write_canvas(include, "vip", sync("add", "Shoppers"))
    sandbox.throw("read-only-application")
    with closing(open_vip()) as house:
        before = last_call(sandbox)
        assert codes(house) == []
        assert "amend" not in {one["operation"] for one in sandbox.requests(before)}
    there = sandbox.add_segment(AD_ACCOUNT, "Shoppers")
    with closing(open_vip()) as house:
        (report,) = house.preflight.reports()
        assert [one.code for one in report.findings] == ["read-only-permission"]
        assert "set the Audiences permission to Manage" in report.findings[0].mend
    sandbox.take_back("read-only-application")
    with closing(open_vip()) as house:
        drain(house)
        people = numbers(house)["add"][1]
        held = size(sandbox, "Shoppers")
        assert codes(house) == []
    assert people > 0
    assert held == size(sandbox, "Shoppers") == sandbox.size(there)


def test_nobody_is_told_to_disconnect_what_nobody_has_connected(open_vip: Callable[[], House], include: Path) -> None:
    """A connection without a consent is mended by connecting."""
    write_canvas(include, "vip", sync("add", "Shoppers"))
    with closing(open_vip()) as house:
        connection = replace(house.around.criteo(CONN), grant_type="authorization_code")
        around = replace(house.around, criteo=lambda _name: connection)
    with closing(House(around)) as house:
        (report,) = house.preflight.reports("vip")
    (finding,) = report.findings
    assert finding.code == "not-consented"
    assert "Connect Criteo" in finding.mend
    assert "isconnect" not in str(finding)


def test_a_check_looks_at_the_ad_accounts_people_have_chosen(
    open_vip: Callable[[], House], sandbox: Sandbox, include: Path
) -> None:
    """The Test button speaks of chosen ad accounts, of allowed ones nobody decided about, and of no disconnected."""
    write_canvas(include, "vip", sync("add", "Shoppers"))
    with closing(open_vip()) as house:
        connection = replace(house.around.criteo(CONN), allowed_ad_accounts=("1001",))
        around = replace(house.around, criteo=lambda _name: connection)
    with closing(House(around)) as house:
        assert house.accounts.served(CONN) == ["1001"]
        house.accounts.choose(CONN, {"1002": "Example Shop DE"}, by="ada")
        assert house.accounts.served(CONN) == ["1002", "1001"]
        assert house.accounts.check(CONN).ok
        house.accounts.disconnect(CONN, "1001", by="ada")
        said = house.check_access(CONN)
        assert said.ok
        assert "1002" in said.sentence
        assert "(1001)" not in said.sentence
        sandbox.application(advertisers=["1001"])
        assert house.check_access(CONN).code == "ad-account-not-consented"


def test_opt_out_feeds_are_looked_at(open_vip: Callable[[], House], include: Path) -> None:
    """A feed's file that is wrong and a feed that cannot be read are failures, beside canvases that are fine."""
    write_canvas(include, "vip", sync("add", "Shoppers"))
    (include / "opt_outs").mkdir()
    (include / "opt_outs" / "wrong.yaml").write_text("name: Wrong\nowner: privacy-team\ncanvases: all\n")
    (include / "segments" / "nowhere.sql").write_text("SELECT serial, person FROM nowhere")
    (include / "opt_outs" / "register.yaml").write_text(
        "name: Register\nowner: privacy-team\nuser_key: person\ncanvases: all\n"
        "source: {sql: {connection: shop, query: segments/nowhere.sql, cursor: [serial], late_commit: 1s}}\n"
    )
    with closing(open_vip()) as house:
        found = {report.canvas_id: {one.code for one in report.findings} for report in house.preflight.reports()}
        assert found == {"vip": set(), "opt_outs/wrong": {"opt-out-file"}, "opt_outs/register": {"opt-outs-unreadable"}}
        assert "opt-outs-unreadable" in codes(house, "vip")


@pytest.mark.slow
def test_killed_between_criteos_creation_and_our_commit(
    open_vip: Callable[[], House], ledger_url: str, sandbox: Sandbox, shop: Shop, include: Path, tmp_path: Path
) -> None:
    """A launching process that dies right after Criteo made the audience: one audience, launched, people in it."""
    write_canvas(include, "vip", sync("add", "Shoppers"))
    with closing(open_vip()) as house:
        house.declare()
        key = house.around.cipher.key.decode()  # type: ignore[union-attr]
    mark = tmp_path / "created"
    task = {"mark": str(mark), "shop": str(shop.path), "key": key, "include": str(include), "ledger": ledger_url,
            "criteo": sandbox.url}  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": f"{PROJECT / 'plugins'}{os.pathsep}{PROJECT}"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.flow.launch_worker", json.dumps(task)], env=environment, cwd=PROJECT
    )
    try:
        deadline = time.monotonic() + 90
        while not mark.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        assert process.wait(20) == -signal.SIGKILL
    with closing(open_vip()) as house:
        assert house.launch.unlaunched() == {"vip"}
        with writing(house.ledger.engine) as connection:  # two minutes later
            connection.execute(update(audience).values(resolver_until_us=0))
        drain(house)
        assert house.launch.unlaunched() == set()
        assert numbers(house)["add"][1] > 0
        assert house.prove() == []
    assert [one["name"] for one in sandbox.state()["segments"]] == ["Shoppers"]
    assert (size(sandbox, "Shoppers") or 0) > 0
