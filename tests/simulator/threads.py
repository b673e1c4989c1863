"""Threads that take turns, and a clock that moves when told to: what `threading` and `time` are in a story.

Each thread is a greenlet. It runs until it parks (before each verb of the ledger, in a wait, on the wire), and goes on
when the story says so; nothing else ever runs, so a story is the same each time it is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace
from typing import Any

from greenlet import getcurrent, greenlet

from criteo_provider.flow import enter, upload
from criteo_provider.store import clock

# Far ahead of any clock of a database, which the view of users reads: there nobody is ever late in a story.
START_US = 4_000_000_000_000_000


class Killed(BaseException):
    """The process of this thread is no more."""


@dataclass(eq=False)
class Process:
    """One process: its threads end with it."""

    name: str
    role: str
    alive: bool = True
    frozen: bool = False


@dataclass(eq=False)
class Task:
    """One thread of a process, parked ``where`` until ``may_go``."""

    process: Process
    body: greenlet
    where: str = "start"
    may_go: Callable[[], bool] = field(default=lambda: True)
    wakes_us: int | None = None


class Schedule:
    """All threads of all processes, and the time."""

    def __init__(self, seed: int) -> None:
        self.now_us = self.real_us = START_US
        self.chance = Random(seed)
        self.tasks: list[Task] = []

    # --- what a story does

    def spawn(self, process: Process, work: Callable[..., None], *arguments: object) -> Task:
        """Make a thread; it begins when it is told to go on."""
        task = Task(process, greenlet(lambda: work(*arguments)))
        self.tasks.append(task)
        return task

    def ready(self) -> list[Task]:
        """Who could go on now, in the order they were made."""
        return [one for one in self.tasks if not one.process.frozen and self._may_go(one)]

    def go_on(self, task: Task) -> None:
        """Let one thread run until it parks again, or ends; that takes time, though next to none."""
        self.pass_time(1e-6)
        try:
            task.body.switch()
        finally:
            if task.body.dead and task in self.tasks:
                self.tasks.remove(task)

    def kill(self, process: Process) -> None:
        """End a process between two verbs, with no last words."""
        process.alive = False
        doomed = [one for one in self.tasks if one.process is process]
        self.tasks = [one for one in self.tasks if one.process is not process]
        for task in doomed:
            if task.body:
                with suppress(Killed):
                    task.body.throw(Killed)

    def pass_time(self, seconds: float) -> None:
        """Let time pass."""
        self.now_us += round(seconds * 1e6)
        self.real_us += round(seconds * 1e6)

    # --- what a thread does

    def park(self, where: str, may_go: Callable[[], bool] = lambda: True, *, timeout_s: float | None = None) -> None:
        """Stop here until the story goes on with this thread."""
        task = self.current()
        task.where, task.may_go = where, may_go
        task.wakes_us = None if timeout_s is None else self.real_us + round(timeout_s * 1e6)
        task.body.parent.switch()
        if not task.process.alive:
            raise Killed

    def current(self) -> Task:
        """The thread that runs now."""
        body = getcurrent()
        found = next((one for one in self.tasks if one.body is body), None)
        if found is None:
            raise Killed
        return found

    def _may_go(self, task: Task) -> bool:
        return task.may_go() or (task.wakes_us is not None and task.wakes_us <= self.real_us)


class Event:
    """`threading.Event` in a story; with ``is_dry``, it is set as soon as there is nothing to do."""

    def __init__(self, schedule: Schedule, *, is_dry: Callable[[], bool] | None = None) -> None:
        self._schedule, self._is_dry, self._is_set = schedule, is_dry, False

    def is_set(self) -> bool:
        return self._is_set or (self._is_dry is not None and self._is_dry())

    def set(self) -> None:
        self._is_set = True

    def wait(self, timeout: float | None = None) -> bool:
        if self._is_dry is not None and timeout == upload.LOOK_EVERY_S:
            self._is_set = True
        elif not self._is_set:
            self._schedule.park("wait", lambda: self._is_set, timeout_s=timeout)
        return self._is_set


class Thread:
    """`threading.Thread` in a story."""

    def __init__(self, schedule: Schedule, target: Callable[[], None]) -> None:
        self._schedule, self._target = schedule, target
        self._task: Task | None = None

    def start(self) -> None:
        self._task = self._schedule.spawn(self._schedule.current().process, self._target)

    def join(self) -> None:
        task = self._task
        if task is not None and task in self._schedule.tasks:
            self._schedule.park("join", lambda: task not in self._schedule.tasks)


class Pool:
    """`ThreadPoolExecutor` in a story."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule, self._tasks = schedule, list[Task]()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        tasks = self._schedule.tasks
        if any(one in tasks for one in self._tasks):
            self._schedule.park("pool", lambda: not any(one in self._schedule.tasks for one in self._tasks))

    def submit(self, work: Callable[..., None], *arguments: object) -> None:
        self._tasks.append(self._schedule.spawn(self._schedule.current().process, work, *arguments))


@contextmanager
def in_place_of_real_ones(schedule: Schedule) -> Iterator[None]:
    """Give the rooms of the flow these threads, this chance, and all of them this clock for a while."""
    threading = SimpleNamespace(
        Event=lambda: Event(schedule), Thread=lambda *, target, **_more: Thread(schedule, target)
    )
    put: list[tuple[Any, str, Any]] = [
        (enter, "threading", threading),
        (enter, "time", SimpleNamespace(monotonic=lambda: schedule.real_us / 1e6)),
        (upload, "ThreadPoolExecutor", lambda *_, **__: Pool(schedule)),
        (upload, "random", schedule.chance),
        (clock, "read_us", lambda _connection: schedule.now_us),
    ]
    real = [(room, name, getattr(room, name)) for room, name, _ in put]
    try:
        for room, name, thing in put:
            setattr(room, name, thing)
        yield
    finally:
        for room, name, thing in real:
            setattr(room, name, thing)
