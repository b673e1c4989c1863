"""The notifiers that ``include/alerts.yaml`` names: any of Airflow's, made anew for each message."""

from __future__ import annotations

import logging
import time
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, cast

from airflow.sdk import BaseNotifier

from criteo_provider.core.errors import CriteoSyncError, Misconfigured, Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from airflow.sdk import Context

    from criteo_provider.settings.alerts import Notify

log = logging.getLogger(__name__)

# A chat that does not answer is asked again.
TRIES = 3
PAUSE_S = 2.0


def tell_all(
    notify: Sequence[Notify], context: Mapping[str, Any], sentences: Sequence[str], *, is_broken: bool
) -> list[str]:
    """Hand sentences to every notifier of ``alerts.yaml``; return one sentence for each that could not be reached."""
    told = {**context, "criteo_news": list(sentences), "criteo_is_broken": is_broken}
    unreached = []
    for number, wanted in enumerate(notify):
        try:
            tell(made(number, wanted), told, tries=TRIES)
        except CriteoSyncError as error:
            unreached.append(str(error))
        else:
            log.info("Told %s.", wanted.notifier)
    return unreached


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
