"""From a canvas to what reads it: its Enter, fed by a source that is built when it is first needed."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from functools import cached_property, partial
from typing import cast

from criteo_provider.core.errors import Misconfigured, SourceFailed
from criteo_provider.core.model import StepPlan
from criteo_provider.core.ports import Json, Look, MaxRows, Page, Seen, Source, Splits
from criteo_provider.flow.backlog import Backlog
from criteo_provider.flow.drain import Reader
from criteo_provider.flow.enter import Enter, EntryPlan
from criteo_provider.flow.hands import Hands
from criteo_provider.flow.packing import FieldColumn
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
# The last look at a stretch may be later than the promise of ``late_commit`` by this share of it.
LAST_LOOK_GRACE = 0.25
LEFT_BEHIND = (
    "people of its former SQL source were set aside to be entered one after the other, and only that source can give "
    "them. Put `source.sql` back until they have entered, or declare a new canvas for the new source"
)


def readers_of(
    canvas: Canvas,
    steps: Sequence[StepPlan],
    source: Callable[[Sourced], Source],
    ledger: Ledger,
    now_us: Callable[[], int],
    owner: str,
    hands: Hands,
    every_s: Callable[[], float],
    is_launched: Callable[[], bool],
) -> list[Reader]:
    """Return what enters the people of ``canvas`` into ``steps``: a reader of its source, and one of its backlogs."""
    is_left = partial(ledger.backlogs.is_left, canvas.id)
    lazy = LazySource(source, canvas, is_left)
    common = _plan_of(canvas, steps), lazy, ledger, now_us, owner

    def may_probe() -> bool:
        return ledger.may_probe("source", canvas.id, now_us=now_us())

    def heal() -> None:
        ledger.healed("source", canvas.id, now_us=now_us())

    def fail(sentence: str) -> None:
        ledger.source_failed(canvas.id, sentence, now_us=now_us())

    def may_enter() -> bool:
        return is_launched() and may_probe()

    if not can_be_split(canvas):
        return [Reader(Enter(*common, hands=hands), canvas.id, every_s, may_enter, heal, fail)]
    backlog = Backlog(*common, split=lazy, book=ledger.backlogs, hands=hands)

    def heal_if_read() -> None:
        # What is broken may be the backlog alone, and one reader must not call mended what stops the other.
        if backlog.has_read or not is_left():
            heal()

    return [
        # What comes in large chunks is packed beside: the backlog, where it is set aside.
        Reader(Enter(*common, aside=(lazy, ledger.backlogs)), canvas.id, every_s, may_enter, heal_if_read, fail),
        # What was set aside belongs to a canvas that was launched; launching is the business of the first reader.
        Reader(backlog, canvas.id, lambda: BACKLOG_EVERY_S, lambda: is_left() and may_probe(), heal_if_read, fail),
    ]


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
    of: Sourced,
    source: Callable[[Sourced], Source],
    ledger: Ledger,
    states: SourceStates,
    glances: Glances,
    *,
    rest_s: float,
) -> tuple[bool, str | None]:
    """Tell whether a source is worth reading now, and what is wrong with it; one that rests is not looked at.

    A source that breaks while nobody reads is a trouble like any other, and over once it answers with nothing new;
    one that has something new is for the reader to judge.
    """
    if not states.may_look(of.id):
        return False, states.trouble(of.id)
    try:
        ahead = glances.is_ahead(of.fingerprint, partial(_is_ahead, of, source, ledger, states), rest_s=rest_s)
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
    if states.has_backlog(of.id):
        if not can_be_split(of):
            raise SourceFailed(LEFT_BEHIND)
        return True
    if source(of).is_ahead(states.position(of.id), partial(ledger.completed_units, of.id)):
        return True
    # Looks are taken while there is work anyway; only a pressing one starts a run of its own, in whose turnover
    # whoever comes then would have to wait. Opt-outs that were committed late wait for nothing.
    sql = of.entry.source.sql
    grace_s = sql.late_commit_s if sql else 0.0
    last_grace_s = grace_s * LAST_LOOK_GRACE if isinstance(of, Canvas) else 0.0
    return states.look_presses(of.id, grace_s=grace_s, last_grace_s=last_grace_s)


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

    def __init__(
        self, build: Callable[[Sourced], Source], canvas: Sourced, is_left: Callable[[], bool] = lambda: False
    ) -> None:
        self._build, self._canvas, self._is_left = build, canvas, is_left

    def is_ahead(self, position: Json, seen: Seen) -> bool:
        return self._built.is_ahead(position, seen)

    def pages(self, position: Json, *, max_rows: MaxRows, seen: Seen) -> Generator[Page]:
        return self._built.pages(position, max_rows=max_rows, seen=seen)

    def split_at(self, position: Json) -> Json:
        return cast("Splits", self._built).split_at(position)

    def between(self, position: Json, upto: Json, *, max_rows: MaxRows) -> Generator[Page]:
        return cast("Splits", self._built).between(position, upto, max_rows=max_rows)

    def recheck(self, look: Look) -> Iterator[tuple[Page, Look | None]]:
        return self._built.recheck(look)

    @cached_property
    def _built(self) -> Source:
        if not can_be_split(self._canvas) and self._is_left():
            raise SourceFailed(LEFT_BEHIND)
        try:
            return self._build(self._canvas)
        except Misconfigured as error:
            raise SourceFailed(str(error)) from error
