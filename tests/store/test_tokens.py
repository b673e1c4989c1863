"""Access tokens: shared by all processes, renewed by one, and in plain nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.fernet import Fernet, InvalidToken
from sqlalchemy import select

from criteo_provider.core.errors import Misconfigured
from criteo_provider.store.engine import open_engine
from criteo_provider.store.migrate import upgrade
from criteo_provider.store.schema import token as token_table
from criteo_provider.store.tokens import LedgerTokens
from tests.world import START_US

PLAIN = "an-access-token-that-nobody-may-read"


class FernetCipher:
    """A cipher as the hook floor hands it over."""

    def __init__(self, key: bytes, name: str) -> None:
        self._fernet, self._name = Fernet(key), name

    def encrypt(self, plain: bytes) -> bytes:
        return self._fernet.encrypt(plain)

    def decrypt(self, secret: bytes) -> bytes:
        try:
            return self._fernet.decrypt(secret)
        except InvalidToken:
            raise ValueError("another key") from None

    def key_id(self) -> str:
        return self._name


class NoCipher(FernetCipher):
    """What Airflow hands out when its Fernet key is empty."""

    def encrypt(self, plain: bytes) -> bytes:
        return plain


@dataclass
class StandingClock:
    """A clock that moves only when told to."""

    at_us: int = START_US

    def now_us(self) -> int:
        return self.at_us


@pytest.fixture
def clock() -> StandingClock:
    """The clock of all processes."""
    return StandingClock()


@pytest.fixture
def tokens(ledger_url: str, clock: StandingClock) -> Iterator[LedgerTokens]:
    """The tokens of one application, in a ledger on either engine."""
    engine = open_engine(ledger_url)
    upgrade(engine, now_us=START_US)
    yield LedgerTokens(engine, "app", FernetCipher(Fernet.generate_key(), "key-1"), clock)
    engine.dispose()


def another(tokens: LedgerTokens, *, application: str = "app", cipher: FernetCipher | None = None) -> LedgerTokens:
    """The same ledger seen by another process."""
    return LedgerTokens(tokens._engine, application, cipher or tokens._cipher, tokens._clock)


def renew(tokens: LedgerTokens, value: str = PLAIN, *, dead_serial: int | None = None) -> bool:
    """Renew the token if it is ours to renew."""
    if not tokens.begin_renewal(dead_serial=dead_serial, lease_s=45):
        return False
    tokens.finish_renewal(value, ends_at_s=1_800_000_900.0)
    return True


def test_one_process_stores_and_the_others_read(tokens: LedgerTokens) -> None:
    """A token stored by one process is everybody's of that application, and nobody else's."""
    assert tokens.current() is None
    assert renew(tokens)
    told = another(tokens).current()
    assert told is not None
    assert (told.value, told.ends_at_s, told.serial) == (PLAIN, 1_800_000_900.0, 1)
    assert another(tokens, application="other").current() is None
    assert PLAIN not in repr(told)


def test_the_plain_token_is_nowhere_in_the_database_files(sqlite_url: str, clock: StandingClock) -> None:
    """Neither the file nor what SQLite keeps beside it holds the token."""
    engine = open_engine(sqlite_url)
    upgrade(engine, now_us=START_US)
    tokens = LedgerTokens(engine, "app", FernetCipher(Fernet.generate_key(), "key-1"), clock)
    for number in range(3):
        assert renew(tokens, f"{PLAIN}-{number}")
    path = Path(engine.url.database or "")
    beside = [one for one in path.parent.iterdir() if one.name.startswith(path.name)]
    assert sum(one.stat().st_size for one in beside) > 0
    assert not any(PLAIN.encode() in one.read_bytes() for one in beside)
    engine.dispose()
    assert PLAIN.encode() not in path.read_bytes()


def test_the_plain_token_is_in_no_column(tokens: LedgerTokens) -> None:
    """On either engine no column of the row holds the token."""
    assert renew(tokens)
    with tokens._engine.connect() as connection:
        row = connection.execute(select(token_table)).one()
    assert not any(PLAIN in str(value) or PLAIN.encode() in bytes(str(value), "utf-8") for value in row)
    assert PLAIN.encode() not in bytes(row.access)


def test_under_another_key_there_is_no_token_and_it_is_renewed(tokens: LedgerTokens) -> None:
    """A token that was stored under another key reads as none, by name of the key or by its content."""
    assert renew(tokens)
    key = Fernet.generate_key()
    for name in ("key-2", "key-1"):
        assert another(tokens, cipher=FernetCipher(key, name)).current() is None
    ours = another(tokens, cipher=FernetCipher(key, "key-2"))
    assert renew(ours, "the-next-token")
    told = ours.current()
    assert told is not None
    assert told.value == "the-next-token"


def test_a_cipher_that_does_not_encrypt_is_refused(tokens: LedgerTokens) -> None:
    """With an empty Fernet key nothing is stored, and the sentence names the key to set."""
    bare = another(tokens, cipher=NoCipher(Fernet.generate_key(), ""))
    with pytest.raises(Misconfigured, match="fernet_key"):
        bare.begin_renewal(dead_serial=None, lease_s=45)  # before Criteo is asked for what cannot be kept
    assert tokens.begin_renewal(dead_serial=None, lease_s=45)
    tokens._cipher = bare._cipher
    with pytest.raises(Misconfigured, match="fernet_key"):
        tokens.finish_renewal(PLAIN, ends_at_s=1.0)
    assert tokens.current() is None


def test_one_renewal_at_a_time(tokens: LedgerTokens, clock: StandingClock) -> None:
    """While one process renews nobody else does, until it gives up or its lease is over."""
    assert tokens.begin_renewal(dead_serial=None, lease_s=45)
    assert not another(tokens).begin_renewal(dead_serial=None, lease_s=45)
    tokens.abandon_renewal()
    assert another(tokens).begin_renewal(dead_serial=None, lease_s=45)
    clock.at_us += 44_000_000
    assert not tokens.begin_renewal(dead_serial=None, lease_s=45)
    clock.at_us += 1_000_000
    assert tokens.begin_renewal(dead_serial=None, lease_s=45)


def test_a_dead_token_is_renewed_once_by_many(tokens: LedgerTokens) -> None:
    """Many threads find the same token dead; one of them renews it, however late the others ask."""
    assert renew(tokens)
    dead = tokens.current()
    assert dead is not None
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(renew, another(tokens), "next", dead_serial=dead.serial) for _ in range(24)]
        assert sum(one.result() for one in asked) == 1
    told = tokens.current()
    assert told is not None
    assert (told.value, told.serial) == ("next", dead.serial + 1)


def test_the_first_renewal_of_an_application_is_one_too(tokens: LedgerTokens) -> None:
    """Many threads meet an application nobody knows: one takes the renewal, none fails."""
    with ThreadPoolExecutor(8) as threads:
        asked = [
            threads.submit(another(tokens, application="new").begin_renewal, dead_serial=None, lease_s=45)
            for _ in range(24)
        ]
        assert sum(one.result() for one in asked) == 1
