"""Three hours of revoked consent under a real scheduler: few runs, one of them failed, one alert, one when it is over.

A second stands for a minute: what is broken is probed after 1, 2, 4, 8 and then every 15 seconds
(`[criteo] first_probe_s`), people come all the time, and three hours last three minutes.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml

from criteo_provider.sandbox.running import Sandbox, running_sandbox
from criteo_provider.sandbox.state import CLIENT_ID, CLIENT_SECRET
from tests.flow.shop import Person, Shop, open_house, sync, write_canvas

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import local_airflow
from processes import Household

SYNC, RETRY = "criteo_audience_sync", "criteo_audience_retry"
THREE_HOURS_S = 180.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


class Chat(HTTPServer):
    """Keeps the messages it is sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Post)
        self.messages: list[str] = []


class _Post(BaseHTTPRequestHandler):
    server: Chat

    def do_POST(self) -> None:
        self.server.messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Deployment:
    """Airflow with both DAGs, a sandbox, a shop where people come in, and a chat."""

    def __init__(self, place: Path, household: Household, sandbox: Sandbox, chat: Chat) -> None:
        self.place, self.household, self.sandbox, self.chat = place, household, sandbox, chat
        self.shop, self.include = Shop(place / "shop.db"), place / "include"
        self._people = (number for number in count(1) if number % 10 and number % 7)  # with an address and a yes to ads
        self.airflow = local_airflow.LocalAirflow(place / "airflow", place / "ledger.db", usual_ports=False)

    def start(self) -> None:
        write_canvas(self.include, "vip", sync("add", "Shoppers"))
        notify = {
            "notifier": "airflow.providers.http.notifications.http.HttpNotifier",
            "with": {"http_conn_id": "chat", "json": {"text": "{{ criteo_news | join(' / ') }}"}},
        }
        (self.include / "alerts.yaml").write_text(yaml.safe_dump({"notify": [notify]}))
        settings = {"INCLUDE_FOLDER": str(self.include), "FIRST_PROBE_S": "1"}
        self.airflow.environment.update({f"AIRFLOW__CRITEO__{name}": value for name, value in settings.items()})
        self.airflow.start(self.household)
        self.airflow.connect("shop", conn_type="sqlite", host=str(self.shop.path))
        self.airflow.connect("chat", conn_type="http", host="127.0.0.1", port=self.chat.server_port)
        self.airflow.connect(
            "criteo_default", conn_type="criteo", host=self.sandbox.url, login=CLIENT_ID, password=CLIENT_SECRET
        )
        for dag_id in (SYNC, RETRY):
            self.airflow.unpause(dag_id)

    def come(self) -> None:
        """Let somebody new come into the shop."""
        self.shop.add([Person(next(self._people))])

    def numbers(self) -> tuple[int, int, int, int]:
        """Entered, Synced, Pending, Errored."""
        with closing(self._house()) as house:
            return next(((one.entered, one.synced, one.pending, one.errored) for one in house.numbers()), (0, 0, 0, 0))

    def laws(self) -> list[str]:
        with closing(self._house()) as house:
            return house.prove()

    def _house(self) -> Any:
        url = f"sqlite:///{self.place / 'ledger.db'}"
        return open_house(self.include, url, self.sandbox.url, self.shop.source)

    def until(self, met: Callable[[], bool], *, within_s: float) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + within_s
        while not met():
            self.household.check()
            assert time.monotonic() < deadline, self.household.last_words("airflow")
            time.sleep(0.5)

    def ended(self, dag_id: str) -> list[dict[str, Any]]:
        return [run for run in self.airflow.runs(dag_id) if run["end_date"]]


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    monkeypatch.setattr(local_airflow, "READY_WITHIN_S", 400.0)  # however busy this machine is
    (tmp_path / "logs").mkdir()
    with running_sandbox(limit=60_000) as sandbox, Chat() as chat, Household(tmp_path / "logs") as household:
        threading.Thread(target=chat.serve_forever, daemon=True).start()
        deployment = Deployment(tmp_path, household, sandbox, chat)
        deployment.start()
        yield deployment
        chat.shutdown()


def test_three_hours_of_revoked_consent(deployment: Deployment) -> None:
    """While consent is revoked for three hours and people keep coming, Airflow shows one failed run and says it once.

    When consent is given again everybody is synced with no click, and that is said once too.
    """
    deployment.come()
    deployment.until(lambda: deployment.numbers()[1] == 1, within_s=400)
    before = {run["dag_run_id"] for run in deployment.ended(SYNC)}
    entered = 1
    deployment.sandbox.throw("consent-revoked")
    revoked_s = time.monotonic()
    while time.monotonic() - revoked_s < THREE_HOURS_S:
        deployment.come()
        entered += 1
        deployment.household.check()
        time.sleep(3)
    during = [run for run in deployment.ended(SYNC) if run["dag_run_id"] not in before]
    assert len(during) <= 20
    assert [run["state"] for run in during].count("failed") == 1
    assert len(deployment.chat.messages) == 1, deployment.chat.messages
    assert deployment.chat.messages[0].startswith("Trouble with ")

    deployment.sandbox.take_back("consent-revoked")
    deployment.until(lambda: len(deployment.chat.messages) == 2, within_s=300)
    deployment.airflow.trigger(RETRY)  # which comes every five minutes by itself
    deployment.until(lambda: deployment.numbers() == (entered, entered, 0, 0), within_s=300)
    assert deployment.chat.messages[1].startswith("Over, ")
    failed = [run for dag_id in (SYNC, RETRY) for run in deployment.ended(dag_id) if run["state"] == "failed"]
    assert len(failed) == 1
    assert deployment.airflow.task_states(failed[0]["dag_id"], failed[0]["dag_run_id"])["tell"] == "failed"
    assert deployment.laws() == []
