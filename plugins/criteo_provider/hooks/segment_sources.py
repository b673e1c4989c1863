"""From what a canvas declares to a source that can be read: the Airflow half of each kind of source."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from criteo_provider.core.errors import Misconfigured
from criteo_provider.settings import canvas as declared

if TYPE_CHECKING:
    from airflow.sdk import Connection, ObjectStoragePath

    from criteo_provider.core.ports import Source
    from criteo_provider.sources.paged_http import HttpAnswer
    from criteo_provider.wiring.surroundings import Sourced

HTTP_TIMEOUT_S = 30
STORE_LASTS_S = 60.0
_BACKTICKS = frozenset({"mysql", "gcpbigquery", "hiveserver2", "hive_cli", "databricks", "spark_sql"})
_PARAMSTYLES = {"?": "qmark", "%s": "format"}


class Ask(Protocol):
    """Asks Airflow for a connection (`Connections.get`)."""

    def __call__(self, conn_id: str, *, wanted_by: str) -> Connection:
        """Return the connection, or raise Misconfigured naming who wanted it."""


class SegmentSources:
    """The sources of canvases, each built once so that it may keep its database connections.

    ``ask`` gets the Airflow connections, ``include`` is the include folder.
    """

    def __init__(self, include: Path, ask: Ask) -> None:
        from criteo_provider.sources.reading_beside import ReadingBeside

        self._include = include
        self._ask = ask
        self._built: dict[str, Source] = {}
        self._beside = ReadingBeside()

    def of(self, canvas: Sourced) -> Source:
        """Return the source of ``canvas``; raises Misconfigured naming the canvas, the connection and the mend."""
        if canvas.fingerprint not in self._built:
            self._built[canvas.fingerprint] = self._build(canvas)
        return self._built[canvas.fingerprint]

    def _build(self, canvas: Sourced) -> Source:
        match canvas.entry.source.chosen:
            case declared.SqlSource() as sql:
                return self._sql(canvas, sql)
            case declared.FilesSource() as files:
                return self._files(canvas, files)
            case declared.HttpSource() as http:
                return self._http(canvas, http)
            case declared.PythonSource() as python:
                from criteo_provider.sources.dataframes import DataFrameSource

                return DataFrameSource(python.callable, cursor=python.cursor, columns=canvas.entry.columns)

    def _sql(self, canvas: Sourced, sql: declared.SqlSource) -> Source:
        from criteo_provider.sources.sql import SqlSource

        wanted_by = _key(canvas, "sql.connection")
        hook = self._sql_hook(sql.connection, wanted_by)
        return SqlSource(
            lambda: self._sql_hook(sql.connection, wanted_by).get_conn(),
            query=sql.query.text,
            cursor=sql.cursor,
            columns=canvas.entry.columns,
            user_key=canvas.entry.user_key,
            now_us=_now_us,
            paramstyle=_paramstyle(hook),
            late_commit_s=sql.late_commit_s,
            quote="`" if hook.conn_type in _BACKTICKS else '"',
            name=sql.query.path,
        )

    def _sql_hook(self, conn_id: str, wanted_by: str) -> Any:
        from airflow.providers.common.sql.hooks.sql import DbApiHook

        hook = self._hook(self._ask(conn_id, wanted_by=wanted_by))
        if not isinstance(hook, DbApiHook):
            raise Misconfigured(
                f"{wanted_by}: the Airflow connection {conn_id!r} is no SQL database. "
                "Choose a connection of a database type."
            )
        return hook

    def _files(self, canvas: Sourced, files: declared.FilesSource) -> Source:
        from criteo_provider.sources.files import FilesSource

        root: Any = self._include / files.path  # an absolute path stays what it is
        if "://" in files.path:
            from airflow.sdk import ObjectStoragePath

            try:
                root = ObjectStoragePath(files.path, conn_id=files.connection)
            except ValueError:
                kind = files.path.partition("://")[0]
                raise Misconfigured(
                    f"{_key(canvas, 'files.path')}: nothing installed here opens {kind}:// addresses. "
                    "Install the Airflow provider of that store, or correct the path."
                ) from None
            key = "files.connection" if files.connection else "files.path"  # s3://connection@bucket/folder
            asked = self._ask(root.conn_id, wanted_by=_key(canvas, key)) if root.conn_id else None
            _open_anew(root, asked.get_uri() if asked else "")
        return FilesSource(
            root,
            columns=canvas.entry.columns,
            now_us=_now_us,
            pattern=files.pattern,
            file_format=files.format,
            beside=self._beside,
        )

    def _http(self, canvas: Sourced, http: declared.HttpSource) -> Source:
        from criteo_provider.sources.paged_http import PagedHttpSource, Paging

        page = http.page
        ask = partial(self._ask, http.connection, wanted_by=_key(canvas, "http.connection"))
        return PagedHttpSource(
            _http_get(ask),
            endpoint=http.endpoint,
            records=http.records,
            columns=canvas.entry.columns,
            paging=Paging(page.kind, page.param, page.next, page.first, page.size, page.size_param),
            params=http.params,
        )

    @staticmethod
    def _hook(connection: Connection) -> Any:
        """Return the hook of a connection, spared from asking Airflow for that connection once more."""
        hook = connection.get_hook()
        hook.get_connection = lambda _: connection
        return hook


def _http_get(ask: Callable[[], Connection]) -> Callable[[str, Mapping[str, str]], HttpAnswer]:
    from airflow.providers.http.hooks.http import HttpHook

    from criteo_provider.sources.paged_http import HttpAnswer

    def get(endpoint: str, params: Mapping[str, str]) -> HttpAnswer:
        connection = ask()
        hook = HttpHook(method="GET", http_conn_id=str(connection.conn_id))
        vars(hook)["get_connection"] = lambda _: connection
        options = {"timeout": HTTP_TIMEOUT_S, "check_response": False}
        answer = hook.run(endpoint, data=dict(params), extra_options=options)
        return HttpAnswer(answer.status_code, answer.headers, answer.content)

    return get


def _paramstyle(hook: Any) -> str:
    """Return how the driver behind a hook marks parameters (PEP 249)."""
    told = getattr(getattr(hook, "connector", None), "paramstyle", None)
    return str(told or _PARAMSTYLES.get(hook.placeholder, "format"))


# When each store was opened, and with what connection, as a digest.
_opened: dict[str, tuple[float, bytes]] = {}


def _open_anew(root: ObjectStoragePath, connection_uri: str) -> None:
    """Let Airflow open a store again once its connection has changed, or it is old: roles and files of keys change too.

    Airflow keeps one store for each connection id as long as a process lives, and the triggerer lives for weeks.
    """
    from airflow.sdk.io import attach

    store = attach(root.protocol, conn_id=root.conn_id)
    digest = hashlib.sha256(connection_uri.encode()).digest()
    opened_s, opened_with = _opened.get(str(store), (0.0, b""))
    if digest != opened_with or time.monotonic() - opened_s > STORE_LASTS_S:
        vars(store).pop("fs", None)  # a cached property
        _opened[str(store)] = time.monotonic(), digest


def _key(canvas: Sourced, key: str) -> str:
    if canvas.entry is canvas:  # a feed
        return f"feed {canvas.id}, source.{key}"
    return f"canvas {canvas.id}, entry.source.{key}"


def _now_us() -> int:
    return time.time_ns() // 1_000
