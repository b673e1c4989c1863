"""``make bench``: measure everything, print the report, keep it as JSON and in docs/benchmarks.md.

python -m bench            the full run: as long as it needs, on a quiet machine
python -m bench --quick    under a minute: small crowds, nothing paced; written nowhere but to the JSON
python -m bench --parts paced airflow       only these, merged into what the JSON and the page say of the others
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import parts, report
from bench.measure import Row, machine

PROJECT = Path(__file__).resolve().parent.parent
# Kept beside the page, so that a part can be measured again in another clone.
PAGE, JSON = PROJECT / "docs" / "benchmarks.md", PROJECT / "docs" / "benchmarks.json"
QUICK_JSON = PROJECT / "var" / "bench.json"


def main(argv: list[str] | None = None) -> int:
    """Measure and report; return the exit code."""
    args = _parser().parse_args(argv)
    if args.json is None:
        args.json = QUICK_JSON if args.quick else JSON
    kept = report.Report(args.quick)
    if args.parts and args.json.exists():
        known = report.from_json(args.json.read_text())
        kept = known if known.quick == args.quick else kept
    chosen = args.parts or (parts.QUICK_PARTS if args.quick else (*parts.PARTS, parts.AIRFLOW))
    here, failed = machine(), []
    place = Path(tempfile.mkdtemp(prefix="criteo-bench-", dir=args.place))
    # Workers and sandbox are processes of their own and have to find the same packages.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(PROJECT / "plugins"), str(PROJECT)])
    try:
        for part, engine, rows in _measurements(place, chosen, args.engines, quick=args.quick):
            told: list[Row] = []
            try:
                for row in rows:
                    told.append(_told(row))
            except Exception:
                # What it measured before is worth having, and so are the other parts; this one can be repeated.
                traceback.print_exc()
                failed.append(part)
            if not told:
                continue
            kept = kept.with_part(here, (part, engine), told)
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(report.as_json(kept))
    finally:
        shutil.rmtree(place, ignore_errors=True)
    text = report.as_text(kept)
    print(text)
    print(f"The same as JSON: {args.json}")
    if not args.quick:
        report.write_page(PAGE, text)
    if failed:
        again = " ".join(dict.fromkeys(failed))
        print(f"These parts have failed (see above); repeat them with: make bench B='--parts {again}'", file=sys.stderr)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="small crowds, nothing paced: under a minute")
    others = "figures of others stay as they are (default: all; with --quick, what needs neither pace nor Airflow)"
    parser.add_argument("--parts", nargs="+", choices=(*parts.PARTS, parts.AIRFLOW), help=f"only these; {others}")
    parser.add_argument("--engines", nargs="+", choices=("sqlite", "postgresql"), default=["sqlite", "postgresql"])
    parser.add_argument("--json", type=Path, help="where the JSON goes (default: beside the page, or to var/)")
    parser.add_argument("--place", type=Path, help="a folder to work in (default: a temporary one)")
    return parser


def _measurements(
    place: Path, chosen: Sequence[str], engines: Sequence[str], *, quick: bool
) -> Iterator[tuple[str, str, Iterator[Row]]]:
    """Yield each part on each engine with its rows, which are measured while they are taken."""
    sizes = parts.QUICK if quick else parts.FULL
    if "unpaced" in chosen:
        say("Making people ...")
        parts.prepare(place, sizes)
    here = [part for part in parts.PARTS if part in chosen]
    for name in engines if here else ():
        with parts.engine_of(name, place) as engine:
            folder = _folder(place, name)
            for part in here:
                yield part, name, parts.measure(part, engine, folder, sizes)
    if parts.AIRFLOW in chosen:
        from bench.airflow_run import in_airflow

        for name in engines:
            folder = place / f"airflow-{name}"
            folder.mkdir()
            with parts.engine_of(name, folder) as engine:
                yield parts.AIRFLOW, name, in_airflow(folder, engine, quick=quick)
            shutil.rmtree(folder, ignore_errors=True)


def _told(row: Row) -> Row:
    say(f"  {row.engine:10}  {row.part}: {row.what}: {row.value:,.2f} {row.unit}")
    return row


def _folder(place: Path, engine: str) -> Path:
    """Make a folder for an engine, in which it sees the shop all share."""
    folder = place / engine
    folder.mkdir()
    for shared in ("shop.db", "parquet"):
        (folder / shared).symlink_to(place / shared)
    return folder


def say(line: str) -> None:
    """Tell how far it is."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
