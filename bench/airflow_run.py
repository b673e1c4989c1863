"""The same through the real operator in a real Airflow: throughput, freshness, and what it costs to wait."""

from __future__ import annotations

import random
import re
import sqlite3
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import takewhile
from operator import itemgetter
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy.engine import make_url

from bench.drains import CRITEOS_LIMIT, WITH_IDENTIFIER
from bench.measure import MILLION, Row, Watch, cpu_of_others, waking_costs
from bench.parts import Engine
from bench.shop import as_parquet, fill, write_canvas
from criteo_provider.sandbox.running import Sandbox, sandbox_process

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from local_airflow import LocalAirflow
from processes import Household

DAGS = ("criteo_audience_sync", "criteo_audience_retry")
ENGINE = "sqlite"
"""Where the ledger is for all that is no drain: what waiting costs is Airflow's."""
# What Airflow calls the process of one task, by the id of its instance (airflow.sdk.execution_time.task_runner).
TASK = re.compile(r"airflow worker -- [0-9a-f]{8}-[0-9a-f-]{27}\b")
# What runs beside it, by the module it was started with (criteo_provider.flow.side_process).
PACKING = re.compile(r"-m criteo_provider\.flow\.packing$")
READING = re.compile(r"-m criteo_provider\.sources\.reading_beside$")
# A server's processes share their memory, so that each seems to hold all of it; the sandbox is Criteo, not ours.
APART = re.compile(r"postgres: |\S*/postgres |.* -m criteo_provider\.sandbox ")
# The index of people takes most of a core while it is built, an idle Airflow never so much.
STRETCH_S, CALM_CORES, MOST_STRETCHES = 5.0, 0.3, 20


