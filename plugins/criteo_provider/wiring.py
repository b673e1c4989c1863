"""The one room that puts the house together: settings, sources, ledger, pacer and Criteo become two use cases."""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

from criteo_provider.core import identifiers
from criteo_provider.core.errors import AccessLost, Busy, CriteoSyncError, Misconfigured, SourceFailed, Unavailable
from criteo_provider.core.identifiers import Form
from criteo_provider.core.model import ClaimedRequest, Role, StepPlan
from criteo_provider.core.outcome import Outcome
from criteo_provider.core.ports import Json, Look, Page, Seen, Source, TokenStore
from criteo_provider.criteo_api.check import CheckResult, check_access
from criteo_provider.criteo_api.client import CriteoClient
from criteo_provider.criteo_api.failures import as_failure
from criteo_provider.criteo_api.line import ClientSettings
from criteo_provider.criteo_api.own_tokens import OwnTokens
from criteo_provider.criteo_api.wire import AdAccount, amendment_body
from criteo_provider.flow.drain import Housekeeping, Progress, Reader, Sender, drain
from criteo_provider.flow.enter import Enter, EntryPlan, FieldColumn
from criteo_provider.flow.resolve import resolve_audiences
from criteo_provider.flow.upload import Upload
from criteo_provider.settings.canvas import Canvas
from criteo_provider.settings.load import Canvases, load_canvases
from criteo_provider.store.claim import ClaimTerms
from criteo_provider.store.clock import DatabaseClock
from criteo_provider.store.engine import open_engine
from criteo_provider.store.ledger import Ledger
from criteo_provider.store.metrics import StepNumbers
from criteo_provider.store.migrate import refuse_if_foreign, upgrade
from criteo_provider.store.pacer import Pacer, application_key, pacer_url
from criteo_provider.store.tokens import Cipher, LedgerTokens

__all__ = ["Cipher", "CriteoConnection", "House", "Progress", "StepNumbers", "Surroundings", "Waiting"]

# A claim holds for the longest a request can take, the longest a slot may be waited for, and some breath.
LEASE_MARGIN_S = 30.0
# A person who waits at a page or a prompt rather hears "busy" than nothing.
INTERACTIVE_PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class CriteoConnection:
    """One Criteo application as an Airflow connection describes it; no ad accounts named means all."""

    client_id: str
    client_secret: str = field(repr=False)
    base_url: str
    api_version: str = "2026-07"
    requests_per_minute: int = 250
    allowed_ad_accounts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Surroundings:
    """What is handed down to the house: where things are, and how to reach them."""

    include_folder: Path
    ledger_url: str = field(repr=False)
    criteo: Callable[[str], CriteoConnection]
    source: Callable[[Canvas], Source]
    cipher: Cipher | None
    executor: str = "LocalExecutor"


@dataclass(frozen=True, slots=True)
class Waiting:
    """What one look has found: work for either DAG, and sources that cannot be looked at."""

    fresh: bool
    retry: bool
    problems: tuple[str, ...] = ()
    next_due_s: float | None = None


