"""What the pacer's row has to do, in plain Python: the property test proves it, and the SQL has to agree with it."""

from __future__ import annotations

from dataclasses import dataclass, field

from criteo_provider.core.pacing import Pace


@dataclass
class Row:
    """One row that hands out slots; all times in microseconds."""

    pace: Pace
    span_us: int
    """how far a slot lies behind the one L before it, at least"""
    due_us: int = 0
    hold_us: int = 0
    recent: list[int] = field(default_factory=list)

    def free_us(self, now_us: int, limit: int) -> int:
        """When the next slot is due."""
        ready = [self.recent[-1]] if self.recent else []
        if len(self.recent) >= limit:
            ready.append(self.recent[-limit] + self.span_us)
        return max(self._spaced_us(now_us), self.hold_us, now_us - self.pace.overdue_us, *ready)

    def reserve(self, now_us: int, limit: int, reach_us: int) -> int | None:
        """Hand out the next slot, unless it is too far away."""
        slot_us = self.free_us(now_us, limit)
        if slot_us > now_us + reach_us:
            return None
        self.due_us = self._spaced_us(now_us) + self.step_us(limit)
        self.recent.append(slot_us)
        return slot_us

    def give_back(self, slot_us: int, limit: int) -> None:
        """Take back a slot that nobody used."""
        self.recent.remove(slot_us)
        self.due_us -= self.step_us(limit)

    def step_us(self, limit: int) -> int:
        """The even distance of two slots under the limit granted now."""
        return -(-self.pace.round_us // limit)

    def _spaced_us(self, now_us: int) -> int:
        was_busy = bool(self.recent) and self.recent[-1] >= now_us - self.pace.catch_up_us
        return max(self.due_us, now_us - (self.pace.catch_up_us if was_busy else self.pace.overdue_us))
