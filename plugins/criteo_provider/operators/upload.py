"""CriteoAudienceUploadOperator: takes people from the sources to Criteo, until there is nothing left to do."""

from __future__ import annotations

import threading
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from airflow.sdk import AssetAlias, BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException, DownstreamTasksSkipped
from airflow.triggers.base import StartTriggerArgs

from criteo_provider.core.errors import LedgerUnwritable
from criteo_provider.hooks import airflow_inside, assets, standstill
from criteo_provider.hooks.lookout import is_retry_due
from criteo_provider.hooks.notifiers import tell_all
from criteo_provider.hooks.surroundings import include_folder, open_house
from criteo_provider.settings.alerts import load_alerts
from criteo_provider.triggers.retry import RetryDueTrigger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.sdk import Context

    from criteo_provider.wiring import House, Progress, StepNumbers

# Long enough that a backfill is not slowed by starting tasks, short enough that a deployment is not held up.
LONGEST_DRAIN_S = 15 * 60.0


class CriteoAudienceUploadOperator(BaseOperator):
    """Enters new people and uploads whoever is due, side by side, until both are dry for one flush interval.

    Returns counts only. Publishes an asset event for each audience people were synced to, and counters.
    Nobody's failed upload fails the task: people stay pending in the ledger and are tried again for about 13 hours.

    A change of state that people have to be told of ends the drain early; the next run goes on. Where the ledger takes
    no writes one run fails, and tells it if ``tell`` is given; others are skipped until it is over.

    :param role: ``fresh`` takes new people, first attempts and short retries; ``retry`` the rest of what is due,
        and skips itself, in the triggerer and without a worker, when that is nothing
    :param longest_drain_s: seconds after which the task ends even if there is more to do; the next run goes on
    :param tell: id of the CriteoTellOperator downstream, which is skipped when there is nothing to tell
    """

    ui_color = "#ffe8d9"

    def __init__(
        self,
        *,
        role: Literal["fresh", "retry"] = "fresh",
        longest_drain_s: float = LONGEST_DRAIN_S,
        tell: str | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("outlets", [AssetAlias(assets.ALIAS)])
        super().__init__(**kwargs)
        self.role = role
        self.longest_drain_s = longest_drain_s
        self.tell = tell
        if role == "retry":
            self.start_from_trigger = True
            classpath, arguments = RetryDueTrigger(tells=tell is not None).serialize()
            self.start_trigger_args = StartTriggerArgs(
                trigger_cls=classpath, trigger_kwargs=arguments, next_method="resume", next_kwargs=None, timeout=None
            )
        self._stop: threading.Event | None = None
        self._told: Progress | None = None

    def execute(self, context: Context) -> dict[str, int]:
        """Drain, then report what was done; where the ledger takes no writes, that is told once."""
        try:
            return self._upload(context)
        except LedgerUnwritable as error:
            sentence = str(error)
        # What drivers say beside that names hosts and logins.
        raise self._standing_still(sentence, context)

    def resume(self, context: Context, event: Any = None) -> dict[str, int]:
        """Drain after the triggerer has seen that something is due."""
        return self.execute(context)

    def _upload(self, context: Context) -> dict[str, int]:
        self._stop = threading.Event()
        with closing(open_house()) as house:
            if self.role == "retry" and not is_retry_due(house, house.waiting(), tells=self.tell is not None):
                raise AirflowSkipException("Nothing is due for another try.")
            before = {(step.canvas, step.step): step for step in house.numbers()}
            done = self._drain(house, self._stop)
            moved = [_Moved(step, before.get((step.canvas, step.step))) for step in house.numbers()]
            self._go_on(house)
            is_untold = self.tell is not None and house.alarms.is_untold()
        self._show([each for each in moved if each.is_so])
        self._announce(moved, context)
        counts = self._count(done)
        if self.tell is not None and not is_untold:
            # The scheduler skips it by itself: no worker is started to say nothing.
            context["ti"].xcom_push("return_value", counts)
            raise DownstreamTasksSkipped(tasks=[self.tell])
        return counts

    def _standing_still(self, sentence: str, context: Context) -> AirflowException:
        """Tell it once, and return what fails this run; as long as it lasts, others are skipped."""
        if not standstill.begin(sentence, self.role):
            return AirflowSkipException(f"It was told already, and lasts. {sentence}")
        notify = load_alerts(include_folder()).alerts.notify if self.tell is not None else ()
        unreached = tell_all(notify, context, [sentence], is_broken=True)
        return AirflowFailException("\n".join([sentence, *unreached]))

    def _go_on(self, house: House) -> None:
        """Have it told that a standstill is over, unless a run that writes less than the one it stopped says so."""
        was = standstill.known()
        if was is not None and self.role in ("fresh", was.role):
            house.alarms.written_again(was.since, was.sentence)
            standstill.end()

    def on_kill(self) -> None:
        """Let the drain end after the requests in flight; what was claimed and not sent goes back by itself."""
        if self._stop is not None:
            # Called inside a signal handler of the thread that may be waiting on this very event.
            threading.Thread(target=self._stop.set).start()

    def _drain(self, house: House, stop: threading.Event) -> Progress:
        self.log.info("::group::Progress")
        # What nobody could be told of before must not keep people from being sent: only news of this drain ends it.
        may_end_early = self.tell is not None and not house.alarms.is_untold()

        def progressed(progress: Progress) -> None:
            self._log_progress(progress)
            if may_end_early and house.alarms.is_untold():
                stop.set()

        done = house.drain(self.role, stop=stop, max_s=self.longest_drain_s, on_progress=progressed)
        self.log.info("::endgroup::")
        return done

    def _log_progress(self, progress: Progress) -> None:
        told, self._told = self._told, progress
        for remark in progress.remarks:
            if told is None or remark not in told.remarks:
                self.log.info("%s", remark)
        if told is not None and replace(told, remarks=progress.remarks) == progress:
            return
        self.log.info(
            "%s people entered; %s requests, %s of them accepted, with %s identifiers",
            *(f"{n:,}" for n in (progress.entered, progress.requests, progress.accepted, progress.identifiers)),
        )

    def _show(self, moved: Sequence[_Moved]) -> None:
        """Log the seven metrics of the steps that moved."""
        for step in (each.step for each in moved):
            numbers = {
                "Entered": step.entered,
                "Proceeded to Next Step": step.proceeded,
                "Users Synced": step.synced,
                "Users Not Synced": step.not_synced,
                "Users Pending": step.pending,
                "Users Errored": step.errored,
                "Exited Canvas": step.exited,
            }
            said = ", ".join(f"{name} {number:,}" for name, number in numbers.items())
            self.log.info("%s, step %s (%s %r): %s", step.canvas, step.step, step.operation, step.audience, said)

    def _announce(self, moved: Sequence[_Moved], context: Context) -> None:
        """Publish an asset event for each audience that people were newly synced to, with how many."""
        events = context["outlet_events"][AssetAlias(assets.ALIAS)].asset_alias_events
        for each in moved:
            if each.newly_synced > 0:
                step = each.step
                what = {"operation": step.operation, "canvas": step.canvas, "step": step.step}
                name = assets.audience_name(step.ad_account, step.audience)
                uri = assets.audience_uri(step.ad_account, step.audience)
                events.append(airflow_inside.asset_event(assets.ALIAS, name, uri, {**what, "users": each.newly_synced}))

    def _count(self, done: Progress) -> dict[str, int]:
        """Add to Airflow's metrics, and return the same counts for XCom."""
        counts = {
            "entered": done.entered,
            "requests": done.requests,
            "accepted_requests": done.accepted,
            "identifiers": done.identifiers,
            "errored": done.given_up,
        }
        for name, number in counts.items():
            airflow_inside.count(f"criteo_audience_sync.{name}", number)
        return counts


@dataclass(frozen=True)
class _Moved:
    """The numbers of a step after a drain, beside those before it."""

    step: StepNumbers
    before: StepNumbers | None

    @property
    def is_so(self) -> bool:
        """Whether anything changed but the time."""
        if self.before is None:
            return self.step.entered > 0
        return replace(self.before, as_of_us=self.step.as_of_us) != self.step

    @property
    def newly_synced(self) -> int:
        """How many users became Synced."""
        return self.step.synced - (self.before.synced if self.before else 0)
