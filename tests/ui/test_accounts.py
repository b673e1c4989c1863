"""The page Accounts inside Airflow's API application: the way to Criteo and back, and what is kept of it."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest
from airflow.models import connection as metadata
from airflow.utils.session import create_session
from starlette.testclient import TestClient

from criteo_provider.sandbox.running import Sandbox
from tests.ui.accounts_page import (
    BACK,
    CONNECTION,
    HOME,
    SignIn,
    audit,
    choose,
    come_back,
    connect,
    consent,
    create,
    forget_keys,
    go_to_criteo,
    sandbox,
    shown,
    sign_in,
)
from tests.ui.conftest import PREFIX

__all__ = ["sandbox", "sign_in"]


def test_from_nothing_to_two_ad_accounts(sign_in: SignIn, sandbox: Sandbox, tmp_path: Path) -> None:
    """A new user makes a connection, consents, chooses two ad accounts, and sees who did it when, checked and well."""
    admin = sign_in("admin", name="ada")
    page = admin.get(f"{PREFIX}/api/accounts").json()
    assert (page["connections"], page["redirect_uri"], page["cannot_connect"]) == ([], BACK, None)
    answer = create(admin, sandbox)
    assert (answer.status_code, answer.json()) == (201, {"start": f"{HOME}/oauth/start/{CONNECTION}"})
    with create_session() as session:
        made = session.query(metadata.Connection).one()
        assert (made.conn_type, made.is_encrypted, made.is_extra_encrypted) == ("criteo", True, True)
    address = go_to_criteo(admin)
    asked = dict(parse_qsl(urlsplit(address).query))
    assert address.startswith(f"{sandbox.url}/request?")
    assert (asked["redirect_uri"], asked["code_challenge_method"]) == (BACK, "S256")
    answer = come_back(admin, consent(address, "1001", "1002"))
    assert answer.status_code == 303
    inside = f"/data/plugin/audience_sync{HOME}/accounts?connection={CONNECTION}&returned=consented"
    assert answer.headers["location"] == inside
    assert shown(admin)["has_candidate"]
    offer = admin.get(f"{PREFIX}/api/connections/{CONNECTION}/offer").json()
    assert [(one["ad_account"], one["chosen"]) for one in offer["ad_accounts"]] == [("1001", False), ("1002", False)]
    assert choose(admin, "1001", "1002").json() == {"done": True}
    assert shown(admin)["state"] == "unchecked"
    assert admin.post(f"{PREFIX}/api/connections/{CONNECTION}/check").json()["ok"]
    row = shown(admin)
    assert (row["state"], row["by"], row["grant_type"], row["lives_in"]) == (
        "ok", "ada", "authorization_code", "database",
    )  # fmt: skip
    assert row["at"]
    assert row["checked"]
    assert [(one["ad_account"], one["state"], one["by"]) for one in row["accounts"]] == [
        ("1001", "ok", "ada"),
        ("1002", "ok", "ada"),
    ]
    both = {"connection_id": CONNECTION, "ad_accounts": ["1001", "1002"]}
    assert audit() == [
        ("criteo.connection.create", "ada", {"connection_id": CONNECTION}),
        ("criteo.consent.give", "ada", {"connection_id": CONNECTION}),
        ("criteo.accounts.choose", "ada", both),
    ]
    assert sandbox.client_secret not in str(audit())
    ledger = b"".join(file.read_bytes() for file in tmp_path.glob("ledger.db*"))
    assert len(sandbox.world.refresh_tokens) > 0
    assert not [value for value in sandbox.world.refresh_tokens if value.encode() in ledger]


def test_the_cookie_of_the_way(sign_in: SignIn, sandbox: Sandbox) -> None:
    """What was asked is kept by the browser, unreadable, for ten minutes, for the way back only."""
    admin = sign_in("admin")
    create(admin, sandbox)
    answer = admin.get(f"{PREFIX}/oauth/start/{CONNECTION}")
    cookie = answer.headers["set-cookie"]
    assert all(one in cookie for one in ("HttpOnly", "SameSite=lax", "Max-Age=600", f"Path={HOME}/oauth"))
    asked = dict(parse_qsl(urlsplit(answer.headers["location"]).query))
    assert asked["state"] not in cookie
    assert answer.headers["referrer-policy"] == "no-referrer"


def test_cancelled_consent_stores_nothing(sign_in: SignIn, sandbox: Sandbox) -> None:
    """Somebody who cancels at Criteo is told so; there is no consent, and no audit row that says there is."""
    admin = sign_in("admin")
    create(admin, sandbox)
    answer = come_back(admin, consent(go_to_criteo(admin)))
    assert answer.headers["location"].endswith(f"/accounts?connection={CONNECTION}&returned=cancelled")
    assert (shown(admin)["state"], shown(admin)["has_candidate"]) == ("unconnected", False)
    assert [event for event, *_ in audit()] == ["criteo.connection.create"]


def test_only_who_went_may_come_back(sign_in: SignIn, sandbox: Sandbox) -> None:
    """Without the cookie, with a forged one, another state, another user, or too late, nothing is stored."""
    admin = sign_in("admin", name="ada")
    create(admin, sandbox)
    address = go_to_criteo(admin)
    back = consent(address, "1001")
    cookie = next(one for one in admin.cookies.jar if one.name.startswith("criteo_consent_"))

    def refused(client: TestClient, where: str = back) -> bool:
        answer = come_back(client, where)
        return answer.status_code == 400 and "nothing was stored" in answer.text

    assert refused(sign_in("admin", name="ada"))
    assert refused(sign_in("admin", name="ada", Cookie=f"{cookie.name}=forged"))
    assert refused(admin, re.sub("state=[^&]+", "state=another", back))
    assert refused(sign_in("admin", name="bob", Cookie=f"{cookie.name}={cookie.value}"))
    assert come_back(sign_in("viewer", name="ada", Cookie=f"{cookie.name}={cookie.value}"), back).status_code == 403
    assert come_back(sign_in(Cookie=f"{cookie.name}={cookie.value}"), back).status_code == 401
    assert not shown(admin)["has_candidate"]
    with pytest.MonkeyPatch.context() as later:
        too_late_s = time.time() + 700
        later.setattr(time, "time", lambda: too_late_s)
        assert refused(sign_in("admin", name="ada", Cookie=f"{cookie.name}={cookie.value}"))
    assert come_back(admin, back).status_code == 303
    assert shown(admin)["has_candidate"]
    # The code is spent: a replay changes nothing.
    client = sign_in("admin", name="ada", Cookie=f"{cookie.name}={cookie.value}")
    assert "returned=refused" in come_back(client, back).headers["location"]


def test_the_access_log_keeps_code_and_state_to_itself(
    sign_in: SignIn, sandbox: Sandbox, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever comes back, however it ends: the access log shows neither code nor state."""
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.WARNING, "httpx")  # the browser of this test, and Criteo's page, say what they ask
    admin = sign_in("admin")
    create(admin, sandbox)
    back = consent(go_to_criteo(admin), "1001")
    values = dict(parse_qsl(urlsplit(back).query))
    assert len(values["code"]) > 10
    for client in (admin, sign_in(), sign_in("viewer")):
        come_back(client, back)
    said = "".join(capfd.readouterr()) + caplog.text
    assert "oauth/callback" in said
    assert not [one for one in (values["code"], values["state"], sandbox.client_secret) if one in said]


