"""Thirteen hours end to end: the real operator and the real retry DAG, a sandbox, and a clock the test moves."""

from __future__ import annotations

import runpy
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, DownstreamTasksSkipped
from airflow.sdk.execution_time.context import OutletEventAccessors
from sqlalchemy import select

from criteo_provider.core.model import Metric
from criteo_provider.operators import tell, upload
from criteo_provider.operators.upload import CriteoAudienceUploadOperator
from criteo_provider.sandbox.running import Sandbox
from criteo_provider.sandbox.state import CLIENT_ID, CLIENT_SECRET
from criteo_provider.store.schema import metric
from criteo_provider.wiring import CriteoConnection, House, Surroundings
from tests.flow.shop import Person, Sealer, Shop, sync, write_canvas
from tests.webhook import NOTIFY, Webhook, running_webhook
from tests.world import HOUR_US, START_US, view_rows

PROJECT = Path(__file__).parents[2]
SECOND_US = 1_000_000


class MovableClock:
    """Tells the time it was moved to."""

    def __init__(self) -> None:
        self.at_us = START_US

    def now_us(self) -> int:
        return self.at_us


class Story:
    """A deployment at a moment of its own: both DAGs' tasks, and what readers see."""

    def __init__(self, open_house: Callable[[], House], clock: MovableClock) -> None:
        self.open_house, self.clock = open_house, clock
        self.fresh = CriteoAudienceUploadOperator(task_id="upload", longest_drain_s=60)
        self.retry = runpy.run_path(str(PROJECT / "dags" / "criteo_audience_retry.py"))["retry"]

    def run(self, task: Any) -> bool:
        """Run a task as Airflow would; tell whether the one downstream of it is to run."""
        context = {"outlet_events": OutletEventAccessors(), "ti": SimpleNamespace(xcom_push=lambda *_: None)}
        try:
            task.execute(context)
        except (AirflowSkipException, DownstreamTasksSkipped):
            return False
        return True

    def told(self, *hours: float) -> list[str]:
        """Let the whole retry DAG run at each of these hours after the beginning; return how its ``tell`` ends."""
        (tell_task,) = self.retry.downstream_list
        states = []
        for hour in hours:
            self.clock.at_us = self.began_us + round(hour * HOUR_US)
            states.append("skipped")
            if self.run(self.retry):
                try:
                    states[-1] = "success" if self.run(tell_task) else "skipped"
                except AirflowFailException:
                    states[-1] = "failed"
        return states

    def pass_hours(self, *hours: float) -> None:
        """Come to these hours after the beginning one by one, and let both DAGs do their work at each."""
        for hour in hours:
            self.clock.at_us = self.began_us + round(hour * HOUR_US)
            self.run(self.retry)
            self.run(self.fresh)

    def begin(self) -> None:
        """Let the high-frequency DAG try for the first time."""
        self.began_us = self.clock.at_us
        self.run(self.fresh)

    def seen(self) -> tuple[dict[str, int], set[tuple[str, str | None]]]:
        """What the numbers and the per-user view say."""
        with closing(self.open_house()) as house:
            (step,) = house.numbers()
            rows = view_rows(house.ledger.engine, "add", now_us=self.clock.at_us)
            assert house.prove() == []
        numbers = {"Pending": step.pending, "Synced": step.synced, "Errored": step.errored}
        return {name: number for name, number in numbers.items() if number}, {
            (row["status"], row["reason"]) for row in rows if row["status"] != "Not Synced"
        }


@pytest.fixture
def chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    with running_webhook() as server:
        monkeypatch.setenv("AIRFLOW_CONN_CHAT", f"http://127.0.0.1:{server.server_port}")
        (tmp_path / "include").mkdir()
        (tmp_path / "include" / "alerts.yaml").write_text(yaml.safe_dump({"notify": [NOTIFY]}))
        yield server


