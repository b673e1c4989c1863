"""The notifiers that ``include/alerts.yaml`` names: any of Airflow's, made anew for each message."""

from __future__ import annotations

import time
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, cast

from airflow.sdk import BaseNotifier

from criteo_provider.core.errors import Misconfigured, Unavailable

if TYPE_CHECKING:
    from airflow.sdk import Context

    from criteo_provider.settings.alerts import Notify

PAUSE_S = 2.0


def made(number: int, wanted: Notify) -> BaseNotifier:
    """Make the notifier of one entry; raises Misconfigured with the place and the mend."""
    place = f"include/alerts.yaml: notify[{number}]"
    try:
        kind = resolve_name(wanted.notifier)
    except (ImportError, AttributeError):
        raise Misconfigured(
            f"{place}.notifier leads to nothing that can be imported. Correct the path, or install its provider."
        ) from None
    if not (isinstance(kind, type) and issubclass(kind, BaseNotifier)):
        raise Misconfigured(f"{place}.notifier is no Airflow notifier. Name a subclass of BaseNotifier.")
    try:
        return kind(**wanted.arguments)
    except Exception as error:
        raise Misconfigured(
            f"{place}.with does not fit {kind.__name__} ({type(error).__name__}). Correct its arguments."
        ) from None


def tell(notifier: BaseNotifier, context: dict[str, Any], *, tries: int) -> None:
    """Send one message; raises Unavailable when it could not be handed over.

    Calling a notifier itself would only log that.
    """
    fields = {name: getattr(notifier, name) for name in notifier.template_fields}
    whole = cast("Context", {**context, **fields})
    for left in range(tries - 1, -1, -1):
        try:
            notifier.render_template_fields(whole)
            notifier.notify(whole)
        except Exception as error:
            if not left:
                # What it says may hold addresses and secrets of the team's own.
                raise Unavailable(
                    f"The alert could not be handed to {type(notifier).__name__} ({type(error).__name__})."
                ) from None
            time.sleep(PAUSE_S)
        else:
            return
