"""Standstill: the ledger takes no writes, so it is Airflow, in one Variable, that remembers who was told of it."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from uuid import uuid4

from airflow.sdk import Variable

log = logging.getLogger(__name__)

VARIABLE = "criteo_ledger_standstill"
# Of two tasks that find it at once, the one that wrote last tells; so long the other may take to have written.
SETTLES_S = 2.0


@dataclass(frozen=True, slots=True)
class Standstill:
    """What stands in the way of the ledger, since when, which role has met it, and the mark of who tells it."""

    sentence: str
    since: str
    role: str
    mark: str


def known() -> Standstill | None:
    """Return the standstill people were told of and that is not over; what somebody has edited by hand is none."""
    kept = Variable.get(VARIABLE, default=None)
    try:
        return Standstill(**json.loads(kept)) if kept else None
    except (ValueError, TypeError):
        log.warning("The Airflow Variable %s holds nothing of ours; it is written anew when it is needed.", VARIABLE)
        return None


def begin(sentence: str, role: str) -> bool:
    """Remember that the ledger takes no writes; True for the one process that is to tell it."""
    if known() is not None:
        return False
    here = Standstill(sentence, f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC", role, uuid4().hex)
    Variable.set(VARIABLE, json.dumps(asdict(here)), description="Kept by Criteo Audience Sync until it is over.")
    time.sleep(SETTLES_S)
    return known() == here


def end() -> None:
    """Forget it: the ledger has it that this is over."""
    Variable.delete(VARIABLE)
