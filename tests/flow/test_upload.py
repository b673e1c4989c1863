"""Upload: several requests in flight, nobody lost whatever breaks, and nothing sent outside a slot."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from criteo_provider.core.errors import LostClaim
from criteo_provider.core.identifiers import Form, decode
from criteo_provider.core.model import ClaimedRequest, Role
from criteo_provider.core.outcome import Accepted, AccessLost, Busy, Outcome
from criteo_provider.flow.upload import Upload
from tests.world import World, canvas, crowd, digest, step

FULL = 46_000  # people of a chunk beside which no other is cut
PATIENCE_S = 20


class Slots:
    """A pacer that always has a slot; ``stale`` of them are too late to be used."""

    def __init__(self, stale: int = 0) -> None:
        self.taken, self.stale = 0, stale

    def take(self, *, spacing: int = 1, instead_of: Slots.Slot | None = None) -> Slots.Slot:
        assert instead_of is None or not instead_of.fresh
        self.taken += 1
        self.stale -= 1
        return Slots.Slot(fresh=self.stale < 0)

    def queue_s(self) -> float:
        return 0.0

    class Slot:
        def __init__(self, *, fresh: bool) -> None:
            self.fresh = fresh

        def is_fresh(self) -> bool:
            return self.fresh


class Courier:
    """Carries requests to a function, and counts how many are away at once."""

    def __init__(self, answer: Callable[[dict[str, list[bytes]]], Outcome], latency_s: float = 0.0) -> None:
        self.answer, self.latency_s = answer, latency_s
        self.obstacle: Outcome | None = None
        self.away = self.most_away = self.sent = 0
        self.lock = threading.Lock()

    def make_ready(self) -> Outcome | None:
        return self.obstacle

    def pack(self, claimed: ClaimedRequest, values: Callable[[], dict[str, bytes]]) -> dict[str, list[bytes]]:
        return {form: decode(packed, Form(form)) for form, packed in values().items()}

    def send(self, claimed: ClaimedRequest, parcel: Any, before_first_byte: Callable[[], None]) -> Outcome:
        before_first_byte()
        with self.lock:
            self.sent += 1
            self.away += 1
            self.most_away = max(self.most_away, self.away)
        time.sleep(self.latency_s)
        with self.lock:
            self.away -= 1
        return self.answer(parcel)


def accept(values: dict[str, list[bytes]]) -> Outcome:
    """Take everything as valid."""
    return Accepted(sum(map(len, values.values())), 0)


@pytest.fixture
def world(ledger_url: str) -> Iterator[World]:
    """A ledger with one canvas."""
    world = World(ledger_url)
    world.declare(canvas("vip", step("add")))
    yield world
    world.close()


def run(
    world: World, courier: Courier, slots: Slots | None = None, *, until: Callable[[], bool], timeout_s: float = 1.0
) -> Upload:
    """Let an uploader work until something is true, then stop it and wait for it."""
    upload = Upload(
        lambda _now: world.claim(),
        world.ledger,
        slots or Slots(),
        courier,
        lambda: world.now_us,
        role=Role.FRESH,
        request_timeout_s=timeout_s,
    )
    stop = threading.Event()
    thread = threading.Thread(target=upload.run, args=(stop, lambda: None))
    thread.start()
    give_up_s = time.monotonic() + PATIENCE_S
    while not until() and time.monotonic() < give_up_s:
        time.sleep(0.01)
    stop.set()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert not upload.is_flying
    return upload


def enter_full_chunks(world: World, count: int) -> None:
    """Enter chunks that go alone: what is left of a request is not worth cutting another one."""
    for number in range(count):
        world.enter("vip", crowd(range(number * 50_000, number * 50_000 + FULL)))


def test_requests_overlap_as_latency_asks(world: World) -> None:
    """With slots at hand and slow answers, several requests are in flight at once, and all are settled."""
    enter_full_chunks(world, 5)
    courier = Courier(accept, latency_s=0.5)
    upload = run(world, courier, until=lambda: courier.sent == 5)
    assert courier.most_away >= 3
    assert upload.done.accepted == 5
    assert world.numbers("add") == (5 * FULL, 5 * FULL, 0, 0, 0)


def test_bodies_in_flight_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the answers, no request is claimed once so many identifiers are away; later ones follow."""
    monkeypatch.setattr("criteo_provider.flow.upload.MAX_IDENTIFIERS_IN_FLIGHT", 50_000)
    enter_full_chunks(world, 5)
    courier = Courier(accept, latency_s=0.5)
    upload = run(world, courier, until=lambda: courier.sent == 5)
    assert courier.most_away == 2
    assert upload.done.accepted == 5
    assert world.numbers("add") == (5 * FULL, 5 * FULL, 0, 0, 0)


