"""The whole house but Airflow: from files and a shop to the sandbox's lists, on both engines."""

from __future__ import annotations

import importlib.util
import logging
import re
import threading
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import create_engine, event, text

from criteo_provider.core.errors import Misconfigured
from criteo_provider.sandbox.running import Sandbox
from criteo_provider.sandbox.state import CLIENT_SECRET
from criteo_provider.wiring import House, Surroundings
from tests.flow.shop import Person, Shop, delay, open_house, sql_source, sync, write_canvas

PROJECT = Path(__file__).parents[2]


def drain(house: House, role: str = "fresh") -> None:
    """Let one of the two DAGs do its work."""
    house.drain(role, stop=threading.Event(), max_s=60)  # type: ignore[arg-type]
    assert house.prove() == []


def numbers(house: House) -> dict[str, tuple[int, int, int, int]]:
    """Entered, Synced, Not Synced, Pending by step."""
    return {one.step: (one.entered, one.synced, one.not_synced, one.pending) for one in house.numbers()}


def size(sandbox: Sandbox, name: str) -> int | None:
    """How many identifiers are in a list at the sandbox; None where there is no such list."""
    return next((segment["size"] for segment in sandbox.state()["segments"] if segment["name"] == name), None)


@pytest.mark.slow
def test_the_examples_work(ledger_url: str, sandbox: Sandbox, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The four example canvases end with Criteo's lists equal to the ledger, one token, and nothing told of anybody."""
    spec = importlib.util.spec_from_file_location("example_data", PROJECT / "include" / "example_data.py")
    assert spec is not None
    assert spec.loader is not None
    example_data = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example_data)
    example_data.create(tmp_path / "shop.db", 2_000)
    caplog.set_level(logging.DEBUG)
    source = lambda canvas: sql_source(tmp_path / "shop.db", canvas)  # noqa: E731
    with closing(open_house(PROJECT / "include", ledger_url, sandbox.url, source)) as house:
        assert house.canvases.problems == ()
        drain(house)
        counted = numbers(house)
        assert len(counted) == 8
        assert all(pending == 0 for *_, pending in counted.values())
        assert all(counted[name][1] > 100 for name in ("add_vip", "add_loyal", "add_quiet", "suppress"))
        engine = create_engine(ledger_url)
        with engine.connect() as connection:
            valid = dict(
                connection.execute(
                    text(
                        "SELECT audience.name, sum(request.valid) FROM request JOIN audience "
                        "ON audience.id = request.audience_id WHERE request.operation = 'add' GROUP BY audience.name"
                    )
                ).all()
            )
        engine.dispose()
        for name in ("High-value customers", "Lookalike seed: loyal customers", "Recent buyers (exclude)"):
            # A request sends an identifier once; two requests may send the same neighbour's address.
            assert 0.98 * int(valid[name]) <= (size(sandbox, name) or 0) <= int(valid[name])
    assert sum(call["operation"] == "token" for call in sandbox.requests()) == 1
    said = caplog.text.lower()
    assert CLIENT_SECRET.lower() not in said
    assert re.search(r"@example\.(com|org|net)", said) is None
    assert re.search(r"\b[0-9a-f]{64}\b", said) is None


def test_new_people_are_found_and_removed_ones_leave(
    ledger_url: str, sandbox: Sandbox, shop: Shop, include: Path
) -> None:
    """A second drain takes only who is new; a removal step empties the list again."""
    write_canvas(include, "vip", sync("add", "Shoppers"))
    people = [Person(number) for number in range(1, 61)]
    shop.add(people[:40])
    with closing(open_house(include, ledger_url, sandbox.url, shop.source)) as house:
        drain(house)
        first = numbers(house)["add"]
        assert first[0] == sum(one.ads == 1 for one in people[:40])
        shop.add(people[40:])
        assert house.waiting().fresh
        drain(house)
        assert numbers(house)["add"][0] == sum(one.ads == 1 for one in people)
        assert size(sandbox, "Shoppers") == sum(one.ads == 1 and one.email is not None for one in people)
    write_canvas(include, "out", sync("remove", "Shoppers", "remove"))
    with closing(open_house(include, ledger_url, sandbox.url, shop.source)) as house:
        drain(house)
        assert size(sandbox, "Shoppers") == 0


