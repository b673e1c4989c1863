"""One sentence about a connection."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import stamina

from criteo_provider.criteo_api.check import check_access
from tests.criteo_api.doubles import Criteo, page, problem

APPLICATION = {"data": {"attributes": {"applicationId": 1, "name": "Shop sync"}}}
ACCOUNTS = {
    "data": [
        {"id": "13", "attributes": {"advertiserName": "Shop"}},
        {"id": "14", "attributes": {"advertiserName": "Shop DE"}},
    ]
}
FINE: dict[str, Any] = {"application": APPLICATION, "advertisers": ACCOUNTS, "search": page()}
DENIED = problem(403, "access-control", "insufficient-advertiser-permissions")


@pytest.fixture(autouse=True)
def _no_waiting() -> Any:
    with stamina.set_testing(True, attempts=2, cap=True):
        yield


def test_a_good_connection_names_itself() -> None:
    """A connection that works is named with its application and its ad accounts."""
    result = check_access(Criteo(**FINE).client())
    assert result.ok
    assert result.sentence == ("Connected as application “Shop sync” (1); ad accounts: Shop (13), Shop DE (14).")


def test_only_allowed_ad_accounts_are_named() -> None:
    """With allowed ad accounts, only those are named and looked at."""
    criteo = Criteo(**FINE)
    result = check_access(criteo.client(), ["14"])
    assert (result.ok, [account.ad_account for account in result.ad_accounts]) == (True, ["14"])
    assert "Shop (13)" not in result.sentence
    assert len(criteo.calls("search")) == 1


def test_many_ad_accounts_stay_one_sentence() -> None:
    """A hundred ad accounts are counted, not listed."""
    many = {"data": [{"id": str(n), "attributes": {"advertiserName": f"Shop {n}"}} for n in range(100)]}
    result = check_access(Criteo(**FINE | {"advertisers": many}).client())
    assert result.sentence.endswith("and 95 more.")


@pytest.mark.parametrize(
    ("change", "allowed", "code", "words"),
    [
        ({"token": httpx.Response(401, json={"error": "invalid_client"})}, (), "wrong-client-pair", "client id"),
        ({"token": httpx.Response(400, json={"error": "invalid_grant"})}, (), "consent-lost", "Reconnect"),
        ({"advertisers": {"data": []}}, (), "no-ad-account", "consent"),
        ({}, ["13", "99"], "ad-account-not-consented", "99"),
        ({"search": DENIED}, (), "no-audiences-permission", "Audiences permission"),
        ({"search": DENIED}, ["14"], "no-audiences-permission", "14"),
        ({"token": httpx.ConnectError("x")}, (), "unreachable", "reached"),
        ({"application": httpx.ReadTimeout("x")}, (), "no-answer", "answer"),
        ({"application": problem(401, "authorization", "x")}, (), "token-refused", "token"),
        ({"application": httpx.Response(404)}, (), "unknown-address", "API version"),
        ({"application": httpx.Response(410)}, (), "api-version-gone", "API version"),
        ({"application": httpx.Response(429, headers={"Retry-After": "60"})}, (), "busy", "rate limit"),
        ({"search": problem(401, "authorization", "x")}, (), "token-refused", "token"),
    ],
)
def test_trouble_is_one_sentence(change: dict[str, Any], allowed: list[str], code: str, words: str) -> None:
    """Each thing that can be wrong with a connection has its code and a sentence that names it."""
    result = check_access(Criteo(**FINE | change).client(), allowed)
    assert (result.ok, result.code) == (False, code)
    assert words in result.sentence
    assert "s3cr" not in result.sentence
