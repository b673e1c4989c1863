"""The way from the house to Criteo: pacer, tokens and client of a connection, and what carries people through them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal

from sqlalchemy import Engine

from criteo_provider.core.budget import budget_per_min
from criteo_provider.core.errors import AccessLost, Busy, Unavailable
from criteo_provider.core.identifiers import Form
from criteo_provider.core.json_items import Piece, as_piece
from criteo_provider.core.model import ClaimedRequest
from criteo_provider.core.outcome import Outcome
from criteo_provider.core.ports import TokenStore
from criteo_provider.criteo_api.client import CriteoClient
from criteo_provider.criteo_api.failures import as_failure
from criteo_provider.criteo_api.grants import AuthorizationCode, RefreshToken, exchange
from criteo_provider.criteo_api.line import ClientSettings, Line
from criteo_provider.criteo_api.own_tokens import OwnTokens
from criteo_provider.criteo_api.wire import amendment_body
from criteo_provider.store.clock import Clock
from criteo_provider.store.consent_tokens import ConsentTokens
from criteo_provider.store.consents import Consent, Consents, no_cipher
from criteo_provider.store.pacer import Pacer, application_key, consent_key, granted
from criteo_provider.store.tokens import Cipher, LedgerTokens, sealed
from criteo_provider.wiring.surroundings import CriteoConnection, Surroundings

# A person who waits at a page or a prompt rather hears "busy" than nothing.
INTERACTIVE_PATIENCE_S = 30.0

Role = Literal["current", "candidate"]


class CriteoDoor:
    """Opens Criteo for any connection of these surroundings; tokens live in the ledger, slots beside it."""

    def __init__(
        self,
        around: Surroundings,
        ledger_engine: Callable[[], Engine],
        pacer_engine: Callable[[], Engine],
        clock: Clock,
    ) -> None:
        self._around, self._ledger_engine, self._pacer_engine, self._clock = around, ledger_engine, pacer_engine, clock

    @cached_property
    def consents(self) -> Consents:
        """Who let the connections of grant type authorization_code in."""
        return Consents(self._ledger_engine(), self._around.cipher, self._clock)

    def open(
        self, conn_id: str, stop: threading.Event | None = None, *, interactive: bool = False
    ) -> tuple[Pacer, CriteoClient]:
        """Return pacer and client of a connection; raises Misconfigured with the mend. Close the client."""
        connection, cipher = self._around.criteo(conn_id), self._cipher()
        if connection.grant_type == "authorization_code" and connection.refresh_token:
            self.consents.seed(conn_id, _application(connection), connection.refresh_token)
        return self._open(conn_id, connection, cipher, stop, "current", interactive=interactive)

    @contextmanager
    def client(self, conn_id: str) -> Iterator[CriteoClient]:
        """Open a client a person waits for."""
        _, client = self.open(conn_id, interactive=True)
        with client:
            yield client

    @contextmanager
    def candidate_client(self, conn_id: str) -> Iterator[CriteoClient]:
        """Open a client that speaks with the new consent of a connection, while the one in force goes on."""
        connection, cipher = self._around.criteo(conn_id), self._cipher()
        _, client = self._open(conn_id, connection, cipher, None, "candidate", interactive=True)
        with client:
            yield client

    def exchange(self, conn_id: str, code: str, redirect_uri: str, verifier: str, by: str) -> Consent:
        """Turn the code a person came back with into a new consent, still to be checked and put in force.

        Raises Misconfigured, AccessLost, Busy or Unavailable; then nothing is kept.
        """
        connection, cipher = self._around.criteo(conn_id), self._cipher()
        settings = _settings(connection)
        sealed(cipher, code)  # a code is good once: better not used than used for tokens that cannot be kept
        asked_at_s = self._clock.now_us() / 1e6
        with Line(settings, self._pacer(conn_id, connection, None, "candidate", interactive=True)) as line:
            granted = exchange(line, AuthorizationCode(settings, code, redirect_uri, verifier))
        return self.consents.begin_candidate(
            conn_id,
            _application(connection),
            refresh_token=granted.refresh_token or "",
            access=granted.value,
            ends_at_s=asked_at_s + granted.life_s,
            by=by,
            now_us=self._clock.now_us(),
            seed=connection.refresh_token or None,
        )

    def limit(self, conn_id: str) -> int:
        """Return the requests a minute a connection may make by its settings and its consent."""
        return self._limit(conn_id, self._around.criteo(conn_id), "current")

    def budget(self, conn_id: str) -> int:
        """Return the requests a minute in force: fewer than the limit when Criteo's answers say so; changes nothing."""
        connection = self._around.criteo(conn_id)
        limit = self._limit(conn_id, connection, "current")
        return min(limit, granted(self._pacer_engine(), _counted_by(conn_id, connection)) or limit)

    def wants_count(self, conn_id: str, *, every_s: float) -> bool:
        """Tell one process at a time that the limit depends on ad accounts nobody has counted lately."""
        connection = self._around.criteo(conn_id)
        by_accounts = connection.grant_type == "authorization_code" and connection.requests_per_minute is None
        return by_accounts and self.consents.begin_count(conn_id, every_s=every_s)

    def _open(
        self,
        conn_id: str,
        connection: CriteoConnection,
        cipher: Cipher,
        stop: threading.Event | None,
        role: Role,
        *,
        interactive: bool,
    ) -> tuple[Pacer, CriteoClient]:
        pacer = self._pacer(conn_id, connection, stop, role, interactive=interactive)
        application, settings = _application(connection), _settings(connection)
        if connection.grant_type == "client_credentials":
            # A check must see a wrong secret at once, and not the token that a right one has brought before.
            own = OwnTokens() if interactive else None
            tokens: TokenStore = own or LedgerTokens(self._ledger_engine(), application, cipher, self._clock)
            return pacer, CriteoClient(settings, pacer, tokens, interactive=interactive)
        # Here a check speaks with the tokens of all: exchanging the refresh token for itself would take it from them.
        store = ConsentTokens(self._ledger_engine(), conn_id, application, cipher, self._clock, role=role)

        def counted(ad_accounts: int) -> None:
            self.consents.counted(conn_id, ad_accounts, role=role)
            pacer.allow(budget_per_min(connection.grant_type, ad_accounts, connection.requests_per_minute))

        grant = RefreshToken(settings, store)
        client = CriteoClient(settings, pacer, store, grant=grant, interactive=interactive, on_ad_accounts=counted)
        return pacer, client

    def _pacer(
        self,
        conn_id: str,
        connection: CriteoConnection,
        stop: threading.Event | None,
        role: Role,
        *,
        interactive: bool,
    ) -> Pacer:
        limit = self._limit(conn_id, connection, role)
        patience = {"patience_s": INTERACTIVE_PATIENCE_S} if interactive else {}
        return Pacer(self._pacer_engine(), _counted_by(conn_id, connection), limit_per_min=limit, stop=stop, **patience)

    def _limit(self, conn_id: str, connection: CriteoConnection, role: Role) -> int:
        known = None
        if connection.grant_type == "authorization_code":
            known = self.consents.candidate(conn_id) if role == "candidate" else self.consents.current(conn_id)
        ad_accounts = known.ad_accounts if known else None
        return budget_per_min(connection.grant_type, ad_accounts, connection.requests_per_minute)

    def _cipher(self) -> Cipher:
        if self._around.cipher is None:
            raise no_cipher()
        return self._around.cipher


