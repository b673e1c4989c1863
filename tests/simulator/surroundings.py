"""What the people of a story deal with: files, sources, a pacer, and the doors to ledger and Criteo; all without
threads of their own, and each parks before it does anything."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid5

from criteo_provider.core import pacing
from criteo_provider.core.consent import FEED_PREFIX, FeedDeclaration
from criteo_provider.core.eligibility import compile as rule_of
from criteo_provider.core.identifiers import Form, decode
from criteo_provider.core.model import CanvasDeclaration, ClaimedRequest, Operation, StepDeclaration, WhenDeleted
from criteo_provider.core.outcome import AccessLost, Outcome
from criteo_provider.core.ports import Json, Look, MaxRows, Page, Seen
from criteo_provider.flow.withdraw import FeedPlan
from tests.simulator.criteo import CLIENT_GIVES_UP_S, Letter, Values
from tests.simulator.threads import Process, Schedule
from tests.world import canvas, step

if TYPE_CHECKING:
    from tests.simulator.telling import Telling

HOUR_S = 3600.0
INVALID, POISON = (6, 7), (5,)  # Criteo calls the first two invalid, and refuses whole requests with the third
DEVICES = UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8")
PAGE_ROWS = 4
# These canvases are not launched when a story begins; the audience both name is not there.
LATER, NEWCOMERS = ("new", "bye"), "Newcomers"
LIMIT = pacing.Pace(6_000)


def row_of(number: int) -> dict[str, Any]:
    """Person ``number`` modulo ten, who has another address and device in each ten.

    Every fourth has no address, every third no device, and one said no to ads.
    """
    person = number % 10
    return {
        "person": f"person-{person}",
        "email": None if person % 4 == 3 and person not in INVALID else f"person{number}@example.com",
        "maid": None if person % 3 == 0 else str(uuid5(DEVICES, str(number))),
        "ads": person != 8,
    }


def identifiers_of(person: int) -> set[bytes]:
    """All values a person may have, in either form."""
    numbers = range(person, 30, 10)
    addresses = {sha256(f"person{number}@example.com".encode()).digest() for number in numbers}
    return addresses | {uuid5(DEVICES, str(number)).bytes for number in numbers}


@dataclass(frozen=True)
class Files:
    """What the canvas files say."""

    fields: tuple[str, ...] = ("email", "madid")
    audience: str = "Shoppers"
    removes: bool = True
    leaves: bool = True
    paused: tuple[str, ...] = ()
    newcomers: bool = False
    recreates: bool = False

    def canvases(self) -> list[CanvasDeclaration]:
        both = ("email", "madid")
        tour = [step("join", is_last=not self.leaves, fields=("email",))]
        if self.leaves:
            tour.append(step("leave", Operation.REMOVE, delay_s=HOUR_S, position=2, fields=both))
        made = [canvas("in", step("add", fields=self.fields, audience=self.audience)), canvas("tour", *tour)]
        if self.removes:
            made.append(canvas("out", step("remove", Operation.REMOVE, fields=both)))
        if self.newcomers:
            made.append(canvas("new", step("greet", audience=NEWCOMERS, fields=both)))
            made.append(canvas("bye", step("forget", Operation.REMOVE, audience=NEWCOMERS, fields=both)))
        deleted = WhenDeleted.RECREATE if self.recreates else None
        return [replace(one, steps=tuple(self._says(held, deleted) for held in one.steps)) for one in made]

    def _says(self, held: StepDeclaration, deleted: WhenDeleted | None) -> StepDeclaration:
        return replace(held, paused=held.name in self.paused, when_deleted=deleted)


DECLARED = Files().canvases()
FEED = FeedDeclaration(f"{FEED_PREFIX}asked", "Asked", "privacy-team", 13 * HOUR_S, "feed", None)
FEED_PLAN = FeedPlan(FEED.feed_id, "person", (), rule_of({"back": True}))


class Rows:
    """The source of one canvas or feed: rows that are never taken back, read in small pages."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def is_ahead(self, position: Json, _seen: Seen) -> bool:
        return int(position or 0) < len(self.rows)  # type: ignore[arg-type]

    def pages(self, position: Json, *, max_rows: MaxRows, seen: Seen) -> Generator[Page]:
        at = int(position or 0)  # type: ignore[arg-type]
        while at < len(self.rows):
            found = self.rows[at : at + min(max_rows(), PAGE_ROWS)]
            at += len(found)
            yield Page({name: [row[name] for row in found] for name in found[0]}, len(found), at)

    def recheck(self, look: Look) -> Iterator[tuple[Page, Look | None]]:
        raise AssertionError("this source asks for no second look")