@pytest.fixture
def story(sandbox: Sandbox, shop: Shop, ledger_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Story:
    write_canvas(tmp_path / "include", "vip", sync("add", "Shoppers"))
    clock, sealer = MovableClock(), Sealer()
    connection = CriteoConnection(CLIENT_ID, CLIENT_SECRET, sandbox.url, requests_per_minute=60_000)
    around = Surroundings(tmp_path / "include", ledger_url, lambda _name: connection, shop.source, sealer)
    open_house = lambda: House(around, clock=clock)  # noqa: E731
    monkeypatch.setattr(upload, "open_house", open_house)
    monkeypatch.setattr(tell, "open_house", open_house)
    return Story(open_house, clock)


def people(first: int) -> list[Person]:
    """Five people with an address who said yes."""
    return [Person(number) for number in range(first, first + 9) if Person(number).email and Person(number).ads]


@pytest.mark.slow
def test_thirteen_hours_of_a_broken_criteo(story: Story, sandbox: Sandbox, shop: Shop) -> None:
    """Pending at 12:59:59 and Errored at 13:00:01, for every reader; the retry DAG then records it."""
    crowd = people(1)
    shop.add(crowd)
    sandbox.fault(operation="amend", status=503, times=None)
    story.begin()
    story.pass_hours(1, 6, 12.5)
    story.clock.at_us = story.began_us + 13 * HOUR_US - SECOND_US
    numbers, rows = story.seen()
    assert numbers == {"Pending": len(crowd)}
    assert {status for status, _ in rows} == {"Pending"}
    story.clock.at_us = story.began_us + 13 * HOUR_US + SECOND_US
    for _ in ("before the sweep", "after it"):
        numbers, rows = story.seen()
        assert numbers == {"Errored": len(crowd)}
        ((status, reason),) = rows
        assert status == "Errored"
        assert "HTTP 503" in (reason or "")
        story.run(story.retry)
    sandbox.clear_faults()
    story.pass_hours(14)
    assert story.seen()[0] == {"Errored": len(crowd)}


@pytest.mark.slow
def test_an_answer_that_comes_after_the_deadline_counts(story: Story, sandbox: Sandbox, shop: Shop) -> None:
    """Sent at 12:59:59 and answered after 13:00:00: Pending for whoever reads meanwhile, then Synced, never Errored."""
    crowd = people(1)
    shop.add(crowd)
    sandbox.fault(operation="amend", status=503, times=None)
    story.begin()
    story.pass_hours(1, 6, 12.5)
    sandbox.clear_faults()
    sandbox.fault(operation="amend", delay_s=15, times=1)
    story.clock.at_us = story.began_us + 13 * HOUR_US - SECOND_US
    before = max(entry["number"] for entry in sandbox.requests())
    retrying = threading.Thread(target=story.run, args=(story.retry,))
    retrying.start()
    while not sandbox.requests(before) and retrying.is_alive():
        retrying.join(0.05)  # until the request has left
    story.clock.at_us += 2 * SECOND_US
    read = []
    while retrying.is_alive():
        with closing(story.open_house()) as house:  # as any other process with a drain does
            house.ledger.sweep(now_us=story.clock.at_us)
        numbers, rows = story.seen()
        read.append((numbers, {status for status, _ in rows}))
        retrying.join(0.2)
    pending, synced = ({name: len(crowd)} for name in ("Pending", "Synced"))
    assert (pending, {"Pending"}) in read
    assert all(numbers in (pending, synced) for numbers, _ in read)
    assert all("Errored" not in statuses for _, statuses in read)
    story.run(story.retry)
    numbers, rows = story.seen()
    assert numbers == synced
    assert {status for status, _ in rows} == {"Synced"}
    with closing(story.open_house()) as house, house.ledger.engine.connect() as connection:
        errored = connection.execute(select(metric.c.value).where(metric.c.metric == Metric.ERRORED.value)).all()
    assert errored == []
    (segment,) = (one for one in sandbox.state()["segments"] if one["name"] == "Shoppers")
    assert all(sandbox.is_member(str(segment["id"]), [one.digest or "" for one in crowd]))


@pytest.mark.slow
def test_late_users_are_one_alert_and_one_when_they_are_on_time(
    chat: Webhook, story: Story, sandbox: Sandbox, shop: Shop
) -> None:
    """However many runs see them late, one `tell` fails and one succeeds; the chat hears of each once."""
    shop.add(people(1))
    sandbox.fault(operation="amend", status=503, times=None)
    story.begin()
    assert story.told(0.2) == ["skipped"]
    assert story.told(0.3, 0.5, 1, 2, 6) == ["failed", *["skipped"] * 4]
    sandbox.clear_faults()
    states = story.told(6.5, 6.6, 7, 9)
    assert (states.count("success"), states.count("skipped")) == (1, 3)
    late, on_time = (message["text"] for message in chat.messages)
    assert late.startswith("The oldest pending user of canvas vip has waited for more than 15 min.")
    assert on_time == "Over: the users of canvas vip are on time again."
    assert story.seen()[0] == {"Synced": len(people(1))}


@pytest.mark.slow
def test_users_given_up_are_one_alert_and_one_when_it_is_over(
    chat: Webhook, story: Story, sandbox: Sandbox, shop: Shop
) -> None:
    """Users who become Errored in several sweeps fail one `tell`; an hour after the last of them one succeeds."""
    shop.add(people(1))
    sandbox.fault(operation="amend", status=503, times=None)
    story.begin()
    shop.add(people(20))
    story.pass_hours(0.4)
    story.told(0.5, 6, 12.9)
    heard = len(chat.messages)
    states = story.told(13.01, 13.1, 13.45, 13.6)
    assert states.count("failed") == 1, chat.messages
    assert story.seen()[0] == {"Errored": len(people(1)) + len(people(20))}
    states = story.told(14, 14.7, 15, 20)
    assert states.count("success") == 1
    assert "failed" not in states
    told = " / ".join(message["text"] for message in chat.messages[heard:])
    assert told.count("Users of canvas vip were given up after 13 h of retries") == 1
    assert told.count("Over: nobody of canvas vip was given up for an hour.") == 1


TROUBLES = {
    "an invalid token": {"operation": "token", "status": 401, "body": '{"error": "invalid_client"}'},
    "a revoked consent": {
        "operation": "amend",
        "status": 403,
        "error_type": "access-control",
        "code": "insufficient-advertiser-permissions",
    },
    "a deleted list": {
        "operation": "amend",
        "status": 404,
        "error_type": "validation",
        "code": "audience-invalid",
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("trouble", TROUBLES)
def test_what_is_mended_at_hour_six_drains_by_itself(story: Story, sandbox: Sandbox, shop: Shop, trouble: str) -> None:
    """Six hours of trouble keep everybody Pending; once it is over all are Synced, and nobody had to click."""
    shop.add(people(1))
    story.begin()
    assert story.seen()[0] == {"Synced": len(people(1))}
    sandbox.fault(**TROUBLES[trouble], times=None)
    shop.add(people(20))
    story.pass_hours(0.5, 1, 3, 5.9)
    assert story.seen()[0] == {"Synced": len(people(1)), "Pending": len(people(20))}
    sandbox.clear_faults()
    story.pass_hours(6.3, 6.6, 6.9)
    assert story.seen()[0] == {"Synced": len(people(1)) + len(people(20))}
