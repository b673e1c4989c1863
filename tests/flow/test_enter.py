"""Enter: who comes in, what is kept of them, and what happens when a source fails or is read twice."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from criteo_provider.core import eligibility
from criteo_provider.core.errors import SourceFailed
from criteo_provider.core.model import Reason
from criteo_provider.core.ports import Json, Look, MaxRows, Page, Seen
from criteo_provider.flow.enter import Enter, Entered, EntryPlan
from criteo_provider.flow.packing import FieldColumn
from tests.world import World, canvas, step

GOING_ON = threading.Event()
DEVICE = "3f097372-f01e-4b64-984c-395ae5828ee6"


class Rows:
    """A source over rows of (key, email, device, consent); a page for each ``page`` of them."""

    def __init__(self, rows: list[tuple[object, ...]], *, page: int = 100, breaks_at: int | None = None) -> None:
        self.rows, self.page, self.breaks_at = rows, page, breaks_at
        self.late: list[tuple[object, ...]] = []
        self.look: Look | None = None
        self.unit: str | None = None

    def is_ahead(self, position: Json, seen: Seen) -> bool:
        return int(position or 0) < len(self.rows)  # type: ignore[arg-type]

    def pages(self, position: Json, *, max_rows: MaxRows, seen: Seen) -> Generator[Page]:
        at = int(position or 0)  # type: ignore[arg-type]
        if self.unit is not None and self.unit in seen([self.unit]):
            return
        while at < len(self.rows):
            if self.breaks_at is not None and at >= self.breaks_at:
                raise SourceFailed("The shop does not answer.")
            rows = self.rows[at : at + min(self.page, max_rows())]
            at += len(rows)
            done = (self.unit,) if self.unit and at == len(self.rows) else ()
            yield Page(columns(rows), len(rows), at, done, self.look)

    def recheck(self, look: Look) -> Iterator[tuple[Page, Look | None]]:
        late, self.late = self.late, []
        yield Page(columns(late), len(late), None), None


def columns(rows: list[tuple[object, ...]]) -> dict[str, list[object]]:
    """Turn rows around."""
    return {name: [row[number] for row in rows] for number, name in enumerate(("key", "email", "device", "ok"))}


def reader(world: World, source: Rows, *, canvas_id: str = "vip", owner: str = "me") -> Enter:
    """An Enter over ``source``, for a canvas the world has declared."""
    plan = EntryPlan(
        canvas_id,
        "key",
        (FieldColumn("email", "email"), FieldColumn("madid", "device")),
        eligibility.compile({"ok": True}),
        world.plans[canvas_id],
    )
    return Enter(plan, source, world.ledger, lambda: world.now_us, owner)


@pytest.fixture
def world(ledger_url: str) -> Iterator[World]:
    """A ledger with one canvas that sends addresses and devices."""
    world = World(ledger_url)
    world.declare(canvas("vip", step("add", fields=("email", "madid"))))
    yield world
    world.close()


def test_who_is_not_eligible_leaves_no_trace(tmp_path: Path) -> None:
    """NULL, false and unreadable consent never enter; not one byte of them is in the ledger's files."""
    world = World(f"sqlite:///{tmp_path / 'ledger.db'}")
    world.declare(canvas("vip", step("add", fields=("email", "madid"))))
    rows = [
        ("key-of-a-stranger", "stranger@example.com", DEVICE, None),
        ("key-of-a-refuser", "refuser@example.com", None, False),
        ("key-of-a-riddle", "riddle@example.com", None, "perhaps"),
        ("key-of-a-friend", "friend@example.com", None, True),
    ]
    assert reader(world, Rows(rows)).tick(GOING_ON) == Entered(rows=4, people=1, chunks=1)
    assert world.numbers("add") == (1, 0, 0, 1, 0)
    assert world.ledger.position("vip") == 4
    world.close()
    kept = b"".join(file.read_bytes() for file in tmp_path.glob("ledger.db*"))
    assert b"key-of-a-friend" in kept
    for trace in (b"stranger", b"refuser", b"riddle", sha256(b"stranger@example.com").digest()):
        assert trace not in kept


def test_no_address_is_ever_kept(tmp_path: Path) -> None:
    """An address is kept as its digest, also where it is the user key, and is looked up the same way."""
    world = World(f"sqlite:///{tmp_path / 'ledger.db'}")
    world.declare(canvas("vip", step("add", fields=("email", "madid"))))
    reader(world, Rows([(" Anna@Example.com ", "anna@example.com", None, True)])).tick(GOING_ON)
    assert list(world.statuses("add")) == [sha256(b"anna@example.com").hexdigest()]
    world.close()
    kept = b"".join(file.read_bytes() for file in tmp_path.glob("ledger.db*")).lower()
    assert b"@example.com" not in kept


