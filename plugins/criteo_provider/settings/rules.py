"""Rules between the keys of a canvas, checked on the plain data so that all problems show at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from criteo_provider.core import eligibility
from criteo_provider.core.errors import Misconfigured
from criteo_provider.core.identifiers import FIELDS
from criteo_provider.settings.problems import Finding, Place

SOURCES = ("sql", "files", "http", "python")
KINDS_OF_STEP = ("audience_sync", "delay")


def check(data: Mapping[str, object]) -> Iterator[Finding]:
    """Find what no single key can know; passes over wrong shapes, which are named elsewhere."""
    entry = block(data.get("entry"))
    identifiers = block(entry.get("identifiers"))
    yield from source_rules(("entry", "source"), block(entry.get("source")), declared="source" in entry)
    yield from identifier_rules(("entry", "identifiers"), identifiers, declared="identifiers" in entry)
    yield from condition_rules(("entry", "eligibility"), entry.get("eligibility"))
    yield from condition_rules(("entry", "consent", "require"), block(entry.get("consent")).get("require"))
    if isinstance(steps := data.get("steps"), list):
        blocks = [block(step) for step in steps]
        yield from _kinds(blocks)
        yield from _ids(blocks)
        yield from _order(blocks)
        yield from _fields(blocks, identifiers)


def source_rules(place: Place, source: Mapping[str, object], *, declared: bool) -> Iterator[Finding]:
    """Find what is wrong between the keys of a source."""
    chosen = [kind for kind in SOURCES if source.get(kind) is not None]
    if declared and len(chosen) != 1:
        found = f"has {' and '.join(chosen)} at once." if chosen else "names no source."
        yield Finding(place, found, f"Keep exactly one of {', '.join(SOURCES)}.")
    page = block(block(source.get("http")).get("page"))
    needed = {"cursor": ("param", "next"), "page": ("param",), "offset": ("param", "size")}
    kind = page.get("kind")
    for key in needed.get(kind, ()) if isinstance(kind, str) else ():
        if page.get(key) in (None, ""):
            yield Finding(
                (*place, "http", "page", key), f"is missing, and pages of kind {kind} need it.", f"Add `{key}:`."
            )


def identifier_rules(place: Place, identifiers: Mapping[str, object], *, declared: bool) -> Iterator[Finding]:
    """Find what is wrong between the columns of identifiers."""
    columns = {field: _column(written) for field, written in identifiers.items() if written is not None}
    if declared and not columns:
        yield Finding(place, "names no identifier, so nobody could be sent.", "Add `email:`.")
    seen: dict[object, str] = {}
    for field, column in columns.items():
        if column is not None and column in seen:
            what = f"takes the same column as {seen[column]}."
            yield Finding((*place, field), what, "Name the column that holds this identifier.")
        seen.setdefault(column, field)


def condition_rules(place: Place, conditions: object) -> Iterator[Finding]:
    """Find conditions that cannot be used."""
    for column, condition in block(conditions).items():
        try:
            eligibility.compile({column: condition})
        except Misconfigured as refusal:
            what, _, mend = str(refusal).partition(". ")
            yield Finding((*place, column), f"is a condition that cannot be used: {what}.", mend)


def _kinds(steps: list[Mapping[str, object]]) -> Iterator[Finding]:
    for at, step in enumerate(steps):
        kinds = [kind for kind in KINDS_OF_STEP if step.get(kind) is not None]
        if kinds == ["delay"] and "paused" in step:
            what = "belongs to an audience_sync, and this step is a delay."
            yield Finding(("steps", at, "paused"), what, "Remove it, or pause the audience_sync behind it.")
        if step and len(kinds) != 1:
            if kinds:
                yield Finding(("steps", at), "is both an audience_sync and a delay.", "Make two steps of it.")
            else:
                what = "is neither an audience_sync nor a delay."
                yield Finding(("steps", at), what, "Add `audience_sync:` or `delay:`.")


def _kind(step: Mapping[str, object]) -> str | None:
    kinds = [kind for kind in KINDS_OF_STEP if step.get(kind) is not None]
    return kinds[0] if len(kinds) == 1 else None


def _ids(steps: list[Mapping[str, object]]) -> Iterator[Finding]:
    names = [step.get("id") for step in steps]
    twice = {name for name, times in Counter(filter(_is_text, names)).items() if times > 1}
    for at, name in enumerate(names):
        if name in twice and names.index(name) != at:
            what = f"is the id of steps[{names.index(name)}] too."
            yield Finding(("steps", at, "id"), what, "Give each step an id of its own, for ever.")


def _order(steps: list[Mapping[str, object]]) -> Iterator[Finding]:
    if not any("audience_sync" in step for step in steps):
        yield Finding(("steps",), "holds no audience_sync, so nobody would be sent.", "Add one.")
    elif _kind(steps[-1]) == "delay":
        what = "is a delay at the end, after which nothing happens."
        yield Finding(("steps", len(steps) - 1), what, "Remove it, or put an audience_sync behind it.")
    for at in range(1, len(steps)):
        before, step = steps[at - 1], steps[at]
        if _kind(before) == _kind(step) == "delay":
            yield Finding(("steps", at), "is a delay right after a delay.", "Make one delay of the two.")
        sync, sync_before = block(step.get("audience_sync")), block(before.get("audience_sync"))
        if sync and sync == sync_before:
            yield Finding(("steps", at), "does the same as the step before it.", "Remove one of the two.")


def _fields(steps: list[Mapping[str, object]], identifiers: Mapping[str, object]) -> Iterator[Finding]:
    declared = [field for field in FIELDS if identifiers.get(field) is not None]
    for at, step in enumerate(steps):
        fields = _list(block(step.get("audience_sync")).get("fields"))
        for index, field in enumerate(fields):
            place: Place = ("steps", at, "audience_sync", "fields", index)
            if field in FIELDS and declared and field not in declared:
                what = "is a field that entry.identifiers does not declare."
                yield Finding(place, what, f"Add it there, or choose from: {', '.join(declared)}.")
            elif field in fields[:index]:
                yield Finding(place, "is listed twice.", "Remove one.")


def block(value: object) -> Mapping[str, object]:
    """Return a block of named keys, empty where there is something else."""
    if not isinstance(value, Mapping):
        return {}
    return {key: inside for key, inside in value.items() if isinstance(key, str)}


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _column(written: object) -> str | None:
    column = block(written).get("column") if isinstance(written, Mapping) else written
    return column.strip() if isinstance(column, str) else None


def _is_text(value: object) -> bool:
    return isinstance(value, str)
