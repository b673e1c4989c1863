"""CriteoTellOperator: tells people, once, what has broken and what works again; fails when something is broken."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from criteo_provider.hooks.notifiers import tell_all
from criteo_provider.hooks.surroundings import open_house

if TYPE_CHECKING:
    from airflow.sdk import Context


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
            unreached = tell_all(house.alarms.notify, context, sentences, is_broken=is_broken)
        if is_broken or unreached:
            raise AirflowFailException("\n".join([*sentences, *unreached]))
