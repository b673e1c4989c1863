"""Telling people: once when something breaks, in a run that fails; once when it is over, in a run that does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from criteo_provider.hooks import notifiers
from criteo_provider.operators import tell
from criteo_provider.operators.tell import CriteoTellOperator
from criteo_provider.settings.alerts import load_alerts
from criteo_provider.wiring import House
from tests.flow.shop import open_house, sync, write_canvas
from tests.webhook import HTTP_NOTIFIER, NOTIFY, Webhook

BROKEN = "Trouble with source vip: The query has no column 'email'."


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    include = tmp_path / "include"
    write_canvas(include, "vip", sync("add", "Shoppers"))

    def opened() -> House:
        return open_house(include, f"sqlite:///{tmp_path / 'ledger.db'}", "http://127.0.0.1:9", lambda _: None)  # type: ignore[arg-type, return-value]

    monkeypatch.setattr(tell, "open_house", opened)
    monkeypatch.setattr(notifiers, "PAUSE_S", 0)
    house = opened()
    house.ledger.open_work(now_us=1)
    yield house
    house.close()


def alerts(house: House, *notify: dict[str, Any], **more: Any) -> None:
    (house.around.include_folder / "alerts.yaml").write_text(yaml.safe_dump({"notify": list(notify), **more}))


def fail_source(house: House) -> None:
    house.ledger.source_failed("vip", "The query has no column 'email'.", now_us=5)


def execute() -> None:
    CriteoTellOperator(task_id="tell").execute({})  # type: ignore[arg-type]


def test_one_failure_one_alert_and_one_when_it_is_over(house: House, webhook: Webhook) -> None:
    """What breaks fails one run with its sentence and is told once through Airflow's own notifier; so is its end."""
    alerts(house, NOTIFY)
    fail_source(house)
    with pytest.raises(AirflowFailException, match="no column 'email'"):
        execute()
    for _ in range(3):
        with pytest.raises(AirflowSkipException):
            execute()
    house.ledger.healed("source", "vip", now_us=6)
    execute()
    with pytest.raises(AirflowSkipException):
        execute()
    assert webhook.messages == [
        {"text": BROKEN},
        {"text": "Over, source vip works again. It was: The query has no column 'email'."},
    ]


def test_without_notifiers_the_run_alone_tells(house: House) -> None:
    """Nobody has to configure anything: the failed run carries the sentence."""
    fail_source(house)
    with pytest.raises(AirflowFailException, match="no column 'email'"):
        execute()


def test_a_chat_that_is_away_is_asked_again(house: House, webhook: Webhook) -> None:
    """An alert that is refused at first is handed over by another try."""
    alerts(house, NOTIFY)
    webhook.refusals = 2
    fail_source(house)
    with pytest.raises(AirflowFailException) as failure:
        execute()
    assert str(failure.value) == BROKEN
    assert webhook.messages == [{"text": BROKEN}]


def test_an_alert_that_reaches_nobody_is_said_in_the_run(house: House, webhook: Webhook) -> None:
    """A notifier that fails does not keep the others from being called, and the run says which one failed."""
    webhook.refusals = notifiers.TRIES
    alerts(house, {"notifier": "no.such.Notifier"}, NOTIFY, NOTIFY)
    fail_source(house)
    with pytest.raises(AirflowFailException) as failure:
        execute()
    assert str(failure.value).splitlines() == [
        BROKEN,
        "include/alerts.yaml: notify[0].notifier leads to nothing that can be imported. "
        "Correct the path, or install its provider.",
        "The alert could not be handed to HttpNotifier (AirflowException).",
    ]
    assert webhook.messages == [{"text": BROKEN}]


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"notifier": "json.JSONEncoder"}, "notify[0].notifier is no Airflow notifier."),
        (
            {"notifier": HTTP_NOTIFIER, "with": {"channel": "x"}},
            "notify[0].with does not fit HttpNotifier (TypeError).",
        ),
    ],
)
def test_what_is_no_notifier_is_told(house: House, wanted: dict[str, Any], told: str) -> None:
    """A wrong class or wrong arguments are named by their place."""
    alerts(house, wanted)
    fail_source(house)
    with pytest.raises(AirflowFailException) as failure:
        execute()
    assert told in str(failure.value)


def test_a_broken_alerts_file_is_an_alarm_itself(house: House) -> None:
    """A mistake in alerts.yaml is found by the next look, told once, and over when it is mended."""
    alerts(house, late_after="soon", notifiers=[])
    house.alarms.look()
    with pytest.raises(AirflowFailException) as failure:
        execute()
    assert str(failure.value) == (
        "Trouble with setting alerts.yaml: include/alerts.yaml: late_after is not a length of time. "
        "Write numbers with d, h, m or s: 30d, 13h, 1h30m, 5s. "
        "include/alerts.yaml: notifiers is not a key that belongs here. Did you mean notify?"
    )


def test_settings(house: House) -> None:
    """Without a file users are late after 15 minutes; the file may say otherwise."""
    include = house.around.include_folder
    assert load_alerts(include).alerts.late_after_s == 15 * 60
    alerts(house, late_after="2h")
    assert load_alerts(include).alerts.late_after_s == 2 * 3600
    assert load_alerts(include).problems == ()
