"""What people decide about ad accounts, kept in the ledger."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import text

from criteo_provider.store.accounts import STALE_AFTER_US, AccountBook, Checkup, UsedAudience, UsedBy
from criteo_provider.store.engine import open_engine, writing
from criteo_provider.store.migrate import upgrade
from criteo_provider.store.troubles import NEVER_US
from tests.world import START_US, World, canvas, crowd, step

CONNECTION = "criteo_default"
NAMES = {"1001": "Example Shop", "1002": "Example Shop DE"}


@pytest.fixture
def world(ledger_url: str) -> Iterator[World]:
    world = World(ledger_url)
    yield world
    world.close()


@pytest.fixture
def book(world: World) -> AccountBook:
    return AccountBook(world.ledger.engine)


def test_a_decision_is_kept_with_who_and_when(book: AccountBook) -> None:
    """The latest decision about an ad account stands, with its author; choosing what is chosen changes nothing."""
    assert book.choose(CONNECTION, NAMES, by="ada", now_us=1) == ["1001", "1002"]
    assert book.choose(CONNECTION, NAMES, by="bob", now_us=2) == []
    book.disconnect(CONNECTION, {"1002": "Example Shop DE"}, by="bob", now_us=3)
    book.choose("criteo_other", {"1001": "Example Shop"}, by="cyd", now_us=4)
    decided = [(one.ad_account, one.name, one.chosen, one.by, one.at_us) for one in book.decisions(CONNECTION)]
    assert decided == [
        ("1001", "Example Shop", True, "ada", 1),
        ("1002", "Example Shop DE", False, "bob", 3),
    ]
    assert len(book.decisions()) == 3
    assert book.choose(CONNECTION, NAMES, by="ada", now_us=5) == ["1002"]


def test_the_last_check_is_kept(book: AccountBook) -> None:
    """A check replaces the one before, and names the ad accounts that consented."""
    book.keep_checkup(Checkup(CONNECTION, 1, "unavailable", "Criteo does not answer.", {}))
    last = Checkup(CONNECTION, 2, "ok", "Connected.", NAMES)
    book.keep_checkup(last)
    assert book.checkups() == {CONNECTION: last}


def test_one_hand_over_at_a_time(book: AccountBook) -> None:
    """While one is going on nobody begins another, unless its process has died; a failed one may be tried again."""
    begin = lambda now_us: book.begin_handover(CONNECTION, NAMES, by="ada", total=0, now_us=now_us)  # noqa: E731
    assert begin(1)
    assert not begin(2)
    assert book.note_handover(CONNECTION, 1, ["one"], total=2, now_us=3)
    seen = book.handover(CONNECTION)
    assert seen is not None
    assert (seen.done, seen.total, seen.failures, seen.choice, seen.is_running(4)) == (1, 2, ("one",), NAMES, True)
    assert not seen.is_running(4 + STALE_AFTER_US)
    assert begin(4 + STALE_AFTER_US)
    book.fail_handover(CONNECTION, ["one", "two"])
    assert begin(5 + STALE_AFTER_US)
    book.forget_handover(CONNECTION)
    assert book.handover(CONNECTION) is None
    assert not book.note_handover(CONNECTION, 2, [], total=2, now_us=6)


def test_who_needs_an_ad_account(world: World, book: AccountBook) -> None:
    """A step needs its ad account while it is declared or holds people; only known audiences are checked."""
    world.declare(
        canvas("spring", step("add_spring", audience="Spring")), canvas("winter", step("add", audience="Winter"))
    )
    world.enter("winter", crowd(range(3)))
    world.declare(canvas("spring", step("add_spring", audience="Spring")))
    (spring,) = [one for one in book.used() if one.canvas == "spring"]
    assert spring == UsedBy(spring.connection_id, spring.ad_account, "spring", "add_spring")
    assert [one.canvas for one in book.used()] == ["spring", "winter"]
    known = book.used_audiences(spring.connection_id, [spring.ad_account])
    assert [one.name for one in known] == ["Spring", "Winter"]
    assert isinstance(known[0], UsedAudience)
    assert book.used_audiences(spring.connection_id, ["another"]) == []
    with writing(world.ledger.engine) as connection:
        connection.execute(text("UPDATE audience SET criteo_id = NULL"))
    assert book.used_audiences(spring.connection_id, [spring.ad_account]) == []


def test_only_a_person_ends_a_disconnection(world: World) -> None:
    """Neither an answer that was under way nor a refusal touches it, and it is not probed; it is told once."""
    world.declare(canvas("spring", step("add", audience="Spring")))
    audience = world.plans["spring"][0].audience_id
    ((conn_id, accounts),) = world.ledger.connections().items()
    key = f"{conn_id}/{next(iter(accounts))}"
    trouble = lambda code: world.ledger.trouble("ad_account", key, code=code, sentence=code, now_us=world.now_us)  # noqa: E731
    assert trouble("access-lost")
    assert not trouble("disconnected")
    assert not trouble("access-lost")
    world.ledger.resolved(audience, "7001", created=False, now_us=world.now_us)
    (row,) = world.ledger.troubles()
    assert (row.code, row.sentence, row.next_probe_us) == ("disconnected", "disconnected", NEVER_US)
    world.ledger.healed("ad_account", key, now_us=world.now_us)
    assert list(world.ledger.troubles()) == []


def test_a_ledger_of_the_first_release_gets_the_tables(ledger_url: str) -> None:
    """A ledger at revision 0001 with people in it upgrades, and nobody of them is lost."""
    from alembic import command

    from criteo_provider.store.migrate import _config

    engine = open_engine(ledger_url)
    config = _config()
    with writing(engine) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(
            text(
                "INSERT INTO audience (connection_id, ad_account, name, criteo_id) "
                "VALUES ('criteo_default', '1001', 'Spring', '7001')"
            )
        )
    upgrade(engine, now_us=START_US)
    book = AccountBook(engine)
    assert book.decisions() == []
    book.choose(CONNECTION, NAMES, by="ada", now_us=1)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT criteo_id FROM audience")).scalar_one() == "7001"
    engine.dispose()
