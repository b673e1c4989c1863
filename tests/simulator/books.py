"""The books of a story, kept after the rules of the design from what the ledger was told, and nothing else."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence

from criteo_provider.core.identifiers import Form, decode, from_wire
from criteo_provider.core.model import ClaimedPart, ClaimedRequest, Operation, PartState, SealedPeople, StepPlan
from criteo_provider.core.outcome import Accepted, AccessLost, AudienceGone, Busy, Outcome, Refused, Unavailable

# Stage, form, ordinal, and 0; or under which number a removal keeps what its people were added under before.
from tests.simulator.intents import AD_ACCOUNT_KEY, CONNECTION, Intent, Live, Place, Removal, Step

PROBES_APART_US = 60_000_000


class Books:
    """What a story has told so far; ``broken`` holds one sentence for each thing that went wrong."""

    def __init__(self) -> None:
        self.broken: list[str] = []
        self.intents: dict[Place, Intent] = {}
        self.rivals: dict[tuple[int, str, bytes], list[Intent]] = defaultdict(list)
        self.people: dict[int, list[str]] = {}  # stage: user keys by ordinal
        self.step_of: dict[int, int] = {}  # stage: step
        self.enters: dict[int, tuple[int, bool]] = {}  # stage: when its people reach the step, and whether they have
        self.steps: dict[int, Step] = {}
        # By user key: until when by the clock, and how many intents there were when consent was given anew.
        self.opt_outs: dict[str, list[tuple[int, int] | None]] = defaultdict(list)
        self.sealed_us: dict[int, int] = {}  # stage: when its people entered
        self.is_last: dict[int, bool] = {}  # stage: whether its step was the last one
        self.live: dict[int, Live] = {}
        self.unsure: list[ClaimedRequest] = []  # their answers were lost: in flight until their leases end
        self.taken_again: set[tuple[int, int]] = set()  # stage and ordinal
        self.first_trouble_us: int | None = None
        self.probed: dict[tuple[str, str], int] = {}  # open troubles: when they were last met
        self.paused_us: int = 0  # a bound of how long anything was paused
        self.known_as: dict[int, str] = {}  # under which id each audience was found last
        self.latest_us = 0
        self.set_back_us = 0  # how far the clock was ever set back: then somebody may have been given up too early
        self.sealed: dict[str, list[str]] = defaultdict(list)
        self.counted: set[int] = set()  # requests whose identifiers Criteo has counted, and the sender has read it

    def sealed_people(
        self,
        canvas_id: str,
        people: SealedPeople,
        plans: Sequence[StepPlan],
        stages: dict[int, int],
        now_us: int,
        patience_us: int,
    ) -> None:
        """People entered; ``stages`` names the new stage of each step."""
        self.sealed[canvas_id] += people.user_keys
        for plan in plans if people else ():
            stage_id, enters_us = stages[plan.step_id], now_us + round(plan.delay_s * 1e6)
            self.people[stage_id], self.step_of[stage_id] = list(people.user_keys), plan.step_id
            self.sealed_us[stage_id] = now_us
            self.enters[stage_id] = enters_us, not plan.delay_s
            self.is_last[stage_id] = plan.is_last
            for held in people.forms:
                if Form(held.form).field not in plan.fields:
                    continue
                ordinals = [ordinal for span in held.present for ordinal in range(span.first, span.last)]
                for ordinal, value in zip(ordinals, decode(held.blob, Form(held.form)), strict=True):
                    place, reached_us = (stage_id, held.form, ordinal, 0), None if plan.delay_s else now_us
                    made = Intent(
                        place, plan.step_id, plan.audience_id, plan.operation, value, len(self.intents), enters_us,
                        reached_us, patience_us, set_back_us=self.set_back_us,
                    )  # fmt: skip
                    if Form(held.form).field not in self.steps[plan.step_id].fields:
                        made.may.add("field")
                    self.intents[place] = made
                    self.rivals[plan.audience_id, held.form, value].append(made)

    def due_steps_entered(self, now_us: int) -> None:
        """Delays that are over are over."""
        for stage_id, (enters_us, entered) in self.enters.items():
            if not entered and enters_us <= now_us and self.steps[self.step_of[stage_id]].declared:
                self.enters[stage_id] = enters_us, True
                for intent in self._of_stage(stage_id):
                    intent.reached_us, intent.set_back_us = now_us, self.set_back_us

    def clock_set_back(self, by_us: int, now_us: int) -> None:
        """It is earlier than it was; what is known to be broken is so by now, and no earlier than that."""
        self.set_back_us += by_us
        if self.first_trouble_us is not None:
            self.first_trouble_us = min(self.first_trouble_us, now_us)

    def declared(self, steps: dict[int, Step], gone: Collection[int]) -> None:
        """The files have changed: these steps are declared now, and ``gone`` are not."""
        self.steps.update(steps)
        for step_id in gone:
            self.steps[step_id].declared = False
        for intent in self.intents.values():
            step = self.steps[intent.step_id]
            if (
                step.declared
                and intent.fate is None
                and not intent.place[3]
                and Form(intent.form).field not in step.fields
            ):
                intent.may.add("field")

    def goes_on(self, step_id: int, since_us: int, now_us: int) -> None:
        """A step has rested: whoever was held in it has as much patience left as before."""
        self.paused_us += max(0, now_us - since_us)
        for intent in self.intents.values():
            began_us = self._began_us(intent)
            if intent.step_id == step_id and intent.stood is PartState.OPEN and began_us is not None:
                intent.rested_us += now_us - max(since_us, began_us)

    def dropped(self, step_id: int) -> None:
        """A person has given up whoever is held in a step no file declares."""
        for intent in self.intents.values():
            if intent.step_id == step_id and intent.fate is None:
                intent.may.add("dropped")

    def requeued(self, canvas_id: str | None, now_us: int) -> None:
        """A person has whoever is given up in a canvas (none: anywhere) tried again."""
        for intent in self.intents.values():
            if canvas_id in (None, self.steps[intent.step_id].canvas_id):
                intent.requeued_us = now_us

    def opted_out(self, user_key: str, *, taken_back: bool, now_us: int) -> None:
        """Somebody has withdrawn consent, or given it anew: then whoever enters from now on may be sent."""
        told = self.opt_outs[user_key]
        is_out = bool(told) and told[-1] is None
        if taken_back and is_out:
            told[-1] = now_us, len(self.intents)
        elif not taken_back and not is_out:
            told.append(None)

    def removals_sealed(self, removal: Removal, now_us: int, patience_us: int) -> None:
        """Whoever was sent before opting out is to be taken out again: that is an intent like any other."""
        stage_id, step_id = removal.stage_id, removal.step_id
        fields = {Form(places[0][1]).field for places, *_ in removal.identifiers}
        known = self.steps.setdefault(step_id, Step(removal.canvas_id, removal.step_name, set()))
        known.fields = {*known.fields, *fields}
        self.people[stage_id], self.step_of[stage_id] = removal.user_keys, step_id
        self.sealed_us[stage_id], self.enters[stage_id], self.is_last[stage_id] = now_us, (now_us, True), True
        for places, values, audience_id, intent_us in removal.identifiers:
            for place, value in zip(places, values, strict=True):
                made = Intent(
                    place, step_id, audience_id, Operation.REMOVE, value, len(self.intents), intent_us, now_us,
                    patience_us, set_back_us=self.set_back_us,
                )  # fmt: skip
                rivals = self.rivals[audience_id, place[1], value]
                if not any(self._is_out(one) and self._is_of_one_user(one, made) for one in rivals):
                    self.broken.append(f"{place} takes out somebody who has not opted out.")
                self.intents[place] = made
                rivals.append(made)

    def looked_back(self, earlier: dict[Place, bytes]) -> None:
        """Removals have found what their people were added under before: those are intents of theirs, too."""
        for place, value in earlier.items():
            if place in self.intents:
                continue
            own = min(self._of_person(place[0], place[2]), key=lambda one: one.sequence)
            made = Intent(
                place, own.step_id, own.audience_id, own.operation, value, own.sequence, own.enters_us, own.reached_us,
                own.patience_us, set_back_us=own.set_back_us,
            )  # fmt: skip
            rivals = self.rivals[own.audience_id, place[1], value]
            if not any(self._takes_out(made, rival) for rival in rivals):
                self.broken.append(f"{place} takes out what nobody of that name was added under.")
            self.intents[place] = made
            rivals.append(made)

    def claimed(self, claimed: ClaimedRequest, again: Collection[int], now_us: int) -> None:
        """A request may fly, beside all that is in the air; ``again`` names parts that repeat what others have sent."""
        self.leases_ended(now_us)
        places = _places(one for one in claimed.parts if one.part_id not in again)
        in_air = [one.claimed for one in self.live.values()] + self.unsure
        for other in in_air:
            if other.lease_until_us < now_us or other.audience_id != claimed.audience_id:
                continue
            if other.operation is not claimed.operation:
                self.broken.append("Two opposite signs of one audience are in flight at once.")
        held = {place for one in self.live.values() for place in one.places}
        if held.intersection(places) or len(set(places)) != len(places):
            self.broken.append("Somebody is in two requests at once.")
        for intent in map(self.intents.__getitem__, places):
            self._may_be_sent(intent, claimed, now_us)
            intent.tried = True
            if intent.clock_us is None:
                intent.clock_us, intent.clock_of = now_us, claimed.request_id
        self._probes(claimed, now_us)
        once_more = _places(one for one in claimed.parts if one.part_id in again)
        self.live[claimed.request_id] = Live(claimed, places, once_more)

    def leases_ended(self, now_us: int) -> None:
        """Whoever let a lease run out has lost the request."""
        self.live = {key: one for key, one in self.live.items() if one.claimed.lease_until_us >= now_us}
        self.unsure = [one for one in self.unsure if one.lease_until_us >= now_us]

    def released(self, claimed: ClaimedRequest) -> None:
        """A request went back unsent."""
        live = self.live.pop(claimed.request_id, None)
        for place in live.places if live else ():
            intent = self.intents[place]
            if intent.clock_of == claimed.request_id:
                intent.clock_us = intent.clock_of = None
        self._found_out_nothing(claimed)

    def settled(self, claimed: ClaimedRequest, outcome: Outcome, lost: int, now_us: int) -> None:
        """An answer was written down."""
        if isinstance(outcome, Accepted) != (claimed.request_id in self.counted):
            self.broken.append(f"Request {claimed.request_id} was settled as {outcome.code}, Criteo said otherwise.")
        live = self.live.pop(claimed.request_id, None)
        if lost != (0 if live else len(claimed.parts)):
            self.broken.append(f"Of request {claimed.request_id}, {lost} parts were lost; its claim says otherwise.")
        if live is None:
            return
        if isinstance(outcome, Unavailable) and outcome.maybe_applied:
            self.unsure.append(claimed)
        intents = [self.intents[place] for place in live.places]
        if isinstance(outcome, Accepted):
            self._accepted(claimed, intents, outcome)
            # Whoever Criteo has taken is synced, also while the request that was to settle them is tried again.
            _, taken, _ = _told_apart(claimed, [self.intents[place] for place in live.once_more], outcome)
            self.taken_again.update(one.place[::2] for one in taken)
            self._healed(claimed)
        elif isinstance(outcome, Refused):
            if intents and claimed.identifiers == 1:
                intents[0].may.add("refused")
            self._healed(claimed)
        elif isinstance(outcome, AudienceGone) and self.known_as[claimed.audience_id] != claimed.criteo_id:
            pass  # it is another by now
        elif isinstance(outcome, (AccessLost, AudienceGone)):
            scope = outcome.scope if isinstance(outcome, AccessLost) else "audience"
            self.wider_works(scope)
            self.trouble_met(scope, _keys(claimed)[scope], now_us, again=False)
        elif isinstance(outcome, Busy):
            self._found_out_nothing(claimed)

    def trouble_met(self, scope: str, key: str, now_us: int, *, again: bool) -> None:
        """Something is known to be broken from now on."""
        if self.first_trouble_us is None:
            self.first_trouble_us = now_us
        if again or (scope, key) not in self.probed:
            self.probed[scope, key] = now_us

    def wider_works(self, blamed: str) -> None:
        """Criteo has blamed this, so it has let us in where that leads to."""
        wider = {"ad_account": [("connection", CONNECTION)]}
        wider["audience"] = [*wider["ad_account"], ("ad_account", AD_ACCOUNT_KEY)]
        for key in wider.get(blamed, ()):
            self.probed.pop(key, None)

    def trouble_over(self, audience_id: int) -> None:
        """An audience was found, so all that leads there works."""
        for key in (("audience", str(audience_id)), ("ad_account", AD_ACCOUNT_KEY), ("connection", CONNECTION)):
            self.probed.pop(key, None)

    def audiences_named(self, audience_ids: set[int]) -> None:
        """The files have changed: nobody asks any more whether what is neither named nor awaited works."""
        leading = {("audience", str(audience_id)) for audience_id in audience_ids}
        if audience_ids:
            leading |= {("ad_account", AD_ACCOUNT_KEY), ("connection", CONNECTION)}
        self.probed = {key: met_us for key, met_us in self.probed.items() if key in leading}

    # --- what may be sent, and what an answer means

    def _may_be_sent(self, intent: Intent, claimed: ClaimedRequest, now_us: int) -> None:
        step = self.steps[intent.step_id]
        complaints = {
            "somebody settled": intent.fate is not None,
            "somebody who has not reached the step": intent.reached_us is None,
            "a step that rests": not step.at_work,
            "somebody who has opted out": intent.operation is Operation.ADD and self._is_out(intent),
            "a field no longer chosen": not intent.place[3] and Form(intent.form).field not in step.fields,
            "into another audience": intent.audience_id != claimed.audience_id,
            "the other way round": intent.operation is not claimed.operation,
            "somebody given up": intent.clock_us is not None
            and now_us > intent.clock_us + intent.patience_us + self.paused_us,
            "somebody whose later intent is done": any(
                self._overtakes(rival, intent) and rival.fate is PartState.ACCEPTED for rival in self._same(intent)
            ),
            "somebody whose removal was given up": any(
                self._overtakes(rival, intent) and rival.stood is PartState.ERRORED for rival in self._same(intent)
            )
            and intent.operation is Operation.ADD,
        }
        self.broken += [f"Sent: {what} ({intent.place})." for what, is_so in complaints.items() if is_so]

    def _probes(self, claimed: ClaimedRequest, now_us: int) -> None:
        for key in _keys(claimed).items():
            met_us = self.probed.get(key)
            if met_us is not None:
                if met_us <= now_us < met_us + PROBES_APART_US:
                    self.broken.append(f"Sent while the {key[0]} is known to be broken.")
                self.probed[key] = now_us

    def _found_out_nothing(self, claimed: ClaimedRequest) -> None:
        """A probe that was not sent or not looked at is no probe: another may go at once."""
        if claimed.is_probe:
            self.probed.update((key, -PROBES_APART_US) for key in _keys(claimed).items() if key in self.probed)

    def _accepted(self, claimed: ClaimedRequest, intents: list[Intent], outcome: Accepted) -> None:
        refused, taken, unsure = _told_apart(claimed, intents, outcome)
        for one in refused:
            one.fate = PartState.REFUSED
        for one in taken:
            one.fate, one.taken_by = PartState.ACCEPTED, claimed.criteo_id
        if len(unsure) == 1:
            unsure[0].may.add("refused")

    def _healed(self, claimed: ClaimedRequest) -> None:
        for key in _keys(claimed).items():
            self.probed.pop(key, None)

    # --- how

    def _of_stage(self, stage_id: int) -> Iterator[Intent]:
        return (one for one in self.intents.values() if one.place[0] == stage_id)

    def _of_person(self, stage_id: int, ordinal: int) -> list[Intent]:
        return [one for one in self._of_stage(stage_id) if one.place[2] == ordinal and not one.place[3]]

    def _began_us(self, intent: Intent) -> int | None:
        """When somebody's patience may have begun: at the first attempt, or when a known trouble held them back."""
        began = [intent.clock_us] if intent.clock_us is not None else []
        if self.first_trouble_us is not None and intent.reached_us is not None:
            began.append(max(intent.reached_us, self.first_trouble_us))
        return min(began, default=None)

    def _user_key(self, intent: Intent) -> str:
        return self.people[intent.place[0]][intent.place[2]]

    def _is_of_one_user(self, one: Intent, other: Intent) -> bool:
        return self._user_key(one) == self._user_key(other)

    def _is_out(self, intent: Intent) -> bool:
        """Whether somebody has opted out, and had not taken that back before entering."""
        sealed_us = self.sealed_us[intent.place[0]]
        return any(ended is None or ended[0] > sealed_us for ended in self.opt_outs[self._user_key(intent)])

    def _was_out(self, intent: Intent) -> bool:
        """Whether somebody is out, or was between entering and giving consent anew, which a clock set back hides."""
        told = self.opt_outs[self._user_key(intent)]
        return self._is_out(intent) or any(ended is not None and ended[1] > intent.sequence for ended in told)

    def _is_held_back(self, intent: Intent) -> bool:
        """Whether an opt-out came before anything else: that is nobody's last word on a list."""
        return intent.operation is Operation.ADD and intent.stood is PartState.CLOSED and self._was_out(intent)

    def _takes_out(self, removal: Intent, add: Intent) -> bool:
        same_user = self._is_of_one_user(removal, add)
        before = add.operation is Operation.ADD and add.order < removal.order
        return same_user and before and add.audience_id == removal.audience_id and add.fate is not PartState.REFUSED

    def _flies(self, intent: Intent) -> bool:
        return any(intent.place in one.places for one in self.live.values())

    def _same(self, intent: Intent) -> list[Intent]:
        return self.rivals[intent.audience_id, intent.form, intent.value]

    @staticmethod
    def _overtakes(rival: Intent, intent: Intent) -> bool:
        opposite = rival.operation is not intent.operation
        return opposite and rival.reached_us is not None and rival.order > intent.order


def _keys(claimed: ClaimedRequest) -> dict[str, str]:
    return {"connection": CONNECTION, "ad_account": AD_ACCOUNT_KEY, "audience": str(claimed.audience_id)}


def _places(parts: Iterable[ClaimedPart]) -> list[Place]:
    return [
        (one.stage_id, one.form, ordinal, one.earlier_id or 0)
        for one in parts
        for span in one.spans
        for ordinal in range(span.first, span.last)
    ]


def _told_apart(
    claimed: ClaimedRequest, intents: list[Intent], outcome: Accepted
) -> tuple[list[Intent], list[Intent], list[Intent]]:
    """Whom Criteo has refused, whom it has taken, and of whom its answer says neither."""
    if outcome.invalid and not outcome.valid:
        return intents, [], []
    forms = {one.form for one in claimed.parts}
    named = {from_wire(text, Form(form)) for text in outcome.sample for form in forms} - {None}
    refused = [one for one in intents if one.value in named]
    rest = [one for one in intents if one.value not in named]
    return (refused, rest, []) if len(named) >= outcome.invalid else (refused, [], rest)
