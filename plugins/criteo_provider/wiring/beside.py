"""A process beside ours that packs people while this one reads, seals and sends: Python runs on one core a process."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from criteo_provider.core.model import SealedPeople
from criteo_provider.flow import packing
from criteo_provider.flow.packing import Columns, FieldColumn

log = logging.getLogger(__name__)

# Less than this is packed here before the other process has heard of it.
WORTH_SENDING = 10_000
_ENDS_WITHIN_S = 5.0


class Beside:
    """Packs large chunks in one process beside, started when the first one comes; what cannot be sent is packed here.

    Should that process die, its chunk is packed here and so is everything after it: slower, and nothing else.
    One for each thread that enters, which takes a result before it begins anew, or never takes it. ``places`` bounds
    how many such processes there are at once. Close it.
    """

    def __init__(self, places: threading.Semaphore | None = None) -> None:
        self._places = places or threading.Semaphore(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._given_up = False
        self._owed = 0  # results that are on their way, or were not wanted after all

    def begin(self, fields: Sequence[FieldColumn], keys: Sequence[str], columns: Columns) -> Callable[[], SealedPeople]:
        """Begin to pack, and return what waits for the result."""
        here = packing.pack_here(fields, keys, columns)
        if len(keys) < WORTH_SENDING or self._given_up:
            return here
        order = packing.order_of(fields, keys, columns)
        if order is None or not self._has_process() or not self._send(order):
            return here
        return lambda: self._receive() or here()

    def close(self) -> None:
        """End the process."""
        process, self._process, self._given_up = self._process, None, True
        if process is None:
            return
        self._places.release()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            process.wait(_ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _has_process(self) -> bool:
        if self._process is None and self._places.acquire(blocking=False):
            try:
                self._process = _start()
            except OSError:
                self._places.release()
                self._given_up = True
        return self._process is not None

    def _send(self, order: bytes) -> bool:
        # What was begun and never taken is not to be taken for what is begun now.
        while self._owed:
            if self._receive() is None:
                return False
        process = self._process
        if process is None or process.stdin is None:
            return False
        try:
            packing.write(process.stdin, order)
        except OSError as error:
            self._give_up(error)
            return False
        self._owed += 1
        return True

    def _receive(self) -> SealedPeople | None:
        process = self._process
        if process is None or process.stdout is None:
            return None
        self._owed -= 1
        try:
            parcel = packing.read(process.stdout)
        except (OSError, ValueError) as error:
            self._give_up(error)
            return None
        if parcel is None:
            self._give_up(EOFError())
            return None
        return packing.people_of(parcel)

    def _give_up(self, error: Exception) -> None:
        log.warning("The process that packs people has ended (%s); they are packed here now.", type(error).__name__)
        self.close()


def _start() -> subprocess.Popen[bytes]:
    # It needs this package and the standard library only: no site, no Airflow, nothing to log in with.
    package_folder = str(Path(packing.__file__).parents[2])
    environment = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    command = [sys.executable, "-S", "-m", "criteo_provider.flow.packing"]
    return subprocess.Popen(  # noqa: S603 - our own module, no shell
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**environment, "PYTHONPATH": package_folder},
    )
