"""The ledger's verbs about withdrawn consent; each is one transaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, Engine

from criteo_provider.core.consent import FeedDeclaration, Withdrawal
from criteo_provider.core.ports import CursorHold, Json, Look
from criteo_provider.store import cursors, opt_outs, withdraw
from criteo_provider.store.engine import reading


class OptOuts:
    """Who has withdrawn consent, and what became of it; ``write`` runs a verb in one transaction that writes."""

    def __init__(self, engine: Engine, write: Callable[[Callable[[Connection], Any]], Any]) -> None:
        self._engine, self._write = engine, write

    def declare(self, feeds: Sequence[FeedDeclaration], *, now_us: int) -> None:
        """Make the ledger agree with all opt-out feeds there are."""
        self._write(lambda connection: opt_outs.declare_feeds(connection, feeds, now_us=now_us))

    def withdraw(
        self,
        hold: CursorHold,
        told: Sequence[Withdrawal],
        *,
        position: Json,
        units: Sequence[str],
        looks: Sequence[Look],
        now_us: int,
    ) -> CursorHold:
        """Keep what a feed says, and the cursor behind it; LostClaim when the cursor moved."""

        def verb(connection: Connection) -> CursorHold:
            moved = cursors.move(connection, hold, position, now_us=now_us)
            cursors.complete_units(connection, hold.canvas_id, units, now_us=now_us)
            for wanted in looks:
                cursors.keep_look(connection, hold.canvas_id, wanted, now_us=now_us)
            opt_outs.record(connection, hold.canvas_id, told, now_us=now_us)
            return moved

        kept: CursorHold = self._write(verb)
        return kept

    def withdraw_late(
        self, look_id: int, feed_id: str, told: Sequence[Withdrawal], *, again: Look | None, now_us: int
    ) -> None:
        """Keep what a second look at a feed has found, and end that look; LostClaim when another process did."""

        def verb(connection: Connection) -> None:
            cursors.end_look(connection, look_id)
            if again is not None:
                cursors.keep_look(connection, feed_id, again, now_us=now_us)
            opt_outs.record(connection, feed_id, told, now_us=now_us)

        self._write(verb)

    def follow(self, *, now_us: int) -> bool:
        """Look for opted-out people in the next few chunks, and remove who was sent; False when nothing is left."""
        with reading(self._engine) as connection:
            stretch = withdraw.next_stretch(connection)
        if stretch is None:
            return False
        self._write(lambda connection: withdraw.follow(connection, stretch, now_us=now_us))
        return True

    def is_unfinished(self) -> bool:
        """Tell whether there are opt-outs whose people were not looked for everywhere yet."""
        with reading(self._engine) as connection:
            return withdraw.is_unfinished(connection)

    def counts(self) -> dict[str, tuple[int, int]]:
        """Return, for each feed, how many opt-outs hold now and how many were taken back."""
        with reading(self._engine) as connection:
            return opt_outs.counts(connection)
