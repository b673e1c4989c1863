"""RetryDueTrigger: sees, without a worker, whether the retry DAG has something to do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TaskSkippedEvent, TriggerEvent

from criteo_provider.triggers.segment import shared_lookout


class RetryDueTrigger(BaseTrigger):
    """Skips its task at once, with no worker, when nothing is due for another try; else a worker takes it.

    A worker takes it, too, when the look fails: it says what is wrong better than a trigger can.

    :param tells: whether there is something to do when there is only something to tell
    """

    def __init__(self, *, tells: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's own
        self.tells = tells

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the path and the arguments this trigger is rebuilt from; the path never changes."""
        return "criteo_provider.triggers.retry.RetryDueTrigger", {"tells": self.tells}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look once, and yield one event without data."""
        try:
            is_due = await shared_lookout().is_retry_due(tells=self.tells)
        except Exception as error:
            self.log.warning("Whether a retry is due cannot be seen here (%s): a worker looks.", type(error).__name__)
            is_due = True
        if not is_due:
            self.log.info("Nothing is due for another try.")
        yield TriggerEvent({}) if is_due else TaskSkippedEvent()
