"""`make run`: from nothing to everyone settled, in a real Airflow against the sandbox, and then at your service.

make run            stays up with the Airflow UI until Ctrl-C
make run ONCE=1     ends when all example people are settled and the numbers are proven
python scripts/run.py --add-person      while it runs: add somebody and see them arrive at Criteo
"""

from __future__ import annotations

import argparse
import fcntl
import importlib.util
import json
import shutil
import sys
import time
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

from lists import ComparedList, compare_lists
from local_airflow import PROJECT, LocalAirflow
from processes import Household, RunFailed, Stopped, free_port

from criteo_provider.sandbox.running import Sandbox
from criteo_provider.sandbox.state import CLIENT_ID, CLIENT_SECRET
from criteo_provider.wiring import House, StepNumbers, Surroundings

SYNC, RETRY = "criteo_audience_sync", "criteo_audience_retry"
NEEDED_BYTES = 1_000_000_000
SETTLED_WITHIN_S = 900.0


class Run:
    """One run in ``place``: example shop, sandbox, ledger and Airflow, all fresh."""

    def __init__(self, place: Path, household: Household, *, people: int) -> None:
        self.place, self.household, self.people = place, household, people
        self.shop, self.ledger = place / "example_shop.db", place / "ledger.db"
        self.airflow = LocalAirflow(place / "airflow", self.ledger)
        self.sandbox = Sandbox(f"http://127.0.0.1:{free_port(8780)}")

    def start(self) -> None:
        """Make the example people, start sandbox and Airflow, connect them, and let the two DAGs run."""
        say(f"Making an example shop with {self.people:,} people ...")
        example_data().create(self.shop, self.people)
        say("Starting the sandbox Criteo and Airflow (about half a minute) ...")
        port = self.sandbox.url.rsplit(":", 1)[-1]
        sandbox = [sys.executable, "-m", "criteo_provider.sandbox", "--port", port]
        self.household.start("sandbox", sandbox, self.airflow.environment)
        self.airflow.start(self.household)
        self.airflow.connect("example_shop", conn_type="sqlite", host=str(self.shop))
        self.airflow.connect(
            "criteo_default", conn_type="criteo", host=self.sandbox.url, login=CLIENT_ID, password=CLIENT_SECRET
        )
        for dag_id in (SYNC, RETRY):
            self.airflow.unpause(dag_id)
        (self.place / "run.json").write_text(json.dumps({"shop": str(self.shop), "sandbox": self.sandbox.url}))
        say(f"Airflow is at {self.airflow.url}   user {self.airflow.user}, password {self.airflow.password}")

    def settle(self) -> None:
        """Show how people settle until nobody is pending and the sensor waits again; raise RunFailed if it lasts."""
        began_s = time.monotonic()
        while True:
            self.household.check()
            steps = self.numbers()
            pending, entered = sum(step.pending for step in steps), sum(step.entered for step in steps)
            share = 100 * (entered - pending) / entered if entered else 0
            say(f"  {entered:>9,} entered   {pending:>9,} pending   {share:5.1f} % settled   {_each(steps)}")
            if entered and not pending and self._is_idle():
                return
            if time.monotonic() - began_s > SETTLED_WITHIN_S:
                raise RunFailed(f"Not everyone settled. {self.household.last_words('airflow')}")
            time.sleep(2)

    def numbers(self) -> list[StepNumbers]:
        """Return the seven metrics of each step from the ledger."""
        if not self.ledger.exists():
            return []
        with closing(self._house()) as house:
            return list(house.numbers())

    def report(self) -> bool:
        """Print who did the work, the numbers, what Criteo holds, and the proof; return whether all is well."""
        retried = self.airflow.trigger(RETRY) if not self.airflow.runs(RETRY) else None
        self._await_run(RETRY, retried)
        for dag_id in (SYNC, RETRY):
            for run in self.airflow.runs(dag_id):
                tasks = ", ".join(f"{task} {state}" for task, state in self._tasks(dag_id, run).items())
                say(f"  {dag_id}  {run['dag_run_id']}  {run['state']}: {tasks}")
        print_table([_row(step) for step in self.numbers()])
        with closing(self._house()) as house:
            compared, violated = compare_lists(house.ledger.engine, self.sandbox), house.prove()
        print_table([_list_row(each) for each in compared])
        say("\n".join(violated) or "All laws hold: the numbers add up.")
        return not violated and all(each.same for each in compared)

    def _is_idle(self) -> bool:
        """Whether an upload has ended well and the next run waits for people in the triggerer."""
        runs = self.airflow.runs(SYNC)
        if len(runs) < 2 or runs[-2]["state"] != "success":
            return False
        return self._tasks(SYNC, runs[-1]).get("wait_for_people") == "deferred"

    def _tasks(self, dag_id: str, run: dict[str, Any]) -> dict[str, str | None]:
        states: dict[str, str | None] = self.airflow.task_states(dag_id, run["dag_run_id"])
        return states

    def _await_run(self, dag_id: str, run_id: str | None) -> None:
        deadline = time.monotonic() + 60
        while any(run["dag_run_id"] == run_id and not run["end_date"] for run in self.airflow.runs(dag_id)):
            if time.monotonic() > deadline:
                raise RunFailed(f"The run {run_id} of {dag_id} did not end within a minute.")
            time.sleep(0.5)

    def _house(self) -> House:
        """A house for reading numbers only: it never looks at a source or at Criteo."""
        return House(
            Surroundings(
                include_folder=PROJECT / "include",
                ledger_url=f"sqlite:///{self.ledger}",
                criteo=_not_here,
                source=_not_here,
                cipher=None,
            )
        )


