"""The nouns of the house: statuses, part states, metrics, and what is claimed from the ledger."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

# Criteo takes at most this many identifiers in one request (criteo-api: 50,000 accepted, 50,001 refused).
MAX_IDENTIFIERS = 50_000


class Operation(StrEnum):
    """What an audience-sync step does with people."""

    ADD = "add"
    REMOVE = "remove"

    @property
    def opposite(self) -> Operation:
        """The operation that undoes this one."""
        return Operation.REMOVE if self is Operation.ADD else Operation.ADD


class WhenDeleted(StrEnum):
    """What becomes of people when their audience is deleted at Criteo."""

    WAIT = "wait"
    RECREATE = "recreate"
    FAIL = "fail"


class Status(IntEnum):
    """Where one user stands in one step; the numbers are stored."""

    PENDING = 0
    SYNCED = 1
    NOT_SYNCED = 2
    ERRORED = 3


class PartState(IntEnum):
    """What became of one part of an upload; the numbers are stored."""

    WAITING = 0  # its step is not reached yet: a delay is running
    OPEN = 1  # to be sent when due
    CLAIMED = 2  # belongs to a request in flight
    ACCEPTED = 3  # Criteo took it as valid
    REFUSED = 4  # Criteo called it invalid
    ERRORED = 5  # given up after the patience window
    CLOSED = 6  # not to be sent any more: consent withdrawn, superseded, field no longer chosen, dropped

    @property
    def is_open(self) -> bool:
        """Whether Criteo may still accept it."""
        return self <= PartState.CLAIMED


class StageState(IntEnum):
    """Whether the people of a stage have reached their step; the numbers are stored."""

    WAITING = 0
    ENTERED = 1


class Metric(StrEnum):
    """The seven numbers of a step, named as people read them."""

    ENTERED = "Entered"
    PROCEEDED = "Proceeded to Next Step"
    SYNCED = "Users Synced"
    NOT_SYNCED = "Users Not Synced"
    PENDING = "Users Pending"
    ERRORED = "Users Errored"
    EXITED = "Exited Canvas"


class Reason(StrEnum):
    """Why a user is Not Synced or a part is closed, in stable codes."""

    MISSING = "no usable identifier: missing"
    BLANK = "no usable identifier: blank"
    MALFORMED = "no usable identifier: malformed"
    INVALID_AT_CRITEO = "refused by Criteo"
    CONSENT_WITHDRAWN = "consent withdrawn"
    SUPERSEDED = "superseded by a later intent"
    FIELD_NO_LONGER_CHOSEN = "field no longer chosen"
    DROPPED = "dropped by a person"


class Role(StrEnum):
    """Which of the two DAGs is at work."""

    FRESH = "fresh"
    RETRY = "retry"


@dataclass(frozen=True, slots=True)
class Span:
    """The people ``first`` (inclusive) to ``last`` (exclusive) of a chunk, by ordinal."""

    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first


@dataclass(frozen=True, slots=True)
class PackedForm:
    """All values of one form in a chunk: who has one (``present``, ascending), and the values in that order."""

    form: str
    gum_caller_id: int | None
    present: tuple[Span, ...]
    count: int
    blob: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One audience-sync step as the ledger knows it when people enter."""

    step_id: int
    version_id: int
    audience_id: int
    operation: Operation
    fields: tuple[str, ...]
    delay_s: float
    is_last: bool


@dataclass(frozen=True, slots=True)
class AudienceKey:
    """An audience by its name in one ad account, seen through one Airflow connection."""

    connection_id: str
    ad_account: str
    name: str


@dataclass(frozen=True, slots=True)
class StepDeclaration:
    """An audience-sync step as a canvas file declares it."""

    name: str
    position: int
    audience: AudienceKey
    operation: Operation
    fields: tuple[str, ...]
    delay_s: float
    is_last: bool
    paused: bool = False
    when_deleted: WhenDeleted | None = None  # None: says nothing, like another step of the audience, or waits


@dataclass(frozen=True, slots=True)
class CanvasDeclaration:
    """What the ledger has to know of a canvas file."""

    canvas_id: str
    name: str
    owner: str
    connection_id: str
    retry_for_s: float
    fingerprint: str
    steps: tuple[StepDeclaration, ...]


@dataclass(frozen=True, slots=True)
class Shortfall:
    """People of a chunk who lack a usable value of ``field``, and why."""

    field: str
    span: Span
    reason: Reason


@dataclass(frozen=True, slots=True)
class SealedPeople:
    """The people of one chunk, ready to be written: keys by ordinal, packed identifiers, and who lacks what."""

    user_keys: tuple[str, ...] = field(repr=False)
    forms: tuple[PackedForm, ...]
    shortfalls: tuple[Shortfall, ...]

    def __len__(self) -> int:
        return len(self.user_keys)


@dataclass(frozen=True, slots=True)
class ClaimedPart:
    """One part of an upload inside a request."""

    part_id: int
    stage_id: int
    chunk_id: int
    form: str
    spans: tuple[Span, ...]
    identifiers: int
    attempts: int
    narrow_level: int
    narrow_root: int | None
    intent_us: int
    earlier_id: int | None = None


@dataclass(frozen=True, slots=True)
class ClaimedRequest:
    """One request to be sent: parts of one audience, one operation, one identifier type."""

    request_id: int
    audience_id: int
    criteo_id: str
    ad_account: str
    operation: Operation
    identifier_type: str
    gum_caller_id: int | None
    parts: tuple[ClaimedPart, ...]
    lease_until_us: int
    is_probe: bool = False

    @property
    def identifiers(self) -> int:
        """How many identifiers the parts hold, duplicates included."""
        return sum(part.identifiers for part in self.parts)
