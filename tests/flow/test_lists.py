"""Criteo's lists, person by person, at the end of a story: examples, edits in flight, one token for all."""

from __future__ import annotations

import importlib.util
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
from sqlalchemy import text

from criteo_provider.core.identifiers import normalise, to_wire
from criteo_provider.flow import upload
from criteo_provider.sandbox.running import Sandbox
from criteo_provider.wiring import House
from tests.conftest import PROJECT
from tests.flow.shop import Person, Sealer, Shop, delay, open_house, sql_source, sync, write_canvas

pytestmark = pytest.mark.slow

# Said again in other words than the canvas files, so that a canvas that means something else is noticed.
SEGMENTS = {
    "high_value_targeting": ("orders > 0 AND lifetime_value >= 500", ("email", "madid"), ("sha256",)),
    "lookalike_seed": ("orders >= 5 AND country IN ('DE', 'FR', 'GB', 'US')", ("email",), ("sha256", "md5")),
    "retargeting": (
        "(last_order_on IS NULL OR last_order_on < date('now', '-14 days')) AND opened_last_message = 0",
        ("email", "madid"),
        ("sha256",),
    ),
    "suppression": ("last_order_on >= date('now', '-14 days')", ("email", "madid"), ("sha256",)),
}
ADDED_BY = {
    "High-value customers": "high_value_targeting",
    "Lookalike seed: loyal customers": "lookalike_seed",
    "Quiet customers": "retargeting",
    "Recent buyers (exclude)": "suppression",
}


