"""Tell many stories: ``python -m tests.simulator.run [first] [last]``; ends at the first that goes wrong."""

from __future__ import annotations

import sys
import time

from tests.simulator.databases import InMemory
from tests.simulator.stories import report


def main(first: int, last: int) -> int:
    """Tell the stories of the seeds from ``first`` to before ``last``; 1 when one went wrong."""
    database, began_s = InMemory(), time.monotonic()
    for seed in range(first, last):
        found = report(database, seed)
        if found is not None:
            print(found)
            return 1
    print(f"{last - first:,} stories in {time.monotonic() - began_s:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:3])))
