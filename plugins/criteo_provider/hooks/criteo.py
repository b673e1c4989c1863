"""CriteoHook: the Airflow connection of type `criteo`."""

from __future__ import annotations

import ipaddress
import re
from contextlib import closing
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow.sdk import BaseHook

from criteo_provider.core.errors import CriteoSyncError, Misconfigured

if TYPE_CHECKING:
    from airflow.sdk import Connection

    from criteo_provider.core.budget import GrantType
    from criteo_provider.wiring import CriteoConnection, House

DEFAULT_BASE_URL = "https://api.criteo.com"
DEFAULT_API_VERSION = "2026-07"


class CriteoHook(BaseHook):
    """The Criteo application an Airflow connection stands for.

    :param criteo_conn_id: id of a connection of type `criteo`, from the UI, the environment or a secrets backend
    """

    conn_name_attr = "criteo_conn_id"
    default_conn_name = "criteo_default"
    conn_type = "criteo"
    hook_name = "Criteo"

    def __init__(self, criteo_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.criteo_conn_id = criteo_conn_id

    def get_conn(self) -> CriteoConnection:
        """Return the connection's settings, checked; raise Misconfigured with the field and the mend."""
        return read_connection(self.get_connection(self.criteo_conn_id))

    def house(self) -> House:
        """Open the house this Airflow's settings describe; the caller closes it."""
        from criteo_provider.hooks.surroundings import open_house

        return open_house()

    def test_connection(self) -> tuple[bool, str]:
        """Ask Criteo who we are; one sentence says what is wrong, or names the application and its ad accounts."""
        try:
            self.get_conn()
            with closing(self.house()) as house:
                verdict = house.check_access(self.criteo_conn_id)
        except CriteoSyncError as error:
            return False, str(error)
        return verdict.ok, verdict.sentence


def read_connection(connection: Connection) -> CriteoConnection:
    """Turn an Airflow connection into Criteo settings; raise Misconfigured naming the field and the mend."""
    from criteo_provider.wiring import CriteoConnection

    conn_id, extra = connection.conn_id, connection.extra_dejson
    base_url = _base_url(conn_id, connection.host, connection.port)
    if connection.conn_type not in (None, "", CriteoHook.conn_type):
        raise _wrong(conn_id, "Connection Type", f"is {connection.conn_type!r}", "choose Criteo")
    if not (connection.login or "").strip():
        raise _wrong(conn_id, "Client ID", "is empty", "copy it from your application at developers.criteo.com")
    if not connection.password:
        raise _wrong(conn_id, "Client secret", "is empty", "copy it from your application at developers.criteo.com")
    return CriteoConnection(
        client_id=(connection.login or "").strip(),
        client_secret=connection.password,
        base_url=base_url,
        api_version=_api_version(conn_id, extra.get("api_version")),
        requests_per_minute=_requests_per_minute(conn_id, extra.get("requests_per_minute")),
        allowed_ad_accounts=_ad_accounts(extra.get("allowed_ad_accounts")),
        grant_type=_grant_type(conn_id, extra.get("grant_type")),
        refresh_token=_refresh_token(extra.get("refresh_token")),
        consent_url=_consent_url(conn_id, extra.get("consent_url"), base_url),
        guidelines_acknowledged=str(extra.get("guidelines_acknowledged")).strip().lower() in ("true", "yes", "1"),
    )


def _base_url(conn_id: str, host: str | None, port: int | None) -> str:
    url = (host or "").strip().rstrip("/") or DEFAULT_BASE_URL
    if "://" not in url:
        url = f"https://{url}"
    parts = urlsplit(url)
    if port and parts.port is None:
        url = f"{parts.scheme}://{parts.netloc}:{port}{parts.path}"
    if parts.scheme not in ("https", "http") or not parts.hostname or "@" in parts.netloc or parts.query:
        raise _wrong(conn_id, "API base URL", "is not a web address", f"use {DEFAULT_BASE_URL}")
    if parts.scheme == "http" and not _is_near(parts.hostname):
        raise _wrong(conn_id, "API base URL", "would send the client secret unencrypted", "start it with https://")
    return url


def _is_near(hostname: str) -> bool:
    """Whether a host is this machine or its own network, where a sandbox may answer without TLS."""
    try:
        address = ipaddress.ip_address(hostname)
    except ValueError:
        return "." not in hostname
    return address.is_private or address.is_loopback


def _api_version(conn_id: str, given: Any) -> str:
    version = str(given or DEFAULT_API_VERSION).strip()
    if not re.fullmatch(r"\d{4}-\d{2}", version):
        raise _wrong(conn_id, "API version", "is not a version like 2026-07", f"use {DEFAULT_API_VERSION}")
    return version


def _requests_per_minute(conn_id: str, given: Any) -> int | None:
    if given in (None, ""):
        return None
    try:
        limit = int(given)
    except (TypeError, ValueError):
        limit = 0
    if limit < 1:
        raise _wrong(
            conn_id, "Requests per minute", "is not a whole number above 0", "leave it empty for what Criteo grants"
        )
    return limit


def _grant_type(conn_id: str, given: Any) -> GrantType:
    match str(given or "client_credentials").strip():
        case "client_credentials":
            return "client_credentials"
        case "authorization_code":
            return "authorization_code"
        case _:
            raise _wrong(
                conn_id, "Grant type", "is not one Criteo knows", "choose client_credentials or authorization_code"
            )


def _refresh_token(given: Any) -> str:
    # Airflow's connection form shows stars for a secret it does not hand out, and may save them.
    text = str(given or "").strip()
    return "" if text == "***" else text


def _consent_url(conn_id: str, given: Any, base_url: str) -> str:
    from criteo_provider.criteo_api.consent import default_consent_url

    url = str(given or "").strip() or default_consent_url(base_url)
    parts = urlsplit(url)
    if parts.scheme not in ("https", "http") or not parts.hostname or "@" in parts.netloc:
        raise _wrong(conn_id, "Consent page", "is not a web address", "leave it empty for Criteo's own")
    if parts.scheme == "http" and not _is_near(parts.hostname):
        raise _wrong(conn_id, "Consent page", "would show what belongs to you alone unencrypted", "use https://")
    return url


def _ad_accounts(given: Any) -> tuple[str, ...]:
    parts = given if isinstance(given, list | tuple) else re.split(r"[,;\s]+", str(given or ""))
    return tuple(dict.fromkeys(text for part in parts if (text := str(part).strip())))


def _wrong(conn_id: str | None, field: str, what: str, mend: str) -> Misconfigured:
    return Misconfigured(f"Connection {conn_id}, field {field}: {what}; {mend}.")