def test_a_connection_elsewhere_can_be_connected_but_not_written(
    sign_in: SignIn, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection of the environment is listed as such, is not overwritten, and goes through the same consent."""
    value = {
        "conn_type": "criteo", "login": sandbox.client_id, "password": sandbox.client_secret, "host": sandbox.url,
        "extra": {"grant_type": "authorization_code"},
    }  # fmt: skip
    monkeypatch.setenv("AIRFLOW_CONN_CRITEO_DEFAULT", json.dumps(value))
    admin = sign_in("admin")
    answer = create(admin, sandbox)
    assert answer.status_code == 409
    assert "There is an Airflow connection 'criteo_default' already" in answer.json()["detail"]
    assert come_back(admin, consent(go_to_criteo(admin), "1001")).status_code == 303
    assert choose(admin, "1001").json() == {"done": True}
    assert (shown(admin)["by"], shown(admin)["lives_in"]) == ("admin", "environment")


def test_client_credentials_are_listed_too(sign_in: SignIn, sandbox: Sandbox) -> None:
    """A connection of an application on its own can be checked, and its ad accounts disconnected and reconnected."""
    with create_session() as session:
        made = metadata.Connection(
            conn_id=CONNECTION, conn_type="criteo", host=sandbox.url, login=sandbox.client_id,
            password=sandbox.client_secret,
        )  # fmt: skip
        session.add(made)
    admin = sign_in("admin", name="ada")
    assert shown(admin)["state"] == "unchecked"
    assert admin.post(f"{PREFIX}/api/connections/{CONNECTION}/check").json()["ok"]
    row = shown(admin)
    assert (row["grant_type"], row["state"]) == ("client_credentials", "ok")
    assert [(one["ad_account"], one["state"]) for one in row["accounts"]] == [("1001", "ok"), ("1002", "ok")]
    assert "authorization_code under Admin" in admin.get(f"{PREFIX}/oauth/start/{CONNECTION}").json()["detail"]
    one = f"{PREFIX}/api/connections/{CONNECTION}/accounts/1002"
    assert admin.delete(one).json() == {"done": True}
    assert [one["state"] for one in shown(admin)["accounts"]] == ["ok", "disconnected"]
    assert admin.put(one).json() == {"done": True}
    assert [one["state"] for one in shown(admin)["accounts"]] == ["ok", "ok"]
    named = {"connection_id": CONNECTION, "ad_accounts": ["1002"]}
    assert audit() == [("criteo.accounts.disconnect", "ada", named), ("criteo.accounts.choose", "ada", named)]


def test_another_person_takes_over(sign_in: SignIn, sandbox: Sandbox) -> None:
    """A second consent is checked in the background while the page watches; with nothing in the way it takes over."""
    admin = sign_in("admin", name="ada")
    connect(admin, sandbox, "1001", "1002")
    choose(admin, "1001")
    bob = sign_in("admin", name="bob")
    come_back(bob, consent(go_to_criteo(bob), "1001"))
    assert shown(bob)["by"] == "ada"
    assert choose(bob, "1001").json() == {"done": False}
    deadline = time.monotonic() + 60
    while shown(bob)["by"] != "bob":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert (shown(bob)["handover"], shown(bob)["state"]) == (None, "ok")


def test_no_secret_without_a_fernet_key(sign_in: SignIn, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Airflow would write secrets in plain text nothing is written, and page and refusal name the setting."""
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", "")
    forget_keys()
    admin = sign_in("admin")
    assert "fernet_key" in admin.get(f"{PREFIX}/api/accounts").json()["cannot_connect"]
    answer = create(admin, sandbox)
    assert (answer.status_code, "fernet_key" in answer.json()["detail"]) == (409, True)
    with create_session() as session:
        assert session.query(metadata.Connection).count() == 0


def test_an_airflow_that_does_not_know_its_address(
    sign_in: SignIn, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `[api] base_url` nobody is sent to Criteo, whatever Host a request names; the page says which setting."""
    admin = sign_in("admin")
    create(admin, sandbox)
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "")
    page = admin.get(f"{PREFIX}/api/accounts").json()
    assert page["redirect_uri"] is None
    assert "[api] base_url" in page["cannot_connect"]
    assert admin.get(f"{PREFIX}/oauth/start/{CONNECTION}", headers={"Host": "evil.example.net"}).status_code == 409


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        ("connection_id", "a/b", "take letters, digits"),
        ("client_id", " ", "Client ID: is empty"),
        ("client_secret", "", "Client secret: is empty"),
        ("base_url", "http://api.example.com", "start it with https://"),
    ],
)
def test_what_is_wrong_with_a_new_connection(
    sign_in: SignIn, sandbox: Sandbox, field: str, value: str, what: str
) -> None:
    """A field that cannot be is told before anything is written, and the secret is not repeated."""
    answer = create(sign_in("admin"), sandbox, **{field: value}) if field != "connection_id" else create(
        sign_in("admin"), sandbox, value
    )  # fmt: skip
    assert (answer.status_code, what in answer.json()["detail"]) == (409, True), answer.text
    assert sandbox.client_secret not in answer.text
    with create_session() as session:
        assert session.query(metadata.Connection).count() == 0


def test_no_ledger_yet(sign_in: SignIn, sandbox: Sandbox, tmp_path: Path) -> None:
    """Looking at the page makes no ledger: an API server on another host than the workers must not have one."""
    create(sign_in("admin"), sandbox)
    page = sign_in("viewer").get(f"{PREFIX}/api/accounts").json()
    assert [one["connection_id"] for one in page["connections"]] == [CONNECTION]
    assert (page["may_write"], page["no_ledger"] is not None) == (False, True)
    assert not (tmp_path / "ledger.db").exists()
    assert os.environ["AIRFLOW__CRITEO__LEDGER_PATH"] == str(tmp_path / "ledger.db")
