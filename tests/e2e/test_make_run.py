"""`make run` for real: Airflow standalone, the sandbox, example people, from nothing to nothing left behind."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

PROJECT = Path(__file__).parents[2]
COMMAND = [sys.executable, str(PROJECT / "scripts" / "run.py")]
PEOPLE = "2000"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@dataclass
class Running:
    """A run that stays up; ``said`` is what it printed until everyone was settled."""

    process: subprocess.Popen[str]
    place: Path
    said: str
    seen: set[psutil.Process]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    place = tmp_path_factory.mktemp("house") / "run"
    command = [*COMMAND, "--people", PEOPLE, "--place", str(place)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if "Airflow stays at" in line:
            break
    running = Running(process, place, "".join(lines), set(psutil.Process(process.pid).children(recursive=True)))
    yield running
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    process.stdout.close()


def test_everyone_settles(running: Running) -> None:
    """From nothing, the two DAGs settle everyone, the numbers add up, and Criteo holds exactly those people."""
    assert running.process.poll() is None, running.said
    assert "All laws hold: the numbers add up." in running.said
    assert "Everyone is settled" in running.said
    assert running.said.count("the same") == 4
    assert "DIFFERENT" not in running.said
    assert re.search(r"criteo_audience_sync +\S+ +success: wait_for_people success, upload success", running.said)
    assert re.search(r"criteo_audience_retry +\S+ +success", running.said)


def test_seven_metrics_are_printed(running: Running) -> None:
    """Each step is printed with its seven metrics, and Entered is the sum of the four fates."""
    rows = re.findall(r"^ +(\w+) +(\w+) +\S.*?((?: +[\d,]+){7}) *$", running.said, re.MULTILINE)
    assert len(rows) == 8
    for _, step, numbers in rows:
        entered, proceeded, synced, not_synced, pending, errored, exited = (
            int(number.replace(",", "")) for number in numbers.split()
        )
        assert entered == synced + not_synced + pending + errored == proceeded + exited, step
        assert (pending, errored) == (0, 0), step


def test_a_person_added_later_arrives(running: Running) -> None:
    """Somebody added to the shop is in the contact list soon, as the README's command shows."""
    command = [*COMMAND, "--add-person", "--place", str(running.place)]
    said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=90)
    assert said.returncode == 0, said.stderr
    assert re.search(r"In the list '[^']+' \d+\.\d s later\.", said.stdout)


def test_a_second_run_is_refused(running: Running) -> None:
    """A second run in the same place says so, and does not touch the first."""
    command = [*COMMAND, "--once", "--place", str(running.place)]
    refused = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert refused.returncode == 1
    assert "Another run is at work" in refused.stderr
    assert running.process.poll() is None


def test_no_secret_and_no_person_in_the_logs(running: Running) -> None:
    """No log of Airflow or of a task holds an address, a token or the client secret."""
    forbidden = re.compile(rb"@example\.(com|org|net)|sandbox-secret|Bearer [\w.-]{20}")
    # The sandbox says its own secret when it starts: somebody has to type it into the connection form.
    logs = [file for file in running.place.rglob("*.log") if file.is_file() and file.name != "sandbox.log"]
    assert any("task_id=upload" in str(file) for file in logs)
    found = {str(file): match.group() for file in logs if (match := forbidden.search(file.read_bytes()))}
    assert found == {}


def test_nothing_is_left_behind(running: Running) -> None:
    """Ctrl-C ends the run with exit code 0, and no process it started is alive afterwards."""
    running.seen |= set(psutil.Process(running.process.pid).children(recursive=True))
    assert len(running.seen) > 4
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(60) == 0
    time.sleep(0.2)
    assert [process for process in running.seen if process.is_running()] == []


def test_nothing_running(tmp_path: Path) -> None:
    """Adding a person to a run that is not there is told in a sentence."""
    command = [*COMMAND, "--add-person", "--place", str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (said.returncode, said.stderr) == (
        1,
        "Nothing is running: start `make run` in another terminal first.\n",
    )
