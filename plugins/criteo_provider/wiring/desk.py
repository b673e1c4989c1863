"""Desk: finds and creates audiences at Criteo, and keeps an eye on how many an ad account has."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from criteo_provider.core.errors import QuotaReached
from criteo_provider.core.identifiers import Form
from criteo_provider.core.json_items import json_items
from criteo_provider.core.model import Operation
from criteo_provider.core.outcome import Busy, Outcome, Unavailable
from criteo_provider.core.quota import unable_to_create
from criteo_provider.criteo_api.client import CriteoClient
from criteo_provider.criteo_api.listing import Listing
from criteo_provider.criteo_api.wire import amendment_body
from criteo_provider.store.launches import Launches

UNUSED_AFTER_US = 90 * 86_400_000_000
TRIES = 3
LONGEST_WAIT_S = 60.0
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class Desk:
    """The audiences of one connection."""

    client: CriteoClient
    launches: Launches
    conn_id: str
    now_us: Callable[[], int]

    def ensure(self, ad_account: str, name: str, listing: Listing | None = None) -> tuple[str, bool]:
        """Find the audience or create it; a listing just made saves the search."""
        there = listing or self.listing(ad_account)
        try:
            info, created = self.client.ensure_audience(ad_account, name, listing=there)
        except QuotaReached:
            sentence = unable_to_create(ad_account, len(there), self.unused(there))
            raise QuotaReached(sentence, code="quota-reached") from None
        return info.criteo_id, created

    def find(self, ad_account: str, name: str) -> str | None:
        """Find the audience."""
        info = self.listing(ad_account).named(name)
        return info.criteo_id if info else None

    def listing(self, ad_account: str) -> Listing:
        """Search for all audiences of an ad account, and remember how many there are."""
        found = self.client.listing(ad_account)
        self.launches.seen_full(self.conn_id, ad_account, len(found), now_us=self.now_us())
        return found

    def unused(self, listing: Listing) -> list[str]:
        """Name the contact lists this ledger has not synced for 90 days."""
        since_us = self.now_us() - UNUSED_AFTER_US
        synced = self.launches.synced_since(self.conn_id, listing.ad_account, since_us)
        return [one.name for one in listing.audiences if one.takes_people and one.criteo_id not in synced]


def try_writing(client: CriteoClient, criteo_id: str, *, tries: int = TRIES) -> Outcome:
    """Remove somebody who does not exist: it changes nothing, and is allowed only to who may write."""
    nobody = json_items(secrets.token_bytes(_DIGEST_BYTES), Form.EMAIL_SHA256)
    pieces = amendment_body(Operation.REMOVE.value, "email", None, [nobody])
    for tries_left in range(tries - 1, -1, -1):
        outcome = client.amend(criteo_id, pieces, slot_taken=False)
        if not isinstance(outcome, Busy | Unavailable) or not tries_left:
            break
        time.sleep(min(outcome.wait_s or 1.0, LONGEST_WAIT_S))
    return outcome
