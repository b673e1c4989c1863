"""The tokens of a consent: a refresh token that changes with each use, exchanged by one process at a time."""

from __future__ import annotations

from typing import Literal

import stamina
from sqlalchemy import Connection, Engine, exists, func, select, update
from sqlalchemy.exc import DBAPIError

from criteo_provider.core.errors import AccessLost, LedgerUnwritable
from criteo_provider.core.ports import Token
from criteo_provider.store.clock import Clock
from criteo_provider.store.consents import CANDIDATE
from criteo_provider.store.engine import looking, writing
from criteo_provider.store.schema import token
from criteo_provider.store.schema_access import consent
from criteo_provider.store.tokens import Cipher, LedgerTokens

# Criteo has changed the refresh token already: a database that is away for a moment must not cost it.
STORE_WITHIN_S = 90.0


class ConsentTokens(LedgerTokens):
    """Access and refresh token of the consent of one connection; implements ``core.ports.ConsentStore``.

    It follows the consent in force: when a person connects anew, the next look finds the new one's tokens.
    """

    def __init__(
        self,
        engine: Engine,
        conn_id: str,
        application: str,
        cipher: Cipher,
        clock: Clock,
        *,
        role: Literal["current", "candidate"] = "current",
    ) -> None:
        super().__init__(engine, "", cipher, clock)
        self._conn_id, self._application, self._role = conn_id, application, role
        self._exchanged = ""

    def refresh_token(self) -> str:
        """Return the refresh token to be exchanged in the renewal that was begun; raises AccessLost."""
        holder = self._renewing[0] if self._renewing else ""
        with looking(self._engine) as connection:
            row = connection.execute(select(token).where(token.c.holder == holder)).one_or_none()
        if row is None or row.refresh is None:
            raise self._not_connected()
        try:
            self._exchanged = self._cipher.decrypt(bytes(row.refresh)).decode()
        except ValueError:
            raise AccessLost(
                f"The consent of connection {self._conn_id} is encrypted under another Fernet key ({row.key_id}) than "
                f"this process has ({self._cipher.key_id()}). Give all processes of this Airflow the same [core] "
                "fernet_key, an earlier key behind the new one, and run `airflow criteo db rotate-key`; "
                "if the earlier key is gone, reconnect on the Accounts page.",
                code="another-fernet-key",
            ) from None
        return self._exchanged

    def refused(self) -> bool:
        """Mark the consent as dead; False when somebody has renewed or replaced it since, so that it is not."""
        if self._renewing is None:
            return False
        holder, serial, _ = self._renewing
        still_that_one = exists(token.c.holder).where(token.c.holder == holder, token.c.serial == serial)
        with writing(self._engine) as connection:
            dead = connection.execute(
                update(consent)
                .where(consent.c.holder == holder, still_that_one)
                .values(dead_us=func.coalesce(consent.c.dead_us, self._clock.now_us()))
            )
            return dead.rowcount == 1

    def finish_renewal(self, value: str, *, ends_at_s: float, refresh_token: str | None = None) -> Token | None:
        """Store both tokens at once, insisting while the database is away; without a new one the old one stays."""
        for attempt in stamina.retry_context(
            on=(DBAPIError, LedgerUnwritable), attempts=None, timeout=STORE_WITHIN_S, wait_initial=0.2, wait_max=3.0
        ):
            with attempt:
                found = super().finish_renewal(
                    value, ends_at_s=ends_at_s, refresh_token=refresh_token or self._exchanged
                )
        return found

    def _store(self, connection: Connection, value: str, ends_at_s: float, refresh_token: str | None) -> int | None:
        serial = super()._store(connection, value, ends_at_s, refresh_token)
        if serial is not None and self._renewing is not None:
            connection.execute(
                update(consent)
                .where(consent.c.holder == self._renewing[0])
                .values(renewed_us=self._clock.now_us(), dead_us=None)
            )
        return serial

    def _holder(self, connection: Connection) -> str:
        query = select(consent.c.holder, consent.c.application).where(
            consent.c.connection_id == self._conn_id, consent.c.role == self._role
        )
        row = connection.execute(query).one_or_none()
        if row is None:
            raise self._not_connected()
        if row.application != self._application:
            raise AccessLost(
                f"The consent of connection {self._conn_id} was given to another client id or base URL than the "
                "connection has now. Reconnect it on the Accounts page.",
                code="consent-of-another-application",
            )
        return str(row.holder)

    def _ensure_row(self) -> None:
        """Nothing: the row came with the consent."""

    def _not_connected(self) -> AccessLost:
        if self._role == CANDIDATE:
            return AccessLost(
                f"There is no new consent of connection {self._conn_id} to check. Start again with Connect Criteo.",
                code="no-candidate",
            )
        return AccessLost(
            f"Nobody has connected {self._conn_id} to Criteo. Click Connect Criteo on the Accounts page.",
            code="not-connected",
        )
