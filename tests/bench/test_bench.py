"""The benchmark runs, and its report has every row; how fast anything is, no test says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
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
        for question in ("numbers", "look for work", "one user's story", "nobody's story"):
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
    both = report.from_json(report.as_json(first)).with_part(
        later, ("paced", "sqlite"), [Row("end to end", "used", "sqlite", 99.0, "%")]
    )
    assert [(row.what, row.value) for row in both.rows] == [("seal", 1.0), ("used", 99.0)]
    assert [run.measured for run in both.runs] == [(("stages", "sqlite"),), (("paced", "sqlite"),)]
    text = report.as_text(both)
    assert "Measured 2026-01-01" in text
    assert "load before: 0 (paced)." in text


def test_a_part_that_fails_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was measured is kept, the exit code and the last line say what to repeat."""

    def measured(part: str, *_: object) -> Iterator[Row]:
        yield Row(part, "one", "sqlite", 1.0, "s")
        if part == "stages":
            raise RuntimeError("no room left")

    monkeypatch.setattr(parts, "measure", measured)
    kept = tmp_path / "bench.json"
    chosen = ["--quick", "--engines", "sqlite", "--json", str(kept), "--place", str(tmp_path)]
    assert bench.main([*chosen, "--parts", "stages", "growth"]) == 1
    assert [row.part for row in report.from_json(kept.read_text()).rows] == ["growth"]
    assert "--parts stages'" in capsys.readouterr().err


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
        until_s = time.monotonic() + 30
        while "airflow worker -- somebody" not in watch.title.get(process.pid, "") and time.monotonic() < until_s:
            time.sleep(0.05)
        assert process.stdin is not None
        process.stdin.close()
    assert watch.title[process.pid].endswith("airflow worker -- somebody")
    assert watch.peak_mb[process.pid] > 1


def test_processes_beside_are_told_apart_by_their_module() -> None:
    """Both are known by the command line they are started with, so a row for their memory stays theirs."""
    for module, title in ((packing.__name__, airflow_run.PACKING), (reading_beside.__name__, airflow_run.READING)):
        process = side_process.start(module, str(PLUGINS))
        try:
            assert title.search(" ".join(psutil.Process(process.pid).cmdline()))
        finally:
            side_process.end(process, kill=True)


def test_the_work_of_a_process_that_ends_while_it_is_asked_about_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time is its parent's only once it has ended: whoever ends between two readings is in neither of them."""
    works = "import sys, time; until_s = time.process_time() + 0.5\nwhile time.process_time() < until_s: pass"
    begun, read = measure.cpu_of_others(), measure._used_s
    with subprocess.Popen(
        [sys.executable, "-c", f"{works}\nprint(flush=True); input()"], stdin=-1, stdout=-1
    ) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()

        def just_then(running: list[psutil.Process]) -> float:
            if worker.returncode is None:
                worker.communicate(b"\n")
            return read(running)

        monkeypatch.setattr(measure, "_used_s", just_then)
        assert measure.cpu_of_others() - begun > 0.4
