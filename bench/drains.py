"""End to end: real houses drain a shop into a sandbox, each in a process of its own, paced or not."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from cryptography.fernet import Fernet

from bench.measure import Watch
from criteo_provider.sandbox.running import Sandbox

UNPACED = 60_000
CRITEOS_LIMIT = 250
# How often each process is stopped, about, and for how long: a machine that swaps, or is moved to another host.
STALLS_EVERY_S = 15.0
STALL_S = (0.2, 1.0)
WITH_IDENTIFIER = "users a second with an identifier to send"


@dataclass(frozen=True, slots=True)
class Drained:
    """What a drain by one or several processes came to."""

    people: int
    sent: int
    wall_s: float
    arrivals_s: tuple[float, ...]
    workers: tuple[dict[str, Any], ...]
    cpu_s: float
    """Of all workers and the processes beside them, until the last answer."""
    tidy_cpu_s: float
    """Of the same, after the last answer: the index of people, and the flush interval at the end."""
    helpers_cpu_s: float
    """Of database server and sandbox, until the last answer as well."""
    peak_mb: float
    most_in_60_s: int

    @property
    def users_per_s(self) -> float:
        """Users processed a second, from the launch of the canvas to the last answer, without the flush interval."""
        return self.people / self.wall_s

    @property
    def sent_per_s(self) -> float:
        """The same, of those alone who have an identifier to send."""
        return self.sent / self.wall_s

    @property
    def requests_per_min(self) -> float:
        """Requests a minute between the first and the last one but the last twentieth, for which work runs out."""
        arrivals_s = sorted(self.arrivals_s)
        arrivals_s = arrivals_s[: len(arrivals_s) - len(arrivals_s) // 20]
        return 60 * (len(arrivals_s) - 1) / (arrivals_s[-1] - arrivals_s[0])


def drain(
    ledger_url: str,
    sandbox: Sandbox,
    shop: Path,
    include: Path,
    *,
    workers: int = 1,
    requests_per_minute: int = UNPACED,
    helpers: Sequence[int] = (),
    stalls: bool = False,
    max_s: float | None = None,
) -> Drained:
    """Let so many processes drain the shop together until all are dry; the others join the first one at work."""
    key = Fernet.generate_key().decode()
    wanted = {
        "include": str(include), "ledger_url": ledger_url, "criteo_url": sandbox.url, "shop": str(shop),
        "requests_per_minute": requests_per_minute, "key": key, "max_s": max_s,
    }  # fmt: skip
    last_call = len(sandbox.requests())
    with ExitStack() as beside:
        helping = [beside.enter_context(Watch(pid)) for pid in helpers]
        processes = [_start(wanted)]
        watches = [beside.enter_context(Watch(processes[0].pid))]
        while workers > 1 and not _sends(sandbox, last_call) and processes[0].poll() is None:
            time.sleep(0.2)
        processes += [_start(wanted) for _ in range(workers - 1)]
        watches += [beside.enter_context(Watch(process.pid)) for process in processes[1:]]
        if stalls:
            beside.enter_context(_stalling(processes))
        answers = _answers(processes)
    peaks = [peak_mb for watch in watches for peak_mb in watch.peak_mb.values()]
    calls = _sends(sandbox, last_call)
    began_s = max([min(one["began_s"] for one in answers), *_launched_s(sandbox, last_call)])
    ended_s = max(call["answered_s"] for call in calls)
    return Drained(
        people=sum(one["entered"] for one in answers),
        sent=sum(call["valid"] for call in calls),
        wall_s=ended_s - began_s,
        arrivals_s=tuple(call["arrived_s"] for call in calls),
        workers=tuple(answers),
        cpu_s=sum(watch.cpu_s(began_s, ended_s) for watch in watches),
        tidy_cpu_s=sum(watch.cpu_s(ended_s) for watch in watches),
        helpers_cpu_s=sum(watch.cpu_s(began_s, ended_s) for watch in helping),
        peak_mb=max(peaks),
        most_in_60_s=int(sandbox.rate(60.0)["largest"]),
    )


def _sends(sandbox: Sandbox, last_call: int) -> list[dict[str, Any]]:
    return [call for call in sandbox.requests(last_call) if call["operation"] == "amend"]


def _launched_s(sandbox: Sandbox, last_call: int) -> list[float]:
    """When Criteo had made each audience: nobody is entered before, and it happens once in the life of a canvas."""
    return [call["answered_s"] for call in sandbox.requests(last_call) if call["operation"] == "create"]


@contextmanager
def _stalling(processes: Sequence[subprocess.Popen[str]]) -> Iterator[None]:
    """Stop one of the processes now and then, whatever it is doing, as long as the block lasts."""
    over, chance = threading.Event(), random.Random(1)  # noqa: S311 - the same stalls each time

    def stall() -> None:
        while not over.wait(chance.uniform(0.5, 1.5) * STALLS_EVERY_S / len(processes)):
            victim = chance.choice(processes)
            victim.send_signal(signal.SIGSTOP)
            over.wait(chance.uniform(*STALL_S))
            victim.send_signal(signal.SIGCONT)

    thread = threading.Thread(target=stall)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def sandbox_pid() -> int:
    """Return the process of the sandbox this one has started."""
    for child in psutil.Process().children():
        if "criteo_provider.sandbox" in child.cmdline():
            return child.pid
    raise LookupError("No sandbox process.")


def _answers(processes: Sequence[subprocess.Popen[str]]) -> list[dict[str, Any]]:
    answers = []
    for process in processes:
        with process:
            assert process.stdout is not None  # noqa: S101 - asked for with PIPE
            told = process.stdout.read()
        if process.returncode:
            raise RuntimeError(f"A worker ended with exit code {process.returncode}.")
        answers.append(json.loads(told))
    return answers


def _start(wanted: dict[str, Any]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None  # noqa: S101 - asked for with PIPE
    process.stdin.write(json.dumps(wanted))
    process.stdin.close()
    return process
