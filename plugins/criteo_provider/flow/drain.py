"""Drain: enter and upload side by side, until both are dry for one flush interval."""

from __future__ import annotations

import ctypes
import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol

from criteo_provider.core.errors import SourceFailed
from criteo_provider.flow.enter import Entered
from criteo_provider.flow.upload import Upload

log = logging.getLogger(__name__)

SWEEP_EVERY_S = 5.0
PROGRESS_EVERY_S = 2.0
HOUSEKEEPING_EVERY_S = 0.5
# Who has withdrawn consent is known before anybody is sent, unless a feed is slow; then claims learn it later.
FEEDS_FIRST_S = 3.0
# A reader that has not ended so long after the drain has is left behind. Senders never are: they settle their claims.
LEAVE_READERS_AFTER_S = 60.0
COLLECT_AFTER = 200_000
LOOK_AT_INTERVAL_EVERY_S = 5.0
# A chunk on its way to the packing process, its identifiers: given back as soon as they are let go of.
LARGE_BYTES = 1 << 20
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # malloc.h of glibc


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a drain is: counts only, and remarks on what makes it slower than declared."""

    entered: int
    requests: int
    accepted: int
    identifiers: int
    given_up: int
    remarks: tuple[str, ...] = ()


class Enters(Protocol):
    """Reads one source to its end, over and over."""

    @property
    def done(self) -> Entered: ...

    def tick(self, stop: threading.Event) -> Entered: ...


@dataclass(frozen=True, slots=True)
class Reader:
    """One source to be read: by what, how often to look (seconds, as of now), and whether it may be tried now.

    ``succeeded`` and ``failed`` hear how it went, as far as ``enter`` does not tell by itself.
    """

    enter: Enters
    canvas_id: str
    every_s: Callable[[], float]
    may_try: Callable[[], bool]
    succeeded: Callable[[], None]
    failed: Callable[[str], None] = lambda _sentence: None


@dataclass(frozen=True, slots=True)
class Sender:
    """One Criteo application to be sent to: its Upload, and what finds or creates its audiences."""

    upload: Upload
    resolve: Callable[[], int]


@dataclass(frozen=True, slots=True)
class Housekeeping:
    """What has to happen while people move: steps fall due, claims expire, and when nothing is left to send.

    ``tidy`` does a short piece of what can wait until everybody is sent, and is False when there is none.
    ``follow_opt_outs`` takes out a few of those who opted out after they were sent, and is False when nobody is left.
    """

    enter_due_steps: Callable[[], int]
    sweep: Callable[[], int]
    nothing_due: Callable[[], bool]
    follow_opt_outs: Callable[[], bool] = lambda: False
    remarks: Callable[[], tuple[str, ...]] = tuple
    tidy: Callable[[], bool] = lambda: False


@dataclass(slots=True)
class _Counts:
    lock: threading.Lock = field(default_factory=threading.Lock)
    busy_s: float = field(default_factory=time.monotonic)
    given_up: int = 0
    first_looks: set[int] = field(default_factory=set)
    errors: list[BaseException] = field(default_factory=list)

    def busy(self) -> None:
        with self.lock:
            self.busy_s = time.monotonic()


def drain(
    readers: Sequence[Reader],
    senders: Mapping[str, Sender],
    housekeeping: Housekeeping,
    *,
    feeds: Sequence[Reader] = (),
    quiet_s: Callable[[], float],
    stop: threading.Event,
    ending: threading.Event,
    max_s: float | None = None,
    on_progress: Callable[[Progress], None] = lambda _progress: None,
) -> Progress:
    """Run until nothing came in or went out for ``quiet_s()``, or ``stop``, or ``max_s``; settles all it has claimed.

    A source that fails does not stop the others, and one that hangs is left behind at the end; whatever else breaks
    a thread is raised then.
    """
    _share_heaps()
    with _seldom_collecting():
        return _drain(readers, senders, housekeeping, feeds, quiet_s, stop, ending, max_s, on_progress)


@contextmanager
def _seldom_collecting() -> Iterator[None]:
    """Let the garbage collector look after 200,000 new objects, not 700: a page of rows is 50,000, and no garbage.

    Measured: a fifth of what reading a source costs, more where much is imported, as in Airflow.
    """
    before = gc.get_threshold()
    gc.set_threshold(COLLECT_AFTER, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _share_heaps() -> None:
    """Let the threads of this process share two heaps of the C library, and keep what is large out of them.

    Measured: 20 and 11 MB of 230 less, as quick. What no library but glibc has is left alone.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_ARENA_MAX, 2)
        libc.mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)


