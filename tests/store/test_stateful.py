"""Any story at all, told to the real ledger and to a naive model of Criteo's lists: the laws hold after every step.

Two canvases pull the same people in and out of one audience, a third does both an hour apart; requests are accepted,
refused, lost, answered too late; owners die, files are edited. At the end Criteo's lists equal the last intents.

It stays beside the simulator: it calls the verbs in orders that no use case would, and looks at stored exceptions.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import Engine, Row, func, select, text, update

from criteo_provider.core.batching import pack
from criteo_provider.core.identifiers import Form, decode, encode, to_wire
from criteo_provider.core.model import (
    ClaimedRequest,
    Metric,
    Operation,
    PartState,
    Reason,
    Role,
    SealedPeople,
    StageState,
    Status,
)
from criteo_provider.core.outcome import Accepted, AccessLost, AudienceGone, Busy, Outcome, Refused, Unavailable
from criteo_provider.store import troubles
from criteo_provider.store.engine import writing
from criteo_provider.store.intents import values_of
from criteo_provider.store.schema import chunk, metadata, metric, part, stage, stage_exception, trouble
from criteo_provider.store.schema import step as step_table
from criteo_provider.store.standings import spans_from_text
from tests.world import World, canvas, crowd, digest, step

EMAIL, MADID = Form.EMAIL_SHA256, Form.MADID
INVALID = {digest(6), digest(7)}  # Criteo calls the addresses of these two people invalid
LEASE_S = 120.0
WAITING_FOR_SERVER = "Criteo's servers have trouble."

entering = st.tuples(st.integers(0, 7), st.booleans(), st.booleans())
crowds = st.lists(entering, min_size=1, max_size=6)


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


class Stories(RuleBasedStateMachine):
    """The ledger, hour after hour."""

    engine_url = staticmethod(lambda: "")

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.engine_url())
        self.files, self.criteo = Files(), Criteo()
        self.flights: list[Flight] = []
        self.ghosts: list[Flight] = []  # nobody waits for their answer, and they may still arrive
        self.intents: list[Intent] = []
        self.resolved: set[int] = set()
        self.stood: dict[tuple[int, int], Status] = {}
        self._declare()

    # --- what may happen

    @rule(canvas_id=st.sampled_from(["in", "out", "tour"]), people=crowds)
    def enter(self, canvas_id: str, people: list) -> None:
        if canvas_id not in self.world.plans:
            return
        made = sealed(people)
        self.world.enter(canvas_id, made)
        with self.world.engine.connect() as connection:
            chunk_id = connection.execute(select(chunk.c.id).order_by(chunk.c.id.desc()).limit(1)).scalar_one()
        for plan in self.world.plans[canvas_id]:
            for held in made.forms:
                if Form(held.form).field not in plan.fields:
                    continue
                ordinals = [ordinal for span in held.present for ordinal in range(span.first, span.last)]
                for ordinal, value in zip(ordinals, decode(held.blob, Form(held.form)), strict=True):
                    ends_us = self.world.now_us + round(plan.delay_s * 1e6)
                    place = (chunk_id, plan.step_id, held.form, ordinal)
                    sequence = len(self.intents)
                    key, at_once = made.user_keys[ordinal], not plan.delay_s
                    intent = Intent(plan.audience_id, plan.operation, value, place, sequence, key, ends_us, at_once)
                    self.intents.append(intent)

    @rule(role=st.sampled_from(Role))
    def claim(self, role: Role) -> None:
        claimed = self.world.claim(role, lease_s=LEASE_S)
        if claimed is not None:
            self.flights.append(self._launched(claimed))

    @rule(outcome=st.sampled_from([None, Refused("invalid", "Criteo refuses the content."), Busy(5)]))
    def claim_and_settle(self, outcome: Outcome | None) -> None:
        claimed = self.world.claim(lease_s=LEASE_S)
        if claimed is not None:
            flight = self._launched(claimed)
            self.world.settle(claimed, outcome or self.criteo.take(flight))

    @precondition(lambda self: self.flights)
    @rule(which=st.integers(0, 5), names=st.sampled_from(["all", "none", "one"]), settled=st.booleans())
    def accepted(self, which: int, names: str, settled: bool) -> None:
        flight = self._in_time(which)
        if flight is None:
            return
        whole = self.criteo.take(flight)
        sample = {"all": whole.sample, "none": (), "one": whole.sample[:1]}[names]
        self._answered(flight, Accepted(whole.valid, whole.invalid, sample), settled)

    @precondition(lambda self: self.flights)
    @rule(
        which=st.integers(0, 5),
        outcome=st.sampled_from(
            [
                Busy(30),
                Unavailable("http-503", WAITING_FOR_SERVER, maybe_applied=False),
                Refused("invalid", "Criteo refuses the content."),
                AccessLost("connection", "token-refused", "Criteo refuses the token."),
                AccessLost("ad_account", "not-permitted", "Criteo denies the ad account."),
                AudienceGone("audience-gone", "The audience is gone."),
            ]
        ),
        settled=st.booleans(),
    )
    def failed(self, which: int, outcome: Outcome, settled: bool) -> None:
        flight = self._in_time(which)
        if flight is not None:
            self._answered(flight, outcome, settled)

    @precondition(lambda self: self.flights)
    @rule(which=st.integers(0, 5), told=st.booleans())
    def answer_lost(self, which: int, told: bool) -> None:
        """The owner waits in vain, or dies (``told`` is False); the request may arrive until its lease is over."""
        flight = self._in_time(which)
        if flight is None:
            return
        self.ghosts.append(flight)
        self.flights.remove(flight)
        if told:
            self.world.settle(flight.claimed, Unavailable("no-answer", "Criteo did not answer.", maybe_applied=True))

    @precondition(lambda self: self.ghosts)
    @rule(which=st.integers(0, 5))
    def ghost_arrives(self, which: int) -> None:
        self.criteo.take(self.ghosts.pop(which % len(self.ghosts)))

    @precondition(lambda self: self.flights)
    @rule(which=st.integers(0, 5), told=st.booleans())
    def arrives_after_its_claim_was_lost(self, which: int, told: bool) -> None:
        """An owner stalls with the request on the wire; it reaches Criteo in the end, and the owner settles."""
        waiting = [one for one in self.flights if one.outcome is None]
        waiting = [one for one in waiting if one.claimed.lease_until_us < self.world.now_us]
        if not waiting:
            return
        flight = waiting[which % len(waiting)]
        self.world.ledger.sweep(now_us=self.world.now_us)
        self.flights.remove(flight)
        answer: Outcome = self.criteo.take(flight)
        if not told:
            answer = Unavailable("no-answer", "Criteo did not answer.", maybe_applied=True)
        assert self.world.settle(flight.claimed, answer) == len(flight.claimed.parts)

    @precondition(lambda self: self.flights)
    @rule(which=st.integers(0, 5))
    def settle_late(self, which: int) -> None:
        """Settle what was answered a while ago; what was never sent goes back."""
        flight = self.flights.pop(which % len(self.flights))
        if flight.outcome is not None:
            self.world.settle(flight.claimed, flight.outcome)
        else:
            self.world.ledger.release(flight.claimed, now_us=self.world.now_us)

    @rule(seconds=st.sampled_from([0.000001, 1, 40, 61, 130, 1300, 3700, 14 * 3600]))
    def pass_time(self, seconds: float) -> None:
        self.world.pass_time(seconds)
        self.ghosts = [ghost for ghost in self.ghosts if ghost.claimed.lease_until_us >= self.world.now_us]

    @rule()
    def due_steps(self) -> None:
        self.world.ledger.enter_due_steps(now_us=self.world.now_us)
        with self.world.engine.connect() as connection:
            query = select(stage.c.chunk_id, stage.c.step_id).where(stage.c.state == StageState.ENTERED)
            reached = {tuple(row) for row in connection.execute(query)}
        for intent in self.intents:
            intent.reached = intent.reached or intent.place[:2] in reached

    @rule()
    def sweep(self) -> None:
        self.world.ledger.sweep(now_us=self.world.now_us)

    @rule(
        fields=st.sampled_from([("email", "madid"), ("email",)]),
        audience=st.sampled_from(["Shoppers", "Others"]),
        removes=st.booleans(),
        leaves=st.booleans(),
    )
    def edit(self, fields: tuple[str, ...], audience: str, removes: bool, leaves: bool) -> None:
        self.files = Files(fields, audience, removes, leaves)
        self._declare()

    @precondition(lambda self: not (self.files.removes and self.files.leaves))
    @rule()
    def drop_paused(self) -> None:
        for canvas_id, name, declared in (("out", "remove", self.files.removes), ("tour", "leave", self.files.leaves)):
            if not declared:
                self.world.ledger.drop(canvas_id, name, now_us=self.world.now_us)

    # --- what must be true

    @invariant()
    def laws_hold(self) -> None:
        assert self.world.ledger.broken_laws() == []

    @invariant()
    def every_reader_sees_the_same_people(self) -> None:
        """View, counts and numbers agree with the rule applied to each person; final statuses stay."""
        by_person = self._by_person(overdue=False)
        with self.world.engine.connect() as connection:
            rows = connection.execute(text("SELECT step, chunk_id, ordinal, status FROM user_status")).all()
        view = {(row.step, row.chunk_id, int(row.ordinal)): row.status for row in rows}
        assert len(view) == len(rows)
        assert view == {key: status.name.replace("_", " ").title() for key, status in by_person.items()}
        read = Counter((key[0], status) for key, status in self._by_person(overdue=True).items())
        for one in self.world.ledger.numbers(now_us=self.world.now_us):
            told = (one.pending, one.synced, one.not_synced, one.errored)
            assert told == tuple(read[one.step, status] for status in Status), one.step
            assert one.entered == sum(told)
            assert sum(one.not_synced_reasons.values()) == one.not_synced
            assert (one.entered, one.proceeded, one.exited) == self._told_by_metric_rows(one.step)
        for key, before in self.stood.items():
            assert before is Status.PENDING or by_person[key] is before
        self.stood = by_person

    @invariant()
    def exceptions_are_sparse_and_apart(self) -> None:
        with self.world.engine.connect() as connection:
            order = stage_exception.c.stage_id, stage_exception.c.first
            rows = connection.execute(select(stage_exception).order_by(*order)).all()
        assert all(row.first < row.last for row in rows)
        assert all(one.last <= two.first for one, two in pairwise(rows) if one.stage_id == two.stage_id)

    def teardown(self) -> None:
        try:
            self._drain()
            self.laws_hold()
            self.every_reader_sees_the_same_people()
            self._lists_equal_the_last_intents()
        finally:
            self.world.engine.dispose()

    # --- how

    def _declare(self) -> None:
        self.world.plans = self.world.ledger.declare(self.files.canvases(), now_us=self.world.now_us)
        for audience_id in {plan.audience_id for plans in self.world.plans.values() for plan in plans} - self.resolved:
            self.resolved.add(audience_id)
            self.world.ledger.resolved(audience_id, str(audience_id), created=False, now_us=self.world.now_us)

    def _launched(self, claimed: ClaimedRequest) -> Flight:
        """Check that this request may fly, beside all that is in the air."""
        sent: dict[str, set[bytes]] = {}
        for one in claimed.parts:
            sent.setdefault(one.form, set()).update(self.world.ledger.items(one))
        assert all(sent.values())
        for other in (*self.flights, *self.ghosts):
            if other.claimed.lease_until_us < self.world.now_us:
                continue
            if other.claimed.audience_id == claimed.audience_id:
                if other.outcome is None:
                    assert other.claimed.operation is claimed.operation, "two signs in flight"
                held = {(one.part_id, one.spans) for one in other.claimed.parts}
                if other in self.flights:
                    assert not held & {(one.part_id, one.spans) for one in claimed.parts}, "claimed twice"
        allowed = self.files.fields_of()
        with self.world.engine.connect() as connection:
            query = select(step_table.c.name).join(part, part.c.step_id == step_table.c.id)
            for one in claimed.parts:
                name = connection.execute(query.where(part.c.id == one.part_id)).scalar_one()
                assert one.earlier_id is not None or Form(one.form).field in allowed.get(name, ()), (
                    "a field no longer chosen was sent"
                )
        return Flight(claimed, sent)

    def _in_time(self, which: int) -> Flight | None:
        waiting = [one for one in self.flights if one.outcome is None]
        waiting = [one for one in waiting if one.claimed.lease_until_us > self.world.now_us]
        return waiting[which % len(waiting)] if waiting else None

    def _answered(self, flight: Flight, outcome: Outcome, settled: bool) -> None:
        flight.outcome = outcome
        if settled:
            self.flights.remove(flight)
            self.world.settle(flight.claimed, outcome)

    def _fates(self) -> list[Fate]:
        """What became of each identifier of each entry, those of before and those sent again included."""
        fates: list[Fate] = []
        places: set[tuple] = set()
        with self.world.engine.connect() as connection:
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

    def _by_person(self, *, overdue: bool) -> dict[tuple[str, int, int], Status]:
        """The status rule, one person at a time; ``overdue`` reads what is past its deadline as given up."""
        states: dict[tuple[int, int, int], set[PartState]] = {}
        for fate in self._fates():
            chunk_id, step_id, _, ordinal = fate.place
            row = fate.row
            late = row.state == PartState.OPEN and row.deadline_us is not None and row.deadline_us <= self.world.now_us
            told = PartState.ERRORED if overdue and late and row.declared else PartState(row.state)
            states.setdefault((chunk_id, step_id, ordinal), set()).add(told)
        with self.world.engine.connect() as connection:
            query = select(stage.c.chunk_id, stage.c.step_id, stage.c.people, step_table.c.name)
            query = query.join(step_table, step_table.c.id == stage.c.step_id)
            stages = connection.execute(query.where(stage.c.state == StageState.ENTERED)).all()
        return {
            (row.name, row.chunk_id, ordinal): _status(states.get((row.chunk_id, row.step_id, ordinal), set()))
            for row in stages
            for ordinal in range(row.people)
        }

    def _told_by_metric_rows(self, name: str) -> tuple[int, ...]:
        query = select(metric.c.metric, func.sum(metric.c.value)).join(step_table, step_table.c.id == metric.c.step_id)
        with self.world.engine.connect() as connection:
            sums = dict(connection.execute(query.where(step_table.c.name == name).group_by(metric.c.metric)).all())
        return tuple(int(sums.get(one, 0)) for one in (Metric.ENTERED, Metric.PROCEEDED, Metric.EXITED))

    def _drain(self) -> None:
        """Criteo is well again: send until nothing that may be sent is left."""
        self.flights, self.ghosts = [], []
        self.pass_time(LEASE_S + 1)
        quiet = 0
        for _ in range(2_000):
            claimed = self.world.claim(Role.FRESH) or self.world.claim(Role.RETRY)
            if claimed is not None:
                flight = self._launched(claimed)
                self.world.settle(claimed, self.criteo.take(flight))
                quiet = 0
            elif quiet < 4:
                quiet += 1
                self.pass_time(1201)
                self.due_steps()
                self.sweep()
            else:
                return
        pytest.fail("the drain does not end")

    def _lists_equal_the_last_intents(self) -> None:
        fates = self._fates()
        own = {fate.place: fate.row for fate in fates if not fate.before and not fate.again}
        before = {(fate.place, fate.value): fate.row for fate in fates if fate.before and not fate.again}
        reached = sorted((one for one in self.intents if one.reached), key=lambda one: one.order)
        last: dict[tuple[int, str, bytes], tuple[Operation, Row]] = {}
        for intent in reached:
            last[intent.audience_id, intent.place[2], intent.value] = intent.operation, own[intent.place]
            if intent.operation is Operation.REMOVE:
                for (place, value), row in before.items():
                    if (place[0], place[1], place[3]) == (intent.place[0], intent.place[1], intent.place[3]):
                        last[intent.audience_id, place[2], value] = intent.operation, row
                if own[intent.place].state == PartState.ACCEPTED:
                    self._nothing_of_before_is_left(intent, own, before)
        for (audience_id, form, value), (operation, row) in last.items():
            assert not PartState(row.state).is_open or not row.declared, "somebody is left behind"
            assert row.reason != Reason.SUPERSEDED, "the last intent was called superseded"
            if row.state == PartState.ACCEPTED:
                there = (form, value) in self.criteo.lists.get(audience_id, set())
                assert there is (operation is Operation.ADD), "the last intent did not win"

    def _nothing_of_before_is_left(self, removal: Intent, own: dict, before: dict) -> None:
        """Whatever this user key was added under before the removal is part of it."""
        chunk_id, step_id, _, ordinal = removal.place
        sent = {(one.place[2], one.value) for one in self.intents if one.place[:2] == (chunk_id, step_id)
                and one.place[3] == ordinal}  # fmt: skip
        for intent in self.intents:
            if (intent.operation, intent.audience_id, intent.key) != (Operation.ADD, removal.audience_id, removal.key):
                continue
            if intent.order > removal.order or (intent.place[2], intent.value) in sent:
                continue
            if own[intent.place].state in (PartState.REFUSED, PartState.CLOSED):
                continue
            assert ((chunk_id, step_id, intent.place[2], ordinal), intent.value) in before, "somebody stays"


def _status(states: set[PartState]) -> Status:
    if PartState.ACCEPTED in states:
        return Status.SYNCED
    if any(state.is_open for state in states):
        return Status.PENDING
    return Status.ERRORED if PartState.ERRORED in states else Status.NOT_SYNCED


@cache
def _empty_ledger() -> Path:
    path = Path(tempfile.mkdtemp(prefix="criteo-ledger-")) / "empty.db"
    World(f"sqlite:///{path}").engine.dispose()
    return path


@pytest.fixture
def fresh_sqlite(tmp_path: Path) -> type[Stories]:
    """Stories, each on an empty SQLite ledger."""
    numbers = iter(range(1_000_000))

    def url() -> str:
        path = tmp_path / f"{next(numbers)}.db"
        shutil.copyfile(_empty_ledger(), path)
        return f"sqlite:///{path}"

    return type("OnSqlite", (Stories,), {"engine_url": staticmethod(url)})


@pytest.fixture
def fresh_postgres(postgres_url: str) -> Iterator[type[Stories]]:
    """Stories, each on an emptied PostgreSQL ledger."""
    engine: Engine = World(postgres_url).engine
    names = ", ".join(table.name for table in metadata.sorted_tables)

    def url() -> str:
        with engine.begin() as connection:
            connection.execute(text(f"TRUNCATE {names} RESTART IDENTITY CASCADE"))
        return postgres_url

    yield type("OnPostgres", (Stories,), {"engine_url": staticmethod(url)})
    engine.dispose()


# A story is short enough to be read as it is; making it shorter takes minutes.
UNSHRUNK = (Phase.explicit, Phase.reuse, Phase.generate)
QUIETLY = settings(
    deadline=None, suppress_health_check=list(HealthCheck), stateful_step_count=40, phases=UNSHRUNK, print_blob=False
)


@pytest.mark.slow
def test_any_story_on_sqlite(fresh_sqlite: type[Stories]) -> None:
    """Whatever happens, the laws hold after every step and Criteo's lists end as the last intents say."""
    run_state_machine_as_test(fresh_sqlite, settings=settings(QUIETLY, max_examples=60))


