"""What runs many times a second finds its rows by index: its cost follows what is due, not what has ever been."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from psycopg.pq import Format
from sqlalchemy import Engine, event, insert, select, text, update

from criteo_provider.core.consent import USER_KEY, FeedDeclaration, Withdrawal, key_marks
from criteo_provider.core.model import Role, Status
from criteo_provider.core.outcome import Refused
from criteo_provider.store import opt_outs, people_index
from criteo_provider.store.engine import writing
from criteo_provider.store.ledger import Ledger
from criteo_provider.store.schema import chunk, identifiers, metric, part, request, stage, stage_exception, upload
from criteo_provider.store.schema_growth import COUNTED, step_total
from tests.world import World, canvas, crowd, step

SETTLED = 10_000
FEED = "opt_outs/do_not_sell"
BIG = ("opt_out", "part", "request", "chunk", "identifiers", "upload", "stage", "stage_exception", "metric")
PARTIAL = (
    "ix_part_open",
    "ix_part_request",
    "ix_part_deadline",
    "ix_part_look_back",
    "ix_part_errored",
    "ix_stage_waiting",
    "ix_request_in_flight",
)


@pytest.fixture
def old(world: World) -> World:
    """A ledger with ten thousand settled parts behind it, and one open part."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd(range(3)))
    claimed = world.claim()
    assert claimed is not None
    world.settle(claimed)
    with writing(world.engine) as connection:
        for table in (chunk, identifiers, stage, upload, part, request):
            made = dict(connection.execute(select(table)).one()._mapping)
            rows = [{**made, **_later(table.name, number)} for number in range(2, SETTLED + 2)]
            connection.execute(insert(table), rows)
        alike = {"first": 0, "last": 1, "status": Status.SYNCED}
        connection.execute(insert(stage_exception), [{"stage_id": number, **alike} for number in range(1, SETTLED)])
        for made in connection.execute(select(metric)).all():
            values = {**made._mapping, "value": made.value * SETTLED}
            values.pop("id")
            connection.execute(insert(metric), [values])
        grown = {column: column * (SETTLED + 1) for column in step_total.c if column.name in COUNTED}
        connection.execute(update(step_total).values(grown))
        if world.engine.dialect.name == "postgresql":
            for table in (chunk, stage, upload, part, request):
                names = {"name": table.name}
                connection.execute(text(f"SELECT setval(pg_get_serial_sequence(:name, 'id'), {SETTLED + 9})"), names)
        declared = FeedDeclaration(FEED, "Do not sell", "privacy-team", 3600, "1", None)
        opt_outs.declare_feeds(connection, [declared], now_us=world.now_us)
        told = [Withdrawal("user_key", mark) for mark in key_marks(f"other-{n}" for n in range(SETTLED))]
        opt_outs.record(connection, FEED, told, now_us=world.now_us)
        connection.execute(text("ANALYZE"))
    world.pass_time(10)
    world.enter("vip", crowd(range(10, 13)))
    return world


def _later(table: str, number: int) -> dict[str, int]:
    """What tells the ``number``-th row of a table from the first."""
    ids = {
        "identifiers": {"chunk_id": number},
        "stage": {"chunk_id": number},
        "upload": {"stage_id": number},
        "part": {"chunk_id": number, "stage_id": number, "upload_id": number, "request_id": number},
    }
    return ids.get(table, {}) | ({} if table == "identifiers" else {"id": number})


