"""Enter: read a source behind its cursor, keep who is eligible, seal them into chunks."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Protocol, TypeVar

from criteo_provider.core import identifiers
from criteo_provider.core.eligibility import Rule
from criteo_provider.core.errors import LostClaim, SourceFailed
from criteo_provider.core.model import MAX_IDENTIFIERS, SealedPeople, StepPlan
from criteo_provider.core.ports import Columns, CursorHold, Json, Look, Page, Source, Splits
from criteo_provider.flow.filling import Filling
from criteo_provider.flow.hands import Hands, OwnHands
from criteo_provider.flow.packing import FieldColumn, packed

log = logging.getLogger(__name__)

T = TypeVar("T")

# A reader that has died must not keep a source from the others for longer than this.
CURSOR_LEASE_S = 30.0
# People read are sealed at least this often, however small the chunk.
SEAL_WITHIN_S = 1.0
# A chunk that lacks less of what it could hold goes without.
FULL_ENOUGH = 0.995
# A source that gives so many rows at one go is far behind: the rest of them is set aside for its backlog's reader.
FAR_BEHIND_ROWS = 2 * MAX_IDENTIFIERS


@dataclass(frozen=True, slots=True)
class EntryPlan:
    """All that enter has to know of one canvas."""

    canvas_id: str
    user_key: str
    fields: tuple[FieldColumn, ...]
    rule: Rule
    steps: tuple[StepPlan, ...]


class Leases(Protocol):
    """The right to read a source, for a while."""

    def hold_cursor(self, canvas_id: str, owner: str, *, now_us: int, lease_s: float) -> CursorHold | None: ...

    def release_cursor(self, hold: CursorHold) -> None: ...


class SetsAside(Protocol):
    """What splitting a far-behind source asks of the ledger."""

    def set_aside(self, hold: CursorHold, upto: Json, *, now_us: int) -> CursorHold: ...


class EntryLedger(Leases, Protocol):
    """What enter asks of the ledger; each verb is one transaction."""

    def source_failed(self, canvas_id: str, sentence: str, *, now_us: int) -> None: ...

    def completed_units(self, canvas_id: str, units: Collection[str]) -> set[str]: ...

    def due_looks(self, canvas_id: str, *, now_us: int) -> list[tuple[int, Look]]: ...

    def seal(
        self,
        hold: CursorHold,
        people: SealedPeople,
        steps: Sequence[StepPlan],
        *,
        position: Json,
        units: Sequence[str],
        looks: Sequence[Look],
        now_us: int,
    ) -> CursorHold: ...

    def seal_late(
        self,
        look_id: int,
        canvas_id: str,
        people: SealedPeople,
        steps: Sequence[StepPlan],
        *,
        again: Look | None,
        now_us: int,
    ) -> None: ...


@dataclass(slots=True)
class Entered:
    """What one tick has done."""

    rows: int = 0
    people: int = 0
    chunks: int = 0
    without_key: int = 0


@dataclass(slots=True)
class _Gathered:
    """Pages read and not sealed yet; together at most one chunk, of ``wanted`` people."""

    wanted: int
    keys: list[Sequence[str]] = field(default_factory=list)
    columns: dict[str, list[Sequence[object]]] = field(default_factory=dict)
    people: int = 0
    position: Json = None
    units: list[str] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    pages: int = 0
    since_s: float = 0.0

    def is_full(self) -> bool:
        """Whether what it lacks is not worth another page."""
        return self.people >= self.wanted * FULL_ENOUGH


_Packing = tuple[_Gathered, Callable[[], SealedPeople]]


class _Sealing:
    """Seals one chunk after the other, while the next is packed and the one after it is read, if reading is quick."""

    def __init__(self, enter: Enter, hold: CursorHold, done: Entered) -> None:
        self._enter, self._done = enter, done
        self._waiting: _Packing | None = None
        # Waits until the last chunk that was begun is sealed, and gives the cursor behind it.
        self._sealed: Callable[[], CursorHold] = lambda: hold

    def hand_over(self, gathered: _Gathered) -> None:
        """Begin to pack a chunk, and to seal the one before; a slow source's chunk is sealed at once."""
        before, self._waiting = self._waiting, (gathered, self._enter.begin_packing(gathered))
        self._seal(before)
        if time.monotonic() - gathered.since_s >= SEAL_WITHIN_S:
            self._seal_waiting()
            self._sealed()

    def finish(self, gathered: _Gathered) -> CursorHold:
        """Seal whatever is left."""
        if gathered.pages:
            self.hand_over(gathered)
        self._seal_waiting()
        return self._sealed()

    def _seal_waiting(self) -> None:
        waiting, self._waiting = self._waiting, None
        self._seal(waiting)

    def _seal(self, waiting: _Packing | None) -> None:
        if waiting:
            self._sealed = self._enter.begin_sealing(self._sealed(), *waiting, self._done)


