"""One row per Criteo application hands out request slots to every process, on the database's clock.

On SQLite the row lives in a file of its own, because next to the ledger a slot would wait for whoever is
sealing people; on PostgreSQL it lives in the ledger's database. Why the spacing is right: ``core/pacing.py``.
"""

from __future__ import annotations

import hashlib
import logging
import math
import threading
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy import Engine, make_url

from criteo_provider.core import pacing
from criteo_provider.core.errors import Busy
from criteo_provider.core.pacing import REMEMBERED, SECOND_US, Pace
from criteo_provider.store.engine import looking, sqlite_path, writing

log = logging.getLogger(__name__)

metadata = sa.MetaData()
pacer = sa.Table(
    "pacer",
    metadata,
    sa.Column("application", sa.String(64), primary_key=True),
    sa.Column("due_us", sa.BigInteger, nullable=False, comment="the next slot by even spacing, epoch microseconds"),
    sa.Column("hold_until_us", sa.BigInteger, nullable=False, comment="no slot before this moment"),
    sa.Column("granted_limit", sa.Integer, comment="what Criteo's headers said last; null: nothing yet"),
    sa.Column("refusals", sa.Integer, nullable=False, comment="429s in a row, one per hold"),
    sa.Column("recent", sa.Text, nullable=False, server_default="", comment="when slots were due, newest last"),
)

# SQLite 3.40 has no unixepoch('subsec'); julianday is exact to the millisecond.
# PostgreSQL must not use now(): it stands still while the statement waits for the row.
_NOW_US = {
    "sqlite": "(CAST(ROUND((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000)",
    "postgresql": "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)",
}
_CLOCK_GRAIN_S = 0.001
_ADVISORY_KEY = 0x637274706163  # "crtpac": an arbitrary number, but always this one
_LOOK_AGAIN_S = 5.0
_WARN_EVERY_THROWN = 20
_DIGITS = 16  # of epoch microseconds, until the year 2286
_STAMP = _DIGITS + 1  # and one sign between two of them

_Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Slot:
    """When one call may start: from ``due_s`` until ``good_until_s``, on this machine's monotonic clock.

    A slot that was overdue already when it was handed out is due at once.
    """

    due_s: float
    good_until_s: float
    step_s: float
    due_us: int = 0
    """what the row calls it"""

    @property
    def wait_s(self) -> float:
        """Seconds until it is due, never negative."""
        return max(0.0, self.due_s - time.monotonic())

    def is_fresh(self) -> bool:
        """Tell, right before the first byte, whether the call may still start."""
        return self.due_s <= time.monotonic() <= self.good_until_s


def pacer_url(ledger_url: str) -> str:
    """Return where the pacer lives: ``<ledger>-pacer.db`` beside a SQLite ledger, else with the ledger."""
    path = sqlite_path(ledger_url)
    if path is None or not path.name or path.name == ":memory:":
        return ledger_url
    beside = path.with_name(f"{path.stem}-pacer.db")
    return make_url(ledger_url).set(database=str(beside)).render_as_string(hide_password=False)


def application_key(base_url: str, client_id: str) -> str:
    """Return the stable name of one Criteo application: a digest that shows neither address nor client id."""
    return hashlib.sha256(f"{base_url.strip().rstrip('/').lower()}\n{client_id.strip()}".encode()).hexdigest()


def consent_key(application: str, conn_id: str) -> str:
    """Return the stable name of one connection's consent to an application, which Criteo counts by itself."""
    return hashlib.sha256(f"{application}\nauthorization_code\n{conn_id}".encode()).hexdigest()


def create(engine: Engine) -> None:
    """Make the pacer's table unless it is there, in today's shape; any number of processes may do so at once."""
    if _is_complete(engine):
        return
    with writing(engine) as connection:
        if engine.dialect.name == "postgresql":
            # CREATE TABLE IF NOT EXISTS alone fails in the catalogue when two sessions meet.
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ADVISORY_KEY)))
        pacer.create(connection, checkfirst=True)
        if not _is_complete(connection):  # made before a row remembered its slots
            connection.execute(sa.text("ALTER TABLE pacer ADD COLUMN recent TEXT NOT NULL DEFAULT ''"))


def _is_complete(where: Engine | sa.Connection) -> bool:
    found = sa.inspect(where)
    return found.has_table(pacer.name) and any(column["name"] == "recent" for column in found.get_columns(pacer.name))