def test_a_delay_holds_people_back(ledger_url: str, sandbox: Sandbox, shop: Shop, include: Path) -> None:
    """The step behind a delay has nobody yet, and they are told as on their way."""
    write_canvas(include, "vip", sync("add", "Shoppers"), delay("wait", "30d"), sync("remove", "Shoppers", "remove"))
    shop.add(Person(number) for number in range(1, 11))
    with closing(open_house(include, ledger_url, sandbox.url, shop.source)) as house:
        drain(house)
        later = next(one for one in house.numbers() if one.step == "remove")
        assert (later.entered, later.waiting) == (0, numbers(house)["add"][0])


def test_a_removal_never_creates_its_audience(ledger_url: str, sandbox: Sandbox, shop: Shop, include: Path) -> None:
    """An audience that is added to no more is not made anew by a removal; the people wait, the trouble says why."""
    write_canvas(include, "out", sync("add", "Shoppers"))
    shop.add(Person(number) for number in range(1, 11))
    with closing(open_house(include, ledger_url, sandbox.url, shop.source)) as house:
        drain(house)
    write_canvas(include, "out", sync("remove", "Nobody here", "remove"))
    shop.add(Person(number) for number in range(11, 21))
    with closing(open_house(include, ledger_url, sandbox.url, shop.source)) as house:
        drain(house)
        assert size(sandbox, "Nobody here") is None
        assert numbers(house)["remove"][3] > 0
        assert "never creates one" in house.ledger.troubles()[0].sentence


def test_a_broken_file_and_a_broken_source_stop_only_themselves(
    ledger_url: str, sandbox: Sandbox, shop: Shop, include: Path
) -> None:
    """A canvas that cannot be loaded, or cannot be read, is told with its place; the third one works."""
    write_canvas(include, "good", sync("add", "Shoppers"))
    write_canvas(include, "misread", sync("add_too", "Others"))
    (include / "canvases" / "broken.yaml").write_text("name: Broken\nowner: nobody\nentrance: {}\n")
    (include / "segments" / "gone.sql").write_text("SELECT serial, person, email, maid, ads FROM no_such_table")
    misread = include / "canvases" / "misread.yaml"
    misread.write_text(misread.read_text().replace("segments/people.sql", "segments/gone.sql"))
    shop.add(Person(number) for number in range(1, 11))
    with closing(open_house(include, ledger_url, sandbox.url, shop.source)) as house:
        drain(house)
        assert numbers(house)["add"][1] > 0
        assert numbers(house)["add_too"][0] == 0
        assert any(problem.file.name == "broken.yaml" for problem in house.canvases.problems)
        (trouble,) = house.ledger.troubles()
        assert (trouble.scope, trouble.key) == ("launch", "misread")
        assert "no such table: no_such_table" in trouble.sentence
    good = include / "canvases" / "good.yaml"
    good.write_text(good.read_text().replace("segments/people.sql", "segments/gone.sql"))
    with closing(open_house(include, ledger_url, sandbox.url, shop.source)) as house:
        drain(house)
        assert {row.scope for row in house.ledger.troubles()} == {"source", "launch"}


