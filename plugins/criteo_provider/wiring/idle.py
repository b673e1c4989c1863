"""Idle: a connection nobody sends through is looked at now and then, so that lost access shows before people come."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from criteo_provider.core.errors import AccessLost, Busy, CriteoSyncError, Unavailable
from criteo_provider.criteo_api.check import CheckResult
from criteo_provider.criteo_api.wire import AdAccount

if TYPE_CHECKING:
    from criteo_provider.wiring.house import House

log = logging.getLogger(__name__)

NOT_CONSENTED = "not-consented"
# Who looks for work every second need not ask this every second.
_LOOK_EVERY_S = 30.0


class Idle:
    """The idle connections of a house; one cheap call tells whether Criteo still lets us into each ad account."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._looked_s = float("-inf")
        self._due: tuple[str, ...] = ()

    def due(self) -> tuple[str, ...]:
        """Return the connections to be looked at now: idle for too long, or in trouble whose probe is due."""
        if time.monotonic() - self._looked_s > _LOOK_EVERY_S:
            self._due, self._looked_s = tuple(self._find()), time.monotonic()
        return self._due

    @contextmanager
    def looked_at(self, stop: threading.Event) -> Iterator[None]:
        """Look at all that are due while the block does its work; it ends when both are done."""
        with ThreadPoolExecutor(1, thread_name_prefix="criteo-idle") as beside:
            looking = beside.submit(self.check, stop)
            yield
        looking.result()

    def check(self, stop: threading.Event) -> None:
        """Look at all that are due; what is found is a trouble of the connection or ad account, or the end of one."""
        for conn_id in self._find():
            if stop.is_set():
                return
            try:
                _, client = self._house.criteo.open(conn_id, stop)
                with client:
                    found = client.ad_accounts()
            except AccessLost as error:
                self._lost(conn_id, error)
            except (Busy, Unavailable) as error:
                log.info("Connection %s could not be looked at: %s", conn_id, error)
            except CriteoSyncError as error:
                log.info("Connection %s cannot be opened: %s", conn_id, error)
            else:
                self._answered(conn_id, found)
        self._looked_s = float("-inf")

    def _find(self) -> Iterable[str]:
        house, now_us = self._house, self._house.now_us()
        checked = house.accounts.checked_us()
        troubled = {row.key for row in house.ledger.troubles() if row.scope == "connection"}
        for conn_id, used_us in house.ledger.launches.last_used().items():
            if conn_id in troubled:
                due = house.ledger.may_probe("connection", conn_id, now_us=now_us)
            else:
                due = max(used_us, checked.get(conn_id, 0)) + house.around.idle_check_s * 1e6 <= now_us
            if due:
                yield conn_id

    def _lost(self, conn_id: str, error: AccessLost) -> None:
        ledger, now_us = self._house.ledger, self._house.now_us()
        ledger.trouble("connection", conn_id, code=error.code, sentence=str(error), now_us=now_us)
        self._house.accounts.remember(conn_id, CheckResult(False, str(error), error.code), ())

    def _answered(self, conn_id: str, found: tuple[AdAccount, ...]) -> None:
        ledger, now_us = self._house.ledger, self._house.now_us()
        consented = {one.ad_account for one in found}
        told = {row.key for row in ledger.troubles() if row.scope == "ad_account" and row.code == NOT_CONSENTED}
        missing = []
        for ad_account in sorted(ledger.launches.ad_accounts_in_use().get(conn_id, set())):
            key = f"{conn_id}/{ad_account}"
            if ad_account not in consented:
                missing.append(ad_account)
                if ledger.may_probe("ad_account", key, now_us=now_us):
                    sentence = (
                        f"Ad account {ad_account} does not consent to the application any more. People stay pending; "
                        "ask its Criteo admin to consent again."
                    )
                    ledger.trouble("ad_account", key, code=NOT_CONSENTED, sentence=sentence, now_us=now_us)
            elif key in told:
                ledger.healed("ad_account", key, now_us=now_us)
        sentence = f"Criteo lets this connection in; {len(consented):,} ad accounts consent."
        result = CheckResult(True, sentence, ad_accounts=found)
        if missing:
            what = f"Criteo lets this connection in, but ad account {', '.join(missing)} does not consent any more."
            result = CheckResult(False, what, "ad-account-not-consented", found)
            ledger.healed("connection", conn_id, now_us=now_us)
        self._house.accounts.remember(conn_id, result, found)
