from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from criteo_provider.core.errors import SourceFailed
from criteo_provider.core.ports import Json
from criteo_provider.sources.paged_http import HttpAnswer, PagedHttpSource, Paging
from tests.sources.table import nothing_seen


class People:
    """An API of people in one paging style, two on a page; new ones come at the end."""

    def __init__(self, kind: str, count: int = 5) -> None:
        self.kind = kind
        self.records: list[dict[str, Any]] = [person(n) for n in range(count)]
        self.calls: list[Mapping[str, str]] = []

    def get(self, endpoint: str, params: Mapping[str, str]) -> HttpAnswer:
        assert endpoint == "/v1/people"
        self.calls.append(params)
        start = {
            "cursor": lambda: int(params.get("after", "c0")[1:]),
            "page": lambda: 2 * (int(params["page"]) - 1),
            "offset": lambda: int(params["skip"]),
            "link": lambda: int(params.get("from", "0")),
        }[self.kind]()
        body: dict[str, Any] = {"data": {"items": self.records[start : start + 2]}, "meta": {}}
        headers = {}
        if start + 2 < len(self.records):
            body["meta"]["next"] = f"c{start + 2}"
            address = f"https://elsewhere.example.com/v1/people?segment=vip&from={start + 2}"
            headers["link"] = f'<https://x.example.com/0>; rel="prev", <{address}>; rel="next"'
        return HttpAnswer(200, headers, json.dumps(body))


def person(n: int) -> dict[str, Any]:
    return {"id": n, "contact": {"email": f"p{n}@example.com"}}


PAGING = {
    "cursor": Paging("cursor", param="after", next="meta.next"),
    "page": Paging("page", param="page"),
    "offset": Paging("offset", param="skip"),
    "link": Paging("link"),
}


def source(people: People, **settings: Any) -> PagedHttpSource:
    settings = {
        "endpoint": "/v1/people",
        "records": "data.items",
        "columns": ["id", "contact.email"],
        "paging": PAGING.get(people.kind),
        "params": {"segment": "vip"},
    } | settings
    return PagedHttpSource(people.get, **settings)


def entered(reader: PagedHttpSource, position: Json, max_rows: int = 100) -> tuple[list[object], Json]:
    ids: list[object] = []
    for page in reader.pages(position, max_rows=lambda: max_rows, seen=nothing_seen):
        assert page.rows <= max_rows
        assert page.columns["contact.email"] == [f"p{n}@example.com" for n in page.columns["id"]]
        ids += page.columns["id"]
        position = page.position
    return ids, position


@pytest.mark.parametrize("max_rows", [1, 100])
@pytest.mark.parametrize("count", [0, 1, 2, 4, 5])
@pytest.mark.parametrize("kind", PAGING)
def test_records_come_once_and_later_ones_are_found(kind: str, count: int, max_rows: int) -> None:
    """In every paging style each record comes once, also those that fill up a last page later."""
    people = People(kind, count)
    reader = source(people)
    assert reader.is_ahead(None, nothing_seen) is (count > 0)
    ids, position = entered(reader, None, max_rows)
    assert ids == list(range(count))
    assert not reader.is_ahead(position, nothing_seen)
    for n in range(count, count + 3):
        people.records.append(person(n))
        assert reader.is_ahead(json.loads(json.dumps(position)), nothing_seen)
        ids, position = entered(source(people), json.loads(json.dumps(position)), max_rows)
        assert ids == [n]


@pytest.mark.parametrize("kind", PAGING)
def test_reading_goes_on_behind_any_page(kind: str) -> None:
    """A reader that stops after any page loses and repeats nothing."""
    people, position, ids = People(kind), None, []
    while page := next(iter(source(people).pages(position, max_rows=lambda: 1, seen=nothing_seen)), None):
        ids += page.columns["id"]
        position = page.position
    assert ids == [0, 1, 2, 3, 4]


def test_parameters_are_sent_and_a_known_size_saves_a_call() -> None:
    """Fixed parameters and the page size go with every call; a short page is the last one."""
    people = People("page")
    reader = source(people, paging=Paging("page", param="page", size=2, size_param="limit"))
    entered(reader, None)
    assert people.calls == [{"segment": "vip", "limit": "2", "page": str(n)} for n in (1, 2, 3)]


def answering(answer: HttpAnswer | Exception, paging: Paging = PAGING["cursor"]) -> PagedHttpSource:
    def get(endpoint: str, params: Mapping[str, str]) -> HttpAnswer:
        if isinstance(answer, Exception):
            raise answer
        return answer

    return PagedHttpSource(get, endpoint="/v1/people", records="data", columns=["id"], paging=paging)


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (HttpAnswer(503, {}, "kate@example.com"), "/v1/people answered with status 503"),
        (HttpAnswer(200, {}, "kate@example.com"), "/v1/people did not answer with JSON"),
        (ConnectionError("https://x/?key=kate@example.com"), "/v1/people cannot be reached now: ConnectionError"),
        (
            HttpAnswer(200, {}, '{"data": [{"id": 1}], "next": "c"}'),
            "/v1/people: a page names itself as the next page",
        ),
        (
            HttpAnswer(200, {"Link": '</v2/other?x=1>; rel="next"'}, '{"data": [{"id": 1}]}'),
            "/v1/people: the Link header leads to another endpoint",
        ),
    ],
)
def test_trouble_is_one_sentence_without_an_address(answer: HttpAnswer | Exception, sentence: str) -> None:
    """Whatever the endpoint does wrong is SourceFailed, naming the endpoint and no value."""
    link = isinstance(answer, HttpAnswer) and "Link" in answer.headers
    paging = PAGING["link"] if link else Paging("cursor", param="after", next="next")
    pages = answering(answer, paging).pages(None, max_rows=lambda: 9, seen=nothing_seen)
    with pytest.raises(SourceFailed) as failure:
        list(pages)
    assert str(failure.value) == sentence


def test_wrong_records_path_names_what_is_there() -> None:
    """A `records` path that leads nowhere is named with the keys of the answer."""
    with pytest.raises(SourceFailed, match=r"no list of objects at `records: data`; the answer has: items, meta"):
        answering(HttpAnswer(200, {}, '{"items": [], "meta": 1}')).is_ahead(None, nothing_seen)


@pytest.mark.parametrize("kind", PAGING)
def test_a_position_of_another_source_is_refused(kind: str) -> None:
    """A stored position that does not fit the paging is spoken of, not guessed at."""
    others: dict[str, Json] = {"cursor": {"at": {}, "rows": 1}, "link": {"at": 3, "rows": 1}}
    for position in (["2026-07-01", 7], others.get(kind, {"at": "c7", "rows": 1})):
        with pytest.raises(SourceFailed, match=f"not one of `kind: {kind}`: was the source changed"):
            entered(source(People(kind)), position)
