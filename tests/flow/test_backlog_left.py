"""A backlog that cannot be read: told once, beside whoever comes fresh, and nobody of it is left behind unseen."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from criteo_provider.core.errors import SourceFailed
from criteo_provider.core.ports import Source
from criteo_provider.sandbox.running import Sandbox
from criteo_provider.settings.canvas import Canvas
from criteo_provider.sources.files import FilesSource
from criteo_provider.sources.sql import SqlSource
from criteo_provider.wiring import House
from tests.flow.shop import Person, Shop, open_house, sync, write_canvas
from tests.flow.test_held_back import the_probe_is_due

LAST = 30


@pytest.fixture
def include(tmp_path: Path) -> Path:
    """A folder with one canvas."""
    write_canvas(tmp_path / "include", "vip", sync("add", "Shoppers"))
    return tmp_path / "include"


@pytest.fixture
def house(ledger_url: str, sandbox: Sandbox, shop: Shop, include: Path) -> Iterator[House]:
    """A launched canvas with ten people entered, and twenty more in a backlog that was set aside."""
    shop.add(Person(number) for number in range(1, 11))
    with closing(open_house(include, ledger_url, sandbox.url, shop.source)) as house:
        drain(house)
        shop.add(Person(number) for number in range(11, LAST + 1))
        hold = house.ledger.hold_cursor("vip", "me", now_us=house.now_us(), lease_s=30)
        assert hold is not None
        hold = house.ledger.backlogs.set_aside(hold, [LAST], now_us=house.now_us())
        house.ledger.release_cursor(hold)
        house.take_news()
        yield house


def drain(house: House) -> None:
    """Let the high-frequency DAG do its work."""
    house.drain("fresh", stop=threading.Event(), max_s=60)
    assert house.prove() == []


def entered(house: House) -> int:
    """How many people have entered."""
    (numbers,) = house.numbers()
    return numbers.entered


def eligible(last: int) -> int:
    """How many of the people up to a number said yes."""
    return sum(Person(number).ads == 1 for number in range(1, last + 1))


def test_a_backlog_that_cannot_be_read_is_told_once(house: House, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it is tried: one message that it is broken and one that it is over, and fresh people enter."""

    def broken(*_: Any, **__: Any) -> Any:
        raise SourceFailed("Half of the table is away.")

    with monkeypatch.context() as patch:
        patch.setattr(SqlSource, "between", broken)
        for number in range(3):
            shop.add([Person(LAST + 1 + number)])
            drain(house)
            assert [(row.scope, row.key) for row in house.ledger.troubles()] == [("source", "vip")]
            the_probe_is_due(house)
    assert len(house.take_news()) == 1
    assert entered(house) == eligible(10) + eligible(LAST + 3) - eligible(LAST)
    drain(house)
    assert len(house.take_news()) == 1
    assert house.ledger.troubles() == []
    assert entered(house) == eligible(LAST + 3)


def test_a_source_of_another_kind_does_not_leave_a_backlog_behind(
    house: House, ledger_url: str, sandbox: Sandbox, shop: Shop, include: Path, tmp_path: Path
) -> None:
    """Only the source people were set aside of can give them: another kind is refused until they entered."""
    file = include / "canvases" / "vip.yaml"
    before = file.read_text()
    declared = yaml.safe_load(before)
    (tmp_path / "people").mkdir()
    declared["entry"]["source"] = {"files": {"path": str(tmp_path / "people")}}
    file.write_text(yaml.safe_dump(declared))

    def files(canvas: Canvas) -> Source:
        return FilesSource(tmp_path / "people", columns=canvas.entry.columns, now_us=lambda: 0)

    with closing(open_house(include, ledger_url, sandbox.url, files)) as changed:
        waiting = changed.waiting()
        assert not waiting.fresh
        assert len(waiting.problems) == 1
        assert "Put `source.sql` back until they have entered" in waiting.problems[0]
        the_probe_is_due(changed)
        drain(changed)
        assert [(row.scope, row.key) for row in changed.ledger.troubles()] == [("source", "vip")]
    file.write_text(before)
    with closing(open_house(include, ledger_url, sandbox.url, shop.source)) as put_back:
        the_probe_is_due(put_back)
        assert put_back.waiting().fresh
        drain(put_back)
        assert put_back.ledger.troubles() == []
        assert entered(put_back) == eligible(LAST)
