"""The roles of Airflow's other auth manager, FAB: the same doors are open to the same people."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from tests.ui.accounts_page import READS, WRITES

PROJECT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_roles_under_fab(tmp_path: Path) -> None:
    """Under FAB too, nobody gets in unsigned, every role reads, and only Op and Admin change connections."""
    settings = {
        "core__auth_manager": "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager",
        "core__fernet_key": Fernet.generate_key().decode(),
        "core__load_examples": "False",
        "core__plugins_folder": str(PROJECT / "plugins"),
        "database__sql_alchemy_conn": f"sqlite:///{tmp_path / 'airflow.db'}",
        "api__base_url": "http://airflow.example.com",
        "api__secret_key": "s" * 32,
        "api_auth__jwt_secret": "j" * 64,
        "criteo__ledger_path": str(tmp_path / "ledger.db"),
        "criteo__include_folder": str(tmp_path / "include"),
    }
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW_", "_AIRFLOW"))}
    env |= {"AIRFLOW_HOME": str(tmp_path), "_AIRFLOW_PROCESS_CONTEXT": "server"}
    env |= {"PYTHONPATH": os.pathsep.join((str(PROJECT), str(PROJECT / "plugins")))}
    env |= {f"AIRFLOW__{name.upper()}": value for name, value in settings.items()}
    command = [sys.executable, "-m", "tests.ui.fab_matrix"]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    table = json.loads(done.stdout.splitlines()[-1])
    reads = {f"{method} {path}" for method, path in READS}
    writes = {f"{method} {path}" for method, path in WRITES}
    assert set(table) == {"", "Viewer", "User", "Op", "Admin"}
    assert set(table[""]) == reads | writes
    assert set(table[""].values()) == {401}
    for role in ("Viewer", "User", "Op", "Admin"):
        assert {table[role][one] for one in reads} == {200}, role
        # 409: let in, and told in a sentence that there is no such connection.
        assert {table[role][one] for one in writes} == {409 if role in {"Op", "Admin"} else 403}, role