@pytest.mark.slow
def test_any_story_on_postgres(fresh_postgres: type[Stories]) -> None:
    """The same on PostgreSQL."""
    run_state_machine_as_test(fresh_postgres, settings=settings(QUIETLY, max_examples=10))


# --- short stories that once went wrong

REFUSED = Refused("invalid", "Criteo refuses the content.")
DOWN = Unavailable("http-503", "Criteo's servers have trouble.", maybe_applied=False)
UNNAMED = Accepted(3, 1)


def in_and_out(world: World) -> None:
    """Two canvases that pull people in and out of one audience."""
    world.declare(canvas("in", step("add")), canvas("out", step("remove", Operation.REMOVE)))


def send_until_dry(world: World, answer: Callable[[set[bytes], int], Outcome | None], *, most: int) -> int:
    """Send and settle what is due, at most ``most`` calls; return how many calls it took."""
    for calls in range(most):
        claimed = world.claim() or world.claim(Role.RETRY)
        if claimed is None:
            return calls
        world.settle(claimed, answer(set(world.sent(claimed)), claimed.identifiers))
    return most


@pytest.mark.parametrize("outcome", [REFUSED, UNNAMED, DOWN, AccessLost("connection", "token-refused", "No.")])
def test_an_answer_after_the_claim_was_lost_changes_nobody(world: World, outcome: Outcome) -> None:
    """Whatever a late answer says, the people belong to somebody else by then, and the settlement says so."""
    world.declare(canvas("in", step("add")))
    world.enter("in", crowd(range(4)))
    slow = world.claim(lease_s=60)
    assert slow is not None
    world.pass_time(61)
    quick = world.claim(owner="other")
    assert quick is not None
    assert world.settle(slow, outcome) == 1
    assert world.settle(quick) == 0
    assert world.numbers("add") == (4, 4, 0, 0, 0)


