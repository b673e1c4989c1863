"""Commands about what the ledger has on record: one user's story, and how long it is kept."""

from __future__ import annotations

import sys
from argparse import Namespace
from contextlib import closing
from datetime import UTC, datetime
from getpass import getpass
from typing import TYPE_CHECKING

from criteo_provider.cli.command import command, show
from criteo_provider.core.errors import Misconfigured
from criteo_provider.hooks.surroundings import open_house

if TYPE_CHECKING:
    from criteo_provider.store.person import PersonStep


@command
def person(args: Namespace) -> bool:
    """Show what happened to one user."""
    named = args.named or (getpass("User key or identifier: ") if sys.stdin.isatty() else sys.stdin.readline()).strip()
    if not named:
        raise Misconfigured("Whose story? Give a user key or an identifier when asked, or on standard input.")
    with closing(open_house()) as house:
        steps = house.records.person(named)
    if not steps:
        print("This ledger knows nobody of that name.", file=sys.stderr)
        return False
    show([row for one in steps for row in person_rows(one)], args.output)
    return True


@command
def prune(args: Namespace) -> bool:
    """Turn finished people of long ago into counts."""
    pruned = 0
    with closing(open_house()) as house:
        for pruned in house.records.prune(args.older_than):
            print(f"{pruned:,} people are counts now ...", file=sys.stderr)
    print(f"{pruned:,} people are kept as counts only." if pruned else "Nobody finished is that old.")
    return True


def person_rows(one: PersonStep) -> list[dict[str, str]]:
    """Return one row for each upload of a user in a step, or one where there is none."""
    step = {
        "canvas": one.canvas,
        "step": one.step if one.declared else f"{one.step} (no longer declared)",
        "audience": f"{one.operation} {one.ad_account} / {one.audience}",
        "entered": _moment(one.entered_us),
        "status": one.status + (f": {one.reason}" if one.reason else ""),
    }
    uploads = [
        {
            "identifier": upload.form,
            "upload": upload.state.name.lower() + (f": {upload.reason}" if upload.reason else ""),
            "attempts": str(upload.attempts),
            "next_attempt": _moment(upload.next_attempt_us),
            "deadline": _moment(upload.deadline_us),
            "request": "" if upload.request_id is None else f"{upload.request_id} ({upload.code or 'in flight'})",
        }
        for upload in one.uploads
    ]
    nothing = dict.fromkeys(("identifier", "upload", "attempts", "next_attempt", "deadline", "request"), "")
    return [{**step, **upload} for upload in uploads or [nothing]]


def _moment(at_us: int | None) -> str:
    return "" if at_us is None else datetime.fromtimestamp(at_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
