"""The house and Criteo's answers: what goes over the wire, what a 429 costs, and how a stop ends a wait."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from sqlalchemy import select

from criteo_provider.core.identifiers import Form, to_wire
from criteo_provider.core.model import ClaimedPart, PartState
from criteo_provider.core.outcome import Accepted, Refused
from criteo_provider.criteo_api.client import CriteoClient
from criteo_provider.flow import upload
from criteo_provider.sandbox.running import Sandbox
from criteo_provider.sandbox.state import CLIENT_SECRET
from criteo_provider.store.engine import open_engine
from criteo_provider.store.pacer import Pacer, application_key, pacer_url
from criteo_provider.store.schema import part, request
from criteo_provider.store.standings import spans_from_text
from criteo_provider.wiring import House
from criteo_provider.wiring import criteo as criteo_wiring
from tests.flow.shop import Person, Shop, open_house, sync, write_canvas
from tests.world import World, canvas, crowd, step


def drain(house: House) -> None:
    """Let the high-frequency DAG do its work."""
    house.drain("fresh", stop=threading.Event(), max_s=60)
    assert house.prove() == []


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry after the shortest wait there is."""
    monkeypatch.setattr(upload, "random", SimpleNamespace(random=lambda: 0.0))


# --- what goes over the wire


class Recorder(httpx.BaseTransport):
    """The real transport, with the bodies of amendments kept."""

    def __init__(self, bodies: list[dict[str, object]]) -> None:
        self._bodies, self._inner = bodies, httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if request.method == "PATCH":
            self._bodies.append(json.loads(request.read())["data"]["attributes"])
        return self._inner.handle_request(request)

    def close(self) -> None:
        self._inner.close()