class House:
    """Everything of one deployment; cheap to make, opens its ledger when it is first needed. Close it."""

    def __init__(self, around: Surroundings) -> None:
        self.around = around
        self.canvases: Canvases = load_canvases(around.include_folder)
        self._owner = f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:8]}"
        self._closing: list[Callable[[], None]] = []

    # --- what people and DAGs ask

    def waiting(self) -> Waiting:
        """Look whether there is work; reads no rows and changes nothing but what canvas files say."""
        now_us = self._clock.now_us()
        work = self.ledger.open_work(now_us=now_us)
        ahead, problems = self._sources_ahead(now_us)
        return Waiting(
            fresh=ahead or bool(work.due_fresh or work.due_steps or work.unresolved),
            retry=bool(work.due_retry or work.overdue),
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
        quiet_s = max((canvas.flush_s for canvas in self.canvases.canvases), default=5)
        ledger, now_us = self.ledger, self._clock.now_us
        chosen = Role(role)
        ending = threading.Event()
        with self._senders(chosen, ending) as senders:
            return drain(
                [self._reader(canvas) for canvas in self.canvases.canvases] if chosen is Role.FRESH else [],
                senders,
                Housekeeping(
                    enter_due_steps=lambda: ledger.enter_due_steps(now_us=now_us()),
                    sweep=lambda: ledger.sweep(now_us=now_us()),
                    nothing_due=lambda: not ledger.open_work(now_us=now_us()).anything_due(chosen),
                ),
                quiet_s=float(quiet_s) if chosen is Role.FRESH else 0.0,
                stop=stop,
                ending=ending,
                max_s=max_s,
                on_progress=on_progress,
            )

    def check_access(self, conn_id: str) -> CheckResult:
        """Say in one sentence whether Criteo lets a connection in."""
        with self._client(conn_id) as client:
            return check_access(client, self.around.criteo(conn_id).allowed_ad_accounts)

    def ad_accounts(self, conn_id: str) -> tuple[AdAccount, ...]:
        """List the ad accounts that consented to a connection's application."""
        with self._client(conn_id) as client:
            return client.ad_accounts()

    def numbers(self) -> list[StepNumbers]:
        """Return the seven metrics of every step."""
        return self.ledger.numbers(now_us=self._clock.now_us())

    def take_news(self) -> list[str]:
        """Return one sentence for each trouble that began or ended, or people given up, since this was last asked."""
        return self.ledger.take_news(now_us=self._clock.now_us())

    def drop(self, canvas_id: str, step: str) -> int:
        """Give up the people held in a step that no file declares any more; return how many uploads were closed."""
        self._plans  # noqa: B018 - what a file declares now is never dropped
        return self.ledger.drop(canvas_id, step, now_us=self._clock.now_us())

    def upgrade(self) -> str:
        """Bring the ledger up to date and say so."""
        return f"The ledger is at revision {upgrade(self._engine, now_us=self._clock.now_us())}."

    def prove(self) -> list[str]:
        """Return one sentence for each law of the ledger that does not hold."""
        return self.ledger.broken_laws()

    def close(self) -> None:
        """Let go of databases."""
        while self._closing:
            self._closing.pop()()

    # --- how it is put together

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger, migrated and told what the canvas files say."""
        refuse_if_foreign(self._engine, executor=self.around.executor)
        upgrade(self._engine, now_us=self._clock.now_us())
        return Ledger(self._engine)

    @cached_property
    def _engine(self):  # type: ignore[no-untyped-def]
        engine = open_engine(self.around.ledger_url)
        self._closing.append(engine.dispose)
        return engine

    @cached_property
    def _pacer_engine(self):  # type: ignore[no-untyped-def]
        engine = open_engine(pacer_url(self.around.ledger_url))
        self._closing.append(engine.dispose)
        return engine

    @cached_property
    def _clock(self) -> DatabaseClock:
        return DatabaseClock(self._engine)

    @cached_property
    def _plans(self) -> Mapping[str, tuple[StepPlan, ...]]:
        declarations = [canvas.declaration for canvas in self.canvases.canvases]
        broken = {problem.file.stem for problem in self.canvases.problems}
        return self.ledger.declare(declarations, broken=broken, now_us=self._clock.now_us())

    def _sources_ahead(self, now_us: int) -> tuple[bool, tuple[str, ...]]:
        problems: list[str] = []
        ahead = False
        for canvas in self.canvases.canvases:
            if canvas.id not in self._plans or not self.ledger.may_probe("source", canvas.id, now_us=now_us):
                continue
            try:
                seen = partial(self.ledger.completed_units, canvas.id)
                position = self.ledger.position(canvas.id)
                ahead = ahead or self.around.source(canvas).is_ahead(position, seen)
                # Early looks are taken while there is work anyway; only a pressing one starts a run of its own.
                sql = canvas.entry.source.sql
                grace_s = sql.late_commit_s if sql else 0.0
                ahead = ahead or self.ledger.look_presses(canvas.id, now_us=now_us, grace_s=grace_s)
            except CriteoSyncError as error:
                problems.append(f"Canvas {canvas.id}: {error}")
        return ahead, tuple(problems)

    def _reader(self, canvas: Canvas) -> Reader:
        plan = EntryPlan(
            canvas.id,
            canvas.entry.user_key,
            tuple(
                FieldColumn(
                    one.field,
                    one.column,
                    one.caller_id,
                    tuple(one.email_hashes),
                    one.email_input,
                )
                for one in canvas.entry.identifiers.columns
            ),
            canvas.entry.rule,
            self._plans[canvas.id],
        )
        now_us = self._clock.now_us
        return Reader(
            Enter(plan, _LazySource(self.around.source, canvas), self.ledger, now_us, self._owner),
            canvas.id,
            # Read at half the interval: whoever comes right after a look is still in a request in time.
            canvas.flush_s / 2,
            may_try=lambda: self.ledger.may_probe("source", canvas.id, now_us=now_us()),
            succeeded=lambda: self.ledger.healed("source", canvas.id, now_us=now_us()),
        )

    @contextmanager
    def _senders(self, role: Role, ending: threading.Event) -> Iterator[dict[str, Sender]]:
        """One sender per Criteo connection; what cannot be opened is a trouble of that connection, the others go on."""
        senders: dict[str, Sender] = {}
        clients: list[CriteoClient] = []
        self._plans  # noqa: B018 - the ledger must know the steps before anything is claimed
        for conn_id, ad_accounts in self.ledger.connections().items():
            try:
                pacer, client = self._open_criteo(conn_id, ending)
                allowed = self._allowed(conn_id, ad_accounts)
            except CriteoSyncError as error:
                self.ledger.trouble(
                    "connection", conn_id, code="misconfigured", sentence=str(error), now_us=self._clock.now_us()
                )
                continue
            clients.append(client)
            senders[conn_id] = self._sender(conn_id, allowed, role, pacer, client)
        try:
            yield senders
        finally:
            ending.set()
            for client in clients:
                client.close()

    def _allowed(self, conn_id: str, ad_accounts: set[str]) -> frozenset[str]:
        """Return those ad accounts the connection allows; the people of others wait, and the trouble says why."""
        allowed = set(self.around.criteo(conn_id).allowed_ad_accounts) or ad_accounts
        for ad_account in ad_accounts - allowed:
            sentence = (
                f"Ad account {ad_account} is not among the allowed ad accounts of connection {conn_id}. "
                "Add it there, or give the step another ad account."
            )
            key, now_us = f"{conn_id}/{ad_account}", self._clock.now_us()
            self.ledger.trouble("ad_account", key, code="not-allowed", sentence=sentence, now_us=now_us)
        return frozenset(ad_accounts & allowed)

    def _sender(
        self, conn_id: str, ad_accounts: frozenset[str], role: Role, pacer: Pacer, client: CriteoClient
    ) -> Sender:
        now_us = self._clock.now_us
        timeout_s = client.settings.request_timeout_s
        terms = ClaimTerms(conn_id, ad_accounts, role, self._owner, timeout_s + LEASE_MARGIN_S)
        upload = Upload(
            lambda at_us: self.ledger.claim(terms, now_us=at_us),
            self.ledger,
            pacer,
            _Courier(client),
            now_us,
            role=role,
            request_timeout_s=timeout_s,
        )
        return Sender(upload, lambda: resolve_audiences(self.ledger, _Desk(client), conn_id, ad_accounts, now_us))

    def _open_criteo(
        self, conn_id: str, stop: threading.Event | None = None, *, interactive: bool = False
    ) -> tuple[Pacer, CriteoClient]:
        connection = self.around.criteo(conn_id)
        if self.around.cipher is None:
            raise Misconfigured(
                "Airflow's Fernet key is empty, so Criteo's access tokens would be stored in plain text. "
                "Set [core] fernet_key (AIRFLOW__CORE__FERNET_KEY) to a key of your own."
            )
        application = application_key(connection.base_url, connection.client_id)
        patience = {"patience_s": INTERACTIVE_PATIENCE_S} if interactive else {}
        pacer = Pacer(
            self._pacer_engine, application, limit_per_min=connection.requests_per_minute, stop=stop, **patience
        )
        # A check must see a wrong secret at once, and not the token that a right one has brought before.
        tokens: TokenStore = (
            OwnTokens()
            if interactive
            else LedgerTokens(self.ledger.engine, application, self.around.cipher, self._clock)
        )
        settings = ClientSettings(
            connection.client_id, connection.client_secret, connection.base_url, connection.api_version
        )
        return pacer, CriteoClient(settings, pacer, tokens, interactive=interactive)

    @contextmanager
    def _client(self, conn_id: str) -> Iterator[CriteoClient]:
        _, client = self._open_criteo(conn_id, interactive=True)
        with client:
            yield client


class _LazySource:
    """Builds the source of a canvas when it is first read; what is misconfigured fails like any source."""

    def __init__(self, build: Callable[[Canvas], Source], canvas: Canvas) -> None:
        self._build, self._canvas = build, canvas

    def is_ahead(self, position: Json, seen: Seen) -> bool:
        return self._built.is_ahead(position, seen)

    def pages(self, position: Json, *, max_rows: int, seen: Seen) -> Iterator[Page]:
        return self._built.pages(position, max_rows=max_rows, seen=seen)

    def recheck(self, look: Look) -> Iterator[tuple[Page, Look | None]]:
        return self._built.recheck(look)

    @cached_property
    def _built(self) -> Source:
        try:
            return self._build(self._canvas)
        except Misconfigured as error:
            raise SourceFailed(str(error)) from error


@dataclass(frozen=True, slots=True)
class _Courier:
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
class _Desk:
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
