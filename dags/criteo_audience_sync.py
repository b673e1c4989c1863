"""
### Criteo Audience Sync

Takes people who enter a segment to their Criteo contact lists, within seconds.

`wait_for_people` looks at all canvases (`include/canvases/*.yaml`) once a second from the triggerer and holds no
worker slot. `upload` then reads the new people into the ledger and sends them, side by side, inside Criteo's rate
limit, until both are dry for one flush interval. The next run begins to wait at once.

`tell` is skipped while nothing changes. When a connection, an ad account, an audience or a source breaks, when users
are given up or wait for too long, it calls the notifiers of `include/alerts.yaml` and fails, once; when that is over
it calls them again and succeeds. All runs in between are green, and while everybody is held back by a known trouble
the next run waits for its next probe.

An upload task that fails is followed by a pause, ten seconds at first and a quarter of an hour at last, so that a bad
state does not fail runs by the hundred; editing a canvas ends the pause.

People whose upload fails stay pending and are tried again: soon by this DAG, later by `criteo_audience_retry`, for
up to 13 hours.
"""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.sdk import DAG

from criteo_provider.operators.tell import CriteoTellOperator
from criteo_provider.operators.upload import CriteoAudienceUploadOperator
from criteo_provider.sensors.segment import SegmentEntrySensor

with DAG(
    "criteo_audience_sync",
    description="People who enter a segment are in their Criteo contact list seconds later.",
    schedule="@continuous",
    start_date=datetime(2025, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    tags=["criteo", "audience-sync"],
    doc_md=__doc__,
):
    wait = SegmentEntrySensor(task_id="wait_for_people", hold_back_after="upload")
    upload = CriteoAudienceUploadOperator(task_id="upload", role="fresh", tell="tell")
    wait >> upload >> CriteoTellOperator(task_id="tell")
