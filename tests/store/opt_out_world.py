"""A world with an opt-out feed, and what its rows say."""

from __future__ import annotations

from criteo_provider.core.consent import FeedDeclaration, Withdrawal, key_marks, value_marks
from criteo_provider.core.model import ClaimedRequest, Operation
from tests.world import World, digest

FEED = "opt_outs/do_not_sell"


def by_key(*numbers: int, taken_back: bool = False) -> list[Withdrawal]:
    """The rows of a feed that names user keys."""
    return [Withdrawal("user_key", mark, taken_back) for mark in key_marks([f"user-{n}" for n in numbers])]


def by_email(*numbers: int) -> list[Withdrawal]:
    """The rows of a feed that names addresses."""
    return [Withdrawal("email_sha256", mark) for mark in value_marks("email_sha256", map(digest, numbers))]


class OptOutWorld(World):
    """A world with one opt-out feed, and a Criteo that remembers its lists."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.lists: dict[int, set[bytes]] = {}
        self.declare_feed(None)

    def declare_feed(self, canvases: tuple[str, ...] | None) -> None:
        feed = FeedDeclaration(FEED, "Do not sell", "privacy-team", 13 * 3600, repr(canvases), canvases)
        self.ledger.opt_outs.declare([feed], now_us=self.now_us)

    def tell(self, *told: Withdrawal, follow: bool = True) -> None:
        """Let the feed say something, and look for the people it names."""
        self.pass_time(1)
        hold = self.ledger.hold_cursor(FEED, "me", now_us=self.now_us, lease_s=30)
        assert hold is not None
        self.ledger.opt_outs.withdraw(hold, told, position=1, units=(), looks=(), now_us=self.now_us)
        self.ledger.release_cursor(hold)
        self.pass_time(1)
        if follow:
            self.look_for_people()

    def look_for_people(self) -> None:
        """Follow all opt-outs there are."""
        while self.ledger.opt_outs.follow(now_us=self.now_us):
            pass

    def accept(self, claimed: ClaimedRequest) -> None:
        """Let Criteo take a request."""
        members = self.lists.setdefault(claimed.audience_id, set())
        sent = set(self.sent(claimed))
        self.lists[claimed.audience_id] = members | sent if claimed.operation is Operation.ADD else members - sent
        self.settle(claimed)

    def drain(self) -> None:
        """Send whatever is due."""
        while claimed := self.claim() or self.claim_retry():
            self.accept(claimed)

    def members(self) -> set[bytes]:
        """Everybody in any list."""
        return set().union(*self.lists.values())
