"""The report: one table a part for people, the same rows as JSON, and a page of the documentation made of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.measure import Row

PARTS = {
    "stages": "What a million users cost, station by station (CPU seconds, one thread)",
    "end to end": "From the source to the sandbox, through the real House",
    "yardsticks": "The same work by what one would write instead",
    "growth": "How long questions take as the ledger grows",
    "airflow": "In a real Airflow",
}
BEGIN, END = "<!-- measured: begin (make bench writes this) -->", "<!-- measured: end -->"


def as_json(machine: dict[str, Any], rows: Sequence[Row], *, quick: bool) -> str:
    """Return machine and rows as JSON."""
    return json.dumps({"machine": machine, "quick": quick, "rows": [asdict(row) for row in rows]}, indent=1)


def as_text(machine: dict[str, Any], rows: Sequence[Row]) -> str:
    """Return the report for people: a Markdown table a part, engines side by side."""
    lines = [
        f"Measured {machine['date']} on {machine['cpus']} x {machine['cpu']}, {machine['memory_gb']} GB, "
        f"{machine['system']}, Python {machine['python']}; load before: {machine['load_before']}.",
    ]
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
