"""The way to Criteo's consent page and back."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from criteo_provider.criteo_api.consent import (
    challenge_of,
    consent_url,
    default_consent_url,
    new_request,
    read_redirect,
)
from criteo_provider.sandbox.running import running_sandbox

REDIRECT = "https://airflow.example.com/prefix/criteo/callback"


@pytest.mark.parametrize(
    ("base_url", "page"),
    [
        ("https://api.criteo.com", "https://consent.criteo.com/request"),
        ("https://API.criteo.com:443", "https://consent.criteo.com/request"),
        ("http://127.0.0.1:8780", "http://127.0.0.1:8780/request"),
        ("https://criteo.example.com/", "https://criteo.example.com/request"),
    ],
)
def test_where_consent_is_given(base_url: str, page: str) -> None:
    """Criteo has a host of its own for it; the sandbox and others have it beside the API."""
    assert default_consent_url(base_url) == page


def test_the_challenge_is_that_of_rfc_7636() -> None:
    """The test vector of RFC 7636, appendix B."""
    assert challenge_of("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk") == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"


def test_a_request_cannot_be_guessed_nor_read() -> None:
    """States and verifiers are long, of unreserved signs, always others, and never printed."""
    first, second = new_request(), new_request()
    for secret in (first.state, first.verifier):
        assert re.fullmatch(r"[A-Za-z0-9_-]{43,128}", secret)
        assert secret not in repr(first)
    assert (first.state, first.verifier) != (second.state, second.verifier)


def test_the_address_asks_for_a_code_and_keeps_the_verifier_back() -> None:
    """The address names application, redirect URI, state and challenge; a query of the page's own is kept."""
    asked = new_request()
    url = consent_url("https://consent.example.com/request?lang=de", "an-id", REDIRECT, asked)
    assert parse_qs(urlsplit(url).query) == {
        "lang": ["de"],
        "response_type": ["code"],
        "client_id": ["an-id"],
        "redirect_uri": [REDIRECT],
        "state": [asked.state],
        "code_challenge": [challenge_of(asked.verifier)],
        "code_challenge_method": ["S256"],
    }
    assert asked.verifier not in url


def test_what_comes_back() -> None:
    """A code belongs to the request with its state; a no is a cancelled consent; nothing of it is printed."""
    asked = new_request()
    back = read_redirect({"code": "the-code", "state": asked.state})
    assert (back.code, back.error, back.answers(asked), back.answers(new_request())) == ("the-code", "", True, False)
    assert "the-code" not in repr(back)
    assert asked.state not in repr(back)
    refused = read_redirect({"error": "access_denied", "state": asked.state, "code": "smuggled"})
    assert (refused.is_cancelled, refused.code, refused.answers(asked)) == (True, "", True)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(["code", "state", "error", "other"]), st.text(max_size=40), max_size=4))
def test_any_query_is_read(query: dict[str, str]) -> None:
    """Whatever stands in the address is a code or an error of plain letters; never both, never an exception."""
    back = read_redirect(query)
    assert bool(back.code) != bool(back.error)
    assert re.fullmatch(r"[a-z-]*", back.error)
    assert not back.answers(new_request())


def test_the_sandbox_understands_it() -> None:
    """The whole way at the sandbox: page, consent with one ad account, and back with code and state; or a no."""
    with running_sandbox() as sandbox:
        sandbox.application(redirect_uris=[REDIRECT], needs_pkce=True)
        asked = new_request()
        url = consent_url(default_consent_url(sandbox.url), sandbox.client_id, REDIRECT, asked)
        assert httpx.get(url).status_code == 200
        for decision, cancelled in (("allow", False), ("deny", True)):
            answer = httpx.post(url, data={"decision": decision, "advertiser": "1001"})
            query = dict(httpx.URL(answer.headers["location"]).params)
            back = read_redirect(query)
            assert back.answers(asked)
            assert (back.is_cancelled, bool(back.code)) == (cancelled, not cancelled)
