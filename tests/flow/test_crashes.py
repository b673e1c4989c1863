"""Processes die at any moment; nobody is lost, nobody counted twice, and only what was in flight is sent again."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from sqlalchemy import func, select, text

from criteo_provider.core.model import PartState
from criteo_provider.sandbox.running import Sandbox, sandbox_process
from criteo_provider.store.engine import open_engine
from criteo_provider.store.ledger import Ledger
from criteo_provider.store.schema import part, request
from criteo_provider.wiring import House
from tests.conftest import PROJECT
from tests.flow.shop import Person, Sealer, Shop, open_house, sync, write_canvas

WORKER = Path(__file__).with_name("crash_worker.py")
KILLS = 100  # on each of two engines
WORKERS = 3
PEOPLE_A_ROUND = 40
# Written in one round and committed in the next, behind the cursor: found by a second look.
LATE_EVERY = 97
SETTLE_WITHIN_S = 60.0


class Nursery:
    """Uploading processes, to be killed."""

    def __init__(self, task: dict[str, str]) -> None:
        environment = {**os.environ, "PYTHONPATH": f"{PROJECT / 'plugins'}{os.pathsep}{PROJECT}"}
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), json.dumps(task)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.at_work = Path(task["at_work"])
        self.alive: list[int] = []
        self.ends: Counter[int] = Counter()

    def wait_for(self, pid: int) -> None:
        """Wait until one has claimed a request, or for a second when there is none to be claimed."""
        give_up_s = time.monotonic() + 1
        while not (self.at_work / str(pid)).exists() and time.monotonic() < give_up_s:
            time.sleep(0.005)

    def fork(self, doom: str = "") -> int:
        """Start one more, perhaps one that is to die at a certain point; return its id."""
        self.alive.append(self._ask(f"fork {doom}".rstrip()))
        return self.alive[-1]

    def has_ended(self, pid: int) -> bool:
        """Tell whether one has ended by itself, and waits to be reaped."""
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE

    def kill(self, pid: int) -> None:
        """End one with SIGKILL, and note how it really ended."""
        os.kill(pid, signal.SIGKILL)
        self.alive.remove(pid)
        self.ends[self._ask(f"reap {pid}")] += 1

    def _ask(self, words: str) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{words}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@contextmanager
def nursery(task: dict[str, str]) -> Iterator[Nursery]:
    """A nursery whose processes are all gone afterwards."""
    opened = Nursery(task)
    try:
        yield opened
    finally:
        opened.process.communicate(timeout=20)


@pytest.mark.slow
def test_every_user_is_settled_once_however_often_processes_are_killed(ledger_url: str, tmp_path: Path) -> None:
    """100 SIGKILLs at random points of enter and upload: the laws hold at every look, everybody is settled once."""
    seed = int(os.environ.get("CRITEO_TEST_SEED") or random.SystemRandom().randrange(10**6))
    print(f"The seed is {seed}: repeat with CRITEO_TEST_SEED={seed}.")
    chance, shop, sealer = random.Random(seed), Shop(tmp_path / "shop.db"), Sealer()
    write_canvas(
        tmp_path / "include",
        "crashing",
        sync("add", "Shoppers", fields=["email", "madid"]),
        sync("pass_in", "Passers-by"),
        sync("pass_out", "Passers-by", "remove"),
        late_commit="60s",
    )
    with sandbox_process(limit=10**6, latency_s=0.03) as sandbox:
        house = open_house(tmp_path / "include", ledger_url, sandbox.url, shop.source, cipher=sealer)
        # The first people make the audiences: what is proven here is the road they take from then on.
        first = [Person(number + 1) for number in range(PEOPLE_A_ROUND)]
        shop.add(first)
        house.drain("fresh", stop=threading.Event())
        task = {
            "include": str(tmp_path / "include"), "ledger": ledger_url, "criteo": sandbox.url, "shop": str(shop.path),
            "key": sealer.key.decode(), "log": str(tmp_path / "worker.log"),
            "at_work": str(tmp_path),
        }  # fmt: skip
        with nursery(task) as people_in_danger:
            people = kill_at_random(people_in_danger, shop, Ledger(open_engine(ledger_url)), chance, first)
        log = tmp_path / "worker.log"
        assert people_in_danger.ends == {-signal.SIGKILL: KILLS + WORKERS}, log.read_text()[-4000:]
        settle_everybody(house, sum(one.ads == 1 for one in people))
        prove_people(house, people, ledger_url)
        prove_lists(sandbox, house, people)
        prove_requests(sandbox, ledger_url)
        house.close()


def kill_at_random(
    workers: Nursery, shop: Shop, ledger: Ledger, chance: random.Random, first: list[Person]
) -> list[Person]:
    """Kill and replace one process after another while people arrive; return who arrived."""
    people = [*first]
    late: list[Person] = []
    for _ in range(WORKERS):
        workers.fork()
    for _ in range(KILLS):
        arriving = [Person(len(people) + 1 + at) for at in range(PEOPLE_A_ROUND)]
        people += arriving
        punctual = [one for one in arriving if one.number % LATE_EVERY]
        shop.add([*late, *punctual])
        late = [one for one in arriving if not one.number % LATE_EVERY]
        oldest = workers.alive[0]
        if chance.random() < 0.8:
            workers.wait_for(oldest)
        time.sleep(chance.uniform(0.0, 0.06))
        workers.kill(oldest)
        assert ledger.broken_laws() == []
        workers.fork()
    shop.add(late)
    for pid in list(workers.alive):
        workers.kill(pid)
    assert ledger.broken_laws() == []
    ledger.engine.dispose()
    return people


def settle_everybody(house: House, eligible: int) -> None:
    """Let one process that nobody kills finish the work of the dead."""
    give_up_s = time.monotonic() + SETTLE_WITHIN_S
    while time.monotonic() < give_up_s:
        house.drain("fresh", stop=threading.Event(), max_s=3)
        house.drain("retry", stop=threading.Event(), max_s=3)
        assert house.prove() == []
        numbers = house.numbers()
        if all(step.entered == eligible and step.pending == 0 for step in numbers):
            return
    pytest.fail(f"Not everybody was settled in time: {numbers}")


def prove_people(house: House, people: list[Person], ledger_url: str) -> None:
    """Every eligible user is in every step exactly once, and final."""
    eligible = sorted(one.key for one in people if one.ads == 1)
    engine = open_engine(ledger_url)
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT step, user_key, status FROM user_status ORDER BY step, user_key")).all()
    engine.dispose()
    for step in house.numbers():
        assert (step.pending, step.errored) == (0, 0)
        assert step.synced + step.not_synced == step.entered == len(eligible)
        assert [row.user_key for row in rows if row.step == step.step] == eligible
    lacking = {one.key for one in people if one.ads == 1 and not (one.email or one.device)}
    assert {row.user_key for row in rows if row.step == "add" and row.status != "Synced"} == lacking


def prove_lists(sandbox: Sandbox, house: House, people: list[Person]) -> None:
    """Criteo's lists hold exactly the eligible people with identifiers, and nobody who was only passing."""
    eligible = [one for one in people if one.ads == 1]
    digests = [one.digest for one in eligible if one.digest]
    devices = [one.device for one in eligible if one.device]
    segments = {segment["name"]: segment for segment in sandbox.state()["segments"]}
    assert sorted(segments) == ["Passers-by", "Shoppers"]
    shoppers = str(segments["Shoppers"]["id"])
    assert segments["Shoppers"]["size"] == len(digests) + len(devices)
    assert all(sandbox.is_member(shoppers, digests))
    assert all(sandbox.is_member(shoppers, devices, "madid"))
    assert segments["Passers-by"]["size"] == 0


