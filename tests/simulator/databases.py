"""The ledgers of stories: a template copied for each, in memory on SQLite, and what goes wrong with databases."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec
import psycopg
from sqlalchemy import Engine, create_engine, text, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import StaticPool

from criteo_provider.core.identifiers import Form, decode
from criteo_provider.core.model import CanvasDeclaration, PartState, StepPlan
from criteo_provider.store.engine import open_engine
from criteo_provider.store.ledger import Ledger
from criteo_provider.store.migrate import upgrade
from criteo_provider.store.schema import metadata
from criteo_provider.store.schema_opt_outs import opt_out_round
from tests.simulator.intents import PartRow, Place, Removal, Stored
from tests.simulator.surroundings import FEED
from tests.simulator.threads import START_US

Plans = dict[str, tuple[StepPlan, ...]]

# What is sent once more keeps whoever is not Synced Pending until it is taken or given up, and decides nothing else.
_PARTS = "SELECT again, stage_id, form, spans, earlier_id, state, reason, deadline_us FROM part"
_AGAIN = "SELECT id FROM part WHERE request_id = :request AND again"
_EARLIER = "SELECT id, stage_id, form, present, packed FROM earlier"
_VIEW = "SELECT step, chunk_id, ordinal, status FROM user_status"
_METRICS = "SELECT step_id, metric, sum(value) FROM metric GROUP BY step_id, metric"
_NEWEST = "SELECT step_id, chunk_id, id FROM stage WHERE chunk_id = (SELECT max(id) FROM chunk)"
_OVERDUE = (
    "SELECT count(*) FROM part JOIN step ON step.id = part.step_id "
    "WHERE part.state = 1 AND part.deadline_us <= :now AND step.declared AND step.held_us IS NULL"
)
_REMOVALS = """
SELECT stage.id, stage.chunk_id, step.id, step.canvas_id, step.name, chunk.user_keys
FROM stage JOIN chunk ON chunk.id = stage.chunk_id JOIN step ON step.id = stage.step_id
WHERE stage.id > :after AND substr(chunk.canvas_id, 1, 9) = 'opt_outs/' ORDER BY stage.id
"""
_REMOVED = """
SELECT part.audience_id, part.form, part.spans, part.intent_us, identifiers.packed
FROM part JOIN identifiers ON identifiers.chunk_id = part.chunk_id AND identifiers.form = part.form
WHERE part.stage_id = :stage ORDER BY part.id
"""
_UNFINISHED = "SELECT EXISTS (SELECT 1 FROM part WHERE state <= 2)"
_UNENTERED = "SELECT EXISTS (SELECT 1 FROM stage WHERE state = 0)"
_DUE = """
SELECT EXISTS (SELECT 1 FROM part WHERE state = 1 AND due_us <= :now AND attempts < 3),
    EXISTS (SELECT 1 FROM part WHERE state = 1 AND due_us <= :now AND attempts >= 3),
    EXISTS (SELECT 1 FROM stage WHERE state = 0 AND enters_us <= :now)
    OR EXISTS (SELECT 1 FROM part WHERE state = 1 AND deadline_us <= :now)
    OR EXISTS (SELECT 1 FROM request WHERE state = 'in_flight' AND lease_until_us < :now),
    EXISTS (SELECT 1 FROM part JOIN audience ON audience.id = part.audience_id
            WHERE state = 1 AND audience.criteo_id IS NULL)
"""
_ANYTHING_DUE = """
SELECT EXISTS (SELECT 1 FROM part WHERE state = 1 AND due_us <= :now)
    OR EXISTS (SELECT 1 FROM request WHERE state = 'in_flight' AND lease_until_us < :now)