class Identifier(NamedTuple):
    """One identifier as Criteo sees it."""

    kind: str
    value: str


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry after the shortest wait there is."""
    monkeypatch.setattr(upload, "random", SimpleNamespace(random=lambda: 0.0))


def drain(house: House, role: str = "fresh") -> None:
    """Let one of the two DAGs do its work."""
    house.drain(role, stop=threading.Event(), max_s=60)  # type: ignore[arg-type]
    assert house.prove() == []


def members(sandbox: Sandbox, name: str, candidates: Iterable[Identifier]) -> set[Identifier]:
    """Who of the candidates is in a list; nobody else may be in it."""
    segments = {segment["name"]: segment for segment in sandbox.state()["segments"]}
    assert name in segments, f"There is no list {name!r} at Criteo."
    found: set[Identifier] = set()
    known = sorted(set(candidates))
    for kind in {one.kind for one in known}:
        values = [one.value for one in known if one.kind == kind]
        there = sandbox.is_member(str(segments[name]["id"]), values, kind)
        found.update(Identifier(kind, value) for value, is_in in zip(values, there, strict=True) if is_in)
    assert len(found) == segments[name]["size"]
    return found


# --- the examples


def test_the_example_lists_hold_exactly_who_belongs_there(ledger_url: str, sandbox: Sandbox, tmp_path: Path) -> None:
    """Every list equals the Synced people of the ledger and the eligible people of the shop, one by one."""
    shop = tmp_path / "shop.db"
    example_data().create(shop, 2_000)
    belonging = {name: people_of(shop, *wanted) for name, wanted in SEGMENTS.items()}
    everybody = [one for people in belonging.values() for held in people.values() for one in held]
    with closing(
        open_house(PROJECT / "include", ledger_url, sandbox.url, lambda canvas: sql_source(shop, canvas))
    ) as house:
        drain(house)
        intents = synced(house)
    for audience, canvas_id in ADDED_BY.items():
        there = members(sandbox, audience, everybody)
        expected: set[Identifier] = set()
        for intent in (one for one in intents if one.audience == audience):
            held = belonging[intent.canvas][intent.user_key]
            expected = expected | held if intent.operation == "add" else expected - held
        assert there == expected, audience
        if audience != "Quiet customers":  # recent buyers were taken out of that one
            assert there == set().union(*belonging[canvas_id].values())


def example_data() -> ModuleType:
    """The module that makes the example shop."""
    spec = importlib.util.spec_from_file_location("example_data", PROJECT / "include" / "example_data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def people_of(
    shop: Path, where: str, fields: tuple[str, ...], email_hashes: tuple[str, ...]
) -> dict[str, set[Identifier]]:
    """The eligible people of a segment with what can be sent of them, by user key."""
    consent = "ads_tracking_enabled = 1 AND do_not_sell_or_share = 0"
    with closing(sqlite3.connect(shop)) as connection:
        query = f"SELECT customer_id, email, maid FROM customers WHERE ({where}) AND {consent}"
        rows = connection.execute(query).fetchall()
    held: dict[str, set[Identifier]] = {str(row[0]): set() for row in rows}
    for field, number in (("email", 1), ("madid", 2)):
        if field in fields:
            read = normalise(field, [row[number] for row in rows], email_hashes=email_hashes)
            for form, column in read.values.items():
                for row, value in zip(rows, column.rows(), strict=True):
                    if value is not None:
                        held[str(row[0])].add(Identifier(form.identifier_type, to_wire(value, form)))
    return held


def synced(house: House) -> Sequence[Any]:
    """The Synced people of all steps in the order of their intents."""
    query = text(
        "SELECT audience.name AS audience, user_status.canvas, step_version.operation, user_status.user_key "
        "FROM user_status "
        "JOIN step ON step.canvas_id = user_status.canvas AND step.name = user_status.step "
        "JOIN stage ON stage.chunk_id = user_status.chunk_id AND stage.step_id = step.id "
        "JOIN step_version ON step_version.id = stage.version_id "
        "JOIN audience ON audience.id = step_version.audience_id "
        "WHERE user_status.status = 'Synced' ORDER BY stage.enters_us, stage.id"
    )
    with house.ledger.engine.connect() as connection:
        return connection.execute(query).all()


# --- edits while people are in flight


def identifiers(people: Iterable[Person], *, devices: bool = False) -> set[Identifier]:
    """What can be sent of the eligible ones."""
    eligible = [one for one in people if one.ads == 1]
    found = {Identifier("email", one.digest) for one in eligible if one.digest}
    return found | ({Identifier("madid", one.device) for one in eligible if one.device} if devices else set())


class Story:
    """A house that is closed and opened again at each edit, as the next task of the DAG would."""

    def __init__(self, ledger_url: str, sandbox: Sandbox, shop: Shop, include: Path) -> None:
        self.sandbox, self.shop, self.include, self.ledger_url = sandbox, shop, include, ledger_url
        self.cipher = Sealer()

    def open(self) -> House:
        return open_house(self.include, self.ledger_url, self.sandbox.url, self.shop.source, cipher=self.cipher)

    def run(self, people: Iterable[Person] = (), *, roles: Iterable[str] = ("fresh",)) -> None:
        """Let these people come in, and whoever is due go out."""
        self.shop.add(people)
        with closing(self.open()) as house:
            for role in roles:
                drain(house, role)

    def outage(self) -> None:
        """From now on Criteo answers no amendment."""
        self.sandbox.fault(operation="amend", status=503, times=None)

    def numbers(self, step: str) -> tuple[int, int, int, int, int]:
        """Entered, Synced, Not Synced, Pending and on their way."""
        with closing(self.open()) as house:
            one = next(one for one in house.numbers() if one.step == step)
        return one.entered, one.synced, one.not_synced, one.pending, one.waiting


@pytest.fixture
def story(ledger_url: str, sandbox: Sandbox, shop: Shop, include: Path) -> Story:
    """An empty house."""
    return Story(ledger_url, sandbox, shop, include)


EARLIER = [Person(number) for number in range(1, 31)]
LATER = [Person(number) for number in range(31, 61)]


def test_a_changed_audience_or_operation_is_for_who_comes_after(story: Story) -> None:
    """People of an outage go where the file of their day said, though it has been changed twice since."""
    write_canvas(story.include, "vip", sync("only", "First"))
    story.outage()
    story.run(EARLIER)
    write_canvas(story.include, "vip", sync("only", "Second"))
    story.run(LATER)
    write_canvas(story.include, "vip", sync("only", "Second", "remove"))
    story.sandbox.clear_faults()
    last = [Person(61, twin=31), Person(62, twin=32)]
    story.run(last, roles=("fresh", "retry", "fresh"))
    candidates = identifiers([*EARLIER, *LATER, *last])
    assert members(story.sandbox, "First", candidates) == identifiers(EARLIER)
    assert members(story.sandbox, "Second", candidates) == identifiers(LATER) - identifiers(last)


def test_an_audience_that_was_not_made_before_the_edit_is_made_after_it(story: Story) -> None:
    """People who entered to be added somewhere are added there, though no file names that audience any more."""
    write_canvas(story.include, "vip", sync("only", "Of the launch"))
    story.run()
    write_canvas(story.include, "vip", sync("only", "First"))
    story.sandbox.fault(operation="create", status=400, code="invalid", error_type="validation", times=None)
    story.run(EARLIER)
    assert story.numbers("only")[3] > 0
    write_canvas(story.include, "vip", sync("only", "Second"))
    story.sandbox.clear_faults()
    with closing(story.open()) as house:
        for row in house.ledger.troubles():  # as if its next probe had come
            house.ledger.healed(row.scope, row.key, now_us=house._clock.now_us())  # type: ignore[attr-defined]
    story.run(LATER)
    candidates = identifiers([*EARLIER, *LATER])
    assert members(story.sandbox, "Second", candidates) == identifiers(LATER)
    assert members(story.sandbox, "First", candidates) == identifiers(EARLIER)


def test_a_removed_field_is_never_sent_again(story: Story) -> None:
    """Devices that failed before the edit are not retried after it, nor those of people who come in later."""
    write_canvas(story.include, "vip", sync("add", "Shoppers", fields=["email", "madid"]))
    story.outage()
    story.run(EARLIER)
    tried = len(story.sandbox.requests())
    write_canvas(story.include, "vip", sync("add", "Shoppers"))
    story.sandbox.clear_faults()
    story.run(LATER, roles=("fresh", "retry"))
    kinds = {call["identifier_type"] for call in story.sandbox.requests(tried) if call["operation"] == "amend"}
    assert kinds == {"email"}
    candidates = identifiers([*EARLIER, *LATER], devices=True)
    assert members(story.sandbox, "Shoppers", candidates) == identifiers([*EARLIER, *LATER])
    assert story.numbers("add")[3] == 0


def test_a_drain_that_does_not_know_of_the_edit_sends_no_removed_field(story: Story) -> None:
    """A house that has been at work since before the edit goes on entering; the removed field stays unsent."""
    write_canvas(story.include, "vip", sync("add", "Shoppers", fields=["email", "madid"]))
    with closing(story.open()) as long_at_work:
        drain(long_at_work)
        write_canvas(story.include, "vip", sync("add", "Shoppers"))
        story.run()
        story.shop.add(LATER)
        drain(long_at_work)
    assert members(story.sandbox, "Shoppers", identifiers(LATER, devices=True)) == identifiers(LATER)


@pytest.mark.parametrize("what", ["step", "file"])
def test_what_is_removed_holds_its_people_until_it_is_restored(story: Story, what: str) -> None:
    """Nobody of a removed step or file is sent or given up; put back, everybody goes out."""
    file = write_canvas(story.include, "vip", sync("kept", "Others"), sync("gone", "Shoppers"))
    write_canvas(story.include, "bystander", sync("beside", "Bystanders"))
    before = file.read_text()
    story.outage()
    story.run(EARLIER)
    if what == "step":
        write_canvas(story.include, "vip", sync("kept", "Others"))
    else:
        file.unlink()
    story.sandbox.clear_faults()
    story.run(roles=("fresh", "retry"))
    assert members(story.sandbox, "Shoppers", identifiers(EARLIER)) == set()
    assert members(story.sandbox, "Bystanders", identifiers(EARLIER)) == identifiers(EARLIER)
    entered, synced_, _, pending, _ = story.numbers("gone")
    assert (entered, synced_) == (sum(one.ads == 1 for one in EARLIER), 0)
    assert pending > 0
    file.write_text(before)
    story.run(roles=("fresh", "retry"))
    assert members(story.sandbox, "Shoppers", identifiers(EARLIER)) == identifiers(EARLIER)
    assert story.numbers("gone")[3] == 0


def test_what_is_dropped_waits_for_nothing_any_more(story: Story) -> None:
    """People dropped from a removed step are Not Synced, and nobody of it is on the way any more."""
    write_canvas(
        story.include,
        "vip",
        sync("kept", "Others"),
        sync("gone", "Shoppers"),
        delay("wait", "30d"),
        sync("later", "Shoppers", "remove"),
    )
    story.outage()
    story.run(EARLIER)
    write_canvas(story.include, "vip", sync("kept", "Others"))
    with closing(story.open()) as house:
        assert house.drop("vip", "gone") > 0
        assert house.drop("vip", "later") > 0
        assert house.drop("vip", "kept") == 0
    story.sandbox.clear_faults()
    story.run(roles=("fresh", "retry"))
    assert members(story.sandbox, "Shoppers", identifiers(EARLIER)) == set()
    eligible = sum(one.ads == 1 for one in EARLIER)
    assert story.numbers("gone") == (eligible, 0, eligible, 0, 0)
    assert story.numbers("later")[3:] == (0, 0)


# --- one token for all


def test_houses_at_work_together_share_one_token(story: Story) -> None:
    """Three processes' worth of houses, started together on a new ledger, ask Criteo for one token."""
    for name in ("one", "two", "three"):
        write_canvas(story.include, name, sync(f"{name}_add", f"List {name}"))
    story.shop.add(EARLIER)
    with closing(story.open()) as house:
        house.upgrade()
    houses = [story.open() for _ in range(3)]
    threads = [threading.Thread(target=drain, args=(house,)) for house in houses]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    for house in houses:
        house.close()
    assert sum(call["operation"] == "token" for call in story.sandbox.requests()) == 1
    assert sum(call["operation"] == "create" for call in story.sandbox.requests()) == 3
    for name in ("one", "two", "three"):
        assert members(story.sandbox, f"List {name}", identifiers(EARLIER)) == identifiers(EARLIER)
        assert story.numbers(f"{name}_add")[0] == sum(one.ads == 1 for one in EARLIER)
