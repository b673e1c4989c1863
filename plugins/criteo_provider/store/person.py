"""What happened to one user: every entry of theirs, every step of it, and what Criteo said."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

import msgspec
from sqlalchemy import Connection, select

from criteo_provider.core import identifiers as forms
from criteo_provider.core.consent import USER_KEY
from criteo_provider.core.identifiers import EmailHash, EmailInput, Form
from criteo_provider.core.model import PartState, StageState
from criteo_provider.core.spans import ordinal_at
from criteo_provider.core.standing import fold
from criteo_provider.store.people_index import Name, chunks_with
from criteo_provider.store.schema import audience, canvas, chunk, identifiers, part, request, stage, step, step_version
from criteo_provider.store.standings import load, slices, spans_from_text

ON_THE_WAY = "On the way"


@dataclass(frozen=True, slots=True)
class PersonUpload:
    """One identifier form of a user in a step: how far it is, and the last request that carried it."""

    form: str
    state: PartState
    reason: str | None
    attempts: int
    next_attempt_us: int | None
    deadline_us: int | None
    request_id: int | None
    request_us: int | None
    code: str | None


@dataclass(frozen=True, slots=True)
class PersonStep:
    """One entry of a user in one step."""

    canvas: str
    step: str
    declared: bool
    audience: str
    ad_account: str
    operation: str
    entered_us: int
    reaches_us: int
    status: str
    reason: str | None
    chunk_id: int
    uploads: tuple[PersonUpload, ...]


def person(connection: Connection, named: str, *, now_us: int) -> list[PersonStep]:
    """Return everything the ledger knows of whoever is ``named`` by user key or identifier, newest entry first."""
    people: dict[int, set[int]] = defaultdict(set)
    for kind, names in names_of(named).items():
        for chunk_ids in chunks_with(connection, kind, names).values():
            for chunk_id in chunk_ids:
                people[chunk_id].update(_ordinals(connection, kind, names, chunk_id))
    steps = [
        one
        for chunk_id, ordinals in people.items()
        if ordinals
        for one in _steps(connection, chunk_id, ordinals, now_us)
    ]
    return sorted(steps, key=lambda one: (-one.entered_us, -one.chunk_id, one.reaches_us))


def names_of(text: str) -> dict[str, set[Name]]:
    """Return under which names a user may be known to the ledger: as a user key, and as every form of identifier."""
    names: dict[str, set[Name]] = defaultdict(set)
    (key,) = forms.user_key([text])
    if key is not None:
        names[USER_KEY].add(key)
    for field in forms.FIELDS:
        for email_input in EmailInput:
            read = forms.normalise(field, [text], email_hashes=list(EmailHash), email_input=email_input)
            for form, column in read.values.items():
                names[form.value].update(column.there)
    return dict(names)


def _ordinals(connection: Connection, kind: str, names: Collection[Name], chunk_id: int) -> set[int]:
    """Return who of a chunk has one of these names."""
    if kind == USER_KEY:
        keys = connection.execute(select(chunk.c.user_keys).where(chunk.c.id == chunk_id)).scalar()
        return {ordinal for ordinal, key in enumerate(msgspec.json.decode(keys or "[]")) if key in names}
    query = select(identifiers.c.present, identifiers.c.packed)
    query = query.where(identifiers.c.chunk_id == chunk_id, identifiers.c.form == kind)
    row = connection.execute(query).one_or_none()
    if row is None:
        return set()
    present, values = spans_from_text(row.present), forms.decode(bytes(row.packed), Form(kind))
    return {ordinal_at(present, index) for index, value in enumerate(values) if value in names}


def _steps(connection: Connection, chunk_id: int, ordinals: Collection[int], now_us: int) -> list[PersonStep]:
    query = (
        select(
            stage.c.id,
            stage.c.enters_us,
            chunk.c.sealed_us,
            canvas.c.id.label("canvas"),
            step.c.name,
            step.c.declared,
            audience.c.name.label("audience"),
            audience.c.ad_account,
            step_version.c.operation,
        )
        .join(chunk, chunk.c.id == stage.c.chunk_id)
        .join(step, step.c.id == stage.c.step_id)
        .join(canvas, canvas.c.id == step.c.canvas_id)
        .join(step_version, step_version.c.id == stage.c.version_id)
        .join(audience, audience.c.id == step_version.c.audience_id)
        .where(stage.c.chunk_id == chunk_id)
    )
    about = {row.id: row for row in connection.execute(query)}
    uploads = _uploads(connection, about, ordinals)
    found = []
    for stage_ids in slices(sorted(about)):
        for standing in load(connection, stage_ids, lock=False, as_of_us=now_us):
            row = about[standing.row.id]
            stands = fold(standing.row.people, standing.fates, standing.before)
            for ordinal in sorted(ordinals):
                here = next(stand for stand in stands if stand.span.first <= ordinal < stand.span.last)
                waits = standing.row.state == StageState.WAITING
                found.append(
                    PersonStep(
                        canvas=row.canvas,
                        step=row.name,
                        declared=row.declared,
                        audience=row.audience,
                        ad_account=row.ad_account,
                        operation=row.operation,
                        entered_us=row.sealed_us,
                        reaches_us=row.enters_us,
                        status=ON_THE_WAY if waits else here.status.name.replace("_", " ").title(),
                        reason=None if waits else here.reason,
                        chunk_id=chunk_id,
                        uploads=tuple(uploads[row.id, ordinal]),
                    )
                )
    return found


def _uploads(
    connection: Connection, stage_ids: Collection[int], ordinals: Collection[int]
) -> dict[tuple[int, int], list[PersonUpload]]:
    query = (
        select(part, request.c.claimed_us, request.c.code)
        .outerjoin(request, request.c.id == part.c.request_id)
        .where(part.c.stage_id.in_(stage_ids))
        .order_by(part.c.form)
    )
    uploads: dict[tuple[int, int], list[PersonUpload]] = defaultdict(list)
    for row in connection.execute(query):
        state = PartState(row.state)
        told = PersonUpload(
            row.form,
            state,
            row.reason,
            row.attempts,
            row.due_us if state is PartState.OPEN else None,
            row.deadline_us,
            row.request_id,
            row.claimed_us,
            row.code,
        )
        for ordinal in ordinals:
            if any(span.first <= ordinal < span.last for span in spans_from_text(row.spans)):
                uploads[row.stage_id, ordinal].append(told)
    return uploads
