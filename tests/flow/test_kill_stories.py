"""100 short stories with real processes, a real sandbox and real kills: nobody is lost, only what flew is sent again.

Processes die at each point between two verbs and inside them, are stopped beyond their lease and woken, and the
database is killed under load.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from criteo_provider.core.errors import LedgerUnwritable
from criteo_provider.sandbox.running import sandbox_process
from criteo_provider.store.engine import open_engine
from criteo_provider.store.ledger import Ledger
from tests.flow.crash_worker import DEATHS
from tests.flow.shop import Person, Sealer, Shop, open_house, sync, write_canvas
from tests.flow.test_crashes import Nursery, nursery, prove_lists, prove_people, prove_requests, settle_everybody
from tests.postgres import PostgresServer

STORIES = 50  # on each of two engines
STOPS, RESTARTS = 6, 6
PEOPLE_AT_ONCE = 8
# Beyond the lease of a request of these workers, which is two seconds.
STOPPED_S = 2.3
DIES_WITHIN_S = 5.0


class Stories:
    """What happens, one after the other, while a worker is always at it and people keep arriving."""

    def __init__(self, workers: Nursery, shop: Shop, ledger: Ledger, seed: int) -> None:
        self.workers, self.shop, self.ledger = workers, shop, ledger
        self.chance = random.Random(seed)
        self.people: list[Person] = []
        self.died: Counter[str] = Counter()

    def arrive(self) -> None:
        """People appear in the source."""
        arriving = [Person(len(self.people) + 1 + at) for at in range(PEOPLE_AT_ONCE)]
        self.people += arriving
        self.shop.add(arriving)

    def death(self, point: str) -> None:
        """A process dies at this point, for the first or second time it comes there."""
        doomed = self.workers.fork(f"{point} {self.chance.randint(1, 2)}")
        give_up_s = time.monotonic() + DIES_WITHIN_S
        # Others are at work as well, so people keep arriving until the doomed one has had its share.
        while time.monotonic() < give_up_s and not self.workers.has_ended(doomed):
            self.arrive()
            time.sleep(0.3)
        self.died[point] += self.workers.has_ended(doomed)
        self.workers.kill(doomed)

    def stop(self) -> None:
        """A process is stopped with a request in its hands, and goes on when the request is somebody else's."""
        stopped = self.workers.fork()
        self.arrive()
        self.workers.wait_for(stopped)
        os.kill(stopped, signal.SIGSTOP)
        time.sleep(STOPPED_S)
        os.kill(stopped, signal.SIGCONT)
        time.sleep(self.chance.uniform(0.0, 0.3))
        self.workers.kill(stopped)

    def restart(self, server: PostgresServer) -> None:
        """The database dies as in a power cut, under load, and comes back."""
        self.arrive()
        time.sleep(self.chance.uniform(0.05, 0.4))
        server.kill()
        server.start()


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("engine", ["sqlite", "postgres"])
def test_a_hundred_stories_with_real_processes(engine: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Whoever dies, stops or comes back wherever: counts, lists and requests are as if nothing had happened."""
    seed = int(os.environ.get("CRITEO_TEST_SEED") or random.SystemRandom().randrange(10**6))
    print(f"The seed is {seed}: repeat with CRITEO_TEST_SEED={seed}.")
    server: PostgresServer | None = request.getfixturevalue("durable_postgres") if engine == "postgres" else None
    ledger_url = server.url() if server else request.getfixturevalue("sqlite_url")
    shop, sealer = Shop(tmp_path / "shop.db"), Sealer()
    write_canvas(
        tmp_path / "include",
        "crashing",
        sync("add", "Shoppers", fields=["email", "madid"]),
        sync("pass_in", "Passers-by"),
        sync("pass_out", "Passers-by", "remove"),
    )
    with sandbox_process(limit=10**6, latency_s=0.03) as sandbox:
        house = open_house(tmp_path / "include", ledger_url, sandbox.url, shop.source, cipher=sealer)
        ledger = Ledger(open_engine(ledger_url))
        task = {
            "include": str(tmp_path / "include"), "ledger": ledger_url, "criteo": sandbox.url, "shop": str(shop.path),
            "key": sealer.key.decode(), "log": str(tmp_path / "worker.log"),
            "at_work": str(tmp_path), "database_dies": "yes" if server else "", "life_s": "390",
        }  # fmt: skip
        with nursery(task) as workers:
            stories = Stories(workers, shop, ledger, seed)
            stories.arrive()
            house.drain("fresh", stop=threading.Event())  # makes the audiences
            tell(stories, server)
            log = tmp_path / "worker.log"
            assert set(workers.ends) == {-signal.SIGKILL}, log.read_text()[-4000:]
        print(f"Died where they were meant to: {dict(stories.died)}.")
        assert sum(stories.died.values()) >= STORIES / 5  # the kills went where it hurts, or this proves nothing
        settle_everybody(house, sum(one.ads == 1 for one in stories.people))
        prove_people(house, stories.people, ledger_url)
        prove_lists(sandbox, house, stories.people)
        prove_requests(sandbox, ledger_url, kills=STORIES)
        house.close()
        ledger.engine.dispose()


def tell(stories: Stories, server: PostgresServer | None) -> None:
    """Tell all stories in an order of their seed; the laws hold after each."""
    points = list(DEATHS)
    kinds = ["stop"] * STOPS + ["restart"] * (RESTARTS if server else 0)
    kinds += [points[number % len(points)] for number in range(STORIES - len(kinds))]
    stories.chance.shuffle(kinds)
    steady = stories.workers.fork()
    for kind in kinds:
        if kind == "stop":
            stories.stop()
        elif kind == "restart" and server is not None:
            stories.restart(server)
        else:
            stories.death(kind)
        assert laws_of(stories.ledger) == []
    stories.workers.kill(steady)
    assert laws_of(stories.ledger) == []


def laws_of(ledger: Ledger) -> list[str]:
    """Look at the laws; a database that has just come back may first have to be reached anew."""
    try:
        return ledger.broken_laws()
    except LedgerUnwritable:
        return ledger.broken_laws()
