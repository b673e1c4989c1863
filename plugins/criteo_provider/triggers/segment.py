"""SegmentEntryTrigger: waits in the triggerer until people may enter a canvas or a first attempt is due."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from functools import cache
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TaskSuccessEvent, TriggerEvent

from criteo_provider.core.errors import CriteoSyncError
from criteo_provider.hooks import airflow_inside
from criteo_provider.hooks.lookout import Lookout, canvases_stamp

if TYPE_CHECKING:
    from criteo_provider.wiring import Waiting

# A failing look is repeated less and less often, so a dead database is neither hammered nor forgotten.
LONGEST_PAUSE_S = 30.0
# 10 seconds, 20, 40 … then a quarter of an hour: a worker that was killed once costs little, and a lasting trouble
# makes less than 20 runs in three hours.
SHORTEST_HOLD_S, LONGEST_HOLD_S = 10.0, 900.0


class SegmentEntryTrigger(BaseTrigger):
    """Ends its task, with no worker, as soon as a source is ahead of its cursor or something is due.

    All triggers of a process share one look at all canvases. Nothing ends the wait but work: a source that
    cannot be looked at, or a ledger that does not answer, is one line in the log and another try.

    After a failed upload it holds back before it looks, ten seconds at first, a quarter of an hour at last, so that a
    DAG that begins anew at once does not fail a thousand times an hour. Editing a canvas ends that pause.

    :param poll_interval_s: seconds between looks
    :param hold_back_after: id of the task of the same DAG whose failure is to be held back after; None: never
    """

    def __init__(self, poll_interval_s: float = 1.0, hold_back_after: str | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's own
        self.poll_interval_s = poll_interval_s
        self.hold_back_after = hold_back_after
        self._said: tuple[str, ...] = ()

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the path and the arguments this trigger is rebuilt from; the path never changes."""
        arguments = {"poll_interval_s": self.poll_interval_s, "hold_back_after": self.hold_back_after}
        return "criteo_provider.triggers.segment.SegmentEntryTrigger", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look until there is work, then yield one event with counts only."""
        await self._hold_back()
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

    async def _hold_back(self) -> None:
        if self.hold_back_after is None or self.task_instance is None:
            return
        dag_id = self.task_instance.dag_id
        try:
            # Skipped is an upload that the ledger still stands in the way of.
            failed = await airflow_inside.times_ended(dag_id, self.hold_back_after, "failed", "skipped")
            succeeded = await airflow_inside.times_ended(dag_id, self.hold_back_after, "success")
        except Exception as error:  # not knowing is no reason to keep people waiting
            self.log.warning("Airflow does not say how the last upload ended: %s", type(error).__name__)
            return
        pause_s = _failures.pause_s(dag_id, failed=failed, succeeded=succeeded)
        if not pause_s:
            return
        self.log.warning("The last upload failed; the next one waits %.0f s, or until a canvas is edited.", pause_s)
        edited, until_s = canvases_stamp(), time.monotonic() + pause_s
        while time.monotonic() < until_s and canvases_stamp() == edited:  # noqa: ASYNC110 (a file tells nobody)
            await asyncio.sleep(self.poll_interval_s)

    def _say(self, problems: tuple[str, ...]) -> None:
        """Log problems when they change: a lasting one is one line, not one a second."""
        if problems == self._said:
            return
        for problem in problems:
            self.log.warning("%s", problem)
        if self._said and not problems:
            self.log.info("All canvases can be looked at again.")
        self._said = problems


class FailuresInARow:
    """Counts, for each DAG, the failures this process has seen with no success between, and how long to pause."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, int, int]] = {}

    def pause_s(self, dag_id: str, *, failed: int, succeeded: int) -> float:
        """Return the seconds to pause when the upload has failed and succeeded so many times up to now."""
        failed_before, succeeded_before, in_a_row = self._seen.get(dag_id, (failed, succeeded, 0))
        # Fewer failures than before: Airflow's own cleaning has removed old runs.
        if succeeded > succeeded_before or failed < failed_before:
            in_a_row = 0
        else:
            in_a_row += failed - failed_before
        self._seen[dag_id] = (failed, succeeded, in_a_row)
        return min(SHORTEST_HOLD_S * 2.0 ** (in_a_row - 1), LONGEST_HOLD_S) if in_a_row else 0.0


_failures = FailuresInARow()


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
