"""Access tokens, shared by all processes of an application or a consent, and kept encrypted."""

from __future__ import annotations

from typing import Any, Protocol

from sqlalchemy import ColumnElement, Connection, Engine, Row, insert, select, update
from sqlalchemy.exc import IntegrityError

from criteo_provider.core.errors import Misconfigured
from criteo_provider.core.ports import Token
from criteo_provider.store.clock import Clock, is_over
from criteo_provider.store.engine import looking, writing
from criteo_provider.store.schema import token


class Cipher(Protocol):
    """What encrypts secrets at rest; ``key_id`` names the key without showing it."""

    def encrypt(self, plain: bytes) -> bytes:
        """Return the encrypted bytes, under the first of the keys."""

    def decrypt(self, secret: bytes) -> bytes:
        """Return the plain bytes; raise ValueError when none of the keys fits."""

    def key_id(self) -> str:
        """Name the first of the keys."""


def sealed(cipher: Cipher, secret: str) -> bytes:
    """Encrypt ``secret``; raise Misconfigured when the cipher only pretends to."""
    clear = secret.encode()
    hidden = cipher.encrypt(clear)
    if clear in hidden:
        raise Misconfigured(
            "Criteo's tokens cannot be stored: Airflow's Fernet key is empty. Set [core] fernet_key "
            "(AIRFLOW__CORE__FERNET_KEY) to a key of your own."
        )
    return hidden


class LedgerTokens:
    """The access token of one Criteo application in the ledger; implements ``core.ports.TokenStore``.

    Used by one thread at a time; a renewal begun here is ended here.
    """

    def __init__(self, engine: Engine, holder: str, cipher: Cipher, clock: Clock) -> None:
        self._engine, self._cipher, self._clock = engine, cipher, clock
        self._own_holder = holder
        self._renewing: tuple[str, int, int] | None = None  # whose token, which one, and until when it is ours

    def current(self) -> Token | None:
        """Return the stored token, whether fresh or not; None also under another key, so that it is renewed."""
        with looking(self._engine) as connection:
            row = self._row(connection)
        if row is None or row.access is None:
            return None
        try:
            value = self._cipher.decrypt(bytes(row.access)).decode()
        except ValueError:
            return None
        return Token(value, float(row.ends_at_s), int(row.serial))

    def begin_renewal(self, *, dead_serial: int | None, lease_s: float) -> bool:
        """Take the renewal lease; False when another process holds it or the dead token is replaced already."""
        sealed(self._cipher, "what cannot be stored afterwards is better not asked for")
        now_us = self._clock.now_us()
        until_us = now_us + round(lease_s * 1e6)
        self._ensure_row()
        with writing(self._engine) as connection:
            holder = self._holder(connection)
            free = [token.c.holder == holder, is_over(token.c.renewer_until_us, now_us)]
            if dead_serial is not None:
                free.append(token.c.serial == dead_serial)
            taken = connection.execute(
                update(token).where(*free).values(renewer_until_us=until_us).returning(token.c.serial)
            ).one_or_none()
        self._renewing = None if taken is None else (holder, int(taken.serial), until_us)
        return taken is not None

    def finish_renewal(self, value: str, *, ends_at_s: float, refresh_token: str | None = None) -> Token | None:
        """Store what was renewed and give the lease back; None when somebody else has renewed in the meantime."""
        with writing(self._engine) as connection:
            serial = self._store(connection, value, ends_at_s, refresh_token)
        self._renewing = None
        return None if serial is None else Token(value, float(int(ends_at_s)), serial)

    def abandon_renewal(self) -> None:
        """Give the lease back without a token, if it is still ours."""
        if self._renewing is None:
            return
        holder, _, until_us = self._renewing
        self._renewing = None
        with writing(self._engine) as connection:
            connection.execute(
                update(token)
                .where(token.c.holder == holder, token.c.renewer_until_us == until_us)
                .values(renewer_until_us=0)
            )

    def now_s(self) -> float:
        """Tell the time on the clock all processes share, in epoch seconds."""
        return self._clock.now_us() / 1e6

    def _holder(self, connection: Connection) -> str:
        return self._own_holder

    def _row(self, connection: Connection) -> Row[Any] | None:
        return connection.execute(select(token).where(token.c.holder == self._holder(connection))).one_or_none()

    def _store(self, connection: Connection, value: str, ends_at_s: float, refresh_token: str | None) -> int | None:
        """Write a token over the one its renewal began with, and over no other."""
        if self._renewing is None:
            return None
        holder, serial, _ = self._renewing
        values: dict[str, Any] = {
            "access": sealed(self._cipher, value),
            "key_id": self._cipher.key_id(),
            "ends_at_s": int(ends_at_s),
            "serial": serial + 1,
            "renewer_until_us": 0,
        }
        if refresh_token is not None:
            values["refresh"] = sealed(self._cipher, refresh_token)
        mine: list[ColumnElement[bool]] = [token.c.holder == holder, token.c.serial == serial]
        stored = connection.execute(update(token).where(*mine).values(values)).rowcount == 1
        return serial + 1 if stored else None

    def _ensure_row(self) -> None:
        known = select(token.c.serial).where(token.c.holder == self._own_holder)
        with looking(self._engine) as connection:
            if connection.execute(known).first() is not None:
                return
        try:
            with writing(self._engine) as connection:
                connection.execute(insert(token).values(holder=self._own_holder))
        except IntegrityError:
            return  # another process was quicker