def test_bodies_are_what_the_ledger_holds(
    ledger_url: str, sandbox: Sandbox, shop: Shop, include: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request on the wire is one of the ledger's, with exactly its identifiers, each once."""
    bodies: list[dict[str, object]] = []
    monkeypatch.setattr(criteo_wiring, "CriteoClient", partial(CriteoClient, transport=Recorder(bodies)))
    write_canvas(include, "vip", sync("add", "Shoppers", fields=["email", "madid"]), sync("out", "Old", "remove"))
    sandbox.add_segment("1001", "Old")
    people = [Person(number) for number in range(1, 300)]
    shop.add([*people, *(Person(one.number + 300, twin=one.number) for one in people)])
    with closing(open_house(include, ledger_url, sandbox.url, shop.source)) as house:
        drain(house)
        held = held_by_requests(house)
    sent = [(body["operation"], body["identifierType"], sorted(map(str, body["identifiers"]))) for body in bodies]  # type: ignore[call-overload]
    # The launch has tried whether the list that was there may be written to, with somebody nobody is.
    ((operation, _, nobody),) = [one for one in sent if one not in held]
    assert (operation, len(nobody)) == ("remove", 1)
    assert sorted(one for one in sent if one in held) == sorted(held)
    assert all(len(values) == len(set(values)) > 0 for *_, values in sent)
    eligible = [one for one in people if one.ads == 1]
    added = {value for operation, kind, values in sent if (operation, kind) == ("add", "email") for value in values}
    assert added == {one.digest for one in eligible if one.digest}


def held_by_requests(house: House) -> list[tuple[str, str, list[str]]]:
    """Operation, type and distinct values of each request, read from the ledger, as Criteo would see them."""
    with house.ledger.engine.connect() as connection:
        requests = connection.execute(select(request)).all()
        parts = connection.execute(select(part)).all()
    held = []
    for one in requests:
        values: set[str] = set()
        for row in (row for row in parts if row.request_id == one.id):
            spans = spans_from_text(row.spans)
            wanted = ClaimedPart(row.id, row.stage_id, row.chunk_id, row.form, spans, row.identifiers, 1, 0, None, 0)
            values.update(to_wire(value, Form(row.form)) for value in house.ledger.items(wanted))
        held.append((one.operation, one.identifier_type, sorted(values)))
    return held


# --- Criteo is busy


@pytest.mark.slow
def test_a_429_moves_the_pacer_for_everybody_and_costs_no_attempt(
    ledger_url: str, sandbox: Sandbox, shop: Shop, include: Path
) -> None:
    """After a 429 no call of anybody arrives before the hold is over, and nobody's attempts are used up."""
    write_canvas(include, "vip", sync("add", "Shoppers"))
    shop.add(Person(number) for number in range(1, 31))
    sandbox.fault(operation="amend", status=429, times=4, headers={"retry-after": "2"})
    with closing(open_house(include, ledger_url, sandbox.url, shop.source)) as house:
        drain(house)
        numbers = house.numbers()[0]
        assert (numbers.pending, numbers.errored) == (0, 0)
        with house.ledger.engine.connect() as connection:
            rows = connection.execute(select(part.c.attempts, part.c.state)).all()
        assert {(row.attempts, row.state) for row in rows} == {(1, PartState.ACCEPTED)}
    calls = sandbox.requests()
    refused = [call for call in calls if call["status"] == 429]
    assert len(refused) == 4
    for call in refused:
        # Not how fast we are, but how soon nobody may be: Criteo asked for two seconds.
        later = [other["arrived_s"] for other in calls if other["number"] > call["number"]]
        assert min(later) - call["arrived_s"] >= 1.9


@pytest.mark.slow
def test_a_stop_ends_a_wait_for_the_pacer(
    ledger_url: str, sandbox: Sandbox, shop: Shop, include: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task stopped while the pacer holds everybody back returns before the hold is over, its claims given back."""
    write_canvas(include, "vip", sync("add", "Shoppers"))
    shop.add(Person(number) for number in range(1, 31))
    with closing(open_house(include, ledger_url, sandbox.url, shop.source)) as house:
        drain(house)  # the audience and the token are there
        shop.add(Person(number) for number in range(31, 61))
        # As if the 429 had come to another process right after this one had claimed.
        monkeypatch.setattr(upload, "LONGEST_QUEUE_S", float("inf"))
        engine = open_engine(pacer_url(ledger_url))
        brake = Pacer(engine, application_key(sandbox.url, sandbox.client_id), limit_per_min=60_000)
        brake.hold(20)
        stop = threading.Event()
        with when_claimed(house, stop.set):
            house.drain("fresh", stop=stop, max_s=60)
        still_held = brake.queue_s() > 0
        engine.dispose()
        assert stop.is_set()
        with house.ledger.engine.connect() as connection:
            assert PartState.CLAIMED not in set(connection.execute(select(part.c.state)).scalars())
        assert house.prove() == []
        assert still_held


@contextmanager
def when_claimed(house: House, then: Callable[[], None]) -> Iterator[None]:
    """Call ``then`` a moment after a request is in flight."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            with house.ledger.engine.connect() as connection:
                if connection.execute(select(request.c.id).where(request.c.state == "in_flight")).first():
                    over.wait(1.0)
                    then()
                    return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


# --- answers that come too late


@pytest.mark.parametrize(
    "answer",
    [Refused("invalid", "Criteo refuses the content."), Accepted(3, 2), Accepted(0, 5)],
    ids=["refused", "some-invalid", "all-invalid"],
)
def test_an_answer_after_the_claim_was_lost_changes_nothing(ledger_url: str, answer: Accepted | Refused) -> None:
    """Who lost the claim while the answer was on its way settles nothing, and is told so."""
    world = World(ledger_url)
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd(range(5)))
    lost = world.claim(lease_s=10)
    assert lost is not None
    world.pass_time(11)
    taken = world.claim(owner="another")
    assert taken is not None
    assert world.settle(lost, answer) == 1
    assert world.numbers("add") == (5, 0, 0, 5, 0)
    assert world.settle(taken) == 0
    assert world.numbers("add") == (5, 5, 0, 0, 0)
    world.close()


# --- nothing is told of anybody


@pytest.mark.slow
def test_trouble_tells_nothing_of_anybody(
    ledger_url: str, sandbox: Sandbox, shop: Shop, include: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Errors, cut connections, refused and invalid content: no log line has an identifier, an address or the secret."""
    caplog.set_level(logging.DEBUG)
    people = [Person(number) for number in range(1, 41)]
    emails = [one.digest for one in people if one.digest and one.ads == 1]
    write_canvas(include, "vip", sync("add", "Shoppers", fields=["email", "madid"]))
    shop.add(people)
    sandbox.mark(invalid=emails[:2], refused=emails[5:6])
    for fault in ({"status": 503}, {"drop": "before"}, {"drop": "after"}, {"truncate": True}, {"status": 401}):
        sandbox.fault(operation="amend", **fault)
    with closing(open_house(include, ledger_url, sandbox.url, shop.source)) as house:
        for _ in range(4):
            drain(house)
            house.drain("retry", stop=threading.Event(), max_s=10)
        shown = f"{caplog.text} {house.numbers()} {house.ledger.troubles()}".lower()
    assert "criteo's servers have trouble" in shown
    assert "the connection broke" in shown
    assert CLIENT_SECRET.lower() not in shown
    assert re.search(r"@example\.(com|org|net)", shown) is None
    for one in people:
        assert not one.digest or one.digest not in shown
        assert not one.device or one.device not in shown