class BenchAirflow(LocalAirflow):
    """An Airflow whose canvases are those of the benchmark."""

    def _settings(self) -> dict[str, str]:
        return {**super()._settings(), "criteo__include_folder": str(self.home.parent / "include")}


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many people drain, and how long it is looked at what waits: the full run as long as from retry to retry."""

    backlog: int
    backfill: int
    idle_s: float
    streaming_s: float


QUICK = Sizes(3 * MILLION, 3 * MILLION, 20.0, 15.0)
FULL = Sizes(30 * MILLION, 10 * MILLION, 300.0, 120.0)


def in_airflow(place: Path, engine: Engine, *, quick: bool) -> Iterator[Row]:
    """Measure in an Airflow of its own; on PostgreSQL the drains alone, for what waits is Airflow and the sources."""
    sizes = QUICK if quick else FULL
    fill(place / "fresh.db", 1)
    fill(place / "backlog.db", sizes.backlog)
    as_parquet(place / "backlog.db", place / "parquet")
    include, shop = place / "include", place / "fresh.db"
    write_canvas(include, "fresh", connection="fresh_shop")
    (place / "logs").mkdir()
    with (
        sandbox_process(limit=CRITEOS_LIMIT, membership="count") as sandbox,
        Household(place / "logs") as household,
        _started(place, household, sandbox, engine) as airflow,
    ):
        if engine.name != ENGINE:
            _unpause(airflow, sandbox)
            yield from _drains(place, sandbox, engine.name, sizes.backlog)
            return
        yield Row("airflow", "the same work after a second of sleep", ENGINE, waking_costs(), "x CPU")
        empty = yield from _idle(airflow, sizes.idle_s, "Airflow alone (DAGs paused), ")
        _unpause(airflow, sandbox)
        yield from _idle(airflow, sizes.idle_s, beside=empty)
        # Far enough apart that the run of one has ended, and Airflow is idle, when the next one comes.
        yield from _freshness("idle", sandbox, shop, every_s=(9.0, 15.0), for_s=2 * sizes.streaming_s)
        yield from _freshness("10 rows a second", sandbox, shop, every_s=(0.1, 0.1), for_s=sizes.streaming_s)
        yield from _drains(place, sandbox, ENGINE, sizes.backlog)
        fill(place / "backlog.db", sizes.backfill, first=sizes.backlog + 1)
        what = "while a backfill of another canvas drains"
        yield from _freshness(what, sandbox, shop, every_s=(0.5, 0.5), for_s=sizes.streaming_s, beside="backlog 1")
        for number in range(50):
            write_canvas(include, f"quiet_{number:02d}", connection="fresh_shop")
        time.sleep(150.0)  # all of them are launched, read once, and looked at once more a minute later
        yield from _idle(airflow, sizes.idle_s, "50 canvases, ", beside=empty)


def _drains(place: Path, sandbox: Sandbox, engine: str, people: int) -> Iterator[Row]:
    """Drain one audience from SQL, and then one from Parquet while each answer takes its time."""
    write_canvas(place / "include", "backlog", connection="backlog_shop")
    yield from _throughput("paced, one audience", sandbox, "backlog 1", engine, people)
    sandbox.rules(latency_s=3.0)
    write_canvas(place / "include", "files", parquet=place / "parquet")
    yield from _throughput("paced, from Parquet, 3 s of latency", sandbox, "files 1", engine, people)
    sandbox.rules(latency_s=0.0)


@contextmanager
def _started(place: Path, household: Household, sandbox: Sandbox, engine: Engine) -> Iterator[BenchAirflow]:
    airflow = BenchAirflow(place / "airflow", place / "ledger.db")
    airflow.start(household)
    for name in ("fresh", "backlog"):
        airflow.connect(f"{name}_shop", conn_type="sqlite", host=str(place / f"{name}.db"))
    airflow.connect(
        "criteo_default", conn_type="criteo", host=sandbox.url, login=sandbox.client_id, password=sandbox.client_secret
    )
    if engine.server_url is None:
        yield airflow
        return
    with engine.ledger("airflow") as url:
        at = make_url(url)
        where = {"host": str(at.host), "login": str(at.username), "schema": str(at.database)}
        airflow.connect("criteo_ledger", conn_type="postgres", port=at.port or 0, **where)
        yield airflow


def _unpause(airflow: BenchAirflow, sandbox: Sandbox) -> None:
    """Let the two DAGs run, until the first person has arrived."""
    for dag_id in DAGS:
        airflow.unpause(dag_id)
    _wait_for(sandbox, "fresh 1", 1)


def _throughput(what: str, sandbox: Sandbox, audience: str, engine: str, people: int) -> Iterator[Row]:
    wanted = people - people // 50  # one in 50 has no address
    # Watched from the beginning: only of a process that begins later its peak is known.
    with Watch(psutil.Process().pid) as memory:
        _wait_for(sandbox, audience, 1)
        before_s, began_s = cpu_of_others(), time.monotonic()
        arrivals = _wait_for(sandbox, audience, wanted)
        after_s = cpu_of_others()
        both = 100 * (after_s - before_s) / (2 * (time.monotonic() - began_s))
        afterwards_s = _until_calm(after_s)
    wall_s = arrivals[-1]["answered_s"] - arrivals[0]["arrived_s"]
    # A call for a token, or of another canvas, takes its slot as well.
    first_s, last_s = arrivals[0]["arrived_s"], arrivals[-1]["arrived_s"]
    calls = sum(first_s <= call["arrived_s"] <= last_s for call in sandbox.requests())
    per_min = 60 * (calls - 1) / max(1e-9, last_s - first_s)
    sent = sum(call["valid"] for call in arrivals)
    yield Row("airflow", f"{what}: users a second", engine, people / wall_s, "users/s")
    yield Row("airflow", f"{what}: {WITH_IDENTIFIER}", engine, sent / wall_s, "users/s")
    yield Row("airflow", f"{what}: of Criteo's limit", engine, 100 * per_min / CRITEOS_LIMIT, "%")
    yield Row("airflow", f"{what}: most requests in any 60 s", engine, sandbox.rate(60.0)["largest"], "requests")
    note = "Airflow, ledger and its server, source and sandbox"
    yield Row("airflow", f"{what}: of two cores", engine, both, "%", note)
    if afterwards_s is not None:
        indexed, per_million = f"{what}: CPU afterwards, for the index of people", afterwards_s / (people / MILLION)
        yield Row("airflow", indexed, engine, per_million, "CPU s per million", "without what an idle Airflow uses")
    yield from _peaks(what, engine, memory)


def _until_calm(used_s: float) -> float | None:
    """Wait until the index of people is built; return its CPU seconds, None when there is no end of work.

    ``used_s`` is ``cpu_of_others`` at the last answer. What is used once it is calm is Airflow's own.
    """
    stretches_s = list[float]()
    while len(stretches_s) < MOST_STRETCHES:
        time.sleep(STRETCH_S)
        before_s, used_s = used_s, cpu_of_others()
        stretches_s.append(used_s - before_s)
        calm_s = stretches_s[-2:]
        if len(calm_s) == 2 and max(calm_s) < CALM_CORES * STRETCH_S:
            # The calmer one, for the end of the work may lie in the other.
            return sum(stretches_s) - len(stretches_s) * min(calm_s)
    return None


def _peaks(what: str, engine: str, memory: Watch) -> Iterator[Row]:
    others = {pid for pid, title in memory.title.items() if APART.match(title)} | {psutil.Process().pid}
    peaks_mb = {pid: peak_mb for pid, peak_mb in memory.peak_mb.items() if pid not in others}
    roles = {
        "a process": re.compile(""),
        "the upload task": TASK,
        "the process packing beside it": PACKING,
        "the process reading beside it": READING,  # which only files of a disk need
    }
    for whose, title in roles.items():
        held_mb = [peak_mb for pid, peak_mb in peaks_mb.items() if title.search(memory.title.get(pid, ""))]
        if held_mb:
            note = "Airflow's included" if whose == "a process" else ""
            yield Row("airflow", f"{what}: most memory of {whose}", engine, max(held_mb), "MB", note)


def _freshness(
    what: str, sandbox: Sandbox, shop: Path, *, every_s: tuple[float, float], for_s: float, beside: str = ""
) -> Iterator[Row]:
    """Commit rows one by one, and see when the request with each of them is at the sandbox.

    Of those ``beside`` another audience only what was committed while that one was sent to counts.
    """
    began_s = time.time()
    sent_before = sum(call["valid"] for call in _calls(sandbox, "fresh 1")[0])
    committed = _commit_rows(shop, every_s, for_s)
    calls = _wait_for(sandbox, "fresh 1", sent_before + len(committed))
    waits: list[float] = []
    taken = 0
    for call in calls:
        taken += call["valid"]
        while len(waits) < min(taken - sent_before, len(committed)):
            waits.append(call["arrived_epoch_s"] - committed[len(waits)])
    if beside:
        others_s = [call["arrived_epoch_s"] for call in _calls(sandbox, beside)[0]]
        waits = _while_sending(committed, waits, [at_s for at_s in others_s if at_s >= began_s])
    yield from _quantiles(what, waits)


def _while_sending(committed: Sequence[float], waits: Sequence[float], others_s: Sequence[float]) -> list[float]:
    """Return the waits of the rows committed between the first and the last request of others."""
    if not others_s:
        return []
    return [wait for at_s, wait in zip(committed, waits, strict=True) if min(others_s) <= at_s <= max(others_s)]


def _quantiles(what: str, waits: Sequence[float]) -> Iterator[Row]:
    ordered = sorted(waits)
    for name, share in (("p50", 0.5), ("p95", 0.95), ("max", 1.0)) if ordered else ():
        figure = ordered[min(len(ordered) - 1, int(share * len(ordered)))]
        note = f"{len(ordered)} row{'s' * (len(ordered) > 1)}"
        yield Row("airflow", f"row committed to request, {what}: {name}", ENGINE, figure, "s", note)


def _commit_rows(shop: Path, every_s: tuple[float, float], for_s: float) -> list[float]:
    dice, committed = random.Random(1), list[float]()  # noqa: S311 - no secret
    until_s = time.monotonic() + for_s
    with closing(sqlite3.connect(shop, timeout=30)) as opened:
        (last,) = opened.execute("SELECT max(serial) FROM people").fetchone()
        while time.monotonic() < until_s:
            last += 1
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            with opened:
                row = (last, f"customer-{last}", f"fresh.{last}@example.com", 1, now)
                opened.execute("INSERT INTO people VALUES (?, ?, ?, ?, ?)", row)
            committed.append(time.time())
            time.sleep(dice.uniform(*every_s))
    return committed


def _idle(airflow: BenchAirflow, for_s: float, what: str = "", *, beside: float = 0.0) -> Generator[Row, None, float]:
    """Wait until nothing runs, then see what waiting costs; ``beside`` is what Airflow costs without us."""
    time.sleep(15.0)
    runs_before, rows_before = _dag_runs(airflow), _metadata_rows(airflow)
    bytes_before, cpu_before = _metadata_bytes(airflow), cpu_of_others()
    time.sleep(for_s)
    cores = 100 * (cpu_of_others() - cpu_before) / for_s
    over = cores / beside if beside else None
    yield Row("airflow", f"{what}idle: all of Airflow and the sandbox", ENGINE, cores, "% of one core", "", over)
    runs, rows = _dag_runs(airflow) - runs_before, _metadata_rows(airflow) - rows_before
    grown_kb = (_metadata_bytes(airflow) - bytes_before) / 1e3
    yield Row("airflow", f"{what}idle: DAG runs in {for_s:.0f} s", ENGINE, runs, "runs")
    yield Row("airflow", f"{what}idle: metadata rows more after {for_s:.0f} s", ENGINE, rows, "rows")
    yield Row("airflow", f"{what}idle: metadata larger after {for_s:.0f} s", ENGINE, grown_kb, "kB")
    return cores


def _dag_runs(airflow: BenchAirflow) -> int:
    with closing(sqlite3.connect(f"file:{airflow.home / 'airflow.db'}?mode=ro", uri=True, timeout=30)) as metadata:
        (runs,) = metadata.execute("SELECT count(*) FROM dag_run").fetchone()
    return int(runs)


def _metadata_rows(airflow: BenchAirflow) -> int:
    """Rows of all tables together."""
    with closing(sqlite3.connect(f"file:{airflow.home / 'airflow.db'}?mode=ro", uri=True, timeout=30)) as metadata:
        tables = metadata.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        counts = [metadata.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for (name,) in tables]  # noqa: S608
    return sum(counts)


def _metadata_bytes(airflow: BenchAirflow) -> int:
    """Pages in use, not the size of files: SQLite's log comes and goes."""
    query = (
        "SELECT (page_count - freelist_count) * page_size "
        "FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
    )
    with closing(sqlite3.connect(f"file:{airflow.home / 'airflow.db'}?mode=ro", uri=True, timeout=30)) as metadata:
        (used,) = metadata.execute(query).fetchone()
    return int(used)


def _calls(sandbox: Sandbox, audience: str, since: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Return the requests for an audience behind the first ``since`` calls up to one under way, and how many."""
    ids = {str(segment["id"]) for segment in sandbox.state()["segments"] if segment["name"] == audience}
    calls = list(takewhile(itemgetter("answered_s"), sandbox.requests(since))) if ids else []
    ours = [call for call in calls if call["operation"] == "amend" and call["segment_id"] in ids]
    return ours, since + len(calls)


def _wait_for(sandbox: Sandbox, audience: str, valid: int, *, within_s: float = 1_800.0) -> Sequence[dict[str, Any]]:
    """Wait until so many identifiers were taken into an audience; return the calls."""
    until_s, calls, seen = time.monotonic() + within_s, list[dict[str, Any]](), 0
    while True:
        more, seen = _calls(sandbox, audience, seen)
        calls += more
        if sum(call["valid"] for call in calls) >= valid:
            return calls
        if time.monotonic() > until_s:
            raise TimeoutError(f"{audience}: not everybody was sent within {within_s:.0f} s.")
        # Asking costs what is measured here, too.
        time.sleep(1.0)
