"""The parts of the benchmark: each takes a place to work in and yields rows of the report."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import naive
from bench.drains import CRITEOS_LIMIT, WITH_IDENTIFIER, Drained, drain, sandbox_pid
from bench.growth import growth, seconds_to_count_statuses
from bench.measure import MILLION, Row
from bench.shop import as_parquet, fill, write_canvas
from bench.stages import stage_costs
from criteo_provider.sandbox.running import sandbox_process
from tests.postgres import fresh_database, running_postgres

BOTH_CORES_S = 2.0
LIMIT_USERS_PER_S = CRITEOS_LIMIT * 50_000 / 60


# At Criteo's whole limit the ledger writes 18 MB of write-ahead log a second: with PostgreSQL's own 1 GB of it there
# is a checkpoint every half minute, and for a moment nobody can commit.
ADVISED = ("max_wal_size=8GB",)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many people take part in what, and for how long."""

    stages: int
    unpaced: int
    naive: int
    paced: int
    long_latency: int
    several: int
    growth: tuple[int, ...]


QUICK = Sizes(100_000, 250_000, 10_000, 0, 0, 0, (MILLION, 10 * MILLION))
# Whoever is paced has to need more than a minute: before, no rolling minute could hold too many requests.
FULL = Sizes(MILLION, 10_000_000, MILLION, 30_000_000, 15_000_000, 8_000_000, (MILLION, 10 * MILLION, 100 * MILLION))


@dataclass(frozen=True, slots=True)
class Engine:
    """A database engine: new ledgers on it, and the processes that work for them."""

    name: str
    folder: Path
    server_url: str | None = None
    server_pid: int | None = None

    @property
    def helpers(self) -> tuple[int, ...]:
        """The server, where there is one."""
        return () if self.server_pid is None else (self.server_pid,)

    @contextmanager
    def ledger(self, name: str) -> Iterator[str]:
        """An empty database."""
        if self.server_url is None:
            yield f"sqlite:///{self.folder / name}.db"
            for file in self.folder.glob(f"{name}*.db*"):
                file.unlink()
            return
        with fresh_database(self.server_url) as url:
            yield url


@contextmanager
def engine_of(name: str, folder: Path) -> Iterator[Engine]:
    """Start what an engine needs; PostgreSQL keeps fsync and has the settings README advises."""
    if name == "sqlite":
        yield Engine(name, folder)
        return
    with running_postgres(durable=True, settings=ADVISED) as server:
        assert server._keeper is not None  # noqa: S101 - it has just been started
        yield Engine(name, folder, server.url(), server._keeper.pid)


def measure(part: str, engine: Engine, place: Path, sizes: Sizes) -> Iterator[Row]:
    """Measure one part on one engine."""
    return PARTS[part](engine, place, sizes)


def _stages(engine: Engine, place: Path, sizes: Sizes) -> Iterator[Row]:
    with sandbox_process(limit=60_000, membership="count") as sandbox, engine.ledger("stages") as url:
        small = _shop_of(place, sizes.stages)
        yield from stage_costs(engine.name, url, sandbox, small, place / "stages", sizes.stages, engine.helpers)


def _unpaced(engine: Engine, place: Path, sizes: Sizes) -> Iterator[Row]:
    """Go as fast as the house can, and set it beside its yardsticks of the same run."""
    shop, unpaced = place / "shop.db", 0.0
    for source in ("sql", "parquet"):
        with sandbox_process(limit=60_000, membership="count") as sandbox, engine.ledger("unpaced") as url:
            include = place / f"unpaced-{source}"
            write_canvas(include, source, parquet=place / "parquet" if source == "parquet" else None)
            done = drain(url, sandbox, shop, include, helpers=(*engine.helpers, sandbox_pid()))
            read_s = seconds_to_count_statuses(url)
        unpaced = unpaced or done.users_per_s
        yield from _end_to_end(f"unpaced, from {source}", engine, done)
        per_million = read_s / (done.people / MILLION)
        yield Row(
            "end to end", "every user's status, from the view user_status", engine.name, per_million, "s per million"
        )
    yield from _yardsticks(engine, sizes, shop, unpaced)


def _growth(engine: Engine, _place: Path, sizes: Sizes) -> Iterator[Row]:
    for people in sizes.growth:
        with engine.ledger("growth") as url:
            yield from growth(engine.name, url, people)


def prepare(place: Path, sizes: Sizes) -> None:
    """Make the shop all parts share, in both shapes."""
    fill(place / "shop.db", sizes.unpaced)
    as_parquet(place / "shop.db", place / "parquet")
    time.sleep(2.5)  # a file is read once it has been left alone for two seconds


