"""What the ledger has on record: one user's story, and how long it is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from criteo_provider.core.errors import Misconfigured
from criteo_provider.settings.durations import parse_duration
from criteo_provider.store.ledger import Ledger
from criteo_provider.store.person import PersonStep

# Retries, removals after delays and questions of people reach back: younger records are not pruned.
SHORTEST_KEEPING_S = 30 * 86_400


class Records:
    """The ledger as an archive; reading it disturbs nobody."""

    def __init__(self, ledger: Callable[[], Ledger], now_us: Callable[[], int]) -> None:
        self._ledger, self._now_us = ledger, now_us

    def person(self, named: str) -> list[PersonStep]:
        """Return what happened to whoever has this user key or identifier, newest entry first."""
        return self._ledger().keeping.person(named, now_us=self._now_us())

    def prune(self, older_than: str) -> Iterator[int]:
        """Turn finished people who entered longer ago into counts, a few chunks a step; yield how many so far."""
        age_s = parse_duration(older_than)
        if age_s is None or age_s < SHORTEST_KEEPING_S:
            raise Misconfigured(
                "Records younger than 30 days are not pruned: people are still tried again and removed by them. "
                "Give an age of at least 30d, such as --older-than 400d."
            )
        before_us, keeping, pruned = self._now_us() - age_s * 1_000_000, self._ledger().keeping, 0
        while people := keeping.prune(before_us=before_us):
            pruned += people
            yield pruned
        while keeping.prune_requests(before_us=before_us):
            yield pruned
