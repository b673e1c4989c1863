"""A process beside: how it is started, spoken to and ended; it knows our packages and nothing to log in with."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import IO, NoReturn

_LENGTH_BYTES = 8
_ENDS_WITHIN_S = 5.0
# A pipe that is full or empty lets a thread wait, and then for the other threads, too: 25 times a chunk at 64 kB.
_PIPE_BYTES = 1 << 20


def write(pipe: IO[bytes], message: bytes) -> None:
    """Put one message into a pipe."""
    pipe.write(len(message).to_bytes(_LENGTH_BYTES, "big"))
    pipe.write(message)
    pipe.flush()


def read(pipe: IO[bytes]) -> bytes | None:
    """Take one message out of a pipe, None at its end."""
    length = pipe.read(_LENGTH_BYTES)
    if len(length) < _LENGTH_BYTES:
        return None
    message = pipe.read(int.from_bytes(length, "big"))
    return message if len(message) == int.from_bytes(length, "big") else None


def start(module: str, python_path: str, settings: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start one of our modules, which answers on standard output what comes in on standard input until that ends.

    Raises OSError where no process can be started. It imports from ``python_path``: no site, no working directory.
    """
    environment = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    process = subprocess.Popen(  # noqa: S603 - our own module, no shell
        [sys.executable, "-S", "-P", "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**environment, **(settings or {}), "PYTHONPATH": python_path},
    )
    for pipe in filter(None, (process.stdin, process.stdout)):
        with suppress(OSError, AttributeError):  # Linux has it, and a system may allow less
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return process


def serve(answers: Callable[[bytes], Iterable[bytes]]) -> NoReturn:
    """Be a process beside: answer each message that comes in until nothing more does, and end."""
    # A signal to the whole group is for the task, which may need us to end well, and says when it is over.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with suppress(BrokenPipeError):
        while (message := read(sys.stdin.buffer)) is not None:
            for answer in answers(message):
                write(sys.stdout.buffer, answer)
    os._exit(0)  # nobody is there to hear what could not be flushed


def end(process: subprocess.Popen[bytes], *, kill: bool) -> None:
    """End a process beside: by closing its pipes, or at once, and in any case within seconds."""
    if kill:
        process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):  # what was not written any more cannot be written
                pipe.close()
    for _ in range(2):
        with suppress(subprocess.TimeoutExpired):
            process.wait(_ENDS_WITHIN_S)
            return
        process.kill()