def test_each_identifier_goes_out_once_a_request(world: World) -> None:
    """Users who share an identifier are sent once and count as the users they are."""
    world.enter("vip", crowd([1, 1, 2]))
    world.enter("vip", crowd([2, 3]))
    bodies: list[list[bytes]] = []

    def keep(values: dict[str, list[bytes]]) -> Outcome:
        bodies.append(values["email_sha256"])
        return accept(values)

    run(world, Courier(keep), until=lambda: bool(bodies))
    assert sorted(bodies[0]) == sorted(digest(number) for number in (1, 2, 3))
    assert world.numbers("add") == (5, 5, 0, 0, 0)


def test_a_late_slot_is_not_used(world: World) -> None:
    """A slot that is stale at the first byte is thrown away, and another taken."""
    world.enter("vip", crowd(range(3)))
    slots, courier = Slots(stale=2), Courier(accept)
    run(world, courier, slots, until=lambda: courier.sent == 1)
    assert slots.taken == 3
    assert world.numbers("add")[1] == 3


def test_a_lease_too_short_sends_nothing(world: World) -> None:
    """When a request could outlive its lease it is not begun; its people go back without an attempt."""
    world.enter("vip", crowd(range(3)))
    courier = Courier(accept)
    seen = threading.Event()
    original = world.ledger.release

    def released(claimed: ClaimedRequest, *, now_us: int) -> None:
        original(claimed, now_us=now_us)
        seen.set()

    world.ledger.release = released  # type: ignore[method-assign]
    run(world, courier, until=seen.is_set, timeout_s=500)
    assert courier.sent == 0
    claimed = world.claim()
    assert claimed is not None
    assert claimed.parts[0].attempts == 1
    world.settle(claimed)


def test_whatever_breaks_loses_nobody(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """An exception in the courier keeps the people Pending, and tells its class only."""
    world.enter("vip", crowd(range(3)))

    def break_down(values: dict[str, list[bytes]]) -> Outcome:
        raise RuntimeError(values["email_sha256"][0].hex())

    courier = Courier(break_down)
    run(world, courier, until=lambda: courier.sent == 1)
    assert world.numbers("add") == (3, 0, 0, 3, 0)
    assert "RuntimeError" in caplog.text
    assert digest(0).hex() not in caplog.text


def test_a_lost_claim_is_given_back(world: World) -> None:
    """What must not be sent any more goes back unsent, with no attempt counted."""
    world.enter("vip", crowd(range(3)))

    def lose(values: dict[str, list[bytes]]) -> Outcome:
        raise LostClaim("Too late.")

    courier = Courier(lose)
    run(world, courier, until=lambda: courier.sent >= 1)
    claimed = world.claim()
    assert claimed is not None
    assert claimed.parts[0].attempts == 1
    world.settle(claimed)


def test_no_token_no_slot(world: World) -> None:
    """Without access no slot is wasted: the connection stops, and its people stay Pending."""
    world.enter("vip", crowd(range(3)))
    slots, courier = Slots(), Courier(accept)
    courier.obstacle = AccessLost("connection", "wrong-pair", "Criteo does not know this client.")
    run(world, courier, slots, until=lambda: bool(world.ledger.troubles()))
    assert (slots.taken, courier.sent) == (0, 0)
    assert world.numbers("add") == (3, 0, 0, 3, 0)


def test_busy_costs_no_attempt_through_the_uploader(world: World) -> None:
    """A 429 sends the people again without using up their attempts."""
    world.enter("vip", crowd(range(3)))
    answers: list[Outcome] = [Busy(1), Busy(1), Busy(1), Busy(1), Accepted(3, 0)]
    courier = Courier(lambda _values: answers.pop(0))
    run(world, courier, until=lambda: not answers)
    assert world.numbers("add") == (3, 3, 0, 0, 0)


def test_stopping_settles_what_flies(world: World) -> None:
    """When the task is stopped, requests in flight are still answered and settled."""
    enter_full_chunks(world, 2)
    courier = Courier(accept, latency_s=0.5)
    run(world, courier, until=lambda: courier.away > 0)
    flown = courier.sent
    assert flown >= 1
    assert world.numbers("add")[1] == flown * FULL
