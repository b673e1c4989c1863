"""Filling: how many people make a chunk whose identifiers fill a request, and how many rows bring them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection

from criteo_provider.core.identifiers import Form
from criteo_provider.core.model import MAX_IDENTIFIERS, SealedPeople

# A chunk of more people takes too much memory; where fewer have an identifier, a request takes of two chunks.
MOST_PEOPLE = MAX_IDENTIFIERS + MAX_IDENTIFIERS // 10
# Of fewer people, or rows, a share says nothing about others.
ENOUGH_TO_TELL = 1_000
# So much is left to chance: a chunk that is too large is cut, and sent in two; a page that is begins another chunk.
DEVIATIONS = 4


class Filling:
    """Learns from the pages and chunks of one source how large the next ones are to be."""

    def __init__(self, fields: Collection[str]) -> None:
        self.people = MAX_IDENTIFIERS
        self._fields = frozenset(fields)  # that are sent
        self._eligible = 1.0
        self._rows = self._people = 0  # of pages too small to tell yet

    def read(self, rows: int, *, eligible: int) -> None:
        """Learn from pages how many rows bring a person."""
        self._rows += rows
        self._people += eligible
        if self._rows >= ENOUGH_TO_TELL:
            self._eligible = self._people / self._rows
            self._rows = self._people = 0

    def sealed(self, people: SealedPeople) -> None:
        """Learn from a chunk how many people have the identifiers that fill a request: of 90 % it takes 55,000."""
        if len(people) < ENOUGH_TO_TELL:
            return
        share = self._most_sent(people) / len(people)
        # The share is as uncertain as a chunk of so many people makes it.
        chance = math.sqrt(MAX_IDENTIFIERS * (1 - share) * (1 + MAX_IDENTIFIERS / len(people)))
        wanted = int((MAX_IDENTIFIERS - DEVIATIONS * chance) / share) if share else MOST_PEOPLE
        self.people = max(MAX_IDENTIFIERS, min(MOST_PEOPLE, wanted))

    def rows_for(self, lacking: int) -> int:
        """Return how many rows are likely to bring the people a chunk lacks, and no more of them."""
        chance = math.sqrt(lacking * (1 - self._eligible))
        rows = (lacking - DEVIATIONS * chance) / self._eligible if self._eligible else MOST_PEOPLE
        return max(1, min(MOST_PEOPLE, int(rows)))

    def _most_sent(self, people: SealedPeople) -> int:
        """How many identifiers of one kind a request takes of these people: all forms of it, if nobody has two."""
        kinds: dict[tuple[str, int | None], list[int]] = defaultdict(list)
        for held in people.forms:
            form = Form(held.form)
            if form.field in self._fields:
                kinds[form.identifier_type, held.gum_caller_id].append(held.count)
        together = (sum(counts) if sum(counts) <= len(people) else max(counts) for counts in kinds.values())
        return max(together, default=0)