class Enter:
    """Brings the people of one canvas from its source into the ledger; any number may run, one enters."""

    def __init__(
        self,
        plan: EntryPlan,
        source: Source,
        ledger: EntryLedger,
        now_us: Callable[[], int],
        owner: str,
        *,
        hands: Hands | None = None,
        aside: tuple[Splits, SetsAside] | None = None,
    ) -> None:
        self._plan, self._source, self._ledger, self._aside = plan, source, ledger, aside
        self._now_us, self._owner, self._hands = now_us, owner, hands or OwnHands()
        self._filling = Filling({field for step in plan.steps for field in step.fields})
        self._gathered = self._begun()
        self.done = Entered()

    def tick(self, stop: threading.Event) -> Entered:
        """Enter all people behind the cursor; return what was done (nothing while another process reads).

        Raises SourceFailed after noting it in the ledger; what was sealed before stays, the cursor is behind it.
        """
        done = Entered()
        hold = self._renew()
        if hold is None:
            return done
        try:
            with lease_kept(self._renew):
                self._look_again(done, stop)
                self._read_on(hold, done, stop)
        except LostClaim:
            log.info("Another process reads the source of canvas %s now.", self._plan.canvas_id)
            return done
        except SourceFailed as failure:
            self._ledger.source_failed(self._plan.canvas_id, str(failure), now_us=self._now_us())
            raise
        finally:
            self._ledger.release_cursor(hold)
        self._say(done)
        return done

    def _say(self, done: Entered) -> None:
        if done.without_key:
            log.warning(
                "Canvas %s: %d rows without a value in %r were left out; give every row a user key.",
                self._plan.canvas_id,
                done.without_key,
                self._plan.user_key,
            )

    def _renew(self) -> CursorHold | None:
        return self._ledger.hold_cursor(
            self._plan.canvas_id, self._owner, now_us=self._now_us(), lease_s=CURSOR_LEASE_S
        )

    def _read_on(self, hold: CursorHold, done: Entered, stop: threading.Event) -> None:
        """Read to the end of the source; of a long way there only the beginning, where the rest can be set aside."""
        # What is open behind the pages is closed with them, however this ends.
        with closing(self._source.pages(hold.position, max_rows=self._max_rows, seen=self._seen)) as pages:
            if self._aside is not None:
                hold = self._enter(pages, hold, done, stop, most_rows=FAR_BEHIND_ROWS)
                if done.rows < FAR_BEHIND_ROWS or stop.is_set():
                    return
                source, book = self._aside
                upto = source.split_at(hold.position)
                if upto is not None:
                    book.set_aside(hold, upto, now_us=self._now_us())
                    return
            self._enter(pages, hold, done, stop)

    def _max_rows(self) -> int:
        return self._filling.rows_for(max(1, self._gathered.wanted - self._gathered.people))

    def _begun(self) -> _Gathered:
        self._gathered = _Gathered(self._filling.people)
        return self._gathered

    def _enter(
        self,
        pages: Iterator[Page],
        hold: CursorHold,
        done: Entered,
        stop: threading.Event,
        *,
        most_rows: int | None = None,
    ) -> CursorHold:
        gathered = self._begun()
        sealing = _Sealing(self, hold, done)
        try:
            for page in pages:
                done.rows += page.rows
                keys, columns = self._eligible(page.columns, done)
                self._filling.read(page.rows, eligible=len(keys))
                if gathered.pages and gathered.people + len(keys) > gathered.wanted:
                    sealing.hand_over(gathered)
                    gathered = self._begun()
                _gather(gathered, page, keys, columns)
                del page, keys, columns  # or they would be held while others are packed and the next page is read
                if gathered.is_full() or time.monotonic() - gathered.since_s >= SEAL_WITHIN_S:
                    sealing.hand_over(gathered)
                    gathered = self._begun()
                if stop.is_set() or (most_rows is not None and done.rows >= most_rows):
                    break
        except SourceFailed:
            # What a source has given before it failed is given.
            sealing.finish(gathered)
            raise
        return sealing.finish(gathered)

    def begin_sealing(
        self, hold: CursorHold, gathered: _Gathered, result: Callable[[], SealedPeople], done: Entered
    ) -> Callable[[], CursorHold]:
        """Begin to write people, once they are packed, and the cursor behind them."""
        return self._hands.begin_sealing(partial(self._seal, hold, gathered, result, done))

    def _seal(
        self, hold: CursorHold, gathered: _Gathered, result: Callable[[], SealedPeople], done: Entered
    ) -> CursorHold:
        people = result()
        hold = self._ledger.seal(
            hold,
            people,
            self._plan.steps,
            position=gathered.position,
            units=gathered.units,
            looks=gathered.looks,
            now_us=self._now_us(),
        )
        self._filling.sealed(people)
        self._count(done, people)
        return hold

    def begin_packing(self, gathered: _Gathered) -> Callable[[], SealedPeople]:
        """Begin to pack what was gathered, and let go of the rows themselves."""
        keys, columns = _joined(gathered.keys), {name: _joined(pieces) for name, pieces in gathered.columns.items()}
        gathered.keys, gathered.columns = [], {}
        return self._hands.begin_packing(self._plan.fields, keys, columns)

    def _count(self, done: Entered, people: SealedPeople) -> None:
        """Count for this tick, and for whoever watches while it goes on."""
        for counted in (done, self.done):
            counted.people += len(people)
            counted.chunks += 1 if people else 0

    def _look_again(self, done: Entered, stop: threading.Event) -> None:
        for look_id, look in self._ledger.due_looks(self._plan.canvas_id, now_us=self._now_us()):
            if stop.is_set():
                return
            for page, again in self._source.recheck(look):
                keys, columns = self._eligible(page.columns, done)
                self._refuse_flood(len(keys))
                people = packed(self._plan.fields, keys, columns)
                self._ledger.seal_late(
                    look_id,
                    self._plan.canvas_id,
                    people,
                    self._plan.steps,
                    again=again,
                    now_us=self._now_us(),
                )
                self._count(done, people)

    def _refuse_flood(self, late: int) -> None:
        if late > MAX_IDENTIFIERS:
            raise SourceFailed(
                f"More than {MAX_IDENTIFIERS:,} rows were committed late into one stretch of the source of canvas "
                f"{self._plan.canvas_id}. Write them in smaller transactions, or raise late_commit and read them anew."
            )

    def _eligible(self, columns: Columns, done: Entered) -> tuple[list[str], dict[str, Sequence[object]]]:
        keys = identifiers.user_key(columns[self._plan.user_key])
        mask = self._plan.rule.mask(columns)
        names = [chosen.column for chosen in self._plan.fields]
        if all(mask) and all(keys):
            return keys, {name: columns[name] for name in names}  # type: ignore[return-value]
        keep = [row for row, admitted in enumerate(mask) if admitted and keys[row] is not None]
        done.without_key += sum(mask) - len(keep)
        return (
            [key for row in keep if (key := keys[row]) is not None],
            {name: [columns[name][row] for row in keep] for name in names},
        )

    def _seen(self, units: Collection[str]) -> set[str]:
        return self._ledger.completed_units(self._plan.canvas_id, units)


