"""What Airflow learns of this package when it is installed."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

from airflow._shared.module_loading import import_string
from airflow.providers_manager import ProvidersManager, _create_provider_info_schema_validator
from airflow.sdk import Asset
from airflow.sdk.providers_manager_runtime import ProvidersManagerTaskRuntime

from criteo_provider import get_provider_info
from criteo_provider.hooks.assets import audience_asset


def test_schema() -> None:
    """The provider information is what Airflow's own schema allows."""
    _create_provider_info_schema_validator().validate(get_provider_info())


def test_everything_named_exists() -> None:
    """Every module, class and function the provider information names can be imported."""
    info = get_provider_info()
    for kind in ("hooks", "triggers", "sensors", "operators"):
        for entry in info[kind]:
            for module in entry["python-modules"]:
                assert import_module(module).__doc__
    paths = [*info["cli"], info["plugins"][0]["plugin-class"], info["asset-uris"][0]["handler"]]
    paths.append(info["connection-types"][0]["hook-class-name"])
    assert all(callable(import_string(path)) for path in paths)


def test_connection_type() -> None:
    """Airflow offers the connection type with its own labels, a masked secret and seven fields of its own."""
    manager = ProvidersManager()
    hook = ProvidersManagerTaskRuntime().hooks["criteo"]
    assert hook is not None
    assert hook.hook_class_name == "criteo_provider.hooks.criteo.CriteoHook"
    behaviour = manager.field_behaviours["criteo"]
    assert behaviour["relabeling"] == {"login": "Client ID", "password": "Client secret", "host": "API base URL"}
    fields = {name.split("__")[-1] for name in manager.connection_form_widgets if "__criteo__" in name}
    assert fields == {
        "api_version", "requests_per_minute", "allowed_ad_accounts", "grant_type", "refresh_token", "consent_url",
        "guidelines_acknowledged",
    }  # fmt: skip


def test_asset_uri() -> None:
    """An audience is one asset, however its URI is written."""
    asset = audience_asset("1001", "High-value customers")
    assert asset.uri == "criteo://1001/High-value%20customers"
    assert Asset("criteo://1001/High-value customers/").uri == asset.uri


def test_plugin_folder_replaces_nothing() -> None:
    """Airflow's scan of the plugins folder loads our plugin once, and imports no room of ours as a top-level module."""
    looking = """
import sys
before = {name: module for name, module in sys.modules.items() if name in sys.stdlib_module_names}
from airflow import plugins_manager
plugins, errors = plugins_manager._get_plugins()
names = [plugin.name for plugin in plugins]
assert names.count("criteo_audience_sync") == 1 and not errors, (names, errors)
replaced = [name for name, module in before.items() if sys.modules[name] is not module]
strangers = [name for name, module in sys.modules.items()
             if "criteo_provider/" in str(getattr(module, "__file__", "")) and not name.startswith("criteo_provider")]
assert not replaced and not strangers, (replaced, strangers)
"""
    seen = subprocess.run([sys.executable, "-c", looking], capture_output=True, text=True, check=False, timeout=120)
    assert seen.returncode == 0, seen.stderr
