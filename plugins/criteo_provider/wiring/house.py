"""The one room that puts the house together: settings, sources, ledger, pacer and Criteo become two use cases."""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from typing import Literal

from sqlalchemy import Engine

from criteo_provider.core.errors import CriteoSyncError, LedgerUnwritable
from criteo_provider.core.model import Role, StepPlan
from criteo_provider.criteo_api.check import CheckResult, check_access
from criteo_provider.criteo_api.client import CriteoClient
from criteo_provider.criteo_api.wire import AdAccount
from criteo_provider.flow.drain import Housekeeping, Progress, Reader, Sender, drain
from criteo_provider.flow.resolve import resolve_audiences
from criteo_provider.flow.upload import Upload
from criteo_provider.settings.load import Canvases, load_canvases
from criteo_provider.store.accounts import AccountBook
from criteo_provider.store.claim import ClaimTerms
from criteo_provider.store.clock import Clock, DatabaseClock
from criteo_provider.store.engine import open_engine
from criteo_provider.store.ledger import Ledger
from criteo_provider.store.metrics import StepNumbers
from criteo_provider.store.migrate import refuse_if_foreign, upgrade
from criteo_provider.store.outages import Outage, outages
from criteo_provider.store.pacer import Pacer, pacer_url
from criteo_provider.store.source_states import source_states
from criteo_provider.store.troubles import FIRST_PROBE_OPTION
from criteo_provider.wiring.accounts import Accounts, Permit
from criteo_provider.wiring.alarms import Alarms
from criteo_provider.wiring.audiences import Audiences
from criteo_provider.wiring.beside import Beside
from criteo_provider.wiring.consent import Consent
from criteo_provider.wiring.criteo import Courier, CriteoDoor
from criteo_provider.wiring.desk import Desk
from criteo_provider.wiring.glances import Glances
from criteo_provider.wiring.handovers import HandOvers
from criteo_provider.wiring.idle import Idle
from criteo_provider.wiring.launch import Launch, Launching
from criteo_provider.wiring.pace import Allowance, Flush, Pace
from criteo_provider.wiring.preflight import Preflight
from criteo_provider.wiring.reading import looked_at, readers_of
from criteo_provider.wiring.records import Records
from criteo_provider.wiring.surroundings import Surroundings, Waiting

# A claim holds for the longest a request can take, the longest a slot may be waited for, and some breath.
LEASE_MARGIN_S = 30.0
# So many canvases with a backlog pack it in processes of their own; the others pack it in ours.
MOST_BESIDE = 2


