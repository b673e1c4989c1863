"""Faults: what the sandbox does wrong on purpose, call by call."""

from __future__ import annotations

import random
from typing import Annotated, Literal

import msgspec


class Fault(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One thing that goes wrong for the calls it matches.

    Matching: ``operation`` (a name of ``app.OPERATIONS``, or ``*``), ``segment_id`` (when given), the first
    ``skip`` matches are spared, then ``times`` calls are hit (None: all), each with probability ``chance``.
    Effect: wait ``delay_s``; answer ``status`` with ``body`` (as ``content_type``), or with Criteo's envelope
    of ``error_type``/``code``/``title`` where no body is given; cut the answer in half (``truncate``); or
    ``drop`` the connection *before* or *after* the change was applied. ``applied`` lets a failing answer
    follow a change that took effect all the same.
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
    truncate: bool = False
    applied: bool = False
    drop: Literal["before", "after"] | None = None

    @property
    def prevents(self) -> bool:
        """Whether the call it hits leaves the world unchanged."""
        return self.drop == "before" or (self.status is not None and not self.applied)


class Faults:
    """The faults in force, first match first."""

    def __init__(self, *, seed: int = 0) -> None:
        self._pending: list[Fault] = []
        self._random = random.Random(seed)  # noqa: S311 - repeatable faults, no secret

    def add(self, fault: Fault) -> None:
        """Put one more fault in force, behind the others."""
        self._pending.append(fault)

    def clear(self) -> None:
        """Take every fault back."""
        self._pending.clear()

    def listed(self) -> list[Fault]:
        """Return the faults still in force; their ``skip`` and ``times`` are what is left of them."""
        return list(self._pending)

    def pick(self, operation: str, segment_id: str | None) -> Fault | None:
        """Return the fault that hits this call, if any, and count it down."""
        for fault in self._pending:
            if fault.operation not in ("*", operation) or fault.segment_id not in (None, segment_id):
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
            self._pending.remove(fault)
