"""Consents: one in force and at times a new one beside it, each with tokens of its own, and in plain nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from cryptography.fernet import Fernet, MultiFernet
from sqlalchemy import Connection, Engine, select

from criteo_provider.core.errors import AccessLost, Misconfigured
from criteo_provider.store import consents
from criteo_provider.store.consent_tokens import ConsentTokens
from criteo_provider.store.consents import Consents
from criteo_provider.store.engine import open_engine
from criteo_provider.store.migrate import upgrade
from criteo_provider.store.schema import token as token_table
from criteo_provider.store.schema_access import consent as consent_table
from criteo_provider.store.tokens import LedgerTokens
from tests.store.test_tokens import FernetCipher, NoCipher, StandingClock
from tests.world import START_US

SEED = "a-refresh-token-that-nobody-may-read"
DAY_US = 86_400_000_000


class KeyRing(FernetCipher):
    """Airflow's Fernet keys: the first encrypts, any of them decrypts."""

    def __init__(self, *keys: bytes) -> None:
        super().__init__(keys[0], keys[0][:6].decode())
        self.keys = keys
        self._fernet = MultiFernet([Fernet(key) for key in keys])  # type: ignore[assignment]


@dataclass
class Ledger:
    """A ledger with consents in it, seen by any process with any key."""

    engine: Engine
    clock: StandingClock
    cipher: KeyRing

    @property
    def consents(self) -> Consents:
        return Consents(self.engine, self.cipher, self.clock)

    def tokens(self, conn_id: str = "mine", *, application: str = "app", role: str = "current") -> ConsentTokens:
        return ConsentTokens(self.engine, conn_id, application, self.cipher, self.clock, role=role)  # type: ignore[arg-type]

    def consent(self, conn_id: str = "mine", *, refresh: str = "refresh-1", access: str = "access-1", by: str = "ada"):
        """Let a person consent, and keep it as a candidate."""
        return self.consents.begin_candidate(
            conn_id, "app", refresh_token=refresh, access=access, ends_at_s=self.clock.at_us / 1e6 + 900, by=by,
            now_us=self.clock.at_us,
        )  # fmt: skip

    def connect(self, conn_id: str = "mine", **more: str) -> None:
        """Let a person consent, and put it in force."""
        self.consent(conn_id, **more)
        self.consents.promote(conn_id)

    def rows(self) -> list[str]:
        """Everything the two tables hold, as text."""
        with self.engine.connect() as connection:
            found = [*connection.execute(select(token_table)), *connection.execute(select(consent_table))]
        return [repr(tuple(row)) for row in found]


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    """An empty ledger on either engine."""
    engine = open_engine(ledger_url)
    upgrade(engine, now_us=START_US)
    yield Ledger(engine, StandingClock(), KeyRing(Fernet.generate_key()))
    engine.dispose()


def renew(tokens: ConsentTokens, access: str, refresh: str | None) -> str:
    """Exchange as one process would; return what was exchanged."""
    assert tokens.begin_renewal(dead_serial=None, lease_s=45)
    exchanged = tokens.refresh_token()
    stored = tokens.finish_renewal(access, ends_at_s=tokens.now_s() + 900, refresh_token=refresh)
    assert stored is not None
    return exchanged


def test_a_new_consent_stands_beside_the_one_in_force(ledger: Ledger) -> None:
    """Until it is put in force everybody speaks with the old one; discarded, it leaves nothing behind."""
    ledger.connect(by="ada")
    ledger.clock.at_us += 5_000_000
    told = ledger.consent(refresh="refresh-2", access="access-2", by="grace")
    assert told == ledger.consents.candidate("mine")
    assert (told.by, told.state, told.at_us) == ("grace", "ok", ledger.clock.at_us)
    assert ledger.tokens().current().value == "access-1"  # type: ignore[union-attr]
    assert ledger.tokens(role="candidate").current().value == "access-2"  # type: ignore[union-attr]
    ledger.consents.discard("mine")
    assert ledger.consents.candidate("mine") is None
    assert ledger.consents.current("mine").by == "ada"  # type: ignore[union-attr]
    with pytest.raises(AccessLost, match="no new consent"):
        ledger.tokens(role="candidate").current()
    assert len(ledger.rows()) == 2


def test_put_in_force_it_replaces_the_old_one_for_everybody(ledger: Ledger) -> None:
    """A process at work finds the new tokens at its next look, with a larger serial, and the old ones are gone."""
    ledger.connect(by="ada")
    at_work = ledger.tokens()
    before = at_work.current()
    ledger.consent(refresh="refresh-2", access="access-2", by="grace")
    ledger.consents.promote("mine")
    after = at_work.current()
    assert before is not None
    assert after is not None
    assert (after.value, after.serial > before.serial) == ("access-2", True)
    assert ledger.consents.current("mine").by == "grace"  # type: ignore[union-attr]
    assert ledger.consents.candidate("mine") is None
    assert renew(at_work, "access-3", "refresh-3") == "refresh-2"
    assert len(ledger.rows()) == 2
    with pytest.raises(Misconfigured, match="Start again"):
        ledger.consents.promote("mine")


