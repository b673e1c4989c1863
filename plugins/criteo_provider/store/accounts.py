"""Accounts: the ad accounts people have chosen or disconnected, the last check of a connection, and hand-overs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import msgspec
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Engine,
    Integer,
    Row,
    Table,
    Text,
    delete,
    or_,
    select,
    text,
    update,
)

from criteo_provider.core.model import PartState
from criteo_provider.store.engine import insert_into, looking, reading, writing
from criteo_provider.store.schema import audience, metadata, part, step, step_version

account = Table(
    "account",
    metadata,
    Column("connection_id", Text, primary_key=True),
    Column("ad_account", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("chosen", Boolean, nullable=False),  # false: a person has disconnected it
    Column("by", Text, nullable=False),
    Column("at_us", BigInteger, nullable=False),
)

checkup = Table(
    "checkup",
    metadata,
    Column("connection_id", Text, primary_key=True),
    Column("at_us", BigInteger, nullable=False),
    Column("code", Text, nullable=False),
    Column("sentence", Text, nullable=False),
    Column("ad_accounts", Text, nullable=False),  # JSON object of the ad accounts that consented: name by id
)

handover = Table(
    "handover",
    metadata,
    Column("connection_id", Text, primary_key=True),
    Column("by", Text, nullable=False),
    Column("choice", Text, nullable=False),  # JSON object of the ad accounts to be chosen: name by id
    Column("state", Text, nullable=False),  # running, failed; a passed one is gone
    Column("done", Integer, nullable=False),
    Column("total", Integer, nullable=False),
    Column("failures", Text, nullable=False),  # JSON list of sentences
    Column("beat_us", BigInteger, nullable=False, server_default=text("0")),  # last sign of life
)

# A hand-over whose process shows no sign of life for so long is over: a call of it ends before that.
STALE_AFTER_US = 300_000_000


@dataclass(frozen=True, slots=True)
class Account:
    """What a person has decided about one ad account of a connection."""

    connection_id: str
    ad_account: str
    name: str
    chosen: bool
    by: str
    at_us: int


@dataclass(frozen=True, slots=True)
class Checkup:
    """How a connection fared when it was last checked; ``ad_accounts`` are the names of those that consented, by id."""

    connection_id: str
    at_us: int
    code: str
    sentence: str
    ad_accounts: Mapping[str, str]

    @property
    def ok(self) -> bool:
        return self.code == "ok"


@dataclass(frozen=True, slots=True)
class HandOver:
    """How far the check goes that a change of the connecting user has to pass; ``choice`` are names by id."""

    connection_id: str
    by: str
    choice: Mapping[str, str]
    state: str
    done: int
    total: int
    failures: tuple[str, ...]
    beat_us: int

    def is_running(self, now_us: int) -> bool:
        """Whether a process is at it; one that has died is not."""
        return self.state == "running" and now_us - self.beat_us < STALE_AFTER_US


@dataclass(frozen=True, slots=True)
class UsedBy:
    """A step that needs an ad account."""

    connection_id: str
    ad_account: str
    canvas: str
    step: str


@dataclass(frozen=True, slots=True)
class UsedAudience:
    """An audience of Criteo's that steps need."""

    ad_account: str
    name: str
    criteo_id: str


