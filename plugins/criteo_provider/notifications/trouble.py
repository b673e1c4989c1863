"""TroubleNotifier: one message when something breaks or people are given up, and one when it works again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseNotifier

from criteo_provider.core.errors import LedgerUnwritable
from criteo_provider.hooks.surroundings import open_house

if TYPE_CHECKING:
    from airflow.sdk import Context


class TroubleNotifier(BaseNotifier):
    """Hands what has changed to notifiers of yours; silent while nothing has, so any callback may call it.

    The sentences stand in the context as ``criteo_news``; a template uses them::

        TroubleNotifier(SlackNotifier(text="{{ criteo_news | join('\\n') }}", channel="#growth"))

    Each change is told once, whoever asks first.

    :param notifiers: Airflow notifiers (mail, Slack, webhook, …) that are called with the sentences
    """

    template_fields: Sequence[str] = ()

    def __init__(self, *notifiers: BaseNotifier, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.notifiers = notifiers

    def notify(self, context: Context) -> None:
        """Tell what has changed since the last time, if anything has."""
        try:
            with closing(open_house()) as house:
                news = house.take_news()
        except LedgerUnwritable as error:
            # One task fails for it, however long it lasts.
            news = [str(error)] if context.get("exception") else []
        if not news:
            return
        for sentence in news:
            self.log.warning("%s", sentence)
        for notifier in self.notifiers:
            notifier({**context, "criteo_news": news})
