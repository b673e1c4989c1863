"""The benchmark runs, and its report has every row; how fast anything is, no test says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path

import psutil
import pytest

from bench import __main__ as bench
from bench import airflow_run, drains, measure, parts, report
from bench.measure import Row, Watch
from bench.stages import STAGES
from criteo_provider.flow import packing, side_process
from criteo_provider.sources import reading_beside

PLUGINS = Path(__file__).parents[2] / "plugins"

MACHINE = {
    "date": "2026-01-01", "cpus": 2, "cpu": "CPU", "memory_gb": 4, "system": "Linux", "python": "3", "load_before": 0,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_quick_run_has_every_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both engines, every stage, both sources, both yardsticks, every size of ledger; and nothing is left."""
    monkeypatch.setattr(parts, "QUICK", parts.Sizes(20_000, 60_000, 2_000, 0, 0, 0, (1_000_000,)))
    (tmp_path / "work").mkdir()
    assert bench.main(["--quick", "--json", str(tmp_path / "bench.json"), "--place", str(tmp_path / "work")]) == 0
    told = json.loads((tmp_path / "bench.json").read_text())
    assert [set(run["machine"]) for run in told["runs"]] == [set(MACHINE)]
    found = {(row["engine"], row["part"], row["what"]) for row in told["rows"]}
    for engine in ("sqlite", "postgresql"):
        assert {(engine, "stages", stage) for stage in STAGES} <= found
        for source in ("sql", "parquet"):
            assert (engine, "end to end", f"unpaced, from {source}: users a second") in found
            assert (engine, "end to end", f"unpaced, from {source}: most memory of a process") in found
        asked = ("numbers", "one user's story", "in which chunks 200 opt-outs are", "in which chunks 200 who leave are")
        for question in (*asked, "look for work", "nobody's story"):
            assert (engine, "growth", f"{question}, 1 million") in found
        ratios = [row for row in told["rows"] if row["engine"] == engine and row["part"] == "yardsticks"]
        assert len([row for row in ratios if row["per_yardstick"] != 1.0]) == 2
    # What a process of so small a run has used may be less than the hundredth of a second that is counted.
    assert [row for row in told["rows"] if row["value"] <= 0 and "CPU of" not in row["what"]] == []
    assert "| normalise + hash |" in capsys.readouterr().out
    assert list((tmp_path / "work").iterdir()) == []


def test_the_report_says_where_and_when(tmp_path: Path) -> None:
    """Machine and date stand above the tables; engines stand side by side, a missing one empty."""
    rows = (
        Row("stages", "seal", "sqlite", 0.201, "CPU s per million"),
        Row("stages", "seal", "postgresql", 0.5, "CPU s per million"),
        Row("yardsticks", "this product", "sqlite", 500_000.4, "users/s", "", 12.34),
    )
    text = report.as_text(report.Report(False, (report.Run(MACHINE),), rows))
    assert text.startswith("Measured 2026-01-01 on 2 x CPU, 4 GB")
    assert "| seal | 0.20 | 0.50 | CPU s per million |" in text
    assert "| this product | 500,000 = 12.3x | users/s |" in text
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write_page(page, text)
    assert page.read_text() == f"before\n{report.BEGIN}\n{text}{report.END}\nafter\n"


def test_a_part_measured_again_takes_the_place_of_its_figures() -> None:
    """Figures of other parts stay, and the report says which machine and day each part is from."""
    later = {**MACHINE, "date": "2026-02-02"}
    first = report.Report(False)
    first = first.with_part(MACHINE, ("stages", "sqlite"), [Row("stages", "seal", "sqlite", 1.0, "s")])
    first = first.with_part(MACHINE, ("paced", "sqlite"), [Row("end to end", "used", "sqlite", 50.0, "%")])
    first = first.with_part(MACHINE, ("growth", "sqlite"), [Row("growth", "numbers", "sqlite", 2.0, "ms")])
    both = report.from_json(report.as_json(first)).with_part(
        later, ("paced", "sqlite"), [Row("end to end", "used", "sqlite", 99.0, "%")]
    )
    assert [(row.what, row.value) for row in both.rows] == [("seal", 1.0), ("used", 99.0), ("numbers", 2.0)]
    assert [run.measured for run in both.runs] == [(("stages", "sqlite"), ("growth", "sqlite")), (("paced", "sqlite"),)]
    text = report.as_text(both)
    assert "Measured 2026-01-01" in text
    assert "load before: 0 (paced)." in text


def test_a_figure_that_is_not_measured_any_more_leaves_the_report() -> None:
    """Renamed or left out, it goes with the part and engine that measured it, and with nothing else."""
    told = report.Report(False)
    for part, engine in (("paced", "sqlite"), ("paced", "postgresql"), ("several", "sqlite")):
        told = told.with_part(MACHINE, (part, engine), [Row("end to end", f"{part}: old", engine, 1.0, "%")])
    told = told.with_part(MACHINE, ("paced", "sqlite"), [Row("end to end", "paced: new", "sqlite", 2.0, "%")])
    assert [(row.what, row.engine) for row in told.rows] == [
        ("paced: new", "sqlite"), ("paced: old", "postgresql"), ("several: old", "sqlite"),
    ]  # fmt: skip