class Pacer:
    """The rules of the pacer on the story's clock; one for all processes."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self.due_us = self.hold_until_us = self.held_us = self.refusals = 0

    def queue_s(self) -> float:
        return max(0, self.due_us - self._schedule.real_us, self.hold_until_us - self._schedule.real_us) / 1e6

    def take(self, *, spacing: int = 1, instead_of: Slot | None = None) -> Slot:
        schedule = self._schedule
        schedule.park("slot")
        due_us = max(self.due_us, self.hold_until_us, schedule.real_us)
        self.due_us = due_us + LIMIT.step_us
        if due_us > schedule.real_us:
            schedule.park("slot", lambda: schedule.real_us >= due_us, timeout_s=(due_us - schedule.real_us) / 1e6)
        return Slot(schedule, due_us)

    def observed(self, status: int, headers: dict[str, str]) -> None:
        now_s = self._schedule.now_us / 1e6
        change = pacing.observed(status, headers, now_s=now_s, refusals=self.refusals)
        if change.hold_s > 0:
            if self.hold_until_us <= self._schedule.real_us:
                self.held_us = self._schedule.real_us
            self.refusals += status == pacing.TOO_MANY_REQUESTS
            self.hold_until_us = max(self.hold_until_us, self._schedule.real_us + round(change.hold_s * 1e6))
        elif status != pacing.TOO_MANY_REQUESTS:
            self.refusals = 0


@dataclass
class Slot:
    """One moment at which one call may start."""

    schedule: Schedule
    due_us: int

    def is_fresh(self) -> bool:
        return pacing.slot_is_fresh(self.due_us, self.schedule.real_us, LIMIT.margin_us)


class Port:
    """The ledger as one process sees it: before each verb the process parks, and a verb may go wrong."""

    def __init__(self, telling: Telling, process: Process) -> None:
        self._telling, self._process = telling, process

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        return partial(self._do, verb)

    def _do(self, verb: str, *words: Any, **named: Any) -> Any:
        self._telling.schedule.park(verb)
        return self._telling.do(verb, *words, **named)


class Courier:
    """Carries requests over the story's wire, through what the real courier makes of answers."""

    def __init__(self, telling: Telling) -> None:
        self._telling = telling

    def make_ready(self) -> Outcome | None:
        self._telling.schedule.park("token")
        if self._telling.criteo.weather == "revoked":
            return AccessLost("connection", "consent-withdrawn", "Criteo refuses the refresh token.")
        return None

    def pack(self, _claimed: ClaimedRequest, values: Callable[[], dict[str, bytes]]) -> Values:
        return {form: decode(blob, Form(form)) for form, blob in values().items()}

    def send(self, claimed: ClaimedRequest, parcel: Values, before_first_byte: Callable[[], None]) -> Outcome:
        telling, schedule = self._telling, self._telling.schedule
        schedule.park("send")
        before_first_byte()
        letter = Letter(claimed, parcel, schedule.real_us)
        telling.post(letter)
        if letter.answer is None:
            schedule.park("answer", lambda: letter.answer is not None, timeout_s=CLIENT_GIVES_UP_S)
        return telling.read(letter)


class Desk:
    """Finds audiences, as the real desk does, and fails as Criteo feels."""

    def __init__(self, telling: Telling) -> None:
        self._telling = telling

    def ensure(self, _ad_account: str, name: str) -> tuple[str, bool]:
        self._telling.schedule.park("ensure")
        if name == NEWCOMERS and "new" not in self._telling.launched:
            self._telling._break(f"{name} is made for people who are to leave it.")
        return self._telling.criteo.find(name, may_create=True)

    def find(self, _ad_account: str, name: str) -> str | None:
        self._telling.schedule.park("find")
        return self._telling.criteo.find(name, may_create=False)[0]
