"""From a canvas to what reads it: its Enter, fed by a source that is built when it is first needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

from criteo_provider.core.errors import Misconfigured, SourceFailed
from criteo_provider.core.model import StepPlan
from criteo_provider.core.ports import Json, Look, Page, Seen, Source
from criteo_provider.flow.drain import Reader
from criteo_provider.flow.enter import Enter, EntryPlan, FieldColumn
from criteo_provider.settings.canvas import Canvas
from criteo_provider.store.ledger import Ledger


def reader_of(
    canvas: Canvas,
    steps: Sequence[StepPlan],
    source: Callable[[Canvas], Source],
    ledger: Ledger,
    now_us: Callable[[], int],
    owner: str,
) -> Reader:
    """Return what enters the people of ``canvas`` into ``steps``."""
    columns = canvas.entry.identifiers.columns
    plan = EntryPlan(
        canvas.id,
        canvas.entry.user_key,
        tuple(
            FieldColumn(one.field, one.column, one.caller_id, tuple(one.email_hashes), one.email_input)
            for one in columns
        ),
        canvas.entry.rule,
        tuple(steps),
    )
    return Reader(
        Enter(plan, LazySource(source, canvas), ledger, now_us, owner),
        canvas.id,
        # Read at half the interval: whoever comes right after a look is still in a request in time.
        canvas.flush_s / 2,
        may_try=lambda: ledger.may_probe("source", canvas.id, now_us=now_us()),
        succeeded=lambda: ledger.healed("source", canvas.id, now_us=now_us()),
    )


class LazySource:
    """Builds the source of a canvas when it is first read; what is misconfigured fails like any source."""

    def __init__(self, build: Callable[[Canvas], Source], canvas: Canvas) -> None:
        self._build, self._canvas = build, canvas

    def is_ahead(self, position: Json, seen: Seen) -> bool:
        return self._built.is_ahead(position, seen)

    def pages(self, position: Json, *, max_rows: int, seen: Seen) -> Iterator[Page]:
        return self._built.pages(position, max_rows=max_rows, seen=seen)

    def recheck(self, look: Look) -> Iterator[tuple[Page, Look | None]]:
        return self._built.recheck(look)

    @cached_property
    def _built(self) -> Source:
        try:
            return self._build(self._canvas)
        except Misconfigured as error:
            raise SourceFailed(str(error)) from error