class AccountBook:
    """The decisions of people about ad accounts, in the ledger; each verb is one transaction."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def decisions(self, connection_id: str | None = None) -> list[Account]:
        """Return what was decided, for one connection or all."""
        query = select(account).order_by(account.c.connection_id, account.c.ad_account)
        if connection_id is not None:
            query = query.where(account.c.connection_id == connection_id)
        with looking(self._engine) as connection:
            return [Account(*row) for row in connection.execute(query)]

    def choose(self, connection_id: str, ad_accounts: Mapping[str, str], *, by: str, now_us: int) -> list[str]:
        """Choose these ad accounts (names by id); return those that were not chosen before."""
        with writing(self._engine) as connection:
            known = select(account.c.ad_account).where(account.c.connection_id == connection_id, account.c.chosen)
            before = set(connection.execute(known).scalars())
            fresh = [one for one in ad_accounts if one not in before]
            for one in fresh:
                _decide(connection, connection_id, one, ad_accounts[one], chosen=True, by=by, now_us=now_us)
        return fresh

    def disconnect(self, connection_id: str, ad_accounts: Mapping[str, str], *, by: str, now_us: int) -> None:
        """Disconnect these ad accounts (names by id)."""
        with writing(self._engine) as connection:
            for one, name in ad_accounts.items():
                _decide(connection, connection_id, one, name, chosen=False, by=by, now_us=now_us)

    # --- last checks

    def checkups(self) -> dict[str, Checkup]:
        """Return how each connection fared last."""
        with looking(self._engine) as connection:
            return {row.connection_id: _checkup(row) for row in connection.execute(select(checkup))}

    def keep_checkup(self, found: Checkup) -> None:
        """Remember how a connection fares."""
        values = {
            "connection_id": found.connection_id,
            "at_us": found.at_us,
            "code": found.code,
            "sentence": found.sentence,
            "ad_accounts": msgspec.json.encode(dict(found.ad_accounts)).decode(),
        }
        with writing(self._engine) as connection:
            _upsert(connection, checkup, values)

    # --- hand-overs

    def handover(self, connection_id: str) -> HandOver | None:
        """Return the hand-over that is going on or has failed."""
        with looking(self._engine) as connection:
            row = connection.execute(select(handover).where(handover.c.connection_id == connection_id)).one_or_none()
        if row is None:
            return None
        return HandOver(
            row.connection_id,
            row.by,
            msgspec.json.decode(row.choice),
            row.state,
            row.done,
            row.total,
            tuple(msgspec.json.decode(row.failures)),
            row.beat_us,
        )

    def begin_handover(
        self, connection_id: str, choice: Mapping[str, str], *, by: str, total: int, now_us: int
    ) -> bool:
        """Begin one; False while another process is at it."""
        values = {
            "connection_id": connection_id,
            "by": by,
            "choice": msgspec.json.encode(dict(choice)).decode(),
            "state": "running",
            "done": 0,
            "total": total,
            "failures": "[]",
            "beat_us": now_us,
        }
        with writing(self._engine) as connection:
            over = or_(handover.c.state != "running", handover.c.beat_us < now_us - STALE_AFTER_US)
            return _upsert(connection, handover, values, only_if=over)

    def note_handover(self, connection_id: str, done: int, failures: Iterable[str], *, total: int, now_us: int) -> bool:
        """Tell how far it is; False when nobody wants it any more."""
        values = {"done": done, "total": total, "failures": _as_list(failures), "beat_us": now_us}
        running = handover.c.connection_id == connection_id, handover.c.state == "running"
        with writing(self._engine) as connection:
            return connection.execute(update(handover).where(*running).values(values)).rowcount == 1

    def fail_handover(self, connection_id: str, failures: Iterable[str]) -> None:
        """End it with what stands in the way."""
        with writing(self._engine) as connection:
            connection.execute(
                update(handover)
                .where(handover.c.connection_id == connection_id)
                .values(state="failed", failures=_as_list(failures))
            )

    def forget_handover(self, connection_id: str) -> None:
        """Take it away: it was passed, or nobody wants it any more."""
        with writing(self._engine) as connection:
            connection.execute(delete(handover).where(handover.c.connection_id == connection_id))

    # --- who needs them

    def used(self) -> list[UsedBy]:
        """Return the steps that need an ad account: declared ones, and those that still hold people."""
        holds_people = select(part.c.id).where(part.c.step_id == step.c.id, part.c.state == PartState.OPEN).exists()
        query = (
            select(audience.c.connection_id, audience.c.ad_account, step.c.canvas_id, step.c.name)
            .select_from(step)
            .join(step_version, step_version.c.id == step.c.version_id)
            .join(audience, audience.c.id == step_version.c.audience_id)
            .where(or_(step.c.declared, holds_people))
            .order_by(step.c.canvas_id, step.c.position)
        )
        with reading(self._engine) as connection:
            return [UsedBy(*row) for row in connection.execute(query)]

    def used_audiences(self, connection_id: str, ad_accounts: Collection[str]) -> list[UsedAudience]:
        """Return the audiences of these ad accounts that are known at Criteo and needed by steps or pending people."""
        declared = (
            select(step.c.id)
            .join(step_version, step_version.c.id == step.c.version_id)
            .where(step.c.declared, step_version.c.audience_id == audience.c.id)
            .exists()
        )
        holds_people = select(part.c.id).where(part.c.audience_id == audience.c.id, part.c.state == PartState.OPEN)
        query = (
            select(audience.c.ad_account, audience.c.name, audience.c.criteo_id)
            .where(
                audience.c.connection_id == connection_id,
                audience.c.ad_account.in_(ad_accounts),
                audience.c.criteo_id.is_not(None),
                or_(declared, holds_people.exists()),
            )
            .order_by(audience.c.ad_account, audience.c.name)
        )
        with reading(self._engine) as connection:
            return [UsedAudience(*row) for row in connection.execute(query)]


def _decide(
    connection: Connection, connection_id: str, ad_account: str, name: str, *, chosen: bool, by: str, now_us: int
) -> None:
    values = {
        "connection_id": connection_id,
        "ad_account": ad_account,
        "name": name,
        "chosen": chosen,
        "by": by,
        "at_us": now_us,
    }
    _upsert(connection, account, values)


def _upsert(
    connection: Connection, table: Table, values: dict[str, object], only_if: ColumnElement[bool] | None = None
) -> bool:
    """Write a row; False when there is one and ``only_if`` does not hold for it."""
    keys = [column.name for column in table.primary_key]
    changes = {name: value for name, value in values.items() if name not in keys}
    statement = (
        insert_into(connection, table)
        .values(values)
        .on_conflict_do_update(index_elements=keys, set_=changes, where=only_if)
        .returning(*table.primary_key)
    )
    return connection.execute(statement).first() is not None


def _checkup(row: Row[tuple[object, ...]]) -> Checkup:
    return Checkup(row.connection_id, row.at_us, row.code, row.sentence, msgspec.json.decode(row.ad_accounts))


def _as_list(sentences: Iterable[str]) -> str:
    return msgspec.json.encode(list(sentences)).decode()
