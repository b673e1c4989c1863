"""An Airflow that runs for a whole module, with the sandbox as Criteo: what users do to it, and what they see of it."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import local_airflow
import pytest
from local_airflow import LocalAirflow
from processes import Household

from criteo_provider.sandbox.app import create_app
from criteo_provider.sandbox.running import Sandbox, running_sandbox
from criteo_provider.sandbox.state import World
from tests.e2e.people import Person, Shop
from tests.postgres import PostgresServer
from tests.sandbox.judges import Exchange, recording

SYNC, RETRY = "criteo_audience_sync", "criteo_audience_retry"
PATIENCE_S = 150.0
NOTHING: Mapping[str, str] = MappingProxyType({})
REDIRECT = "https://airflow.example.com/criteo/callback"

CANVAS = """
name: {name}
owner: tests
connection: {connection}
entry:
  user_key: customer_id
  source:
    sql: {{connection: shop, query: segments/{canvas}.sql, cursor: [updated_at, customer_id], late_commit: 1s}}
  identifiers: {{email: email, madid: maid}}
  consent: {{require: {{ads_tracking_enabled: true}}}}
steps:
  - id: add
    audience_sync: {{operation: add, ad_account: "{ad_account}", audience: "{audience}", fields: [email, madid]}}
"""


@dataclass
class Live:
    """The running house, seen from outside."""

    place: Path
    airflow: LocalAirflow
    household: Household
    sandbox: Sandbox
    shop: Shop
    exchanges: list[Exchange]
    shown: list[str] = field(default_factory=list)
    """Everything a page or a command ever showed."""

    # --- what users do

    def declare(
        self,
        canvas: str,
        audience: str,
        ad_account: str = "1001",
        where: str = "1 = 1",
        connection: str = "criteo_default",
    ) -> None:
        """Put a canvas file with one step into the include folder, as somebody who deploys does."""
        segment = self.airflow.include / "segments" / f"{canvas}.sql"
        segment.write_text(f"SELECT * FROM customers WHERE {where}")
        text = CANVAS.format(
            name=canvas.title(), canvas=canvas, audience=audience, ad_account=ad_account, connection=connection
        )
        (self.airflow.include / "canvases" / f"{canvas}.yaml").write_text(text)

    def connect(self, conn_id: str, **extra: str) -> None:
        """Make or change a Criteo connection to the sandbox, as one does under Admin > Connections."""
        parts = {
            "connection_id": conn_id,
            "conn_type": "criteo",
            "host": self.sandbox.url,
            "login": self.sandbox.client_id,
            "password": self.sandbox.client_secret,
            "extra": json.dumps(extra),
        }
        if self.airflow.ask("GET", f"/connections/{conn_id}", may_miss=True) is None:
            self.airflow.ask("POST", "/connections", json=parts)
        else:
            self.airflow.ask("PATCH", f"/connections/{conn_id}", json=parts)

    def consent(self) -> str:
        """Consent at Criteo without a browser; return the refresh token."""
        code = self.sandbox.new_code(REDIRECT, ["1001", "1002"])
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": REDIRECT,
            "client_id": self.sandbox.client_id,
            "client_secret": self.sandbox.client_secret,
        }
        return str(httpx.post(f"{self.sandbox.url}/oauth2/token", data=form, timeout=30).json()["refresh_token"])

    def choose(self, conn_id: str, ad_account: str) -> None:
        """Choose an ad account on the Accounts page."""
        path = f"{self.airflow.url}/audience-sync/api/connections/{conn_id}/choice"
        choice = {"ad_accounts": [ad_account]}
        answer = httpx.post(path, headers=self.airflow.headers, json=choice, timeout=60)
        assert answer.is_success, answer.text

    def consent_by_the_page(self, conn_id: str) -> None:
        """Go to Criteo from the Accounts page, approve there, and come back with a code, as a browser does."""
        back = f"{self.airflow.url}/audience-sync/oauth/callback"
        self.sandbox.application(redirect_uris=[back])
        with httpx.Client(base_url=self.airflow.url, headers=self.airflow.headers, timeout=60) as browser:
            start = browser.get(f"/audience-sync/oauth/start/{conn_id}")
            assert start.status_code == 302, start.text
            decision = {"decision": "allow", "advertiser": ["1001"]}
            approved = httpx.post(start.headers["location"], data=decision, timeout=30)
            assert approved.headers["location"].startswith(back)
            home = browser.get(approved.headers["location"])
            assert home.status_code == 303, home.text
            self.shown += [home.headers["location"], browser.get("/audience-sync/api/accounts").text]

    def command(self, *words: str) -> tuple[int, str]:
        """Run `airflow criteo ...` in this Airflow's environment."""
        done = subprocess.run(
            [str(Path(sys.executable).parent / "airflow"), "criteo", *words],
            env=self.airflow.environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        self.shown.append(done.stdout + done.stderr)
        return done.returncode, done.stdout + done.stderr

    # --- what users see

    def page(self) -> dict[str, Any]:
        """Fetch the JSON of the Audiences page."""
        answer = httpx.get(f"{self.airflow.url}/audience-sync/api/steps", headers=self.airflow.headers, timeout=60)
        self.shown.append(answer.text)
        assert answer.status_code == 200, answer.text[:500]
        return dict(answer.json())

    def numbers(self, canvas: str) -> dict[str, int]:
        """Return the metrics of a canvas's step; none yet: zeros."""
        for row in self.page()["canvases"]:
            if row["id"] == canvas and row["steps"][0]["numbers"]:
                return dict(row["steps"][0]["numbers"])
        return dict.fromkeys(("entered", "synced", "not_synced", "pending", "errored"), 0)

    def told_on_page(self) -> str:
        """Return every sentence the page shows about trouble."""
        page = self.page()
        said = [
            " ".join([f"{each['where']}:", each["what"], each["mend"], *each["points"]]) for each in page["problems"]
        ]
        states = [step["state"]["text"] for canvas in page["canvases"] for step in canvas["steps"]]
        return "\n".join([*said, *states])

    def task_logs(self) -> dict[Path, int]:
        """Return the logs of tasks and how long they are: a mark to read on from."""
        return {file: file.stat().st_size for file in (self.airflow.home / "logs").rglob("attempt=*.log*")}

    def told_in_task_logs(self, mark: dict[Path, int]) -> str:
        """Return what tasks have logged since a mark was made."""
        said = []
        for file in self.task_logs():
            with file.open("rb") as log:
                log.seek(mark.get(file, 0))
                said.append(log.read().decode(errors="replace"))
        return "\n".join(said)

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        """Return the runs of a DAG so far."""
        return self.airflow.runs(dag_id)

    # --- waiting

    def until(self, there: Callable[[], bool], what: str, *, within_s: float = PATIENCE_S) -> None:
        """Wait until something is so; the failure tells what the page shows instead."""
        deadline = time.monotonic() + within_s
        while not there():
            self.household.check()
            assert time.monotonic() < deadline, f"not within {within_s:.0f} s: {what}\n{self.told_on_page()}"
            time.sleep(0.7)

    def sees(self, sentence: str, *, since: dict[Path, int]) -> None:
        """Wait until a sentence stands on the page or in what tasks have logged since."""
        pattern = re.compile(sentence)

        def told() -> bool:
            return bool(pattern.search(self.told_on_page()) or pattern.search(self.told_in_task_logs(since)))

        self.until(told, f"somebody is told {sentence!r}")

    def drained(self, canvas: str, entered: int) -> None:
        """Wait until so many have entered and nobody is pending."""

        def done() -> bool:
            numbers = self.numbers(canvas)
            return numbers["entered"] == entered and not numbers["pending"]

        self.until(done, f"{entered} people of {canvas} are settled")

    def well_again(self) -> None:
        """Wait until the page shows nothing to mend."""
        self.until(lambda: not self.page()["problems"], "nothing is to be mended")

    def arrived(self, audience: str, people: list[Person], ad_account: str = "1001") -> None:
        """Wait until Criteo's contact list has the addresses of all of them."""
        self.until(lambda: all(self.has(audience, people, ad_account) or [False]), f"all are in {audience!r}")

    def time_passes(self) -> None:
        """Let the pauses of breakers be over, without a click; the time of the people goes on as it is."""
        with closing(sqlite3.connect(self.airflow.ledger, timeout=30)) as ledger, ledger:
            ledger.execute("UPDATE trouble SET next_probe_us = 0")
            ledger.execute("UPDATE audience SET resolver_until_us = 0")
        for canvas in (self.airflow.include / "canvases").glob("*.yaml"):
            canvas.touch()

    def has(
        self, audience: str, people: list[Person], ad_account: str = "1001", *, identifier: str = "email"
    ) -> list[bool]:
        """Tell of each person whether the contact list at Criteo has the address, or the device (``maid``)."""
        ids = [str(each["id"]) for each in self.sandbox.state()["segments"]
               if (each["name"], each["advertiser_id"]) == (audience, ad_account)]  # fmt: skip
        if not ids:
            return []
        if identifier == "maid":
            return self.sandbox.is_member(ids[-1], [person.maid for person in people], "madid")
        return self.sandbox.is_member(ids[-1], [person.email_sha256 for person in people])


@contextmanager
def running(
    place: Path, *, apart: bool = False, ledger: PostgresServer | None = None, settings: Mapping[str, str] = NOTHING
) -> Iterator[Live]:
    """Run Airflow with the two DAGs, a small shop, and the sandbox; everything is gone afterwards.

    ``apart``: its components as programs of their own. ``ledger``: on this server, as connection criteo_ledger.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    exchanges: list[Exchange] = []
    include, logs = place / "include", place / "logs"
    for folder in (include / "canvases", include / "segments", logs):
        folder.mkdir(parents=True)
    airflow = LocalAirflow(place / "airflow", place / "ledger.db", include, usual_ports=False)
    airflow.environment.update({f"AIRFLOW__{name.upper()}": value for name, value in settings.items()})
    try:
        with pytest.MonkeyPatch.context() as patch, Household(logs) as household:
            # The household wants signals for itself; here they are for pytest, which ends the household.
            for number, handler in before.items():
                signal.signal(number, handler)
            patch.setattr(local_airflow, "READY_WITHIN_S", 400.0)
            patch.setattr(
                "criteo_provider.sandbox.serve.create_app", lambda world: recording(create_app(world), exchanges)
            )
            with running_sandbox(World.example()) as sandbox:
                live = Live(place, airflow, household, sandbox, Shop(place / "shop.db"), exchanges)
                live.declare("people", "Everybody")
                live.declare("others", "Others", "1002")
                airflow.start(household, apart=apart)
                airflow.connect("shop", conn_type="sqlite", host=str(live.shop.path))
                live.connect("criteo_default")
                if ledger is not None:
                    where = {"host": "127.0.0.1", "login": "postgres", "schema": "postgres"}
                    airflow.connect("criteo_ledger", conn_type="postgres", port=ledger.port, **where)
                for dag_id in (SYNC, RETRY):
                    airflow.unpause(dag_id)
                yield live
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
