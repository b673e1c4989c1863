"""Who may do what on the page Accounts, and from where: roles, foreign pages, frames."""

from __future__ import annotations

import pytest
from airflow.api_fastapi.core_api.security import get_user
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.routing import Mount

from criteo_provider.ui import doorkeeper
from tests.ui.accounts_page import (
    CONNECTION,
    READS,
    ROLES,
    WRITES,
    SignIn,
    ask,
    audit,
    sandbox,
    sign_in,
)
from tests.ui.conftest import PREFIX
from tests.ui.test_web import dependencies

__all__ = ["sandbox", "sign_in"]


def test_every_route_has_its_guards(pages: FastAPI) -> None:
    """Each route wants a signed-in user and refuses foreign pages; what writes wants the right to write connections."""
    routes = [route for route in pages.routes if isinstance(route, APIRoute)]
    assert {(next(iter(one.methods)), one.path) for one in routes} >= {
        (method, path.replace(CONNECTION, "{conn_id}").replace("1001", "{ad_account}"))
        for method, path in READS + WRITES
    }
    checks = {each.dependency for each in (doorkeeper.MAY_CREATE, doorkeeper.MAY_CHANGE)}
    for route in routes:
        found = set(dependencies(route.dependant))  # codespell:ignore dependant
        assert {get_user, doorkeeper.SAME_ORIGIN.dependency} <= found, route.path
        open_to_readers = route.methods == {"GET"} and "{conn_id}" not in route.path
        assert open_to_readers or found & checks, route.path
    assert [route.path for route in pages.routes if isinstance(route, Mount)] == ["/static"]


@pytest.mark.parametrize(("method", "path"), READS + WRITES)
def test_the_roles(sign_in: SignIn, method: str, path: str) -> None:
    """Nobody is let in without signing in; everybody signed in reads; only who may write connections changes things."""
    assert ask(sign_in(), method, path).status_code == 401
    assert ask(sign_in(Cookie="_token=garbage"), method, path).status_code in {401, 403}
    for role in ROLES:
        status = ask(sign_in(role), method, path).status_code
        if (method, path) in READS:
            assert status == 200, role
        else:
            # 409: allowed in, and told in a sentence that there is no such connection.
            assert status == (409 if role in {"op", "admin"} else 403), role
    assert audit() == []


@pytest.mark.parametrize(("method", "path"), [one for one in WRITES if one[0] != "GET"])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-Audience-Sync": "1", "Sec-Fetch-Site": "same-site"},
        {"X-Audience-Sync": "1", "Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-origin"},
    ],
)
def test_foreign_pages_change_nothing(sign_in: SignIn, method: str, path: str, headers: dict[str, str]) -> None:
    """With the cookie of an admin, a page of another site, a sibling host or a plain form is refused."""
    answer = ask(sign_in("admin", cookie=True, **headers), method, path)
    assert answer.status_code == 403
    assert "does not come from a page of Audience Sync" in answer.text
    ours = {"X-Audience-Sync": "1", "Sec-Fetch-Site": "same-origin"}
    assert ask(sign_in("admin", cookie=True, **ours), method, path).status_code == 409


def test_a_form_of_our_own_origin_is_refused_too(sign_in: SignIn) -> None:
    """A form post carries no header of ours, so it is refused before its fields are looked at."""
    client = sign_in("admin", cookie=True, **{"Sec-Fetch-Site": "same-origin"})
    answer = client.post(
        f"{PREFIX}/api/connections", data={"connection_id": "x", "client_id": "a", "client_secret": "b"}
    )
    assert answer.status_code == 403


def test_the_page_may_not_be_framed_elsewhere(sign_in: SignIn) -> None:
    """Only Airflow itself may frame the page; it brings neither scripts nor styles of its own, and is not kept."""
    answer = sign_in("viewer").get(f"{PREFIX}/accounts")
    assert "frame-ancestors 'self'" in answer.headers["content-security-policy"]
    assert answer.headers["x-frame-options"] == "SAMEORIGIN"
    assert answer.headers["cache-control"] == "no-store"
    assert "<script>" not in answer.text
    assert "style=" not in answer.text
