"""CriteoPlugin: what Airflow's plugin manager loads, in every process; nothing heavy may happen here."""

from __future__ import annotations

from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from airflow.sdk.plugins_manager import AirflowPlugin

PREFIX = "/audience-sync"
# The page inside Airflow's frame is at /plugin/<ROUTE>.
ROUTE = "audience_sync"


def with_base(path: str) -> str:
    """Return ``path`` as a browser has to ask for it: behind the path of `[api] base_url`, if it has one."""
    from airflow.configuration import conf

    return urlsplit(conf.get("api", "base_url", fallback="") or "").path.rstrip("/") + path


class CriteoPlugin(AirflowPlugin):
    """Adds the pages of Audience Sync to the Airflow UI.

    Tasks load plugins too, and are to start quickly: the pages are made when the API server asks for them.
    """

    name = "criteo_audience_sync"

    @cached_property
    def fastapi_apps(self) -> list[Any]:  # type: ignore[override]
        """The app that serves pages and data, for the API server."""
        from criteo_provider.ui.web import create_app

        return [{"app": create_app(), "url_prefix": PREFIX, "name": "Criteo Audience Sync"}]

    @cached_property
    def external_views(self) -> list[Any]:  # type: ignore[override]
        """The entry in Airflow's navigation; its rail has room for eleven letters."""
        return [
            {
                "name": "Audiences",
                "href": with_base(f"{PREFIX}/"),
                "url_route": ROUTE,
                "destination": "nav",
                "nav_top_level": True,
                "icon": with_base(f"{PREFIX}/static/icon.svg"),
                "icon_dark_mode": with_base(f"{PREFIX}/static/icon-dark.svg"),
            }
        ]
