"""Faults: what the sandbox does wrong on purpose, call by call."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

import msgspec

API = "api"
"""As the operation of a fault: every call but those for tokens."""


class Fault(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One thing that goes wrong for the calls it matches.

    Matching: ``operation`` (a name of ``app.OPERATIONS``, ``api`` for all but token calls, or ``*``),
    ``segment_id`` (when given), the first ``skip`` matches are spared, then ``times`` calls are hit (None: all),
    each with probability ``chance``.
    Effect: wait ``delay_s``; answer ``status`` with ``body`` (as ``content_type``), or with Criteo's envelope
    of ``error_type``/``code``/``title`` where no body is given; say with ``reset_in_s`` that no call is possible
    for so long; change members of the answer (``rewrite``, ``without``: paths such as ``data/*/attributes/type``);
    cut it in half (``truncate``); or ``drop`` the connection *before* or *after* the change was applied.
    ``applied`` lets a failing answer follow a change that took effect all the same. With ``rival`` somebody else
    creates an audience of the same name at the last moment.
    """

    operation: str = "*"
    segment_id: str | None = None
    skip: Annotated[int, msgspec.Meta(ge=0)] = 0
    times: Annotated[int, msgspec.Meta(ge=1)] | None = 1
    chance: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    delay_s: Annotated[float, msgspec.Meta(ge=0, le=600)] = 0.0
    status: Annotated[int, msgspec.Meta(ge=200, le=599)] | None = None
    body: str | None = None
    content_type: str = "application/json"
    error_type: str = "availability"
    code: str = "internal-error"
    title: str = "The sandbox was told to fail"
    headers: dict[str, str] = {}
    reset_in_s: Annotated[float, msgspec.Meta(ge=0)] | None = None
    rewrite: dict[str, object] = {}
    without: list[str] = []
    rival: bool = False
    truncate: bool = False
    applied: bool = False
    drop: Literal["before", "after"] | None = None

    @property
    def prevents(self) -> bool:
        """Whether the call it hits leaves the world unchanged."""
        return self.drop == "before" or (self.status is not None and not self.applied)

    def aims_at(self, operation: str, segment_id: str | None) -> bool:
        """Tell whether it matches a call, the counts aside."""
        named = self.operation in ("*", operation) or (self.operation == API and operation != "token")
        return named and self.segment_id in (None, segment_id)

    def edited(self, body: bytes) -> bytes:
        """Return a JSON answer with its members rewritten and removed."""
        if not self.rewrite and not self.without:
            return body
        content = msgspec.json.decode(body)
        for path, value in self.rewrite.items():
            for holder, member in _holders(content, path.split("/")):
                holder[member] = value
        for path in self.without:
            for holder, member in _holders(content, path.split("/")):
                holder.pop(member, None)
        return msgspec.json.encode(content)


@dataclass
class Thrown:
    """A named fault in force: the call faults it put there, and how to take back what it changed."""

    name: str
    faults: list[Fault] = field(default_factory=list)
    undo: Callable[[], None] | None = None


class Faults:
    """The faults in force, first match first."""

    def __init__(self, *, seed: int = 0) -> None:
        self._pending: list[Fault] = []
        self.thrown: list[Thrown] = []
        self._random = random.Random(seed)  # noqa: S311 - repeatable faults, no secret

    def add(self, fault: Fault) -> None:
        """Put one more fault in force, behind the others."""
        self._pending.append(fault)

    def clear(self) -> None:
        """Take every fault back, the latest first."""
        self.take_back(*(thrown.name for thrown in self.thrown))
        self._pending.clear()

    def take_back(self, *names: str) -> None:
        """Take back the named faults of these names, the latest first; others stay."""
        for thrown in [each for each in reversed(self.thrown) if each.name in names]:
            self._pending = [fault for fault in self._pending if not any(fault is one for one in thrown.faults)]
            if thrown.undo is not None:
                thrown.undo()
            self.thrown.remove(thrown)

    def names_in_force(self) -> list[str]:
        """Return the named faults that still do something."""
        pending = {id(fault) for fault in self._pending}
        return [
            thrown.name
            for thrown in self.thrown
            if thrown.undo is not None or any(id(fault) in pending for fault in thrown.faults)
        ]

    def listed(self) -> list[Fault]:
        """Return the faults still in force; their ``skip`` and ``times`` are what is left of them."""
        return list(self._pending)

    def pick(self, operation: str, segment_id: str | None) -> Fault | None:
        """Return the fault that hits this call, if any, and count it down."""
        for fault in self._pending:
            if not fault.aims_at(operation, segment_id):
                continue
            if fault.skip > 0:
                fault.skip -= 1
                continue
            if self._random.random() >= fault.chance:
                continue
            self._count_down(fault)
            return fault
        return None

    def _count_down(self, fault: Fault) -> None:
        if fault.times is None:
            return
        fault.times -= 1
        if fault.times == 0:
            self._pending = [other for other in self._pending if other is not fault]


def _holders(node: object, path: list[str]) -> Iterator[tuple[dict[str, object], str]]:
    """Yield each object that holds (or may hold) the last member of ``path``, with that member's name."""
    first, *rest = path
    if first == "*":
        for child in node if isinstance(node, list) else []:
            yield from _holders(child, rest)
    elif isinstance(node, dict) and rest:
        yield from _holders(node.get(first), rest)
    elif isinstance(node, dict):
        yield node, first
