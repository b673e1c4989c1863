"""Everything we use of Airflow beyond its public interface, in one room to read again at each Airflow upgrade.

Checked against Airflow 3.3.2.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from criteo_provider.core.errors import Misconfigured, Unavailable

if TYPE_CHECKING:
    from airflow.sdk import Connection
    from pydantic import JsonValue

# Tells Airflow's secrets chain "this is a server process", which sees connections made in the UI
# (airflow/cli/commands/connection_command.py).
_CONTEXT_VARIABLE = "_AIRFLOW_PROCESS_CONTEXT"
_CONNECTION_VARIABLE = "AIRFLOW_CONN_"


def become_server() -> None:
    """Let this process see connections made in the UI, as `airflow connections` does; for commands, not for tasks."""
    os.environ[_CONTEXT_VARIABLE] = "server"


def find_connection(conn_id: str) -> Connection | None:
    """Return the Airflow connection, or None only when Airflow says for certain that there is none.

    Airflow's own lookup answers "not found" also when the API server or the metadata database does not answer;
    taking that for the truth would open a second, empty ledger. Raises Unavailable then.
    """
    from airflow.sdk import BaseHook
    from airflow.sdk.exceptions import AirflowNotFoundException

    try:
        return BaseHook.get_connection(conn_id)
    except AirflowNotFoundException:
        pass
    try:
        certain = _surely_absent(conn_id)
    except Exception as error:
        raise _no_answer(conn_id) from error
    if not certain:
        raise _no_answer(conn_id)
    return None


def named_connection(conn_id: str, *, wanted_by: str) -> Connection:
    """Return the Airflow connection that ``wanted_by`` names; raise Misconfigured when it does not exist."""
    connection = find_connection(conn_id)
    if connection is None:
        raise Misconfigured(
            f"{wanted_by}: there is no Airflow connection {conn_id!r}. "
            "Add it under Admin > Connections, in your secrets backend, or as "
            f"AIRFLOW_CONN_{conn_id.upper()}."
        )
    return connection


class FernetCipher:
    """Airflow's Fernet key as the cipher of shared secrets (the Cipher port of wiring)."""

    def __init__(self, fernet: Any, key: str) -> None:
        self._fernet = fernet
        self._key_id = hashlib.sha256(key.encode()).hexdigest()[:12]

    def encrypt(self, clear: bytes) -> bytes:
        """Encrypt with the first of the configured keys."""
        return bytes(self._fernet.encrypt(clear))

    def decrypt(self, sealed: bytes) -> bytes:
        """Decrypt with whichever of the configured keys fits; raise ValueError when none does."""
        from cryptography.fernet import InvalidToken

        try:
            return bytes(self._fernet.decrypt(sealed))
        except InvalidToken:
            raise ValueError("encrypted under another Fernet key") from None

    def key_id(self) -> str:
        """Return a short fingerprint that names the key without showing it."""
        return self._key_id


def cipher() -> FernetCipher | None:
    """Return Airflow's cipher, or None when no Fernet key is set: then Airflow's encrypt() returns plain text."""
    from airflow.sdk.configuration import conf
    from airflow.sdk.crypto import get_fernet
    from airflow.sdk.exceptions import AirflowException

    try:
        fernet = get_fernet()
    except AirflowException:
        raise Misconfigured(
            "[core] fernet_key is no Fernet key. Make one with `python -c 'from cryptography.fernet import Fernet; "
            "print(Fernet.generate_key().decode())'`, and give it to every process of this Airflow."
        ) from None
    if not fernet.is_encrypted:
        return None
    return FernetCipher(fernet, conf.get("core", "fernet_key").split(",")[0])


def stored_connections() -> dict[str, str]:
    """Return where Airflow keeps its Criteo connections, by id: "database" or "environment"; for servers and commands.

    A secrets backend cannot be asked what it holds; connections in one are known by the canvases that name them.
    """
    from airflow.models import connection as metadata
    from airflow.utils.session import create_session
    from sqlalchemy import select

    of_ours = metadata.Connection.conn_type == "criteo"
    with create_session() as session:
        ids = session.scalars(select(metadata.Connection.conn_id).where(of_ours)).all()
        found = dict.fromkeys(map(str, ids), "database")
    for name, value in os.environ.items():
        if name.startswith(_CONNECTION_VARIABLE) and _is_criteo(value):
            found[name.removeprefix(_CONNECTION_VARIABLE).lower()] = "environment"
    return found


