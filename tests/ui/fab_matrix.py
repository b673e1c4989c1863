"""Run by test_fab.py in a process of its own: what the roles of Airflow's FAB auth manager get from our routes."""

from __future__ import annotations

import json
import sys

from airflow.api_fastapi.app import create_app, get_auth_manager
from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder
from airflow.utils.db import initdb
from starlette.testclient import TestClient

from tests.ui.accounts_page import BODIES, PREFIX, READS, WRITES

ROLES = ("Viewer", "User", "Op", "Admin")


def main() -> None:
    """Print the status of each route by role."""
    initdb()
    with get_application_builder() as builder:
        builder.sm.sync_roles()
        for role in ROLES:
            builder.sm.add_user(
                role.lower(), role, "Tester", f"{role}@example.com", builder.sm.find_role(role), "secret"
            )
    app = create_app(apps="core")
    table: dict[str, dict[str, int]] = {}
    for role in ("", *ROLES):
        client = TestClient(app, follow_redirects=False, base_url="http://airflow.example.com")
        if role:
            user = _user(role.lower())
            client.headers["Authorization"] = f"Bearer {get_auth_manager().generate_jwt(user)}"
        table[role] = {
            f"{method} {path}": client.request(method, f"{PREFIX}{path}", json=BODIES.get(path)).status_code
            for method, path in READS + WRITES
        }
    print(json.dumps(table), file=sys.stdout)


def _user(name: str):  # type: ignore[no-untyped-def]
    from airflow.providers.fab.auth_manager.models import User
    from airflow.utils.session import create_session

    with create_session() as session:
        user = session.query(User).filter_by(username=name).one()
        session.expunge_all()
        return user


if __name__ == "__main__":
    main()
