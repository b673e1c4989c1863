"""The report: one table a part for people, the same rows as JSON, and a page of the documentation made of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import msgspec

from bench.measure import Row

PARTS = {
    "stages": "What a million users cost, station by station (CPU seconds, one thread)",
    "end to end": "From the source to the sandbox, through the real House",
    "yardsticks": "The same work by what one would write instead",
    "growth": "How long questions take as the ledger grows",
    "airflow": "In a real Airflow",
}
BEGIN, END = "<!-- measured: begin (make bench writes this) -->", "<!-- measured: end -->"


@dataclass(frozen=True, slots=True)
class Run:
    """Where and when some parts were measured, each on an engine."""

    machine: dict[str, Any]
    measured: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """All that was measured, by one run or by several of which each has measured what the others have not."""

    quick: bool
    runs: tuple[Run, ...] = ()
    rows: tuple[Row, ...] = ()

    def with_part(self, machine: dict[str, Any], measured: tuple[str, str], rows: Sequence[Row]) -> Report:
        """Return this report with a part measured by the run on ``machine``, in place of all it said before."""
        part, engine = measured
        fresh = [replace(row, measured_by=part) for row in rows]
        names = {(row.part, row.what, row.engine) for row in fresh}

        def stays(row: Row) -> bool:
            # What an old report does not say who measured, is known by its place in the report or by its name.
            of_part = row.engine == engine and part in (row.measured_by, row.part)
            return not of_part and (row.part, row.what, row.engine) not in names

        before = list(takewhile(stays, self.rows))
        after = [row for row in self.rows[len(before) :] if stays(row)]
        runs = [Run(run.machine, tuple(one for one in run.measured if one != measured)) for run in self.runs]
        if not runs or runs[-1].machine != machine:
            runs.append(Run(machine))
        runs[-1] = Run(machine, (*runs[-1].measured, measured))
        return Report(self.quick, tuple(run for run in runs if run.measured), (*before, *fresh, *after))


def as_json(report: Report) -> str:
    """Return a report as JSON."""
    return json.dumps(asdict(report), indent=1)


def from_json(text: str) -> Report:
    """Read what ``as_json`` has written."""
    return msgspec.json.decode(text, type=Report)


def as_text(report: Report) -> str:
    """Return the report for people: a Markdown table a part, engines side by side."""
    rows, lines = report.rows, []
    for run in report.runs:
        machine = run.machine
        parts = f" ({', '.join(dict.fromkeys(part for part, _ in run.measured))})" if len(report.runs) > 1 else ""
        lines.append(
            f"Measured {machine['date']} on {machine['cpus']} x {machine['cpu']}, {machine['memory_gb']} GB, "
            f"{machine['system']}, Python {machine['python']}; load before: {machine['load_before']}{parts}.",
        )
    for part, title in PARTS.items():
        of_part = [row for row in rows if row.part == part]
        if of_part:
            lines += ["", f"### {title}", *_table(of_part)]
    return "\n".join(lines) + "\n"


def write_page(page: Path, text: str) -> None:
    """Put the report into the page, between its two marks."""
    before, found, rest = page.read_text().partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not (found and ended):
        raise ValueError(f"{page} has lost its marks {BEGIN} and {END}: put them back where the report belongs.")
    page.write_text(f"{before}{BEGIN}\n{text}{END}{after}")


def _table(rows: Sequence[Row]) -> Iterator[str]:
    engines = list(dict.fromkeys(row.engine for row in rows))
    yield f"| | {' | '.join(engines)} | |"
    yield f"|--|{'--:|' * len(engines)}--|"
    for what in dict.fromkeys(row.what for row in rows):
        of = {row.engine: row for row in rows if row.what == what}
        cells = [_figure(of[engine]) if engine in of else "" for engine in engines]
        any_row = next(iter(of.values()))
        yield f"| {what} | {' | '.join(cells)} | {any_row.unit}{f' ({any_row.note})' if any_row.note else ''} |"


def _figure(row: Row) -> str:
    digits = 0 if row.value >= 100 else 1 if row.value >= 10 else 2
    figure = f"{row.value:,.{digits}f}"
    return figure if row.per_yardstick in (None, 1.0) else f"{figure} = {row.per_yardstick:.1f}x"
