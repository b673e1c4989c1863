"""kill -9 of everything in a running Airflow, while people keep arriving: nobody is lost, only what flew is repeated.

Each component of Airflow is a program of its own, the ledger is kept in PostgreSQL, and whatever is killed is started
again as a supervisor would. The tests stand in the order they run in.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil
import psycopg
import pytest

from tests.e2e.live import RETRY, SYNC, Live, running
from tests.flow.test_crashes import prove_requests
from tests.postgres import PostgresServer, running_postgres

# One Airflow for all of them: starting one takes longer than most of these tests.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# Airflow notices the dead after some seconds, not after minutes; how it notices them stays the same.
SOON_NOTICED = {
    "scheduler__job_heartbeat_sec": "2",
    "scheduler__scheduler_health_check_threshold": "8",
    "scheduler__orphaned_tasks_check_interval": "4",
    "scheduler__task_instance_heartbeat_timeout": "20",
    "scheduler__task_instance_heartbeat_timeout_detection_interval": "4",
    "scheduler__task_instance_heartbeat_sec": "4",
    "triggerer__job_heartbeat_sec": "2",
    "triggerer__triggerer_health_check_threshold": "8",
}
LATENCY_S = 1.0
# What Airflow calls the processes: "airflow worker -- <id>" runs a task, "airflow worker -- LocalExecutor: …" watches.
TASK, EXECUTOR = "airflow worker -- ", "LocalExecutor"


@dataclass
class Danger:
    """The house, its ledger's server, and the people who never stop coming."""

    live: Live
    server: PostgresServer
    kills: int = 0

    @contextmanager
    def people_arriving(self) -> Iterator[None]:
        """Let two people come into the shop every half second."""
        stop = threading.Event()

        def come() -> None:
            while not stop.wait(0.5):
                self.live.shop.add(2)

        thread = threading.Thread(target=come, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def ask(self, question: str) -> list[tuple[object, ...]]:
        """Ask the ledger itself."""
        url = self.server.url().replace("postgresql+psycopg://", "postgresql://", 1)
        with psycopg.connect(url, autocommit=True) as ledger:
            done = ledger.execute(question)
            return done.fetchall() if done.description else []

    def while_something_flies(self) -> None:
        """Return when a request was claimed, and its answer is some time off."""
        flying = (
            "SELECT id FROM request WHERE state = 'in_flight' AND "
            "claimed_us > extract(epoch FROM clock_timestamp()) * 1000000 - 400000"
        )
        self.live.until(lambda: bool(self.ask(flying)), "a request is in flight")

    def newcomers_arrive(self) -> None:
        """Wait until somebody who comes into the shop from now on is at Criteo."""
        people = self.live.shop.add(2)
        self.live.arrived("Everybody", people)
        self.live.arrived("Others", people, "1002")

    def is_waiting(self) -> bool:
        """Whether the high-frequency DAG waits in the triggerer."""
        run = self.live.runs(SYNC)[-1]
        return self.live.airflow.task_states(SYNC, run["dag_run_id"]).get("wait_for_people") == "deferred"

    def failed_runs(self) -> int:
        """How many runs a user sees as failed."""
        return sum(run["state"] == "failed" for dag_id in (SYNC, RETRY) for run in self.live.runs(dag_id))

    def tasks(self) -> list[psutil.Process]:
        """The processes that run a task of ours at this moment."""
        titles = {each: _title(each) for each in self._of("scheduler")}
        return [each for each, title in titles.items() if TASK in title and EXECUTOR not in title]

    def _of(self, component: str) -> list[psutil.Process]:
        pid = self.live.household.pid(component)
        return psutil.Process(pid).children(recursive=True)

    def kill(self, component: str) -> None:
        """End a component with SIGKILL, with all it started, and start it again as a supervisor would."""
        children = self._of(component)
        self.live.household.kill(component)
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        self.live.airflow.start_component(self.live.household, component)


def _title(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


@pytest.fixture(scope="module")
def danger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Danger]:
    place = tmp_path_factory.mktemp("kills") / "house"
    with (
        running_postgres(durable=True) as server,
        running(place, apart=True, ledger=server, settings=SOON_NOTICED) as live,
    ):
        live.sandbox.rules(latency_s=LATENCY_S)
        yield Danger(live, server)


def a_task(danger: Danger) -> None:
    """The process that runs the task, as a machine short of memory would."""
    tasks = danger.tasks()
    assert tasks
    for task in tasks:
        task.kill()


def a_worker(danger: Danger) -> None:
    """The task, and the process of the executor that looks after it."""
    tasks = danger.tasks()
    assert tasks
    for task in tasks:
        parent = task.parent()
        assert parent is not None
        parent.kill()
        task.kill()


def the_scheduler(danger: Danger) -> None:
    """The scheduler with its workers, as a container that ends."""
    danger.kill("scheduler")


def the_scheduler_alone(danger: Danger) -> None:
    """The scheduler; its workers live on beside those of the next one."""
    danger.live.household.kill("scheduler")
    danger.live.airflow.start_component(danger.live.household, "scheduler")


def the_database(danger: Danger) -> None:
    """PostgreSQL, as in a power cut."""
    danger.server.kill()
    time.sleep(2)
    danger.server.start()


def the_database_restarted(danger: Danger) -> None:
    """PostgreSQL, as in an update: whoever is connected is cut off."""
    danger.server.stop()
    time.sleep(2)
    danger.server.start()


KILLS = [a_task, a_worker, the_scheduler, the_scheduler_alone, the_database, the_database_restarted]


def test_people_arrive(danger: Danger) -> None:
    """Before anything is killed, people get to both audiences by themselves."""
    danger.live.until(lambda: danger.live.numbers("people") is not None, "the page has a ledger")
    danger.newcomers_arrive()


@pytest.mark.parametrize("victim", KILLS, ids=lambda victim: victim.__name__)
def test_a_killed_one_stops_nobody_for_long(danger: Danger, victim: Callable[[Danger], None]) -> None:
    """Whatever is killed while requests fly: who comes afterwards is at Criteo soon, and hardly a run has failed."""
    failed = danger.failed_runs()
    with danger.people_arriving():
        danger.while_something_flies()
        victim(danger)
        danger.kills += 1
        danger.newcomers_arrive()
    danger.live.until(danger.is_waiting, "the sensor waits for people again")
    assert danger.failed_runs() - failed <= 1


def test_a_killed_triggerer_waits_on(danger: Danger) -> None:
    """A triggerer killed while it waits for people is followed by one that sees them come."""
    danger.live.until(danger.is_waiting, "the sensor waits in the triggerer")
    failed = danger.failed_runs()
    danger.kill("triggerer")
    danger.newcomers_arrive()
    assert danger.failed_runs() == failed


def test_everybody_is_settled_and_only_what_flew_is_repeated(danger: Danger) -> None:
    """Once the leases of the dead are over everybody is synced with no click, and lists, numbers and calls agree."""
    live = danger.live
    flying = "SELECT id FROM request WHERE state = 'in_flight' OR state = 'unknown'"
    answered = "SELECT id FROM part WHERE state = 1 AND attempts = 0"
    live.until(lambda: not danger.ask(answered), "everybody was sent once")
    time.sleep(LATENCY_S + 4)
    assert danger.ask(flying), "nothing was in flight when its owner died, so this proves nothing"
    # Nearly four minutes pass for those whose owner is dead.
    danger.ask("UPDATE request SET lease_until_us = claimed_us WHERE state IN ('in_flight', 'unknown')")
    people = len(live.shop.people)
    for canvas in ("people", "others"):
        live.drained(canvas, people)
        numbers = live.numbers(canvas)
        assert (numbers["entered"], numbers["synced"]) == (people, people)
    code, said = live.command("db", "check")
    assert (code, "All laws hold" in said) == (0, True), said
    sizes = {(str(one["name"]), str(one["advertiser_id"])): one["size"] for one in live.sandbox.state()["segments"]}
    assert sizes == {("Everybody", "1001"): 2 * people, ("Others", "1002"): 2 * people}
    assert all(live.has("Everybody", live.shop.people))
    assert all(live.has("Others", live.shop.people, "1002", identifier="maid"))
    # Nobody leaves here: a removal is a launch that tries whether it may change an audience another process has made.
    prove_requests(live.sandbox, danger.server.url(), kills=danger.kills, changes=("add",))


def test_what_a_user_sees(danger: Danger) -> None:
    """A kill fails at most one run each, and afterwards the next run waits for people as ever."""
    # A run that has just ended is followed within a second or two; in between none is running.
    danger.live.until(danger.is_waiting, "the sensor of the next run waits for people")
    states = [run["state"] for run in danger.live.runs(SYNC)]
    assert states.count("failed") <= danger.kills
    assert not danger.live.page()["problems"]
