"""The front desk: every call is noted, counted, identified, read and allowed here, then handled."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from criteo_provider.sandbox import routes_oauth
from criteo_provider.sandbox.answers import Answer, Refusal, forbidden, invalid
from criteo_provider.sandbox.calls import Call, Operation
from criteo_provider.sandbox.faults import Fault
from criteo_provider.sandbox.journal import Entry
from criteo_provider.sandbox.ratelimit import Tally
from criteo_provider.sandbox.rules import SUNSET
from criteo_provider.sandbox.state import Grant, World

ABORT = "criteo_sandbox.abort"
"""Scope key under which the server offers a function that cuts the connection."""

MEDIA = {"json": "application/json", "form": "application/x-www-form-urlencoded"}
RANKS = {"none": 0, "read": 1, "manage": 2}


class Dropped(Exception):
    """The connection is to be cut without an answer."""


class Visit:
    """One request, from its first byte to its answer."""

    def __init__(self, world: World, operation: Operation, request: Request) -> None:
        self.world = world
        self.operation = operation
        self.request = request
        self.instance = request.url.path
        self.version: str | None = request.path_params.get("version")
        self.journal = world.journal
        self.entry: Entry = self.journal.open(operation.name)
        self.entry.version = self.version
        self.entry.segment_id = request.path_params.get("segment_id")
        self.tally: Tally | None = None

    async def response(self) -> Response | None:
        """Return what the caller gets; None: the connection is to be cut."""
        try:
            answer = await self._answered()
        except (Dropped, ClientDisconnect):
            self.journal.close(self.entry, None)
            return None
        self.entry.code = answer.code
        headers = {**self._headers(), **answer.headers}
        self.journal.close(self.entry, answer.status)
        return Response(answer.body, answer.status, headers, answer.content_type)

    async def _answered(self) -> Answer:
        grant, doubt = self._bearer()
        if self.operation.takes != "form":
            self._count(grant)
        body, size = await self._body()
        if self.operation.takes == "form":
            grant, doubt = routes_oauth.caller(self.world, body), None
            self._count(grant)
        self._name(grant)
        fault = self.world.faults.pick(self.operation.name, self.entry.segment_id)
        self.entry.fault = fault is not None
        if fault is not None and fault.drop == "before":
            raise Dropped
        if fault is not None and fault.prevents:
            answer = self._failure(fault)
        else:
            answer = self._handled(grant, doubt, body, size, rival=fault is not None and fault.rival)
            if fault is not None:
                answer = self._spoilt(answer, fault)
        await asyncio.sleep(self.world.rules.latency_s + (fault.delay_s if fault else 0.0))
        if fault is not None and fault.drop == "after":
            raise Dropped
        return answer

    def _handled(self, grant: Grant, doubt: Refusal | None, body: bytes, size: int, *, rival: bool) -> Answer:
        try:
            self._check_version()
            self._check_rate()
            if doubt is not None:
                raise doubt
            self._check_permission(grant)
            self._check_body(size)
            path, query = self.request.path_params, self._query()
            call = Call(self.world, grant, self.instance, path, query, body, self.entry, rival=rival)
            return self.operation.handle(call)
        except Refusal as refusal:
            answer = refusal.answer(self.instance)
            return self._busy(answer) if answer.status == 429 else answer

    def _bearer(self) -> tuple[Grant, Refusal | None]:
        """Return whose call this is, and why it is not let in if it is not."""
        grant, doubt = self._token_of_header()
        return grant, None if self.operation.needs == "nothing" else doubt

    def _token_of_header(self) -> tuple[Grant, Refusal | None]:
        world = self.world
        header = self.request.headers.get("authorization")
        if header is None:
            return world.anonymous, _unauthorized("token-missing", "The authorization token is missing")
        scheme, _, value = header.partition(" ")
        token = world.tokens.get(value) if scheme.lower() == "bearer" else None
        if token is None:
            return world.anonymous, _unauthorized("token-invalid", "The authorization header is invalid")
        if token.ends_s <= world.clock.monotonic_s():
            return token.grant, _unauthorized("token-expired", "The authorization token has expired")
        return token.grant, None

    def _count(self, grant: Grant) -> None:
        rules, now_s = self.world.rules, self.world.clock.monotonic_s()
        counted = self.operation.takes != "form" or rules.token_calls_count
        ask = grant.window.take if counted else grant.window.look
        self.tally = ask(now_s, limit=self.world.limit_of(grant), window_s=rules.window_s)

    def _name(self, grant: Grant) -> None:
        application = self.world.applications.get(grant.client_id)
        if application is not None:
            self.entry.application, self.entry.grant = application.number, grant.number

    async def _body(self) -> tuple[bytes, int]:
        """Read the whole body, but keep no more than is allowed; return it and its true size."""
        most, size = self.world.rules.max_body_bytes, 0
        pieces: list[bytes] = []
        async for piece in self.request.stream():
            size += len(piece)
            if size <= most:
                pieces.append(piece)
        self.entry.body_bytes = size
        self.entry.note_body_end()
        return b"".join(pieces), size

    def _check_version(self) -> None:
        if self.version is None:
            return
        state = self.world.rules.versions.get(self.version)
        if state is None:
            raise not_found()
        if state == "gone":
            raise Refusal(410, "deprecation", "endpoint-deprecated", "This API version is decommissioned")

    def _check_rate(self) -> None:
        if self.tally is not None and not self.tally.allowed:
            raise Refusal(429, "quota", "too-many-requests", "The rate limit is exceeded")

    def _check_permission(self, grant: Grant) -> None:
        application = self.world.applications.get(grant.client_id)
        needed = RANKS.get(self.operation.needs, 0)
        if needed and (grant.revoked or application is None or RANKS[application.permission] < needed):
            raise forbidden("The application has no permission for this call, or its consent was revoked")

    def _check_body(self, size: int) -> None:
        if self.operation.takes == "nothing":
            return
        headers = self.request.headers
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise Refusal(415, "validation", "invalid", "Compressed request bodies are not supported")
        media, _, parameters = headers.get("content-type", "").partition(";")
        charset = parameters.strip().lower()
        if media.strip().lower() != MEDIA[self.operation.takes] or charset not in ("", "charset=utf-8"):
            if self.operation.takes == "form":
                raise routes_oauth.OAuthRefusal(400, "invalid_request", "The request must be form-encoded")
            raise Refusal(415, "validation", "invalid", f"The content type must be {MEDIA['json']}")
        if size > self.world.rules.max_body_bytes:
            raise Refusal(413, "validation", "invalid", "The body is too large")

    def _query(self) -> dict[str, str]:
        query: dict[str, str] = {}
        for name, value in self.request.query_params.multi_items():
            if name in query:
                raise invalid(f"The query parameter {name} is given twice", field_path=name)
            query[name] = value
        return query

    def _busy(self, answer: Answer) -> Answer:
        bodies = {"object": b"{}", "html": b"<html><body>Too Many Requests</body></html>", "empty": b""}
        rules = self.world.rules
        if rules.busy_body != "envelope":
            answer.body = bodies[rules.busy_body]
            answer.content_type = "text/html" if rules.busy_body == "html" else answer.content_type
        if rules.retry_after and self.tally is not None:
            answer.headers["retry-after"] = str(int(self.tally.reset_in_s) + 1)
        return answer

    def _failure(self, fault: Fault) -> Answer:
        status = fault.status or 500
        if fault.body is None:
            answer = Refusal(status, fault.error_type, fault.code, fault.title).answer(self.instance)
        else:
            answer = Answer(status, fault.body.encode(), fault.content_type)
        answer.headers.update(fault.headers)
        if fault.reset_in_s is not None:
            reset_s = math.ceil(time.time() + fault.reset_in_s)
            answer.headers.update({"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(reset_s)})
        return answer

    def _spoilt(self, answer: Answer, fault: Fault) -> Answer:
        if fault.status is not None:
            answer = self._failure(fault)
        elif fault.body is not None:
            answer.body, answer.content_type = fault.body.encode(), fault.content_type
        else:
            answer.body = fault.edited(answer.body)
        if fault.truncate:
            answer.body = answer.body[: len(answer.body) // 2]
        answer.headers.update(fault.headers)
        return answer

    def _headers(self) -> dict[str, str]:
        world = self.world
        headers = self.tally.headers() if self.tally else {}
        if self.version and world.rules.versions.get(self.version) == "deprecated":
            headers |= {"deprecation": "true", "sunset": SUNSET}
        return headers


def endpoint(world: World, operation: Operation) -> Callable[[Request], Awaitable[Response]]:
    """Return the Starlette endpoint of one operation."""

    async def attend(request: Request) -> Response:
        response = await Visit(world, operation, request).response()
        return response if response is not None else await _cut(request)

    return attend


def not_found() -> Refusal:
    """Return the refusal of a route that is not there."""
    return Refusal(404, "validation", "not-found", "The resource is not found")


def unknown_route(_: Call) -> Answer:
    """Answer a path or method the API does not have."""
    raise not_found()


async def _cut(request: Request) -> Response:
    abort = request.scope.get(ABORT)
    if abort is None:
        sentence = "The sandbox drops this connection"
        raise ConnectionResetError(sentence)
    abort()
    message = await request.receive()
    while message["type"] != "http.disconnect":
        message = await request.receive()
    return Response(status_code=499)


def _unauthorized(code: str, title: str) -> Refusal:
    return Refusal(401, "authorization", f"authorization-{code}", title)