def test_a_split_part_keeps_its_place_among_intents(world: World) -> None:
    """Of two intents at the same microsecond the later sealed one wins, also after the first was narrowed."""
    in_and_out(world)
    world.enter("in", crowd(range(4)))
    world.enter("out", crowd(range(4)))
    members: set[bytes] = set()
    refused_once = False
    for _ in range(20):
        claimed = world.claim()
        if claimed is None:
            break
        values = set(world.sent(claimed))
        if claimed.operation is Operation.ADD and not refused_once:
            refused_once = True
            world.settle(claimed, REFUSED)
            continue
        members = members | values if claimed.operation is Operation.ADD else members - values
        world.settle(claimed)
    assert members == set()
    assert world.numbers("remove") == (4, 4, 0, 0, 0)


def test_a_reader_sees_as_errored_only_who_has_nothing_open_left(world: World) -> None:
    """One identifier is past its deadline and another is not: the person is Pending, before and after the sweep."""
    world.declare(canvas("in", step("add", fields=("email", "madid"))))
    people = pack(
        ["user-1", "user-2"],
        {
            (Form.EMAIL_SHA256.value, None): [digest(1), digest(2)],
            (Form.MADID.value, None): [digest(1)[:16], digest(2)[:16]],
        },
        {"email": [None, None], "madid": [None, None]},
        lambda values, form: encode(values, Form(form)),
    )
    world.enter("in", people)
    first = world.claim()
    assert first is not None
    world.settle(first, DOWN)
    world.pass_time(14 * 3600)
    before = world.numbers("add")
    world.ledger.sweep(now_us=world.now_us)
    assert before == world.numbers("add") == (2, 0, 0, 2, 0)


