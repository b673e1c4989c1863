"""Alarms: what people have to be told of, each change once, and who is to be told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

from criteo_provider.settings.alerts import FILE, AlertSettings, Notify, load_alerts
from criteo_provider.store.alarms import News
from criteo_provider.store.ledger import Ledger
from criteo_provider.wiring.surroundings import Surroundings


class Alarms:
    """The facet of the house about changes of state."""

    def __init__(self, around: Surroundings, ledger: Callable[[], Ledger], now_us: Callable[[], int]) -> None:
        self._around, self._ledger, self._now_us = around, ledger, now_us

    def look(self) -> None:
        """See whether users have waited for too long, or do no more."""
        settings, now_us = self._settings, self._now_us()
        self._ledger().look_for_alarms(late_after_s=settings.alerts.late_after_s, now_us=now_us)
        if settings.problems:
            sentence = " ".join(map(str, settings.problems))
            self._ledger().trouble("setting", FILE, code="misconfigured", sentence=sentence, now_us=now_us)
        else:
            self._ledger().healed("setting", FILE, now_us=now_us)

    def written_again(self, since: str, sentence: str) -> None:
        """Have it told that the ledger takes writes again, which it has not since then."""
        self._ledger().written_again(since, sentence, now_us=self._now_us())

    def is_untold(self) -> bool:
        """Tell whether something has changed that nobody was told of yet."""
        return self._ledger().is_untold()

    def take(self) -> list[News]:
        """Return the changes nobody was told of yet; whoever takes them tells them."""
        return self._ledger().take_alarms(now_us=self._now_us())

    def put_back(self, untold: Sequence[News]) -> None:
        """Leave these changes to be told by somebody else."""
        self._ledger().put_back_news([one.id for one in untold])

    @property
    def notify(self) -> tuple[Notify, ...]:
        """The notifiers that are to be called."""
        return self._settings.alerts.notify

    @cached_property
    def _settings(self) -> AlertSettings:
        return load_alerts(self._around.include_folder)
