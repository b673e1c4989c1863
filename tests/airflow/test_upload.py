"""The upload operator, with a house of its own at the seam."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import AssetAlias
from airflow.sdk.exceptions import AirflowSkipException, DownstreamTasksSkipped
from airflow.sdk.execution_time.context import OutletEventAccessors
from structlog.testing import capture_logs

from criteo_provider.core.errors import LedgerRefused
from criteo_provider.hooks.assets import ALIAS, audience_asset
from criteo_provider.operators import upload
from criteo_provider.operators.upload import CriteoAudienceUploadOperator
from criteo_provider.wiring import Progress, StepNumbers

NUMBERS = StepNumbers(
    canvas="retargeting", step="add_quiet", audience="Quiet customers", ad_account="1001", operation="add",
    declared=True, entered=10, proceeded=10, synced=8, not_synced=2, pending=0, errored=0, exited=0, waiting=0,
    not_synced_reasons={}, as_of_us=1,
)  # fmt: skip
STILL = replace(NUMBERS, canvas="suppression", step="suppress", audience="Recent buyers")


@dataclass
class FakeAlarms:
    """Whether there is something to tell; looking may find something."""

    untold: bool = False
    comes: bool = False

    def look(self) -> None:
        self.untold = self.untold or self.comes

    def is_untold(self) -> bool:
        return self.untold


@dataclass
class FakeHouse:
    """A house that drains as it is told and counts two users more afterwards."""

    work: Callable[[threading.Event], None] = lambda _stop: None
    retry: bool = True
    roles: list[str] = field(default_factory=list)
    drained: bool = False
    closed: bool = False
    alarms: FakeAlarms = field(default_factory=lambda: FakeAlarms())

    def waiting(self) -> Any:
        return SimpleNamespace(fresh=False, retry=self.retry)

    def drain(
        self, role: str, *, stop: threading.Event, max_s: float, on_progress: Callable[[Progress], None]
    ) -> Progress:
        self.roles.append(role)
        self.work(stop)
        done = Progress(entered=2, requests=1, accepted=1, identifiers=3, given_up=0)
        on_progress(done)
        self.drained = True
        return done

    def numbers(self) -> list[StepNumbers]:
        if not self.drained:
            return [NUMBERS, STILL]
        return [replace(NUMBERS, entered=12, proceeded=12, synced=10, as_of_us=2), replace(STILL, as_of_us=2)]

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> FakeHouse:
    fake = FakeHouse()
    monkeypatch.setattr(upload, "open_house", lambda: fake)
    return fake


@dataclass
class FakeInstance:
    """Keeps what is pushed to XCom."""

    pushed: dict[str, Any] = field(default_factory=dict)

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value


def run(
    operator: CriteoAudienceUploadOperator, instance: FakeInstance | None = None
) -> tuple[Any, OutletEventAccessors]:
    events = OutletEventAccessors()
    return operator.execute({"outlet_events": events, "ti": instance or FakeInstance()}), events


def test_drains_and_counts(house: FakeHouse) -> None:
    """The operator drains its role and returns counts, nothing else; the house is closed behind it."""
    done, _ = run(CriteoAudienceUploadOperator(task_id="upload"))
    assert done == {"entered": 2, "requests": 1, "accepted_requests": 1, "identifiers": 3, "errored": 0}
    assert (house.roles, house.closed) == (["fresh"], True)


def test_tells_other_dags(house: FakeHouse) -> None:
    """An audience that people were synced to gets one asset event with how many; untouched audiences get none."""
    _, events = run(CriteoAudienceUploadOperator(task_id="upload"))
    (event,) = events[AssetAlias(ALIAS)].asset_alias_events
    assert event.extra == {"operation": "add", "canvas": "retargeting", "step": "add_quiet", "users": 2}
    asset = audience_asset("1001", "Quiet customers")
    assert (event.dest_asset_key.name, event.dest_asset_key.uri) == (asset.name, asset.uri)


def test_shows_the_seven_metrics_of_what_moved(house: FakeHouse) -> None:
    """The log shows all seven metrics, under the names people know, of the steps that changed and no others."""
    with capture_logs() as records:
        run(CriteoAudienceUploadOperator(task_id="upload"))
    lines = [str(record["event"]) % record.get("positional_args", ()) for record in records]
    assert lines[-1] == (
        "retargeting, step add_quiet (add 'Quiet customers'): Entered 12, Proceeded to Next Step 12, Users Synced 10, "
        "Users Not Synced 2, Users Pending 0, Users Errored 0, Exited Canvas 0"
    )
    assert not any("suppression" in line for line in lines)
    assert lines.index("::group::Progress") < lines.index("::endgroup::")


def test_retry_is_skipped_when_nothing_is_due(house: FakeHouse) -> None:
    """The retry DAG skips itself when there is nothing to retry, and drains its own role when there is."""
    house.retry = False
    with pytest.raises(AirflowSkipException):
        run(CriteoAudienceUploadOperator(task_id="retry", role="retry"))
    assert (house.roles, house.closed) == ([], True)
    house.retry = True
    run(CriteoAudienceUploadOperator(task_id="retry", role="retry"))
    assert house.roles == ["retry"]


def test_a_retry_is_resumed_by_its_trigger(house: FakeHouse) -> None:
    """What the triggerer has seen is done by a worker as if it had begun there."""
    house.retry = True
    operator = CriteoAudienceUploadOperator(task_id="retry", role="retry")
    done = operator.resume({"outlet_events": OutletEventAccessors(), "ti": FakeInstance()}, event={})
    assert (done["entered"], house.roles) == (2, ["retry"])


def test_kill_stops_the_drain(house: FakeHouse) -> None:
    """Killing the task lets the drain end by itself instead of cutting it off."""
    operator = CriteoAudienceUploadOperator(task_id="upload")
    house.work = lambda stop: (operator.on_kill(), stop.wait(10))[0]
    began_s = time.monotonic()
    run(operator)
    assert house.drained
    assert time.monotonic() - began_s < 10, "the drain was not asked to stop"


def test_a_refused_ledger_fails_the_task(house: FakeHouse) -> None:
    """What nobody can work with fails the run with its sentence, and the house is still closed."""

    def refuse(_: threading.Event) -> None:
        raise LedgerRefused("The ledger belongs to another host.")

    house.work = refuse
    with pytest.raises(LedgerRefused, match="another host"):
        run(CriteoAudienceUploadOperator(task_id="upload"))
    assert house.closed


def test_nothing_to_tell_starts_no_worker(house: FakeHouse) -> None:
    """With nothing new the task that tells is skipped by the scheduler, and the counts are in XCom all the same."""
    instance = FakeInstance()
    with pytest.raises(DownstreamTasksSkipped) as skipped:
        run(CriteoAudienceUploadOperator(task_id="upload", tell="tell"), instance)
    assert skipped.value.tasks == ["tell"]
    assert instance.pushed["return_value"]["entered"] == 2


def test_something_to_tell_ends_the_drain(house: FakeHouse) -> None:
    """A change of state stops the drain and lets the task that tells run; one from before it began does not."""
    stopped: list[threading.Event] = []

    def something_breaks(stop: threading.Event) -> None:
        house.alarms.untold = True
        stopped.append(stop)

    house.work = something_breaks
    for ended_early in (True, False):
        done, _ = run(CriteoAudienceUploadOperator(task_id="upload", tell="tell"))
        assert done["entered"] == 2
        assert stopped[-1].is_set() is ended_early


def test_the_retry_dag_sees_who_is_late(house: FakeHouse) -> None:
    """With nothing to retry the retry DAG still looks whether users wait for too long, and then goes on to tell."""
    house.retry = False
    house.alarms.comes = True
    done, _ = run(CriteoAudienceUploadOperator(task_id="retry", role="retry", tell="tell"))
    assert (done["entered"], house.roles) == (2, ["retry"])
