"""Hands the pages of `criteo_provider` to Airflow's plugin scanner, which looks in this folder only."""

from airflow.configuration import conf

if conf.getboolean("core", "lazy_discover_providers"):  # else Airflow loads it from get_provider_info()
    from criteo_provider.ui.plugin import CriteoPlugin  # noqa: F401