"""
# When something may happen next that cannot happen now.
_NEXT = """
SELECT min(at_us) FROM (
    SELECT due_us AS at_us FROM part WHERE state = 1
    UNION ALL SELECT deadline_us FROM part WHERE state = 1
    UNION ALL SELECT lease_until_us + 1 FROM request WHERE state IN ('in_flight', 'unknown')
    UNION ALL SELECT enters_us FROM stage WHERE state = 0
    UNION ALL SELECT next_probe_us FROM trouble
    UNION ALL SELECT resolver_until_us FROM audience
    UNION ALL SELECT turn_until_us + 1 FROM audience
) AS moments WHERE at_us > :now
"""


class DatabaseTrouble(Exception):
    """What a database did, in a story; ``sqlstate`` as PostgreSQL would name it."""

    def __init__(self, what: str, sqlstate: str | None = None) -> None:
        super().__init__(what)
        self.sqlstate = sqlstate


class Due(NamedTuple):
    """What could be done now, by kind."""

    fresh: bool
    retry: bool
    keep: bool
    unresolved: bool


class Database:
    """One engine, on which one story after the other is told."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.trouble: str | None = None
        # An event of SQLAlchemy's would be asked for at every statement.
        self._commit, engine.dialect.do_commit = engine.dialect.do_commit, self._committing  # type: ignore[method-assign]

    def empty_ledger(self, declarations: Sequence[CanvasDeclaration]) -> tuple[Ledger, Plans]:
        """A ledger that knows these canvases and nobody in them."""
        raise NotImplementedError

    def rows(self, query: str, **named: int) -> list[tuple[Any, ...]]:
        """Read, past everything the ledger's own code does."""
        raise NotImplementedError

    def has_changed(self) -> bool:
        """Whether anything may have been written since this was last asked."""
        raise NotImplementedError

    def stored(self, stage_of: dict[tuple[int, str], int]) -> Stored:
        """Read what is stored about people."""
        rows = [
            (bool(again), PartRow(_places(*whose), PartState(state), reason, deadline_us))
            for again, *whose, state, reason, deadline_us in self.rows(_PARTS)
        ]
        parts, once_more = ([row for again, row in rows if again is wanted] for wanted in (False, True))
        view = {(stage_of[chunk, step], int(ordinal)): status for step, chunk, ordinal, status in self.rows(_VIEW)}
        return Stored(
            parts,
            once_more,
            self.earlier(),
            view,
            {(step, name): int(value) for step, name, value in self.rows(_METRICS)},
        )

    def again(self, request_id: int) -> set[int]:
        """Which parts of a request are only sent once more."""
        return {row[0] for row in self.rows(_AGAIN, request=request_id)}

    def earlier(self) -> dict[Place, bytes]:
        """The identifiers that removals have found their people were added under before."""
        return {
            place: value
            for earlier_id, stage, form, present, packed in self.rows(_EARLIER)
            for place, value in zip(
                _places(stage, form, present, earlier_id), decode(bytes(packed), Form(form)), strict=True
            )
        }

    def newest_stages(self) -> dict[int, tuple[int, int]]:
        """The stages of the newest chunk by step: chunk and stage."""
        return {step: (chunk, stage) for step, chunk, stage in self.rows(_NEWEST)}

    def removals(self, after_stage: int) -> list[Removal]:
        """The removals that opt-outs have led to behind a stage, each with the identifiers it takes out."""
        return [
            Removal(
                stage, chunk, step, canvas_id, name, msgspec.json.decode(keys),
                [
                    (_places(stage, form, spans, None), decode(bytes(packed), Form(form)), audience, intent_us)
                    for audience, form, spans, intent_us, packed in self.rows(_REMOVED, stage=stage)
                ],
            )
            for stage, chunk, step, canvas_id, name, keys in self.rows(_REMOVALS, after=after_stage)
        ]  # fmt: skip

    def awaited(self) -> set[int]:
        """The audiences somebody is on the way to."""
        return {row[0] for row in self.rows("SELECT DISTINCT audience_id FROM part WHERE state <= 2")}

    def overdue(self, now_us: int) -> int:
        """How many open parts are past their deadline."""
        return int(self.rows(_OVERDUE, now=now_us)[0][0])

    def due(self, now_us: int) -> Due:
        """What could be done now."""
        return Due(*map(bool, self.rows(_DUE, now=now_us)[0]))

    def anything_due(self, now_us: int) -> bool:
        """Whether an uploader could find anything: somebody due, or held by a claim that is over."""
        return bool(self.rows(_ANYTHING_DUE, now=now_us)[0][0])

    def next_us(self, now_us: int) -> int | None:
        """When to go on; None when everybody is settled."""
        if not self.rows(_UNFINISHED)[0][0] and not self.rows(_UNENTERED)[0][0]:
            return None
        found = self.rows(_NEXT, now=now_us)[0][0]
        return int(found) if found is not None else now_us + 1_000_000

    def criteo_ids(self) -> dict[int, str | None]:
        """Under which id Criteo knows each audience."""
        return dict(self.rows("SELECT id, criteo_id FROM audience"))

    def gone_ids(self) -> set[str]:
        """The ids under which Criteo does not know audiences any more."""
        return {row[0] for row in self.rows("SELECT criteo_id FROM audience WHERE gone_us IS NOT NULL")}

    @contextmanager
    def in_trouble(self, trouble: str | None) -> Iterator[None]:
        """Let something go wrong with the next transaction that writes."""
        self.trouble = trouble if trouble != "answer lost" else None
        if trouble == "busy":
            self.trouble = None
            raise self.error("database is locked")
        try:
            yield
        finally:
            self.trouble = None

    @staticmethod
    def error(what: str, sqlstate: str | None = None) -> OperationalError:
        """What SQLAlchemy would raise."""
        return OperationalError("in a story", None, DatabaseTrouble(what, sqlstate))

    def _committing(self, connection: Any) -> None:
        trouble, self.trouble = self.trouble, None
        if trouble == "disk full":
            raise self.error(trouble)
        if trouble == "serialization":
            raise self.error(trouble, "40001")
        self._commit(connection)


