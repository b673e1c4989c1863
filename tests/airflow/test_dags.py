"""The two DAGs as Airflow's DAG processor sees them."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any, NoReturn

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.serialization.serialized_objects import DagSerialization

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def dagbag(monkeypatch: pytest.MonkeyPatch) -> DagBag:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("a DAG file opened a socket")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    return DagBag(dag_folder=PROJECT / "dags", collect_dags=True)


def test_import_without_network(dagbag: DagBag) -> None:
    """Both DAG files import with no error and no connection to anything."""
    assert dagbag.import_errors == {}
    assert set(dagbag.dags) == {"criteo_audience_sync", "criteo_audience_retry"}


def test_shape(dagbag: DagBag) -> None:
    """The sync DAG waits, then uploads, one run at a time without end; the retry DAG comes every five minutes."""
    sync, retry = dagbag.dags["criteo_audience_sync"], dagbag.dags["criteo_audience_retry"]
    assert sync.get_task("upload").upstream_task_ids == {"wait_for_people"}
    assert (sync.max_active_runs, retry.max_active_runs) == (1, 1)
    assert (sync.catchup, retry.catchup) == (False, False)
    assert (sync.schedule, retry.schedule) == ("@continuous", "*/5 * * * *")
    assert retry.get_task("retry").role == "retry"
    for upload in (sync.get_task("upload"), retry.get_task("retry")):
        assert upload.downstream_task_ids == {upload.tell} == {"tell"}


def test_sensor_starts_in_the_triggerer(dagbag: DagBag) -> None:
    """What the scheduler reads from the serialized DAG sends the sensor to the triggerer, with no worker."""
    kept = DagSerialization.from_dict(DagSerialization.to_dict(dagbag.dags["criteo_audience_sync"]))
    sensor = kept.get_task("wait_for_people")
    assert sensor.start_from_trigger is True
    assert sensor.start_trigger_args.trigger_cls == "criteo_provider.triggers.segment.SegmentEntryTrigger"
    assert sensor.start_trigger_args.timeout is None


def test_a_retry_starts_in_the_triggerer(dagbag: DagBag) -> None:
    """What the scheduler reads of the retry DAG takes a worker only once something is due."""
    kept = DagSerialization.from_dict(DagSerialization.to_dict(dagbag.dags["criteo_audience_retry"]))
    retry = kept.get_task("retry")
    assert retry.start_from_trigger is True
    assert retry.start_trigger_args.trigger_cls == "criteo_provider.triggers.retry.RetryDueTrigger"
    assert DagSerialization.deserialize(retry.start_trigger_args.trigger_kwargs) == {"tells": True}
    assert hasattr(dagbag.dags["criteo_audience_retry"].get_task("retry"), retry.start_trigger_args.next_method)
    kept = DagSerialization.from_dict(DagSerialization.to_dict(dagbag.dags["criteo_audience_sync"]))
    assert kept.get_task("upload").start_from_trigger is False
