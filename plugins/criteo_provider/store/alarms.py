"""Alarms: bad states that no single answer shows, and what people were not told of yet."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, func, select, union_all, update

from criteo_provider.core.model import PartState
from criteo_provider.store.engine import in_turn
from criteo_provider.store.holding import at_work
from criteo_provider.store.schema import audience, canvas, news, part, stage, step, trouble
from criteo_provider.store.standings import slices
from criteo_provider.store.troubles import (
    HOLDING,
    LATE,
    LEDGER,
    PEOPLE,
    close_trouble,
    note,
    note_uncovered,
    open_trouble,
    sentence_of,
    troubled,
)

_WRITTEN_AGAIN_LOCK = 0x4E455753
# Nobody given up for so long: whatever it was is over.
QUIET_US = 3_600_000_000


@dataclass(frozen=True, slots=True)
class News:
    """One change of state: what people are told, and whether something that began then is still broken."""

    id: int
    sentence: str
    is_broken: bool


def gave_up(connection: Connection, stage_ids: Collection[int], *, now_us: int) -> None:
    """Remember that users of these stages became Errored: one trouble a canvas, however many sweeps it takes."""
    given_up: dict[str, tuple[int, str | None]] = {}
    for ids in slices(sorted(stage_ids)):
        query = (
            select(step.c.canvas_id, canvas.c.retry_for_us, func.min(part.c.reason).label("reason"))
            .join(step, step.c.id == part.c.step_id)
            .join(canvas, canvas.c.id == step.c.canvas_id)
            .where(part.c.stage_id.in_(ids), part.c.state == PartState.ERRORED)
            .group_by(step.c.canvas_id, canvas.c.retry_for_us)
        )
        given_up.update((row.canvas_id, (row.retry_for_us, row.reason)) for row in connection.execute(query))
    for canvas_id, (retry_for_us, reason) in given_up.items():
        sentence = (
            f"Users of canvas {canvas_id} were given up after {length(retry_for_us)} of retries: Users Errored. "
            f"The last reason was: {reason} When it is mended, "
            f"`airflow criteo retry {canvas_id} --reason ...` sends them again."
        )
        open_trouble(connection, PEOPLE, canvas_id, code="errored", sentence=sentence, now_us=now_us)
        # Nothing is probed; the moment says when it was last so.
        found = trouble.c.scope == PEOPLE, trouble.c.key == canvas_id
        connection.execute(update(trouble).where(*found).values(next_probe_us=now_us))


def look(connection: Connection, *, late_after_us: int, now_us: int) -> None:
    """Open and close the troubles that time makes: users who wait too long, and an hour without anybody given up."""
    note_uncovered(connection, now_us=now_us)
    late = _late(connection, now_us - late_after_us)
    # Whoever was held back by a trouble that has just ended is being sent now: their lateness was told.
    ended = news.c.scope.in_(HOLDING), ~news.c.began, news.c.at_us > now_us - late_after_us
    if connection.execute(select(news.c.id).where(*ended).limit(1)).first() is not None:
        known = select(trouble.c.key).where(trouble.c.scope == LATE)
        late = {canvas_id: late[canvas_id] for canvas_id in connection.execute(known).scalars() if canvas_id in late}
    for canvas_id, why in late.items():
        sentence = (
            f"The oldest pending user of canvas {canvas_id} has waited for more than {length(late_after_us)}. {why}"
        )
        open_trouble(connection, LATE, canvas_id, code="late", sentence=sentence.strip(), now_us=now_us)
    quiet = (trouble.c.scope == PEOPLE) & (trouble.c.next_probe_us < now_us - QUIET_US)
    over = connection.execute(
        select(trouble.c.scope, trouble.c.key).where(
            quiet | ((trouble.c.scope == LATE) & trouble.c.key.not_in(list(late)))
        )
    ).all()
    for row in over:
        close_trouble(connection, row.scope, row.key, now_us=now_us)


def _late(connection: Connection, before_us: int) -> dict[str, str]:
    """Find canvases with users pending since before a moment, and why; those a known trouble holds back are told.

    Who is in flight is pending: another try does not end lateness, its answer may.
    """
    late: dict[str, str | None] = {}
    # Each state has an index of its own. One statement: an answer between two would hide whom it opens again.
    queries = [
        select(step.c.canvas_id, func.max(part.c.reason).label("reason"))
        .join(step, step.c.id == part.c.step_id)
        .join(audience, audience.c.id == part.c.audience_id)
        .join(stage, stage.c.id == part.c.stage_id)
        .where(part.c.state == state, stage.c.enters_us < before_us, at_work(), ~troubled())
        .group_by(step.c.canvas_id)
        for state in (PartState.OPEN, PartState.CLAIMED)
    ]
    for row in connection.execute(union_all(*queries)):
        late[row.canvas_id] = late.get(row.canvas_id) or row.reason
    return {
        canvas_id: f"The last answer: {reason}" if reason else "Nothing has been sent yet."
        for canvas_id, reason in late.items()
    }


def written_again(connection: Connection, since: str, sentence: str, *, now_us: int) -> None:
    """Note that a standstill of the ledger, told elsewhere when it began, is over; once, however many find it so."""
    in_turn(connection, _WRITTEN_AGAIN_LOCK)
    found = select(news.c.id).where(news.c.scope == LEDGER, news.c.key == since)
    if connection.execute(found).first() is None:
        note(connection, LEDGER, since, sentence, began=False, now_us=now_us)


def is_untold(connection: Connection) -> bool:
    """Whether there is something people were not told of yet."""
    return connection.execute(select(news.c.id).where(news.c.told_us.is_(None)).limit(1)).first() is not None


def take(connection: Connection, *, now_us: int) -> list[News]:
    """Return what people were not told of yet, oldest first, and mark it as told."""
    rows = connection.execute(update(news).where(news.c.told_us.is_(None)).values(told_us=now_us).returning(news)).all()
    if not rows:
        return []
    audiences = {str(row.id): row.name for row in connection.execute(select(audience.c.id, audience.c.name))}
    # An ad account that is nearly full is told, and breaks nothing.
    open_now = select(trouble.c.scope, trouble.c.key).where(trouble.c.scope != "quota")
    broken = {(row.scope, row.key) for row in connection.execute(open_now)}
    return [
        News(row.id, sentence_of(row, audiences), bool(row.began) and (row.scope, row.key) in broken)
        for row in sorted(rows, key=lambda row: row.id)
    ]


def put_back(connection: Connection, ids: Sequence[int]) -> None:
    """Let somebody else tell these: nobody could be reached."""
    connection.execute(update(news).where(news.c.id.in_(ids)).values(told_us=None))


def length(microseconds: int) -> str:
    """Write a length of time as a person would."""
    minutes = round(microseconds / 60_000_000)
    hours, rest = divmod(minutes, 60)
    return " ".join(f"{number} {unit}" for number, unit in ((hours, "h"), (rest, "min")) if number) or "a moment"
