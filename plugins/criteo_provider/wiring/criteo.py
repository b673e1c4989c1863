"""The way from the house to Criteo: pacer, tokens and client of a connection, and what carries people through them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Engine

from criteo_provider.core import identifiers
from criteo_provider.core.errors import AccessLost, Busy, Misconfigured, Unavailable
from criteo_provider.core.identifiers import Form
from criteo_provider.core.model import ClaimedRequest
from criteo_provider.core.outcome import Outcome
from criteo_provider.core.ports import TokenStore
from criteo_provider.criteo_api.client import CriteoClient
from criteo_provider.criteo_api.failures import as_failure
from criteo_provider.criteo_api.line import ClientSettings
from criteo_provider.criteo_api.own_tokens import OwnTokens
from criteo_provider.criteo_api.wire import amendment_body
from criteo_provider.store.clock import DatabaseClock
from criteo_provider.store.pacer import Pacer, application_key
from criteo_provider.store.tokens import LedgerTokens
from criteo_provider.wiring.surroundings import Surroundings

# A person who waits at a page or a prompt rather hears "busy" than nothing.
INTERACTIVE_PATIENCE_S = 30.0


class CriteoDoor:
    """Opens Criteo for any connection of these surroundings; tokens live in the ledger, slots beside it."""

    def __init__(
        self,
        around: Surroundings,
        ledger_engine: Callable[[], Engine],
        pacer_engine: Callable[[], Engine],
        clock: DatabaseClock,
    ) -> None:
        self._around, self._ledger_engine, self._pacer_engine, self._clock = around, ledger_engine, pacer_engine, clock

    def open(
        self, conn_id: str, stop: threading.Event | None = None, *, interactive: bool = False
    ) -> tuple[Pacer, CriteoClient]:
        """Return pacer and client of a connection; raises Misconfigured with the mend. Close the client."""
        connection = self._around.criteo(conn_id)
        if self._around.cipher is None:
            raise Misconfigured(
                "Airflow's Fernet key is empty, so Criteo's access tokens would be stored in plain text. "
                "Set [core] fernet_key (AIRFLOW__CORE__FERNET_KEY) to a key of your own."
            )
        application = application_key(connection.base_url, connection.client_id)
        patience = {"patience_s": INTERACTIVE_PATIENCE_S} if interactive else {}
        pacer = Pacer(
            self._pacer_engine(), application, limit_per_min=connection.requests_per_minute, stop=stop, **patience
        )
        # A check must see a wrong secret at once, and not the token that a right one has brought before.
        tokens: TokenStore = (
            OwnTokens()
            if interactive
            else LedgerTokens(self._ledger_engine(), application, self._around.cipher, self._clock)
        )
        settings = ClientSettings(
            connection.client_id, connection.client_secret, connection.base_url, connection.api_version
        )
        return pacer, CriteoClient(settings, pacer, tokens, interactive=interactive)

    @contextmanager
    def client(self, conn_id: str) -> Iterator[CriteoClient]:
        """Open a client a person waits for."""
        _, client = self.open(conn_id, interactive=True)
        with client:
            yield client


@dataclass(frozen=True, slots=True)
class Courier:
    """Carries claimed people to Criteo's contact lists."""

    client: CriteoClient

    def pack(self, claimed: ClaimedRequest, values: dict[str, list[bytes]]) -> list[bytes]:
        """Make the body: distinct values per form, in pieces."""
        items = [
            identifiers.json_items(identifiers.encode(distinct, Form(form)), Form(form))
            for form, distinct in values.items()
        ]
        pieces, _length = amendment_body(claimed.operation.value, claimed.identifier_type, claimed.gum_caller_id, items)
        return list(pieces)

    def make_ready(self) -> Outcome | None:
        """See to a good access token; what stands in the way is an outcome."""
        try:
            self.client.make_ready()
        except (AccessLost, Busy, Unavailable) as error:
            return as_failure(error)
        return None

    def send(self, claimed: ClaimedRequest, parcel: list[bytes], before_first_byte: Callable[[], None]) -> Outcome:
        """Send it."""
        return self.client.amend(claimed.criteo_id, parcel, before_first_byte=before_first_byte)


@dataclass(frozen=True, slots=True)
class Desk:
    """Finds and creates audiences."""

    client: CriteoClient

    def ensure(self, ad_account: str, name: str) -> tuple[str, bool]:
        """Find the audience or create it."""
        info, created = self.client.ensure_audience(ad_account, name)
        return info.criteo_id, created

    def find(self, ad_account: str, name: str) -> str | None:
        """Find the audience."""
        info = self.client.find_audience(ad_account, name)
        return info.criteo_id if info else None
