"""Criteo Audience Sync for Apache Airflow: take people from your own segments to Criteo contact lists."""

from __future__ import annotations

__version__ = "0.1.0"

_INTEGRATION = "Criteo"


def get_provider_info() -> dict[str, object]:
    """Describe this provider to Airflow's provider manager (found through the `apache_airflow_provider` entry point).

    Returns a mapping in the shape of Airflow's `provider_info.schema.json`; names modules only, imports none.
    """
    return {
        "package-name": "criteo-audience-sync",
        "name": "Criteo Audience Sync",
        "description": "Take people from a data team's own segments to Criteo contact lists.",
        "versions": [__version__],
        "integrations": [
            {
                "integration-name": _INTEGRATION,
                "external-doc-url": "https://developers.criteo.com/marketing-solutions/docs/onboard-audiences",
                "tags": ["service"],
            }
        ],
        "hooks": _modules("criteo_provider.hooks.criteo"),
        "triggers": _modules("criteo_provider.triggers.segment"),
        "sensors": _modules("criteo_provider.sensors.segment"),
        "operators": _modules("criteo_provider.operators.upload"),
        "connection-types": [_connection_type()],
        "asset-uris": [{"schemes": ["criteo"], "handler": "criteo_provider.hooks.assets.tidy_uri"}],
        "plugins": [{"name": "criteo_audience_sync", "plugin-class": "criteo_provider.ui.plugin.CriteoPlugin"}],
        "notifications": ["criteo_provider.notifications.trouble.TroubleNotifier"],
        "cli": ["criteo_provider.cli.definition.get_cli_commands"],
        "config": {"criteo": _config_section()},
    }


def _modules(module: str) -> list[dict[str, object]]:
    return [{"integration-name": _INTEGRATION, "python-modules": [module]}]


def _connection_type() -> dict[str, object]:
    return {
        "connection-type": "criteo",
        "hook-class-name": "criteo_provider.hooks.criteo.CriteoHook",
        "hook-name": "Criteo",
        "ui-field-behaviour": {
            "hidden-fields": ["schema", "port"],
            "relabeling": {"login": "Client ID", "password": "Client secret", "host": "API base URL"},
            "placeholders": {
                "host": "https://api.criteo.com",
                "login": "from your application at developers.criteo.com",
            },
        },
        "conn-fields": {
            "api_version": {
                "label": "API version",
                "description": "Which version of Criteo's Marketing Solutions API is called.",
                "schema": {"type": "string", "default": "2026-07", "pattern": r"^\d{4}-\d{2}$"},
            },
            "requests_per_minute": {
                "label": "Requests per minute",
                "description": "Shared by everything that uses this connection. Empty: what Criteo grants, 250 for "
                "client_credentials, 10 for each consented ad account for authorization_code.",
                "schema": {"type": ["integer", "null"], "minimum": 1},
            },
            "grant_type": {
                "label": "Grant type",
                "description": "client_credentials: the application speaks for itself. authorization_code: a person "
                "lets it in with Connect Criteo on the Accounts page.",
                "schema": {
                    "type": "string",
                    "default": "client_credentials",
                    "enum": ["client_credentials", "authorization_code"],
                },
            },
            "refresh_token": {
                "label": "Refresh token",
                "description": "Only for authorization_code without the Accounts page: one you have brought along. "
                "The ledger keeps those that follow; a new one here is taken over.",
                "schema": {"type": ["string", "null"], "format": "password"},
            },
            "consent_url": {
                "label": "Consent page",
                "description": "Where people give their consent. Empty: https://consent.criteo.com/request, or "
                "/request of an API base URL of your own.",
                "schema": {"type": ["string", "null"]},
            },
            "guidelines_acknowledged": {
                "label": "Guidelines acknowledged",
                "description": "Somebody has read Criteo's advertising and brand-safety guidelines. Asked for only "
                "where [criteo] guidelines_acknowledged is required.",
                "schema": {"type": "boolean", "default": False},
            },
            "allowed_ad_accounts": {
                "label": "Allowed ad accounts",
                "description": "Ids separated by commas; canvases may use no others. Empty: every ad account "
                "that has given consent.",
                "schema": {"type": ["string", "null"]},
            },
        },
    }


def _config_section() -> dict[str, object]:
    return {
        "description": "Where Criteo Audience Sync keeps its ledger and finds its canvases.",
        "options": {
            "ledger_connection": _option(
                "Id of the PostgreSQL connection that holds the ledger. Once set here it must exist. Empty: "
                "the connection ``criteo_ledger`` if there is one, else the SQLite file below.",
            ),
            "ledger_path": _option(
                "The SQLite file of the ledger where there is no ledger connection; one machine and "
                "LocalExecutor only. Empty: ``$AIRFLOW_HOME/criteo/ledger.db``.",
            ),
            "include_folder": _option(
                "The folder with ``canvases/``, ``segments/``, ``opt_outs/`` and ``alerts.yaml``. "
                "Empty: ``include`` beside the dags folder.",
            ),
            "first_probe_s": _option(
                "Seconds after which something broken (a connection, an ad account, an audience, a source) is tried "
                "again; later after 2, 4, 8 and 15 times that. Empty: 60.",
            ),
            "idle_check": _option(
                "Seconds after which the retry DAG looks at a connection nobody was sent through. Empty: 900.",
            ),
            "guidelines_acknowledged": _option(
                "``required``: a canvas is launched only if its Criteo connection says that Criteo's advertising and "
                "brand-safety guidelines are acknowledged. Empty: nobody is asked.",
            ),
        },
    }


def _option(description: str) -> dict[str, object]:
    return {
        "description": description,
        "version_added": "0.1.0",
        "type": "string",
        "example": None,
        "default": "",
    }