class Plans:
    """The plans of all statements an engine is asked to run."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.told: list[tuple[str, list[str]]] = []

    def note(self, _connection: Any, cursor: Any, statement: str, parameters: Any, _context: Any, many: bool) -> None:
        """Ask for the plan of a statement before it runs, with its real parameters."""
        if many or not statement.lstrip().startswith(("SELECT", "UPDATE", "DELETE")):
            return
        prefix = "EXPLAIN QUERY PLAN " if self._engine.dialect.name == "sqlite" else "EXPLAIN "
        cursor.execute(prefix + statement, parameters)
        self.told.append((statement, [str(row[-1]) for row in cursor.fetchall()]))

    def scans(self) -> list[str]:
        """Statements that read a big table, or an index of all its rows, from end to end; then forget them."""
        told, self.told = self.told, []
        return [f"{line}\n{statement}" for statement, plan in told for line in plan if _reads_all(line)]


def _reads_all(line: str) -> bool:
    sign, _, rest = line.strip().removeprefix("->").strip().partition("(cost=")[0].partition(" ")
    if sign == "Seq":
        return rest.split()[2] in BIG  # Scan on <table>
    if sign != "SCAN":
        return False
    # SQLite says SCAN also where it reads one partial index, which holds only what is open.
    return rest.split()[0] in BIG and not any(name in rest for name in PARTIAL)


@pytest.fixture
def plans(old: World) -> Iterator[Plans]:
    """The plans of what a test does."""
    plans = Plans(old.engine)
    event.listen(old.engine, "before_cursor_execute", plans.note)
    yield plans
    event.remove(old.engine, "before_cursor_execute", plans.note)


def claim(world: World) -> None:
    """Claim, and come back for an expired claim."""
    assert world.claim(lease_s=1) is not None
    world.pass_time(2)
    assert world.claim() is not None


def settle_refused(world: World) -> None:
    """Settle a refusal, which is narrowed."""
    claimed = world.claim()
    assert claimed is not None
    world.settle(claimed, Refused("invalid", "Criteo refuses the content."))


def settle(world: World) -> None:
    """Settle what was accepted."""
    claimed = world.claim()
    assert claimed is not None
    world.settle(claimed)


def live_streams(world: World) -> None:
    """Count the streams at a time when all that is settled is long ago."""
    world.pass_time(3600)
    assert world.ledger.live_streams("criteo_default", now_us=world.now_us) == 1


def person_indexed(world: World) -> None:
    """Look somebody up once everybody is indexed."""
    while world.ledger.keeping.index_more():
        pass
    assert world.ledger.keeping.person("user-11", now_us=world.now_us)


def chunks_of_few(world: World) -> None:
    """Ask which indexed chunks the people of a removal were in before."""
    with world.engine.connect() as connection:
        _, upto = people_index.indexed_with(connection, USER_KEY, ["user-11", "nobody"])
    assert upto > 0


def tell_opt_out(world: World) -> None:
    """Keep a row of an opt-out feed."""
    hold = world.ledger.hold_cursor(FEED, "me", now_us=world.now_us, lease_s=30)
    assert hold is not None
    told = [Withdrawal("user_key", mark) for mark in key_marks(["user-11"])]
    world.ledger.opt_outs.withdraw(hold, told, position=1, units=(), looks=(), now_us=world.now_us)


def declare_beside_trouble(world: World) -> None:
    """Declare the same files while something is broken that they still use."""
    key = "criteo_default/1001"
    world.ledger.trouble("quota", key, code="quota", sentence="It is nearly full.", now_us=world.now_us)
    world.declare(canvas("vip", step("add")), resolve=False)
    assert [row.key for row in world.ledger.troubles()] == [key]
    world.ledger.healed("quota", key, now_us=world.now_us)


HOT: dict[str, Callable[[World], Any]] = {
    "claim": claim,
    "claim nothing": lambda world: world.claim(Role.RETRY),
    "settle": settle,
    "settle refused": settle_refused,
    "sweep": lambda world: world.ledger.sweep(now_us=world.now_us),
    "due steps": lambda world: world.ledger.enter_due_steps(now_us=world.now_us),
    "open work": lambda world: world.ledger.open_work(now_us=world.now_us),
    "first attempts": lambda world: world.ledger.first_attempts_wait(now_us=world.now_us),
    "live streams": live_streams,
    "numbers": lambda world: world.ledger.numbers(now_us=world.now_us),
    "index people": lambda world: world.ledger.keeping.index_more(),
    "opt out": tell_opt_out,
    "claim beside opt-outs": claim,
    "opt-outs to follow": lambda world: world.ledger.opt_outs.is_unfinished(),
    "alarms": lambda world: world.ledger.look_for_alarms(late_after_s=900, now_us=world.now_us),
    "anything to tell": lambda world: world.ledger.is_untold(),
    "person, indexed": person_indexed,
    "chunks of few, indexed": chunks_of_few,
    "seal": lambda world: world.enter("vip", crowd(range(20, 23))),
    "declare again": lambda world: world.declare(canvas("vip", step("add")), resolve=False),
    "declare beside a trouble": declare_beside_trouble,
    "ad accounts in use": lambda world: world.ledger.launches.ad_accounts_in_use(),
    "connections last used": lambda world: world.ledger.launches.last_used(),
}


def test_hot_verbs_read_no_table_from_end_to_end(old: World, plans: Plans, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand settled parts are not looked at by what happens all the time."""
    monkeypatch.setattr(people_index, "_SETTLED_US", -(10**16))  # this world is ahead of the database's clock
    scans: dict[str, list[str]] = {}
    for verb, run in HOT.items():
        old.enter("vip", crowd(range(10, 13)))
        plans.told.clear()
        run(old)
        assert plans.told, verb
        if found := plans.scans():
            scans[verb] = found
        while (left := old.claim()) is not None:
            old.settle(left)
    assert scans == {}


def test_packed_people_are_fetched_as_postgresql_keeps_them(postgres_url: str) -> None:
    """What others have sealed is read in binary: as text it is twice as long, and takes five times as long."""
    world = World(postgres_url)
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd(range(3)))
    claimed = world.claim()
    assert claimed is not None
    formats = []

    @event.listens_for(world.engine, "after_cursor_execute")
    def look(_: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        formats.append(cursor.pgresult.fformat(1))

    values = [Ledger(world.engine).items(one) for one in claimed.parts]
    assert [len(one) for one in values] == [3]
    assert formats == [Format.BINARY]
    world.close()
