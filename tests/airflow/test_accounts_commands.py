"""`airflow criteo accounts` as a shell sees it: from no consent to connected, and what scripts read of it."""

from __future__ import annotations

import getpass
import io
import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from airflow.models import Log
from airflow.models import connection as metadata
from airflow.utils.session import create_session
from sqlalchemy import select

from criteo_provider.sandbox.running import Sandbox
from tests.airflow.command_line import Airflow, airflow, include, metadata_database
from tests.airflow.test_findings import sandbox

__all__ = ["airflow", "include", "metadata_database", "sandbox"]
BACK = "https://airflow.example.com/audience-sync/oauth/callback"
Consent = Callable[..., tuple[int, str]]


@pytest.fixture
def person(airflow: Airflow, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Consent:
    """Run `accounts connect` as a person who approves these ad accounts at Criteo, or cancels without any."""
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example.com")
    sandbox.application(redirect_uris=[BACK])
    extra = json.dumps({"grant_type": "authorization_code", "requests_per_minute": 60_000})
    with create_session() as session:
        session.query(metadata.Connection).filter_by(conn_id="criteo_default").one().set_extra(extra)

    def connect(*advertisers: str, tamper: str = "") -> tuple[int, str]:
        class Prompt(io.StringIO):
            def readline(self, *_: Any) -> str:
                address = re.search(r"^http\S+/request\?\S+$", printed.getvalue(), re.MULTILINE)
                assert address is not None
                decision = [("decision", "allow" if advertisers else "deny")]
                body = urlencode([("advertiser", one) for one in advertisers] + decision)
                form = {"Content-Type": "application/x-www-form-urlencoded"}
                back = httpx.post(address[0], content=body, headers=form).headers["location"]
                assert back.startswith(BACK)
                return back + tamper + "\n"

        printed = io.StringIO()
        with monkeypatch.context() as here:
            here.setattr("sys.stdin", Prompt())
            here.setattr("builtins.print", _printing_to(printed))
            code, said = airflow("accounts", "connect")
        return code, printed.getvalue() + said

    return connect


def _printing_to(printed: io.StringIO) -> Callable[..., None]:
    real = print

    def both(*words: Any, **more: Any) -> None:
        real(*words, **{**more, "file": printed})

    return both


def rows(airflow: Airflow, *words: str) -> list[dict[str, str]]:
    code, said = airflow("accounts", "list", "--output", "json", *words)
    assert code == 0, said
    return list(json.loads(said))


def test_from_nothing_to_connected(airflow: Airflow, person: Consent, sandbox: Sandbox) -> None:
    """Consent is given at the printed address; the pasted one brings it back; then ad accounts are chosen by id."""
    assert [(row["state"], row["canvases_may_use_it"]) for row in rows(airflow)] == [("unchosen", "no")]
    code, said = person("1001", "1002")
    assert code == 0, said
    assert "1001  Example Shop" in said
    assert "airflow criteo accounts choose --conn-id criteo_default 1001" in said
    code, said = airflow("accounts", "choose", "1001", "1002")
    assert code == 0, said
    listed = rows(airflow)
    assert {row["ad_account"]: row["state"] for row in listed} == {"1001": "ok", "1002": "ok"}
    assert {row["connected_by"] for row in listed} == {getpass.getuser()}
    assert all(row[when].endswith(" UTC") for row in listed for when in ("connected", "last_check"))
    code, said = airflow("accounts", "choose", "1002")
    assert code == 0, said
    assert "Ad account 1001 is disconnected. These steps stop, their people stay pending: example / add." in said
    airflow("accounts", "choose", "1001", "1002")
    code, said = airflow("accounts", "disconnect", "1001")
    assert code == 0
    assert "their people stay pending: example / add" in said
    assert [row["state"] for row in rows(airflow, "--conn-id", "criteo_default")] == ["disconnected", "ok"]
    assert airflow("accounts", "check")[0] == 0
    with create_session() as session:
        events = session.scalars(select(Log.event).where(Log.event.like("criteo.%")).order_by(Log.id)).all()
        chosen = ["criteo.accounts.choose"] * 3
        assert events[-5:] == ["criteo.consent.give", *chosen, "criteo.accounts.disconnect"]


def test_another_consent_is_tried_first(airflow: Airflow, person: Consent, sandbox: Sandbox) -> None:
    """A second consent says how far its check is, and when ad accounts in use are missing, exits with 1 and why."""
    person("1001", "1002")
    airflow("accounts", "choose", "1001")
    assert person("1001")[0] == 0
    code, said = airflow("accounts", "choose", "1001")
    assert code == 0, said
    assert "Trying every audience in use" in said
    assert person("1002")[0] == 0
    code, said = airflow("accounts", "choose", "1002")
    assert code == 1
    assert "Ad account 1001: the new consent does not cover it; used by example / add." in said
    assert said.endswith(
        "The old consent stays in force. Mend this and choose again, or drop the new one with "
        "`airflow criteo accounts keep-old --conn-id criteo_default`.\n"
    )


def test_the_old_consent_is_kept(airflow: Airflow, person: Consent) -> None:
    """A new consent whose check has failed is dropped by a command; where there is none, the exit code is 1."""
    assert airflow("accounts", "keep-old") == (1, "Connection criteo_default has no new consent to drop.\n")
    person("1001")
    said = "The new consent of connection criteo_default is dropped; nobody has connected it yet.\n"
    assert airflow("accounts", "keep-old") == (0, said)
    person("1001")
    airflow("accounts", "choose", "1001")
    person("1002")
    assert airflow("accounts", "choose", "1002")[0] == 1
    code, said = airflow("accounts", "use-anyway", "--conn-id", "criteo_default")
    assert (code, "the consent in force still works" in said) == (1, True)
    said = f"The new consent of connection criteo_default is dropped; that of {getpass.getuser()} stays in force.\n"
    assert airflow("accounts", "keep-old", "--conn-id", "criteo_default") == (0, said)
    assert {row["ad_account"]: row["state"] for row in rows(airflow)}["1001"] == "ok"
    assert airflow("accounts", "keep-old")[0] == 1
    assert airflow("accounts", "choose", "1001")[0] == 0
    with create_session() as session:
        events = session.scalars(select(Log.event).where(Log.event.like("criteo.%")).order_by(Log.id)).all()
        assert events[-2:] == ["criteo.consent.discard", "criteo.accounts.choose"]


def test_a_dead_consent_is_replaced_anyway(airflow: Airflow, person: Consent, sandbox: Sandbox) -> None:
    """Where Criteo does not honour the old consent, one that reaches less is put in force by a command."""
    person("1001", "1002")
    airflow("accounts", "choose", "1001", "1002")
    sandbox.throw("refresh-token-dead")
    assert airflow("accounts", "check")[0] == 1
    person("1002")
    code, said = airflow("accounts", "choose", "1002")
    assert code == 1
    assert "use the new one with `airflow criteo accounts use-anyway --conn-id criteo_default`" in said
    code, said = airflow("accounts", "use-anyway")
    assert (code, said.startswith("The new consent of connection criteo_default is in force, for 1002. ")) == (0, True)
    assert {row["ad_account"]: row["state"] for row in rows(airflow)} == {"1001": "invalid", "1002": "ok"}
    assert airflow("accounts", "use-anyway") == (1, "Connection criteo_default has no failed check of a new consent.\n")


def test_cancelled(airflow: Airflow, person: Consent) -> None:
    """Who cancels at Criteo, or pastes an address that answers another request, is told; nothing is stored."""
    code, said = person()
    assert (code, "You cancelled at Criteo. Nothing was stored." in said) == (1, True)
    code, said = person("1001", tamper="&state=another")
    assert (code, "does not answer this request" in said) == (1, True)
    assert [row["state"] for row in rows(airflow)] == ["unchosen"]


def test_client_credentials_need_no_person(airflow: Airflow) -> None:
    """A connection of an application on its own is not connected, and the sentence says why."""
    code, said = airflow("accounts", "connect")
    assert (code, "uses client credentials" in said) == (1, True)
    assert airflow("accounts", "choose", "1001")[0] == 0
    code, said = airflow("accounts", "choose", "4711")
    assert (code, "no consent covers 4711" in said) == (1, True)
