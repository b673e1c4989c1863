"""Stand-ins for the pacer, the token store and Criteo."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import httpx

from criteo_provider.criteo_api.client import CriteoClient
from criteo_provider.criteo_api.line import ClientSettings
from criteo_provider.criteo_api.own_tokens import OwnTokens

SETTINGS = ClientSettings("an-id", "s3cr+t/=&% x")
Handler = Callable[[httpx.Request], httpx.Response]


class CountedSlots:
    """A pacer that never waits and writes down what passes."""

    def __init__(self) -> None:
        self.entered: list[bool] = []
        self.seen: list[tuple[int, str | None]] = []

    def enter(self, *, interactive: bool = False) -> None:
        self.entered.append(interactive)

    def observed(self, status: int, headers: Mapping[str, str]) -> None:
        self.seen.append((status, headers.get("x-ratelimit-remaining")))


class MemoryTokens(OwnTokens):
    """A token store in memory, shared by several clients, whose clock may be ahead."""

    ahead_s = 0.0

    def now_s(self) -> float:
        return super().now_s() + self.ahead_s


class Criteo:
    """A scripted Criteo: answers each path with the next of its answers (the last one for ever)."""

    def __init__(self, **answers: object) -> None:
        self.answers: dict[str, list[object]] = {"token": [{"access_token": "tok-1", "expires_in": 900}]}
        for name, given in answers.items():
            self.answers[name] = list(given) if isinstance(given, list) else [given]
        self.requests: list[httpx.Request] = []
        self.slots = CountedSlots()
        self.tokens = MemoryTokens()

    def client(self, *, interactive: bool = False, settings: ClientSettings = SETTINGS) -> CriteoClient:
        return CriteoClient(
            settings, self.slots, self.tokens, interactive=interactive, transport=httpx.MockTransport(self)
        )

    def calls(self, name: str) -> list[httpx.Request]:
        return [request for request in self.requests if _name(request) == name]

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        script = self.answers[_name(request)]
        answer = script.pop(0) if len(script) > 1 else script[0]
        if callable(answer):
            answer = answer(request)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, httpx.Response):
            return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)
        return httpx.Response(200, content=json.dumps(answer).encode())


def _name(request: httpx.Request) -> str:
    path = request.url.path
    if path == "/oauth2/token":
        return "token"
    if path.endswith("/contact-list"):
        return "amend"
    return path.rsplit("/", 1)[-1].replace("me", "advertisers" if "advertisers" in path else "application", 1)


def problem(status: int, type_: str, code: str, container: str = "errors") -> httpx.Response:
    entry = {"type": type_, "code": code, "instance": "/x", "title": "t", "traceId": "0f"}
    return httpx.Response(status, json={container: [entry]})


def accepted(valid: int = 1, invalid: int = 0) -> dict[str, object]:
    attributes = {"operation": "add", "nbValidIdentifiers": valid, "nbInvalidIdentifiers": invalid}
    return {"data": {"type": "ContactlistAmendment", "attributes": attributes}, "errors": [], "warnings": []}


def segment(criteo_id: str, name: str, kind: str = "ContactList", *, read_only: bool = False) -> dict[str, object]:
    contact_list = {"isReadOnly": read_only} if kind == "ContactList" else None
    attributes = {"advertiserId": "13", "name": name, "type": kind, "contactList": contact_list}
    return {"id": criteo_id, "type": "AudienceSegment", "attributes": attributes}


def page(*segments: dict[str, object], total: int | None = None) -> dict[str, object]:
    return {"meta": {"totalItems": len(segments) if total is None else total}, "data": list(segments)}
