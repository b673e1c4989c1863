"""Consent: the opt-out feeds of a deployment, read like any source and followed to everybody who was sent."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from criteo_provider.core.consent import FEED_PREFIX
from criteo_provider.flow.drain import Reader
from criteo_provider.settings.opt_outs import Feeds, OptOutFeed, load_feeds
from criteo_provider.store.ledger import Ledger
from criteo_provider.store.source_states import SourceStates
from criteo_provider.wiring.glances import Glances
from criteo_provider.wiring.reading import FEED_EVERY_S, feed_reader_of, looked_at
from criteo_provider.wiring.surroundings import Surroundings

_BROKEN_FILE = "broken-file"


class Consent:
    """The facet of the house about withdrawn consent."""

    def __init__(
        self, around: Surroundings, ledger: Callable[[], Ledger], now_us: Callable[[], int], owner: str
    ) -> None:
        self.feeds: Feeds = load_feeds(around.include_folder)
        self._around, self._ledger, self._now_us, self._owner = around, ledger, now_us, owner

    def readers(self) -> list[Reader]:
        """Return what reads each feed."""
        return [
            feed_reader_of(feed, self._around.source, self._ledger(), self._now_us, self._owner)
            for feed in self._declared
        ]

    def declare(self) -> None:
        """Make the ledger agree with the feed files, once."""
        _ = self._declared

    def ahead(self, states: SourceStates, glances: Glances, *, sparing: bool) -> tuple[bool, tuple[str, ...]]:
        """Tell whether a feed has something new or opt-outs are to be followed, and which feeds cannot be looked at."""
        ahead, problems, rest_s = False, [], FEED_EVERY_S if sparing else 0.0
        for feed in self._declared:
            if not ahead:
                ahead, wrong = looked_at(feed, self._around.source, self._ledger(), states, glances, rest_s=rest_s)
                problems += [f"Feed {feed.id}: {wrong}"] if wrong else []
        return ahead or self._ledger().opt_outs.is_unfinished(), tuple(problems)

    def follow(self) -> bool:
        """Remove some of the people who opted out after they were sent; False when nobody is left."""
        return self._ledger().opt_outs.follow(now_us=self._now_us())

    def counts(self) -> dict[str, tuple[int, int]]:
        """Return, for each feed, how many opt-outs hold now and how many were taken back."""
        declared = {feed.id: (0, 0) for feed in self._declared}
        return declared | self._ledger().opt_outs.counts()

    @cached_property
    def _declared(self) -> tuple[OptOutFeed, ...]:
        now_us = self._now_us()
        ledger = self._ledger()
        ledger.opt_outs.declare([feed.declaration for feed in self.feeds.feeds], now_us=now_us)
        wrong = {FEED_PREFIX + problem.file.stem: str(problem) for problem in self.feeds.problems}
        for key, sentence in wrong.items():
            # Nobody would notice that nobody opts out any more: a broken feed is told like a broken source.
            ledger.trouble("source", key, code=_BROKEN_FILE, sentence=sentence, now_us=now_us)
        kept = {feed.id for feed in self.feeds.feeds}
        for row in ledger.troubles():
            # A file that was mended is read at once, and one that is gone has no trouble any more.
            is_feed = row.scope == "source" and row.key.startswith(FEED_PREFIX) and row.key not in wrong
            if is_feed and (row.code == _BROKEN_FILE or row.key not in kept):
                ledger.healed("source", row.key, now_us=now_us, is_unused=row.key not in kept)
        return self.feeds.feeds
