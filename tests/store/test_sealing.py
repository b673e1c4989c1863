"""Sealing: what a seal writes is what a refold would find, and what was just sealed is not read back."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Column, Connection, Table, event, func, select

from criteo_provider.core.batching import pack
from criteo_provider.core.identifiers import Form, encode
from criteo_provider.core.model import PackedForm, Reason, SealedPeople, Span
from criteo_provider.store.engine import writing
from criteo_provider.store.just_sealed import MOST_BYTES, JustSealed
from criteo_provider.store.schema import metric, stage, stage_exception
from criteo_provider.store.schema_growth import step_reason, step_total
from criteo_provider.store.standings import refold
from tests.world import World, canvas, crowd, digest, step

TOLD = (stage, stage_exception, metric, step_total, step_reason)


def two_fields(people: list[tuple[bool, bool]]) -> SealedPeople:
    """People of whom each has, or lacks, an e-mail digest and a device id."""
    columns = [[digest(number) if has[which] else None for number, has in enumerate(people)] for which in (0, 1)]
    columns[1] = [value and value[:16] for value in columns[1]]
    emails, devices = columns
    return pack(
        [f"user-{number}" for number in range(len(people))],
        {(Form.EMAIL_SHA256.value, None): emails, (Form.MADID.value, None): devices},
        {
            "email": [None if value else Reason.MALFORMED for value in emails],
            "madid": [None if value else Reason.MISSING for value in devices],
        },
        lambda values, form: encode(values, Form(form)),
    )


def test_exceptions_that_are_none_any_more_are_taken_out(world: World) -> None:
    """While a delay lasts nobody who lacks the field stands like the others; afterwards all of these do."""
    world.declare(canvas("vip", step("add", delay_s=60)))
    world.enter("vip", crowd(range(3), lacking=[0, 1, 2]))
    exceptions = select(func.count()).select_from(stage_exception)
    with world.engine.connect() as connection:
        assert connection.execute(exceptions).scalar_one() == 1
    world.now_us += 61_000_000
    world.ledger.enter_due_steps(now_us=world.now_us)
    with world.engine.connect() as connection:
        assert connection.execute(exceptions).scalar_one() == 0
    assert world.numbers("add") == (3, 0, 3, 0, 0)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12), st.booleans())
def test_people_stand_after_a_seal_where_a_refold_finds_them(
    world: World, people: list[tuple[bool, bool]], is_last: bool
) -> None:
    """Whoever has which of two fields: to make the stages true again changes no number and no exception."""
    both = ("email", "madid")
    world.declare(canvas("vip", step("add", fields=both, is_last=is_last), step("mail", audience="Mail")))
    world.enter("vip", two_fields(people))

    def everything(connection: Connection) -> list[object]:
        return [connection.execute(select(table).order_by(*table.primary_key)).all() for table in TOLD]

    with writing(world.engine) as connection:
        before = everything(connection)
        refold(connection, connection.execute(select(stage.c.id)).scalars().all(), cause="again", now_us=world.now_us)
        assert everything(connection) == before
    assert world.ledger.broken_laws() == []


def test_a_seal_writes_what_a_refold_would_have_written(world: World) -> None:
    """One step whose files have changed meanwhile, and one whose have not: the same rows, reason for reason."""
    same = {"fields": ("email", "madid"), "is_last": False}
    world.declare(
        canvas("vip", step("a", **same), step("b", **same, audience="B"), step("c", delay_s=60, audience="C"))
    )
    first, second, delayed = world.plans["vip"]
    # An older version of the same step: what is sealed under it goes the longer way.
    world.plans["vip"] = (first, replace(second, version_id=first.version_id), delayed)
    world.enter("vip", two_fields([(True, True), (True, False), (False, True), (False, False), (True, True)]))

    def told(connection: Connection, step_id: int) -> list[object]:
        ids = select(stage.c.id).where(stage.c.step_id == step_id).scalar_subquery()
        rows: list[object] = []
        for table, own in ((stage, stage.c.step_id == step_id), (stage_exception, stage_exception.c.stage_id == ids)):
            rows += connection.execute(select(*_but(table, "id", "step_id", "version_id", "stage_id")).where(own)).all()
        for table in (metric, step_total, step_reason):
            shown = select(*_but(table, "id", "step_id")).where(table.c.step_id == step_id)
            rows += sorted(connection.execute(shown).all())
        return rows

    with world.engine.connect() as connection:
        assert told(connection, first.step_id) == told(connection, second.step_id)
        assert len(told(connection, first.step_id)) > len(TOLD)
    assert world.numbers("c") == (0, 0, 0, 0, 0)
    world.pass_time(61)
    world.ledger.enter_due_steps(now_us=world.now_us)
    assert world.numbers("c") == (5, 0, 2, 3, 0)


def _but(table: Table, *names: str) -> list[Column[object]]:
    return [column for column in table.columns if column.name not in names]


def test_who_connects_anew_reads_what_is_there(world: World) -> None:
    """After a connection is lost nothing is taken from memory: another server may have taken over, with less in it."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd(range(3)))
    claimed = world.claim()
    assert claimed is not None
    world.engine.dispose()
    read: list[str] = []

    @event.listens_for(world.engine, "before_cursor_execute")
    def remember(_c: object, _cursor: object, statement: str, *_rest: object) -> None:
        read.append(statement)

    assert world.ledger.open_work(now_us=world.now_us)
    read.clear()
    assert len(world.ledger.packed(claimed.parts[0])) == 3 * 32
    assert len(read) == 1


