"""The ledger takes no writes: one run fails and tells it, others are skipped, and one run tells that it is over."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, DownstreamTasksSkipped
from airflow.sdk.execution_time.context import OutletEventAccessors

from criteo_provider.hooks import standstill
from criteo_provider.notifications import trouble
from criteo_provider.notifications.trouble import TroubleNotifier
from criteo_provider.operators import tell, upload
from criteo_provider.operators.tell import CriteoTellOperator
from criteo_provider.operators.upload import CriteoAudienceUploadOperator
from criteo_provider.sandbox.running import Sandbox
from criteo_provider.wiring import House
from tests.airflow.test_notifier import Keeping
from tests.disk import room_for
from tests.flow.shop import Person, Shop, open_house, sync, write_canvas
from tests.postgres import PostgresServer
from tests.webhook import NOTIFY, Webhook


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Airflow's Variables, in memory."""
    kept: dict[str, str] = {}
    fake = SimpleNamespace(
        get=lambda key, default: kept.get(key, default),
        set=lambda key, value, description: kept.update({key: value}),
        delete=lambda key: kept.pop(key, None),
    )
    monkeypatch.setattr(standstill, "Variable", fake)
    monkeypatch.setattr(standstill, "SETTLES_S", 0.0)
    return kept


@pytest.fixture
def open_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox, shop: Shop
) -> Callable[[str], Callable[[], House]]:
    """Have all tasks open the house whose ledger is at a URL."""
    include = tmp_path / "include"
    write_canvas(include, "vip", sync("add", "Shoppers"))
    (include / "alerts.yaml").write_text(yaml.safe_dump({"notify": [NOTIFY]}))

    def at(url: str) -> Callable[[], House]:
        opened = lambda: open_house(include, url, sandbox.url, shop.source)  # noqa: E731
        for room in (upload, tell, trouble):
            monkeypatch.setattr(room, "open_house", opened)
        monkeypatch.setattr(upload, "include_folder", lambda: include)
        return opened

    return at


def run(role: Any) -> None:
    """What a run of either DAG does."""
    context: Any = {"outlet_events": OutletEventAccessors(), "ti": SimpleNamespace(xcom_push=lambda _key, _value: None)}
    with suppress(DownstreamTasksSkipped):
        CriteoAudienceUploadOperator(task_id="upload", role=role, tell="tell").execute(context)
        CriteoTellOperator(task_id="tell").execute(context)


def test_a_full_disk_is_told_once_and_so_is_its_end(
    open_at: Callable[[str], Callable[[], House]], sqlite_url: str, shop: Shop, webhook: Webhook, variables: Any
) -> None:
    """One failed run with the sentence and one alert, then skipped runs; with room, one run that says it is over."""
    opened = open_at(sqlite_url)
    run("fresh")
    shop.add(Person(number) for number in range(1, 800))
    with room_for(0, sqlite_url):
        with pytest.raises(AirflowFailException, match=r"^There is no room left on the disk of the ledger"):
            run("fresh")
        for role in ("fresh", "retry", "fresh"):
            with pytest.raises(AirflowSkipException):
                run(role)
        assert len(webhook.messages) == 1
    run("fresh")
    begun, over = (message["text"] for message in webhook.messages)
    assert begun.startswith("There is no room left on the disk of the ledger")
    assert over.startswith("Over: the ledger is written again. Since 2")
    assert over.endswith(begun)
    assert not variables
    with closing(opened()) as house:
        assert house.prove() == []
        assert house.numbers()[0].synced > 600


def test_a_server_that_is_away_is_told_alike(
    open_at: Callable[[str], Callable[[], House]], durable_postgres: PostgresServer, shop: Shop, webhook: Webhook
) -> None:
    """A ledger that cannot even be read is one failed run, one alert and one end in either DAG; hosts are not named."""
    open_at(durable_postgres.url())
    run("fresh")
    shop.add(Person(number) for number in range(1, 8))
    durable_postgres.stop()
    with pytest.raises(AirflowFailException) as failed:
        run("retry")
    assert failed.value.__cause__ is failed.value.__context__ is None
    assert str(failed.value).startswith("There is no way to the ledger's PostgreSQL server;")
    for role in ("fresh", "retry"):
        with pytest.raises(AirflowSkipException, match="told already"):
            run(role)
    durable_postgres.start()
    run("fresh")
    begun, over = (message["text"] for message in webhook.messages)
    assert begun == str(failed.value)
    assert over.startswith("Over: the ledger is written again. ")


def test_of_two_that_find_it_at_once_one_tells(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """However two tasks overlap, one of them tells; who comes later knows."""
    monkeypatch.setattr(standstill, "SETTLES_S", 0.5)
    at_once = Barrier(2)

    def keep(key: str, value: str, description: str) -> None:
        at_once.wait()
        variables[key] = value

    monkeypatch.setattr(standstill.Variable, "set", keep)
    with ThreadPoolExecutor(2) as threads:
        assert sorted(threads.map(lambda role: standstill.begin("No room.", role), ("fresh", "retry"))) == [False, True]
    assert standstill.begin("No room.", "fresh") is False


@pytest.mark.parametrize("edited", ["", "nothing", "[]", '{"sentence": "Full."}'])
def test_what_was_edited_by_hand_is_no_standstill(
    variables: dict[str, str], edited: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Variable that holds something else stops no run, and the next standstill is told."""
    monkeypatch.setattr(standstill, "SETTLES_S", 0.0)
    variables[standstill.VARIABLE] = edited
    assert standstill.known() is None
    assert standstill.begin("The disk is full.", "fresh")
    assert standstill.known() is not None


def test_a_run_that_writes_little_ends_nothing(
    open_at: Callable[[str], Callable[[], House]], sqlite_url: str, webhook: Webhook
) -> None:
    """What a run with new people has met is over when one with new people gets through, not when a retry does."""
    opened = open_at(sqlite_url)
    run("fresh")
    assert standstill.begin("No room.", "fresh")
    with closing(opened()) as house:
        retry = CriteoAudienceUploadOperator(task_id="retry", role="retry", tell="tell")
        retry._go_on(house)
        assert not house.alarms.is_untold()
    run("fresh")
    assert [message["text"].partition(".")[0] for message in webhook.messages] == ["Over: the ledger is written again"]


def test_two_that_find_it_over_tell_it_once(open_at: Callable[[str], Callable[[], House]], sqlite_url: str) -> None:
    """The end of one standstill is one message, whoever was killed before forgetting it; the next one is another."""
    with closing(open_at(sqlite_url)()) as house:
        for since in ("10:00", "10:00", "11:00"):
            house.alarms.written_again(since, "No room.")
        assert [one.is_broken for one in house.alarms.take()] == [False, False]


def test_a_callback_of_the_task_that_fails_tells_it(
    open_at: Callable[[str], Callable[[], House]], durable_postgres: PostgresServer
) -> None:
    """TroubleNotifier tells it where a task has failed, which one does; where one was skipped it keeps silent."""
    open_at(durable_postgres.url())
    durable_postgres.stop()
    mail = Keeping()
    for context in ({"exception": AirflowFailException("No way.")}, {}):
        TroubleNotifier(mail).notify(context)  # type: ignore[arg-type]
    ((sentence,),) = mail.kept
    assert sentence.startswith("There is no way to the ledger's PostgreSQL server;")
