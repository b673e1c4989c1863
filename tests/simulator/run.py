"""Tell many stories on all processors: ``python -m tests.simulator.run first last``.

Ends at the first that goes wrong, told in short.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache, partial

from tests.simulator.databases import InMemory
from tests.simulator.stories import complaint, report, story_of

SEEDS_AT_A_TIME = 25
# A story takes a tenth of a second; one that takes so long goes round in a circle inside the ledger.
LONGEST_STORY_S = 60


def main(words: list[str]) -> int:
    """Tell the stories of the seeds from ``first`` to before ``last``; 1 when one went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int)
    parser.add_argument("--as-they-are", action="store_true", help="do not make a story that goes wrong shorter")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes that tell stories")
    asked = parser.parse_args(words)
    began_s = time.monotonic()
    with ProcessPoolExecutor(asked.jobs) as jobs:
        starts = range(asked.first, asked.last, SEEDS_AT_A_TIME)
        seeds = [range(start, min(start + SEEDS_AT_A_TIME, asked.last)) for start in starts]
        try:
            found = next(filter(None, jobs.map(partial(_tell, as_they_are=asked.as_they_are), seeds)), None)
        except BrokenProcessPool:
            found = f"A story did not end within {LONGEST_STORY_S} s."
        if found is not None:
            print(found)
            jobs.shutdown(cancel_futures=True)
            return 1
    took_s = time.monotonic() - began_s
    told = asked.last - asked.first
    print(f"{told:,} stories in {took_s:.1f} s, {told / took_s * 60:,.0f} a minute")
    return 0


def _tell(seeds: range, *, as_they_are: bool) -> str | None:
    """Tell some stories; return what is to be said of the first that goes wrong."""
    for seed in seeds:
        # Nothing that holds its thread for ever can be told so: the alarm ends this process.
        signal.alarm(LONGEST_STORY_S if as_they_are else 0)
        if as_they_are:
            found = complaint(_database(), story_of(seed), seed=seed, thorough=False)
            found = found and f"Seed {seed}: {found}"
        else:
            found = report(_database(), seed)
        if found is not None:
            return found
    signal.alarm(0)
    return None


@cache
def _database() -> InMemory:
    return InMemory()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
