"""Waiting for people: the sensor, its trigger, and the one look they share."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow._shared.module_loading import import_string
from airflow.jobs.triggerer_job_runner import ToTriggerRunner, ToTriggerSupervisor
from airflow.sdk.exceptions import TaskDeferred
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import GetTICount, TICount
from airflow.triggers.base import BaseTrigger, TaskSkippedEvent, TaskSuccessEvent, TriggerEvent
from pydantic import TypeAdapter
from structlog.testing import capture_logs

from criteo_provider.core.errors import LedgerRefused, SourceFailed
from criteo_provider.hooks import lookout
from criteo_provider.sensors.segment import SegmentEntrySensor
from criteo_provider.triggers import segment
from criteo_provider.triggers.retry import RetryDueTrigger
from criteo_provider.triggers.segment import SegmentEntryTrigger

POLL_S = 0.01


@dataclass
class Waiting:
    fresh: bool = False
    retry: bool = False
    problems: tuple[str, ...] = ()
    next_due_s: float | None = None


@dataclass
class FakeAlarms:
    """Has news when ``comes`` and somebody has looked; an exception is raised."""

    comes: bool | Exception = False
    looked: int = 0

    def look(self) -> None:
        self.looked += 1
        if isinstance(self.comes, Exception):
            raise self.comes

    def is_untold(self) -> bool:
        return bool(self.comes and self.looked)


@dataclass
class FakeHouse:
    """Answers looks in turn, the last one for ever; an exception is raised."""

    looks: list[Waiting | BaseException]
    alarms: FakeAlarms = field(default_factory=FakeAlarms)
    looked: int = 0
    opened: int = 0
    closed: int = 0

    def open(self) -> FakeHouse:
        self.opened += 1
        return self

    def waiting(self, *, sparing: bool) -> Waiting:
        assert sparing, "who looks every second spares slow sources"
        answer = self.looks[min(self.looked, len(self.looks) - 1)]
        self.looked += 1
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def include(tmp_path: Path) -> Path:
    (tmp_path / "canvases").mkdir()
    return tmp_path


@pytest.fixture
def house(include: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHouse]:
    fake = FakeHouse([Waiting()])
    monkeypatch.setattr(lookout, "open_house", fake.open)
    monkeypatch.setattr(lookout, "include_folder", lambda: include)
    segment.shared_lookout.cache_clear()
    segment.shared_lookout().same_look_s = 0
    yield fake
    segment.shared_lookout.cache_clear()


def said(records: list[Any]) -> list[str]:
    return [str(record["event"]) % record.get("positional_args", ()) for record in records]


async def events(trigger: BaseTrigger) -> list[TriggerEvent]:
    async with asyncio.timeout(20):
        return [event async for event in trigger.run()]


def test_round_trip() -> None:
    """A trigger rebuilt from what it serializes to, over JSON and by its path, is the same trigger."""
    path, arguments = SegmentEntryTrigger(poll_interval_s=2.5, hold_back_after="upload").serialize()
    again = import_string(path)(**json.loads(json.dumps(arguments)))
    assert isinstance(again, SegmentEntryTrigger)
    assert again.serialize() == (path, arguments)


def test_waits_until_people_are_there(house: FakeHouse) -> None:
    """The trigger ends its task itself, with counts only, at the first look that finds people."""
    house.looks = [Waiting(), Waiting(), Waiting(fresh=True, retry=True)]
    (event,) = asyncio.run(events(SegmentEntryTrigger(POLL_S)))
    assert isinstance(event, TaskSuccessEvent)
    assert event.xcoms == {"waiting": {"fresh": True, "retry": True, "problems": 0}}
    assert house.looked == 3


def test_due_retries_wake_nobody(house: FakeHouse) -> None:
    """Retries that belong to the retry DAG do not end the wait of the sync DAG."""
    house.looks = [Waiting(retry=True), Waiting(retry=True), Waiting(fresh=True)]
    asyncio.run(events(SegmentEntryTrigger(POLL_S)))
    assert house.looked == 3


def test_survives_errors(house: FakeHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failing look is one line in the log without data, a house opened anew, and another try."""
    monkeypatch.setattr(segment, "LONGEST_PAUSE_S", POLL_S)
    house.looks = [
        RuntimeError("connection for ada@example.com lost"),
        RuntimeError("connection for bob@example.com lost"),
        LedgerRefused("The ledger belongs to another host."),
        Waiting(fresh=True),
    ]
    with capture_logs() as records:
        asyncio.run(events(SegmentEntryTrigger(POLL_S)))
    assert said(records) == [
        "Cannot look for people: RuntimeError Trying again.",
        "Cannot look for people: The ledger belongs to another host. Trying again.",
        "All canvases can be looked at again.",
    ]
    assert (house.opened, house.closed) == (4, 3)


