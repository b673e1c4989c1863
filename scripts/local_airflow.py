"""An Airflow of its own for one run: settings, connections, and what its public REST API says about runs."""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
from cryptography.fernet import Fernet
from processes import Household, RunFailed, free_port

PROJECT = Path(__file__).resolve().parent.parent
READY_WITHIN_S = 120.0
COMPONENTS = ("api-server", "scheduler", "dag-processor", "triggerer")


@dataclass
class LocalAirflow:
    """`airflow standalone` in ``home`` on free ports of 127.0.0.1, with one user and the canvases of ``include``.

    ``usual_ports``: those where people look, if they are free; of several that start at once only one may want them.
    """

    home: Path
    ledger: Path
    include: Path = PROJECT / "include"
    usual_ports: bool = True
    port: int = 0
    user: str = "admin"
    password: str = field(default_factory=lambda: secrets.token_urlsafe(9), repr=False)

    def __post_init__(self) -> None:
        self.port = self.port or self._free_port(8080)

    @property
    def url(self) -> str:
        """Where the UI is."""
        return f"http://127.0.0.1:{self.port}"

    def start(self, household: Household, *, apart: bool = False) -> None:
        """Make the metadata database and start all components; returns once the API answers.

        ``apart``: each component under its own name, as a supervisor would, so that one of them may be ended.
        """
        self.home.mkdir(parents=True, exist_ok=True)
        passwords = self.home / "passwords.json"
        passwords.touch(mode=0o600)
        passwords.write_text(json.dumps({self.user: self.password}))
        env = self.environment
        household.run("airflow-db-migrate", [_program("airflow"), "db", "migrate"], env, timeout_s=120)
        for component in COMPONENTS if apart else ():
            self.start_component(household, component)
        if not apart:
            household.start("airflow", [_program("airflow"), "standalone"], env)
        self._wait(household, "api-server" if apart else "airflow")

    def start_component(self, household: Household, component: str) -> None:
        """Start one of ``COMPONENTS``, for the first time or again after it has ended."""
        household.start(component, [_program("airflow"), component], self.environment)

    @cached_property
    def environment(self) -> dict[str, str]:
        """Return the environment of every Airflow process of this run."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW_", "_AIRFLOW"))}
        settings = {f"AIRFLOW__{name.upper()}": value for name, value in self._settings().items()}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        return {**inherited, **settings, "AIRFLOW_HOME": str(self.home), "PATH": path}

    def connect(self, conn_id: str, **parts: str | int) -> None:
        """Add an Airflow connection, as one would under Admin > Connections."""
        self.ask("POST", "/connections", json={"connection_id": conn_id, **parts})

    def unpause(self, dag_id: str) -> None:
        """Let a DAG run, as soon as Airflow has read its file."""
        deadline = time.monotonic() + READY_WITHIN_S
        while self.ask("PATCH", f"/dags/{dag_id}", may_miss=True, json={"is_paused": False}) is None:
            if time.monotonic() > deadline:
                raise RunFailed(f"Airflow did not load the DAG {dag_id}. {self._import_errors()}")
            time.sleep(0.5)

    def trigger(self, dag_id: str) -> str:
        """Start a run of a DAG by hand; return its id."""
        return str(self.ask("POST", f"/dags/{dag_id}/dagRuns", json={"logical_date": None})["dag_run_id"])

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        """Return the runs of a DAG, oldest first."""
        answer = self.ask("GET", f"/dags/{dag_id}/dagRuns", params={"order_by": "run_after", "limit": 100})
        return list(answer["dag_runs"])

    def task_states(self, dag_id: str, run_id: str) -> dict[str, str | None]:
        """Return the state of each task of a run."""
        answer = self.ask("GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances")
        return {task["task_id"]: task["state"] for task in answer["task_instances"]}

    def _settings(self) -> dict[str, str]:
        keys = {name: secrets.token_urlsafe(64) for name in ("api__secret_key", "api_auth__jwt_secret")}
        return {
            **keys,
            "core__fernet_key": Fernet.generate_key().decode(),
            "core__dags_folder": str(PROJECT / "dags"),
            "core__plugins_folder": str(PROJECT / "plugins"),
            "core__executor": "LocalExecutor",
            "core__parallelism": "4",
            "core__load_examples": "False",
            "core__test_connection": "Enabled",
            "core__simple_auth_manager_users": f"{self.user}:admin",
            "core__simple_auth_manager_passwords_file": str(self.home / "passwords.json"),
            "core__execution_api_server_url": f"{self.url}/execution/",
            "criteo__ledger_path": str(self.ledger),
            "criteo__include_folder": str(self.include),
            "database__sql_alchemy_conn": f"sqlite:///{self.home / 'airflow.db'}",
            "api__host": "127.0.0.1",
            "api__port": str(self.port),
            "api__base_url": self.url,
            "logging__worker_log_server_port": str(self._free_port(8793)),
            "logging__trigger_log_server_port": str(self._free_port(8794)),
            # Our DAG files never change by themselves; one that is edited is read at once all the same.
            "dag_processor__min_file_process_interval": "300",
            "scheduler__enable_health_check": "False",
        }

    def _free_port(self, usual: int) -> int:
        return free_port(usual if self.usual_ports else 0)

    def _wait(self, household: Household, name: str) -> None:
        deadline = time.monotonic() + READY_WITHIN_S
        while True:
            household.check()
            try:
                if httpx.get(f"{self.url}/api/v2/monitor/health", timeout=5).is_success:
                    return
            except httpx.TransportError:
                pass
            if time.monotonic() > deadline:
                seen = household.last_words(name)
                raise RunFailed(f"Airflow did not answer within {READY_WITHIN_S:.0f} s. {seen}")
            time.sleep(0.5)

    def ask(self, method: str, path: str, *, may_miss: bool = False, **request: Any) -> Any:
        """Call Airflow's REST API; None where ``may_miss`` and it is not there."""
        answer = httpx.request(method, f"{self.url}/api/v2{path}", headers=self.headers, timeout=30, **request)
        if may_miss and answer.status_code == httpx.codes.NOT_FOUND:
            return None
        if not answer.is_success:
            raise RunFailed(f"Airflow refused {method} {path}: {answer.status_code} {answer.text[:300]}")
        return answer.json()

    @cached_property
    def headers(self) -> dict[str, str]:
        """Sign in; what every request of this user carries."""
        login = {"username": self.user, "password": self.password}
        answer = httpx.post(f"{self.url}/auth/token", json=login, timeout=30).raise_for_status()
        return {"Authorization": f"Bearer {answer.json()['access_token']}"}

    def _import_errors(self) -> str:
        errors = self.ask("GET", "/importErrors")["import_errors"]
        return " ".join(f"{error['filename']}: {error['stack_trace'].splitlines()[-1]}" for error in errors)


def _program(name: str) -> str:
    """Return the path of a program installed beside this Python."""
    return str(Path(sys.executable).parent / name)
