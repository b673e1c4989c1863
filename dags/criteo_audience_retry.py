"""
### Criteo Audience Retry

Every five minutes, takes what is still due after the first tries of `criteo_audience_sync`: later retries of the
~13 hours of patience, expiry into Users Errored, and people who were errored too early. It uses at most a quarter
of Criteo's request slots while first attempts wait, and is skipped, without a worker, when nothing is due. `tell` is
skipped unless something broke, is over, or users wait for too long: see `criteo_audience_sync`.
"""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.sdk import DAG

from criteo_provider.operators.tell import CriteoTellOperator
from criteo_provider.operators.upload import CriteoAudienceUploadOperator

with DAG(
    "criteo_audience_retry",
    description="Later retries, expiry after about 13 hours, and people errored too early.",
    schedule="*/5 * * * *",
    start_date=datetime(2025, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    tags=["criteo", "audience-sync"],
    doc_md=__doc__,
):
    retry = CriteoAudienceUploadOperator(task_id="retry", role="retry", tell="tell")
    retry >> CriteoTellOperator(task_id="tell")
