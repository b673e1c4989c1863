"""What is heard of a story while it is told: each verb of the ledger, and a look at everything after it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.exc import OperationalError

from criteo_provider.core.model import ClaimedRequest, Operation, PartState
from criteo_provider.core.outcome import Outcome
from tests.simulator.criteo import Criteo
from tests.simulator.databases import Database, DatabaseTrouble
from tests.simulator.intents import STILL, Stored, status_of
from tests.simulator.oracle import Oracle
from tests.simulator.surroundings import (
    DECLARED,
    HOUR_S,
    INVALID,
    LATER,
    POISON,
    Files,
    Pacer,
    Rows,
    identifiers_of,
)
from tests.simulator.threads import Process, Schedule

PROCESSES = {"a": "fresh", "b": "fresh", "c": "retry"}
PATIENCE_US = round(13 * HOUR_S * 1e6)


class Broken(AssertionError):
    """The story went wrong; the text says how."""


@dataclass
class Hearing:
    """A ledger, a Criteo and an oracle, and what the oracle hears and sees."""

    database: Database
    seed: int = 0
    thorough: bool = True
    criteo: Criteo = field(default_factory=Criteo)
    oracle: Oracle = field(default_factory=Oracle)
    told: int = 0

    def __post_init__(self) -> None:
        self.schedule = Schedule(self.seed)
        self.pacer = Pacer(self.schedule)
        self.files = Files()
        self.ledger, self.plans = self.database.empty_ledger(DECLARED)
        self.rows = {name: Rows() for name in ("in", "out", "tour", *LATER)}
        self.feed, self.feed_read = Rows(), 0
        self.processes: dict[str, Process] = {}
        self.lives: Counter[str] = Counter()
        self.next_trouble: str | None = None
        self.launched: set[str] = set()  # of those that were not when the story began
        self.touched = True  # whether anything was done that could move people
        self.paused: dict[int, int] = {}
        self.stage_of: dict[tuple[int, str], int] = {}
        self.criteo.invalid = set().union(*map(identifiers_of, INVALID))
        self.poison = set().union(*map(identifiers_of, POISON))

    def look(self) -> None:
        """After every event: the laws, everybody's status, the numbers."""
        touched, self.touched = self.touched, False
        if touched and self.database.has_changed():
            stored = self.database.stored(self.stage_of)
            self.oracle.compare(stored, self.schedule.now_us)
            if self.thorough:
                self.oracle.broken += self.ledger.broken_laws()
                self._numbers(stored)
        if self.oracle.broken:
            raise Broken("\n".join(self.oracle.broken[:5]))

    def _numbers(self, stored: Stored) -> None:
        """The seven numbers people read are as the statuses say."""
        told = self._told(stored)
        by_name = {(one.canvas_id, one.name): step_id for step_id, one in self.oracle.steps.items()}
        for one in self.ledger.numbers(now_us=self.schedule.now_us):
            step_id = by_name[one.canvas, one.step]
            wanted = [told[step_id, name] for name in ("Synced", "Not Synced", "Pending", "Errored")]
            if [one.synced, one.not_synced, one.pending, one.errored] != wanted or one.entered != sum(wanted):
                self._break(f"Step {one.step} reads {one}, and should read {wanted}.")
            if sum(one.not_synced_reasons.values()) != one.not_synced or one.proceeded + one.exited != one.entered:
                self._break(f"Step {one.step}: the numbers do not add up: {one}.")

    def _told(self, stored: Stored) -> Counter[tuple[int, str]]:
        """How many people of a step have which status; past the deadline with nothing in flight is Errored."""
        now_us = self.schedule.now_us
        states: dict[tuple[int, int], list[PartState]] = {}
        for row in (*stored.parts, *(row for row in stored.once_more if row.state in STILL)):
            for stage_id, _form, ordinal, _ in row.places:
                at_work = self.oracle.steps[self.oracle.step_of[stage_id]].at_work
                late = row.state is PartState.OPEN and at_work and (row.deadline_us or now_us + 1) <= now_us
                states.setdefault((stage_id, ordinal), []).append(PartState.ERRORED if late else row.state)
        for key in self.oracle.taken_again:
            states.setdefault(key, []).append(PartState.ACCEPTED)
        return Counter(
            (self.oracle.step_of[stage_id], status_of(states.get((stage_id, ordinal), ())))
            for stage_id, ordinal in stored.view
        )

    def _heard_seal(self, hold: Any, held: Any, people: Any, plans: Any, *, now_us: int, **_: Any) -> None:
        stages = {}
        if people:
            stages = self.database.newest_stages()
            for step_id, (chunk_id, stage_id) in stages.items():
                self.stage_of[chunk_id, self.oracle.steps[step_id].name] = stage_id
        by_step = {step_id: stage_id for step_id, (_, stage_id) in stages.items()}
        self.oracle.sealed_people(held.canvas_id, people, plans, by_step, now_us, PATIENCE_US)
        if held.canvas_id in LATER and held.canvas_id not in self.launched:
            self._break(f"People have entered canvas {held.canvas_id}, which is not launched.")
        taken = [one["person"] for one in self.rows[held.canvas_id].rows[: int(hold.position)] if one["ads"]]
        if Counter(taken) != Counter(self.oracle.sealed[held.canvas_id]):
            self._break(f"Canvas {held.canvas_id}: the people entered are not those of the rows taken.")

    def _heard_withdraw(self, done: Any, hold: Any, _told: Any, *, now_us: int, **_: Any) -> None:
        self.feed_read = int(done.position)
        for row in self.feed.rows[int(hold.position or 0) : self.feed_read]:
            self.oracle.opted_out(row["person"], taken_back=row["back"], now_us=now_us)

    def _heard_follow(self, _done: bool, *, now_us: int) -> None:
        for removal in self.database.removals(max(self.stage_of.values(), default=0)):
            self.stage_of[removal.chunk_id, removal.step_name] = removal.stage_id
            self.oracle.removals_sealed(removal, now_us, PATIENCE_US)

    def _heard_enter_due_steps(self, _done: int, *, now_us: int) -> None:
        self.oracle.due_steps_entered(now_us)

    def _heard_claim(self, claimed: ClaimedRequest | None, _terms: Any, *, now_us: int) -> None:
        self.oracle.leases_ended(now_us)
        if claimed is not None:
            self.oracle.looked_back(self.database.earlier())
            self.oracle.claimed(claimed, self.database.again(claimed.request_id), now_us)

    def _heard_sweep(self, _done: int, *, now_us: int) -> None:
        self.oracle.leases_ended(now_us)
        late = self.database.overdue(now_us)
        if late:
            self._break(f"After a sweep {late} parts are past their deadline and not Errored.")

    def _heard_settle(
        self, lost: int, claimed: ClaimedRequest, outcome: Outcome, *, now_us: int, jitter: float
    ) -> None:
        # A clock that was set back since it was read does not tell of trouble to come.
        self.oracle.settled(claimed, outcome, lost, min(now_us, self.schedule.now_us))

    def _heard_release(self, _done: None, claimed: ClaimedRequest, *, now_us: int) -> None:
        self.oracle.released(claimed)

    def _heard_trouble(
        self, _new: bool, scope: str, key: str, *, now_us: int, is_answer: bool = False, **_: Any
    ) -> None:
        if is_answer:
            self.oracle.wider_works(scope)
        self.oracle.trouble_met(scope, key, min(now_us, self.schedule.now_us), again=True)

    def _heard_resolved(self, _done: None, audience_id: int, criteo_id: str, **_: Any) -> None:
        self.oracle.known_as[audience_id] = criteo_id
        self.oracle.trouble_over(audience_id)

    def _heard_launched(self, _done: None, canvas_id: str, *_: Any, **__: Any) -> None:
        self.launched.add(canvas_id)
        audiences = {plan.audience_id for plan in self.plans[canvas_id] if plan.operation is Operation.ADD}
        if any(self.database.criteo_ids()[audience_id] is None for audience_id in audiences):
            self._break(f"Canvas {canvas_id} is launched, and its audience is not there.")

    def _process(self, name: str) -> Process:
        if name not in self.processes:
            self.lives[name] += 1
            self.processes[name] = Process(f"{name}{self.lives[name]}", PROCESSES[name])
        return self.processes[name]

    def _start(self, process: Process, work: Callable[..., Any], *words: Any) -> None:
        def guarded() -> None:
            try:
                work(*words)
            except Exception as error:  # the task fails, as Airflow would say
                self._unless_told(error, "A process")

        self.schedule.spawn(process, guarded)

    def _unless_told(self, error: Exception, who: str) -> None:
        """Whatever breaks that the story did not break is a bug."""
        if not (isinstance(error, OperationalError) and isinstance(error.orig, DatabaseTrouble)):
            self._break(f"{who}: {type(error).__name__}: {error}")

    def _break(self, sentence: str) -> None:
        self.oracle.broken.append(sentence)
