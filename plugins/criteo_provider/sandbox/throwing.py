"""How a named fault is thrown and taken back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import msgspec

from criteo_provider.sandbox.faults import Fault, Thrown
from criteo_provider.sandbox.state import CLIENT_ID, World

Undo = Callable[[], None]
Kind = Literal["calls", "state", "event"]
"""``calls`` go wrong until they were so many or the fault is taken back; a ``state`` lasts until it is taken back;
an ``event`` happens once, and nothing brings back what it took."""


class Aim(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Whom a named fault hits, how often, how hard; what is left out is the fault's own choice."""

    times: Annotated[int, msgspec.Meta(ge=1)] | None = None
    operation: str | None = None
    segment_id: str | None = None
    client_id: str = CLIENT_ID
    advertiser_id: str | None = None
    version: str = "2026-07"
    limit: Annotated[int, msgspec.Meta(ge=0)] | None = None
    share: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    seconds: Annotated[float, msgspec.Meta(ge=0, le=86_400)] | None = None

    def fault(self, operation: str, **effect: object) -> list[Fault]:
        """Return the call fault of this aim, for ``operation`` unless another was asked for."""
        matched = {"operation": self.operation or operation, "segment_id": self.segment_id, "times": self.times}
        return [msgspec.convert({**matched, **effect}, Fault)]


Strike = Callable[[World, Aim], list[Fault] | Undo | None]


@dataclass(frozen=True, slots=True)
class NamedFault:
    """One entry of the catalogue: its name, where it was seen, and what happens."""

    name: str
    source: str
    kind: Kind
    says: str
    strike: Strike = field(repr=False)

    def throw(self, world: World, aim: Aim) -> None:
        """Put it in force; raises ValueError where a count makes no sense."""
        if self.kind != "calls" and aim.times is not None:
            raise ValueError(f"{self.name} hits no single calls, so it takes no times: take it back to end it")
        result = self.strike(world, aim)
        if isinstance(result, list):
            for fault in result:
                world.faults.add(fault)
            world.faults.thrown.append(Thrown(self.name, faults=result))
        elif result is not None:
            world.faults.thrown.append(Thrown(self.name, undo=result))


def setting(thing: object, **values: object) -> Undo:
    """Set attributes; return what sets them back."""
    before = {name: getattr(thing, name) for name in values}

    def give(content: dict[str, object]) -> None:
        for name, value in content.items():
            setattr(thing, name, value)

    give(values)
    return lambda: give(before)


def ruling(world: World, **patch: object) -> Undo:
    """Replace rules; return what brings the former ones back."""
    before: dict[str, object] = {name: getattr(world.rules, name) for name in patch}

    def give(content: dict[str, object]) -> None:
        world.rules = world.rules.changed(content)

    give(patch)
    return lambda: give(before)


def inserting(world: World, wanted: Sequence[tuple[str, str, str]]) -> Undo:
    """Make segments (advertiser, name, kind) as Criteo's UI would; return what removes them."""
    made = [world.new_segment(advertiser, name, kind=kind).number for advertiser, name, kind in wanted]

    def remove() -> None:
        for number in made:
            world.segments.pop(number, None)

    return remove


def all_of(undos: Sequence[Undo]) -> Undo:
    """Return one that takes all of them back, the latest first."""

    def undo() -> None:
        for each in reversed(undos):
            each()

    return undo
