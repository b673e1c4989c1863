"""Answers and refusals in Criteo's envelope."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

Json = dict[str, object]


@dataclass(slots=True)
class Answer:
    """What goes back over the wire."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    code: str | None = None


class Refusal(Exception):
    """A call, or one item of it, that is refused; ``kind`` is one of Criteo's eight error types."""

    def __init__(
        self,
        status: int,
        kind: str,
        code: str,
        title: str,
        *,
        detail: str | None = None,
        source: dict[str, str] | None = None,
    ) -> None:
        super().__init__(title)
        self.status = status
        self.kind = kind
        self.code = code
        self.title = title
        self.detail = detail
        self.source = source

    def problem(self, instance: str) -> Json:
        """Return this refusal as an entry of ``errors`` or ``warnings``; both trace ids are live."""
        trace_id = secrets.token_hex(16)
        return {
            "traceId": trace_id,
            "traceIdentifier": trace_id,
            "type": self.kind,
            "code": self.code,
            "instance": instance,
            "title": self.title,
            "detail": self.detail,
            "source": self.source,
        }

    def answer(self, instance: str) -> Answer:
        """Return this refusal as an answer of its own."""
        body = msgspec.json.encode({"errors": [self.problem(instance)], "warnings": []})
        return Answer(self.status, body, code=self.code)


def invalid(title: str, *, code: str = "invalid", field_path: str | None = None) -> Refusal:
    """Return the refusal of a wrong request: 400, with what is wrong and where."""
    source = {field_path.rsplit("/", 1)[-1]: field_path} if field_path else None
    return Refusal(400, "validation", code, title, detail=title, source=source)


def forbidden(title: str = "The application has no permission for this advertiser") -> Refusal:
    """Return the refusal of a caller that lacks consent or permission."""
    return Refusal(403, "access-control", "insufficient-advertiser-permissions", title)


def audience_invalid() -> Refusal:
    """Return Criteo's own words for a contact list that is not there."""
    detail = "Audience is not found, please choose a valid audience"
    return Refusal(404, "validation", "audience-invalid", "Audience is invalid", detail=detail)


def accepted(data: object, *, meta: Json | None = None) -> Answer:
    """Return a complete success: all three members present, the arrays empty but never null."""
    head: Json = {} if meta is None else {"meta": meta}
    return Answer(200, msgspec.json.encode({**head, "data": data, "errors": [], "warnings": []}))


def partly(data: Sequence[object], failures: Sequence[Refusal], *, mode: str, instance: str) -> Answer:
    """Return the answer of a bulk call in one of its three documented shapes (``Rules.bulk_failure``)."""
    problems = [failure.problem(instance) for failure in failures]
    code = failures[0].code if failures else None
    if mode == "status400" and failures and not data:
        return Answer(400, msgspec.json.encode({"errors": problems, "warnings": []}), code=code)
    in_warnings = mode == "warnings200"
    content = {
        "data": data,
        "errors": [] if in_warnings else problems,
        "warnings": problems if in_warnings else [],
    }
    return Answer(200, msgspec.json.encode(content), code=code)