def add_person(place: Path) -> int:
    """Add somebody to the running example shop and tell how long it takes until Criteo has them."""
    try:
        running = json.loads((place / "run.json").read_text())
    except FileNotFoundError:
        raise RunFailed("Nothing is running: start `make run` in another terminal first.") from None
    sandbox, data = Sandbox(running["sandbox"]), example_data()
    person = data.add_person(Path(running["shop"]))
    began_s = time.monotonic()
    say(f"Added customer {person} to the example shop; waiting for Criteo ...")
    digest = data.email_sha256(Path(running["shop"]), person)
    while time.monotonic() - began_s < 60:
        for segment in sandbox.state()["segments"]:
            if sandbox.is_member(str(segment["id"]), [digest]) == [True]:
                say(f"In the list {segment['name']!r} {time.monotonic() - began_s:.1f} s later.")
                return 0
        time.sleep(0.05)
    raise RunFailed("Not in any list after a minute: look at the DAG criteo_audience_sync in the Airflow UI.")


def example_data() -> ModuleType:
    """Load include/example_data.py, which is no package."""
    spec = importlib.util.spec_from_file_location("example_data", PROJECT / "include" / "example_data.py")
    assert spec is not None and spec.loader is not None  # noqa: S101, PT018 - the file is in this repository
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def print_table(rows: list[dict[str, str]]) -> None:
    """Print rows of text under their names."""
    if not rows:
        return
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    say("")
    for row in ({name: name for name in widths}, *rows):
        say("  " + "  ".join(text.ljust(widths[name]) for name, text in row.items()))
    say("")


def say(text: str) -> None:
    """Print at once, also into a pipe."""
    print(text, flush=True)


def _row(step: StepNumbers) -> dict[str, str]:
    counts = ("entered", "proceeded", "synced", "not_synced", "pending", "errored", "exited")
    row = {"canvas": step.canvas, "step": step.step, "audience": step.audience}
    return row | {name: f"{getattr(step, name):,}" for name in counts}


def _list_row(compared: ComparedList) -> dict[str, str]:
    return {
        "contact list": compared.name,
        "ad account": compared.ad_account,
        "identifiers by the ledger": f"{compared.by_ledger:,}",
        "at the sandbox": f"{compared.at_sandbox:,}",
        "": "the same" if compared.same else "DIFFERENT",
    }


def _each(steps: list[StepNumbers]) -> str:
    return "  ".join(f"{step.step} {step.entered - step.pending:,}/{step.entered:,}" for step in steps if step.entered)


def _not_here(_: object) -> Any:
    raise RunFailed("This house only reads numbers.")


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--once", action="store_true", help="end when everyone is settled")
    parser.add_argument("--people", type=int, default=100_000, help="example people (default: 100000)")
    parser.add_argument("--place", type=Path, default=PROJECT / "var" / "run", help="folder, made anew each time")
    parser.add_argument("--add-person", action="store_true", help="add somebody to the shop of a running one")
    args = parser.parse_args()
    try:
        return add_person(args.place) if args.add_person else _run(args)
    except RunFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    except (Stopped, KeyboardInterrupt):
        say("\nEnded.")
        return 130 if args.once else 0


def _run(args: argparse.Namespace) -> int:
    place: Path = args.place.resolve()
    place.mkdir(parents=True, exist_ok=True)
    with (place.parent / f".{place.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFailed(f"Another run is at work in {place}: end it, or choose another --place.") from None
        return _run_in(place, args)


def _run_in(place: Path, args: argparse.Namespace) -> int:
    shutil.rmtree(place)
    (place / "logs").mkdir(parents=True)
    if shutil.disk_usage(place).free < NEEDED_BYTES:
        raise RunFailed(f"Less than 1 GB is free at {place}: make room, or choose another --place.")
    began_s = time.monotonic()
    with Household(place / "logs") as household:
        run = Run(place, household, people=args.people)
        run.start()
        run.settle()
        good = run.report()
        say(f"Everyone is settled, {time.monotonic() - began_s:.0f} s after the start.")
        if args.once:
            return 0 if good else 1
        say(f"Airflow stays at {run.airflow.url} until Ctrl-C. Add somebody from another terminal:")
        say("  make add-person        (make backfill adds a million first)")
        while True:
            household.check()
            time.sleep(1)


if __name__ == "__main__":
    sys.exit(_main())
