"""Telling a story: the real use cases, over the real ledger, by processes whose every step the story chooses."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from criteo_provider.core.eligibility import compile as rule_of
from criteo_provider.core.errors import LostClaim
from criteo_provider.core.model import CanvasDeclaration, Role
from criteo_provider.core.outcome import Outcome, Trouble, outcome_of, outcome_of_exception
from criteo_provider.flow.enter import Enter, EntryPlan, FieldColumn
from criteo_provider.flow.resolve import resolve_audiences
from criteo_provider.flow.upload import Upload
from criteo_provider.flow.withdraw import Withdraw
from criteo_provider.store.claim import ClaimTerms
from tests.simulator.criteo import WIRE_S, Letter
from tests.simulator.hearing import Broken
from tests.simulator.intents import AD_ACCOUNT, CONNECTION, Step
from tests.simulator.launching import Launches
from tests.simulator.surroundings import (
    DECLARED,
    FEED,
    FEED_PLAN,
    LATER,
    LIMIT,
    Courier,
    Desk,
    Port,
    row_of,
)
from tests.simulator.threads import Event, Process, in_place_of_real_ones

Story = Sequence[tuple[Any, ...]]

LEASE_S = WIRE_S + 30
FIELDS = (FieldColumn("email", "email"), FieldColumn("madid", "maid"))
BREAKERS = ("connection", "ad_account", "audience")
MOVE_NOBODY = ("hold_cursor", "release_cursor", "due_looks", "packed", "first_attempts_wait", "unresolved_audiences")
READ_THE_CLOCK = ("claim", "sweep")  # the verbs that take leases back do, in their transactions
MOST_STEPS = 4_000  # a story that takes longer to end is caught in a circle
# What is refused as a whole is tried for hours: where requests are small, by many that do not wait for each other.
LAST_STEPS = 1_000


class Telling(Launches):
    """One story, being told."""

    # --- telling

    def tell(self, story: Story) -> None:
        """Tell it to its end; raise Broken at the first thing that is not as it must be."""
        logging.disable(logging.CRITICAL)
        try:
            with in_place_of_real_ones(self.schedule):
                self._know(DECLARED)
                for self.told, (what, *words) in enumerate(story, 1):
                    getattr(self, f"_{what.replace(' ', '_')}")(*words)
                    self.look()
                self.told = len(story) + 1
                self._heal_and_end()
        finally:
            for process in self.processes.values():
                self.schedule.kill(process)
            logging.disable(logging.NOTSET)

    # --- what may happen

    def _criteo(self, names: str, poison: bool) -> None:
        """Criteo names all, one or none of the invalid identifiers, and may refuse what holds a certain one."""
        self.criteo.names, self.criteo.poison = names, self.poison if poison else set()

    def _rows(self, canvas_id: str, *numbers: int) -> None:
        """People appear in a source."""
        self.rows[canvas_id].rows += map(row_of, numbers)

    def _enter(self, name: str, canvas_id: str) -> None:
        """A process begins to read a source."""
        if canvas_id in LATER:
            self._launch(name, canvas_id)
        elif canvas_id in self.plans:
            process = self._process(name)
            self._start(process, self._reading(process, canvas_id), Event(self.schedule))

    def _reading(self, process: Process, canvas_id: str) -> Callable[[Event], Any]:
        plan = EntryPlan(canvas_id, "person", FIELDS, rule_of({"ads": True}), self.plans[canvas_id])
        port: Any = Port(self, process)
        return Enter(plan, self.rows[canvas_id], port, lambda: self.schedule.now_us, process.name).tick

    def _asked(self, back: bool, *people: int) -> None:
        """People withdraw consent, or give it anew."""
        self.feed.rows += [{"person": row_of(number)["person"], "back": back} for number in people]

    def _withdraw(self, name: str) -> None:
        """A process begins to read who has withdrawn consent."""
        process = self._process(name)
        port: Any = Port(self, process)
        withdraw = Withdraw(FEED_PLAN, self.feed, port, port, lambda: self.schedule.now_us, process.name)
        self._start(process, withdraw.tick, Event(self.schedule))

    def _follow(self, name: str) -> None:
        """A process takes out whoever was sent before withdrawing consent."""
        process = self._process(name)
        port: Any = Port(self, process)

        def follow() -> None:
            while port.follow(now_us=self.schedule.now_us):
                pass

        self._start(process, follow)

    def _upload(self, name: str) -> None:
        """A process begins to send what is due, until that is nothing."""
        process = self._process(name)
        port: Any = Port(self, process)
        role = Role(process.role)
        terms = ClaimTerms(CONNECTION, frozenset({AD_ACCOUNT}), role, process.name, LEASE_S)
        claim = lambda now_us: port.claim(terms, now_us=now_us)  # noqa: E731
        upload = Upload(
            claim, port, self.pacer, Courier(self), lambda: self.schedule.now_us, role=role, request_timeout_s=WIRE_S
        )
        # Looking once more when nothing at all is due costs a verb and changes nothing.
        dry = Event(self.schedule, is_dry=lambda: not self.database.anything_due(self.schedule.now_us))
        self._start(process, upload.run, dry, lambda: None)

    def _keep(self, name: str) -> None:
        """A process does its housekeeping."""
        process = self._process(name)
        port: Any = Port(self, process)

        def keep() -> None:
            port.enter_due_steps(now_us=self.schedule.now_us)
            port.sweep(now_us=self.schedule.now_us)

        self._start(process, keep)

    def _resolve(self, name: str) -> None:
        """A process looks for the audiences that people wait for."""
        process = self._process(name)
        port: Any = Port(self, process)
        now_us = lambda: self.schedule.now_us  # noqa: E731
        self._start(process, resolve_audiences, port, Desk(self), CONNECTION, [AD_ACCOUNT], now_us)

    def _step(self, number: int) -> None:
        """One thread goes on, past one verb."""
        ready = self.schedule.ready()
        if ready:
            self.schedule.go_on(ready[number % len(ready)])

    def _run(self, number: int = 0) -> None:
        """All threads go on, in turns, until they wait for something."""
        for turn in range(MOST_STEPS):
            ready = self.schedule.ready()
            if not ready:
                return
            self.schedule.go_on(ready[(number + turn) % len(ready)])
            self.look()
        raise Broken("The processes go round in a circle.")

    def _kill(self, name: str) -> None:
        """A process dies where it is."""
        process = self.processes.pop(name, None)
        if process is not None:
            self.schedule.kill(process)

    def _freeze(self, name: str) -> None:
        """A process is stopped, and does not know."""
        self._process(name).frozen = True

    def _wake(self, name: str) -> None:
        """A process that was stopped goes on."""
        self._process(name).frozen = False

    def _answer(self, shape: str) -> None:
        """The next request nobody has spoken of yet meets this."""
        self.criteo.next_answers.append(shape)

    def _deliver(self, number: int) -> None:
        """A request that was slow arrives at Criteo."""
        self.criteo.deliver(number, now_us=self.schedule.real_us)

    def _weather(self, weather: str | None) -> None:
        """From now on, all requests meet this."""
        self.criteo.weather = weather

    def _pass(self, seconds: float) -> None:
        """Time passes."""
        self.schedule.pass_time(seconds)
        self.criteo.forget_old(now_us=self.schedule.real_us)

    def _jump(self, seconds: float) -> None:
        """The clock of the database is set; what is on the wire just then is lost."""
        self.criteo.wire.clear()
        self.schedule.now_us += round(seconds * 1e6)
        if seconds < 0:
            self.oracle.clock_set_back(round(-seconds * 1e6), self.schedule.now_us)

    def _database(self, trouble: str) -> None:
        """The next verb of the ledger goes wrong: busy, serialization, disk full, or the answer of it lost."""
        self.next_trouble = trouble

    def _edit(self, fields: tuple[str, ...], audience: str, removes: bool, leaves: bool) -> None:
        """Somebody edits the canvas files."""
        self.files = replace(
            self.files, fields=tuple(fields), audience=audience, removes=removes, leaves=leaves, paused=()
        )
        self._declare()

    def _pause(self, *steps: str) -> None:
        """Somebody pauses these steps in the canvas files, and no others."""
        self.files = replace(self.files, paused=steps)
        self._declare()

    def _requeue(self, canvas_id: str | None = None) -> None:
        """A person has whoever is Errored tried again: as many as read as Errored, and none is left."""
        self.touched, now_us = True, self.schedule.now_us
        errored = self._errored(canvas_id)
        self.oracle.requeued(canvas_id, now_us)
        back = self.ledger.requeues.requeue(canvas_id, None, who="somebody", why="a story", now_us=now_us)
        if (back, self._errored(canvas_id)) != (errored, 0):
            self._break(f"Of {errored} people given up, {back} were re-queued, {self._errored(canvas_id)} were not.")

    def _errored(self, canvas_id: str | None) -> int:
        told = self._told(self.database.stored(self.stage_of))
        steps = self.oracle.steps
        return sum(
            people
            for (step_id, status), people in told.items()
            if status == "Errored" and canvas_id in (None, steps[step_id].canvas_id)
        )

    def _drop(self) -> None:
        """A person gives up who is held in steps no file declares."""
        self.touched = True
        for step_id, known in self.oracle.steps.items():
            if not known.declared:
                self.oracle.dropped(step_id)
                self.ledger.drop(known.canvas_id, known.name, now_us=self.schedule.now_us)

    # --- what processes do

    def do(self, verb: str, *words: Any, **named: Any) -> Any:
        """One verb of the ledger, and what the oracle hears of it."""
        trouble, self.next_trouble = self.next_trouble, None
        self.touched = self.touched or verb not in MOVE_NOBODY
        try:
            with self.database.in_trouble(trouble):
                rooms = self.ledger, self.ledger.opt_outs, self.ledger.launches
                room = next(one for one in rooms if hasattr(one, verb))
                done = getattr(room, verb)(*words, **named)
        except LostClaim:
            raise
        except Exception as error:
            self._unless_told(error, verb)
            raise
        hear = getattr(self, f"_heard_{verb}", None)
        if hear is not None:
            if verb in READ_THE_CLOCK:
                named["now_us"] = max(named["now_us"], self.schedule.now_us)
            hear(done, *words, **named)
        if trouble == "answer lost":
            raise self.database.error(trouble)
        return done

    def post(self, letter: Letter) -> None:
        """A request leaves."""
        now_us = self.schedule.real_us
        self.criteo.post(letter)
        if self.schedule.now_us + WIRE_S * 1e6 >= letter.claimed.lease_until_us:
            self._break("A request went out whose lease may end while it is under way.")
        # Who stood in a slot when the hold began may use it for as long as a slot lasts.
        if self.pacer.held_us + LIMIT.margin_us < now_us < self.pacer.hold_until_us:
            self._break("A request went out while Criteo had asked to wait.")
        if sum(1 for at_us in self.criteo.sent if at_us > now_us - LIMIT.window_us) > LIMIT.limit_per_min:
            self._break("More requests than the limit in one minute.")

    def read(self, letter: Letter) -> Outcome:
        """What the real room of outcomes makes of an answer, or of none."""
        answer = letter.answer if letter.answer is not None else Trouble.NO_ANSWER
        if isinstance(answer, Trouble):
            return outcome_of_exception(answer)
        self.pacer.observed(answer[0], answer[1])
        if answer[0] == 200 and b"nbValidIdentifiers" in answer[2]:
            self.oracle.counted.add(letter.claimed.request_id)
        return outcome_of(*answer, now_s=self.schedule.now_us / 1e6)

    # --- the end

    def _heal_and_end(self) -> None:
        """All faults heal and time passes: nobody is pending, and lists and numbers are as the story says."""
        criteo = self.criteo
        criteo.weather, criteo.next_answers, self.next_trouble = None, [], None
        for process in self.processes.values():
            process.frozen = False
        mended = replace(self.files, removes=True, leaves=True, paused=(), recreates=bool(criteo.deleted))
        if self.files != mended:
            self.files = mended
            self._declare()
        self._run()
        for _ in range(LAST_STEPS):
            self._whatever_is_due()
            self._run()
            at_us = self.database.next_us(self.schedule.now_us)
            waits = [one.wakes_us - self.schedule.real_us for one in self.schedule.tasks if one.wakes_us]
            if at_us is not None:
                waits.append(at_us - self.schedule.now_us)
            elif not (self.schedule.tasks or self._unread() or self._unfollowed() or self._lost()):
                break
            self._pass(max(1, min(waits, default=1_000_000)) / 1e6)
        else:
            raise Broken("It does not come to an end, though all is well.")
        self._judge()

    def _whatever_is_due(self) -> None:
        due = self.database.due(self.schedule.now_us)
        if self.feed_read < len(self.feed.rows):
            self._withdraw("a")
        elif self._unfollowed():
            self._follow("a")
        for canvas_id in self._unread():
            self._enter("a", canvas_id)
        if due.unresolved or self._lost():
            self._resolve("a")
        if due.keep:
            self._keep("a")
        if due.fresh:
            self._upload("a")
        if due.retry:
            self._upload("c")

    def _lost(self) -> bool:
        """Whether an audience is known under the id of a deleted list somebody wants, or may want, to be in."""
        gone = self.criteo.deleted and self.criteo.deleted.intersection(self.database.gone_ids())
        if not gone:
            return False
        ids = self.database.criteo_ids()
        return any(ids[audience_id] in gone for audience_id in self._named() | self.database.awaited())

    def _unfollowed(self) -> bool:
        """Whether somebody may have opted out who is still in a list."""
        unread = self.feed_read < len(self.feed.rows)
        return unread or (bool(self.feed.rows) and self.ledger.opt_outs.is_unfinished())

    def _unread(self) -> list[str]:
        """The canvases whose source holds people who have not entered."""
        wanted = {name: sum(one["ads"] for one in held.rows) for name, held in self.rows.items()}
        unlaunched = [name for name in LATER if self.files.newcomers and name not in self.launched]
        return [name for name, number in wanted.items() if len(self.oracle.sealed[name]) < number] or unlaunched

    def _judge(self) -> None:
        self.look()
        self.oracle.broken += self.ledger.broken_laws()
        self._numbers(self.database.stored(self.stage_of))
        for canvas_id, rows in self.rows.items():
            wanted = Counter(one["person"] for one in rows.rows if one["ads"])
            if wanted != Counter(self.oracle.sealed[canvas_id]):
                self._break(f"Canvas {canvas_id}: not everybody of the source has entered, or somebody twice.")
        if self.database.next_us(self.schedule.now_us) is not None:
            self._break("Something is still open.")
        known = {(one.scope, one.key) for one in self.ledger.troubles() if one.scope in BREAKERS}
        if known != set(self.oracle.probed):
            self._break("Troubles are open that are over, or the other way round.")
        ids = self.database.criteo_ids()
        lists = {key: self.criteo.members(value) for key, value in ids.items() if value}
        for complaint in self.oracle.judge(lists, self.criteo.deleted):
            self._break(complaint)
        if self.oracle.broken:
            raise Broken("\n".join(self.oracle.broken[:5]))

    # --- how

    def _declare(self) -> None:
        self.touched, declared = True, self.files.canvases()
        self.plans = self.ledger.declare(declared, now_us=self.schedule.now_us)
        self._know(declared)
        self.oracle.audiences_named(self._named() | self.database.awaited())

    def _named(self) -> set[int]:
        """The audiences that canvas files name."""
        return {plan.audience_id for plans in self.plans.values() for plan in plans}

    def _know(self, declared: Sequence[CanvasDeclaration]) -> None:
        now_us = self.schedule.now_us
        steps = {
            plan.step_id: Step(made.canvas_id, one.name, one.fields, paused=one.paused)
            for made in declared
            for one, plan in zip(made.steps, self.plans[made.canvas_id], strict=True)
        }
        of_files = [step_id for step_id, one in self.oracle.steps.items() if one.canvas_id != FEED.feed_id]
        gone = [step_id for step_id in of_files if step_id not in steps]
        resting = {*gone, *(step_id for step_id, one in steps.items() if one.paused)}
        for step_id in resting:
            self.paused.setdefault(step_id, now_us)
        for step_id in steps:
            if step_id in self.paused and step_id not in resting:
                self.oracle.goes_on(step_id, self.paused.pop(step_id), now_us)
        self.oracle.declared(steps, gone)
