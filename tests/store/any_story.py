"""What any story of ``test_stateful`` is made of: people, their intents, files, and the lists as they are at Criteo."""

from __future__ import annotations

from dataclasses import dataclass, field

from sqlalchemy import Row, func, select

from criteo_provider.core.batching import pack
from criteo_provider.core.identifiers import Form, encode, to_wire
from criteo_provider.core.model import (
    ClaimedRequest,
    Metric,
    Operation,
    PartState,
    Reason,
    SealedPeople,
    StageState,
    Status,
)
from criteo_provider.core.outcome import Accepted, Outcome
from criteo_provider.store.intents import values_of
from criteo_provider.store.schema import metric, part, stage
from criteo_provider.store.schema import step as step_table
from criteo_provider.store.standings import spans_from_text
from tests.world import World, canvas, digest, step

EMAIL, MADID = Form.EMAIL_SHA256, Form.MADID
INVALID = {digest(6), digest(7)}  # Criteo calls the addresses of these two people invalid


def device(number: int) -> bytes:
    """The device id of the made-up person ``number``."""
    return digest(number)[:16]


def key_of(number: int) -> str:
    """The user key of the made-up person ``number``: every user has two addresses and two devices, one at a time."""
    return f"user-{number % 4}"


def sealed(people: list[tuple[int, bool, bool]]) -> SealedPeople:
    """People with or without an e-mail digest and a device id each."""
    emails = [digest(number) if has else None for number, has, _ in people]
    devices = [device(number) if has else None for number, _, has in people]
    return pack(
        [key_of(number) for number, _, _ in people],
        {(EMAIL.value, None): emails, (MADID.value, None): devices},
        {
            "email": [None if value else Reason.MISSING for value in emails],
            "madid": [None if value else Reason.BLANK for value in devices],
        },
        lambda values, form: encode(values, Form(form)),
    )


@dataclass
class Intent:
    """One identifier of one entry on its way to one audience; not ``reached`` while a delay is running."""

    audience_id: int
    operation: Operation
    value: bytes
    place: tuple[int, int, str, int]  # chunk, step, form, ordinal
    sequence: int
    key: str
    ends_us: int  # when its delay is over
    reached: bool

    @property
    def order(self) -> tuple[int, int]:
        return self.ends_us, self.sequence


@dataclass
class Flight:
    """A request on its way; ``outcome`` once Criteo has answered and nobody has settled it."""

    claimed: ClaimedRequest
    sent: dict[str, set[bytes]]
    outcome: Outcome | None = None


@dataclass(frozen=True)
class Fate:
    """What became of one identifier of one entry: its part, whether it is one of before, whether it is sent again."""

    place: tuple[int, int, str, int]
    value: bytes
    row: Row
    before: bool
    again: bool


@dataclass
class Files:
    """What the canvas files say."""

    fields: tuple[str, ...] = ("email", "madid")
    audience: str = "Shoppers"
    removes: bool = True
    leaves: bool = True

    def canvases(self) -> list:
        both = ("email", "madid")
        tour = [step("join", is_last=not self.leaves)]
        if self.leaves:
            tour.append(step("leave", Operation.REMOVE, delay_s=3600, position=2, fields=both))
        made = [canvas("in", step("add", fields=self.fields, audience=self.audience)), canvas("tour", *tour)]
        if self.removes:
            made.append(canvas("out", step("remove", Operation.REMOVE, fields=both)))
        return made

    def fields_of(self) -> dict[str, tuple[str, ...]]:
        """The fields each declared step may send now."""
        return {one.name: one.fields for made in self.canvases() for one in made.steps}


@dataclass
class Criteo:
    """The lists as they are at Criteo."""

    lists: dict[int, set[tuple[str, bytes]]] = field(default_factory=dict)

    def take(self, flight: Flight) -> Accepted:
        """Apply a request and count its identifiers, naming every invalid one."""
        held = self.lists.setdefault(flight.claimed.audience_id, set())
        good = {(form, value) for form, values in flight.sent.items() for value in values - INVALID}
        bad = [(form, value) for form, values in flight.sent.items() for value in values & INVALID]
        if flight.claimed.operation is Operation.ADD:
            held |= good
        else:
            held -= good
        return Accepted(len(good), len(bad), tuple(to_wire(value, Form(form)) for form, value in bad))


