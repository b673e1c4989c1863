"""CriteoTellOperator: tells people, once, what has broken and what works again; fails when something is broken."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from criteo_provider.core.errors import CriteoSyncError
from criteo_provider.hooks.notifiers import made, tell
from criteo_provider.hooks.surroundings import open_house

if TYPE_CHECKING:
    from airflow.sdk import Context

    from criteo_provider.wiring.alarms import Alarms

# A chat that does not answer is asked again.
TRIES = 3


class CriteoTellOperator(BaseOperator):
    """Calls the notifiers of ``include/alerts.yaml`` with every change of state nobody was told of yet.

    Fails, with the sentences as its error, when something has broken since the last time and still is: so a bad
    state makes exactly one failed run, however long it lasts. When it works again one run ends with this task green;
    in all other runs it is skipped.
    """

    ui_color = "#fdebc8"

    def execute(self, context: Context) -> None:
        """Tell what has changed; the sentences name canvases, connections and audiences, and never a person."""
        with closing(open_house()) as house:
            news = house.alarms.take()
            if not news:
                raise AirflowSkipException("Nothing has changed.")
            for one in news:
                (self.log.error if one.is_broken else self.log.info)("%s", one.sentence)
            sentences = [one.sentence for one in news]
            is_broken = any(one.is_broken for one in news)
            unreached = self._notify(house.alarms, {**context, "criteo_news": sentences, "criteo_is_broken": is_broken})
        if is_broken or unreached:
            raise AirflowFailException("\n".join([*sentences, *unreached]))

    def _notify(self, alarms: Alarms, context: dict[str, Any]) -> list[str]:
        """Call every notifier; return one sentence for each that could not be reached."""
        unreached = []
        for number, wanted in enumerate(alarms.notify):
            try:
                tell(made(number, wanted), context, tries=TRIES)
            except CriteoSyncError as error:
                unreached.append(str(error))
            else:
                self.log.info("Told %s.", wanted.notifier)
        return unreached