def granted(engine: Engine, application: str) -> int | None:
    """Return the calls a minute Criteo's answers named last, None where they have named none; makes nothing."""
    file = sqlite_path(str(engine.url))
    if (file is not None and not file.exists()) or not sa.inspect(engine).has_table(pacer.name):
        return None
    with looking(engine) as connection:
        return connection.execute(sa.select(pacer.c.granted_limit).where(pacer.c.application == application)).scalar()


class Pacer:
    """Never more than ``limit_per_min`` calls of one application in any 60 s, over all processes together.

    Thread-safe; open it after forking. ``stop`` ends every wait with Busy; ``patience_s`` raises Busy when
    the next slot is further away (for pages). ``margin_s`` is how late a slot may be used, ``window_s`` is
    for tests. The slot of a process that dies is lost, no more. Raises Misconfigured, LedgerUnwritable and
    SQLAlchemy's errors.
    """

    def __init__(
        self,
        engine: Engine,
        application_key: str,
        *,
        limit_per_min: int = 250,
        margin_s: float = 0.25,
        window_s: float = 60.0,
        stop: threading.Event | None = None,
        patience_s: float = math.inf,
    ) -> None:
        self.pace = Pace(limit_per_min, margin_s, window_s)
        self.thrown_away = 0
        self._engine = _autocommit(engine)
        self._application = application_key
        self._sql = _Statements(engine.dialect.name, self.pace)
        self._stop = stop or threading.Event()
        self._patience_s = patience_s
        self._granted: int | None = None
        self._refusals = 0
        # One thread per process stands in line, the others of the process behind it: few looks at the row.
        self._turn = threading.Lock()
        self._spaced_turn = threading.Lock()
        self._spaced_next_s = 0.0
        create(engine)
        self._insert_row()

    def allow(self, limit_per_min: int) -> None:
        """Keep to another number of calls a minute from the next slot on."""
        if limit_per_min != self.pace.limit_per_min:
            self.pace = Pace(limit_per_min, self.pace.margin_s, self.pace.window_s)
            self._sql = _Statements(self._engine.dialect.name, self.pace)

    def take(self, *, interactive: bool = False, spacing: int = 1, instead_of: Slot | None = None) -> Slot:
        """Block until a slot is due, and return inside it; raise Busy when stopped or out of patience.

        ``interactive``: a person is waiting, take the next slot nobody was promised. ``spacing`` n: this
        process takes at most every n-th slot (for work that may wait while other work is waiting).
        ``instead_of``: a slot that was not used and never will be; somebody else may have its place.
        """
        if instead_of is not None:
            self._give_back(instead_of)
        thrown = 0
        while True:
            slot = self._reserve_spaced(spacing) if spacing > 1 else self.reserve(interactive=interactive)
            if self.wait(slot):
                return slot
            self._give_back(slot)
            thrown += 1
            if thrown % _WARN_EVERY_THROWN == 0:
                log.warning(
                    "%d request slots in a row came too late: this machine or the pacer's database is too slow.",
                    thrown,
                )

    def reserve(self, *, interactive: bool = False) -> Slot:
        """Block until the next slot is near, and reserve it; the caller must use it or let it go to waste."""
        with nullcontext() if interactive else self._turn:
            began_s = time.monotonic()
            while True:
                reach_s = pacing.reach_s(time.monotonic() - began_s, interactive=interactive)
                slot = self._reserve_within(min(reach_s, self._patience_s))
                if slot is not None:
                    return slot
                ahead_s = self._ahead_s()
                if ahead_s > self._patience_s:
                    raise Busy(ahead_s)
                self._sleep_until(time.monotonic() + min(ahead_s - reach_s, _LOOK_AGAIN_S))

    def wait(self, slot: Slot) -> bool:
        """Sleep until ``slot`` is due; False when it is too late to use it (a stall, a slow database)."""
        self._sleep_until(slot.due_s)
        return slot.is_fresh()

    def hold(self, hold_s: float) -> None:
        """Let nobody reserve a slot that is due within the next ``hold_s`` seconds (at most 120)."""
        self._execute(self._sql.hold, hold_us=round(min(hold_s, pacing.HOLD_MAX_S) * SECOND_US), refused=0)

    def queue_s(self) -> float:
        """Return how far ahead the next free slot is, in seconds: 0 when idle; a hold counts too."""
        return self._ahead_s()

    def granted_limit(self) -> int:
        """Return the calls per minute in force: the configured limit, or less if Criteo says so."""
        self._look()
        return min(self.pace.limit_per_min, self._granted or self.pace.limit_per_min)

    # The SlotGate of core/ports.py

    def enter(self, *, interactive: bool = False) -> None:
        """Block until the next slot of this application, and return inside it."""
        self.take(interactive=interactive)

    def observed(self, status: int, headers: Mapping[str, str]) -> None:
        """Let an answer's rate-limit headers or a 429 move the pacer for everybody; write only changes."""
        change = pacing.observed(status, headers, now_s=time.time(), refusals=self._refusals)
        if change.granted_limit is not None and change.granted_limit != self._granted:
            self._granted = change.granted_limit
            self._execute(self._sql.grant, granted=change.granted_limit)
        refused = status == pacing.TOO_MANY_REQUESTS
        if change.hold_s > 0:
            held = self._sql.blind_hold if change.blind else self._sql.hold
            hold = held if refused else self._sql.used_up  # only a refusal can be blind
            self._execute(hold, hold_us=round(change.hold_s * SECOND_US), refused=int(refused))
            self._look()
        elif not refused and self._refusals:
            self._execute(self._sql.forgive)
            self._look()

    def _reserve_spaced(self, spacing: int) -> Slot:
        with self._spaced_turn:
            self._sleep_until(self._spaced_next_s)
            slot = self.reserve()
            self._spaced_next_s = time.monotonic() + spacing * slot.step_s
            return slot

    def _reserve_within(self, reach_s: float) -> Slot | None:
        before_s = time.monotonic()
        row = self._execute(self._sql.reserve, reach_us=round(reach_s * SECOND_US))
        after_s = time.monotonic()
        if row is None:
            return None
        due_us, wait_us, step_us, self._granted, self._refusals = row
        # The database read its clock somewhere between the two readings here: start no earlier than the
        # later one allows, end no later than the earlier one allows: a slow answer cannot break the bound.
        wait_s = wait_us / SECOND_US
        return Slot(
            due_s=after_s + max(0.0, wait_s),
            good_until_s=before_s + wait_s + self.pace.margin_s - _CLOCK_GRAIN_S,
            step_s=step_us / SECOND_US,
            due_us=due_us,
        )

    def _give_back(self, slot: Slot) -> None:
        self.thrown_away += 1
        self._execute(self._sql.give_back, stamp=f"{slot.due_us:0{_DIGITS}};")

    def _ahead_s(self) -> float:
        """Return how far ahead the next free slot is; put right a row left behind by a moved clock first."""
        free_us, hold_us = self._look()
        if free_us > self.pace.ahead_max_us or hold_us > pacing.HOLD_MAX_S * SECOND_US:
            self._execute(self._sql.clock_moved)
            log.warning("The pacer's clock was moved back; waiting at most one window before the next call.")
            free_us, hold_us = self._look()
        return max(0, free_us, hold_us) / SECOND_US

    def _look(self) -> tuple[int, int]:
        """Return how far ahead the next free slot is, and how long the hold lasts (microseconds)."""
        row = self._execute(self._sql.look)
        if row is None:
            self._insert_row()
            return 0, 0
        free_us, hold_us, self._granted, self._refusals = row
        return free_us, hold_us

    def _insert_row(self) -> None:
        self._execute(self._sql.insert)

    def _execute(self, statement: sa.Executable, **values: int | str) -> _Row | None:
        with self._engine.connect() as connection:
            result = connection.execute(statement, {"application_key": self._application, **values})
            return cast("_Row | None", result.one_or_none()) if result.returns_rows else None

    def _sleep_until(self, moment_s: float) -> None:
        while (left_s := moment_s - time.monotonic()) > 0:
            if self._stop.wait(left_s):
                raise Busy(left_s)
        if self._stop.is_set():
            raise Busy(0.0)


