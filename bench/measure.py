"""Measuring: CPU seconds, wall seconds and peak memory, and the rows a report is made of."""

from __future__ import annotations

import math
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import psutil

T = TypeVar("T")
MILLION = 1_000_000
MB = 1e6
# How often it is looked which processes belong to a family.
RELATIVES_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Row:
    """One measured figure; ``per_yardstick`` is how many times better it is than the yardstick of its part.

    ``part`` is where the report shows it, ``measured_by`` which part of a run has measured it (old reports: unknown).
    """

    part: str
    what: str
    engine: str
    value: float
    unit: str
    note: str = ""
    per_yardstick: float | None = None
    measured_by: str = ""


@dataclass(slots=True)
class Cost:
    """What a piece of work has cost: CPU of this process and of helpers, wall time."""

    cpu_s: float = 0.0
    helpers_cpu_s: float = 0.0
    wall_s: float = 0.0


@dataclass(slots=True)
class Stopwatch:
    """Adds up CPU seconds of the calling thread under names."""

    cpu_s: dict[str, float] = field(default_factory=dict)

    def run(self, name: str, work: Callable[[], T]) -> T:
        """Do ``work`` on the account of ``name``."""
        began_s = time.thread_time()
        try:
            return work()
        finally:
            self.cpu_s[name] = self.cpu_s.get(name, 0.0) + time.thread_time() - began_s


@contextmanager
def costing(*helpers: int) -> Iterator[Cost]:
    """Measure what happens inside; ``helpers`` are processes (with their children) that work for it."""
    cost = Cost()
    helpers_before, cpu_before, wall_before = cpu_of(*helpers), time.process_time(), time.monotonic()
    yield cost
    cost.wall_s = time.monotonic() - wall_before
    cost.cpu_s = time.process_time() - cpu_before
    cost.helpers_cpu_s = cpu_of(*helpers) - helpers_before


def cpu_of(*pids: int) -> float:
    """Return the CPU seconds of these processes and all their children, ended ones included."""
    processes = [psutil.Process(pid) for pid in pids]
    return sum(_started_s(process) + process.cpu_times().user + process.cpu_times().system for process in processes)


def cpu_of_others() -> float:
    """Return the CPU seconds of all that was started from here, without what measuring costs itself."""
    return _started_s(psutil.Process())


def _started_s(process: psutil.Process) -> float:
    """All that was started from this process; a process's time is its parent's only once it has ended."""
    while True:
        running, ended = process.children(recursive=True), process.cpu_times()
        used = _used_s(running) + ended.children_user + ended.children_system
        # Whoever has ended between two readings is in neither of them.
        if set(running) <= set(process.children(recursive=True)):
            return used


def _used_s(processes: Iterable[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        with _gone():
            times = process.cpu_times()
            total += times.user + times.system
            total += times.children_user + times.children_system  # of those that have ended
    return total


class Watch:
    """Looks five times a second how much memory each process of a family holds, and how much CPU all have used.

    What began while it looked is asked for its peak, which may lie between two looks.
    """

    def __init__(self, pid: int) -> None:
        self.peak_mb: dict[int, float] = {}
        self.title: dict[int, str] = {}
        """What each process called itself last."""
        self._used: list[tuple[float, float]] = []
        self._pid, self._over = pid, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def cpu_s(self, since_s: float, until_s: float = math.inf) -> float:
        """Return the CPU seconds used between two moments (monotonic), as far as was looked."""
        return max(0.0, self._used_until_s(until_s) - self._used_until_s(since_s))

    def _used_until_s(self, moment_s: float) -> float:
        """Between two looks, as if it had been used evenly: a short run may lie between them as a whole."""
        before_s, before = -math.inf, 0.0
        for at_s, used in self._used:
            if at_s > moment_s:
                share = (moment_s - before_s) / (at_s - before_s) if before_s > -math.inf else 0.0
                return before + share * (used - before)
            before_s, before = at_s, used
        return before

    def _look(self) -> None:
        family: list[psutil.Process] = []
        there = frozenset[psutil.Process]()
        listed_s = -math.inf
        while not self._over.wait(0.2):
            with _gone():
                # To list a family is to read about every process of the machine, which costs what is measured here.
                if time.monotonic() - listed_s >= RELATIVES_EVERY_S:
                    listed_s = time.monotonic()
                    family = [psutil.Process(self._pid), *psutil.Process(self._pid).children(recursive=True)]
                    there = there or frozenset(family)
                    self._read_titles(family)
                for process in family:
                    with _gone():
                        held_mb = process.memory_info().rss / MB
                        if process not in there:
                            # The peak of a server that was there already is that of its start.
                            held_mb = max(held_mb, _high_water_mb(process.pid))
                        self.peak_mb[process.pid] = max(held_mb, self.peak_mb.get(process.pid, 0.0))
                # Whoever ends after its parent was asked is in this sum nowhere, and in the next one again.
                known_s = self._used[-1][1] if self._used else 0.0
                self._used.append((time.monotonic(), max(known_s, _used_s(family))))

    def _read_titles(self, family: Iterable[psutil.Process]) -> None:
        for process in family:
            with _gone():
                self.title[process.pid] = " ".join(process.cmdline())


def waking_costs() -> float:
    """Return how much more CPU the same work takes after a second of sleep than at a stretch, on this machine."""

    def cost_s() -> float:
        began_s = time.process_time()
        sum(number * number for number in range(20_000))
        return time.process_time() - began_s

    def cost_after_sleep_s() -> float:
        time.sleep(1.0)
        return cost_s()

    cost_s()
    at_a_stretch = sorted(cost_s() for _ in range(51))[25]
    return sorted(cost_after_sleep_s() for _ in range(9))[4] / at_a_stretch


def machine() -> dict[str, object]:
    """Tell where and when this was measured, and how busy the machine was."""
    model = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor() or platform.machine(),
    )
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpus": os.cpu_count(),
        "cpu": model,
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "load_before": round(os.getloadavg()[0], 2),
    }


@contextmanager
def _gone() -> Iterator[None]:
    try:
        yield
    except psutil.Error:
        return


def _high_water_mb(pid: int) -> float:
    """The most memory a process has held since it was started or forked; 0 where the kernel does not tell."""
    told_kib = (int(line.split()[1]) for line in _lines(f"/proc/{pid}/status") if line.startswith("VmHWM:"))
    return next(told_kib, 0) * 1024 / MB


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(errors="replace").splitlines()
    except OSError:  # not on this system, or the process has ended
        return []