def fates_of(world: World) -> list[Fate]:
    """What became of each identifier of each entry, those of before and those sent again included."""
    fates: list[Fate] = []
    places: set[tuple] = set()
    with world.engine.connect() as connection:
        query = select(part, step_table.c.declared).join(step_table, step_table.c.id == part.c.step_id)
        for row in connection.execute(query).all():
            ordinals = [one for span in spans_from_text(row.spans) for one in range(span.first, span.last)]
            for ordinal, value in zip(ordinals, values_of(connection, row), strict=True):
                place = (row.chunk_id, row.step_id, row.form, ordinal)
                fates.append(Fate(place, value, row, row.earlier_id is not None, row.again))
                if not row.again:
                    assert (place, row.earlier_id) not in places
                    places.add((place, row.earlier_id))
    return fates


def status_by_person(world: World, *, overdue: bool) -> dict[tuple[str, int, int], Status]:
    """The status rule, one person at a time; ``overdue`` reads what is past its deadline as given up."""
    states: dict[tuple[int, int, int], set[PartState]] = {}
    for fate in fates_of(world):
        chunk_id, step_id, _, ordinal = fate.place
        row = fate.row
        late = row.state == PartState.OPEN and row.deadline_us is not None and row.deadline_us <= world.now_us
        told = PartState.ERRORED if overdue and late and row.declared else PartState(row.state)
        states.setdefault((chunk_id, step_id, ordinal), set()).add(told)
    with world.engine.connect() as connection:
        query = select(stage.c.chunk_id, stage.c.step_id, stage.c.people, step_table.c.name)
        query = query.join(step_table, step_table.c.id == stage.c.step_id)
        stages = connection.execute(query.where(stage.c.state == StageState.ENTERED)).all()
    return {
        (row.name, row.chunk_id, ordinal): status_of(states.get((row.chunk_id, row.step_id, ordinal), set()))
        for row in stages
        for ordinal in range(row.people)
    }


def told_by_metric_rows(world: World, name: str) -> tuple[int, ...]:
    """Entered, proceeded and exited as the metric rows of a step add up."""
    query = select(metric.c.metric, func.sum(metric.c.value)).join(step_table, step_table.c.id == metric.c.step_id)
    with world.engine.connect() as connection:
        sums = dict(connection.execute(query.where(step_table.c.name == name).group_by(metric.c.metric)).all())
    return tuple(int(sums.get(one, 0)) for one in (Metric.ENTERED, Metric.PROCEEDED, Metric.EXITED))


def nothing_of_before_is_left(removal: Intent, intents: list[Intent], own: dict, before: dict) -> None:
    """Whatever this user key was added under before the removal is part of it."""
    chunk_id, step_id, _, ordinal = removal.place
    sent = {(one.place[2], one.value) for one in intents if one.place[:2] == (chunk_id, step_id)
            and one.place[3] == ordinal}  # fmt: skip
    for intent in intents:
        if (intent.operation, intent.audience_id, intent.key) != (Operation.ADD, removal.audience_id, removal.key):
            continue
        if intent.order > removal.order or (intent.place[2], intent.value) in sent:
            continue
        if own[intent.place].state in (PartState.REFUSED, PartState.CLOSED):
            continue
        assert ((chunk_id, step_id, intent.place[2], ordinal), intent.value) in before, "somebody stays"


def status_of(states: set[PartState]) -> Status:
    """The status of a person from the parts of all identifiers."""
    if PartState.ACCEPTED in states:
        return Status.SYNCED
    if any(state.is_open for state in states):
        return Status.PENDING
    return Status.ERRORED if PartState.ERRORED in states else Status.NOT_SYNCED
