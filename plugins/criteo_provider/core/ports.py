"""Ports: what the two use cases, enter and upload, ask of the rooms around them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Columns = Mapping[str, Sequence[object]]
# Asks which of these units (files) were read to their end before.
Seen = Callable[[Collection[str]], set[str]]
# Asks before each page how many rows it may hold: one or more.
MaxRows = Callable[[], int]


@dataclass(frozen=True, slots=True)
class Look:
    """A stretch of a source that writers may still commit into, to be read once more after ``due_after_s``.

    ``after`` and ``upto`` (exclusive, inclusive) mean something to the source only; ``marks`` packs one 8-byte
    fingerprint for each row already read in between; ``last`` is true when no further look is wanted.
    """

    after: Json
    upto: Json
    marks: bytes = field(repr=False)
    due_after_s: float
    last: bool = True


@dataclass(frozen=True, slots=True)
class Page:
    """A stretch of rows as columns of equal length, and where to go on once all of it is entered.

    ``completes`` names finished units (files) that must never be read again. A page is never split.
    """

    columns: Columns = field(repr=False)
    rows: int
    position: Json
    completes: tuple[str, ...] = ()
    look: Look | None = None


@dataclass(frozen=True, slots=True)
class CursorHold:
    """The right to move the cursor of one canvas: position read, and the version that fences it.

    With ``backlog_id`` it is that of a backlog set aside at ``since_us``, which is read up to and with ``upto``.
    """

    canvas_id: str
    owner: str
    position: Json
    version: int
    backlog_id: int | None = None
    upto: Json = None
    since_us: int | None = None


class Source(Protocol):
    """A stream of rows of one canvas, read forward from a position, and repeatable from any position."""

    def is_ahead(self, position: Json, seen: Seen) -> bool:
        """Tell cheaply whether there are rows (or files) behind ``position``."""

    def pages(self, position: Json, *, max_rows: MaxRows, seen: Seen) -> Generator[Page]:
        """Yield pages of at most ``max_rows()`` rows behind ``position`` until the source is dry; raise SourceFailed.

        A page may hold more where no position lies in between.
        """

    def recheck(self, look: Look) -> Iterator[tuple[Page, Look | None]]:
        """Read a stretch again: pages with only the rows not in ``look.marks`` and the next look, if one is wanted.

        Yields exactly one pair (the page may have 0 rows); its position is to be ignored.
        """


class Splits(Protocol):
    """A source that can be read between any two positions, so that fresh rows need not wait behind a backlog."""

    def split_at(self, position: Json) -> Json:
        """Return a position behind ``position`` that only the newest rows lie behind, None when there is none."""

    def between(self, position: Json, upto: Json, *, max_rows: MaxRows) -> Generator[Page]:
        """Yield pages of the rows in (``position``, ``upto``]; the last one, full or empty, ends at ``upto``."""


class SlotGate(Protocol):
    """The way of one Criteo application into the pacer; every HTTP call takes one slot."""

    def enter(self, *, interactive: bool = False) -> None:
        """Block until the next slot of this application, and return inside it."""

    def observed(self, status: int, headers: Mapping[str, str]) -> None:
        """Let an answer's rate-limit headers or a 429 move the pacer for everybody."""


@dataclass(frozen=True, slots=True)
class Token:
    """An access token and when it ends (epoch seconds); ``serial`` names it without showing it."""

    value: str = field(repr=False)
    ends_at_s: float
    serial: int


class TokenStore(Protocol):
    """Where the access token of one application lives, shared by all processes and encrypted at rest."""

    def current(self) -> Token | None:
        """Return the stored token, whether fresh or not."""

    def begin_renewal(self, *, dead_serial: int | None, lease_s: float) -> bool:
        """Take the renewal lease; False when another process holds it or the dead token is replaced already."""

    def finish_renewal(self, value: str, *, ends_at_s: float, refresh_token: str | None = None) -> Token | None:
        """Store what was renewed and give the lease back; None when somebody else has renewed in the meantime."""

    def abandon_renewal(self) -> None:
        """Give the lease back without a token."""

    def now_s(self) -> float:
        """Tell the time on the clock all processes share, in epoch seconds."""


class ConsentStore(TokenStore, Protocol):
    """Where the tokens of one consent live; the refresh token changes with each use."""

    def refresh_token(self) -> str:
        """Return the refresh token to be exchanged in the renewal that was begun; raises AccessLost."""

    def refused(self) -> bool:
        """Mark the consent as dead; False when somebody has renewed or replaced it since, so that it is not."""