def _drain(
    readers: Sequence[Reader],
    senders: Mapping[str, Sender],
    housekeeping: Housekeeping,
    feeds: Sequence[Reader],
    quiet_s: Callable[[], float],
    stop: threading.Event,
    ending: threading.Event,
    max_s: float | None,
    on_progress: Callable[[Progress], None],
) -> Progress:
    began_s = time.monotonic()
    counts = _Counts()
    reading = {_thread(counts, ending, _read, feed, counts, ending): feed for feed in feeds}
    while len(counts.first_looks) < len(feeds) and time.monotonic() - began_s < FEEDS_FIRST_S:
        if stop.wait(0.02) or ending.is_set():
            break
    reading |= {_thread(counts, ending, _read, reader, counts, ending): reader for reader in readers}
    working = [
        _thread(counts, ending, _follow, housekeeping, counts, ending),
        *(_thread(counts, ending, sender.upload.run, ending, counts.busy) for sender in senders.values()),
        *(_thread(counts, ending, _resolve, sender, counts, ending) for sender in senders.values()),
    ]
    swept_s = shown_s = 0.0
    try:
        while not (stop.is_set() or ending.is_set()):
            now_s = time.monotonic()
            if housekeeping.enter_due_steps():
                counts.busy()
            if now_s - swept_s >= SWEEP_EVERY_S:
                swept_s = now_s
                counts.given_up += housekeeping.sweep()
            if now_s - shown_s >= PROGRESS_EVERY_S:
                shown_s = now_s
                on_progress(_progress(counts, readers, senders, housekeeping.remarks()))
            if max_s is not None and now_s - began_s >= max_s:
                break
            looked = len(counts.first_looks) == len(readers) + len(feeds)
            if looked and _all_dry(counts, senders, housekeeping, quiet_s()):
                if not housekeeping.tidy():
                    break
                continue
            stop.wait(HOUSEKEEPING_EVERY_S)
    finally:
        ending.set()
        until_s = time.monotonic() + LEAVE_READERS_AFTER_S
        for thread in working:
            thread.join()
        for thread in reading:
            thread.join(max(0.0, until_s - time.monotonic()))
    if counts.errors:
        raise counts.errors[0]
    _tell_left_behind({reader.canvas_id: reader for thread, reader in reading.items() if thread.is_alive()})
    return _progress(counts, readers, senders)


def _thread(
    counts: _Counts, ending: threading.Event, work: Callable[..., None], *arguments: object
) -> threading.Thread:
    def guarded() -> None:
        try:
            work(*arguments)
        except BaseException as error:
            # One broken thread ends the drain, and the drain tells: half a house at work would look healthy.
            counts.errors.append(error)
            ending.set()

    thread = threading.Thread(target=guarded, name=f"criteo-{work.__name__.strip('_')}", daemon=True)
    thread.start()
    return thread


def _tell_left_behind(hanging: Mapping[str, Reader]) -> None:
    """Say whose reader has not ended; what it may still seal is fenced by its cursor, and sent by the next run."""
    if hanging:
        log.warning("The run ends without the readers of %s, whose sources do not answer.", ", ".join(sorted(hanging)))
    for reader in hanging.values():
        reader.failed(
            f"Reading the source has not come to an end {LEAVE_READERS_AFTER_S:.0f} s after the run did. Look for a "
            "lock on its table, a query that takes too long, or a server that is gone; it is tried again by itself."
        )


def _read(reader: Reader, counts: _Counts, ending: threading.Event) -> None:
    while not ending.is_set():
        if reader.may_try():
            try:
                entered = reader.enter.tick(ending)
            except SourceFailed as failure:
                log.warning("Canvas %s: %s", reader.canvas_id, failure)
            else:
                reader.succeeded()
                if entered.people:
                    counts.busy()
        counts.first_looks.add(id(reader))
        _wait(reader.every_s, ending)


def _wait(every_s: Callable[[], float], ending: threading.Event) -> None:
    """Wait as long as the interval of this moment says, looking at it again while waiting."""
    began_s = time.monotonic()
    while (left_s := began_s + every_s() - time.monotonic()) > 0:
        if ending.wait(min(left_s, LOOK_AT_INTERVAL_EVERY_S)):
            return


def _resolve(sender: Sender, counts: _Counts, ending: threading.Event) -> None:
    while not ending.is_set():
        if sender.resolve():
            counts.busy()
        ending.wait(HOUSEKEEPING_EVERY_S)


def _follow(housekeeping: Housekeeping, counts: _Counts, ending: threading.Event) -> None:
    while not ending.is_set():
        if housekeeping.follow_opt_outs():
            counts.busy()
            # Sealing and claiming have their turn between two stretches.
            ending.wait(0.02)
        else:
            ending.wait(HOUSEKEEPING_EVERY_S)


def _all_dry(counts: _Counts, senders: Mapping[str, Sender], housekeeping: Housekeeping, quiet_s: float) -> bool:
    """Tell whether nothing moved for ``quiet_s``, nothing is due and nothing flies.

    In this order: what is claimed between two questions is no longer due, and it flies. What lands between them
    may be due again; it was busy before it ceased to fly.
    """
    busy_s = counts.busy_s
    if time.monotonic() - busy_s < quiet_s or not housekeeping.nothing_due():
        return False
    return not any(sender.upload.is_flying for sender in senders.values()) and counts.busy_s == busy_s


def _progress(
    counts: _Counts, readers: Sequence[Reader], senders: Mapping[str, Sender], remarks: tuple[str, ...] = ()
) -> Progress:
    done = [sender.upload.done for sender in senders.values()]
    return Progress(
        sum(reader.enter.done.people for reader in readers),
        sum(one.requests for one in done),
        sum(one.accepted for one in done),
        sum(one.identifiers for one in done),
        counts.given_up,
        remarks,
    )
