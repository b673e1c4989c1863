"""One uploading process of a benchmark, as a task of Airflow would be: a House, one drain, and what it has cost."""

from __future__ import annotations

import json
import resource
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

from bench.shop import open_house


def main() -> None:
    """Drain as the JSON on standard input says, and write costs as JSON to standard output."""
    wanted = json.load(sys.stdin)
    stop = threading.Event()
    if wanted.get("stall_every_s"):
        threading.Thread(target=_stall, args=(wanted["stall_every_s"], wanted["stall_s"]), daemon=True).start()
    with closing(
        open_house(
            Path(wanted["include"]), wanted["ledger_url"], wanted["criteo_url"], Path(wanted["shop"]),
            requests_per_minute=wanted["requests_per_minute"], key=wanted["key"].encode(),
        )
    ) as house:  # fmt: skip
        for problem in house.canvases.problems:
            raise RuntimeError(str(problem))
        house.ledger  # noqa: B018 - migrating is not part of the work
        cpu_before, began_s = _cpu_s(), time.monotonic()
        done = house.drain("fresh", stop=stop, max_s=wanted.get("max_s"))
        wall_s, cpu_s = time.monotonic() - began_s, _cpu_s() - cpu_before
    json.dump(
        {
            "entered": done.entered, "requests": done.requests, "identifiers": done.identifiers,
            "wall_s": wall_s, "cpu_s": cpu_s, "began_s": began_s,
        },
        sys.stdout,
    )  # fmt: skip


def _cpu_s() -> float:
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in spent)


def _stall(every_s: float, length_s: float) -> None:
    """Hold the whole process up, now and then, by holding the interpreter's lock."""
    while True:
        time.sleep(every_s)
        until_s = time.monotonic() + length_s
        while time.monotonic() < until_s:
            sum(range(200_000))


if __name__ == "__main__":
    main()
