"""What must be true, worked out from the story alone: one person, one identifier at a time, with no span and no count.

It hears what the ledger was told (people sealed, requests claimed, answers settled), keeps its own books after the
rules of the design, and compares them with what the ledger stores. It shares no code with what it judges.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator

from criteo_provider.core.model import Operation, PartState

# Stage, form, ordinal, and 0; or under which number a removal keeps what its people were added under before.
from tests.simulator.books import Books
from tests.simulator.intents import FINAL, STILL, Intent, PartRow, Place, Stored, status_of


class Oracle(Books):
    """Compares the books of a story with what the ledger stores, and at the end with Criteo's lists."""

    # --- after every event

    def compare(self, stored: Stored, now_us: int) -> None:
        """Look at everything the ledger stores about people."""
        self.latest_us = max(self.latest_us, now_us)
        self.looked_back(stored.earlier)
        seen: dict[Place, PartState] = {}
        for row in stored.parts:
            for place in row.places:
                if place in seen:
                    self.broken.append(f"Somebody of stage {place[0]} is in two parts of one form.")
                seen[place] = row.state
                self._stands(self.intents[place], row, now_us)
        if seen.keys() != self.intents.keys():
            self.broken.append("Identifiers were lost, or came from nowhere.")
        again = [(place, row.state) for row in stored.once_more for place in row.places]
        statuses = dict(self._statuses([*seen.items(), *((place, state) for place, state in again if state in STILL)]))
        if stored.view != statuses:
            wrong = {
                key: (stored.view.get(key), told) for key, told in statuses.items() if stored.view.get(key) != told
            }
            self.broken.append(f"The view of users says (has, should have): {wrong or 'people nobody knows'}")
        self._metrics(stored, statuses)

    def _stands(self, intent: Intent, row: PartRow, now_us: int) -> None:
        """Whether an identifier may be where the ledger has it."""
        before, intent.stood = intent.stood, row.state
        self._tried_anew(intent, before, row)
        revived = before is PartState.ERRORED and self.set_back_us and (row.deadline_us or 0) > now_us
        revived = revived or (before is PartState.ERRORED and intent.clock_us is None)
        if before in FINAL and row.state is not before and not revived:
            self.broken.append(f"{intent.place} was {before.name} for good and is {row.state.name}.")
        if not self._allows(intent, row):
            self.broken.append(
                f"{intent.place} ({intent.operation}) is {row.state.name} ({row.reason}), and by the story "
                f"{intent.fate.name if intent.fate else 'open'}, perhaps {sorted(intent.may) or 'nothing else'}."
            )
        if row.state in (PartState.OPEN, PartState.CLAIMED):
            self._patient(intent, row)

    def _tried_anew(self, intent: Intent, before: PartState, row: PartRow) -> None:
        """Whoever was given up and is asked for again has all the patience there is, from then on."""
        asked_us, intent.requeued_us = intent.requeued_us, None
        deadline_us, intent.deadline_us = intent.deadline_us, row.deadline_us
        if asked_us is None or row.state is PartState.ERRORED:
            return
        is_late = before is PartState.OPEN and deadline_us is not None and deadline_us <= asked_us
        if before is PartState.ERRORED or (is_late and self.steps[intent.step_id].at_work):
            intent.clock_us, intent.clock_of, intent.rested_us = None, None, 0
            intent.reached_us, intent.set_back_us = asked_us, self.set_back_us

    def _allows(self, intent: Intent, row: PartRow) -> bool:
        match row.state:
            case PartState.WAITING:
                return intent.reached_us is None
            case PartState.OPEN:
                return intent.reached_us is not None and intent.fate is None and not self._flies(intent)
            case PartState.CLAIMED:
                return intent.fate is None and self._flies(intent)
            case PartState.ACCEPTED:
                return intent.fate is PartState.ACCEPTED
            case PartState.REFUSED:
                return intent.fate is PartState.REFUSED or "refused" in intent.may
            case PartState.ERRORED:
                return intent.fate is None and self.latest_us >= self._patience_until(intent)
            case PartState.CLOSED:
                return intent.fate is None and self._closed_by(intent, row.reason or "")
        return False

    def _closed_by(self, intent: Intent, reason: str) -> bool:
        if "superseded" in reason:
            return any(self._overtakes(rival, intent) for rival in self._same(intent))
        if "consent" in reason:
            return intent.operation is Operation.ADD and self._was_out(intent)
        return ("field" if "field" in reason else "dropped") in intent.may

    def _patient(self, intent: Intent, row: PartRow) -> None:
        """The clock of an upload starts at its first attempt, or when it was held back by a known trouble."""
        if row.deadline_us is not None and row.deadline_us < self._patience_until(intent):
            self.broken.append(f"{intent.place} is given up too early.")
        if intent.clock_us is not None and intent.clock_of is not None:
            # A clock that was set back since may have begun before it was, at a moment that was later by then.
            until_us = intent.clock_us + intent.patience_us + self.paused_us + self.set_back_us - intent.set_back_us
            if row.deadline_us is None or row.deadline_us > until_us:
                self.broken.append(f"{intent.place} has more patience than its canvas.")

    def _patience_until(self, intent: Intent) -> int:
        began_us = self._began_us(intent)
        return 1 << 62 if began_us is None else began_us + intent.patience_us + intent.rested_us

    def _statuses(self, seen: Iterable[tuple[Place, PartState]]) -> Iterator[tuple[tuple[int, int], str]]:
        """One user, several identifiers, one status."""
        by_person: dict[tuple[int, int], set[PartState]] = defaultdict(set)
        for (stage_id, _form, ordinal, _), state in seen:
            by_person[stage_id, ordinal].add(state)
        for key in self.taken_again:
            by_person[key].add(PartState.ACCEPTED)
        for stage_id, keys in self.people.items():
            if self.enters[stage_id][1]:
                for ordinal in range(len(keys)):
                    yield (stage_id, ordinal), status_of(by_person[stage_id, ordinal])

    def _metrics(self, stored: Stored, statuses: dict[tuple[int, int], str]) -> None:
        """The seven numbers, as sums of what was written down when each changed."""
        wanted: Counter[tuple[int, str]] = Counter()
        for (stage_id, _), status in statuses.items():
            step_id = self.step_of[stage_id]
            onward = "Exited Canvas" if self.is_last[stage_id] else "Proceeded to Next Step"
            wanted.update([(step_id, "Entered"), (step_id, onward), (step_id, f"Users {status}")])
        if {key: value for key, value in stored.metrics.items() if value} != dict(wanted):
            self.broken.append(f"The numbers are {stored.metrics}, and should be {dict(wanted)}.")

    # --- the end

    def judge(self, lists: dict[int, set[tuple[str, bytes]]], deleted: Collection[str]) -> Iterator[str]:
        """When all is well again: everybody is settled, and each list is the fold of all intents.

        Whoever was added to a list that was ``deleted`` since is in the next one only if sent anew.
        """
        self.deleted = deleted
        for (audience_id, form, value), intents in self.rivals.items():
            there = (form, value) in lists.get(audience_id, set())
            reached = sorted(
                (one for one in intents if one.reached_us is not None and not self._is_held_back(one)),
                key=lambda one: one.order,
            )
            if any(one.stood not in FINAL for one in intents):
                yield f"Somebody of audience {audience_id} is still pending: {[one.place for one in intents]}."
            wanted = [one for one in reached if not one.may & {"field", "dropped"} or one.fate is not None]
            if wanted and wanted == reached[-len(wanted) :]:
                yield from self._last_wins(wanted[-1], there=there)
            if there and not any(one.operation is Operation.ADD and one.tried for one in intents):
                yield f"Audience {audience_id} holds somebody nobody has sent."
            adds = [one for one in intents if one.operation is Operation.ADD and one.tried]
            given_up = any(one.operation is Operation.REMOVE and one.stood is PartState.ERRORED for one in intents)
            if there and not given_up and all(map(self._is_out, adds)):
                yield f"Audience {audience_id} holds somebody who has opted out: {[one.place for one in adds]}."
        yield from self._left_behind(lists)

    def _left_behind(self, lists: dict[int, set[tuple[str, bytes]]]) -> Iterator[str]:
        """A removal also takes out the identifiers under which this user was added to that audience before."""
        adds = [one for one in self.intents.values() if one.operation is Operation.ADD]
        for removal in [] if self.set_back_us else [*self.intents.values()]:
            if removal.operation is Operation.ADD or removal.fate is not PartState.ACCEPTED:
                continue
            for add in adds:
                rivals = self._same(add)
                came_back = any(one.operation is Operation.ADD and one.order > removal.order for one in rivals)
                known = any(
                    one.place[::2] == removal.place[::2] and one.operation is not add.operation for one in rivals
                )
                there = (add.form, add.value) in lists.get(add.audience_id, set())
                if self._takes_out(removal, add) and there and not came_back and not known:
                    yield f"{removal.place} has left {add.place} behind."

    def _last_wins(self, last: Intent, *, there: bool) -> Iterator[str]:
        if last.stood is PartState.CLOSED:
            yield f"The last intent {last.place} was closed."
        elif last.operation is Operation.ADD and last.taken_by in self.deleted:
            return
        elif last.stood is PartState.ACCEPTED and there is not (last.operation is Operation.ADD):
            yield f"The last intent {last.place} did not win."
        elif last.stood is PartState.REFUSED and there:
            yield f"{last.place} was refused and is in the list."