def test_a_report_from_before_can_be_added_to() -> None:
    """Its figures do not say which part of a run has measured them: the same name and place are replaced."""
    names = ("growth", "gone"), ("end to end", "used"), ("end to end", "other")
    rows = [{"part": part, "what": what, "engine": "sqlite", "value": 1.0, "unit": "s"} for part, what in names]
    old = report.from_json(json.dumps({"quick": False, "runs": [], "rows": rows}))
    old = old.with_part(MACHINE, ("paced", "sqlite"), [Row("end to end", "used", "sqlite", 2.0, "s")])
    old = old.with_part(MACHINE, ("growth", "sqlite"), [Row("growth", "new", "sqlite", 2.0, "s")])
    assert [(row.what, row.value) for row in old.rows] == [("new", 2.0), ("used", 2.0), ("other", 1.0)]


def test_the_report_that_is_kept_can_be_read() -> None:
    """docs/benchmarks.json is what a single part measured again is merged into."""
    assert report.from_json(bench.JSON.read_text()).rows


def test_a_part_that_fails_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was measured is kept, also of the part itself; the exit code and the last line say what to repeat."""

    def measured(part: str, *_: object) -> Iterator[Row]:
        yield Row(part, "one", "sqlite", 1.0, "s")
        if part == "stages":
            raise RuntimeError("no room left")
        yield Row(part, "two", "sqlite", 1.0, "s")

    monkeypatch.setattr(parts, "measure", measured)
    kept = tmp_path / "bench.json"
    chosen = ["--quick", "--engines", "sqlite", "--json", str(kept), "--place", str(tmp_path)]
    assert bench.main([*chosen, "--parts", "stages", "growth"]) == 1
    told = [(row.part, row.what) for row in report.from_json(kept.read_text()).rows]
    assert told == [("stages", "one"), ("growth", "one"), ("growth", "two")]
    assert "--parts stages'" in capsys.readouterr().err


def test_whoever_has_nothing_to_send_is_told_apart() -> None:
    """Users a second counts everybody who was processed; who has an identifier to send has a row of its own."""
    done = drains.Drained(100, 98, 2.0, (0.0, 1.0), (), 0.0, 0.0, 0.0, 0.0, 0)
    rows = {row.what: row.value for row in parts._end_to_end("paced", parts.Engine("sqlite", Path()), done)}
    assert rows["paced: users a second"] == 50
    assert rows["paced: users a second with an identifier to send"] == 49


def test_fresh_rows_count_only_while_the_backfill_is_sent() -> None:
    """Who came before its first or after its last request had nobody before them."""
    committed, waits, others_s = [1.0, 2.0, 3.0, 4.0], [0.1, 0.2, 0.3, 0.4], [3.5, 2.0, 3.0]
    assert airflow_run._while_sending(committed, waits, others_s) == [0.2, 0.3]
    assert airflow_run._while_sending(committed, waits, []) == []


def test_a_figure_of_freshness_says_of_how_many_rows() -> None:
    """And where there was none, there is no figure."""
    told = [(row.value, row.note) for row in airflow_run._quantiles("idle", [3.0, 1.0, 2.0])]
    assert told == [(2.0, "3 rows"), (3.0, "3 rows"), (3.0, "3 rows")]
    assert list(airflow_run._quantiles("idle", [])) == []


@pytest.mark.parametrize(
    ("stretches_s", "indexing_s"),
    [([0.2, 4.2, 4.2, 1.0, 0.2], 8.8), ([0.3, 0.1], 0.2), ([4.0] * 100, None)],
    ids=["built", "nothing to build", "never calm"],
)
def test_the_index_of_people_costs_what_is_used_until_it_is_calm(
    monkeypatch: pytest.MonkeyPatch, stretches_s: list[float], indexing_s: float | None
) -> None:
    """Less what Airflow uses then; of what has no end, nothing is said."""
    used_s = accumulate(stretches_s, initial=7.0)
    monkeypatch.setattr(time, "sleep", lambda _for_s: None)
    monkeypatch.setattr(airflow_run, "cpu_of_others", lambda: next(used_s))
    assert airflow_run._until_calm(next(used_s)) == (None if indexing_s is None else pytest.approx(indexing_s))


def test_memory_of_a_process_nobody_saw_has_no_row() -> None:
    """The part goes on without it; database server, sandbox and the benchmark itself are not counted."""
    watch = Watch(os.getpid())
    watch.title = {
        1: "airflow worker -- 01234567-89ab-cdef-0123-456789abcdef", 2: "airflow scheduler",
        3: "postgres: writer", 4: "python -m criteo_provider.sandbox --port 0",
    }  # fmt: skip
    watch.peak_mb = {1: 100.0, 2: 200.0, 3: 300.0, 4: 400.0, os.getpid(): 500.0}
    told = [(row.what, row.value) for row in airflow_run._peaks("paced", "sqlite", watch)]
    assert told == [("paced: most memory of a process", 200.0), ("paced: most memory of the upload task", 100.0)]
    assert list(airflow_run._peaks("paced", "sqlite", Watch(os.getpid()))) == []


def test_the_last_requests_do_not_count_as_slots_left_unused() -> None:
    """Ninety-five requests a quarter of a second apart, and five for which there was no work in time."""
    arrivals_s = tuple(0.25 * number for number in range(95)) + tuple(60.0 + number for number in range(5))
    done = drains.Drained(1, 1, 1.0, arrivals_s, (), 0.0, 0.0, 0.0, 0.0, 0)
    assert done.requests_per_min == 240


def test_a_page_without_its_marks_is_not_touched(tmp_path: Path) -> None:
    """A full run must not overwrite a page it does not know."""
    page = tmp_path / "page.md"
    page.write_text("something else")
    with pytest.raises(ValueError, match="marks"):
        report.write_page(page, "figures")
    assert page.read_text() == "something else"


def test_the_documentation_has_a_place_for_the_figures() -> None:
    """docs/benchmarks.md is there, with the marks between which a full run writes."""
    page = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text()
    assert page.count(report.BEGIN) == page.count(report.END) == 1


def test_a_process_is_known_by_what_it_calls_itself() -> None:
    """Memory of the upload task is told apart from Airflow's own by the title of its process."""
    waits = [sys.executable, "-c", "import sys; sys.stdin.read()", "airflow worker -- somebody"]
    with Watch(os.getpid()) as watch, subprocess.Popen(waits, stdin=subprocess.PIPE) as process:
        _until(lambda: "airflow worker -- somebody" in watch.title.get(process.pid, ""))
        assert process.stdin is not None
        process.stdin.close()
    assert watch.title[process.pid].endswith("airflow worker -- somebody")
    assert watch.peak_mb[process.pid] > 1


