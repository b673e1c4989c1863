"""Tokens: form-encoded, 900 s, errors in OAuth's own form; codes once, refresh tokens rotating."""

from __future__ import annotations

from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest

from criteo_provider.sandbox.routes_oauth import challenge_of
from criteo_provider.sandbox.running import Sandbox
from tests.sandbox.caller import SEGMENTS, Caller, code_of

REDIRECT = "https://airflow.example.com/criteo/callback"


def test_a_token_is_asked_for_by_form_and_lives_900_seconds(caller: Caller) -> None:
    """The answer has a null refresh token, type Bearer and 900 s; the awkward secret decodes rightly."""
    content = caller.ask_token().json()
    assert content.pop("access_token")
    assert content == {"token_type": "Bearer", "refresh_token": None, "expires_in": 900}


def test_a_secret_whose_signs_are_not_encoded_is_refused(caller: Caller) -> None:
    """A plus sent as it is means a blank, so the pair is wrong: the support case of every integrator."""
    body = f"client_id=sandbox-client&grant_type=client_credentials&client_secret={caller.sandbox.client_secret}"
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = caller.http.post("/oauth2/token", content=body.replace("&%", "%26%25"), headers=headers)
    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")


@pytest.mark.parametrize(
    ("form", "status", "error"),
    [
        ({"client_secret": "wrong"}, 401, "invalid_client"),
        ({"client_id": "nobody"}, 401, "invalid_client"),
        ({"grant_type": "password"}, 400, "unsupported_grant_type"),
        ({"grant_type": ""}, 400, "invalid_request"),
        ({"grant_type": "refresh_token", "refresh_token": "unknown"}, 400, "invalid_grant"),
        ({"grant_type": "authorization_code", "code": "unknown"}, 400, "invalid_grant"),
    ],
)
def test_wrong_token_calls_get_oauth_errors(caller: Caller, form: dict[str, str], status: int, error: str) -> None:
    """Errors of the token endpoint are `error` and `error_description`, never Criteo's envelope."""
    answer = caller.ask_token(**form)
    assert (answer.status_code, answer.json()["error"]) == (status, error)
    assert set(answer.json()) == {"error", "error_description"}


def test_only_a_form_is_taken(caller: Caller) -> None:
    """JSON, a field given twice, and credentials in a Basic header are refused."""
    form = {"client_id": "sandbox-client", "client_secret": caller.sandbox.client_secret}
    form["grant_type"] = "client_credentials"
    twice = "grant_type=client_credentials&" + urlencode(form)
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answers = [
        caller.http.post("/oauth2/token", json=form),
        caller.http.post("/oauth2/token", content=twice, headers=headers),
        caller.http.post("/oauth2/token", data={"grant_type": "client_credentials"}, auth=("sandbox-client", "any")),
    ]
    assert [(answer.status_code, answer.json()["error"]) for answer in answers] == [(400, "invalid_request")] * 3


def test_a_token_ends_and_a_second_does_not_end_the_first(caller: Caller) -> None:
    """At 900 s of the movable clock the call gets 401 expired; until then both tokens work."""
    caller.sandbox.advance(899)
    first = caller.token
    caller.sign_in()
    assert caller.http.get("/2026-07/advertisers/me", headers={"Authorization": f"Bearer {first}"}).is_success
    caller.sandbox.advance(1)
    stale = caller.http.get("/2026-07/advertisers/me", headers={"Authorization": f"Bearer {first}"})
    assert (stale.status_code, code_of(stale)) == (401, "authorization-token-expired")
    assert caller.call("GET", "/2026-07/advertisers/me").is_success


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "authorization-token-missing"),
        ({"Authorization": "Bearer garbage"}, "authorization-token-invalid"),
        ({"Authorization": "Basic Z2FyYmFnZQ=="}, "authorization-token-invalid"),
    ],
)
def test_no_token_or_garbage_is_401(caller: Caller, headers: dict[str, str], code: str) -> None:
    """A missing and a wrong token are told apart."""
    answer = caller.http.get("/2026-07/marketing-solutions/me", headers=headers)
    assert (answer.status_code, code_of(answer)) == (401, code)


def consent_url(**more: str) -> str:
    asked = {"response_type": "code", "client_id": "sandbox-client", "redirect_uri": REDIRECT, "state": "s1"}
    return "/request?" + urlencode({**asked, **more})


def decide(caller: Caller, url: str, **form: object) -> dict[str, list[str]]:
    answer = caller.http.post(url, data=form)
    assert answer.status_code == 302
    assert answer.headers["location"].startswith(REDIRECT)
    return parse_qs(urlsplit(answer.headers["location"]).query)


@pytest.fixture
def consenting(caller: Caller) -> Caller:
    """A caller whose application declared a redirect URI."""
    caller.sandbox.application(redirect_uris=[REDIRECT])
    return caller


