"""Processes that end together: each program has a session of its own, and none of its members is left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psutil

GENTLE_S = 12.0


class RunFailed(Exception):
    """The run cannot go on; the text says why and how to mend it."""


class Stopped(BaseException):
    """Somebody asked this run to end (Ctrl-C or SIGTERM)."""


class Household:
    """Starts programs and sees to it that all of them, and all they started, are gone at the end.

    Airflow's components can outlive the program that started them, and some rewrite their title and environment;
    the session they were started in stays.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self._sessions: set[int] = set()

    def __enter__(self) -> Household:
        # SIGINT too: a process started in the background inherits it as ignored.
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, _stop)
        return self

    def __exit__(self, *_: object) -> None:
        # A second Ctrl-C must not leave half of the house running.
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        self._end()

    def start(self, name: str, command: Sequence[str], env: Mapping[str, str]) -> None:
        """Start a program that keeps running; its output goes to a log file of that name."""
        with (self._logs / f"{name}.log").open("ab") as log:
            self._started[name] = subprocess.Popen(  # noqa: S603 - our own programs
                command, env=dict(env), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._sessions.add(self._started[name].pid)

    def run(self, name: str, command: Sequence[str], env: Mapping[str, str], *, timeout_s: float) -> None:
        """Run a program to its end; raise RunFailed with the end of its log when it fails."""
        self.start(name, command, env)
        try:
            code = self._started[name].wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise RunFailed(f"{name} did not finish within {timeout_s:.0f} s. {self.last_words(name)}") from None
        del self._started[name]
        if code:
            raise RunFailed(f"{name} ended with exit code {code}. {self.last_words(name)}")

    def pid(self, name: str) -> int:
        """Return the process id of a program that was started."""
        return self._started[name].pid

    def kill(self, name: str) -> None:
        """End a program with SIGKILL, and nothing it started; it may be started again under its name."""
        started = self._started.pop(name)
        started.kill()
        started.wait()

    def check(self) -> None:
        """Raise RunFailed when a program that should be running has ended."""
        for name, process in self._started.items():
            code = process.poll()
            if code is not None:
                raise RunFailed(f"{name} ended by itself with exit code {code}. {self.last_words(name)}")

    def last_words(self, name: str) -> str:
        """Return where the log of a program is and its last lines."""
        log = self._logs / f"{name}.log"
        lines = log.read_text(errors="replace").splitlines()[-15:] if log.exists() else []
        return "\n".join([f"The end of {log}:", *(f"    {line}" for line in lines)])

    def _end(self) -> None:
        alive = self._ours()
        for process in alive:
            _signal(process, signal.SIGTERM)
        psutil.wait_procs(alive, timeout=GENTLE_S)
        while alive := self._ours():
            for process in alive:
                _signal(process, signal.SIGKILL)
            psutil.wait_procs(alive, timeout=2)
        for started in self._started.values():
            started.wait()

    def _ours(self) -> list[psutil.Process]:
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return os.getsid(process.pid) in self._sessions and process.status() != psutil.STATUS_ZOMBIE
        except (OSError, psutil.Error):
            return False


def free_port(preferred: int = 0) -> int:
    """Return ``preferred`` if nobody listens there, else any free port of 127.0.0.1."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise RunFailed("No free port on 127.0.0.1.")


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise Stopped


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.Error):
        process.send_signal(number)