def _shop_of(place: Path, people: int) -> Path:
    shop = place / f"shop-{people}.db"
    if not shop.exists():
        fill(shop, people)
    return shop


def _end_to_end(what: str, engine: Engine, done: Drained) -> Iterator[Row]:
    millions = done.people / MILLION
    yield Row("end to end", f"{what}: users a second", engine.name, done.users_per_s, "users/s")
    yield Row("end to end", f"{what}: {WITH_IDENTIFIER}", engine.name, done.sent_per_s, "users/s")
    yield Row("end to end", f"{what}: CPU of all processes", engine.name, done.cpu_s / millions, "CPU s per million")
    indexed = f"{what}: CPU afterwards, for the index of people"
    yield Row("end to end", indexed, engine.name, done.tidy_cpu_s / millions, "CPU s per million")
    helped = "database server and sandbox" if engine.helpers else "sandbox"
    yield Row("end to end", f"{what}: CPU of {helped}", engine.name, done.helpers_cpu_s / millions, "CPU s per million")
    yield Row("end to end", f"{what}: most memory of a process", engine.name, done.peak_mb, "MB")


def _yardsticks(engine: Engine, sizes: Sizes, shop: Path, ours: float) -> Iterator[Row]:
    for what, work in (
        ("pandas, the official SDK, a status column", naive.sdk_and_status_column),
        ("pandas, requests, a bulk insert, no retries", naive.requests_and_bulk_insert),
    ):
        with sandbox_process(limit=60_000, membership="count") as sandbox, engine.ledger("naive") as url:
            users_per_s = work(url, sandbox, shop, sizes.naive)
        yield Row("yardsticks", what, engine.name, users_per_s, "users/s", "what one would write instead", 1.0)
        yield Row("yardsticks", f"this product beside: {what}", engine.name, ours, "users/s", "", ours / users_per_s)


def _paced(engine: Engine, place: Path, sizes: Sizes) -> Iterator[Row]:
    for what, people, latency_s in (
        ("paced, one audience", sizes.paced, 0.2),
        ("paced, one audience, 3 s of latency", sizes.long_latency, 3.0),
    ):
        shop, include = _shop_of(place, people), place / f"paced-{people}"
        write_canvas(include, f"paced{people}")
        with (
            sandbox_process(limit=CRITEOS_LIMIT, membership="count", latency_s=latency_s) as sandbox,
            engine.ledger("paced") as url,
        ):
            helpers = (*engine.helpers, sandbox_pid())
            done = drain(url, sandbox, shop, include, requests_per_minute=CRITEOS_LIMIT, helpers=helpers)
        yield from _end_to_end(what, engine, done)
        yield from _limit(what, engine, done)
        both = (done.cpu_s + done.helpers_cpu_s) / (done.wall_s * BOTH_CORES_S) * 100
        yield Row("end to end", f"{what}: of two cores, everything", engine.name, both, "%")


def _several(engine: Engine, place: Path, sizes: Sizes) -> Iterator[Row]:
    shop = _shop_of(place, sizes.several)
    for workers in (1, 2, 4):
        include = place / f"several-{workers}"
        write_canvas(include, f"several{workers}", audiences=2)
        with sandbox_process(limit=CRITEOS_LIMIT, membership="count") as sandbox, engine.ledger("several") as url:
            limited = {"workers": workers, "requests_per_minute": CRITEOS_LIMIT, "stalls": True}
            done = drain(url, sandbox, shop, include, helpers=engine.helpers, **limited)  # type: ignore[arg-type]
        what = f"{workers} process{'es' * (workers > 1)} that stall"
        yield from _limit(what, engine, done)
        shares = sorted(one["requests"] for one in done.workers)
        yield Row(
            "end to end", f"{what}: smallest share of the requests", engine.name,
            100 * shares[0] / max(1, sum(shares)), "%",
        )  # fmt: skip


def _limit(what: str, engine: Engine, done: Drained) -> Iterator[Row]:
    yield Row("end to end", f"{what}: requests a minute", engine.name, done.requests_per_min, "1/min")
    used = 100 * done.requests_per_min / CRITEOS_LIMIT
    yield Row("end to end", f"{what}: of Criteo's limit", engine.name, used, "%")
    yield Row("end to end", f"{what}: most requests in any 60 s", engine.name, done.most_in_60_s, "requests")


PARTS = {"stages": _stages, "unpaced": _unpaced, "paced": _paced, "several": _several, "growth": _growth}
QUICK_PARTS = ("stages", "unpaced", "growth")
AIRFLOW = "airflow"