def test_two_consents_of_one_application_share_nothing(ledger: Ledger) -> None:
    """Two connections with one client id have tokens of their own, beside those of the application itself."""
    ledger.connect("mine")
    ledger.connect("yours", refresh="refresh-9", access="access-9")
    own = LedgerTokens(ledger.engine, "app", ledger.cipher, ledger.clock)
    assert own.current() is None
    assert renew(ledger.tokens("yours"), "access-10", "refresh-10") == "refresh-9"
    assert ledger.tokens("mine").current().value == "access-1"  # type: ignore[union-attr]
    ledger.consents.forget("yours")
    assert ledger.consents.current("yours") is None
    with pytest.raises(AccessLost, match="Connect Criteo") as lost:
        ledger.tokens("yours").current()
    assert lost.value.code == "not-connected"
    assert ledger.tokens("mine").current() is not None


def test_each_exchange_keeps_what_criteo_returned(ledger: Ledger) -> None:
    """The returned refresh token replaces the old one; where none is returned the old one stays."""
    ledger.connect()
    assert renew(ledger.tokens(), "access-2", "refresh-2") == "refresh-1"
    assert renew(ledger.tokens(), "access-3", None) == "refresh-2"
    assert renew(ledger.tokens(), "access-4", "refresh-4") == "refresh-2"
    assert renew(ledger.tokens(), "access-5", "refresh-5") == "refresh-4"


def test_only_one_process_exchanges_and_none_overwrites_a_later_one(ledger: Ledger) -> None:
    """While one exchanges the others wait; one that stalled past its lease does not undo what came after."""
    ledger.connect()
    slow, quick = ledger.tokens(), ledger.tokens()
    assert slow.begin_renewal(dead_serial=None, lease_s=45)
    assert not quick.begin_renewal(dead_serial=None, lease_s=45)
    slow.refresh_token()
    ledger.clock.at_us += 46_000_000
    renew(quick, "access-2", "refresh-2")
    assert slow.finish_renewal("access-stale", ends_at_s=1.0, refresh_token="refresh-stale") is None
    assert renew(ledger.tokens(), "access-3", "refresh-3") == "refresh-2"


def test_giving_a_lease_back_does_not_end_another_ones(ledger: Ledger) -> None:
    """A process whose lease ran out gives nothing back of the one who has it now."""
    ledger.connect()
    slow, quick = ledger.tokens(), ledger.tokens()
    assert slow.begin_renewal(dead_serial=None, lease_s=45)
    ledger.clock.at_us += 46_000_000
    assert quick.begin_renewal(dead_serial=None, lease_s=45)
    slow.abandon_renewal()
    assert not ledger.tokens().begin_renewal(dead_serial=None, lease_s=45)


def test_a_refusal_means_dead_only_if_nobody_renewed(ledger: Ledger) -> None:
    """Criteo refuses a refresh token that another process has exchanged a moment ago: the consent lives."""
    ledger.connect()
    slow, quick = ledger.tokens(), ledger.tokens()
    assert slow.begin_renewal(dead_serial=None, lease_s=45)
    ledger.clock.at_us += 46_000_000
    renew(quick, "access-2", "refresh-2")
    assert not slow.refused()
    assert ledger.consents.current("mine").state == "ok"  # type: ignore[union-attr]
    assert quick.begin_renewal(dead_serial=None, lease_s=45)
    assert quick.refused()
    assert ledger.consents.current("mine").state == "dead"  # type: ignore[union-attr]


def test_what_is_committed_late_revives_a_consent_called_dead(ledger: Ledger) -> None:
    """A process that stalled between Criteo's answer and its commit still holds the only good refresh token."""
    ledger.connect()
    slow, quick = ledger.tokens(), ledger.tokens()
    assert slow.begin_renewal(dead_serial=None, lease_s=45)
    slow.refresh_token()  # … exchanged, and then asleep
    ledger.clock.at_us += 46_000_000
    assert quick.begin_renewal(dead_serial=None, lease_s=45)
    assert quick.refused()
    quick.abandon_renewal()
    assert slow.finish_renewal("access-2", ends_at_s=1.0, refresh_token="refresh-2") is not None
    assert ledger.consents.current("mine").state == "ok"  # type: ignore[union-attr]
    assert renew(ledger.tokens(), "access-3", "refresh-3") == "refresh-2"


