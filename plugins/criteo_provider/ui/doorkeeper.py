"""Who may see and do what on the pages, and what a browser may do with them; all the pages use of Airflow's internals.

Checked against Airflow 3.3.2, where an app of a plugin is open to anyone unless each route carries a dependency, and
where nothing stands between a foreign page and a cookie. Dependencies are made at module level: one made inside a
function is dropped without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal
from urllib.parse import parse_qsl, urlencode

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import ConnectionDetails
from airflow.api_fastapi.core_api.security import GetUserDep, get_user
from airflow.models import connection as metadata
from fastapi import Depends, HTTPException, Request
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from criteo_provider.hooks.addresses import CALLBACK, ROUTE, with_base
from criteo_provider.hooks.airflow_inside import record_in_audit_log

User = GetUserDep

# Airflow sends none of these. Its frame is of the same origin; nobody else may frame a page.
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'self'; base-uri 'none'; "
    "form-action 'self'; object-src 'none'",
    "X-Frame-Options": "SAMEORIGIN",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}
_CHANGES_NOTHING = frozenset({"GET", "HEAD", "OPTIONS"})
# A form of a foreign page cannot send this header, and a script of one may not.
OUR_HEADER = "X-Audience-Sync"
_UNSAID = "***"


def _same_origin(request: Request) -> None:
    """Refuse changes that a page of another origin asks for with the cookie of somebody who is signed in."""
    if request.method in _CHANGES_NOTHING or request.headers.get("authorization"):
        return
    site = request.headers.get("sec-fetch-site", "same-origin")
    if site != "same-origin" or request.headers.get(OUR_HEADER) != "1":
        raise HTTPException(403, "Refused: this request does not come from a page of Audience Sync.")


def _may(method: Literal["POST", "PUT"]) -> Callable[[Request, GetUserDep], None]:
    """Make the check that a user may create (POST) or change (PUT) connections.

    Airflow's own check reads a body as JSON where teams are on, and fails on requests that have none.
    """

    def check(request: Request, user: GetUserDep) -> None:
        if not may_write(user, method, request.path_params.get("conn_id")):
            raise HTTPException(403, "Only who may write Airflow connections may do this.")

    return check


def may_write(user: GetUserDep, method: Literal["POST", "PUT"], conn_id: str | None = None) -> bool:
    """Tell whether a user may create or change a connection."""
    team = metadata.Connection.get_team_name(conn_id) if conn_id else None
    details = ConnectionDetails(conn_id=conn_id, team_name=team)
    return bool(get_auth_manager().is_authorized_connection(method=method, details=details, user=user))


SIGNED_IN = Depends(get_user)
SAME_ORIGIN = Depends(_same_origin)
MAY_CREATE = Depends(_may("POST"))
MAY_CHANGE = Depends(_may("PUT"))


def name_of(user: GetUserDep) -> str:
    """Name a user as Airflow shows them."""
    return str(user.get_name() or user.get_id())


def note(user: GetUserDep, event: str, conn_id: str, *ad_accounts: str) -> None:
    """Write into Airflow's audit log who did what; nothing secret is handed in."""
    extra: dict[str, object] = {"connection_id": conn_id}
    if ad_accounts:
        extra["ad_accounts"] = list(ad_accounts)
    record_in_audit_log(f"criteo.{event}", owner=str(user.get_id()), display_name=name_of(user), extra=extra)  # type: ignore[arg-type]


def sign_in_url() -> str:
    """Return where a session that has ended begins anew, and leads back to our page."""
    return with_base("/api/v2/auth/login") + "?" + urlencode({"next": with_base(f"/plugin/{ROUTE}")})


class SafeHeaders:
    """Adds the security headers to every answer; data is never kept by a browser, static files are asked for anew."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-cache" if "/static/" in scope["path"] else "no-store")
            await send(message)

        await self._app(scope, receive, send_with_headers)


class UnsaidCallback:
    """Takes `code` and `state` out of what Airflow's access log says of a return from Criteo, whoever asked for it.

    The log reads the query when the request is over, so it is replaced then. (Telling Airflow's masker each value
    would let anybody make it grow.)
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        try:
            await self._app(scope, receive, send)
        finally:
            if scope["type"] == "http" and scope["path"].endswith(CALLBACK):
                names = [name for name, _ in parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)]
                scope["query_string"] = "&".join(f"{name}={_UNSAID}" for name in names if name.isidentifier()).encode()
