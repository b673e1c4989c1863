"""Stage costs: CPU seconds per million users of every station on the way, one after the other in one thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from cryptography.fernet import Fernet

from bench.measure import MILLION, Row, Stopwatch, cpu_of
from bench.shop import open_house, write_canvas
from criteo_provider.core import identifiers
from criteo_provider.core.model import ClaimedRequest, Role
from criteo_provider.flow import packing
from criteo_provider.flow.hands import OwnHands
from criteo_provider.sandbox.running import Sandbox
from criteo_provider.store.claim import ClaimTerms
from criteo_provider.store.ledger import Ledger
from criteo_provider.wiring.criteo import Courier
from criteo_provider.wiring.house import House

STAGES = (
    "source read", "user key", "rule", "normalise + hash", "pack", "seal", "enter: the rest",
    "claim", "read back", "body", "request", "settle",
)  # fmt: skip


def stage_costs(
    engine: str,
    ledger_url: str,
    sandbox: Sandbox,
    shop: Path,
    include: Path,
    people: int,
    helpers: tuple[int, ...] = (),
) -> Iterator[Row]:
    """Take ``people`` from the shop to the sandbox, and say what each station has cost."""
    write_canvas(include, "stages")
    watch = Stopwatch()
    helped_before_s = cpu_of(*helpers)
    with closing(
        open_house(include, ledger_url, sandbox.url, shop, requests_per_minute=60_000, key=Fernet.generate_key())
    ) as house:
        for problem in house.canvases.problems:
            raise RuntimeError(str(problem))
        _enter(house, watch)
        _upload(house, watch)
        broken = house.prove()
    if broken:
        raise RuntimeError(broken[0])
    per_million = MILLION / people
    for stage in STAGES:
        yield Row("stages", stage, engine, watch.cpu_s.get(stage, 0.0) * per_million, "CPU s per million")
    yield Row("stages", "sum", engine, sum(watch.cpu_s.values()) * per_million, "CPU s per million")
    if helpers:
        spent_s = cpu_of(*helpers) - helped_before_s
        note = "database server, all of the run"
        yield Row("stages", "database server", engine, spent_s * per_million, "CPU s per million", note)


def _enter(house: House, watch: Stopwatch) -> None:
    """Run the real Enter, with a stopwatch at the doors between its rooms."""
    stop = threading.Event()
    with house.launch.begin(stop) as launching:
        if not launching.is_launched(house.canvases.canvases[0]):
            raise RuntimeError("The canvas of the stages was not launched.")
        reader = house._readers(launching)[0]
        _tick(reader.enter, stop, watch)


def _tick(enter: Any, stop: threading.Event, watch: Stopwatch) -> None:
    enter._hands = OwnHands()
    enter._aside = None  # all of it one way, in this thread
    inside = Stopwatch()
    source = enter._source
    pages = source.pages
    with _watched(inside):
        source.pages = lambda *args, **names: _timed_pages(inside, pages(*args, **names))
        began_s = time.thread_time()
        enter.tick(stop)
        whole_s = time.thread_time() - began_s
    watch.cpu_s.update(inside.cpu_s)
    watch.cpu_s["enter: the rest"] = whole_s - sum(inside.cpu_s.values())


def _upload(house: House, watch: Stopwatch) -> None:
    """Do by hand, in one thread, what the uploader does in many."""
    senders = house._senders(Role.FRESH, threading.Event())
    with senders as opened:
        ((conn_id, sender),) = opened.items()
        sender.resolve()
        ledger, courier = house.ledger, sender.upload._courier
        assert isinstance(courier, Courier)  # noqa: S101 - what House makes
        terms = ClaimTerms(conn_id, frozenset({"1001"}), Role.FRESH, "bench", 120.0)
        courier.make_ready()
        while (claimed := watch.run("claim", lambda: ledger.claim(terms, now_us=house._clock.now_us()))) is not None:
            _send(sender.upload, courier, ledger, house, claimed, watch)


def _send(
    upload: Any, courier: Courier, ledger: Ledger, house: House, claimed: ClaimedRequest, watch: Stopwatch
) -> None:
    values = watch.run("read back", lambda: upload._values(claimed))
    parcel = watch.run("body", lambda: courier.pack(claimed, lambda: values))
    upload._slots.take()
    outcome = watch.run("request", lambda: courier.send(claimed, parcel, lambda: None))
    watch.run("settle", lambda: ledger.settle(claimed, outcome, now_us=house._clock.now_us(), jitter=0.5))


def _timed_pages(watch: Stopwatch, pages: Iterator[Any]) -> Iterator[Any]:
    while (page := watch.run("source read", lambda: next(pages, None))) is not None:
        yield page


class _watched:
    """Put a stopwatch around what Enter calls, for as long as this lasts."""

    def __init__(self, watch: Stopwatch) -> None:
        from criteo_provider.core.eligibility import Rule

        self._watch = watch
        self._doors: list[tuple[Any, str, str]] = [
            (identifiers, "user_key", "user key"),
            (identifiers, "normalise", "normalise + hash"),
            (packing, "pack_unnamed", "pack"),
            (Rule, "mask", "rule"),
            (Ledger, "seal", "seal"),
        ]
        self._before: list[Callable[..., Any]] = []

    def __enter__(self) -> None:
        for room, door, name in self._doors:
            inner = getattr(room, door)
            self._before.append(inner)
            setattr(room, door, self._around(inner, name))

    def __exit__(self, *_: object) -> None:
        for (room, door, _name), inner in zip(self._doors, self._before, strict=True):
            setattr(room, door, inner)

    def _around(self, inner: Callable[..., Any], name: str) -> Callable[..., Any]:
        return lambda *args, **names: self._watch.run(name, lambda: inner(*args, **names))
