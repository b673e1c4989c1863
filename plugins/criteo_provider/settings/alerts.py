"""Alerts: whom to tell when something breaks and when it works again, as ``alerts.yaml`` declares it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from criteo_provider.settings.canvas import Block, Seconds, Text
from criteo_provider.settings.documents import read_document
from criteo_provider.settings.problems import Finding, Problem

FILE = "alerts.yaml"


class Notify(Block):
    """One Airflow notifier: the path of its class, and what it is made with."""

    notifier: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")] = Field(
        examples=["airflow.providers.slack.notifications.slack_webhook.SlackWebhookNotifier"]
    )
    arguments: dict[Text, Any] = Field(
        default={}, alias="with", examples=["{text: \"{{ criteo_news | join('\\n') }}\"}"]
    )


class Alerts(Block):
    """Who is told, and from when on pending users are late."""

    late_after_s: Seconds = Field(default=15 * 60, alias="late_after", examples=["15m"])
    notify: tuple[Notify, ...] = Field(default=(), examples=["[{notifier: ..., with: {...}}]"])


@dataclass(frozen=True, slots=True)
class AlertSettings:
    """What ``alerts.yaml`` says, or what would be without it, and what is wrong with it."""

    alerts: Alerts
    problems: tuple[Problem, ...] = ()


def load_alerts(include_folder: Path) -> AlertSettings:
    """Read ``alerts.yaml`` of the include folder; without the file nobody is told but whoever looks at the runs."""
    file = include_folder / FILE
    if not file.exists():
        return AlertSettings(Alerts())
    alerts, problems = read_document(
        file, include_folder, Alerts, _check, noun="setting", first_keys="late_after, notify"
    )
    return AlertSettings(alerts or Alerts(), problems)


def _check(_data: Mapping[str, object]) -> Iterator[Finding]:
    return iter(())
