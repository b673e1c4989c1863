"""SegmentEntrySensor: succeeds when people may enter a canvas or a first attempt is due."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator
from airflow.triggers.base import StartTriggerArgs

from criteo_provider.triggers.segment import SegmentEntryTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context


class SegmentEntrySensor(BaseSensorOperator):
    """Waits for people in the triggerer, from start to end: no worker slot is held, and none is needed to begin.

    It looks at every canvas at once, and only looks: reading rows is the upload operator's part. It waits for as
    long as it takes; a broken source or an unreachable ledger does not fail it.

    :param poll_interval_s: seconds between looks
    :param hold_back_after: id of the upload task of the same DAG: after it failed, the next run waits ten seconds at
        first, a quarter of an hour at last, or until a canvas is edited; None: never
    """

    start_from_trigger = True

    def __init__(self, *, poll_interval_s: float = 1.0, hold_back_after: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.poll_interval_s = poll_interval_s
        self.hold_back_after = hold_back_after
        classpath, arguments = self._trigger().serialize()
        self.start_trigger_args = StartTriggerArgs(
            trigger_cls=classpath, trigger_kwargs=arguments, next_method="done", next_kwargs=None, timeout=None
        )

    def execute(self, context: Context) -> None:
        """Go to the triggerer; the way of executors and tests that start every task in a worker."""
        self.defer(trigger=self._trigger(), method_name="done")

    def done(self, context: Context, event: Any = None) -> None:
        """End, where Airflow resumes the task in a worker instead of ending it in the triggerer."""

    def _trigger(self) -> SegmentEntryTrigger:
        return SegmentEntryTrigger(self.poll_interval_s, self.hold_back_after)
