"""Airflow assets for Criteo audiences, so that other DAGs can be scheduled on people having arrived in one.

`Asset("criteo://1001/High-value%20customers")` is the audience of that name in ad account 1001.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import SplitResult, quote, unquote

if TYPE_CHECKING:
    from airflow.sdk import Asset

# Every upload may touch other audiences, so the tasks declare this alias and name the audiences when they know.
ALIAS = "criteo_audiences"


def audience_asset(ad_account: str, audience: str) -> Asset:
    """Return the asset that stands for one audience of one ad account, for the schedule or the inlets of a DAG."""
    from airflow.sdk import Asset

    return Asset(name=audience_name(ad_account, audience), uri=audience_uri(ad_account, audience))


def audience_name(ad_account: str, audience: str) -> str:
    """Return the name of that asset."""
    return f"Criteo {ad_account}: {audience}"


def audience_uri(ad_account: str, audience: str) -> str:
    """Return the URI of that asset."""
    return f"criteo://{ad_account}/{quote(audience, safe='')}"


def tidy_uri(parts: SplitResult) -> SplitResult:
    """Normalise a `criteo://<ad account>/<audience name>` URI; raise ValueError when it names no audience."""
    audience = unquote(parts.path.strip("/"))
    if not parts.netloc or not audience:
        message = "a Criteo asset is criteo://<ad account id>/<audience name>"
        raise ValueError(message)
    return parts._replace(path=f"/{quote(audience, safe='')}", query="", fragment="")
