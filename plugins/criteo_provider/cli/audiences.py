"""`airflow criteo audiences ...`: the contact lists canvases use, making one by hand, and what Criteo counted."""

from __future__ import annotations

import sys
from argparse import Namespace
from contextlib import closing
from typing import TYPE_CHECKING

from criteo_provider.cli.command import command, moment, show
from criteo_provider.hooks.surroundings import open_house
from criteo_provider.wiring.audiences import LAG

if TYPE_CHECKING:
    from criteo_provider.wiring.audiences import Size


@command
def audiences_list(args: Namespace) -> bool:
    """List every audience a canvas has named."""
    with closing(open_house()) as house:
        rows = [
            {
                "audience": row.name,
                "ad_account": row.ad_account,
                "criteo_id": row.criteo_id or "",
                "origin": ("created here" if row.created_here else "found") if row.criteo_id else "",
                "used_by": ", ".join(row.steps),
                "last_request": moment(row.last_request_us),
                "state": row.state,
            }
            for row in house.audiences.rows()
        ]
    show(rows, args.output)
    return True


@command
def audiences_create(args: Namespace) -> bool:
    """Find or create one contact list."""
    with closing(open_house()) as house:
        criteo_id, created = house.audiences.create(args.conn_id, args.ad_account, args.name)
    what = "is created" if created else "was there already"
    print(f"Audience “{args.name}” {what} in ad account {args.ad_account}: Criteo id {criteo_id}.")
    return True


@command
def audiences_sizes(args: Namespace) -> bool:
    """Show what Criteo counted."""
    with closing(open_house()) as house:
        sizes = house.audiences.sizes(args.name)
    if not sizes:
        print("No such audience is at Criteo; `airflow criteo audiences list` shows them.", file=sys.stderr)
        return False
    show([_size(one) for one in sizes], args.output)
    return not any(one.problem for one in sizes)


def _size(size: Size) -> dict[str, str]:
    unknown = "unknown" if size.problem else "not counted yet, or hidden"
    rate = size.match_rate_percent
    return {
        "audience": size.audience.name,
        "ad_account": size.audience.ad_account,
        "criteo_id": size.audience.criteo_id or "",
        "identifiers": unknown if size.identifiers is None else f"{size.identifiers:,}",
        "matches": unknown if size.matches is None else f"{size.matches:,}",
        "match_rate": unknown if rate is None else f"{rate:.1f} %",
        "note": size.problem or LAG,
    }