class House:
    """Everything of one deployment; cheap to make, opens its ledger when it is first needed. Close it."""

    def __init__(self, around: Surroundings, *, clock: Clock | None = None) -> None:
        self.around = around
        self._given_clock = clock
        self.canvases: Canvases = load_canvases(around.include_folder)
        self._owner = f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:8]}"
        self._glances = Glances()
        self._closing: list[Callable[[], None]] = [self._glances.close]

    # --- what people and DAGs ask

    def waiting(self, *, sparing: bool = False) -> Waiting:
        """Look whether there is work; reads no rows, writes down what files say and which sources are broken.

        ``sparing`` is for who looks every second: a source whose look is slow is left out until that was 2 % of the
        time, for one flush interval at most.
        """
        now_us = self.now_us()
        work = self.ledger.open_work(now_us=now_us)
        ahead, problems = self._sources_ahead(now_us, sparing=sparing)
        return Waiting(
            fresh=ahead or bool(work.due_fresh or work.due_steps or work.unresolved or work.doomed),
            retry=bool(work.due_retry or work.overdue or work.doomed or self.idle.due()),
            problems=problems,
            next_due_s=None if work.next_due_us is None else max(0.0, (work.next_due_us - now_us) / 1e6),
        )

    def drain(
        self,
        role: Literal["fresh", "retry"],
        *,
        stop: threading.Event,
        max_s: float | None = None,
        on_progress: Callable[[Progress], None] = lambda _progress: None,
    ) -> Progress:
        """Enter (fresh only) and upload side by side until both are dry for one flush interval."""
        ledger, now_us = self.ledger, self._clock.now_us
        chosen = Role(role)
        ending = threading.Event()
        with (
            self.launch.begin(ending) as launching,
            self._senders(chosen, ending) as senders,
            self.idle.looked_at(stop) if chosen is Role.RETRY else nullcontext(),
        ):
            return drain(
                self._readers(launching) if chosen is Role.FRESH else [],
                senders,
                Housekeeping(
                    enter_due_steps=lambda: ledger.enter_due_steps(now_us=now_us()),
                    sweep=self._sweep,
                    nothing_due=lambda: not ledger.open_work(now_us=now_us()).anything_due(chosen),
                    follow_opt_outs=self.consent.follow if chosen is Role.FRESH else lambda: False,
                    remarks=self._pace.remarks,
                    tidy=lambda: ledger.keeping.tidy(now_us=now_us()),
                ),
                feeds=self.consent.readers() if chosen is Role.FRESH else [],
                quiet_s=self._pace.longest_flush_s if chosen is Role.FRESH else lambda: 0.0,
                stop=stop,
                ending=ending,
                max_s=max_s,
                on_progress=on_progress,
            )

    def _sweep(self) -> int:
        given_up = self.ledger.sweep(now_us=self._clock.now_us())
        self.alarms.look()
        return given_up

    def check_access(self, conn_id: str) -> CheckResult:
        """Say in one sentence whether Criteo lets a connection in."""
        with self.criteo.client(conn_id) as client:
            return check_access(client, self.accounts.served(conn_id))

    def ad_accounts(self, conn_id: str) -> tuple[AdAccount, ...]:
        """List the ad accounts that consented to a connection's application."""
        with self.criteo.client(conn_id) as client:
            return client.ad_accounts()

    def numbers(self) -> list[StepNumbers]:
        """Return the seven metrics of every step."""
        return self.ledger.numbers(now_us=self.now_us())

    def flush(self) -> list[Flush]:
        """Return how often each connection is flushed, and why when that is less often than declared."""
        return self._pace.flush()

    def outages(self) -> list[Outage]:
        """Return the connections for which no request gets through, though nobody is stopped."""
        return outages(self.ledger.engine, now_us=self.now_us())

    def take_news(self) -> list[str]:
        """Return one sentence for each trouble that began or ended, or people given up, since this was last asked."""
        return self.ledger.take_news(now_us=self._clock.now_us())

    def drop(self, canvas_id: str, step: str) -> int:
        """Give up the people held in a step that no file declares any more; return how many uploads were closed."""
        self.declare()  # what a file declares now is never dropped
        return self.ledger.drop(canvas_id, step, now_us=self._clock.now_us())

    def requeue(self, canvas_id: str | None, step: str | None = None, *, who: str, why: str) -> int:
        """Have the Errored users of a canvas (of all, of one step) tried again for a fresh window; return how many."""
        return self.ledger.requeues.requeue(canvas_id, step, who=who, why=why, now_us=self._clock.now_us())

    def upgrade(self) -> str:
        """Bring the ledger up to date and say so."""
        return f"The ledger is at revision {upgrade(self._engine, now_us=self._clock.now_us())}."

    def prove(self) -> list[str]:
        """Return one sentence for each law of the ledger that does not hold."""
        return self.ledger.broken_laws()

    def rotate_key(self) -> tuple[bool, str]:
        """Encrypt every token of Criteo's under the first of Airflow's Fernet keys; tell whether all could be read."""
        consents = self.criteo.consents
        changed, lost = consents.rotate_key(), consents.unreadable()
        said = f"{changed} token{'' if changed == 1 else 's'} encrypted anew under the first key of [core] fernet_key."
        if not lost:
            return True, said
        return False, (
            f"{said} The consent of {', '.join(lost)} is under a key that is not among them: add that key behind the "
            "first one and do this again, or reconnect on the Accounts page."
        )

    def close(self) -> None:
        """Let go of databases."""
        while self._closing:
            self._closing.pop()()

    def now_us(self) -> int:
        """Tell the time on the clock all processes share."""
        return self._clock.now_us()

    # --- how it is put together

    @cached_property
    def preflight(self) -> Preflight:
        """What canvases need before they are launched."""
        return Preflight(self)

    @cached_property
    def audiences(self) -> Audiences:
        """The contact lists of this workspace."""
        return Audiences(self)

    @cached_property
    def idle(self) -> Idle:
        """Connections nobody sends through."""
        return Idle(self)

    @cached_property
    def launch(self) -> Launch:
        """Which canvases are to be launched."""
        return Launch(self)

    def declare(self) -> None:
        """Open the ledger and tell it what the canvas files say, if that has not happened yet."""
        self._plans  # noqa: B018

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger, migrated and told what the canvas files say."""
        refuse_if_foreign(self._engine, executor=self.around.executor)
        upgrade(self._engine, now_us=self._clock.now_us())
        probes = {FIRST_PROBE_OPTION: round(self.around.first_probe_s * 1e6)}
        return Ledger(self._engine.execution_options(**probes))

    @cached_property
    def criteo(self) -> CriteoDoor:
        """The way to Criteo."""
        return CriteoDoor(self.around, lambda: self.ledger.engine, lambda: self._pacer_engine, self._clock)

    @cached_property
    def accounts(self) -> Accounts:
        """The ad accounts this workspace may use."""
        now_us = lambda: self._clock.now_us()  # noqa: E731 - the clock is the ledger's, which may not be open yet
        return Accounts(self.around, self.canvases.canvases, lambda: self.ledger, self.criteo, now_us)

    @cached_property
    def consent(self) -> Consent:
        """The opt-out feeds, and what became of the people they name."""
        return Consent(self.around, lambda: self.ledger, lambda: self._clock.now_us(), self._owner)

    @cached_property
    def _pace(self) -> Pace:
        return Pace(self.canvases.canvases, lambda: self.ledger, self.criteo, lambda: self._clock.now_us())

    @cached_property
    def records(self) -> Records:
        """What the ledger has on record of people, and how long."""
        return Records(lambda: self.ledger, lambda: self._clock.now_us())

    @cached_property
    def alarms(self) -> Alarms:
        """What people have to be told of."""
        return Alarms(self.around, lambda: self.ledger, lambda: self._clock.now_us())

    @cached_property
    def handovers(self) -> HandOvers:
        """How a new consent is put in force."""
        now_us = lambda: self._clock.now_us()  # noqa: E731 - as above
        return HandOvers(self.accounts, self.criteo, lambda: AccountBook(self.ledger.engine), now_us)

    @cached_property
    def _engine(self) -> Engine:
        engine = open_engine(self.around.ledger_url)
        self._closing.append(engine.dispose)
        return engine

    @cached_property
    def _pacer_engine(self) -> Engine:
        engine = open_engine(pacer_url(self.around.ledger_url))
        self._closing.append(engine.dispose)
        return engine

    @cached_property
    def _clock(self) -> Clock:
        return self._given_clock or DatabaseClock(self._engine)

    @cached_property
    def _plans(self) -> Mapping[str, tuple[StepPlan, ...]]:
        declarations = [canvas.declaration for canvas in self.canvases.canvases]
        broken = {problem.file.stem for problem in self.canvases.problems}
        return self.ledger.declare(declarations, broken=broken, now_us=self._clock.now_us())

    def _readers(self, launching: Launching) -> list[Reader]:
        plans, source, now_us, pace = self._plans, self.around.source, self._clock.now_us, self._pace
        readers: list[Reader] = []
        places = threading.Semaphore(MOST_BESIDE)
        for canvas in self.canvases.canvases:
            beside = Beside(places)
            self._closing.append(beside.close)
            readers += readers_of(
                canvas,
                plans[canvas.id],
                source,
                self.ledger,
                now_us,
                self._owner,
                beside,
                every_s=pace.look_every_s(canvas),
                is_launched=partial(launching.is_launched, canvas),
            )
        return readers

    def _sources_ahead(self, now_us: int, *, sparing: bool) -> tuple[bool, tuple[str, ...]]:
        self.declare()
        self.consent.declare()
        states = source_states(self.ledger.engine, now_us=now_us)
        stopped = self.ledger.stopped_audiences(now_us=now_us)
        ahead, told = self.consent.ahead(states, self._glances, sparing=sparing)
        problems = list(told)
        unlaunched = self.launch.unlaunched()
        for canvas in self.canvases.canvases:
            if canvas.id in unlaunched:
                ahead = ahead or self.launch.is_due(canvas)
                continue
            plans = self._plans.get(canvas.id, ())
            # Whom nobody can be sent for now need not enter yet: the next probe takes all of them along.
            if stopped.issuperset(plan.audience_id for plan in plans):
                continue
            if not ahead:
                rest_s = float(canvas.flush_s) if sparing else 0.0
                ahead, wrong = looked_at(canvas, self.around.source, self.ledger, states, self._glances, rest_s=rest_s)
                problems += [f"Canvas {canvas.id}: {wrong}"] if wrong else []
        return ahead, tuple(problems)

    @contextmanager
    def _senders(self, role: Role, ending: threading.Event) -> Iterator[dict[str, Sender]]:
        """One sender per Criteo connection; what cannot be opened is a trouble of that connection, the others go on."""
        senders: dict[str, Sender] = {}
        clients: list[CriteoClient] = []
        self.declare()  # the ledger must know the steps before anything is claimed
        used = self.ledger.launches.ad_accounts_in_use()
        for conn_id, ad_accounts in self.ledger.connections().items():
            try:
                pacer, client = self.criteo.open(conn_id, ending)
                permit = self.accounts.permit(conn_id, ad_accounts)
            except LedgerUnwritable:
                raise
            except CriteoSyncError as error:
                if conn_id in used:  # of the others a launch tells
                    self.ledger.trouble(
                        "connection", conn_id, code="misconfigured", sentence=str(error), now_us=self.now_us()
                    )
                continue
            clients.append(client)
            senders[conn_id] = self._sender(conn_id, permit, role, pacer, client)
        try:
            yield senders
        finally:
            ending.set()
            for client in clients:
                client.close()

    def _sender(self, conn_id: str, permit: Permit, role: Role, pacer: Pacer, client: CriteoClient) -> Sender:
        now_us = self._clock.now_us
        timeout_s = client.settings.request_timeout_s
        terms = ClaimTerms(conn_id, frozenset(), role, self._owner, timeout_s + LEASE_MARGIN_S)
        upload = Upload(
            lambda at_us: self.ledger.claim(replace(terms, ad_accounts=permit.now()), now_us=at_us),
            self.ledger,
            pacer,
            Courier(client),
            now_us,
            role=role,
            request_timeout_s=timeout_s,
        )
        desk = Desk(client, self.ledger.launches, conn_id, now_us)
        allowance = Allowance(self.criteo, conn_id, pacer, client)

        def resolve() -> int:
            allowance.keep()
            return resolve_audiences(self.ledger, desk, conn_id, permit.now(), now_us)

        return Sender(upload, resolve)
