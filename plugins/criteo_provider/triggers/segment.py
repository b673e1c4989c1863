"""SegmentEntryTrigger: waits in the triggerer until people may enter a canvas or a first attempt is due."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import cache
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TaskSuccessEvent, TriggerEvent

from criteo_provider.core.errors import CriteoSyncError
from criteo_provider.hooks.lookout import Lookout

if TYPE_CHECKING:
    from criteo_provider.wiring import Waiting

# A failing look is repeated less and less often, so a dead database is neither hammered nor forgotten.
LONGEST_PAUSE_S = 30.0


class SegmentEntryTrigger(BaseTrigger):
    """Ends its task, with no worker, as soon as a source is ahead of its cursor or something is due.

    All triggers of a process share one look at all canvases. Nothing ends the wait but work: a source that
    cannot be looked at, or a ledger that does not answer, is one line in the log and another try.

    :param poll_interval_s: seconds between looks
    """

    def __init__(self, poll_interval_s: float = 1.0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's own
        self.poll_interval_s = poll_interval_s
        self._said: tuple[str, ...] = ()

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the path and the arguments this trigger is rebuilt from; the path never changes."""
        return "criteo_provider.triggers.segment.SegmentEntryTrigger", {"poll_interval_s": self.poll_interval_s}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look until there is work, then yield one event with counts only."""
        pause_s = self.poll_interval_s
        while True:
            try:
                waiting = await shared_lookout().look()
            except Exception as error:
                self._say((_sentence(error),))
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
            else:
                pause_s = self.poll_interval_s
                self._say(waiting.problems)
                if waiting.fresh:
                    yield TaskSuccessEvent(xcoms={"waiting": summary(waiting)})
                    return
            await asyncio.sleep(pause_s)

    def _say(self, problems: tuple[str, ...]) -> None:
        """Log problems when they change: a lasting one is one line, not one a second."""
        if problems == self._said:
            return
        for problem in problems:
            self.log.warning("%s", problem)
        if self._said and not problems:
            self.log.info("All canvases can be looked at again.")
        self._said = problems


@cache
def shared_lookout() -> Lookout:
    """Return the lookout of this process."""
    return Lookout()


def summary(waiting: Waiting) -> dict[str, Any]:
    """Return what may be written into Airflow's database about a look: no row, no name, no sentence."""
    return {"fresh": waiting.fresh, "retry": waiting.retry, "problems": len(waiting.problems)}


def _sentence(error: Exception) -> str:
    # Only our own errors promise to hold no data; of others the class must do.
    text = str(error) if isinstance(error, CriteoSyncError) else type(error).__name__
    return f"Cannot look for people: {text} Trying again."