def test_a_consent_that_is_replaced_meanwhile_takes_nothing_with_it(ledger: Ledger) -> None:
    """Who renews while a person connects anew stores nothing, calls nothing dead, and finds the new consent."""
    ledger.connect()
    at_work = ledger.tokens()
    assert at_work.begin_renewal(dead_serial=None, lease_s=45)
    ledger.connect(refresh="refresh-9", access="access-9")
    assert not at_work.refused()
    assert at_work.finish_renewal("stale", ends_at_s=1.0, refresh_token="stale") is None
    assert at_work.current().value == "access-9"  # type: ignore[union-attr]


def test_a_consent_is_told_to_be_expiring_a_month_before(ledger: Ledger) -> None:
    """Six months without an exchange end a consent; for the last 30 days of them it says so, and a use renews it."""
    ledger.connect()
    ledger.clock.at_us += 150 * DAY_US - 1
    assert ledger.consents.current("mine").state == "ok"  # type: ignore[union-attr]
    ledger.clock.at_us += 1
    assert ledger.consents.current("mine").state == "expiring"  # type: ignore[union-attr]
    renew(ledger.tokens(), "access-2", "refresh-2")
    told = ledger.consents.current("mine")
    assert told is not None
    assert (told.state, told.renewed_us) == ("ok", ledger.clock.at_us)


def test_a_connection_may_bring_a_refresh_token(ledger: Ledger) -> None:
    """It is taken once; what Criteo returned later is not undone by it, and a new one in the connection is taken."""
    for _ in range(2):
        ledger.consents.seed("mine", "app", SEED)
    assert ledger.tokens().current() is None
    assert renew(ledger.tokens(), "access-1", "refresh-1") == SEED
    ledger.consents.seed("mine", "app", SEED)
    assert renew(ledger.tokens(), "access-2", "refresh-2") == "refresh-1"
    ledger.consents.seed("mine", "app", "another-seed")
    assert renew(ledger.tokens(), "access-3", "refresh-3") == "another-seed"


def test_a_person_who_connects_comes_before_the_token_in_the_connection(ledger: Ledger) -> None:
    """The consent of a person is newer than what the connection brought; forgotten, it is not brought again."""
    ledger.consents.seed("mine", "app", SEED)
    ledger.connect(refresh="refresh-7")
    ledger.consents.seed("mine", "app", SEED)
    assert renew(ledger.tokens(), "access-8", "refresh-8") == "refresh-7"
    ledger.consents.forget("mine")
    ledger.consents.seed("mine", "app", SEED)
    assert ledger.consents.current("mine") is None
    ledger.consents.seed("mine", "app", "another-seed")
    assert ledger.consents.current("mine") is not None


def test_a_refresh_token_serves_one_connection(ledger: Ledger) -> None:
    """Two connections with one refresh token would end it for each other: the second is told so."""
    ledger.consents.seed("mine", "app", SEED)
    with pytest.raises(Misconfigured, match="connection mine uses this one") as refusal:
        ledger.consents.seed("yours", "app", SEED)
    assert SEED not in str(refusal.value)
    ledger.consents.forget("mine")
    ledger.consents.seed("yours", "app", SEED)
    assert ledger.consents.current("yours") is not None


def test_many_processes_take_a_seed_once(ledger: Ledger) -> None:
    """Many processes that meet a new connection at once make one consent of it, and none fails."""
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda _: ledger.consents.seed("mine", "app", SEED), range(12)))
    assert renew(ledger.tokens(), "access-1", "refresh-1") == SEED
    assert len(ledger.rows()) == 2