class _Statements:
    """The pacer's SQL for one engine and pace; each statement is atomic by itself and commits at once."""

    def __init__(self, dialect: str, pace: Pace) -> None:
        now = sa.literal_column(_NOW_US[dialect], sa.BigInteger)
        greatest = sa.func.max if dialect == "sqlite" else sa.func.greatest
        place = sa.func.instr if dialect == "sqlite" else sa.func.strpos
        limit = sa.case((pacer.c.granted_limit < pace.limit_per_min, pacer.c.granted_limit), else_=pace.limit_per_min)
        step = (pace.round_us + limit - 1) // limit  # rounded up, as in Pace.step_us
        mine = pacer.c.application == sa.bindparam("application_key")
        until = now + sa.bindparam("hold_us", type_=sa.BigInteger)
        refused = sa.bindparam("refused", type_=sa.Integer)
        due, held, recent = pacer.c.due_us, pacer.c.hold_until_us, pacer.c.recent
        # Slots are never handed out in another order than that of their times: newest first, and L back.
        newest, one_window_on = _stamp(recent, 1), _stamp(recent, limit) + pace.span_us
        ready = greatest(newest, one_window_on) if pace.is_remembered else due
        was_busy = newest >= now - pace.catch_up_us
        spaced = greatest(due, now - sa.case((was_busy, pace.catch_up_us), else_=pace.overdue_us))
        free = greatest(spaced, held, ready, now - pace.overdue_us)
        stamped = recent.concat(sa.cast(free, sa.Text)).concat(";")
        kept = _STAMP * (REMEMBERED if pace.is_remembered else 1)

        self.insert = sa.text(
            "INSERT INTO pacer (application, due_us, hold_until_us, granted_limit, refusals) "
            "VALUES (:application_key, 0, 0, NULL, 0) ON CONFLICT DO NOTHING"
        )
        self.reserve = (
            sa.update(pacer)
            .where(mine, free <= now + sa.bindparam("reach_us", type_=sa.BigInteger))
            .values(
                due_us=(spaced if pace.is_remembered else free) + step,
                recent=sa.func.substr(stamped, greatest(1, sa.func.length(stamped) + 1 - kept)),
            )
            .returning(newest, newest - now, step, pacer.c.granted_limit, pacer.c.refusals)
        )
        self.look = sa.select(free - now, held - now, pacer.c.granted_limit, pacer.c.refusals).where(mine)
        # The place of a call that was never made is free; where the step is the bound, it is lost.
        where = place(recent, sa.bindparam("stamp", type_=sa.Text))
        self.give_back = (
            sa.update(pacer)
            .where(mine, where > 0, sa.true() if pace.is_remembered else sa.false())
            .values(
                due_us=due - step,
                recent=sa.func.substr(recent, 1, where - 1).concat(sa.func.substr(recent, where + _STAMP)),
            )
        )
        # Refusals that arrive while a hold lasts belong to the same trouble and count once. After a refusal
        # nothing is made good.
        self.hold = (
            sa.update(pacer)
            .where(mine)
            .values(
                due_us=sa.case((refused > 0, greatest(due, until)), else_=due),
                hold_until_us=greatest(held, until),
                refusals=pacer.c.refusals + sa.case((held <= now, refused), else_=0),
            )
        )
        self.blind_hold = self.hold.where(held <= now)
        # Our own calls fill the window: then the row knows better than a header of whole seconds when it opens.
        self.used_up = self.hold.where(one_window_on <= now) if pace.is_remembered else self.hold
        self.grant = sa.update(pacer).where(mine).values(granted_limit=sa.bindparam("granted"))
        # An answer to a call from before the hold proves nothing about now.
        self.forgive = sa.update(pacer).where(mine, held <= now).values(refusals=0)
        # A quiet window is always safe, whatever was promised before the clock moved.
        moved = greatest(due, ready) > now + pace.ahead_max_us
        self.clock_moved = (
            sa.update(pacer)
            .where(mine)
            .values(
                due_us=sa.case((moved, now + pace.window_us), else_=due),
                recent=sa.case((moved, ""), else_=recent),
                hold_until_us=sa.case((held > now + round(pacing.HOLD_MAX_S * SECOND_US), 0), else_=held),
            )
        )


def _stamp(recent: sa.ColumnElement[str], back: sa.ColumnElement[int] | int) -> sa.ColumnElement[int]:
    """Return when the slot ``back`` from the end was due (1: the newest); 0 where there is none."""
    length = sa.func.length(recent)
    first = length + 1 - _STAMP * back
    return sa.case((first > 0, sa.cast(sa.func.substr(recent, first, _DIGITS), sa.BigInteger)), else_=0)


def _autocommit(engine: Engine) -> Engine:
    """Make every statement commit by itself; SQLite engines of ours do so already (see store/engine.py)."""
    if engine.dialect.name == "sqlite":
        return engine
    return engine.execution_options(isolation_level="AUTOCOMMIT")