def test_a_claim_goes_on_when_everybody_it_looked_at_was_superseded(world: World) -> None:
    """A lane whose people are all overtaken does not hide other work."""
    world.declare(
        canvas("in", step("add")),
        canvas("out", step("remove", Operation.REMOVE)),
        canvas("else", step("other", audience="Others")),
    )
    world.enter("in", crowd(range(4)))
    failing = world.claim()
    assert failing is not None
    world.settle(failing, DOWN)
    world.pass_time(1)
    world.enter("out", crowd(range(4)))
    removal = world.claim()
    assert removal is not None
    world.settle(removal)
    world.pass_time(60)
    world.enter("else", crowd(range(3)))
    found = world.claim()
    assert found is not None
    assert found.identifiers == 3
    world.settle(found)


def test_one_bad_person_in_many_merged_chunks_holds_nobody_else_back(world: World) -> None:
    """A refused merge of more chunks than a narrowing may cost calls is narrowed all the same, within its bound."""
    world.declare(canvas("in", step("add")))
    for number in range(100):
        world.enter("in", crowd([2 * number, 2 * number + 1]))
    poison = digest(77)
    calls = send_until_dry(world, lambda values, _count: REFUSED if poison in values else None, most=150)
    assert world.numbers("add") == (200, 199, 1, 0, 0)
    assert calls <= 1 + 64


