"""What the books of a story are made of: one identifier of one entry, and what the ledger stores about it."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from criteo_provider.core.model import ClaimedRequest, Operation, PartState

# Stage, form, ordinal, and 0; or under which number a removal keeps what its people were added under before.

# Stage, form, ordinal, and 0; or under which number a removal keeps what its people were added under before.
Place = tuple[int, str, int, int]
FINAL = (PartState.ACCEPTED, PartState.REFUSED, PartState.ERRORED, PartState.CLOSED)
STILL = (PartState.OPEN, PartState.CLAIMED)
CONNECTION, AD_ACCOUNT = "criteo_default", "1001"
AD_ACCOUNT_KEY = f"{CONNECTION}/{AD_ACCOUNT}"


@dataclass(eq=False)
class Intent:
    """One identifier of one entry on its way into, or out of, one audience."""

    place: Place
    step_id: int
    audience_id: int
    operation: Operation
    value: bytes
    sequence: int
    enters_us: int
    reached_us: int | None
    patience_us: int
    fate: PartState | None = None  # as Criteo's answers decide it
    taken_by: str | None = None  # the list whose Criteo has accepted it
    may: set[str] = field(default_factory=set)  # ends it may have come to without an answer
    tried: bool = False  # whether a request with it was ever claimed
    clock_us: int | None = None  # when its patience began
    rested_us: int = 0  # how much of that was spent in a step that rested
    deadline_us: int | None = None  # as the ledger had it last
    requeued_us: int | None = None  # a person has just asked for whoever is given up to be tried again
    clock_of: int | None = None  # the request whose claim has begun it
    stood: PartState = PartState.WAITING  # as the ledger had it last
    set_back_us: int = 0  # how far the clock had been set back by the time the step was reached

    @property
    def form(self) -> str:
        return self.place[1]

    @property
    def order(self) -> tuple[int, int]:
        return self.enters_us, self.sequence


@dataclass
class Step:
    """One step as the files have it now."""

    canvas_id: str
    name: str
    fields: Collection[str]
    declared: bool = True
    paused: bool = False

    @property
    def at_work(self) -> bool:
        return self.declared and not self.paused


@dataclass
class Live:
    """A request somebody may still settle."""

    claimed: ClaimedRequest
    places: list[Place]
    once_more: list[Place]  # of whom a late request may have undone


@dataclass(frozen=True)
class Removal:
    """People of one chunk who are to leave one audience for they have opted out."""

    stage_id: int
    chunk_id: int
    step_id: int
    canvas_id: str
    step_name: str
    user_keys: list[str]
    identifiers: list[tuple[list[Place], list[bytes], int, int]]  # places, values, audience, moment of the intent


@dataclass(frozen=True)
class PartRow:
    """One part as stored."""

    places: list[Place]
    state: PartState
    reason: str | None
    deadline_us: int | None


@dataclass(frozen=True)
class Stored:
    """What the ledger stores about people: parts, what removals have found, the view of users, sums of metric rows."""

    parts: list[PartRow]
    once_more: list[PartRow]  # what repeats parts that a late request may have undone
    earlier: dict[Place, bytes]
    view: dict[tuple[int, int], str]
    metrics: dict[tuple[int, str], int]


def status_of(states: Collection[Any]) -> str:
    """The status of one user from what became of the identifiers."""
    if PartState.ACCEPTED in states:
        return "Synced"
    if any(state in (PartState.WAITING, PartState.OPEN, PartState.CLAIMED) for state in states):
        return "Pending"
    return "Errored" if PartState.ERRORED in states else "Not Synced"
