"""TroubleNotifier tells each change once, through notifiers of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import BaseNotifier

from criteo_provider.notifications import trouble
from tests.world import World, canvas, step


class Keeping(BaseNotifier):
    """Keeps the sentences it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[list[str]] = []

    def notify(self, context: Any) -> None:
        self.kept.append(context["criteo_news"])


def test_news_go_to_every_notifier_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What changed reaches the notifier given, as sentences; with nothing new it is not called."""
    world = World(f"sqlite:///{tmp_path / 'ledger.db'}")
    world.declare(canvas("vip", step("add")))
    world.ledger.source_failed("vip", "The query has no column 'email'.", now_us=world.now_us)

    class House:
        def take_news(self) -> list[str]:
            return world.ledger.take_news(now_us=world.now_us)

        def close(self) -> None:
            """Nothing is open."""

    monkeypatch.setattr(trouble, "open_house", House)
    mail = Keeping()
    notifier = trouble.TroubleNotifier(mail)
    for _ in range(2):
        notifier.notify({})  # type: ignore[arg-type]
    assert mail.kept == [["Trouble with source vip: The query has no column 'email'."]]
    world.close()