def _launched(ledger: Ledger, declarations: Sequence[CanvasDeclaration]) -> Plans:
    plans = ledger.declare(declarations, now_us=START_US)
    ledger.opt_outs.declare([FEED], now_us=START_US)
    for canvas_id in ledger.launches.unlaunched():
        ledger.launches.launched(canvas_id, "", "[]", now_us=START_US)
    return plans


def _places(stage_id: int, form: str, spans: str, earlier_id: int | None) -> list[Place]:
    stretches = msgspec.json.decode(spans)
    return [(stage_id, form, ordinal, earlier_id or 0) for first, last in stretches for ordinal in range(first, last)]


class Kept(sqlite3.Connection):
    """A connection that outlives its pool's patience: what is in memory would be gone with it."""

    def close(self) -> None:
        self.rollback()


class InMemory(Database):
    """SQLite in memory: a story begins with the rows of a ledger that was just launched."""

    def __init__(self) -> None:
        how: dict[str, Any] = {"isolation_level": None, "check_same_thread": False, "cached_statements": 1024}
        self._file, self._seen = sqlite3.connect(":memory:", factory=Kept, **how), -1
        self._file.execute("PRAGMA foreign_keys = ON")
        super().__init__(create_engine("sqlite://", creator=lambda: self._file, poolclass=StaticPool))
        upgrade(self.engine, now_us=START_US)
        self._launched: dict[str, list[tuple[Any, ...]]] = {}
        self._plans: Plans = {}

    def empty_ledger(self, declarations: Sequence[CanvasDeclaration]) -> tuple[Ledger, Plans]:
        ledger = Ledger(self.engine)
        if not self._launched:
            self._plans = _launched(ledger, declarations)
            self._launched = {table.name: self.rows(f"SELECT * FROM {table.name}") for table in metadata.sorted_tables}
        self._begin_anew()
        return ledger, dict(self._plans)

    def _begin_anew(self) -> None:
        """Put the rows back; a copy of the whole database would have every statement planned anew for each story."""
        self._file.rollback()
        self._file.execute("BEGIN")
        for table in reversed(self._launched):
            self._file.execute(f"DELETE FROM {table}")
        for table, rows in self._launched.items():
            for row in rows:
                self._file.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)
        self._file.execute("COMMIT")
        self._seen = -1

    def rows(self, query: str, **named: int) -> list[tuple[Any, ...]]:
        return self._file.execute(query, named).fetchall()

    def has_changed(self) -> bool:
        before, self._seen = self._seen, self._file.total_changes
        return before != self._seen


_NAMED = re.compile(r":(\w+)")


class OnPostgres(Database):
    """A PostgreSQL database, emptied for each story."""

    def __init__(self, url: str) -> None:
        super().__init__(open_engine(url, pool_size=2))
        upgrade(self.engine, now_us=START_US)
        kept = "origin", "opt_out_round"
        self._tables = ", ".join(table.name for table in metadata.sorted_tables if table.name not in kept)
        self._reader = psycopg.connect(url.replace("+psycopg", ""), autocommit=True)

    def empty_ledger(self, declarations: Sequence[CanvasDeclaration]) -> tuple[Ledger, Plans]:
        with self.engine.begin() as connection:
            connection.execute(text(f"TRUNCATE {self._tables} RESTART IDENTITY CASCADE"))
            connection.execute(update(opt_out_round).values(after_id=0, upto_id=0, after_chunk=0, upto_chunk=0))
        ledger = Ledger(self.engine)
        return ledger, _launched(ledger, declarations)

    def rows(self, query: str, **named: int) -> list[tuple[Any, ...]]:
        return self._reader.execute(_NAMED.sub(r"%(\1)s", query), named).fetchall()  # type: ignore[arg-type]

    def has_changed(self) -> bool:
        return True

    def close(self) -> None:
        """Let go of the server."""
        self._reader.close()
        self.engine.dispose()
