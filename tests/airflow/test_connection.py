"""The Airflow connection of type `criteo`: every way to set it, and what a wrong one is told."""

from __future__ import annotations

import json
from typing import Any

import pytest
from airflow.sdk import Connection

from criteo_provider.core.errors import Misconfigured
from criteo_provider.hooks.criteo import CriteoHook, read_connection

SECRET = "s+/=&% e"


def connection(**parts: Any) -> Connection:
    extra = parts.pop("extra", None)
    given = {"conn_type": "criteo", "login": "my-client", "password": SECRET, **parts}
    return Connection(conn_id="criteo_default", extra=json.dumps(extra) if extra is not None else None, **given)


def test_defaults() -> None:
    """A client id and a secret are enough: base URL, version and limit have defaults."""
    read = read_connection(connection())
    assert (read.client_id, read.client_secret) == ("my-client", SECRET)
    assert (read.base_url, read.api_version, read.requests_per_minute) == ("https://api.criteo.com", "2026-07", None)
    assert read.allowed_ad_accounts == ()
    assert (read.grant_type, read.refresh_token) == ("client_credentials", "")
    assert read.consent_url == "https://consent.criteo.com/request"
    assert SECRET not in repr(read)


@pytest.mark.parametrize(
    "value",
    [
        "criteo://my-client:s%2B%2F%3D%26%25%20e@sandbox:8780/"
        "?requests_per_minute=100&allowed_ad_accounts=1001%2C1002&api_version=2026-01",
        json.dumps(
            {
                "conn_type": "criteo",
                "login": "my-client",
                "password": SECRET,
                "host": "https://sandbox:8780",
                "extra": {
                    "requests_per_minute": 100,
                    "allowed_ad_accounts": ["1001", "1002"],
                    "api_version": "2026-01",
                },
            }
        ),
    ],
    ids=["uri", "json"],
)
def test_from_the_environment(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """AIRFLOW_CONN_CRITEO_DEFAULT sets the whole connection, as a URI and as JSON, secrets with special signs too."""
    monkeypatch.setenv("AIRFLOW_CONN_CRITEO_DEFAULT", value)
    read = CriteoHook().get_conn()
    assert (read.client_id, read.client_secret) == ("my-client", SECRET)
    assert (read.base_url, read.api_version, read.requests_per_minute) == ("https://sandbox:8780", "2026-01", 100)
    assert read.allowed_ad_accounts == ("1001", "1002")


@pytest.mark.parametrize(
    ("host", "port", "url"),
    [
        ("api.criteo.com", None, "https://api.criteo.com"),
        ("https://api.criteo.com/", None, "https://api.criteo.com"),
        ("http://127.0.0.1", 8780, "http://127.0.0.1:8780"),
        ("http://sandbox:8780", None, "http://sandbox:8780"),
        ("https://proxy.example.com/criteo", None, "https://proxy.example.com/criteo"),
    ],
)
def test_base_url(host: str, port: int | None, url: str) -> None:
    """A base URL may be written with or without scheme, and with its port in either place."""
    assert read_connection(connection(host=host, port=port)).base_url == url


def test_a_connection_of_a_person() -> None:
    """With authorization_code a refresh token may be brought along, unseen; consent is given beside another API."""
    extra = {"grant_type": "authorization_code", "refresh_token": " seed+/= "}
    read = read_connection(connection(host="http://sandbox:8780", extra=extra))
    assert (read.grant_type, read.refresh_token) == ("authorization_code", "seed+/=")
    assert read.consent_url == "http://sandbox:8780/request"
    assert "seed" not in repr(read)
    masked = {**extra, "refresh_token": "***", "consent_url": "https://consent.example.com/request"}
    read = read_connection(connection(host="http://sandbox:8780", extra=masked))
    assert (read.refresh_token, read.consent_url) == ("", "https://consent.example.com/request")


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"login": " "}, "Connection criteo_default, field Client ID: is empty; copy it"),
        ({"password": ""}, "field Client secret: is empty; copy it"),
        ({"conn_type": "http"}, "field Connection Type: is 'http'; choose Criteo."),
        ({"host": "http://api.criteo.com"}, "field API base URL: would send the client secret unencrypted; start"),
        ({"host": "ftp://api.criteo.com"}, "field API base URL: is not a web address; use https://api.criteo.com."),
        ({"extra": {"api_version": "v2"}}, "field API version: is not a version like 2026-07; use 2026-07."),
        ({"extra": {"requests_per_minute": "many"}}, "field Requests per minute: is not a whole number above 0"),
        ({"extra": {"requests_per_minute": 0}}, "field Requests per minute: is not a whole number above 0"),
        ({"extra": {"grant_type": "password"}}, "field Grant type: is not one Criteo knows; choose client_credentials"),
        ({"extra": {"consent_url": "consent"}}, "field Consent page: is not a web address; leave it empty"),
        ({"extra": {"consent_url": "http://consent.example.com/"}}, "field Consent page: would show"),
    ],
)
def test_refusals(parts: dict[str, Any], sentence: str) -> None:
    """A wrong connection is told which field is wrong and how to mend it, and never shows its secret."""
    with pytest.raises(Misconfigured) as refusal:
        read_connection(connection(**parts))
    assert sentence in str(refusal.value)
    assert SECRET not in str(refusal.value)
