"""Tell many stories: ``python -m tests.simulator.run first last``; ends at the first that goes wrong, told in short."""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulator.databases import InMemory
from tests.simulator.stories import complaint, report, story_of


def main(words: list[str]) -> int:
    """Tell the stories of the seeds from ``first`` to before ``last``; 1 when one went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int)
    parser.add_argument("--as-they-are", action="store_true", help="do not make a story that goes wrong shorter")
    asked = parser.parse_args(words)
    database, began_s = InMemory(), time.monotonic()
    for seed in range(asked.first, asked.last):
        if asked.as_they_are:
            found = complaint(database, story_of(seed), seed=seed, thorough=False)
        else:
            found = report(database, seed)
        if found is not None:
            print(f"Seed {seed}: {found}" if asked.as_they_are else found)
            return 1
    print(f"{asked.last - asked.first:,} stories in {time.monotonic() - began_s:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