def test_several_identifiers_make_one_status(world: World) -> None:
    """A user with address and device is one user: Pending while one is open, Synced once one is accepted."""
    rows = [("a", "a@example.com", DEVICE, True), ("b", "b@example.com", None, True), ("c", None, None, True)]
    reader(world, Rows(rows)).tick(GOING_ON)
    assert world.numbers("add") == (3, 0, 1, 2, 0)
    first = world.claim()
    assert first is not None
    world.settle(first)
    assert world.statuses("add")["a"] == "Synced"
    second = world.claim()
    assert second is not None
    assert {first.identifier_type, second.identifier_type} == {"email", "madid"}
    world.settle(second)
    assert world.numbers("add") == (3, 2, 1, 0, 0)


def test_what_cannot_be_sent_is_told_by_reason(world: World) -> None:
    """Nothing, blanks and malformed values are Not Synced with their reason, and never sent."""
    rows = [
        ("a", None, None, True),
        ("b", "  ", None, True),
        ("c", "not an address", "x", True),
        ("d", "d@example.com", None, True),
    ]
    reader(world, Rows(rows)).tick(GOING_ON)
    numbers = world.ledger.numbers(now_us=world.now_us)[0]
    assert numbers.not_synced_reasons == {Reason.MISSING: 1, Reason.BLANK: 1, Reason.MALFORMED: 1}
    claimed = world.claim()
    assert claimed is not None
    assert world.sent(claimed) == [sha256(b"d@example.com").digest()]
    world.settle(claimed)


def test_a_row_without_a_key_is_left_out_and_said(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """No user key, no user: the row is counted in a warning, the others enter."""
    rows = [(None, "x@example.com", None, True), ("b", "b@example.com", None, True)]
    assert reader(world, Rows(rows)).tick(GOING_ON).people == 1
    assert "1 rows without a value in 'key'" in caplog.text
    assert "example.com" not in caplog.text


def test_a_failing_source_keeps_what_was_sealed_and_its_cursor(world: World) -> None:
    """What was read before the failure is entered at most once; after it, reading goes on behind the cursor."""
    people = [(f"u{number}", f"u{number}@example.com", None, True) for number in range(90)]
    source = Rows(people, page=30, breaks_at=60)
    with pytest.raises(SourceFailed):
        reader(world, source).tick(GOING_ON)
    stood = world.ledger.position("vip")
    assert world.numbers("add")[0] == (stood or 0)
    assert not world.ledger.may_probe("source", "vip", now_us=world.now_us)
    source.breaks_at = None
    reader(world, source).tick(GOING_ON)
    assert world.numbers("add")[0] == 90
    assert len(world.statuses("add")) == 90


def test_two_readers_of_one_source_enter_nobody_twice(world: World) -> None:
    """While one reads, the other does nothing; a reader whose lease ran out loses its seal, and no more."""
    people = [(f"u{number}", f"u{number}@example.com", None, True) for number in range(50)]
    slow, quick = Rows(people), Rows(people)
    pages = slow.pages

    def overtaken(position: Json, *, max_rows: MaxRows, seen: Seen) -> Generator[Page]:
        assert reader(world, quick, owner="quick").tick(GOING_ON) == Entered()
        for page in pages(position, max_rows=max_rows, seen=seen):
            world.pass_time(3600)
            assert reader(world, quick, owner="quick").tick(GOING_ON).people == 50
            yield page

    slow.pages = overtaken  # type: ignore[method-assign]
    assert reader(world, slow, owner="slow").tick(GOING_ON).people == 0
    assert world.numbers("add")[0] == 50
    assert len(world.statuses("add")) == 50


def test_late_rows_enter_once(world: World) -> None:
    """What a second look finds is entered, the cursor stays, and the look is over."""
    source = Rows([("a", "a@example.com", None, True)])
    source.look = Look(0, 1, b"", due_after_s=3)
    entering = reader(world, source)
    assert entering.tick(GOING_ON).people == 1
    source.late = [("late", "late@example.com", None, True)]
    assert entering.tick(GOING_ON).people == 0
    world.pass_time(4)
    assert entering.tick(GOING_ON).people == 1
    assert world.ledger.position("vip") == 1
    source.late = [("late", "late@example.com", None, True)]
    assert entering.tick(GOING_ON).people == 0
    assert sorted(world.statuses("add")) == ["a", "late"]


def test_a_finished_file_is_known(world: World) -> None:
    """A unit that was read to its end is reported as seen from the seal on."""
    source = Rows([("a", "a@example.com", None, True)])
    source.unit = "people-2026-11-01.csv"
    reader(world, source).tick(GOING_ON)
    assert world.ledger.completed_units("vip", ["people-2026-11-01.csv", "other"]) == {"people-2026-11-01.csv"}
