"""Accounts: which ad accounts this workspace may use, who decided it, how they fare, and which steps need them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping

from criteo_provider.core.errors import CriteoSyncError, Misconfigured
from criteo_provider.criteo_api.check import CheckResult, check_access
from criteo_provider.criteo_api.wire import AdAccount
from criteo_provider.settings.canvas import Canvas
from criteo_provider.store.accounts import Account, AccountBook, Checkup
from criteo_provider.store.ledger import Ledger
from criteo_provider.store.troubles import BY_CHOICE
from criteo_provider.wiring.account_rows import (
    AccountRow,
    ConnectionRow,
    Told,
    may_use_undecided,
    state_of_account,
    state_of_connection,
    why_stopped,
)
from criteo_provider.wiring.criteo import CriteoDoor
from criteo_provider.wiring.surroundings import Surroundings

_WORKS = frozenset({"ok", "expiring"})
# Whoever disconnects an ad account sees its steps stop after that at the latest.
LOOK_AGAIN_S = 1.0


class Permit:
    """Which ad accounts a connection may serve at this moment: decisions of people take effect while it is at work."""

    def __init__(self, book: AccountBook, conn_id: str, wanted: Collection[str], by_default: Collection[str]) -> None:
        self._book, self._conn_id = book, conn_id
        self._wanted, self._by_default = frozenset(wanted), frozenset(by_default)
        self._now: frozenset[str] = frozenset()
        self._looked_s = float("-inf")

    def now(self) -> frozenset[str]:
        """Return them."""
        if time.monotonic() - self._looked_s > LOOK_AGAIN_S:
            decided = {one.ad_account: one.chosen for one in self._book.decisions(self._conn_id)}
            self._now = frozenset(one for one in self._wanted if decided.get(one, one in self._by_default))
            self._looked_s = time.monotonic()
        return self._now


class Accounts:
    """The facet of the house about ad accounts."""

    def __init__(
        self,
        around: Surroundings,
        canvases: Iterable[Canvas],
        ledger: Callable[[], Ledger],
        door: CriteoDoor,
        now_us: Callable[[], int],
    ) -> None:
        self._around, self._canvases, self._ledger, self._door = around, tuple(canvases), ledger, door
        self._now_us = now_us

    # --- the rule

    def permit(self, conn_id: str, ad_accounts: Collection[str]) -> Permit:
        """Return which of these ad accounts may be served; people of others wait, and a trouble says why."""
        connection = self._around.criteo(conn_id)
        by_default = {one for one in ad_accounts if may_use_undecided(connection, one)}
        permit = Permit(self._book, conn_id, ad_accounts, by_default)
        decided = {one.ad_account: one for one in self._book.decisions(conn_id)}
        used = self._ledger().launches.ad_accounts_in_use().get(conn_id, set())  # of the others a launch tells
        stopped = {row.key for row in self._ledger().troubles() if row.scope == "ad_account" and row.code in BY_CHOICE}
        for ad_account in ad_accounts:
            key = f"{conn_id}/{ad_account}"
            if ad_account in permit.now():
                if key in stopped:
                    self._ledger().healed("ad_account", key, now_us=self._now_us())
            elif ad_account in used:
                code, sentence = why_stopped(connection, conn_id, ad_account, decided.get(ad_account))
                self._ledger().trouble("ad_account", key, code=code, sentence=sentence, now_us=self._now_us())
        return permit

    def refusals(self, conn_id: str, ad_accounts: Iterable[str]) -> dict[str, str]:
        """Return why ad accounts may not be served, for those of them that may not; changes nothing."""
        connection = self._around.criteo(conn_id)
        decided = {one.ad_account: one for one in self._book.decisions(conn_id)}
        return {
            one: why_stopped(connection, conn_id, one, decided.get(one))[1]
            for one in ad_accounts
            if not (decided[one].chosen if one in decided else may_use_undecided(connection, one))
        }

    def served(self, conn_id: str) -> list[str]:
        """Return the ad accounts a connection is to serve, as far as anybody has named them."""
        connection = self._around.criteo(conn_id)
        decided = {one.ad_account: one.chosen for one in self._book.decisions(conn_id)}
        allowed = [one for one in connection.allowed_ad_accounts if may_use_undecided(connection, one)]
        return [one for one in dict.fromkeys([*decided, *allowed]) if decided.get(one, True)]

    # --- what people do

    def choose(self, conn_id: str, ad_accounts: Mapping[str, str], *, by: str) -> list[str]:
        """Choose these ad accounts (names by id), and let their people go on; return the newly chosen ones."""
        self._around.criteo(conn_id)  # a mistyped connection is told, not remembered
        fresh = self._book.choose(conn_id, ad_accounts, by=person(by), now_us=self._now_us())
        for ad_account in fresh:
            self._ledger().healed("ad_account", f"{conn_id}/{ad_account}", now_us=self._now_us())
        return fresh

    def connect(self, conn_id: str, ad_account: str, *, by: str) -> None:
        """Use one ad account (again); its people go on at once."""
        name = self._known(conn_id, ad_account).name
        self.choose(conn_id, {ad_account: name}, by=by)

    def disconnect(self, conn_id: str, ad_account: str, *, by: str) -> tuple[str, ...]:
        """Disconnect one ad account; return its steps, whose people wait from now on."""
        row = self._known(conn_id, ad_account)
        self._book.disconnect(conn_id, {ad_account: row.name}, by=person(by), now_us=self._now_us())
        decision = next(one for one in self._book.decisions(conn_id) if one.ad_account == ad_account)
        if row.used_by:
            code, sentence = why_stopped(self._around.criteo(conn_id), conn_id, ad_account, decision)
            key = f"{conn_id}/{ad_account}"
            self._ledger().trouble("ad_account", key, code=code, sentence=sentence, now_us=self._now_us())
        return row.used_by

    def check(self, conn_id: str) -> CheckResult:
        """Ask Criteo how a connection fares, and remember it; a good answer ends a trouble of the connection."""
        found: tuple[AdAccount, ...] = ()
        served = self.served(conn_id)
        try:
            with self._door.client(conn_id) as client:
                result = check_access(client, served)
                found = client.ad_accounts() if result.ok else result.ad_accounts
        except CriteoSyncError as error:
            result = CheckResult(False, str(error), getattr(error, "code", "misconfigured"))
        self.remember(conn_id, result, found)
        return result

    def remember(self, conn_id: str, result: CheckResult, found: Iterable[AdAccount]) -> None:
        """Keep what a check has found."""
        names = {one.ad_account: one.name for one in found}
        if not names and (before := self._book.checkups().get(conn_id)):
            names = dict(before.ad_accounts)
        self._book.keep_checkup(Checkup(conn_id, self._now_us(), result.code, result.sentence, names))
        if result.ok:
            self._ledger().healed("connection", conn_id, now_us=self._now_us())

    def heal(self, conn_id: str, ad_accounts: Iterable[str]) -> None:
        """Let everybody go on whom a lost consent of this connection, or to these ad accounts, has held back."""
        self._ledger().healed("connection", conn_id, now_us=self._now_us())
        for ad_account in ad_accounts:
            self._ledger().healed("ad_account", f"{conn_id}/{ad_account}", now_us=self._now_us())

    def checked_us(self) -> dict[str, int]:
        """Return when each connection was last looked at."""
        return {conn_id: one.at_us for conn_id, one in self._book.checkups().items()}

    # --- what people see

    def look(self, conn_id: str) -> ConnectionRow:
        """Return one connection as people see it."""
        return self.overview([conn_id])[0]

    def overview(self, more: Iterable[str] = ()) -> list[ConnectionRow]:
        """Return every connection that canvases, decisions or ``more`` name."""
        checkups, used = self._book.checkups(), self._used()
        decisions: dict[str, dict[str, Account]] = defaultdict(dict)
        for one in self._book.decisions():
            decisions[one.connection_id][one.ad_account] = one
        troubles = {(row.scope, row.key): row.sentence for row in self._ledger().troubles()}
        known = {*more, *decisions, *checkups, *used}
        return [
            self._row(conn_id, decisions[conn_id], checkups.get(conn_id), used.get(conn_id, {}), troubles)
            for conn_id in sorted(known)
        ]

    def named(self) -> set[str]:
        """Return the connections that canvas files name."""
        return {canvas.connection for canvas in self._canvases}

    def unseen(self, conn_id: str) -> ConnectionRow:
        """Return a connection as people see it while there is no ledger."""
        try:
            connection = self._around.criteo(conn_id)
        except CriteoSyncError as error:
            return ConnectionRow(conn_id, None, "invalid", str(error), None, None, None, ())
        told = state_of_connection(connection, None, None, None)
        return ConnectionRow(conn_id, connection.grant_type, *told, None, None, None, ())

    def _row(
        self,
        conn_id: str,
        decisions: Mapping[str, Account],
        checkup: Checkup | None,
        used: Mapping[str, tuple[str, ...]],
        troubles: Mapping[tuple[str, str], str],
    ) -> ConnectionRow:
        connection = consent = None
        try:
            connection = self._around.criteo(conn_id)
        except CriteoSyncError as error:
            state, sentence = Told("invalid", str(error))
        else:
            consent = self._door.consents.current(conn_id)
            trouble = troubles.get(("connection", conn_id))
            state, sentence = state_of_connection(connection, consent, checkup, trouble)
        names = {one.ad_account: one.name for one in decisions.values()} | dict(checkup.ad_accounts if checkup else {})
        accounts = []
        for ad_account in sorted({*names, *used}):
            decision = decisions.get(ad_account)
            usable = decision.chosen if decision else bool(connection and may_use_undecided(connection, ad_account))
            trouble = troubles.get(("ad_account", f"{conn_id}/{ad_account}"))
            told = Told(state, sentence)
            if connection is not None and (state in _WORKS or not usable):
                own = state_of_account(connection, conn_id, ad_account, decision, checkup, trouble)
                told = told if own.state == "ok" and state != "ok" else own
            accounts.append(
                AccountRow(
                    ad_account,
                    names.get(ad_account, ""),
                    usable,
                    told.state,
                    told.sentence,
                    decision.by if decision else None,
                    decision.at_us if decision else None,
                    used.get(ad_account, ()),
                )
            )
        return ConnectionRow(
            conn_id,
            connection.grant_type if connection else None,
            state,
            sentence,
            consent.by if consent else None,
            consent.at_us if consent else None,
            checkup.at_us if checkup else None,
            tuple(accounts),
            self._book.handover(conn_id),
            has_candidate=connection is not None and self._door.consents.candidate(conn_id) is not None,
            consent_is_dead=consent is not None and consent.state == "dead",
        )

    def _known(self, conn_id: str, ad_account: str) -> AccountRow:
        for row in self.look(conn_id).accounts:
            if row.ad_account == ad_account:
                return row
        raise Misconfigured(
            f"Connection {conn_id} knows no ad account {ad_account}; `airflow criteo accounts list` shows them."
        )

    def _used(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """Return the steps, by connection and ad account: of the ledger, and of files not launched yet."""
        found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for one in self._book.used():
            found[one.connection_id][one.ad_account].append(f"{one.canvas} / {one.step}")
        for canvas in self._canvases:
            for step in canvas.audience_steps:
                steps, name = found[canvas.connection][step.sync.ad_account], f"{canvas.id} / {step.id}"
                if name not in steps:
                    steps.append(name)
        return {conn_id: {one: tuple(steps) for one, steps in of.items()} for conn_id, of in found.items()}

    @property
    def _book(self) -> AccountBook:
        return AccountBook(self._ledger().engine)


def person(name: str) -> str:
    """Name a user of Airflow without an address: what is decided is told in alerts and logs."""
    return name.partition("@")[0] or "somebody"
