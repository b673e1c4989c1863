"""The overview: everything the page Audiences shows, from what the ledger and the canvas files say. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Literal

from criteo_provider.core.model import Metric
from criteo_provider.settings.canvas import AudienceStep, Canvas
from criteo_provider.settings.load import Canvases
from criteo_provider.settings.problems import Problem
from criteo_provider.store.metrics import StepNumbers
from criteo_provider.store.troubles import NEVER_US
from criteo_provider.ui.directory import Directory, Place
from criteo_provider.wiring.findings import Finding, from_json
from criteo_provider.wiring.pace import Flush

SYNC_DAG = "criteo_audience_sync"


@dataclass(frozen=True, slots=True)
class Trouble:
    """An open trouble of the ledger; times are microseconds since the epoch.

    ``key`` says which one of its ``scope``: for connection the connection id, for ad_account "connection id/ad
    account" (for quota too), for audience its id in the ledger, for source and launch the canvas id.
    """

    scope: str
    key: str
    sentence: str
    since_us: int
    next_probe_us: int


@dataclass(frozen=True, slots=True)
class Notice:
    """One thing to mend: where, what, and how; ``mend`` is empty where ``what`` says it already.

    ``points`` are sentences where several things are to be mended there.
    """

    where: str
    what: str
    mend: str = ""
    points: tuple[str, ...] = ()
    since: datetime | None = None
    next_try: datetime | None = None


@dataclass(frozen=True, slots=True)
class State:
    """How a step is doing, as a kind and in words."""

    kind: Literal["ok", "waiting", "paused", "trouble"]
    text: str


@dataclass(frozen=True, slots=True)
class StepRow:
    """One step; ``numbers`` is keyed like ``Metric`` in lower case, and None when there are none yet (not zero)."""

    id: str
    operation: str
    audience: str
    ad_account: str
    criteo_id: str | None
    state: State
    numbers: dict[str, int] | None = None
    on_their_way: int = 0
    reasons: dict[str, int] | None = None


@dataclass(frozen=True, slots=True)
class CanvasRow:
    """One canvas with its steps; ``notes`` are sentences that concern all of it.

    ``findings`` are those of its last preflight which no notice tells, ``told_above`` counts those one does.
    """

    id: str
    name: str
    owner: str
    notes: tuple[str, ...]
    steps: tuple[StepRow, ...]
    checked: datetime | None = None
    findings: tuple[str, ...] = ()
    told_above: int = 0


@dataclass(frozen=True, slots=True)
class Overview:
    """The whole page; ``no_ledger`` is the reason why there are no numbers here, and then there are no canvases.

    ``pace`` says of each connection how often people are sent, and why when that is less often than declared.
    """

    as_of: datetime
    problems: tuple[Notice, ...] = ()
    canvases: tuple[CanvasRow, ...] = ()
    notes: tuple[str, ...] = ()
    pace: tuple[str, ...] = ()
    no_ledger: str | None = None
    refresh_s: float = 5.0


def without_ledger(sentence: str, files: Canvases, *, now_us: int) -> Overview:
    """Return the overview of an API server that has no ledger."""
    return Overview(_time(now_us), _file_notices(files), no_ledger=sentence)


def overview(
    files: Canvases,
    numbers: Sequence[StepNumbers],
    directory: Directory,
    troubles: Sequence[Trouble],
    *,
    flushes: Sequence[Flush] = (),
    files_are_here: bool,
    now_us: int,
) -> Overview:
    """Return the overview; ``files_are_here`` is False on a host without the include folder."""
    known = {canvas_id: tuple(rows) for canvas_id, rows in groupby(numbers, lambda one: one.canvas)}
    declared = {canvas.id: canvas for canvas in files.canvases}
    broken = {problem.file.stem for problem in files.problems}
    names = {canvas_id: _place(directory, rows[0]).canvas_name for canvas_id, rows in known.items()}
    rows = [_canvas(rows, declared.get(canvas_id), directory, troubles, broken) for canvas_id, rows in known.items()]
    rows += [_not_launched(canvas) for canvas in files.canvases if canvas.id not in known]
    here = files_are_here or not known
    notes = () if here else ("The canvas files are not on this host, so they are not checked on this page.",)
    return Overview(
        _time(numbers[0].as_of_us if numbers else now_us),
        (_file_notices(files) if here else ()) + tuple(_notice(each, names, directory) for each in troubles),
        tuple(sorted(rows, key=lambda row: row.name.casefold())),
        notes,
        tuple(map(_pace, flushes)),
    )


def state_of(step: StepNumbers, place: Place, troubles: Iterable[Trouble]) -> State:
    """Say how a step is doing."""
    keys = {
        ("connection", place.connection_id),
        ("ad_account", f"{place.connection_id}/{step.ad_account}"),
        ("audience", str(place.audience_id)),
    }
    sentences = [trouble.sentence for trouble in troubles if (trouble.scope, trouble.key) in keys]
    if not step.declared:
        held = step.pending + step.waiting
        command = f"`airflow criteo drop {step.canvas} {step.step}`"
        mend = f": {held:,} people are held. Declare the step again, or give them up with {command}." if held else ""
        return State("paused", f"paused (no longer declared){mend}")
    if step.paused:
        mend = f": {step.pending:,} people are held, and no clock runs. Remove `paused` to let them go on."
        return State("paused", "paused in its file" + (mend if step.pending else ""))
    if sentences:
        return State("trouble", " ".join(sentences))
    if not place.launched:
        return State("waiting", "waiting for the canvas to be launched")
    if step.pending and place.criteo_id is None:
        return State("waiting", "waiting for its audience to be found or created at Criteo")
    if step.pending:
        return State("waiting", "waiting for Criteo to accept people")
    if step.entered:
        return State("ok", "ok")
    return State("waiting", "waiting for a delay to end" if step.waiting else "waiting for its first people")


def _canvas(
    steps: Sequence[StepNumbers],
    file: Canvas | None,
    directory: Directory,
    troubles: Sequence[Trouble],
    broken: set[str],
) -> CanvasRow:
    canvas_id, place = steps[0].canvas, _place(directory, steps[0])
    notes = []
    if canvas_id in broken:
        notes.append("Nobody new enters: its file cannot be loaded. People who entered before go on.")
    if any((trouble.scope, trouble.key) == ("source", canvas_id) for trouble in troubles):
        notes.append("Nobody new enters: its source cannot be read. People who entered before go on.")
    if not place.canvas_declared:
        notes.append("No longer declared: its file is gone. Put it back to let its people go on.")
    if not place.launched:
        notes.append("Not launched: nothing is read before its preflight finds nothing to mend.")
    rows = [_step(step, _place(directory, step), troubles) for step in steps]
    new = {step.id for step in file.audience_steps} - {step.step for step in steps} if file else set()
    rows += [_new_step(step) for step in (file.audience_steps if file else ()) if step.id in new]
    found, last = _found(canvas_id, directory), directory.preflights.get(canvas_id)
    is_told = any((trouble.scope, trouble.key) == ("launch", canvas_id) for trouble in troubles)
    left = tuple(f"{one.severity}: {one} {one.why}" for one in found if not (is_told and one.is_failure))
    checked, above = _time(last.at_us) if last else None, len(found) - len(left)
    return CanvasRow(canvas_id, place.canvas_name, place.owner, tuple(notes), tuple(rows), checked, left, above)


def _found(canvas_id: str, directory: Directory) -> tuple[Finding, ...]:
    last = directory.preflights.get(canvas_id)
    return tuple(from_json(last.findings)) if last else ()


def _not_launched(canvas: Canvas) -> CanvasRow:
    note = f"Not launched yet: it begins when the DAG {SYNC_DAG} runs."
    return CanvasRow(canvas.id, canvas.name, canvas.owner, (note,), tuple(map(_new_step, canvas.audience_steps)))


def _step(step: StepNumbers, place: Place, troubles: Sequence[Trouble]) -> StepRow:
    keys = [metric.name.lower() for metric in Metric]
    return StepRow(
        step.step,
        step.operation,
        step.audience,
        step.ad_account,
        place.criteo_id,
        state_of(step, place, troubles),
        {key: getattr(step, key) for key in keys},
        step.waiting,
        step.not_synced_reasons,
    )


def _new_step(step: AudienceStep) -> StepRow:
    sync, state = step.sync, State("waiting", f"waiting for the DAG {SYNC_DAG}")
    return StepRow(step.id, sync.operation.value, sync.audience, sync.ad_account, None, state)


def _place(directory: Directory, step: StepNumbers) -> Place:
    return directory.places[step.canvas, step.step]


def _file_notices(files: Canvases) -> tuple[Notice, ...]:
    return tuple(map(_file_notice, files.problems))


def _file_notice(problem: Problem) -> Notice:
    return Notice(str(problem.file), f"{problem.key or 'The file'} {problem.what}", problem.mend)


def _notice(trouble: Trouble, canvas_names: Mapping[str, str], directory: Directory) -> Notice:
    since = _time(trouble.since_us)
    next_try = _time(trouble.next_probe_us) if trouble.next_probe_us < NEVER_US else None
    what, points = trouble.sentence, tuple[str, ...]()
    if trouble.scope == "launch":
        points = tuple(f"{one} {one.why}" for one in _found(trouble.key, directory) if one.is_failure)
        what = "Not launched before this is mended; nothing is read, and nobody is lost." if points else what
    where = _where(trouble, canvas_names, directory)
    return Notice(where, what, points=points, since=since, next_try=next_try)


def _pace(flush: Flush) -> str:
    return f"Connection {flush.connection_id}: {flush.sentence or f'flush every {flush.flush_s:g} s'}."


def _where(trouble: Trouble, canvas_names: Mapping[str, str], directory: Directory) -> str:
    match trouble.scope:
        case "source":
            return f"Source of canvas {canvas_names.get(trouble.key, trouble.key)}"
        case "ad_account":
            conn_id, _, ad_account = trouble.key.partition("/")
            return f"Ad account {ad_account} (connection {conn_id})"
        case "launch":
            return f"Launch of canvas {canvas_names.get(trouble.key, trouble.key)}"
        case "quota":
            return f"Ad account {trouble.key.partition('/')[2]}"
        case "audience":
            name, ad_account = directory.audiences[int(trouble.key)]
            return f"Audience “{name}” in ad account {ad_account}"
        case _:
            return f"Connection {trouble.key}"


def _time(at_us: int) -> datetime:
    return datetime.fromtimestamp(at_us // 1_000_000, UTC)