def test_an_unnamed_invalid_person_in_many_merged_chunks_is_found(world: World) -> None:
    """A 200 over 100 chunks that counts one invalid identifier without naming it: 199 of 200 are Synced."""
    world.declare(canvas("in", step("add")))
    for number in range(100):
        world.enter("in", crowd([2 * number, 2 * number + 1]))
    bad = digest(77)

    def answer(values: set[bytes], count: int) -> Outcome:
        return Accepted(count - 1, 1) if bad in values else Accepted(count, 0)

    calls = send_until_dry(world, answer, most=150)
    assert world.numbers("add") == (200, 199, 1, 0, 0)
    assert calls <= 1 + 64


def test_a_refusal_of_the_whole_calls_nobody_invalid(world: World) -> None:
    """When both halves at the first two levels are refused alike it is the call that is refused: all stay Pending."""
    world.declare(canvas("in", step("add")))
    world.enter("in", crowd(range(16)))
    calls = send_until_dry(world, lambda _values, _count: REFUSED, most=150)
    assert world.numbers("add") == (16, 0, 0, 16, 0)
    assert calls <= 7


def test_a_waiting_removal_that_only_retries_may_send_gets_its_turn(world: World) -> None:
    """Adds that never stop do not keep a retried removal behind the barrier for ever."""
    in_and_out(world)
    world.enter("out", crowd(range(4)))
    for _ in range(3):
        failing = world.claim()
        assert failing is not None
        world.settle(failing, DOWN)
        world.pass_time(60)
    flying = []
    removed = None
    for number in range(40):
        world.enter("in", crowd(range(100 + number * 10, 110 + number * 10)))
        added = world.claim(Role.FRESH)
        if added is not None:
            assert added.operation is Operation.ADD
            flying.append(added)
        removed = removed or world.claim(Role.RETRY)
        if len(flying) > 1 or added is None:  # one is always in flight while there are adds to send
            for one in flying[:1]:
                world.settle(one)
            flying = flying[1:]
        world.pass_time(1)
    for one in flying:
        world.settle(one)
    assert removed is not None
    assert removed.operation is Operation.REMOVE
    world.settle(removed)


