"""A source that hangs keeps nobody from the others: not from looking at them, and not from ending a run."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from criteo_provider.core.ports import Json, Page, Seen
from criteo_provider.flow import drain as draining
from criteo_provider.flow.drain import Housekeeping, Reader, Sender, drain
from criteo_provider.flow.enter import Entered
from criteo_provider.flow.upload import Uploaded
from criteo_provider.sandbox.running import Sandbox
from criteo_provider.settings.canvas import Canvas
from criteo_provider.store.schema import trouble
from criteo_provider.wiring import House, Waiting, glances
from tests.flow.shop import Person, Shop, open_house, sync, write_canvas


class Locked:
    """The shop; while its lock is held, who asks for the canvas `held` waits until it is let go."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.free = threading.Event()
        self.free.set()
        self.threads: list[threading.Thread] = []
        self.ends_the_process = False

    def source(self, canvas: Canvas) -> Any:
        source: Any = self.shop.source(canvas)
        is_ahead, pages = source.is_ahead, source.pages

        def ask() -> None:
            self.threads.append(threading.current_thread())
            if canvas.id == "held":
                self.free.wait()
                if self.ends_the_process:
                    raise SystemExit(1)

        def ask_and_look(position: Json, seen: Seen) -> bool:
            ask()
            return bool(is_ahead(position, seen))

        def ask_and_read(position: Json, **how: Any) -> Iterator[Page]:
            ask()
            yield from pages(position, **how)

        source.is_ahead, source.pages = ask_and_look, ask_and_read
        return source


@pytest.fixture
def locked(shop: Shop) -> Iterator[Locked]:
    locked = Locked(shop)
    yield locked
    locked.free.set()


@pytest.fixture
def open_both(sqlite_url: str, sandbox: Sandbox, locked: Locked, include: Path) -> Callable[[], House]:
    """What opens a house of two canvases, both launched and dry; one is called `held`."""
    write_canvas(include, "held", sync("add", "Shoppers"))
    write_canvas(include, "well", sync("add_too", "Others"))
    open_it = lambda: open_house(include, sqlite_url, sandbox.url, locked.source)  # noqa: E731
    locked.shop.add([Person(1)])
    with closing(open_it()) as house:
        house.drain("fresh", stop=threading.Event(), max_s=60)
        while house.waiting().fresh:  # second looks for late rows included
            house.drain("fresh", stop=threading.Event(), max_s=60)
    locked.threads.clear()
    return open_it


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glances, "GO_ON_AFTER_S", 0.5)
    monkeypatch.setattr(glances, "LOOK_WITHIN_S", 1.0)


def soon(work: Callable[[], Any]) -> Any:
    """Do what must not hang, and give what it returns."""
    done: list[Any] = []
    thread = threading.Thread(target=lambda: done.append(work()), daemon=True)
    thread.start()
    thread.join(30)
    assert done, "it hangs, or failed"
    return done[0]


def looked_until(house: House, wanted: Callable[[Waiting], object]) -> Waiting:
    """Look again and again, until a look finds what is wanted."""
    until_s = time.monotonic() + 30
    while time.monotonic() < until_s:
        waiting: Waiting = soon(house.waiting)
        if wanted(waiting):
            return waiting
        time.sleep(0.05)
    pytest.fail("no look has found it")


def the_probe_is_due(house: House) -> None:
    with house.ledger.engine.begin() as connection:
        connection.execute(update(trouble).values(next_probe_us=0))


def test_looks_share_one_thread_that_ends_with_the_house(open_both: Callable[[], House], locked: Locked) -> None:
    """While sources answer, all are looked at in one thread, always the same: database connections belong to it."""
    with closing(open_both()) as house:
        for _ in range(3):
            assert not house.waiting().fresh
    assert len(locked.threads) == 6
    assert len(set(locked.threads)) == 1
    assert locked.threads[0] is not threading.current_thread()
    locked.threads[0].join(20)
    assert not locked.threads[0].is_alive()


@pytest.mark.usefixtures("_impatient")
def test_a_source_that_hangs_is_told_and_the_others_are_looked_at(
    open_both: Callable[[], House], locked: Locked
) -> None:
    """A look without an answer is a trouble like any other; no second one is begun before the first has ended."""
    locked.free.clear()
    with closing(open_both()) as house:
        waiting = looked_until(house, lambda waiting: waiting.problems)
        assert len(waiting.problems) == 1
        assert waiting.problems[0].startswith("Canvas held: The source has not answered within 1 s")
        assert [(row.scope, row.key) for row in house.ledger.troubles()] == [("source", "held")]
        locked.shop.add([Person(2)])
        assert looked_until(house, lambda waiting: waiting.fresh)
        the_probe_is_due(house)
        assert soon(house.waiting).problems == waiting.problems
    with closing(open_both()) as house:
        the_probe_is_due(house)
        assert soon(house.waiting).problems == waiting.problems
        hung = locked.threads[0]
        assert locked.threads.count(hung) == 1
        asked = len(locked.threads)
        locked.free.set()
        hung.join(20)
        the_probe_is_due(house)
        assert looked_until(house, lambda waiting: waiting.fresh).problems == ()
        assert len(locked.threads) > asked, "an answer of long ago is not believed"


