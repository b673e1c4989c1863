"""Audiences: what people ask about contact lists, and making one by hand."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from criteo_provider.core.errors import CriteoSyncError, Misconfigured
from criteo_provider.criteo_api.client import CriteoClient
from criteo_provider.store.audience_rows import AudienceRow, audience_rows, step_states
from criteo_provider.wiring.desk import Desk

if TYPE_CHECKING:
    from criteo_provider.wiring.house import House

LAG = "Criteo counts hours later, and hides sizes under about 1,000."


@dataclass(frozen=True, slots=True)
class Size:
    """What Criteo counted of an audience; None is hidden or not counted yet. ``problem`` says why nothing is known."""

    audience: AudienceRow
    identifiers: int | None = None
    matches: int | None = None
    match_rate_percent: float | None = None
    problem: str = ""


class Audiences:
    """The facet of the house about audiences."""

    def __init__(self, house: House) -> None:
        self._house = house

    def rows(self) -> list[AudienceRow]:
        """Return every audience a canvas has named, as the ledger knows it."""
        self._house.declare()
        return audience_rows(self._house.ledger.engine, now_us=self._house.now_us())

    def states(self) -> dict[tuple[str, str], str]:
        """Say in a few words how each step fares, by canvas and step id."""
        self._house.declare()
        return step_states(self._house.ledger.engine, now_us=self._house.now_us())

    def create(self, conn_id: str, ad_account: str, name: str) -> tuple[str, bool]:
        """Find or create a contact list for somebody who waits; return its Criteo id, and whether it was created."""
        house = self._house
        house.declare()
        if not name.strip():
            raise Misconfigured("An audience has a name; write it in quotes.")
        for sentence in house.accounts.refusals(conn_id, [ad_account]).values():
            raise Misconfigured(sentence)
        with house.criteo.client(conn_id) as client:
            desk = Desk(client, house.ledger.launches, conn_id, house.now_us)
            criteo_id, created = desk.ensure(ad_account, name)
        for row in self.rows():
            same = (row.connection_id, row.ad_account, row.name) == (conn_id, ad_account, name)
            if same and row.criteo_id is None:
                house.ledger.resolved(row.audience_id, criteo_id, created=created, now_us=house.now_us())
        return criteo_id, created

    def sizes(self, name: str | None = None) -> list[Size]:
        """Ask Criteo what it counted of each audience, or of those of one name; one that fails stops no other."""
        found: list[Size] = []
        clients: dict[str, CriteoClient] = {}
        with ExitStack() as closing:
            for row in self.rows():
                if row.criteo_id is None or name not in (None, row.name):
                    continue
                try:
                    if row.connection_id not in clients:
                        opened = closing.enter_context(self._house.criteo.client(row.connection_id))
                        clients[row.connection_id] = opened
                    counted = clients[row.connection_id].statistics(row.criteo_id)
                except CriteoSyncError as error:
                    found.append(Size(row, problem=str(error)))
                    continue
                # A zero is what Criteo shows of a list it has not counted, or whose size it hides.
                rate = counted.match_rate_percent if counted.matches else None
                found.append(Size(row, counted.identifiers or None, counted.matches or None, rate))
        return found
