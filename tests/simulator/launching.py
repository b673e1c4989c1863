"""Launches and lists in a story: the real launch over a Criteo that makes audiences and loses answers and lists."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from criteo_provider.core.answer import Answer
from criteo_provider.core.errors import AccessLost, Busy, CriteoSyncError, Refused, Unavailable
from criteo_provider.criteo_api import wire
from criteo_provider.criteo_api.client import CriteoClient
from criteo_provider.criteo_api.listing import Listing
from criteo_provider.wiring.findings import of_error
from criteo_provider.wiring.launch import Launch, Launching
from criteo_provider.wiring.preflight import Report
from tests.simulator.criteo import ANSWERS
from tests.simulator.hearing import Hearing
from tests.simulator.intents import AD_ACCOUNT, CONNECTION
from tests.simulator.surroundings import Port
from tests.simulator.threads import Event, Process

if TYPE_CHECKING:
    from collections.abc import Callable

    from criteo_provider.core.model import CanvasDeclaration


class Launches(Hearing):
    """What may happen to lists and to canvases that are not launched yet."""

    def _newcomers(self) -> None:
        """Somebody writes two more canvases: one adds to an audience that is to be made, one removes from it."""
        self.files = replace(self.files, newcomers=True)
        self._declare()

    def _launch(self, name: str, canvas_id: str) -> None:
        """A process launches a canvas if that is due, and reads its source once it is launched."""
        declared = next((one for one in self.files.canvases() if one.canvas_id == canvas_id), None)
        if declared is None:
            return
        process = self._process(name)
        launching, reads = launching_of(self, process, declared), self._reading(process, canvas_id)

        def launch() -> None:
            if launching.is_launched(canvas_of(declared)):
                reads(Event(self.schedule))

        self._start(process, launch)

    def _recreate(self, wanted: bool) -> None:
        """Somebody writes `when_deleted: recreate` into the canvas files, or takes it out."""
        self.files = replace(self.files, recreates=wanted)
        self._declare()

    def _delete(self, name: str) -> None:
        """Somebody deletes a list at Criteo."""
        self.criteo.delete(name)

    def _declare(self) -> None:
        raise NotImplementedError

    def _reading(self, process: Process, canvas_id: str) -> Callable[[Event], Any]:
        raise NotImplementedError


def launching_of(telling: Launches, process: Process, declared: CanvasDeclaration) -> Launching:
    """The real launch, in a house of which only what it needs is there."""
    house: Any = House(telling, process)
    launch = Launch(house)
    launch._stamps[declared.canvas_id] = repr(declared)
    launching = Launching(house, launch, Event(telling.schedule))  # type: ignore[arg-type]
    may_create = any(one.operation.value == "add" for one in declared.steps)
    launching._desks[CONNECTION] = LaunchDesk(Client(telling, may_create=may_create))  # type: ignore[assignment]
    return launching


def canvas_of(declared: CanvasDeclaration) -> Any:
    """What a launch asks of a canvas file."""
    steps = [
        SimpleNamespace(
            sync=SimpleNamespace(ad_account=AD_ACCOUNT, audience=one.audience.name, operation=one.operation)
        )
        for one in declared.steps
    ]
    return SimpleNamespace(id=declared.canvas_id, audience_steps=steps, connection=CONNECTION)


class House:
    """The ledger through a port, and a preflight that looks at Criteo."""

    def __init__(self, telling: Launches, process: Process) -> None:
        port: Any = Port(telling, process)  # type: ignore[arg-type]
        self.ledger = SimpleNamespace(
            launches=port, give_back_audiences=port.give_back_audiences, resolved=port.resolved
        )
        self.preflight = self
        self.now_us = lambda: telling.schedule.now_us

    def check(self, canvas: Any, survey: Any) -> Report:
        """Whether Criteo lets us in is what may stand in the way."""
        try:
            survey.listing(CONNECTION, AD_ACCOUNT)
        except Busy:
            raise
        except CriteoSyncError as error:
            return Report(canvas.id, (of_error(error, "connection", CONNECTION, AD_ACCOUNT),))
        return Report(canvas.id, ())


@dataclass
class LaunchDesk:
    """The desk of a launch."""

    client: Client

    def listing(self, ad_account: str) -> Listing:
        return self.client.listing(ad_account)

    def ensure(self, ad_account: str, name: str, listing: Listing) -> tuple[str, bool]:
        info, created = self.client.ensure_audience(ad_account, name, listing=listing)
        return info.criteo_id, created


class Client(CriteoClient):
    """The real client's way to make an audience once, over a wire that loses answers."""

    def __init__(self, telling: Launches, *, may_create: bool) -> None:
        self._telling, self._may_create = telling, may_create

    def listing(self, ad_account: str) -> Listing:
        telling = self._telling
        telling.schedule.park("listing")
        telling.criteo.let_in()
        known = telling.criteo.audiences.items()
        return Listing(ad_account, tuple(wire.AudienceInfo(key, ad_account, name) for name, key in known))

    def _creation(self, ad_account: str, name: str, _description: str) -> Answer:
        telling = self._telling
        telling.schedule.park("create")
        if not self._may_create:
            telling._break(f"{name} is made for people who are to leave it.")
        criteo = telling.criteo
        shape = criteo.next_answers.pop(0) if criteo.next_answers else "ok"
        criteo.let_in()
        if shape == "403":
            raise AccessLost("No.", scope="ad_account", code="not-permitted")
        if shape == "400" or criteo.weather == "400":
            raise Refused("Unable to create new audiences.", code="quota-reached")
        if shape.startswith("429"):
            raise Busy(7.0)
        applies = shape in ("slow", "lost after") or (shape in ANSWERS and ANSWERS[shape][3])
        taken = name in criteo.audiences
        if applies and not taken:
            criteo.make(name)
        if shape != "ok":
            raise Unavailable("The answer was lost.", maybe_applied=shape != "503")
        problem = (SimpleNamespace(code=wire.NAME_TAKEN),) if taken else ()
        return Answer(None if taken else {"id": criteo.audiences[name]}, {}, errors=problem)  # type: ignore[arg-type]