def store_connection(conn_id: str, **fields: Any) -> None:
    """Write a new connection into Airflow's database, encrypted; raise Misconfigured when that cannot be.

    For servers and commands: tasks may not write connections.
    """
    from airflow.models import connection as metadata
    from airflow.utils.session import create_session

    if cipher() is None:
        raise Misconfigured(
            "Airflow's Fernet key is empty, so the client secret would be stored in plain text. "
            "Set [core] fernet_key (AIRFLOW__CORE__FERNET_KEY) to a key of your own."
        )
    if find_connection(conn_id) is not None:
        raise Misconfigured(
            f"There is an Airflow connection {conn_id!r} already. Take another id, or edit that one "
            "under Admin > Connections (or where it lives: environment or secrets backend)."
        )
    with create_session() as session:
        session.add(metadata.Connection(conn_id=conn_id, **fields))


def record_in_audit_log(event: str, *, owner: str, display_name: str, extra: Mapping[str, JsonValue]) -> None:
    """Write a row into Airflow's audit log; for servers and commands."""
    from airflow.models import Log
    from airflow.utils.session import create_session

    with create_session() as session:
        session.add(Log(event=event, owner=owner, owner_display_name=display_name, extra=json.dumps(dict(extra))))


def setting(section: str, key: str) -> str | None:
    """Return an Airflow setting, None when it is empty or not known."""
    from airflow.sdk.configuration import conf

    return conf.get(section, key, fallback=None) or None


def airflow_home() -> str:
    """Return the folder Airflow calls its home."""
    return os.path.expanduser(os.environ.get("AIRFLOW_HOME") or "~/airflow")


def count(name: str, value: int) -> None:
    """Add ``value`` to a counter of Airflow's metrics (StatsD or OpenTelemetry, where they are switched on)."""
    from airflow.sdk.observability import stats

    if value:
        stats.incr(name, value)


async def times_ended(dag_id: str, task_id: str, *states: str) -> int:
    """Return how many times a task of a DAG has ended in one of these states so far; for triggers.

    The messages that would tell how the last one ended are not understood by Airflow's triggerer (3.3.2).
    """
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.execution_time.comms import GetTICount

    question = GetTICount(dag_id=dag_id, task_ids=[task_id], states=list(states))
    answer: Any = await task_runner.SUPERVISOR_COMMS.asend(question)
    return int(answer.count)


def asset_event(alias: str, name: str, uri: str, extra: Mapping[str, JsonValue]) -> Any:
    """Return an event for an asset that is told to exist by ``alias``, for ``outlet_events[alias].asset_alias_events``.

    The public way makes an Asset first, which reads the metadata of all installed providers to tidy a URI that is
    tidy already: more than a second of a task that may last only five.
    """
    from airflow.sdk.definitions.asset import AssetAliasEvent, AssetUniqueKey

    key = AssetUniqueKey(name=name, uri=uri)
    return AssetAliasEvent(source_alias_name=alias, dest_asset_key=key, dest_asset_extra={}, extra=dict(extra))


def _is_criteo(value: str) -> bool:
    """Tell whether a connection written as URI or JSON is of our type."""
    try:
        return bool(json.loads(value).get("conn_type") == "criteo")
    except (ValueError, AttributeError):
        return value.startswith("criteo:")


def _surely_absent(conn_id: str) -> bool:
    from airflow.sdk.execution_time import task_runner

    comms = getattr(task_runner, "SUPERVISOR_COMMS", None)
    if comms is not None:
        return _task_api_says_absent(comms, conn_id)
    if os.environ.get(_CONTEXT_VARIABLE) == "server":
        from airflow.secrets.metastore import MetastoreBackend

        return MetastoreBackend().get_connection(conn_id) is None
    # Neither a task nor a server process: only environment variables and the secrets backend can hold it.
    return True


def _task_api_says_absent(comms: Any, conn_id: str) -> bool:
    from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
    from airflow.sdk.execution_time.comms import ErrorResponse, GetConnection

    try:
        answer = comms.send(GetConnection(conn_id=conn_id))
    except AirflowRuntimeError as error:
        answer = error.error
    return isinstance(answer, ErrorResponse) and answer.error is ErrorType.CONNECTION_NOT_FOUND


def _no_answer(conn_id: str) -> Unavailable:
    return Unavailable(
        f"Airflow does not say whether the connection {conn_id!r} exists (API server or metadata database "
        "not reachable); trying again later.",
        code="airflow-unavailable",
    )
