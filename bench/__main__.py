"""``make bench``: measure everything, print the report, keep it as JSON and in docs/benchmarks.md.

python -m bench            the full run: as long as it needs, on a quiet machine
python -m bench --quick    under a minute: small crowds, nothing paced; written nowhere but to the JSON
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from bench import parts, report
from bench.measure import Row, machine

PROJECT = Path(__file__).resolve().parent.parent


def main(argv: list[str] | None = None) -> int:
    """Measure and report; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="small crowds, nothing paced: under a minute")
    parser.add_argument("--engines", nargs="+", choices=("sqlite", "postgresql"), default=["sqlite", "postgresql"])
    parser.add_argument("--airflow", action="store_true", help="also through the real operator in `airflow standalone`")
    parser.add_argument("--json", type=Path, default=PROJECT / "var" / "bench.json", help="where the JSON goes")
    parser.add_argument("--place", type=Path, help="a folder to work in (default: a temporary one)")
    args = parser.parse_args(argv)
    here, rows = machine(), []
    place = Path(tempfile.mkdtemp(prefix="criteo-bench-", dir=args.place))
    # Workers and sandbox are processes of their own and have to find the same packages.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(PROJECT / "plugins"), str(PROJECT)])
    try:
        sizes = parts.QUICK if args.quick else parts.FULL
        say("Making people ...")
        parts.prepare(place, sizes)
        for name in args.engines:
            with parts.engine_of(name, place) as engine:
                for row in parts.measure(engine, _folder(place, name), sizes):
                    rows.append(row)
                    say(f"  {row.engine:10}  {row.part}: {row.what}: {row.value:,.2f} {row.unit}")
        if args.airflow:
            from bench.airflow_run import in_airflow

            for row in in_airflow(place, quick=args.quick):
                rows.append(row)
                say(f"  {row.engine:10}  {row.part}: {row.what}: {row.value:,.2f} {row.unit}")
    finally:
        shutil.rmtree(place, ignore_errors=True)
    _keep(args.json, here, rows, quick=args.quick)
    return 0


def _folder(place: Path, engine: str) -> Path:
    """Make a folder for an engine, in which it sees the shop all share."""
    folder = place / engine
    folder.mkdir()
    for shared in ("shop.db", "parquet"):
        (folder / shared).symlink_to(place / shared)
    return folder


def _keep(path: Path, here: dict[str, object], rows: list[Row], *, quick: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report.as_json(here, rows, quick=quick))
    text = report.as_text(here, rows)
    print(text)
    print(f"The same as JSON: {path}")
    if not quick:
        report.write_page(PROJECT / "docs" / "benchmarks.md", text)


def say(line: str) -> None:
    """Tell how far it is."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
