"""CriteoPlugin: what Airflow's plugin manager loads, in every process; nothing heavy may happen here."""

from __future__ import annotations

from airflow.sdk.plugins_manager import AirflowPlugin


class CriteoPlugin(AirflowPlugin):
    """Makes Audience Sync known to Airflow as a plugin."""

    name = "criteo_audience_sync"
