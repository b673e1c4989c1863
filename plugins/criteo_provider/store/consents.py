"""Consents: who let this workspace in at Criteo, and the rotating refresh tokens that came of it.

A connection has one consent in force (current), and at times a new one whose access is still being checked
(candidate). Each has tokens of its own, so that two consents never share one.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Engine, Row, delete, func, insert, select, update

from criteo_provider.core.errors import Misconfigured
from criteo_provider.store.clock import Clock
from criteo_provider.store.engine import in_turn, looking, reading, writing
from criteo_provider.store.schema import token
from criteo_provider.store.schema_access import consent
from criteo_provider.store.tokens import Cipher, sealed

CURRENT, CANDIDATE, FORGOTTEN = "current", "candidate", "forgotten"
BY_THE_CONNECTION = "the connection"
DAY_US = 86_400_000_000
# A refresh token that nobody exchanges ends after six months; a month before, people are told.
LIFE_US, WARNED_US = 180 * DAY_US, 30 * DAY_US
FIRST_COUNT_EVERY_US = 60_000_000
# Consents are written one after the other on PostgreSQL, as SQLite does by itself; the number is only a name.
_CONSENT_LOCK = 0x434F4E53


@dataclass(frozen=True, slots=True)
class Consent:
    """Who let a connection in at Criteo and when; ``ad_accounts`` is how many it covers, if somebody looked."""

    connection_id: str
    by: str
    at_us: int
    renewed_us: int
    state: Literal["ok", "expiring", "dead"]
    application: str
    ad_accounts: int | None = None


class Consents:
    """The consents in a ledger; without a cipher they can be read about, but neither kept nor used."""

    def __init__(self, engine: Engine, cipher: Cipher | None, clock: Clock) -> None:
        self._engine, self._cipher, self._clock = engine, cipher, clock

    def current(self, conn_id: str) -> Consent | None:
        """Return the consent in force."""
        return self._read(conn_id, CURRENT)

    def candidate(self, conn_id: str) -> Consent | None:
        """Return the new consent that is being checked."""
        return self._read(conn_id, CANDIDATE)

    def begin_candidate(
        self,
        conn_id: str,
        application: str,
        *,
        refresh_token: str,
        access: str,
        ends_at_s: float,
        by: str,
        now_us: int,
        seed: str | None = None,
    ) -> Consent:
        """Keep a new consent beside the one in force, which goes on; a candidate there was before is dropped.

        ``seed`` is the refresh token the connection holds at this moment: the new consent is newer than that.
        """
        about = {"application": application, "given_by": by, "seed": seed and fingerprint(application, seed)}
        tokens = {"refresh": self._sealed(refresh_token), "access": self._sealed(access), "ends_at_s": int(ends_at_s)}
        self._put(conn_id, CANDIDATE, about, tokens, now_us=now_us)
        return Consent(conn_id, by, now_us, now_us, "ok", application)

    def promote(self, conn_id: str) -> None:
        """Put the candidate in force, in place of the one there was; raise Misconfigured when there is none."""
        with writing(self._engine) as connection:
            candidate = self._row(connection, conn_id, CANDIDATE)
            if candidate is None:
                raise Misconfigured(
                    f"There is no new consent of connection {conn_id} to put in force. Start again with Connect Criteo."
                )
            before = self._row(connection, conn_id, CURRENT)
            for role in (CURRENT, FORGOTTEN):
                _drop(connection, conn_id, role)
            seed = candidate.seed or (before and before.seed)
            connection.execute(update(consent).where(*_which(conn_id, CANDIDATE)).values(role=CURRENT, seed=seed))

    def discard(self, conn_id: str) -> None:
        """Drop the candidate; the consent in force goes on."""
        with writing(self._engine) as connection:
            _drop(connection, conn_id, CANDIDATE)

    def forget(self, conn_id: str) -> None:
        """Drop every consent and token of a connection; a refresh token in it that was used is not used again."""
        with writing(self._engine) as connection:
            _drop(connection, conn_id, CANDIDATE)
            current = self._row(connection, conn_id, CURRENT)
            if current is None:
                return
            _drop(connection, conn_id, FORGOTTEN)
            connection.execute(delete(token).where(token.c.holder == current.holder))
            connection.execute(
                update(consent).where(*_which(conn_id, CURRENT)).values(role=FORGOTTEN, given_by="", holder="")
            )

    def seed(self, conn_id: str, application: str, refresh_token: str) -> None:
        """Take the refresh token a connection brings, unless it was taken before; raise Misconfigured.

        Everything that came of it later lives here only: Criteo may not honour the first one any more.
        """
        mark = fingerprint(application, refresh_token)
        with looking(self._engine) as connection:
            if _is_taken(connection, conn_id, mark):
                return
        about = {"application": application, "given_by": BY_THE_CONNECTION, "seed": mark}
        tokens = {"refresh": self._sealed(refresh_token)}
        with self._alone() as connection:
            # Somebody may have been quicker, and may even have exchanged it: what came of it must not be replaced.
            if not _is_taken(connection, conn_id, mark):
                self._replace(connection, conn_id, CURRENT, about, tokens, now_us=self._clock.now_us())

    def begin_count(self, conn_id: str, *, every_s: float) -> bool:
        """Tell one process in ``every_s`` seconds that the ad accounts of the consent in force want counting.

        As long as nobody has managed to, one process in a minute is told.
        """
        now_us = self._clock.now_us()
        never = consent.c.ad_accounts.is_(None) & (consent.c.counted_us <= now_us - FIRST_COUNT_EVERY_US)
        set_back = consent.c.counted_us > now_us
        due = (consent.c.counted_us <= now_us - round(every_s * 1e6)) | never | set_back
        with looking(self._engine) as connection:
            if connection.execute(select(consent.c.role).where(*_which(conn_id, CURRENT), due)).first() is None:
                return False
        with writing(self._engine) as connection:
            taken = connection.execute(update(consent).where(*_which(conn_id, CURRENT), due).values(counted_us=now_us))
            return taken.rowcount == 1

    def counted(self, conn_id: str, ad_accounts: int, *, role: Literal["current", "candidate"] = "current") -> None:
        """Remember how many ad accounts a consent covers."""
        with writing(self._engine) as connection:
            connection.execute(
                update(consent)
                .where(*_which(conn_id, role))
                .values(ad_accounts=ad_accounts, counted_us=self._clock.now_us())
            )

    def rotate_key(self) -> int:
        """Encrypt every token there is under the first of Airflow's Fernet keys; return how many were not.

        What none of the keys can read is left as it is: see ``unreadable``.
        """
        changed = 0
        with writing(self._engine) as connection:
            for row in connection.execute(select(token).with_for_update()).all():
                clear = {name: self._opened(getattr(row, name)) for name in ("access", "refresh")}
                lost = row.refresh is not None and clear["refresh"] is None
                if row.key_id == self._key_id() or lost or not any(clear.values()):
                    continue
                again = {name: None if value is None else self._sealed(value) for name, value in clear.items()}
                connection.execute(
                    update(token).where(token.c.holder == row.holder).values(key_id=self._key_id(), **again)
                )
                changed += 1
        return changed

    def unreadable(self) -> list[str]:
        """Name the connections whose refresh token none of the Fernet keys can read."""
        query = (
            select(consent.c.connection_id, token.c.refresh)
            .join(token, token.c.holder == consent.c.holder)
            .order_by(consent.c.connection_id)
        )
        with reading(self._engine) as connection:
            rows = connection.execute(query).all()
        return list(dict.fromkeys(row.connection_id for row in rows if self._opened(row.refresh) is None))

    def _put(
        self, conn_id: str, role: str, about: Mapping[str, Any], tokens: Mapping[str, Any], *, now_us: int
    ) -> None:
        """Write a consent and its tokens in place of the one that plays this role."""
        with self._alone() as connection:
            self._replace(connection, conn_id, role, about, tokens, now_us=now_us)

    @contextmanager
    def _alone(self) -> Iterator[Connection]:
        """One transaction that writes consents, with no other beside it."""
        with writing(self._engine) as connection:
            in_turn(connection, _CONSENT_LOCK)
            yield connection

    def _replace(
        self,
        connection: Connection,
        conn_id: str,
        role: str,
        about: Mapping[str, Any],
        tokens: Mapping[str, Any],
        *,
        now_us: int,
    ) -> None:
        # Serials of a later consent are larger, so that a process tells its tokens from those before.
        before = self._row(connection, conn_id, CURRENT)
        serial = max(now_us, 0 if before is None else self._serial(connection, before.holder) + 1)
        for replaced in {role, FORGOTTEN} if role == CURRENT else {role}:
            _drop(connection, conn_id, replaced)
        holder = f"consent/{secrets.token_hex(16)}"
        connection.execute(insert(token).values(holder=holder, serial=serial, key_id=self._key_id(), **tokens))
        connection.execute(
            insert(consent).values(
                connection_id=conn_id, role=role, holder=holder, given_us=now_us, renewed_us=now_us, **about
            )
        )

    def _read(self, conn_id: str, role: str) -> Consent | None:
        with looking(self._engine) as connection:
            row = self._row(connection, conn_id, role)
        if row is None:
            return None
        return Consent(
            conn_id, row.given_by, row.given_us, row.renewed_us, self._state(row), row.application, row.ad_accounts
        )

    def _state(self, row: Row[Any]) -> Literal["ok", "expiring", "dead"]:
        if row.dead_us is not None:
            return "dead"
        return "expiring" if self._clock.now_us() >= row.renewed_us + LIFE_US - WARNED_US else "ok"

    @staticmethod
    def _row(connection: Connection, conn_id: str, role: str) -> Row[Any] | None:
        return connection.execute(select(consent).where(*_which(conn_id, role))).one_or_none()

    @staticmethod
    def _serial(connection: Connection, holder: str) -> int:
        found = select(func.max(token.c.serial)).where(token.c.holder == holder)
        return int(connection.execute(found).scalar() or 0)

    def _sealed(self, secret: str) -> bytes:
        return sealed(self._needed_cipher(), secret)

    def _key_id(self) -> str:
        return self._needed_cipher().key_id()

    def _opened(self, secret: bytes | None) -> str | None:
        try:
            return None if secret is None else self._needed_cipher().decrypt(bytes(secret)).decode()
        except ValueError:
            return None

    def _needed_cipher(self) -> Cipher:
        if self._cipher is None:
            raise no_cipher()
        return self._cipher


def no_cipher() -> Misconfigured:
    """Say that nothing of Criteo's can be kept, and how to mend it."""
    return Misconfigured(
        "Airflow's Fernet key is empty, so Criteo's tokens would be stored in plain text. "
        "Set [core] fernet_key (AIRFLOW__CORE__FERNET_KEY) to a key of your own."
    )


