"""The chain of refresh tokens: whatever order processes work, stall and die in, it breaks in one way only."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from uuid import uuid4

from cryptography.fernet import Fernet
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import Engine, event

from criteo_provider.store.consent_tokens import ConsentTokens
from criteo_provider.store.consents import Consents
from criteo_provider.store.engine import open_engine
from criteo_provider.store.migrate import upgrade
from tests.store.test_tokens import FernetCipher, StandingClock
from tests.world import START_US

LEASE_S = 45.0
KEY = Fernet.generate_key()
who = st.integers(0, 2)


@cache
def one_ledger() -> Engine:
    """One ledger for all examples, each with a connection of its own; it need not survive a power cut."""
    engine = open_engine(f"sqlite:///{Path(tempfile.mkdtemp()) / 'ledger.db'}")
    atexit.register(shutil.rmtree, Path(engine.url.database or "").parent, ignore_errors=True)
    event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
    upgrade(engine, now_us=START_US)
    return engine


class StrictCriteo:
    """Honours one refresh token of a consent: the one it returned last."""

    def __init__(self) -> None:
        self.made = 0
        self.honoured = self.new()

    def new(self) -> str:
        self.made += 1
        return f"refresh-{self.made}"

    def exchange(self, refresh_token: str) -> str | None:
        if refresh_token != self.honoured:
            return None
        self.honoured = self.new()
        return self.honoured


@dataclass
class Process:
    """A process somewhere in a renewal: what it has read, and what Criteo has answered."""

    tokens: ConsentTokens
    read: str | None = None
    returned: str | None = None
    was_refused: bool = False

    @property
    def idle(self) -> bool:
        return self.read is None


class Chain(RuleBasedStateMachine):
    """Three processes renew one consent, each as ``Access`` would, in any interleaving."""

    @initialize()
    def connect(self) -> None:
        """Somebody has consented."""
        self.engine, self.mine = one_ledger(), uuid4().hex
        self.clock, self.cipher = StandingClock(), FernetCipher(KEY, "key")
        self.consents = Consents(self.engine, self.cipher, self.clock)
        self.criteo, self.lost = StrictCriteo(), False
        self.processes = [Process(self.new_tokens()) for _ in range(3)]
        self.consent_anew()

    def new_tokens(self) -> ConsentTokens:
        return ConsentTokens(self.engine, self.mine, "app", self.cipher, self.clock)

    @rule()
    def consent_anew(self) -> None:
        """A person connects; Criteo's earlier refresh token is of no more use."""
        self.criteo.honoured = self.criteo.new()
        self.consents.begin_candidate(
            self.mine, "app", refresh_token=self.criteo.honoured, access="access", ends_at_s=1.0, by="ada",
            now_us=self.clock.at_us,
        )  # fmt: skip
        self.consents.promote(self.mine)
        self.lost = False
        for process in self.processes:
            process.returned = None  # of the consent before: no use any more

    @rule(number=who)
    def begin(self, number: int) -> None:
        """A process takes the lease, if it is free, and reads what to exchange."""
        process = self.processes[number]
        if process.idle and process.tokens.begin_renewal(dead_serial=None, lease_s=LEASE_S):
            process.read = process.tokens.refresh_token()

    @rule(number=who)
    def exchange(self, number: int) -> None:
        """It calls Criteo."""
        process = self.processes[number]
        if process.read is not None and process.returned is None and not process.was_refused:
            process.returned = self.criteo.exchange(process.read)
            process.was_refused = process.returned is None

    @rule(number=who)
    def end(self, number: int) -> None:
        """It writes down what came of it."""
        process = self.processes[number]
        if process.was_refused:
            process.tokens.refused()
            process.tokens.abandon_renewal()
        elif process.returned is not None:
            process.tokens.finish_renewal("access", ends_at_s=1.0, refresh_token=process.returned)
        else:
            return
        self.processes[number] = Process(self.new_tokens())

    @rule(number=who)
    def die(self, number: int) -> None:
        """It is killed; only what Criteo has returned and nobody has stored dies with it."""
        self.lost = self.lost or self.processes[number].returned is not None
        self.processes[number] = Process(self.new_tokens())

    @rule()
    def lease_ends(self) -> None:
        """Everybody is too slow."""
        self.clock.at_us += round(LEASE_S * 1e6) + 1

    @precondition(lambda self: not self.lost)
    @rule()
    def rotate_the_key(self) -> None:
        """An administrator rotates the key in between."""
        self.consents.rotate_key()

    @invariant()
    def the_honoured_token_is_somewhere(self) -> None:
        """Criteo's refresh token is in the ledger, or in the hands of a process that is about to store it."""
        if self.lost:
            return
        in_hands = [process.returned for process in self.processes]
        assert self.criteo.honoured in [*in_hands, self._stored()]

    def _stored(self) -> str:
        with self.engine.connect() as connection:
            holder = self.new_tokens()._holder(connection)
        reader = self.new_tokens()
        reader._renewing = (holder, 0, 0)
        return reader.refresh_token()

    def teardown(self) -> None:
        """Whoever still has something stores it; then the consent works, unless it was lost by a kill."""
        if hasattr(self, "engine"):
            for number in range(3):
                self.end(number)
            if not self.lost:
                assert self._stored() == self.criteo.honoured
                self.clock.at_us += round(LEASE_S * 1e6) + 1
                self.processes[0] = Process(self.new_tokens())
                self.begin(0)
                self.exchange(0)
                assert not self.processes[0].was_refused
                self.end(0)
                told = self.consents.current(self.mine)
                assert told is not None
                assert told.state == "ok"


TestChain = Chain.TestCase
TestChain.settings = settings(
    max_examples=20, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
