"""One uploading process of a benchmark, as a task of Airflow would be: a House and one drain."""

from __future__ import annotations

import json
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

from bench.shop import open_house


def main() -> None:
    """Drain as the JSON on standard input says, and write what was done as JSON to standard output."""
    wanted = json.load(sys.stdin)
    stop = threading.Event()
    with closing(
        open_house(
            Path(wanted["include"]), wanted["ledger_url"], wanted["criteo_url"], Path(wanted["shop"]),
            requests_per_minute=wanted["requests_per_minute"], key=wanted["key"].encode(),
        )
    ) as house:  # fmt: skip
        for problem in house.canvases.problems:
            raise RuntimeError(str(problem))
        house.ledger  # noqa: B018 - migrating is not part of the work
        began_s = time.monotonic()
        done = house.drain("fresh", stop=stop, max_s=wanted.get("max_s"))
    told = {"entered": done.entered, "requests": done.requests, "identifiers": done.identifiers, "began_s": began_s}
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