def test_an_ad_account_that_is_not_allowed_is_never_served(
    ledger_url: str, sandbox: Sandbox, shop: Shop, include: Path
) -> None:
    """People of a step in another ad account stay Pending, with the mend; the allowed one goes on."""
    write_canvas(include, "vip", sync("add", "Shoppers"), sync("elsewhere", "Others", ad_account="1002"))
    with closing(open_house(include, ledger_url, sandbox.url, shop.source)) as open_to_all:
        drain(open_to_all)
        shop.add(Person(number) for number in range(1, 11))
        settings = open_to_all.around.criteo("criteo_default")
        narrow = type(settings)(
            settings.client_id, settings.client_secret, settings.base_url, requests_per_minute=60_000,
            allowed_ad_accounts=("1001",),
        )  # fmt: skip
        around = open_to_all.around
        surroundings = Surroundings(
            around.include_folder, around.ledger_url, lambda _name: narrow, around.source, around.cipher
        )
    with closing(House(surroundings)) as house:
        drain(house)
        assert numbers(house)["add"][3] == 0
        assert numbers(house)["elsewhere"][3] > 0
        assert size(sandbox, "Others") == 0
        assert "1002 is not among the allowed ad accounts" in house.ledger.troubles()[0].sentence


def test_without_a_fernet_key_no_token_is_stored(sqlite_url: str, sandbox: Sandbox, include: Path) -> None:
    """Where Airflow would store secrets in plain text, the house refuses with the setting to mend."""
    write_canvas(include, "vip", sync("add", "Shoppers"))
    with closing(open_house(include, sqlite_url, sandbox.url, lambda _canvas: pytest.fail("not read"))) as house:
        around = house.around
    bare = Surroundings(around.include_folder, around.ledger_url, around.criteo, around.source, None)
    with closing(House(bare)) as house, pytest.raises(Misconfigured, match="fernet_key"):
        house.check_access("criteo_default")


def test_a_refused_token_keeps_everyone_pending_and_heals(
    ledger_url: str, sandbox: Sandbox, shop: Shop, include: Path
) -> None:
    """With a wrong secret nothing is sent and one trouble is told; with the right one people go out again."""
    write_canvas(include, "vip", sync("add", "Shoppers"))
    with closing(open_house(include, ledger_url, sandbox.url, shop.source)) as house:
        drain(house)
        shop.add(Person(number) for number in range(1, 11))
        right = house.around.criteo("criteo_default")
        wrong = type(right)(right.client_id, "not the secret", right.base_url, requests_per_minute=60_000)
        around = house.around
    broken = Surroundings(around.include_folder, around.ledger_url, lambda _name: wrong, around.source, around.cipher)
    sandbox.advance(1_000)  # the token of before is over
    with closing(House(broken)) as house:
        assert not house.check_access("criteo_default").ok
        drain(house)
        assert numbers(house)["add"][3] > 0
        assert len(house.take_news()) == 1
        assert not house.waiting().fresh
    with closing(House(around)) as house:
        assert house.check_access("criteo_default").ok
        house.ledger.healed("connection", "criteo_default", now_us=house._clock.now_us())
        for row in house.ledger.troubles():
            house.ledger.healed(row.scope, row.key, now_us=house._clock.now_us())
        drain(house)
        assert numbers(house)["add"][3] == 0
        assert (size(sandbox, "Shoppers") or 0) > 0


def test_a_look_asks_the_ledger_as_much_about_many_canvases_as_about_one(
    ledger_url: str, sandbox: Sandbox, shop: Shop, include: Path
) -> None:
    """Whoever looks every second reads how all sources stand at once: one canvas or eight, the same statements."""
    shop.add([Person(1)])
    asked: list[list[str]] = []
    for number in (1, 8):
        for one in range(number):
            write_canvas(include, f"canvas_{one}", sync(f"add_{one}", f"List {one}"))
        with closing(open_house(include, ledger_url, sandbox.url, shop.source)) as house:
            while house.waiting().fresh:  # second looks for late rows included
                drain(house)
            assert len(numbers(house)) == number
            said: list[str] = []
            event.listen(house.ledger.engine, "before_cursor_execute", lambda *told, said=said: said.append(told[2]))
            assert not house.waiting().fresh
        asked.append(said)
    assert asked[0]
    assert asked[0] == asked[1]
