"""What canvases have left behind may be deleted: it breaks no run, once nobody waits there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from criteo_provider.core.errors import Misconfigured
from criteo_provider.sandbox.running import Sandbox
from criteo_provider.wiring import CriteoConnection, House
from tests.flow.shop import Person, Shop, open_house, sync, write_canvas
from tests.flow.test_house import drain, numbers

DELETED = "criteo_old"


@pytest.fixture
def file(include: Path, shop: Shop) -> Path:
    """A canvas on a connection that will be deleted."""
    file = write_canvas(include, "vip", sync("add", "Shoppers"))
    move(file, DELETED)
    shop.add(Person(number) for number in range(1, 11))
    return file


def move(file: Path, conn_id: str) -> None:
    """Let a canvas use another connection."""
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "connection": conn_id}))


@contextmanager
def house_without(house: House) -> Iterator[House]:
    """Open a house of the same surroundings, where the connection is deleted in Airflow."""
    around, connection = house.around, house.around.criteo("any")

    def criteo(conn_id: str) -> CriteoConnection:
        if conn_id == DELETED:
            raise Misconfigured(f"Connection {conn_id} is not in Airflow.")
        return connection

    with closing(House(replace(around, criteo=criteo))) as house:
        yield house


def test_a_connection_no_canvas_uses_any_more_may_be_deleted(
    ledger_url: str, sandbox: Sandbox, shop: Shop, include: Path, file: Path
) -> None:
    """A canvas moves, the connection of before is deleted: no run of either DAG finds anything broken."""
    with closing(open_house(include, ledger_url, sandbox.url, shop.source)) as before:
        drain(before)
        move(file, "criteo_default")
        with house_without(before) as house:
            shop.add([Person(11)])
            drain(house)
            drain(house, "retry")
            assert numbers(house)["add"][3] == 0
            assert house.ledger.troubles() == []
            assert house.take_news() == []


def test_a_deleted_connection_people_wait_for_is_a_trouble(
    ledger_url: str, sandbox: Sandbox, shop: Shop, include: Path, file: Path
) -> None:
    """Whoever entered for it is pending, which is told; once those people are dropped it is over, told once."""
    with closing(open_house(include, ledger_url, sandbox.url, shop.source)) as before:
        drain(before)
        with house_without(before) as house:
            shop.add([Person(11)])
            drain(house)
            assert len(house.take_news()) == 1
        move(file, "criteo_default")
        with house_without(before) as house:
            drain(house)
            assert [(row.scope, row.key) for row in house.ledger.troubles()] == [("connection", DELETED)]
            assert house.take_news() == []
        file.rename(include / "kept.yaml")
        with house_without(before) as house:
            assert house.drop("vip", "add") == 1
        (include / "kept.yaml").rename(file)
        with house_without(before) as house:
            drain(house)
            assert house.ledger.troubles() == []
            assert house.take_news() == [
                f"Over, connection {DELETED} is not used any more. It was: Connection {DELETED} is not in Airflow."
            ]
