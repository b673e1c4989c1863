"""Who may see the pages, and what a browser may do with them; all that the pages use of Airflow's internals.

Checked against Airflow 3.3.2, where an app of a plugin is open to anyone unless each route carries a dependency.
Dependencies are made at module level: one made inside a function is dropped without a word.
"""

from __future__ import annotations

from urllib.parse import urlencode

from airflow.api_fastapi.core_api.security import get_user
from fastapi import Depends
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from criteo_provider.ui.plugin import ROUTE, with_base

SIGNED_IN = Depends(get_user)

# Airflow sends none of these. Its frame is of the same origin; nobody else may frame a page.
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'self'; base-uri 'none'; "
    "form-action 'self'; object-src 'none'",
    "X-Frame-Options": "SAMEORIGIN",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}


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
