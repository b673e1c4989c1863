"""End to end: real houses drain a shop into a sandbox, each in a process of its own, paced or not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from cryptography.fernet import Fernet

from bench.measure import MemoryWatch, cpu_of
from criteo_provider.sandbox.running import Sandbox

UNPACED = 60_000
CRITEOS_LIMIT = 250


@dataclass(frozen=True, slots=True)
class Drained:
    """What a drain by one or several processes came to."""

    people: int
    sent: int
    wall_s: float
    arrivals_s: tuple[float, ...]
    workers: tuple[dict[str, Any], ...]
    helpers_cpu_s: float
    peak_mb: float
    most_in_60_s: int

    @property
    def cpu_s(self) -> float:
        """CPU seconds of all workers."""
        return sum(float(one["cpu_s"]) for one in self.workers)

    @property
    def users_per_s(self) -> float:
        """Users a second, from the first look to the last answer; the flush interval at the end is left out."""
        return self.people / self.wall_s

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
    """Let so many processes drain the shop together until all are dry."""
    key = Fernet.generate_key().decode()
    wanted = {
        "include": str(include), "ledger_url": ledger_url, "criteo_url": sandbox.url, "shop": str(shop),
        "requests_per_minute": requests_per_minute, "key": key, "max_s": max_s,
        "stall_every_s": 7.0 if stalls else None, "stall_s": 2.0,
    }  # fmt: skip
    before_s, last_call = cpu_of(*helpers), len(sandbox.requests())
    processes = [_start(wanted) for _ in range(workers)]
    peaks: list[float] = []
    watches = [MemoryWatch(process.pid) for process in processes]
    for watch in watches:
        watch.__enter__()
    answers = _answers(processes)
    for watch in watches:
        watch.__exit__()
        peaks += watch.peak_mb.values()
    calls = [call for call in sandbox.requests(last_call) if call["operation"] == "amend"]
    return Drained(
        people=sum(one["entered"] for one in answers),
        sent=sum(call["valid"] for call in calls),
        wall_s=max(call["answered_s"] for call in calls) - min(one["began_s"] for one in answers),
        arrivals_s=tuple(call["arrived_s"] for call in calls),
        workers=tuple(answers),
        helpers_cpu_s=cpu_of(*helpers) - before_s,
        peak_mb=max(peaks),
        most_in_60_s=int(sandbox.rate(60.0)["largest"]),
    )


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