def test_what_was_refused_as_a_whole_is_narrowed_once_criteo_takes_it(world: World) -> None:
    """After a refusal of the whole is over, an invalid identifier Criteo does not name holds nobody else back."""
    world.declare(canvas("in", step("add")))
    world.enter("in", crowd(range(16)))
    send_until_dry(world, lambda _values, _count: REFUSED, most=150)
    assert world.numbers("add") == (16, 0, 0, 16, 0)
    bad = digest(7)
    for _ in range(20):
        world.pass_time(1201)
        send_until_dry(
            world, lambda values, count: Accepted(count - 1, 1) if bad in values else Accepted(count, 0), most=50
        )
    assert world.numbers("add") == (16, 15, 1, 0, 0)


def test_a_waiting_removal_gets_its_turn_however_slow_criteo_is(world: World) -> None:
    """Adds that take 15 seconds each, one after the other for ever, do not keep a retried removal out."""
    in_and_out(world)
    world.enter("out", crowd(range(4)))
    for _ in range(3):
        failing = world.claim()
        assert failing is not None
        world.settle(failing, DOWN)
        world.pass_time(60)
    flying: list[tuple[int, ClaimedRequest]] = []
    removed = None
    for second in range(120):
        world.enter("in", crowd([1000 + second]))
        for landed in [one for one in flying if one[0] <= second]:
            world.settle(landed[1])
            flying.remove(landed)
        added = world.claim(Role.FRESH)
        if added is not None:
            assert added.operation is Operation.ADD
            flying.append((second + 15, added))
        removed = world.claim(Role.RETRY)
        if removed is not None:
            break
        world.pass_time(1)
    for _, one in flying:
        world.settle(one)
    assert removed is not None
    assert removed.operation is Operation.REMOVE
    world.settle(removed)


