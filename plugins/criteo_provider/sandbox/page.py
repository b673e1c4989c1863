"""The page at ``/``: how this Criteo stands, for somebody who watches; no token, secret or identifier is on it."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from criteo_provider.sandbox.catalogue import CATALOGUE
from criteo_provider.sandbox.faults import Fault
from criteo_provider.sandbox.journal import Entry
from criteo_provider.sandbox.ratelimit import largest_in_window
from criteo_provider.sandbox.state import World

REFRESH_S = 2
SHOWN_CALLS = 25
SHOWN_SEGMENTS = 100
COUNTED_CALLS = 5_000
"""The largest window is looked for among so many of the latest calls: the page must stay cheap."""

STYLE = """
:root { color-scheme: light dark; --line: light-dark(#d8dbe0, #3a3f47); --soft: light-dark(#5b6470, #9aa4b2);
  --card: light-dark(#fff, #1c2026); --bad: light-dark(#b3261e, #ff8a80); --good: light-dark(#1b6e3c, #7bd89f); }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem; background: light-dark(#f4f5f7, #14171b);
  color: light-dark(#1d2329, #e6e9ee); font: 15px/1.45 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.4rem; } h2 { margin: 0 0 .6rem; font-size: 1rem; }
header { display: flex; flex-wrap: wrap; gap: .3rem 1.5rem; align-items: baseline; margin-bottom: 1rem; }
section { margin-bottom: 1rem; padding: 1rem; overflow-x: auto; background: var(--card);
  border: 1px solid var(--line); border-radius: .5rem; }
table { width: 100%; border-collapse: collapse; } th { color: var(--soft); font-weight: 500; text-align: left; }
th, td { padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
tr:last-child td { border-bottom: 0; } td.number, th.number { text-align: right;
  font-variant-numeric: tabular-nums; } td.says { white-space: normal; }
.soft { color: var(--soft); } .bad { color: var(--bad); } .good { color: var(--good); }
"""

Cell = tuple[str, str]
"""A text and the class of its cell."""


def routes(world: World) -> list[Route]:
    """Return the page's route."""

    async def show(request: Request) -> Response:
        return HTMLResponse(_page(world), headers={"cache-control": "no-store"})

    return [Route("/", show, methods=["GET"])]


def _page(world: World) -> str:
    clock = datetime.fromtimestamp(world.clock.wall_s(), UTC)
    ahead_s = world.clock.ahead_s
    sections = [
        _section("Faults in force", _faults(world), "None. GET /_admin/faults/catalogue lists what can be thrown."),
        _section("Applications and rate windows", _windows(world), "No application is declared."),
        _section("Segments", _segments(world), "None yet."),
        _section("Latest calls", _calls(world), "None yet."),
    ]
    moved = f" (moved {ahead_s:,.0f} s ahead)" if ahead_s else ""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="{REFRESH_S}">'
        '<link rel="icon" href="data:,"><meta name="viewport" content="width=device-width">'
        "<title>Sandbox Criteo</title>"
        f"<style>{STYLE}</style></head><body><header><h1>Sandbox Criteo</h1>"
        f'<span class="soft">Clock <time>{clock:%Y-%m-%d %H:%M:%S} UTC</time>{moved}</span>'
        f'<span class="soft">{world.journal.total:,} calls: {_counts(world)}</span></header>'
        f"{''.join(sections)}</body></html>"
    )


def _faults(world: World) -> Iterable[Sequence[Cell]]:
    named = world.faults.names_in_force()
    of_names = {id(fault) for thrown in world.faults.thrown for fault in thrown.faults}
    other = [fault for fault in world.faults.listed() if id(fault) not in of_names]
    if named or other:
        yield _head("Fault", "Seen as", "What happens")
    for name in named:
        yield (name, "bad"), (CATALOGUE[name].source, ""), (CATALOGUE[name].says, "says")
    for fault in other:
        yield ("unnamed", "bad"), ("", ""), (_effect(fault), "says")


def _effect(fault: Fault) -> str:
    what = [f"status {fault.status}" if fault.status else "", f"connection dropped {fault.drop}" if fault.drop else "",
            f"{fault.delay_s:g} s late" if fault.delay_s else ""]  # fmt: skip
    left = "every call" if fault.times is None else f"{fault.times} more"
    return f"{fault.operation}, {left}: {', '.join(filter(None, what)) or 'the answer is changed'}"


def _windows(world: World) -> Iterable[Sequence[Cell]]:
    window_s, latest = world.rules.window_s, world.journal.last(COUNTED_CALLS)
    yield _head(
        "Application",
        "Grant",
        "Permission",
        "Ad accounts",
        number=("Limit", "Now", f"Largest in {window_s:g} s", "Refused"),
    )
    for application in world.applications.values():
        consented = [grant for grant in world.grants if grant.client_id == application.client_id]
        for grant in (application.grant, *consented):
            limit = world.limit_of(grant)
            of_grant = (application.number, grant.number)
            own = [entry for entry in latest if (entry.application, entry.grant) == of_grant]
            tally = grant.window.look(world.clock.monotonic_s(), limit=limit, window_s=window_s)
            largest = largest_in_window([entry.arrived_s for entry in own], window_s)
            refused = sum(entry.status == 429 for entry in own)
            yield (
                (application.name, ""),
                (grant.kind.replace("_", " "), ""),
                ("revoked", "bad") if grant.revoked else (application.permission, ""),
                (", ".join(grant.advertiser_ids) or "none", ""),
                *_numbers(limit, limit - tally.remaining, largest, refused),
            )


def _segments(world: World) -> Iterable[Sequence[Cell]]:
    shown = list(world.segments.values())[-SHOWN_SEGMENTS:]
    if shown:
        yield _head("Id", "Ad account", "Name", "Type", number=("Size", "Added", "Removed"))
    for segment in reversed(shown):
        members = segment.members
        yield (
            (str(segment.number), ""),
            (segment.advertiser_id, ""),
            (segment.name, ""),
            (segment.kind + (", read-only" if segment.read_only else ""), "soft"),
            *_numbers(len(members), members.added, members.removed),
        )


def _calls(world: World) -> Iterable[Sequence[Cell]]:
    latest = world.journal.last(SHOWN_CALLS)
    if latest:
        yield _head("Time", "Call", "Segment", "What", "Answer", number=("Valid", "Invalid", "Bytes", "ms"))
    for entry in latest:
        at = datetime.fromtimestamp(entry.arrived_epoch_s, UTC)
        took_ms = 0 if entry.answered_s is None else 1000 * (entry.answered_s - entry.arrived_s)
        yield (
            (f"{at:%H:%M:%S}.{at.microsecond // 1000:03d}", ""),
            (entry.operation, ""),
            (entry.segment_id or "", ""),
            (" ".join(filter(None, (entry.change, entry.identifier_type))), ""),
            _outcome(entry),
            *_numbers(entry.valid, entry.invalid, entry.body_bytes, round(took_ms)),
        )


def _outcome(entry: Entry) -> Cell:
    if entry.answered_s is None:
        return "…", "soft"
    text = "dropped" if entry.status is None else f"{entry.status} {entry.code or ''}".strip()
    fine = entry.status is not None and entry.status < 400 and not entry.code
    return text + (" (fault)" if entry.fault else ""), "good" if fine else "bad"


def _counts(world: World) -> str:
    return ", ".join(f"{status}: {count:,}" for status, count in sorted(world.journal.by_status.items())) or "none"


def _head(*names: str, number: Sequence[str] = ()) -> list[Cell]:
    return [*((name, "head") for name in names), *((name, "head number") for name in number)]


def _numbers(*values: int) -> list[Cell]:
    return [(f"{value:,}", "number") for value in values]


def _section(title: str, rows: Iterable[Sequence[Cell]], nothing: str) -> str:
    lines = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    content = f"<table>{lines}</table>" if lines else f'<p class="soft">{html.escape(nothing)}</p>'
    return f"<section><h2>{html.escape(title)}</h2>{content}</section>"


def _cell(cell: Cell) -> str:
    text, kind = cell
    tag = "th" if kind.startswith("head") else "td"
    css = f' class="{kind}"' if kind else ""
    return f"<{tag}{css}>{html.escape(text)}</{tag}>"
