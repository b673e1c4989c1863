"""What the commands of `airflow criteo` do: print for people, answer scripts by exit code (0 good, 1 not good)."""

from __future__ import annotations

import getpass
import sys
from argparse import Namespace
from contextlib import closing
from typing import TYPE_CHECKING, Any

from criteo_provider.cli.command import command, moment, show
from criteo_provider.core.model import Reason
from criteo_provider.hooks.surroundings import open_house

if TYPE_CHECKING:
    from criteo_provider.wiring.preflight import Report


@command
def db_upgrade(_args: Namespace) -> bool:
    """Bring the ledger's tables up to date."""
    with closing(open_house()) as house:
        print(house.upgrade())
    return True


@command
def db_check(_args: Namespace) -> bool:
    """Prove the laws of the ledger."""
    with closing(open_house()) as house:
        violated = house.prove()
    for law in violated:
        print(law)
    print("The numbers do not add up." if violated else "All laws hold: the numbers add up.")
    return not violated


@command
def db_rotate_key(_args: Namespace) -> bool:
    """Encrypt the ledger's tokens under the first of Airflow's Fernet keys."""
    with closing(open_house()) as house:
        good, sentence = house.rotate_key()
    print(sentence)
    return good


@command
def status(args: Namespace) -> bool:
    """Show how each step fares, with its seven metrics."""
    with closing(open_house()) as house:
        states = house.audiences.states()
        numbers = [step for step in house.numbers() if args.canvas in (None, step.canvas)]
        rows = [{**numbers_row(step), "state": states.get((step.canvas, step.step), "")} for step in numbers]
        slower = [one for one in house.flush() if one.sentence]
        outages = house.outages()
    if args.canvas and not rows:
        print(f"The ledger knows no canvas {args.canvas}; `airflow criteo preflight` may say why.", file=sys.stderr)
        return False
    show(rows, args.output)
    for outage in outages:
        since = moment(outage.since_us)
        print(f"Connection {outage.connection_id}, since {since}: {outage.sentence}", file=sys.stderr)
    for one in slower:
        print(f"Connection {one.connection_id}: {one.sentence}.", file=sys.stderr)
    return True


@command
def opt_outs(args: Namespace) -> bool:
    """Show how many opt-outs each feed has told of."""
    with closing(open_house()) as house:
        rows = [
            {"feed": feed, "opted_out": holding, "taken_back": ended}
            for feed, (holding, ended) in sorted(house.consent.counts().items())
        ]
        problems = [str(problem) for problem in house.consent.feeds.problems]
    show(rows, args.output)
    for problem in problems:
        print(problem, file=sys.stderr)
    return not problems


@command
def drop(args: Namespace) -> bool:
    """Give up the people of a step that is no longer declared."""
    with closing(open_house()) as house:
        closed = house.drop(args.canvas, args.step)
        held = {(one.canvas, one.step) for one in house.numbers() if not one.declared}
        if (args.canvas, args.step) not in held:
            names = ", ".join(sorted(f"{canvas} {step}" for canvas, step in held)) or "none"
            print(f"No such step is held: a declared step is not dropped. Held now: {names}.", file=sys.stderr)
            return False
    print(f"Step {args.step} of canvas {args.canvas} is dropped; {closed} uploads were closed, nobody of it is sent.")
    return True


@command
def retry(args: Namespace) -> bool:
    """Have Errored users tried again, recorded with who and why."""
    if (args.canvas is None) is not args.all:
        print("Name a canvas (and a step), or say --all.", file=sys.stderr)
        return False
    with closing(open_house()) as house:
        known = {(one.canvas, one.step) for one in house.numbers()}
        meant = {one for one in known if args.canvas in (None, one[0]) and args.step in (None, one[1])}
        if not meant:
            names = ", ".join(sorted(f"{canvas} {step}" for canvas, step in known)) or "none"
            print(f"There is no such canvas or step. Known are: {names}.", file=sys.stderr)
            return False
        people = house.requeue(args.canvas, args.step, who=getpass.getuser(), why=args.reason.strip())
    print(f"{people:,} Errored users are Pending again." if people else "Nobody there is Errored.")
    return True


@command
def preflight(args: Namespace) -> bool:
    """Check everything people need to be synced, and say all of it."""
    with closing(open_house()) as house:
        reports = house.preflight.reports(args.canvas)
    show([row for report in reports for row in preflight_rows(report)], args.output)
    return not any(report.failures for report in reports)


def sandbox(args: Namespace) -> None:
    """Run the sandbox until Ctrl-C."""
    from criteo_provider.sandbox.__main__ import main

    raise SystemExit(main(["--port", str(args.port)]))


def numbers_row(step: Any) -> dict[str, Any]:
    """Return the numbers of one step as a row under the names people read."""
    return {
        "canvas": step.canvas,
        "step": step.step,
        "audience": step.audience,
        "operation": str(step.operation),
        "entered": step.entered,
        "proceeded": step.proceeded,
        "synced": step.synced,
        "not_synced": step.not_synced,
        "consent_withdrawn": step.not_synced_reasons.get(Reason.CONSENT_WITHDRAWN, 0),
        "pending": step.pending,
        "errored": step.errored,
        "exited": step.exited,
    }


def preflight_rows(report: Report) -> list[dict[str, Any]]:
    """Return what a preflight has found as rows: what is to be mended first, then what a launch makes of audiences."""
    rows = [
        _preflight_row(report, str(one.severity), one.where, one.what, one.why, one.mend, one.code)
        for one in report.findings
    ]
    rows += [
        _preflight_row(report, "ok", f"step {one.step}", f"audience “{one.audience}” ({one.ad_account}): {one.state}")
        for one in report.targets
    ]
    return rows if report.failures else [*rows, _preflight_row(report, "ok", "canvas", "ready: nothing to mend")]


def _preflight_row(
    report: Report, severity: str, where: str, what: str, why: str = "", mend: str = "", code: str = "ok"
) -> dict[str, Any]:
    """Name the cells in the one order all rows have: a table goes by their places."""
    named = {"severity": severity, "where": where, "what": what, "mend": mend, "why": why, "code": code}
    return {"canvas": report.canvas_id, **named}
