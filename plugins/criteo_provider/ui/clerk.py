"""The clerk: what people do on the page Accounts, each time with a house opened for it and closed again."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from criteo_provider.core.errors import CriteoSyncError, LedgerRefused, Misconfigured
from criteo_provider.criteo_api.consent import Asked, consent_url
from criteo_provider.hooks import addresses, airflow_inside
from criteo_provider.hooks.criteo import read_connection
from criteo_provider.hooks.surroundings import open_house
from criteo_provider.ui.onlooker import refuse_if_missing
from criteo_provider.wiring.accounts import person

if TYPE_CHECKING:
    from criteo_provider.wiring import House
    from criteo_provider.wiring.account_rows import AccountRow, ConnectionRow
    from criteo_provider.wiring.handovers import Offer

log = logging.getLogger(__name__)

OFFER_LASTS_S = 120.0
_CONNECTION_ID = re.compile(r"[A-Za-z0-9_.-]{1,200}", re.ASCII)


@dataclass(frozen=True, slots=True)
class AccountLine:
    """One ad account on the page."""

    ad_account: str
    name: str
    usable: bool
    state: str
    sentence: str
    by: str | None
    at: datetime | None
    used_by: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CheckLine:
    """How far the check of a new consent is; ``running`` is False when it has ended with failures or died."""

    running: bool
    done: int
    total: int
    failures: tuple[str, ...]
    old_is_dead: bool


@dataclass(frozen=True, slots=True)
class ConnectionLine:
    """One connection on the page; ``lives_in`` is None where Airflow cannot say (a secrets backend, or nowhere)."""

    connection_id: str
    lives_in: str | None
    grant_type: str | None
    state: str
    sentence: str
    by: str | None
    at: datetime | None
    checked: datetime | None
    accounts: tuple[AccountLine, ...]
    handover: CheckLine | None
    has_candidate: bool


@dataclass(frozen=True, slots=True)
class Book:
    """The whole page; ``redirect_uri`` is None, and ``cannot_connect`` says why, where nobody can be sent to Criteo."""

    connections: tuple[ConnectionLine, ...]
    may_write: bool
    redirect_uri: str | None
    cannot_connect: str | None
    no_ledger: str | None = None


@dataclass(frozen=True, slots=True)
class OfferedAccount:
    """One ad account to choose, or not."""

    ad_account: str
    name: str
    chosen: bool
    used_by: tuple[str, ...]


class Clerk:
    """Reads and writes for the page; safe in threads. What it remembers saves calls to Criteo, and may be forgotten."""

    def __init__(self, open_house: Callable[[], House] = open_house) -> None:
        self._open_house = open_house
        self._offers: dict[str, tuple[float, Offer]] = {}

    def book(self, *, may_write: bool) -> Book:
        """Return what the page shows."""
        homes = airflow_inside.stored_connections()
        redirect_uri, why_not = _way_back()
        try:
            with self._house(made_already=True) as house:
                rows = house.accounts.overview(homes)
        except LedgerRefused as error:
            # Connections can be shown, and the first one connected, before there is a ledger.
            with closing(self._open_house()) as house:
                rows = [house.accounts.unseen(conn_id) for conn_id in sorted({*homes, *house.accounts.named()})]
            unknown = tuple(_connection(row, homes.get(row.connection_id), 0) for row in rows)
            return Book(unknown, may_write, redirect_uri, why_not, no_ledger=str(error))
        lines = tuple(_connection(row, homes.get(row.connection_id), time.time_ns() // 1_000) for row in rows)
        return Book(lines, may_write, redirect_uri, why_not)

    def check(self, conn_id: str) -> tuple[bool, str]:
        """Ask Criteo how a connection fares."""
        with self._house() as house:
            result = house.accounts.check(conn_id)
        return result.ok, result.sentence

    def offer(self, conn_id: str) -> tuple[Offer, list[OfferedAccount]]:
        """Return the ad accounts to choose from, and who needs them."""
        with self._house() as house:
            offer, row = house.handovers.offer(conn_id), house.accounts.look(conn_id)
        self._offers[conn_id] = time.monotonic(), offer
        used = {one.ad_account: one.used_by for one in row.accounts}
        offered = [
            OfferedAccount(one, name, one in offer.chosen, used.get(one, ())) for one, name in offer.names.items()
        ]
        return offer, offered

    def choose(self, conn_id: str, ad_accounts: Collection[str], *, by: str, done: Callable[[], None]) -> bool:
        """Choose ad accounts; True when it is done, False when a check goes on that calls ``done`` if it passes."""
        with self._house() as house:
            at_once = house.handovers.choose(conn_id, ad_accounts, by=by, offer=self._shown(conn_id))
        if at_once:
            done()
        else:
            self._run_in_background(conn_id, done)
        return at_once

    def try_again(self, conn_id: str, *, by: str, done: Callable[[], None]) -> None:
        """Check a new consent again."""
        with self._house() as house:
            house.handovers.again(conn_id, by=by)
        self._run_in_background(conn_id, done)

    def keep_old(self, conn_id: str) -> None:
        """Drop a new consent."""
        with self._house() as house:
            house.handovers.keep_old(conn_id)

    def use_anyway(self, conn_id: str, *, by: str) -> list[str]:
        """Use a new consent in place of one that is dead; return what is connected."""
        with self._house() as house:
            return sorted(house.handovers.use_anyway(conn_id, by=by))

    def disconnect(self, conn_id: str, ad_account: str, *, by: str) -> tuple[str, ...]:
        """Disconnect one ad account; return the steps that stop."""
        with self._house() as house:
            return house.accounts.disconnect(conn_id, ad_account, by=by)

    def reconnect(self, conn_id: str, ad_account: str, *, by: str) -> None:
        """Use an ad account (again); its people go on at once."""
        with self._house() as house:
            house.accounts.connect(conn_id, ad_account, by=by)

    def consent_address(self, conn_id: str, asked: Asked) -> str:
        """Return where to send a person who is to consent."""
        uri, why_not = _way_back()
        if uri is None or why_not:
            raise Misconfigured(why_not or "")
        with self._house() as house:
            connection = house.around.criteo(conn_id)
        if connection.grant_type != "authorization_code":
            raise Misconfigured(
                f"Connection {conn_id} uses client credentials, which no person consents to. Set its Grant type to "
                "authorization_code under Admin > Connections (or where it lives) to connect it here."
            )
        return consent_url(connection.consent_url, connection.client_id, uri, asked)

    def came_back(self, conn_id: str, code: str, verifier: str, *, by: str) -> None:
        """Turn the code a person came back with into a new consent, which is not in force yet."""
        self._offers.pop(conn_id, None)
        with self._house() as house:
            house.criteo.exchange(conn_id, code, addresses.redirect_uri(), verifier, person(by))

    def create(self, conn_id: str, client_id: str, client_secret: str, base_url: str) -> None:
        """Write a new Airflow connection; what is wrong with it is told before anything is written."""
        from airflow.sdk import Connection

        if not _CONNECTION_ID.fullmatch(conn_id):
            raise Misconfigured(
                f"Connection id: {conn_id!r} is not one; take letters, digits, dots, dashes and underscores, "
                "such as criteo_default."
            )
        fields = {
            "conn_type": "criteo",
            "host": base_url.strip() or None,
            "login": client_id.strip(),
            "password": client_secret.strip(),
            "extra": json.dumps({"grant_type": "authorization_code"}),
        }
        read_connection(Connection(conn_id=conn_id, **fields))  # type: ignore[arg-type]
        airflow_inside.store_connection(conn_id, **fields)

    @contextmanager
    def _house(self, *, made_already: bool = False) -> Iterator[House]:
        with closing(self._open_house()) as house:
            if made_already:
                refuse_if_missing(house.around.ledger_url)
            yield house

    def _shown(self, conn_id: str) -> Offer | None:
        """Return what a person was offered a moment ago by this process, once."""
        at_s, offer = self._offers.pop(conn_id, (0.0, None))
        return offer if time.monotonic() - at_s < OFFER_LASTS_S else None

    def _run_in_background(self, conn_id: str, done: Callable[[], None]) -> None:
        """Run a hand-over; how far it is stands in the ledger, where every API server process finds it."""

        def run() -> None:
            try:
                with self._house() as house:
                    if not house.handovers.run(conn_id):
                        done()
            except CriteoSyncError as error:
                log.warning("The check of a new consent of connection %s has ended: %s", conn_id, error)
            except Exception as error:
                log.warning(
                    "The check of a new consent of connection %s has ended (%s).", conn_id, type(error).__name__
                )

        threading.Thread(target=run, name=f"criteo-handover-{conn_id}", daemon=True).start()


def _way_back() -> tuple[str | None, str | None]:
    try:
        uri = addresses.redirect_uri()
        if airflow_inside.cipher() is None:
            return uri, (
                "Airflow's Fernet key is empty, so secrets would be stored in plain text. "
                "Set [core] fernet_key (AIRFLOW__CORE__FERNET_KEY) to a key of your own."
            )
    except CriteoSyncError as error:
        return None, str(error)
    return uri, None


def _connection(row: ConnectionRow, home: str | None, now_us: int) -> ConnectionLine:
    going_on = row.handover
    check = None
    if going_on is not None:
        running = going_on.is_running(now_us)
        check = CheckLine(running, going_on.done, going_on.total, going_on.failures, row.consent_is_dead)
    return ConnectionLine(
        row.connection_id,
        home,
        row.grant_type,
        row.state,
        row.sentence,
        row.by,
        _time(row.at_us),
        _time(row.checked_us),
        tuple(map(_account, row.accounts)),
        check,
        row.has_candidate,
    )


def _account(row: AccountRow) -> AccountLine:
    return AccountLine(
        row.ad_account, row.name, row.usable, row.state, row.sentence, row.by, _time(row.at_us), row.used_by
    )


def _time(at_us: int | None) -> datetime | None:
    return None if at_us is None else datetime.fromtimestamp(at_us // 1_000_000, UTC)
