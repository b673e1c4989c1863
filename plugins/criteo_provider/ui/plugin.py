"""CriteoPlugin: what Airflow's plugin manager loads, in every process; nothing heavy may happen here."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from airflow.sdk.plugins_manager import AirflowPlugin

from criteo_provider.hooks.addresses import ACCOUNTS_ROUTE, PREFIX, ROUTE, with_base


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
        """The entries in Airflow's navigation: a place in the rail, which has room for eleven letters, and one under
        Admin, where people look for connections.
        """
        icons = {
            "icon": with_base(f"{PREFIX}/static/icon.svg"),
            "icon_dark_mode": with_base(f"{PREFIX}/static/icon-dark.svg"),
        }
        audiences = {"name": "Audiences", "href": with_base(f"{PREFIX}/"), "url_route": ROUTE, "nav_top_level": True}
        accounts = {
            "name": "Criteo Accounts",
            "href": with_base(f"{PREFIX}/accounts"),
            "url_route": ACCOUNTS_ROUTE,
            "category": "admin",
        }
        return [{**each, "destination": "nav", **icons} for each in (audiences, accounts)]
