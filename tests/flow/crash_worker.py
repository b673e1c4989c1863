"""A nursery of uploading processes, forked on demand and killed by `test_crashes.py`.

It reads verbs from its standard input: ``fork`` starts a process that drains until it is killed and answers its
id, ``fork <point> <number>`` one that kills itself there; ``reap <id>`` answers how that one ended. It has no thread
and no open database of its own when it forks.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import httpx

from criteo_provider.core.errors import LedgerUnwritable
from criteo_provider.core.ports import Json, Look, MaxRows, Page, Seen, Source
from criteo_provider.criteo_api import auth
from criteo_provider.criteo_api.client import CriteoClient
from criteo_provider.criteo_api.line import ClientSettings
from criteo_provider.flow import enter, resolve, upload
from criteo_provider.flow.upload import Upload
from criteo_provider.store import claim, seal, settle
from criteo_provider.store.engine import open_engine
from criteo_provider.store.ledger import Ledger
from criteo_provider.wiring import criteo as criteo_wiring
from criteo_provider.wiring import house as house_wiring
from tests.flow.shop import Sealer, Shop, open_house

PAGE_ROWS = 25
# A process that nobody kills ends by itself.
LIFE_S = 100


class SmallPages:
    """A source in small pages, so that there are many transactions to die in."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def is_ahead(self, position: Json, seen: Seen) -> bool:
        return self._source.is_ahead(position, seen)

    def pages(self, position: Json, *, max_rows: MaxRows, seen: Seen) -> Generator[Page]:
        return self._source.pages(position, max_rows=lambda: min(max_rows(), PAGE_ROWS), seen=seen)

    def recheck(self, look: Look) -> Iterator[tuple[Page, Look | None]]:
        return self._source.recheck(look)


class MarkedUpload(Upload):
    """An uploader that leaves a mark when it has claimed its first request, so that its killer can be cruel."""

    marks: Path

    def run(self, stop: threading.Event, busy: Callable[[], None]) -> None:
        def marked() -> None:
            (self.marks / str(os.getpid())).touch()
            busy()

        super().run(stop, marked)


def hurry(marks: Path) -> None:
    """Shorten every lease, in the proportions they have: what a dead process held is free again within seconds."""
    enter.CURSOR_LEASE_S = 0.3
    enter.SEAL_WITHIN_S = 0.0
    upload.LOOK_EVERY_S = 0.05
    resolve.RESOLVER_LEASE_S = 1.0
    auth.LEASE_S = 1.0
    house_wiring.LEASE_MARGIN_S = 0.4
    MarkedUpload.marks = marks
    house_wiring.Upload = MarkedUpload  # type: ignore[misc]
    brisk = partial(ClientSettings, connect_s=0.2, pool_s=0.2, read_s=0.6, write_s=0.6, deadline_s=0.6)
    criteo_wiring.ClientSettings = brisk  # type: ignore[misc, assignment]
    # The sandbox speaks plain HTTP: reading the system's certificates would take longer than most lives here.
    criteo_wiring.CriteoClient = lambda *parts, **more: CriteoClient(  # type: ignore[misc, assignment]
        *parts, **more, transport=httpx.HTTPTransport(verify=False)
    )


def _after(method: Callable[..., Any], happens: Callable[[], None]) -> Callable[..., Any]:
    def doomed(*words: Any, **named: Any) -> Any:
        done = method(*words, **named)
        if done is not None or method.__name__ != "claim":
            happens()
        return done

    return doomed


def _before(method: Callable[..., Any], happens: Callable[[], None]) -> Callable[..., Any]:
    def doomed(*words: Any, **named: Any) -> Any:
        happens()
        return method(*words, **named)

    return doomed


# Where a process may die: inside the transaction of a verb, right after it, or around the sending of a request.
DEATHS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "in seal": (seal, "seal", _after),
    "after seal": (Ledger, "seal", _after),
    "in claim": (claim, "claim", _after),
    "after claim": (Ledger, "claim", _after),
    "before send": (criteo_wiring.Courier, "send", _before),
    "after send": (criteo_wiring.Courier, "send", _after),
    "in settle": (settle, "settle", _after),
    "after settle": (Ledger, "settle", _after),
}


def doom(point: str, number: int) -> None:
    """Let this process end by SIGKILL when it is at a point for the ``number``-th time."""
    room, name, around = DEATHS[point]
    left = iter(range(number - 1, -1, -1))

    def happens() -> None:
        if next(left, 0) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(room, name, around(getattr(room, name), happens))


def drain_until_killed(task: dict[str, str]) -> NoReturn:
    """Drain, as either DAG does in turn, until killed; a process that ends by itself has found a bug."""
    try:
        os.dup2(os.open(task["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND), sys.stderr.fileno())
        signal.alarm(int(task.get("life_s", LIFE_S)))
        shop = Shop(Path(task["shop"]))
        house = open_house(
            Path(task["include"]),
            task["ledger"],
            task["criteo"],
            lambda canvas: SmallPages(shop.source(canvas)),
            cipher=Sealer(task["key"].encode()),
        )
        while True:
            try:
                house.drain("fresh", stop=threading.Event(), max_s=2.0)
                house.drain("retry", stop=threading.Event(), max_s=2.0)
            except LedgerUnwritable:
                # A task whose database dies fails, and Airflow starts it again.
                if not task.get("database_dies"):
                    raise
                time.sleep(0.2)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def main() -> None:
    """Fork and reap until the input ends, then leave nobody behind."""
    task = json.loads(sys.argv[1])
    hurry(Path(task["at_work"]))
    # Import here what every child would have to import again; nothing is connected yet.
    httpx.HTTPTransport(verify=False).close()
    open_engine(task["ledger"]).dispose()
    alive: set[int] = set()
    for line in sys.stdin:
        verb, *words = line.split()
        if verb == "fork":
            answer = os.fork()
            if answer == 0:
                if words:
                    doom(" ".join(words[:-1]), int(words[-1]))
                drain_until_killed(task)
            alive.add(answer)
        else:
            _, status = os.waitpid(int(words[0]), 0)
            alive.discard(int(words[0]))
            answer = os.waitstatus_to_exitcode(status)
        print(answer, flush=True)
    for pid in alive:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