def test_a_peak_between_two_looks_is_seen() -> None:
    """Of a process that began while it was looked, the kernel knows the most it has held, in MB of a million bytes."""
    program = "held = bytearray(b'x') * 200_000_000; del held; print(flush=True); input()"
    with Watch(os.getpid()) as watch:
        _until(lambda: os.getpid() in watch.peak_mb)
        with subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:  # fmt: skip
            assert process.stdout is not None
            process.stdout.readline()
            assert psutil.Process(process.pid).memory_info().rss < 150e6
            _until(lambda: watch.peak_mb.get(process.pid, 0.0) > 150)
            process.communicate(b"\n")
    assert 200 < watch.peak_mb[process.pid] < 225


def test_a_process_that_was_there_has_the_memory_it_holds() -> None:
    """What a server held while it started is not what it held while it was looked."""
    program = "held = bytearray(b'x') * 200_000_000; del held; print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with Watch(process.pid) as watch:
            _until(lambda: process.pid in watch.peak_mb)
        assert watch.peak_mb[process.pid] == pytest.approx(
            psutil.Process(process.pid).memory_info().rss / 1e6, rel=0.02
        )
        process.communicate(b"\n")


def test_cpu_that_was_used_stays_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ends after its parent was asked is missing in one look, and must not count twice in the next."""
    looks = iter([5.0, 3.0])
    monkeypatch.setattr(measure, "_used_s", lambda _family: next(looks, 6.0))
    with Watch(os.getpid()) as watch:
        _until(lambda: len(watch._used) >= 3)
    assert [used_s for _, used_s in watch._used][:3] == [5.0, 5.0, 6.0]


def test_processes_beside_are_told_apart_by_their_module() -> None:
    """Both are known by the command line they are started with, so a row for their memory stays theirs."""
    title = {packing.__name__: airflow_run.PACKING, reading_beside.__name__: airflow_run.READING}
    for module in title:
        process = side_process.start(module, str(PLUGINS))
        try:
            until_s = time.monotonic() + 30
            # For a moment after it was started it has no command line.
            while not (told := " ".join(psutil.Process(process.pid).cmdline())) and time.monotonic() < until_s:
                time.sleep(0.01)
            assert [name for name, pattern in title.items() if pattern.search(told)] == [module]
        finally:
            side_process.end(process, kill=True)


def test_the_work_of_a_process_that_ends_while_it_is_asked_about_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time is its parent's only once it has ended: whoever ends between two readings is in neither of them."""
    works = "import sys, time; until_s = time.process_time() + 0.5\nwhile time.process_time() < until_s: pass"
    begun, read = measure.cpu_of_others(), measure._used_s
    command = [sys.executable, "-c", f"{works}\nprint(flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()

        def just_then(running: list[psutil.Process]) -> float:
            if worker.returncode is None:
                worker.communicate(b"\n")
            return read(running)

        monkeypatch.setattr(measure, "_used_s", just_then)
        assert measure.cpu_of_others() - begun > 0.4


def _until(seen: Callable[[], bool]) -> None:
    until_s = time.monotonic() + 30
    while not seen() and time.monotonic() < until_s:
        time.sleep(0.05)
