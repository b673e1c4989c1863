"""Hands beside the thread that reads: a process that packs, for Python runs on one core, and a thread that seals."""

from __future__ import annotations

import logging
import os
import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from criteo_provider.core.batching import Unnamed
from criteo_provider.core.model import SealedPeople
from criteo_provider.core.ports import CursorHold
from criteo_provider.flow import packing, side_process
from criteo_provider.flow.hands import OwnHands
from criteo_provider.flow.packing import Columns, FieldColumn

log = logging.getLogger(__name__)

# Less than this is packed here before the other process has heard of it.
WORTH_SENDING = 10_000
_ENDS_WITHIN_S = 5.0
# What a chunk was packed in is kept for the next one: to give it back and ask for it anew costs a third of its time.
# Other C libraries than glibc do not know these words, and may be slower than Python's own.
_KEEP_MEMORY = {
    "PYTHONMALLOC": "malloc",
    "MALLOC_TRIM_THRESHOLD_": "67108864",
    "MALLOC_MMAP_THRESHOLD_": "33554432",
}


class Beside:
    """Packs large chunks in one process beside, started when the first one comes; what cannot be sent is packed here.

    A thread carries orders there and results back, so the next order is waiting when a chunk is packed. Should that
    process die, its chunks are packed here and so is everything after them: slower, and nothing else. ``places``
    bounds how many such processes there are at once. Another thread seals, for most of that is to wait for the ledger.
    Close it.
    """

    def __init__(self, places: threading.Semaphore | None = None) -> None:
        self._own = OwnHands()
        self._places = places or threading.Semaphore(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._carrier = ThreadPoolExecutor(1, thread_name_prefix="criteo-packing")
        self._is_over = False
        self._idle = threading.Event()
        self._idle.set()

    def begin_packing(
        self, fields: Sequence[FieldColumn], keys: Sequence[str], columns: Columns
    ) -> Callable[[], SealedPeople]:
        """Begin to pack, and return what waits for the result; a result may be left where it is."""
        if len(keys) < WORTH_SENDING or self._is_over:
            return self._own.begin_packing(fields, keys, columns)
        order = packing.order_of(fields, len(keys), columns)
        if order is None or not self._has_process():
            return self._own.begin_packing(fields, keys, columns)
        # From here on the order and the keys, which stay here, are all that is kept of these people.
        asked = self._carrier.submit(self._ask, order)
        return lambda: ((None if asked.cancelled() else asked.result()) or packing.packed_order(order)).named(keys)

    def begin_sealing(self, seal: Callable[[], CursorHold]) -> Callable[[], CursorHold]:
        """Begin to seal, and return what waits for its end; nobody else waits for a ledger that does not answer."""
        sealed: Future[CursorHold] = Future()

        def work() -> None:
            try:
                sealed.set_result(seal())
            except BaseException as error:
                sealed.set_exception(error)

        threading.Thread(target=work, name="criteo-sealing", daemon=True).start()
        return sealed.result

    def close(self) -> None:
        """End the process; what it is packing just then is not waited for, if that takes long."""
        self._carrier.shutdown(wait=False, cancel_futures=True)
        self._end(kill=not self._idle.wait(_ENDS_WITHIN_S))

    def _has_process(self) -> bool:
        if self._process is None and not self._is_over and self._places.acquire(blocking=False):
            try:
                self._process = _start()
            except OSError:
                self._places.release()
                self._is_over = True
        return self._process is not None

    def _ask(self, order: bytes) -> Unnamed | None:
        """Bring one order there and its result back; None when there is nobody (any more) to ask."""
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            return None
        self._idle.clear()
        try:
            side_process.write(process.stdin, order)
            parcel = side_process.read(process.stdout)
            if parcel is None:
                raise EOFError  # noqa: TRY301 - ends like a broken pipe
            return packing.people_of(parcel)
        except (OSError, ValueError, EOFError) as error:
            if not self._is_over:
                log.warning(
                    "The process that packs people has ended (%s); they are packed here now.", type(error).__name__
                )
            self._end(kill=True)
            return None
        finally:
            self._idle.set()

    def _end(self, *, kill: bool) -> None:
        with self._lock:
            process, self._process, self._is_over = self._process, None, True
        if process is None:
            return
        self._places.release()
        side_process.end(process, kill=kill)


def _is_glibc() -> bool:
    try:
        return bool(os.confstr("CS_GNU_LIBC_VERSION"))
    except (ValueError, OSError):
        return False


def _start() -> subprocess.Popen[bytes]:
    # It needs this package and the standard library only.
    package_folder = str(Path(packing.__file__).parents[2])
    return side_process.start(packing.__name__, package_folder, _KEEP_MEMORY if _is_glibc() else {})