def test_a_slow_source_is_waited_for_by_nobody_and_heard_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that comes late, and in time, counts at the next look; meanwhile the source is not in trouble."""
    monkeypatch.setattr(glances, "GO_ON_AFTER_S", 0.0)
    free = threading.Event()
    with closing(glances.Glances()) as looks:
        assert looks.is_ahead("slow", free.wait) is None
        assert looks.is_ahead("slow", lambda: pytest.fail("a second look on top of the first")) is None
        free.set()
        until_s = time.monotonic() + 30
        while (answer := looks.is_ahead("slow", lambda: pytest.fail("the first look has its answer"))) is None:
            assert time.monotonic() < until_s
        assert answer is True


@pytest.mark.usefixtures("_impatient")
def test_a_look_that_hangs_for_an_hour_is_forgotten(
    open_both: Callable[[], House], locked: Locked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that went away without a word does not keep its source from being looked at for ever."""
    locked.free.clear()
    with closing(open_both()) as house:
        looked_until(house, lambda waiting: waiting.problems)
        asked = len(locked.threads)
        monkeypatch.setattr(glances, "FORGOTTEN_AFTER_S", 0.0)
        the_probe_is_due(house)
        soon(house.waiting)
        assert len(locked.threads) == asked + 2


def test_code_that_ends_the_process_breaks_its_own_source_only(open_both: Callable[[], House], locked: Locked) -> None:
    """`sys.exit()` in what a team has written is a source that fails."""
    locked.ends_the_process = True
    locked.shop.add([Person(2)])
    with closing(open_both()) as house:
        waiting = house.waiting()
        assert waiting.fresh
        assert len(waiting.problems) == 1
        assert "SystemExit" in waiting.problems[0]


# --- runs end


def test_a_run_ends_though_a_source_hangs_and_nobody_is_lost_or_doubled(
    open_both: Callable[[], House], locked: Locked, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reader is left behind with a trouble; what it seals when the source answers after all is sent once."""
    monkeypatch.setattr(draining, "LEAVE_READERS_AFTER_S", 0.2)
    locked.free.clear()
    locked.shop.add([Person(2)])
    with closing(open_both()) as house:
        soon(lambda: house.drain("fresh", stop=threading.Event(), max_s=3))
        assert {one.step: one.entered for one in house.numbers()} == {"add": 1, "add_too": 2}
        (row,) = house.ledger.troubles()
        assert (row.scope, row.key) == ("source", "held")
        assert "has not come to an end" in row.sentence
        readers = [thread for thread in threading.enumerate() if thread.name == "criteo-read"]
    locked.free.set()
    for reader in readers:
        reader.join(20)
    with closing(open_both()) as house:
        house.drain("fresh", stop=threading.Event(), max_s=60)
        assert {one.step: (one.entered, one.synced) for one in house.numbers()} == {"add": (2, 2), "add_too": (2, 2)}
        assert house.prove() == []
        assert house.ledger.troubles() == []
    assert {segment["name"]: segment["size"] for segment in sandbox.state()["segments"]} == {"Shoppers": 2, "Others": 2}


class Stuck:
    """What reads a source that never answers."""

    def __init__(self) -> None:
        self.done = Entered()
        self.free = threading.Event()

    def tick(self, _stop: threading.Event) -> Entered:
        self.free.wait()
        return Entered()


class Settling:
    """An upload whose last request takes its time."""

    def __init__(self) -> None:
        self.done = Uploaded()
        self.is_flying = False
        self.settled = False

    def run(self, stop: threading.Event, _busy: Callable[[], None]) -> None:
        stop.wait()
        time.sleep(0.5)
        self.settled = True


def test_readers_are_left_behind_and_senders_never(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """However short the patience with readers, a drain ends after its senders have settled what they claimed."""
    monkeypatch.setattr(draining, "LEAVE_READERS_AFTER_S", 0.0)
    caplog.set_level(logging.WARNING)
    stuck, upload, told = Stuck(), Settling(), list[str]()
    readers = [
        Reader(stuck, "vip", lambda: 1.0, lambda: True, lambda: None, failed=told.append) for _ in ("front", "backlog")
    ]
    soon(
        lambda: drain(
            readers, {"criteo": Sender(upload, lambda: 0)}, Housekeeping(lambda: 0, lambda: 0, lambda: True),  # type: ignore[arg-type]
            quiet_s=lambda: 0.0, stop=threading.Event(), ending=threading.Event(), max_s=0.1,
        )
    )  # fmt: skip
    assert upload.settled
    assert len(told) == 1, "two readers of one canvas, one trouble"
    assert len([record for record in caplog.records if "vip" in record.getMessage()]) == 1
    stuck.free.set()
