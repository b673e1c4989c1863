"""From a canvas to what reads it: its Enter, fed by a source that is built when it is first needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import cast

from criteo_provider.core.errors import Misconfigured, SourceFailed
from criteo_provider.core.model import StepPlan
from criteo_provider.core.ports import Json, Look, Page, Seen, Source, Splits
from criteo_provider.flow.backlog import Backlog
from criteo_provider.flow.drain import Reader
from criteo_provider.flow.enter import Enter, EntryPlan
from criteo_provider.flow.packing import BeginPacking, FieldColumn
from criteo_provider.flow.withdraw import FeedPlan, Withdraw
from criteo_provider.settings.canvas import Canvas, IdentifierColumn
from criteo_provider.settings.opt_outs import OptOutFeed
from criteo_provider.store.ledger import Ledger
from criteo_provider.store.source_states import SourceStates
from criteo_provider.wiring.glances import Glances
from criteo_provider.wiring.surroundings import Sourced

# An opt-out that was committed is known this soon, also while a backfill drains.
FEED_EVERY_S = 2.5
# A backlog that was set aside is begun this soon.
BACKLOG_EVERY_S = 0.5


def reader_of(
    canvas: Canvas,
    steps: Sequence[StepPlan],
    source: Callable[[Sourced], Source],
    ledger: Ledger,
    now_us: Callable[[], int],
    owner: str,
    begin_packing: BeginPacking,
    every_s: Callable[[], float],
    is_launched: Callable[[], bool],
) -> Reader:
    """Return what enters the people of ``canvas`` into ``steps``."""
    lazy = LazySource(source, canvas)
    aside = (lazy, ledger.backlogs) if can_be_split(canvas) else None
    return Reader(
        Enter(_plan_of(canvas, steps), lazy, ledger, now_us, owner, begin_packing=begin_packing, aside=aside),
        canvas.id,
        every_s,
        may_try=lambda: is_launched() and ledger.may_probe("source", canvas.id, now_us=now_us()),
        succeeded=lambda: ledger.healed("source", canvas.id, now_us=now_us()),
        failed=lambda sentence: ledger.source_failed(canvas.id, sentence, now_us=now_us()),
    )


def backlog_reader_of(
    canvas: Canvas,
    steps: Sequence[StepPlan],
    source: Callable[[Sourced], Source],
    ledger: Ledger,
    now_us: Callable[[], int],
    owner: str,
    begin_packing: BeginPacking,
) -> Reader:
    """Return what enters the backlogs that the reader of ``canvas`` has set aside."""
    lazy = LazySource(source, canvas)
    return Reader(
        Backlog(
            _plan_of(canvas, steps),
            lazy,
            ledger,
            now_us,
            owner,
            split=lazy,
            book=ledger.backlogs,
            begin_packing=begin_packing,
        ),
        canvas.id,
        lambda: BACKLOG_EVERY_S,
        # What was set aside belongs to a canvas that was launched; launching is the business of its other reader.
        may_try=lambda: ledger.backlogs.is_left(canvas.id) and ledger.may_probe("source", canvas.id, now_us=now_us()),
        succeeded=lambda: None,  # nothing to read is no proof that the source answers
        failed=lambda sentence: ledger.source_failed(canvas.id, sentence, now_us=now_us()),
    )


def can_be_split(canvas: Sourced) -> bool:
    """Tell whether a source can be read between two positions: files, answers and DataFrames come one way only."""
    return canvas.entry.source.sql is not None


def feed_reader_of(
    feed: OptOutFeed,
    source: Callable[[Sourced], Source],
    ledger: Ledger,
    now_us: Callable[[], int],
    owner: str,
) -> Reader:
    """Return what reads an opt-out feed."""
    plan = FeedPlan(
        feed.id, feed.user_key, _fields(feed.identifier_columns), feed.taken_back_rule if feed.taken_back else None
    )
    return Reader(
        Withdraw(plan, LazySource(source, feed), ledger, ledger.opt_outs, now_us, owner),
        feed.id,
        lambda: FEED_EVERY_S,
        may_try=lambda: ledger.may_probe("source", feed.id, now_us=now_us()),
        succeeded=lambda: ledger.healed("source", feed.id, now_us=now_us()),
        failed=lambda sentence: ledger.source_failed(feed.id, sentence, now_us=now_us()),
    )


def looked_at(
    of: Sourced, source: Callable[[Sourced], Source], ledger: Ledger, states: SourceStates, glances: Glances
) -> tuple[bool, str | None]:
    """Tell whether a source is worth reading now, and what is wrong with it.

    A source that breaks while nobody reads is a trouble like any other, and over once it answers with nothing new;
    one that has something new is for the reader to judge.
    """
    if not states.may_look(of.id):
        return False, states.trouble(of.id)
    try:
        ahead = glances.is_ahead(of.fingerprint, partial(_is_ahead, of, source, ledger, states))
    except (SourceFailed, Misconfigured) as error:
        ledger.source_failed(of.id, str(error), now_us=states.now_us)
        return False, str(error)
    if ahead is None:
        return False, states.trouble(of.id)
    if not ahead and states.trouble(of.id):
        ledger.healed("source", of.id, now_us=states.now_us)
    return ahead, None


def _is_ahead(of: Sourced, source: Callable[[Sourced], Source], ledger: Ledger, states: SourceStates) -> bool:
    """Tell whether a source has something new behind its cursor, or wants a pressing second look."""
    if can_be_split(of) and states.has_backlog(of.id):
        return True
    if source(of).is_ahead(states.position(of.id), partial(ledger.completed_units, of.id)):
        return True
    # Early looks are taken while there is work anyway; only a pressing one starts a run of its own.
    sql = of.entry.source.sql
    return states.look_presses(of.id, grace_s=sql.late_commit_s if sql else 0.0)


def _plan_of(canvas: Canvas, steps: Sequence[StepPlan]) -> EntryPlan:
    return EntryPlan(
        canvas.id,
        canvas.entry.user_key,
        _fields(canvas.entry.identifiers.columns),
        canvas.entry.rule,
        tuple(steps),
    )


def _fields(columns: Sequence[IdentifierColumn]) -> tuple[FieldColumn, ...]:
    return tuple(
        FieldColumn(one.field, one.column, one.caller_id, tuple(one.email_hashes), one.email_input) for one in columns
    )


class LazySource:
    """Builds the source of a canvas or feed when it is first read; what is misconfigured fails like any source."""

    def __init__(self, build: Callable[[Sourced], Source], canvas: Sourced) -> None:
        self._build, self._canvas = build, canvas

    def is_ahead(self, position: Json, seen: Seen) -> bool:
        return self._built.is_ahead(position, seen)

    def pages(self, position: Json, *, max_rows: int, seen: Seen) -> Iterator[Page]:
        return self._built.pages(position, max_rows=max_rows, seen=seen)

    def split_at(self, position: Json) -> Json:
        return cast("Splits", self._built).split_at(position)

    def between(self, position: Json, upto: Json, *, max_rows: int) -> Iterator[Page]:
        return cast("Splits", self._built).between(position, upto, max_rows=max_rows)

    def recheck(self, look: Look) -> Iterator[tuple[Page, Look | None]]:
        return self._built.recheck(look)

    @cached_property
    def _built(self) -> Source:
        try:
            return self._build(self._canvas)
        except Misconfigured as error:
            raise SourceFailed(str(error)) from error