def test_what_was_sealed_a_moment_ago_is_not_read_back(world: World) -> None:
    """A chunk is sent from memory once, the same bytes as are in the ledger; a second time it is read."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd(range(10), lacking=[4]))
    claimed = world.claim()
    assert claimed is not None
    (wanted,) = claimed.parts
    read: list[str] = []

    @event.listens_for(world.engine, "before_cursor_execute")
    def remember(_c: object, _cursor: object, statement: str, *_rest: object) -> None:
        read.append(statement)

    at_once = world.ledger.packed(wanted)
    assert read == []
    assert world.ledger.packed(wanted) == at_once == b"".join(digest(n) for n in range(10) if n != 4)
    assert len(read) == 1


def test_only_the_chunks_sealed_last_are_kept_in_memory() -> None:
    """So many bytes are kept at most, the oldest go first; what is given out is let go of."""
    kept = JustSealed()
    blobs = [bytes([number]) * (MOST_BYTES // 4) for number in range(7)]
    for number, blob in enumerate(blobs):
        kept.keep(number, [PackedForm("email_sha256", None, (Span(0, 1),), 1, blob)])
    assert [kept.take(number, "email_sha256", 1) is not None for number in range(7)] == [False] * 3 + [True] * 4
    assert kept.take(6, "email_sha256", 1) is None
    kept.keep(8, [PackedForm("email_sha256", None, (), 1, b"x" * (MOST_BYTES + 1))])
    assert kept.take(8, "email_sha256", 1) is None
    for number, blob in enumerate(blobs[:4]):
        kept.keep(number, [PackedForm("email_sha256", None, (Span(0, 1),), 1, blob)])
    assert all(kept.take(number, "email_sha256", 1) for number in range(4))


def test_a_chunk_that_goes_in_two_requests_is_read_back_for_neither() -> None:
    """Whoever takes some of a chunk's values leaves them for whoever takes the others, as long as there is room."""
    kept = JustSealed()
    kept.keep(1, [PackedForm("email_sha256", None, (Span(0, 3),), 3, b"abc")])
    assert kept.take(1, "email_sha256", 2) is not None
    assert kept.take(1, "email_sha256", 3) is not None
    assert kept.take(1, "email_sha256", 3) is None
