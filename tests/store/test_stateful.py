"""Any story at all, told to the real ledger and to a naive model of Criteo's lists: the laws hold after every step.

Two canvases pull the same people in and out of one audience, a third does both an hour apart; requests are accepted,
refused, lost, answered too late; owners die, files are edited. At the end Criteo's lists equal the last intents.

It stays beside the simulator: it calls the verbs in orders that no use case would, and looks at stored exceptions.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import Engine, Row, select, text

from criteo_provider.core.identifiers import Form, decode
from criteo_provider.core.model import (
    ClaimedRequest,
    Operation,
    PartState,
    Reason,
    Role,
    StageState,
    Status,
)
from criteo_provider.core.outcome import Accepted, AccessLost, AudienceGone, Busy, Outcome, Refused, Unavailable
from criteo_provider.store.schema import chunk, metadata, part, stage, stage_exception
from criteo_provider.store.schema import step as step_table
from tests.store.any_story import (
    Criteo,
    Files,
    Flight,
    Intent,
    fates_of,
    nothing_of_before_is_left,
    sealed,
    status_by_person,
    told_by_metric_rows,
)
from tests.world import World

LEASE_S = 120.0
WAITING_FOR_SERVER = "Criteo's servers have trouble."

entering = st.tuples(st.integers(0, 7), st.booleans(), st.booleans())
crowds = st.lists(entering, min_size=1, max_size=6)


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
        by_person = status_by_person(self.world, overdue=False)
        with self.world.engine.connect() as connection:
            rows = connection.execute(text("SELECT step, chunk_id, ordinal, status FROM user_status")).all()
        view = {(row.step, row.chunk_id, int(row.ordinal)): row.status for row in rows}
        assert len(view) == len(rows)
        assert view == {key: status.name.replace("_", " ").title() for key, status in by_person.items()}
        read = Counter((key[0], status) for key, status in status_by_person(self.world, overdue=True).items())
        for one in self.world.ledger.numbers(now_us=self.world.now_us):
            told = (one.pending, one.synced, one.not_synced, one.errored)
            assert told == tuple(read[one.step, status] for status in Status), one.step
            assert one.entered == sum(told)
            assert sum(one.not_synced_reasons.values()) == one.not_synced
            assert (one.entered, one.proceeded, one.exited) == told_by_metric_rows(self.world, one.step)
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
        fates = fates_of(self.world)
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
                    nothing_of_before_is_left(intent, self.intents, own, before)
        for (audience_id, form, value), (operation, row) in last.items():
            assert not PartState(row.state).is_open or not row.declared, "somebody is left behind"
            assert row.reason != Reason.SUPERSEDED, "the last intent was called superseded"
            if row.state == PartState.ACCEPTED:
                there = (form, value) in self.criteo.lists.get(audience_id, set())
                assert there is (operation is Operation.ADD), "the last intent did not win"


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
