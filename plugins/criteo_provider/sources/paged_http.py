"""The ``http`` source: records of a JSON endpoint, by cursor, page number, offset or Link header."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast
from urllib.parse import parse_qsl, urlsplit

from criteo_provider.core.errors import CriteoSyncError, SourceFailed
from criteo_provider.core.ports import Json, Look, MaxRows, Page, Seen

_NEXT_LINK = re.compile(r'<([^>]*)>\s*;[^,<]*\brel="?next"?')


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """What came back: status, headers and the body as text or bytes."""

    status: int
    headers: Mapping[str, str]
    body: str | bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Paging:
    """How the endpoint turns pages.

    ``cursor``: the answer holds the next cursor at the dotted path ``next``, to be sent as ``param``;
    ``page``: ``param`` counts pages from ``first`` (1); ``offset``: ``param`` counts records from ``first``
    (0); ``link``: a ``Link`` header with ``rel="next"`` (RFC 8288), whose query is taken, its host never.
    ``size``, where known, saves the call that finds an empty page; with ``size_param`` it is asked for.
    """

    kind: Literal["cursor", "page", "offset", "link"]
    param: str = ""
    next: str = ""
    first: int | None = None
    size: int | None = None
    size_param: str | None = None


class PagedHttpSource:
    """Records of an endpoint that only ever grows at its end, in its order, each once.

    ``get(endpoint, params)`` makes one call, with credentials and time-outs of its own. ``records`` is the
    dotted path of the list of objects ("" for the answer itself). Columns are keys, or dotted paths, of a
    record; an absent key is no value. The position is the page reached and how many of its records are
    entered, so records added to a last page are found. Memory: one page of the endpoint.
    """

    def __init__(
        self,
        get: Callable[[str, Mapping[str, str]], HttpAnswer],
        *,
        endpoint: str,
        records: str,
        columns: Sequence[str],
        paging: Paging,
        params: Mapping[str, str] | None = None,
    ) -> None:
        self._get = get
        self._endpoint = endpoint
        self._records = records
        self._columns = tuple(dict.fromkeys(columns))
        self._paging = paging
        self._params = dict(params or {})
        if paging.size and paging.size_param:
            self._params[paging.size_param] = str(paging.size)

    def is_ahead(self, position: Json, seen: Seen) -> bool:
        """Tell whether there are records behind ``position``: one call, or two at the end of a page."""
        at, entered = self._reached(position)
        records, onward = self._page(at)
        if len(records) > entered:
            return True
        return onward is not None and onward != at and bool(self._page(onward)[0])

    def pages(self, position: Json, *, max_rows: MaxRows, seen: Seen) -> Generator[Page]:
        """Yield the records behind ``position``, until a page is empty or names no next one."""
        at, entered = self._reached(position)
        while True:
            records, onward = self._page(at)
            while entered < len(records):
                part = records[entered : entered + max_rows()]
                entered += len(part)
                yield Page(self._as_columns(part), len(part), {"at": at, "rows": entered})
            if onward is None or not records:
                return
            if onward == at:
                raise SourceFailed(f"{self._endpoint}: a page names itself as the next page")
            at, entered = onward, 0

    def recheck(self, look: Look) -> Iterator[tuple[Page, Look | None]]:
        """Nothing comes late: records are only ever added at the end."""
        yield Page({}, 0, look.upto), None

    def _reached(self, position: Json) -> tuple[Json, int]:
        """Return where to read on, and how many records of that page are entered."""
        if position is None:
            first = {"page": 1, "offset": 0}.get(self._paging.kind)
            return (first if self._paging.first is None else self._paging.first), 0
        at, entered = (position.get("at"), position.get("rows")) if isinstance(position, dict) else (None, None)
        fits = {"link": isinstance(at, dict) or at is None, "cursor": not isinstance(at, (dict, list))}
        if not isinstance(entered, int) or not fits.get(self._paging.kind, isinstance(at, int)):
            raise SourceFailed(
                f"{self._endpoint}: the stored position is not one of `kind: {self._paging.kind}`: was the source "
                "changed? Put the former source back, or declare a new canvas"
            )
        return at, entered

    def _page(self, at: Json) -> tuple[list[Mapping[str, Any]], Json]:
        """Fetch one page: its records, and where the next one is."""
        params = dict(self._params)
        if isinstance(at, dict):
            params |= {name: str(value) for name, value in at.items()}
        elif at is not None:
            params[self._paging.param] = str(at)
        answer = self._call(params)
        try:
            body = json.loads(answer.body)
        except ValueError:
            raise SourceFailed(f"{self._endpoint} did not answer with JSON") from None
        records = _at_path(body, self._records)
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            there = f"; the answer has: {', '.join(map(str, body))}" if isinstance(body, dict) else ""
            raise SourceFailed(
                f"{self._endpoint}: there is no list of objects at `records: {self._records}`{there}. "
                "Correct `records` in the canvas"
            )
        return cast("list[Mapping[str, Any]]", records), self._onward(at, body, answer, len(records))

    def _call(self, params: Mapping[str, str]) -> HttpAnswer:
        try:
            answer = self._get(self._endpoint, params)
        except CriteoSyncError:
            raise
        except Exception as error:
            # The text of an HTTP error quotes the address, which may hold a key or a person.
            raise SourceFailed(f"{self._endpoint} cannot be reached now: {type(error).__name__}") from None
        if not 200 <= answer.status < 300:
            raise SourceFailed(f"{self._endpoint} answered with status {answer.status}")
        return answer

    def _onward(self, at: Json, body: Any, answer: HttpAnswer, count: int) -> Json:
        paging = self._paging
        if paging.kind == "cursor":
            return cast("Json", _at_path(body, paging.next)) or None
        if paging.kind == "link":
            return self._linked(answer)
        if not count or (paging.size is not None and count < paging.size):
            return None
        return int(str(at)) + (1 if paging.kind == "page" else count)

    def _linked(self, answer: HttpAnswer) -> Json:
        headers = {name.lower(): value for name, value in answer.headers.items()}
        found = _NEXT_LINK.search(headers.get("link", ""))
        if found is None:
            return None
        link = urlsplit(found.group(1))
        if link.path and not link.path.endswith(urlsplit(self._endpoint).path.rstrip("/")):
            raise SourceFailed(f"{self._endpoint}: the Link header leads to another endpoint")
        return dict(parse_qsl(link.query, keep_blank_values=True))

    def _as_columns(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Sequence[object]]:
        return {
            name: [record[name] if name in record else _at_path(record, name) for record in records]
            for name in self._columns
        }


def _at_path(value: Any, path: str) -> object:
    """Follow a dotted path through objects; None where it ends."""
    for key in path.split(".") if path else ():
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return cast("object", value)
