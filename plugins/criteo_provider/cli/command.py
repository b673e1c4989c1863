"""What makes a function a command of `airflow criteo`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

from airflow.utils.cli import suppress_logs_and_warning
from airflow.utils.providers_configuration_loader import providers_configuration_loaded

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
        if not good:
            raise SystemExit(1)

    return suppress_logs_and_warning(providers_configuration_loaded(run))