def _is_taken(connection: Connection, conn_id: str, mark: str) -> bool:
    """Whether this connection has taken the seed ``mark`` before; raise Misconfigured where another one uses it."""
    rows = connection.execute(
        select(consent.c.connection_id, consent.c.seed).where(
            (consent.c.connection_id == conn_id) & (consent.c.role != CANDIDATE)
            | (consent.c.seed == mark) & (consent.c.role != FORGOTTEN)
        )
    ).all()
    if any(row.connection_id == conn_id and row.seed == mark for row in rows):
        return True
    other = next((row.connection_id for row in rows if row.connection_id != conn_id), None)
    if other is not None:
        raise Misconfigured(
            f"Connection {conn_id}, field Refresh token: connection {other} uses this one, and a refresh token "
            "serves one connection only; use that connection, or consent once more for this one."
        )
    return False


def fingerprint(application: str, refresh_token: str) -> str:
    """Name a refresh token of an application without showing it."""
    return hashlib.sha256(f"{application}\n{refresh_token.strip()}".encode()).hexdigest()[:32]


def _which(conn_id: str, role: str) -> tuple[Any, Any]:
    return consent.c.connection_id == conn_id, consent.c.role == role


def _drop(connection: Connection, conn_id: str, role: str) -> None:
    """Delete a consent and its tokens."""
    dropped = delete(consent).where(*_which(conn_id, role)).returning(consent.c.holder)
    holder = connection.execute(dropped).scalar()
    if holder:
        connection.execute(delete(token).where(token.c.holder == holder))