def test_two_requests_may_meet_the_same_trouble_at_once(ledger_url: str) -> None:
    """Two answers that tell of one new trouble at the same moment are both settled."""
    world = World(ledger_url)
    if world.engine.dialect.name == "sqlite":
        world.close()
        return  # one writer at a time
    told: list[bool] = []

    def tell() -> None:
        with writing(world.engine) as connection:
            new = troubles.open_trouble(
                connection, "connection", "criteo_default", code="x", sentence="No.", now_us=world.now_us
            )
            told.append(new)

    with writing(world.engine) as connection:
        new = troubles.open_trouble(
            connection, "connection", "criteo_default", code="x", sentence="No.", now_us=world.now_us
        )
        second = threading.Thread(target=tell)
        second.start()
        waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        for _ in range(200):
            # A look of its own: within one transaction PostgreSQL goes on telling what it saw first.
            with world.engine.connect() as onlooker:
                if onlooker.execute(waiting).scalar_one():
                    break
            second.join(0.05)
    second.join(30)
    assert (new, told) == (True, [False])
    with world.engine.connect() as connection:
        assert len(connection.execute(select(trouble)).all()) == 1
    world.close()


def test_db_check_notices_exceptions_that_name_the_wrong_people(world: World) -> None:
    """The laws are about people: as many Not Synced as the parts say, but others, is a broken law."""
    world.declare(canvas("in", step("add")))
    world.enter("in", crowd(range(8)))
    claimed = world.claim()
    assert claimed is not None
    world.settle(claimed, Accepted(7, 1, (digest(3).hex(),)))
    moved = update(stage_exception)
    with writing(world.engine) as connection:
        connection.execute(moved.values(first=stage_exception.c.first + 1, last=stage_exception.c.last + 1))
    assert world.ledger.broken_laws() != []
    with writing(world.engine) as connection:
        connection.execute(moved.values(first=stage_exception.c.first - 1, last=stage_exception.c.last - 1))
