"""What the house stands in: ledger, canvases, connections and cipher as this Airflow has them."""

from __future__ import annotations

import hashlib
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from criteo_provider.core.errors import CriteoSyncError, Misconfigured, Unavailable
from criteo_provider.hooks import airflow_inside
from criteo_provider.hooks.criteo import read_connection

if TYPE_CHECKING:
    from airflow.sdk import Connection

    from criteo_provider.settings.canvas import Canvas
    from criteo_provider.wiring import House, Surroundings

LEDGER_CONNECTION = "criteo_ledger"
# A look a second at twenty canvases must not become twenty questions a second to Airflow.
REMEMBER_CONNECTIONS_S = 30.0


def open_house() -> House:
    """Open the house in these surroundings; cheap, and closed by the caller."""
    from criteo_provider.wiring import House

    return House(surroundings())


def surroundings() -> Surroundings:
    """Describe where the house stands; raises Misconfigured or Unavailable with the setting and the mend."""
    from criteo_provider.hooks.segment_sources import SegmentSources
    from criteo_provider.wiring import Surroundings

    connections = Connections()
    folder = include_folder()
    return Surroundings(
        include_folder=folder,
        ledger_url=ledger_url(),
        criteo=lambda conn_id: read_connection(connections.get(conn_id, wanted_by="Criteo Audience Sync")),
        source=SegmentSources(folder, connections.get).of,
        cipher=airflow_inside.cipher(),
        executor=executor(),
        first_probe_s=first_probe_s(),
        source_stamp=partial(source_stamp, connections),
        idle_check_s=idle_check_s(),
        guidelines_required=_guidelines_required(),
    )


def idle_check_s() -> float:
    """Return how long a connection may be idle before it is looked at: `[criteo] idle_check`."""
    written = airflow_inside.setting("criteo", "idle_check") or "900"
    try:
        seconds = float(written)
    except ValueError:
        seconds = 0.0
    if not 60 <= seconds <= 86_400:
        raise Misconfigured("[criteo] idle_check: has to be a number of seconds, from 60 to 86400. Write it like 900.")
    return seconds


def _guidelines_required() -> bool:
    written = airflow_inside.setting("criteo", "guidelines_acknowledged") or ""
    if written.strip().lower() not in ("", "required"):
        raise Misconfigured("[criteo] guidelines_acknowledged: has to be `required`, or empty where nobody is asked.")
    return bool(written.strip())


def source_stamp(connections: Connections, canvas: Canvas) -> str:
    """Return what changes when the connection of a canvas's source does; too little to guess a password from."""
    conn_id = getattr(canvas.entry.source.chosen, "connection", None)
    if conn_id is None:
        return ""
    try:
        found = connections.get(conn_id, wanted_by=f"canvas {canvas.id}")
    except CriteoSyncError as error:
        return str(error)
    seen = (found.conn_type, found.host, found.login, found.password, found.port, found.schema, found.extra)
    return hashlib.sha256(repr(seen).encode()).digest()[:2].hex()


def include_folder() -> Path:
    """Return the folder with canvases and segments: `[criteo] include_folder`, else `include` beside the dags."""
    chosen = airflow_inside.setting("criteo", "include_folder")
    if chosen:
        return Path(chosen).expanduser()
    dags = airflow_inside.setting("core", "dags_folder") or str(Path(airflow_inside.airflow_home()) / "dags")
    return Path(dags).expanduser().parent / "include"


def ledger_url() -> str:
    """Return where the ledger is: the ledger connection, else a SQLite file on this machine.

    Unavailable is raised rather than guessing when Airflow cannot say whether the connection exists, or does not
    find the one that was there.
    """
    chosen = airflow_inside.setting("criteo", "ledger_connection")
    if chosen:
        return _postgres_url(airflow_inside.named_connection(chosen, wanted_by="[criteo] ledger_connection"))
    path = airflow_inside.setting("criteo", "ledger_path")
    file = Path(path).expanduser() if path else Path(airflow_inside.airflow_home()) / "criteo" / "ledger.db"
    moved = file.with_name(file.name + ".moved")
    connection = airflow_inside.find_connection(LEDGER_CONNECTION)
    if connection is not None:
        _remember_move(moved)
        return _postgres_url(connection)
    if moved.exists():
        # Airflow says "not found" of a connection also when its database fails for a moment.
        raise Unavailable(
            f"The ledger is in the Airflow connection {LEDGER_CONNECTION!r}, and Airflow does not find that now; "
            f"trying again later. If it is gone for good, and an empty ledger is to begin in {file}, delete {moved}.",
            code="airflow-unavailable",
        )
    return f"sqlite:///{file.absolute()}"


def _remember_move(moved: Path) -> None:
    with suppress(OSError):  # a home nobody may write to has no ledger either
        if not moved.exists():
            moved.parent.mkdir(parents=True, exist_ok=True)
            moved.write_text(f"The ledger is in the Airflow connection {LEDGER_CONNECTION}, and not in this folder.\n")


def executor() -> str:
    """Return the class name of the executor this Airflow runs tasks with."""
    configured = airflow_inside.setting("core", "executor") or "LocalExecutor"
    # "Local,alias:path.to.CeleryExecutor": the first one is the default, a local one among others is not alone.
    names = [name.split(":")[-1].rsplit(".", 1)[-1] for name in configured.split(",")]
    return next((name for name in names if name != "LocalExecutor"), names[0])


def first_probe_s() -> float:
    """Return how soon something broken is probed again: `[criteo] first_probe_s`; later 2, 4, 8 and 15 times that."""
    chosen = airflow_inside.setting("criteo", "first_probe_s")
    try:
        seconds = float(chosen or 60.0)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 240:
        raise Misconfigured(
            "[criteo] first_probe_s: has to be a number of seconds above 0 and up to 240. Write it like 60."
        )
    return seconds


class Connections:
    """Airflow connections, remembered for half a minute; safe in threads."""

    def __init__(self, *, remember_s: float = REMEMBER_CONNECTIONS_S) -> None:
        self._remember_s = remember_s
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, Connection]] = {}

    def get(self, conn_id: str, *, wanted_by: str) -> Connection:
        """Return the connection that ``wanted_by`` names; raise Misconfigured when it does not exist."""
        with self._lock:
            asked_s, known = self._known.get(conn_id, (0.0, None))
            if known is None or time.monotonic() - asked_s > self._remember_s:
                known = airflow_inside.named_connection(conn_id, wanted_by=wanted_by)
                self._known[conn_id] = (time.monotonic(), known)
            return known


def _postgres_url(connection: Connection) -> str:
    """Turn the ledger connection into a URL for psycopg; what its extra says to libpq goes along (sslmode)."""
    from psycopg.pq import Conninfo
    from sqlalchemy import URL

    if connection.conn_type not in ("postgres", "postgresql"):
        raise Misconfigured(
            f"Connection {connection.conn_id}: the ledger is kept in PostgreSQL, and this connection is of type "
            f"{connection.conn_type!r}; choose the type Postgres."
        )
    known = {option.keyword.decode() for option in Conninfo.get_defaults()}
    url = URL.create(
        "postgresql+psycopg",
        connection.login or None,
        connection.password or None,
        connection.host or None,
        connection.port,
        connection.schema or None,
        {key: str(value) for key, value in connection.extra_dejson.items() if key in known},
    )
    return url.render_as_string(hide_password=False)