def _application(connection: CriteoConnection) -> str:
    return application_key(connection.base_url, connection.client_id)


def _counted_by(conn_id: str, connection: CriteoConnection) -> str:
    """Name what Criteo counts the calls of a connection by: its application, or the consent given to that."""
    key = _application(connection)
    return consent_key(key, conn_id) if connection.grant_type == "authorization_code" else key


def _settings(connection: CriteoConnection) -> ClientSettings:
    return ClientSettings(connection.client_id, connection.client_secret, connection.base_url, connection.api_version)


@dataclass(frozen=True, slots=True)
class Courier:
    """Carries claimed people to Criteo's contact lists."""

    client: CriteoClient

    def pack(self, claimed: ClaimedRequest, values: Callable[[], dict[str, bytes]]) -> list[Piece]:
        """Make the body: distinct values per form, in pieces; they are read again for a request that is repeated."""

        def again(form: str) -> bytes:
            return values()[form]

        items = [as_piece(packed, Form(form), partial(again, form)) for form, packed in values().items()]
        return list(amendment_body(claimed.operation.value, claimed.identifier_type, claimed.gum_caller_id, items))

    def make_ready(self) -> Outcome | None:
        """See to a good access token; what stands in the way is an outcome."""
        try:
            self.client.make_ready()
        except (AccessLost, Busy, Unavailable) as error:
            return as_failure(error)
        return None

    def send(self, claimed: ClaimedRequest, parcel: list[Piece], before_first_byte: Callable[[], None]) -> Outcome:
        """Send it, and let go of it at once."""
        try:
            return self.client.amend(claimed.criteo_id, parcel, before_first_byte=before_first_byte)
        finally:
            # What httpx keeps of a request refers to itself: what was not sent would be held until it is collected.
            parcel.clear()
