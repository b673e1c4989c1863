"""The onlooker: it reads, shares what it has seen, makes nothing, and says why when it sees nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from criteo_provider.core.errors import Unavailable
from criteo_provider.core.model import Role
from criteo_provider.core.outcome import outcome_of
from criteo_provider.store.engine import open_engine
from criteo_provider.ui import onlooker as room
from criteo_provider.ui.onlooker import Onlooker
from criteo_provider.wiring import House, Surroundings
from tests.ui import scene
from tests.world import World


class Opener:
    """Opens houses, and counts; raises ``trouble`` if there is one."""

    def __init__(self, surroundings: Surroundings) -> None:
        self.surroundings = surroundings
        self.opened: list[House] = []
        self.trouble: Exception | None = None

    def __call__(self) -> House:
        if self.trouble:
            raise self.trouble
        self.opened.append(House(self.surroundings))
        return self.opened[-1]


@pytest.fixture
def opener(surroundings: Surroundings) -> Opener:
    return Opener(surroundings)


@pytest.fixture
def onlooker(opener: Opener) -> Iterator[Onlooker]:
    """An onlooker that looks anew each time."""
    watch = Onlooker(opener)
    yield watch
    watch.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing seen is shown twice."""
    monkeypatch.setattr(room, "REFRESH_S", 0.0)
    monkeypatch.setattr(room, "REST_PER_LOOK", 0)


@pytest.mark.usefixtures("ledger")
def test_one_look_for_all(onlooker: Onlooker, opener: Opener) -> None:
    """Many viewers at once cost one look."""
    seen = []
    viewers = [threading.Thread(target=lambda: seen.append(onlooker.overview())) for _ in range(8)]
    for viewer in viewers:
        viewer.start()
    for viewer in viewers:
        viewer.join()
    assert len(seen) == 8
    assert all(each is seen[0] for each in seen)
    assert len(opener.opened) == 1


