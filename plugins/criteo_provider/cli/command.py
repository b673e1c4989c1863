"""What makes a function a command of `airflow criteo`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import wraps
from typing import Any, ParamSpec

from airflow.cli.simple_table import AirflowConsole
from airflow.utils.cli import suppress_logs_and_warning
from airflow.utils.providers_configuration_loader import providers_configuration_loaded
from rich.markup import escape
from sqlalchemy.exc import SQLAlchemyError

from criteo_provider.core.errors import CriteoSyncError
from criteo_provider.hooks.airflow_inside import become_server

P = ParamSpec("P")


def command(act: Callable[P, bool]) -> Callable[P, None]:
    """Run ``act`` as a command: it sees the UI's connections, speaks in sentences, and False is exit code 1."""

    @wraps(act)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        become_server()
        try:
            good = act(*args, **kwargs)
        except CriteoSyncError as error:
            print(error, file=sys.stderr)
            good = False
        except SQLAlchemyError as error:  # drivers name hosts and logins: the kind must do
            print(
                f"A database cannot be used ({type(error).__name__}). Check the connection criteo_ledger, or [criteo] "
                "ledger_path, and Airflow's own database.",
                file=sys.stderr,
            )
            good = False
        if not good:
            raise SystemExit(1)

    return suppress_logs_and_warning(providers_configuration_loaded(run))


def show(rows: Iterable[Mapping[str, Any]], output: str) -> None:
    """Print rows as Airflow's own commands do, but leave brackets alone, which tables would take for markup."""
    as_is = output != "table"
    lines = [{name: value if as_is else escape(str(value)) for name, value in row.items()} for row in rows]
    AirflowConsole().print_as(lines, output=output)


def moment(at_us: int | None) -> str:
    """Write a moment of the ledger's clock for people; nothing where there was none."""
    return "" if at_us is None else f"{datetime.fromtimestamp(at_us // 1_000_000, UTC):%Y-%m-%d %H:%M:%S} UTC"
