"""A source whose look is slow is looked at less often by whoever looks every second, and by nobody else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from criteo_provider.sandbox.running import Sandbox
from criteo_provider.wiring import House, glances
from tests.flow.shop import Person, Shop, open_house, sync, write_canvas

FOR_EVER_S = 3600.0


class Counted:
    """A look that finds nothing, and how often it was taken."""

    def __init__(self, *, lasts_s: float = 0.0) -> None:
        self.taken = 0
        self.lasts_s = lasts_s

    def __call__(self) -> bool:
        self.taken += 1
        time.sleep(self.lasts_s)
        return False


@pytest.fixture
def looks() -> Iterator[glances.Glances]:
    with closing(glances.Glances()) as looks:
        yield looks


def test_a_slow_source_rests_after_two_slow_looks(looks: glances.Glances) -> None:
    """Two slow looks in a row and it is left alone, for 50 times as long as the quicker of them took."""
    slow = Counted(lasts_s=0.05)
    answers = [looks.is_ahead("slow", slow, rest_s=FOR_EVER_S) for _ in range(3)]
    assert answers == [False, False, None]
    assert slow.taken == 2
    time.sleep(0.05)
    assert looks.is_ahead("slow", slow, rest_s=FOR_EVER_S) is None
    assert looks.is_ahead("slow", slow, rest_s=0.05) is False, "nothing rests longer than its flush interval"
    assert slow.taken == 3


def test_one_slow_look_is_an_accident(looks: glances.Glances) -> None:
    """What opens a connection or meets a busy moment is slow once; people are not to wait for that."""
    slow, next_one = Counted(lasts_s=0.2), Counted()
    assert looks.is_ahead("shaky", slow, rest_s=FOR_EVER_S) is False
    assert looks.is_ahead("shaky", next_one, rest_s=FOR_EVER_S) is False
    assert (slow.taken, next_one.taken) == (1, 1)


def test_only_the_slow_one_rests_and_only_for_who_looks_every_second(
    looks: glances.Glances, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others are looked at, and so is the slow one by somebody who asks once."""
    monkeypatch.setattr(glances, "SHARE_OF_TIME", 1e-9)
    slow, other = Counted(), Counted()
    for _ in range(2):
        looks.is_ahead("slow", slow, rest_s=FOR_EVER_S)
    assert looks.is_ahead("slow", slow, rest_s=FOR_EVER_S) is None
    assert looks.is_ahead("other", other, rest_s=FOR_EVER_S) is False
    assert looks.is_ahead("slow", slow) is False
    assert (slow.taken, other.taken) == (3, 1)


@pytest.fixture
def open_slow(sqlite_url: str, sandbox: Sandbox, shop: Shop, include: Path) -> Callable[[], House]:
    """What opens a house with one canvas, flushed every hour, whose people are all sent."""
    file = write_canvas(include, "vip", sync("add", "Shoppers"))
    open_it = partial(open_house, include, sqlite_url, sandbox.url, shop.source)
    shop.add([Person(1)])
    with closing(open_it()) as house:
        house.drain("fresh", stop=threading.Event(), max_s=60)
        while house.waiting().fresh:  # second looks for late rows included
            house.drain("fresh", stop=threading.Event(), max_s=60)
    file.write_text(file.read_text().replace("flush: 1s", "flush: 1h"))
    return open_it


def test_people_of_a_slow_source_come_at_the_end_of_its_rest(
    open_slow: Callable[[], House], shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sparing look does not find them before, any other look does, and so does a sparing one after the rest."""
    monkeypatch.setattr(glances, "SHARE_OF_TIME", 1e-9)
    with closing(open_slow()) as house:
        assert [house.waiting(sparing=True).fresh for _ in range(2)] == [False, False]
        shop.add([Person(2)])
        resting = house.waiting(sparing=True)
        assert (resting.fresh, resting.problems) == (False, ())
        assert house.waiting().fresh
        monkeypatch.setattr(glances, "SHARE_OF_TIME", 1e9)
        assert house.waiting(sparing=True).fresh