def prove_requests(
    sandbox: Sandbox, ledger_url: str, *, kills: int = KILLS, changes: tuple[str, ...] = ("add", "remove")
) -> None:
    """Every identifier was accepted once, and what Criteo took besides belongs to requests cut off in flight."""
    amended = [call for call in sandbox.requests() if call["operation"] == "amend" and call["change"] in changes]
    applied = [call for call in amended if call["applied"]]
    engine = open_engine(ledger_url)
    with engine.connect() as connection:
        ends = {
            row.state: (row.requests, int(row.identifiers))
            for row in connection.execute(
                select(
                    request.c.state,
                    func.count().label("requests"),
                    func.sum(request.c.identifiers).label("identifiers"),
                ).group_by(request.c.state)
            )
        }
        accepted = connection.execute(
            select(func.sum(part.c.identifiers)).where(part.c.state == PartState.ACCEPTED)
        ).scalar_one()
    engine.dispose()
    print(f"Requests by their end: {ends}; taken by Criteo: {len(applied)}.")
    settled, cut_off = ends["settled"], [ends.get(state, (0, 0)) for state in ("expired", "unknown")]
    assert settled[1] == accepted
    assert 0 <= len(applied) - settled[0] <= sum(requests for requests, _ in cut_off)
    repeated = sum(call["valid"] + call["invalid"] for call in applied) - accepted
    assert 0 <= repeated <= sum(identifiers for _, identifiers in cut_off)
    # The kills went where it hurts, or this proves nothing.
    assert cut_off[0][0] >= kills / 50