@pytest.mark.usefixtures("ledger", "impatient")
def test_the_house_stays_open(onlooker: Onlooker, opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """The house is opened once for many looks, and anew after a while."""
    for _ in range(3):
        assert onlooker.overview().no_ledger is None
    assert len(opener.opened) == 1
    monkeypatch.setattr(room, "REOPEN_AFTER_S", -1.0)
    onlooker.overview()
    assert len(opener.opened) == 2


@pytest.mark.usefixtures("ledger", "impatient")
def test_an_edited_file_shows_at_once(onlooker: Onlooker, include: Path) -> None:
    """A canvas file that is mended is no problem any more at the next look."""
    assert [each.where for each in onlooker.overview().problems if "yaml" in each.where] == [
        "include/canvases/broken.yaml"
    ]
    (include / "canvases" / "broken.yaml").unlink()
    assert [each.where for each in onlooker.overview().problems if "yaml" in each.where] == []


@pytest.mark.usefixtures("impatient")
def test_a_ledger_that_is_not_there_is_not_made(onlooker: Onlooker, surroundings: Surroundings, include: Path) -> None:
    """Where no ledger is, the page says so and makes no file; problems of canvas files still show."""
    seen = onlooker.overview()
    assert seen.no_ledger is not None
    assert "There is no ledger file" in seen.no_ledger
    assert "criteo_ledger" in seen.no_ledger
    assert seen.canvases == ()
    assert [each.where for each in seen.problems] == ["include/canvases/broken.yaml"]
    assert not (include.parent / "ledger.db").exists()
    scene.make_ledger(surroundings.ledger_url, include)
    assert onlooker.overview().no_ledger is None


def test_an_empty_database_stays_empty(onlooker: Onlooker, opener: Opener, ledger_url: str) -> None:
    """A database without a ledger is not given one by looking at it, on either engine."""
    opener.surroundings = replace(opener.surroundings, ledger_url=ledger_url)
    engine = open_engine(ledger_url)
    with engine.connect() as connection:
        assert engine.dialect.get_table_names(connection) == []  # and now SQLite has an empty file, too
        seen = onlooker.overview()
        assert seen.no_ledger == "The ledger is empty: the DAG criteo_audience_sync has not run yet."
        assert engine.dialect.get_table_names(connection) == []
    engine.dispose()


def test_the_scene_on_both_engines(onlooker: Onlooker, opener: Opener, ledger_url: str, include: Path) -> None:
    """Names, numbers, reasons and people on their way come from the ledger, on either engine."""
    opener.surroundings = replace(opener.surroundings, ledger_url=ledger_url)
    scene.make_ledger(ledger_url, include)
    canvases = {canvas.id: canvas for canvas in onlooker.overview().canvases}
    first, second = canvases["high_value_targeting"].steps
    assert (first.numbers or {})["synced"] == 49
    assert first.reasons == {"no usable identifier: missing": 5, "refused by Criteo": 1}
    assert (first.criteo_id, second.on_their_way) == ("7001", 1_255)
    assert canvases["lookalike_seed"].steps[0].numbers is None
    assert canvases["winter_offer"].owner == "growth-team"


def test_an_outage_is_shown_though_nobody_is_stopped(onlooker: Onlooker, opener: Opener, ledger: str) -> None:
    """Where no request gets through for longer than a minute, the page says so, at the connection and at its steps."""
    world = World(ledger)
    world.now_us = time.time_ns() // 1_000 - 120_000_000
    claimed = world.claim(Role.RETRY)
    while claimed is None:
        world.pass_time(10)
        claimed = world.claim()
    world.settle(claimed, outcome_of(502, {}, b"", now_s=0))
    world.close()
    seen = onlooker.overview()
    (told,) = [one for one in seen.problems if one.where == "Connection criteo_default"]
    assert told.what.startswith("The last request did not get through to Criteo; ")
    assert told.since is not None
    states = {step.id: step.state for canvas in seen.canvases for step in canvas.steps}
    assert states["add_vip"].kind == "trouble"
    assert told.what in states["add_vip"].text


@pytest.mark.usefixtures("ledger")
def test_looking_at_the_pace_makes_no_pacer(onlooker: Onlooker, include: Path) -> None:
    """How often people are sent is told without a line for requests being made that nobody has sent yet."""
    assert onlooker.overview().pace == ("Connection criteo_default: flush every 5 s.",)
    assert [file.name for file in include.parent.glob("*.db")] == ["ledger.db"]


@pytest.mark.usefixtures("ledger")
def test_a_foreign_ledger_shows_no_numbers(onlooker: Onlooker, opener: Opener) -> None:
    """A SQLite ledger under an executor that spreads tasks over hosts is refused with the mend."""
    opener.surroundings = replace(opener.surroundings, executor="CeleryExecutor")
    seen = onlooker.overview()
    assert seen.no_ledger is not None
    assert "CeleryExecutor" in seen.no_ledger
    assert "criteo_ledger" in seen.no_ledger
    assert seen.canvases == ()


@pytest.mark.usefixtures("ledger", "impatient")
def test_errors_are_said_and_pass(onlooker: Onlooker, opener: Opener, caplog: pytest.LogCaptureFixture) -> None:
    """Our own errors are shown as they are, a driver's by name only; each is logged once, and it heals by itself."""
    opener.trouble = Unavailable("Airflow does not say whether the connection exists.")
    assert onlooker.overview().no_ledger == str(opener.trouble)
    opener.trouble = OperationalError("connect", {}, Exception("host db.internal, user ada, password hunter2"))
    for _ in range(3):
        sentence = onlooker.overview().no_ledger
        assert sentence == "The ledger cannot be read (OperationalError). This page tries again by itself."
    opener.trouble = None
    assert onlooker.overview().no_ledger is None
    said = [record.getMessage() for record in caplog.records if record.name == room.__name__]
    assert len(said) == 2
    assert "hunter2" not in caplog.text


@pytest.mark.usefixtures("ledger", "impatient")
def test_a_ledger_that_does_not_answer(onlooker: Onlooker, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one look hangs, other viewers are shown what was seen last, or told that there is no answer."""
    monkeypatch.setattr(room, "PATIENCE_S", 0.01)
    with onlooker._lock:
        assert onlooker.overview().no_ledger == "The ledger does not answer. This page tries again by itself."
    seen = onlooker.overview()
    with onlooker._lock:
        assert onlooker.overview() is seen


@pytest.mark.usefixtures("ledger")
def test_a_costly_look_is_taken_less_often(onlooker: Onlooker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages come back the later the longer a look takes."""
    monkeypatch.setattr(room, "REST_PER_LOOK", 1_000_000)
    assert onlooker.overview().refresh_s > 100