def test_the_consent_page_leads_to_a_token_for_the_chosen_advertisers(consenting: Caller) -> None:
    """Approve, come back with code and state, exchange under PKCE: the token sees the chosen advertisers."""
    url = consent_url(code_challenge=challenge_of("verifier"), code_challenge_method="S256")
    assert "Example Shop DE" in consenting.http.get(url).text
    back = decide(consenting, url, decision="allow", advertiser=["1002"])
    assert back["state"] == ["s1"]
    exchange = {"grant_type": "authorization_code", "code": back["code"][0], "redirect_uri": REDIRECT}
    tokens = consenting.ask_token(**exchange, code_verifier="verifier").json()
    assert tokens["refresh_token"]
    consenting.token = tokens["access_token"]
    answer = consenting.call("GET", "/2026-07/advertisers/me")
    assert [item["id"] for item in answer.json()["data"]] == ["1002"]
    assert answer.headers["x-ratelimit-limit"] == "10"
    assert consenting.ask_token(**exchange, code_verifier="verifier").json()["error"] == "invalid_grant"


def test_consent_refused_or_asked_for_wrongly(consenting: Caller) -> None:
    """Denial comes back with the state; an undeclared redirect URI is blocked on the spot."""
    assert decide(consenting, consent_url(), decision="deny") == {"error": ["access_denied"], "state": ["s1"]}
    assert consenting.http.get(consent_url(redirect_uri="https://evil.example.org/")).status_code == 400
    assert consenting.http.get(consent_url(client_id="nobody")).status_code == 400
    consenting.sandbox.application(needs_pkce=True)
    assert "error=invalid_request" in consenting.http.get(consent_url()).headers["location"]


def test_a_code_is_bound_to_its_redirect_uri_and_its_time(consenting: Caller) -> None:
    """Another redirect URI, or ten minutes, and the code is dead."""
    sandbox = consenting.sandbox
    code = sandbox.new_code(REDIRECT, ["1001"])
    wrong = consenting.ask_token(grant_type="authorization_code", code=code, redirect_uri="https://other.example.com/")
    late = sandbox.new_code(REDIRECT, ["1001"])
    sandbox.advance(600)
    expired = consenting.ask_token(grant_type="authorization_code", code=late, redirect_uri=REDIRECT)
    assert [answer.json()["error"] for answer in (wrong, expired)] == ["invalid_grant"] * 2


def exchanged(caller: Caller, sandbox: Sandbox) -> str:
    code = sandbox.new_code(REDIRECT, ["1001", "1002"])
    answer = caller.ask_token(grant_type="authorization_code", code=code, redirect_uri=REDIRECT)
    return str(answer.json()["refresh_token"])


def refreshed(caller: Caller, refresh_token: str) -> httpx.Response:
    # The official SDK sends code and redirect_uri again here; they are ignored.
    return caller.ask_token(grant_type="refresh_token", refresh_token=refresh_token, code="old", redirect_uri=REDIRECT)


@pytest.mark.parametrize(("rotation", "works_again"), [("strict", [False]), ("lenient", [True, False])])
def test_refresh_tokens_rotate(consenting: Caller, rotation: str, works_again: list[bool]) -> None:
    """Each exchange returns another one; the old one dies at once, or after working once more."""
    consenting.sandbox.rules(refresh_rotation=rotation)
    old = exchanged(consenting, consenting.sandbox)
    new = refreshed(consenting, old).json()["refresh_token"]
    assert new != old
    assert [refreshed(consenting, old).is_success for _ in works_again] == works_again
    assert refreshed(consenting, new).is_success


def test_revoked_consent_kills_the_refresh_token_and_closes_the_audiences(consenting: Caller) -> None:
    """After revocation a refresh is invalid_grant, and calls with a living token get 403."""
    refresh_token = exchanged(consenting, consenting.sandbox)
    consenting.token = refreshed(consenting, refresh_token).json()["access_token"]
    consenting.sandbox.application(revoked=True)
    answer = consenting.search()
    assert (answer.status_code, code_of(answer)) == (403, "insufficient-advertiser-permissions")
    assert refreshed(consenting, refresh_token).json()["error"] == "invalid_grant"


@pytest.mark.parametrize(("permission", "search", "create"), [("read", 200, 403), ("none", 403, 403)])
def test_permissions_are_kept(caller: Caller, permission: str, search: int, create: int) -> None:
    """A read-only application may search and read statistics, not create or change lists."""
    segment_id = caller.new_list()
    caller.sandbox.application(permission=permission)
    assert caller.search().status_code == search
    assert caller.call("GET", f"{SEGMENTS}/{segment_id}/contact-list/statistics").status_code == search
    assert caller.create("another").status_code == create
    assert caller.amend(segment_id, ["a@example.com"]).status_code == create
    assert caller.call("DELETE", f"{SEGMENTS}/{segment_id}/contact-list").status_code == create
    assert caller.call("GET", "/2026-07/marketing-solutions/me").status_code == 200
