"""Addresses: where a browser finds our pages, and where Criteo sends people back to; read from `[api] base_url`."""

from __future__ import annotations

from urllib.parse import quote, urlencode, urlsplit

from criteo_provider.core.errors import Misconfigured

PREFIX = "/audience-sync"
# The pages inside Airflow's frame are at /plugin/<route>.
ROUTE = "audience_sync"
ACCOUNTS_ROUTE = "criteo_accounts"
CALLBACK = f"{PREFIX}/oauth/callback"


def with_base(path: str) -> str:
    """Return ``path`` as a browser has to ask for it: behind the path of `[api] base_url`, if it has one."""
    return urlsplit(_base_url()).path.rstrip("/") + path


def accounts_page(**told: str) -> str:
    """Return the path of the page Accounts inside Airflow's frame, which passes ``told`` on to it."""
    inside = with_base(f"{PREFIX}/accounts") + (f"?{urlencode(told)}" if told else "")
    return with_base(f"/plugin/{ROUTE}") + inside


def oauth_path() -> str:
    """Return the path below which a person's way to Criteo and back happens."""
    return with_base(f"{PREFIX}/oauth")


def start_path(conn_id: str) -> str:
    """Return the path at which a person's way to Criteo begins."""
    return f"{oauth_path()}/start/{quote(conn_id, safe='')}"


def redirect_uri() -> str:
    """Return where Criteo sends people back to; raises Misconfigured where Airflow does not know its own address.

    It never comes from a request: whoever forges one would receive the code.
    """
    base = _base_url()
    if not urlsplit(base).hostname:
        raise Misconfigured(
            "Airflow does not know the address people reach it at, so Criteo could not send them back. "
            "Set [api] base_url (AIRFLOW__API__BASE_URL), such as https://airflow.example.com."
        )
    return base.rstrip("/") + CALLBACK


def served_over_tls() -> bool:
    """Tell whether browsers reach Airflow over HTTPS."""
    return urlsplit(_base_url()).scheme == "https"


def _base_url() -> str:
    from criteo_provider.hooks.airflow_inside import setting

    return setting("api", "base_url") or ""