def test_a_broken_source_is_said_once(house: FakeHouse) -> None:
    """A source that cannot be looked at is said when it begins and not at every look; the others go on."""
    broken = Waiting(problems=("canvas retargeting: the source cannot be reached",))
    house.looks = [broken, broken, broken, Waiting(fresh=True, problems=broken.problems)]
    with capture_logs() as records:
        (event,) = asyncio.run(events(SegmentEntryTrigger(POLL_S)))
    assert said(records) == list(broken.problems)
    assert event.xcoms == {"waiting": {"fresh": True, "retry": False, "problems": 1}}


def test_many_sensors_share_one_look(house: FakeHouse) -> None:
    """Ten triggers in one triggerer look once, not ten times."""
    segment.shared_lookout().same_look_s = 60

    async def ten() -> None:
        house.looks = [Waiting(fresh=True)]
        await asyncio.gather(*(events(SegmentEntryTrigger(POLL_S)) for _ in range(10)))

    asyncio.run(ten())
    assert (house.looked, house.opened) == (1, 1)


def test_edited_canvases_are_seen(house: FakeHouse, include: Path) -> None:
    """The house is kept open between looks, and opened anew when a canvas file changes."""
    watch = lookout.Lookout(same_look_s=0)
    for _ in range(3):
        asyncio.run(watch.look())
    assert house.opened == 1
    (include / "canvases" / "new.yaml").write_text("name: New")
    asyncio.run(watch.look())
    assert (house.opened, house.closed) == (2, 1)


def test_code_that_wants_to_end_the_process_ends_one_look(house: FakeHouse) -> None:
    """`sys.exit()` in a look is told as an error that no event loop takes for its own end; the next look answers."""
    house.looks = [SystemExit(1), Waiting(fresh=True)]

    async def look_twice() -> Waiting:
        async with asyncio.timeout(20):
            with pytest.raises(SourceFailed, match="ended with SystemExit"):
                await segment.shared_lookout().look()
            return await segment.shared_lookout().look()  # type: ignore[return-value]

    assert asyncio.run(look_twice()).fresh
    assert (house.opened, house.closed) == (2, 1)


def test_sensor_defers() -> None:
    """Where Airflow starts the sensor in a worker after all, it goes to the same trigger at once."""
    sensor = SegmentEntrySensor(task_id="wait", poll_interval_s=3)
    with pytest.raises(TaskDeferred) as deferral:
        sensor.execute({})
    assert deferral.value.trigger.serialize()[1] == {"poll_interval_s": 3, "hold_back_after": None}
    assert deferral.value.method_name == "done"
    sensor.done({}, event=None)


def test_sensors_do_not_share_arguments() -> None:
    """Each sensor starts its trigger with its own arguments."""
    slow, quick = (SegmentEntrySensor(task_id=f"wait_{s}", poll_interval_s=s) for s in (9, 1))
    arguments: list[Any] = [each.start_trigger_args.trigger_kwargs for each in (slow, quick)]
    assert [each["poll_interval_s"] for each in arguments] == [9, 1]


# --- after a failed upload -------------------------------------------------------------------------------


class FakeAirflow:
    """Answers how often the upload task has ended in a state."""

    def __init__(self) -> None:
        self.ended = {"failed": 0, "skipped": 0, "success": 0}
        self.asked: list[Any] = []

    async def asend(self, question: GetTICount) -> TICount:
        self.asked.append(question)
        assert question.states is not None
        return TICount(count=sum(self.ended[state] for state in question.states))


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> FakeAirflow:
    airflow = FakeAirflow()
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", airflow, raising=False)
    monkeypatch.setattr(segment, "_failures", segment.FailuresInARow())
    return airflow


def held_back() -> SegmentEntryTrigger:
    trigger = SegmentEntryTrigger(POLL_S, hold_back_after="upload")
    trigger._task_instance = SimpleNamespace(dag_id="criteo_audience_sync")
    return trigger


def test_three_hours_of_failures_make_few_runs() -> None:
    """A DAG whose every upload fails at once makes no more than 20 runs in three hours, and recovers at once."""
    failures, passed_s, runs = segment.FailuresInARow(), 0.0, 0
    while passed_s < 3 * 3_600:
        passed_s += failures.pause_s("dag", failed=7 + runs, succeeded=100)
        runs += 1
    assert 10 < runs <= 20
    assert failures.pause_s("dag", failed=7 + runs, succeeded=101) == 0
    assert failures.pause_s("dag", failed=8 + runs, succeeded=101) == segment.SHORTEST_HOLD_S


