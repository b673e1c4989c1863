"""What is handed down to the house: where things are, how to reach them, and what one look has found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from criteo_provider.core.budget import GrantType
from criteo_provider.core.ports import Source
from criteo_provider.settings.canvas import Canvas
from criteo_provider.settings.opt_outs import OptOutFeed
from criteo_provider.store.tokens import Cipher

# What has a source of its own.
Sourced = Canvas | OptOutFeed


@dataclass(frozen=True, slots=True)
class CriteoConnection:
    """One Criteo application as an Airflow connection describes it; no ad accounts named means all.

    ``requests_per_minute`` None: what the grant allows. ``refresh_token`` is what the connection brings along, if
    anything; the one in use is in the ledger. ``consent_url`` is where people give their consent.
    """

    client_id: str
    client_secret: str = field(repr=False)
    base_url: str
    api_version: str = "2026-07"
    requests_per_minute: int | None = None
    allowed_ad_accounts: tuple[str, ...] = ()
    grant_type: GrantType = "client_credentials"
    refresh_token: str = field(default="", repr=False)
    consent_url: str = ""
    guidelines_acknowledged: bool = False


@dataclass(frozen=True)
class Surroundings:
    """What is handed down to the house: where things are, and how to reach them."""

    include_folder: Path
    ledger_url: str = field(repr=False)
    criteo: Callable[[str], CriteoConnection]
    source: Callable[[Sourced], Source]
    cipher: Cipher | None
    executor: str = "LocalExecutor"
    first_probe_s: float = 60.0
    # Changes when a connection the source of a canvas uses has changed; tells nothing of it.
    source_stamp: Callable[[Canvas], str] = lambda _canvas: ""
    guidelines_required: bool = False
    idle_check_s: float = 900.0


@dataclass(frozen=True, slots=True)
class Waiting:
    """What one look has found: work for either DAG, and sources that cannot be looked at."""

    fresh: bool
    retry: bool
    problems: tuple[str, ...] = ()
    next_due_s: float | None = None