@contextmanager
def lease_kept(renew_it: Callable[[], object]) -> Iterator[None]:
    """Keep a source ours from a thread of its own: its first page may be longer in coming than a lease lasts."""
    over = threading.Event()

    def renew() -> None:
        while not over.wait(CURSOR_LEASE_S / 3):
            try:
                renew_it()
            except Exception as error:
                # The cursor's version still fences every seal; only work may be done twice.
                log.warning("The lease of a source was not renewed (%s).", type(error).__name__)

    thread = threading.Thread(target=renew, name="criteo-cursor-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _gather(gathered: _Gathered, page: Page, keys: Sequence[str], columns: Mapping[str, Sequence[object]]) -> None:
    if not gathered.pages:
        gathered.since_s = time.monotonic()
    gathered.pages += 1
    gathered.people += len(keys)
    gathered.keys.append(keys)
    for name, column in columns.items():
        gathered.columns.setdefault(name, []).append(column)
    gathered.position = page.position
    gathered.units.extend(page.completes)
    if page.look is not None:
        gathered.looks.append(page.look)


def _joined(pieces: list[Sequence[T]]) -> Sequence[T]:
    """Make one column of its pieces: once, for to touch each of so many values costs more than to look at it then."""
    return pieces[0] if len(pieces) == 1 else [*chain.from_iterable(pieces)]
