"""The per-user view: one row per user and step, the same on both engines."""

from __future__ import annotations

from random import Random
from typing import Any

from sqlalchemy import select, text

from criteo_provider.core.outcome import Accepted, Refused, Unavailable
from criteo_provider.store.schema import chunk
from tests.world import World, canvas, crowd, digest, step


def rows(world: World, where: str = "true", **values: Any) -> list[dict[str, Any]]:
    """The rows of the view."""
    with world.engine.connect() as connection:
        found = connection.execute(text(f"SELECT * FROM user_status WHERE {where}"), values)
        return [dict(row._mapping) for row in found]


def test_a_row_tells_who_stands_where_and_why(world: World) -> None:
    """A row names canvas, step, user key, status in words, reason, time of entry, chunk and ordinal."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd([1, 2], lacking=[2]))
    with world.engine.connect() as connection:
        chunk_id = connection.execute(select(chunk.c.id)).scalar_one()
    told = {row["user_key"]: row for row in rows(world)}
    assert {int(row["ordinal"]) for row in told.values()} == {0, 1}
    told = {key: {**row, "ordinal": None} for key, row in told.items()}
    alike = {
        "canvas": "vip",
        "step": "add",
        "entered_us": world.now_us,
        "chunk_id": chunk_id,
        "ordinal": None,
    }
    assert told["user-1"] == {**alike, "user_key": "user-1", "status": "Pending", "reason": None}
    reason = "no usable identifier: missing"
    assert told["user-2"] == {**alike, "user_key": "user-2", "status": "Not Synced", "reason": reason}


def test_each_entry_has_a_row_in_each_step_it_has_reached(world: World) -> None:
    """Entering twice is two rows; a step behind a delay has no row until it is reached."""
    world.declare(canvas("vip", step("add", is_last=False), step("later", position=1, delay_s=60)))
    world.enter("vip", crowd([1]))
    world.enter("vip", crowd([1]))
    assert [row["step"] for row in rows(world)] == ["add", "add"]
    world.pass_time(61)
    world.ledger.enter_due_steps(now_us=world.now_us)
    assert sorted(row["step"] for row in rows(world)) == ["add", "add", "later", "later"]


def test_exceptions_anywhere_in_a_chunk_are_told_to_the_person(world: World) -> None:
    """First, last, lone and neighbouring exceptions: each falls on the right person, whatever is the default."""
    for share in (3, 150, 290):
        world.declare(canvas(f"vip{share}", step(f"add{share}")))
        numbers = range(share * 1000, share * 1000 + 300)
        world.enter(f"vip{share}", crowd(numbers))
        bad = {numbers[0], numbers[-1], *Random(share).sample(numbers, share)}
        claimed = world.claim()
        assert claimed is not None
        sample = tuple(digest(number).hex() for number in bad)
        world.settle(claimed, Accepted(300 - len(bad), len(bad), sample))
        told = {row["user_key"]: row["status"] for row in rows(world, "step = :step", step=f"add{share}")}
        assert told == {f"user-{number}": "Not Synced" if number in bad else "Synced" for number in numbers}


def test_every_status_has_its_word(world: World) -> None:
    """Pending, Synced, Not Synced and Errored, as people read them; reasons only where there is one."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd([1]))
    assert [(row["status"], row["reason"]) for row in rows(world)] == [("Pending", None)]
    for outcome in (Refused("invalid", "Criteo refuses the content."), None, Unavailable("http-503", "Down.")):
        claimed = world.claim()
        assert claimed is not None
        world.settle(claimed, outcome)
        world.enter("vip", crowd([1]))
    world.pass_time(14 * 3600)
    world.ledger.sweep(now_us=world.now_us)
    told = {(row["status"], row["reason"]) for row in rows(world)}
    assert told == {
        ("Not Synced", "refused by Criteo"),
        ("Synced", None),
        ("Errored", "Down."),
        ("Pending", None),
    }


def test_an_exception_without_a_reason_does_not_borrow_the_defaults(world: World) -> None:
    """Where most people are Not Synced for a reason, the Synced few have none."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd(range(9), lacking=range(1, 9)))
    claimed = world.claim()
    assert claimed is not None
    world.settle(claimed)
    assert {(row["status"], row["reason"]) for row in rows(world, "user_key = 'user-0'")} == {("Synced", None)}
    assert {row["reason"] for row in rows(world, "user_key <> 'user-0'")} == {"no usable identifier: missing"}


def test_keys_come_out_as_they_went_in(world: World) -> None:
    """Quotes, backslashes, other scripts and empty-looking keys are the same text on both engines."""
    people = crowd([1, 2, 3, 4])
    keys = ['say "hi"', "back\\slash", "žluťoučký 🐎", "null"]
    world.declare(canvas("vip", step("add")))
    world.enter("vip", type(people)(tuple(keys), people.forms, people.shortfalls))
    assert sorted(row["user_key"] for row in rows(world)) == sorted(keys)


def test_exceptions_are_not_looked_up_user_by_user(world: World) -> None:
    """SQLite seeks one exception per user; PostgreSQL reads those of a stage once, not all before each ordinal."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd(range(10), lacking=[3, 5]))
    explain = "EXPLAIN QUERY PLAN" if world.engine.dialect.name == "sqlite" else "EXPLAIN"
    with world.engine.connect() as connection:
        plan = [str(row[-1]) for row in connection.execute(text(f"{explain} SELECT * FROM user_status"))]
    assert any("exception" in line for line in plan)
    slow = ("SCAN exception", "SCAN before", "first < people.ordinal")
    assert [line for line in plan if any(sign in line for sign in slow)] == []


def test_on_postgresql_nothing_is_looked_up_user_by_user(postgres_url: str) -> None:
    """Whose reasons differ within a stage: parts are spread over their users once, not searched for each of them."""
    world = World(postgres_url)
    with world.engine.connect() as connection:
        plan = [str(row[-1]) for row in connection.execute(text("EXPLAIN SELECT * FROM user_status"))]
    assert any("ProjectSet" in line for line in plan)
    assert [line for line in plan if "SubPlan" in line] == []
    world.close()
