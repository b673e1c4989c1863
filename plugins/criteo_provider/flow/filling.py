"""Filling: how many people make a chunk whose identifiers fill a request, and how many rows bring them."""

from __future__ import annotations

import math

from criteo_provider.core.model import MAX_IDENTIFIERS, SealedPeople

# A chunk of more people takes too much memory; where fewer have an identifier, a request takes of two chunks.
MOST_PEOPLE = MAX_IDENTIFIERS + MAX_IDENTIFIERS // 10
# Of fewer people the share with an identifier says nothing about others.
ENOUGH_TO_TELL = 1_000
# Chunks are so much smaller that chance makes hardly any too large: such a one would be cut, and sent in two.
DEVIATIONS = 5


class Filling:
    """Learns from the chunks of one source how many people the next one is to hold."""

    def __init__(self) -> None:
        self.people = MAX_IDENTIFIERS

    def learn(self, sealed: SealedPeople) -> None:
        """Have the identifiers most people have fill a request: with one in ten missing it takes 55,000 people."""
        if len(sealed) < ENOUGH_TO_TELL:
            return
        share = max((held.count for held in sealed.forms), default=0) / len(sealed)
        wanted = MAX_IDENTIFIERS - DEVIATIONS * math.sqrt(MAX_IDENTIFIERS * (1 - share))
        self.people = max(MAX_IDENTIFIERS, min(MOST_PEOPLE, int(wanted / share) if share else MOST_PEOPLE))


def rows_for(lacking: int, *, people: int, of_rows: int) -> int:
    """Return how many rows bring the people a chunk lacks, where ``of_rows`` rows have brought ``people``."""
    if people in (0, of_rows):
        return lacking
    # A little less: who is too many for this chunk begins the next one, with all the page.
    return max(1, min(MOST_PEOPLE, lacking * of_rows * 97 // (people * 100)))
