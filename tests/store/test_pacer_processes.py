"""The pacer between real processes that stall and die, counted by the senders and by the server."""

from __future__ import annotations

import json
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from criteo_provider.sandbox.running import Sandbox, sandbox_process
from criteo_provider.store.pacer import pacer_url

WORKER = Path(__file__).with_name("pacer_worker.py")
LIMIT = 250
WINDOW_S = 10.0  # a minute in a sixth of the time
MARGIN_S = 0.1
RUN_S = 22.0
STALLS = 6
WORKERS = 4
# Measured 0.988 to 0.989, which is all that the step leaves: what stops lose is made good. Only the slot of a
# killed process is lost, and what a busy machine keeps from everybody for longer than two seconds.
USED_AT_LEAST = 0.95


@dataclass
class Worker:
    """One process and the file where it notes its sends."""

    process: subprocess.Popen[str]
    notes: Path

    def sends(self) -> list[float]:
        """Monotonic times at which it sent."""
        return [moment for (moment,) in struct.iter_unpack("d", self.notes.read_bytes())]


class Crew:
    """Several workers on one pacer."""

    def __init__(self, ledger_url: str, folder: Path, server: Sandbox | None) -> None:
        self.workers: list[Worker] = []
        self._folder = folder
        self._task = {
            "url": pacer_url(ledger_url),
            "pace": {"limit_per_min": LIMIT, "margin_s": MARGIN_S, "window_s": WINDOW_S},
            "server": server.url.removeprefix("http://") if server else None,
            "authorization": f"Bearer {access_token(server)}" if server else None,
        }

    def hire(self, count: int) -> list[Worker]:
        """Start ``count`` workers and let them go at the same moment."""
        hired = [self._start() for _ in range(count)]
        for worker in hired:
            assert worker.process.stdout is not None
            assert worker.process.stdout.readline() == "ready\n"
        for worker in hired:
            assert worker.process.stdin is not None
            worker.process.stdin.write("go\n")
            worker.process.stdin.flush()
        return hired

    def _start(self) -> Worker:
        notes = self._folder / f"sends-{len(self.workers)}"
        command = [sys.executable, str(WORKER), json.dumps({**self._task, "notes": str(notes)})]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.workers.append(Worker(process, notes))
        return self.workers[-1]


@contextmanager
def crew(ledger_url: str, folder: Path, server: Sandbox | None = None) -> Iterator[Crew]:
    """A crew that is gone afterwards, also where a worker is stopped."""
    people = Crew(ledger_url, folder, server)
    try:
        yield people
    finally:
        for worker in people.workers:
            worker.process.kill()
            worker.process.communicate(timeout=20)


def access_token(server: Sandbox) -> str:
    """Fetch one token for all workers, outside the pacer and outside the count."""
    form = {
        "grant_type": "client_credentials",
        "client_id": server.client_id,
        "client_secret": server.client_secret,
    }
    with urlopen(f"{server.url}/oauth2/token", urlencode(form).encode(), timeout=10) as answer:  # noqa: S310
        return str(json.load(answer)["access_token"])


def disturb(people: Crew, chance: random.Random) -> None:
    """Stop random processes for a while, again and again, and kill one and replace it half way."""
    pause_s = RUN_S / STALLS
    for number in range(STALLS):
        stall_s = chance.uniform(2 * MARGIN_S, 1.0)
        time.sleep(chance.uniform(0.3, 0.7) * (pause_s - stall_s))
        began_s = time.monotonic()
        victim = chance.choice(people.workers[-WORKERS:])
        victim.process.send_signal(signal.SIGSTOP)
        time.sleep(stall_s)
        victim.process.send_signal(signal.SIGCONT)
        if number == STALLS // 2:
            people.workers[0].process.kill()
            people.hire(1)
        time.sleep(max(0.0, pause_s / 2 - (time.monotonic() - began_s)))


def largest_in_any_window(moments: list[float]) -> int:
    """Count the most sends any half-open window holds."""
    ordered, largest, first = sorted(moments), 0, 0
    for last, moment in enumerate(ordered):
        while ordered[first] <= moment - WINDOW_S:
            first += 1
        largest = max(largest, last - first + 1)
    return largest


def used(moments: list[float]) -> float:
    """Share of the limit that was used between the first send and the last."""
    return (len(moments) - 1) / ((max(moments) - min(moments)) * LIMIT / WINDOW_S)


@pytest.mark.slow
def test_processes_that_stall_and_die_never_exceed_the_limit(ledger_url: str, tmp_path: Path) -> None:
    """Four processes, stopped at random, one killed: no window above the limit, and little is lost."""
    with crew(ledger_url, tmp_path) as people:
        people.hire(WORKERS)
        disturb(people, random.Random(7))
    sends = [worker.sends() for worker in people.workers]
    everything = sorted(moment for mine in sends for moment in mine)
    survivors = [len(mine) for mine in sends[1:WORKERS]]
    assert largest_in_any_window(everything) <= LIMIT
    assert used(everything) >= USED_AT_LEAST
    assert min(survivors) >= 0.7 * max(survivors)


@pytest.mark.slow
def test_the_server_never_sees_more_than_the_limit(ledger_url: str, tmp_path: Path) -> None:
    """Counted where it matters: the sandbox sees no window above the limit, and never has to answer 429."""
    rules = {"limit": LIMIT, "window_s": WINDOW_S, "token_calls_count": False}
    with sandbox_process(**rules) as server:
        with crew(ledger_url, tmp_path, server) as people:
            people.hire(WORKERS)
            disturb(people, random.Random(11))
        moments = [call["arrived_s"] for call in server.requests() if call["operation"] != "token"]
        count = server.rate(WINDOW_S)
    assert len(moments) > LIMIT * (RUN_S / WINDOW_S - 1)
    assert largest_in_any_window(moments) <= LIMIT
    assert count["refused"] == 0
    assert used(moments) >= USED_AT_LEAST