def test_whoever_comes_late_with_a_seed_does_not_replace_what_came_of_it(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that found no consent, and is overtaken by one that seeds and exchanges, leaves the new token alone."""
    looked = consents._is_taken

    def overtaken(connection: Connection, conn_id: str, mark: str) -> bool:
        monkeypatch.setattr(consents, "_is_taken", looked)
        taken = looked(connection, conn_id, mark)
        ledger.consents.seed("mine", "app", SEED)
        assert renew(ledger.tokens(), "access-1", "refresh-1") == SEED
        return taken

    monkeypatch.setattr(consents, "_is_taken", overtaken)
    ledger.consents.seed("mine", "app", SEED)
    assert renew(ledger.tokens(), "access-2", "refresh-2") == "refresh-1"


def test_a_consent_to_another_application_is_not_used(ledger: Ledger) -> None:
    """After the client id in the connection was changed, the sentence says why there is no access."""
    ledger.connect()
    with pytest.raises(AccessLost, match="another client id") as lost:
        ledger.tokens(application="another-app").current()
    assert lost.value.code == "consent-of-another-application"


def test_nothing_is_stored_in_plain(ledger: Ledger) -> None:
    """No column holds an access token, a refresh token or a seed; a cipher that only pretends is refused."""
    ledger.consents.seed("seeded", "app", SEED)
    ledger.connect(refresh="secret-refresh", access="secret-access")
    renew(ledger.tokens(), "secret-access-2", "secret-refresh-2")
    written = "".join(ledger.rows())
    assert not [one for one in (SEED, "secret-refresh", "secret-access") if one in written]
    bare = Consents(ledger.engine, NoCipher(Fernet.generate_key(), ""), ledger.clock)
    for attempt in (lambda: bare.seed("new", "app", "plain"), lambda: Consents(ledger.engine, None, ledger.clock).seed(
        "new", "app", "plain"
    )):  # fmt: skip
        with pytest.raises(Misconfigured, match="fernet_key"):
            attempt()
    assert Consents(ledger.engine, None, ledger.clock).current("mine").by == "ada"  # type: ignore[union-attr]


def test_another_key_does_not_look_like_a_lost_consent(ledger: Ledger) -> None:
    """A process with another Fernet key says so, names both, and leaves the consent as it is."""
    ledger.connect()
    right, ledger.cipher = ledger.cipher, KeyRing(Fernet.generate_key())
    wrong = ledger.tokens()
    assert wrong.current() is None
    assert wrong.begin_renewal(dead_serial=None, lease_s=45)
    with pytest.raises(AccessLost, match="another Fernet key") as lost:
        wrong.refresh_token()
    wrong.abandon_renewal()
    assert lost.value.code == "another-fernet-key"
    assert right.key_id() in str(lost.value)
    assert "rotate-key" in str(lost.value)
    assert ledger.consents.unreadable() == ["mine"]
    ledger.cipher = right
    assert ledger.consents.current("mine").state == "ok"  # type: ignore[union-attr]
    assert ledger.tokens().current().value == "access-1"  # type: ignore[union-attr]


def test_rotating_the_key_covers_every_token(ledger: Ledger) -> None:
    """After a new key is put first everything reads as before; encrypted anew, it needs the old key no more."""
    ledger.connect("mine")
    ledger.connect("yours", refresh="refresh-y", access="access-y")
    ledger.consent("mine", refresh="refresh-c", access="access-c")
    own = LedgerTokens(ledger.engine, "app", ledger.cipher, ledger.clock)
    own.begin_renewal(dead_serial=None, lease_s=45)
    own.finish_renewal("own", ends_at_s=1.0)
    old, new = ledger.cipher.keys[0], Fernet.generate_key()
    ledger.cipher = KeyRing(new, old)
    assert ledger.tokens().current().value == "access-1"  # type: ignore[union-attr]
    assert [ledger.consents.rotate_key(), ledger.consents.rotate_key()] == [4, 0]
    ledger.cipher = KeyRing(new)
    assert ledger.consents.unreadable() == []
    assert renew(ledger.tokens("mine"), "access-2", "refresh-2") == "refresh-1"
    assert renew(ledger.tokens("yours"), "access-2", "refresh-2") == "refresh-y"
    assert renew(ledger.tokens("mine", role="candidate"), "access-2", "refresh-2") == "refresh-c"
    assert LedgerTokens(ledger.engine, "app", ledger.cipher, ledger.clock).current().value == "own"  # type: ignore[union-attr]


def test_rotating_leaves_what_no_key_reads(ledger: Ledger) -> None:
    """What is under a key that is not configured stays as it is, so that the right key still reads it."""
    ledger.connect("mine")
    right, ledger.cipher = ledger.cipher, KeyRing(Fernet.generate_key())
    ledger.connect("yours")
    assert ledger.consents.rotate_key() == 0
    assert ledger.consents.unreadable() == ["mine"]
    ledger.cipher = right
    assert ledger.tokens("mine").current().value == "access-1"  # type: ignore[union-attr]


def test_ad_accounts_are_counted_by_one_process_at_a_time(ledger: Ledger) -> None:
    """One process in a quarter of an hour counts; a new consent is counted at once."""
    ledger.connect()
    assert [ledger.consents.begin_count("mine", every_s=900) for _ in range(2)] == [True, False]
    ledger.consents.counted("mine", 3)
    assert ledger.consents.current("mine").ad_accounts == 3  # type: ignore[union-attr]
    ledger.clock.at_us += 899_000_000
    assert not ledger.consents.begin_count("mine", every_s=900)
    ledger.clock.at_us += 1_000_000
    assert ledger.consents.begin_count("mine", every_s=900)
    ledger.connect(refresh="refresh-2")
    assert ledger.consents.current("mine").ad_accounts is None  # type: ignore[union-attr]
    assert ledger.consents.begin_count("mine", every_s=900)
    assert not ledger.consents.begin_count("nobody", every_s=900)