def test_one_failure_counts_once() -> None:
    """The same failure seen again, by a trigger that was moved, does not lengthen the pause; other DAGs have none."""
    failures = segment.FailuresInARow()
    failures.pause_s("dag", failed=0, succeeded=0)
    pauses = [failures.pause_s("dag", failed=1, succeeded=0) for _ in range(3)]
    assert pauses == [segment.SHORTEST_HOLD_S] * 3
    assert failures.pause_s("other", failed=5, succeeded=0) == 0
    assert failures.pause_s("dag", failed=0, succeeded=0) == 0, "old runs were removed from Airflow"


@pytest.mark.parametrize("state", ["failed", "skipped"])
def test_holds_back_until_a_canvas_is_edited(uploads: FakeAirflow, house: FakeHouse, include: Path, state: str) -> None:
    """After an upload that failed, or was skipped for that lasts, nobody looks until a canvas is edited."""
    house.looks = [Waiting(fresh=True)]

    async def edit_meanwhile() -> int:
        await events(held_back())
        uploads.ended[state] += 1
        waiting = asyncio.create_task(events(held_back()))
        await asyncio.sleep(10 * POLL_S)
        looked = house.looked
        (include / "canvases" / "mended.yaml").write_text("name: Mended")
        await waiting
        return looked

    assert asyncio.run(edit_meanwhile()) == 1
    assert house.looked == 2
    assert {tuple(question.task_ids) for question in uploads.asked} == {("upload",)}


def test_an_airflow_that_does_not_answer_holds_nobody_back(uploads: FakeAirflow, house: FakeHouse) -> None:
    """When Airflow does not say how uploads ended, the trigger looks at once."""
    house.looks = [Waiting(fresh=True)]
    uploads.ended.clear()
    asyncio.run(events(held_back()))
    assert house.looked == 1


def test_the_triggerer_understands_the_answer() -> None:
    """The question how uploads ended, and its answer, are among the few messages a triggerer can exchange."""
    question = TypeAdapter(ToTriggerSupervisor).validate_python({"type": "GetTICount", "dag_id": "dag"})
    answer = TypeAdapter(ToTriggerRunner).validate_python({"type": "TICount", "count": 3})
    assert (type(question), answer) == (GetTICount, TICount(count=3))


@pytest.mark.parametrize("tells", [True, False])
def test_a_retry_trigger_is_rebuilt(tells: bool) -> None:
    """The trigger of the retry DAG is the same after a way through Airflow's database."""
    path, arguments = RetryDueTrigger(tells=tells).serialize()
    again = import_string(path)(**json.loads(json.dumps(arguments)))
    assert isinstance(again, RetryDueTrigger)
    assert again.serialize() == (path, {"tells": tells})


@pytest.mark.parametrize(
    ("retry", "late", "tells", "is_resumed"),
    [
        (False, False, True, False),
        (True, False, True, True),
        (False, True, True, True),
        (False, True, False, False),
    ],
)
def test_a_retry_takes_a_worker_only_when_there_is_something_to_do(
    house: FakeHouse, retry: bool, late: bool, tells: bool, is_resumed: bool
) -> None:
    """Nothing due and nothing to tell ends the task as skipped in the triggerer; who waits too long is looked for."""
    house.looks = [Waiting(retry=retry)]
    house.alarms.comes = late
    (event,) = asyncio.run(events(RetryDueTrigger(tells=tells)))
    assert isinstance(event, TaskSkippedEvent) is not is_resumed
    assert house.alarms.looked == 1


def test_a_retry_that_cannot_be_seen_takes_a_worker(house: FakeHouse) -> None:
    """A ledger that does not answer, or takes no writes, is a worker's to tell; the log holds no data of it."""
    for house.looks, house.alarms.comes in (
        ([RuntimeError("connection for ada@example.com lost")], False),
        ([Waiting()], LedgerRefused("of bob@example.com")),
    ):
        with capture_logs() as records:
            (event,) = asyncio.run(events(RetryDueTrigger(tells=True)))
        assert type(event) is TriggerEvent
        (line,) = said(records)
        assert line.startswith("Whether a retry is due cannot be seen here (")
        assert "@" not in line
        assert house.closed == house.opened
    house.looks, house.alarms.comes = [Waiting()], False
    (event,) = asyncio.run(events(RetryDueTrigger(tells=True)))
    assert isinstance(event, TaskSkippedEvent)
