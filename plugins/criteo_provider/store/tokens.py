"""Access tokens, shared by all processes of an application and kept encrypted."""

from __future__ import annotations

from typing import Protocol

from sqlalchemy import Engine, insert, select, update
from sqlalchemy.exc import IntegrityError

from criteo_provider.core.errors import Misconfigured
from criteo_provider.core.ports import Token
from criteo_provider.store.clock import Clock
from criteo_provider.store.engine import writing
from criteo_provider.store.schema import token


class Cipher(Protocol):
    """What encrypts secrets at rest; ``key_id`` names the key without showing it."""

    def encrypt(self, plain: bytes) -> bytes:
        """Return the encrypted bytes."""

    def decrypt(self, secret: bytes) -> bytes:
        """Return the plain bytes; raise ValueError under another key."""

    def key_id(self) -> str:
        """Name the key in use."""


class LedgerTokens:
    """The token of one Criteo application in the ledger; implements ``core.ports.TokenStore``."""

    def __init__(self, engine: Engine, application: str, cipher: Cipher, clock: Clock) -> None:
        self._engine, self._application, self._cipher, self._clock = engine, application, cipher, clock

    def current(self) -> Token | None:
        """Return the stored token, whether fresh or not; None also under another key, so that it is renewed."""
        with self._engine.connect() as connection:
            row = connection.execute(select(token).where(token.c.application == self._application)).one_or_none()
        if row is None or row.access is None or row.key_id != self._cipher.key_id():
            return None
        try:
            value = self._cipher.decrypt(bytes(row.access)).decode()
        except ValueError:
            return None
        return Token(value, float(row.ends_at_s), int(row.serial))

    def begin_renewal(self, *, dead_serial: int | None, lease_s: float) -> bool:
        """Take the renewal lease; False when another process holds it or the dead token is replaced already."""
        now_us = self._clock.now_us()
        self._ensure_row()
        mine = [token.c.application == self._application, token.c.renewer_until_us <= now_us]
        if dead_serial is not None:
            mine.append(token.c.serial == dead_serial)
        with writing(self._engine) as connection:
            taken = connection.execute(
                update(token).where(*mine).values(renewer_until_us=now_us + round(lease_s * 1e6))
            )
            return taken.rowcount == 1

    def finish_renewal(self, value: str, *, ends_at_s: float) -> Token:
        """Store a new token and give the lease back."""
        secret = self._cipher.encrypt(value.encode())
        if value.encode() in secret:
            raise Misconfigured(
                "The access token cannot be stored: Airflow's Fernet key is empty. Set [core] fernet_key."
            )
        with writing(self._engine) as connection:
            serial = connection.execute(
                update(token)
                .where(token.c.application == self._application)
                .values(
                    access=secret,
                    key_id=self._cipher.key_id(),
                    ends_at_s=int(ends_at_s),
                    serial=token.c.serial + 1,
                    renewer_until_us=0,
                )
                .returning(token.c.serial)
            ).scalar_one()
        return Token(value, float(int(ends_at_s)), int(serial))

    def abandon_renewal(self) -> None:
        """Give the lease back without a token."""
        with writing(self._engine) as connection:
            connection.execute(update(token).where(token.c.application == self._application).values(renewer_until_us=0))

    def now_s(self) -> float:
        """Tell the time on the clock all processes share, in epoch seconds."""
        return self._clock.now_us() / 1e6

    def _ensure_row(self) -> None:
        known = select(token.c.serial).where(token.c.application == self._application)
        with self._engine.connect() as connection:
            if connection.execute(known).first() is not None:
                return
        try:
            with writing(self._engine) as connection:
                connection.execute(insert(token).values(application=self._application))
        except IntegrityError:
            return  # another process was quicker
