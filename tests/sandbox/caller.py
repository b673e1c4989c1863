"""A plain caller of the sandbox: says what it is told to, and hides nothing of the answer."""

from __future__ import annotations

from typing import Any, Self

import httpx

from criteo_provider.sandbox.running import Sandbox

SEGMENTS = "/2026-07/marketing-solutions/audience-segments"


class Caller:
    """An HTTP client with a token, and the few calls that tests make over and over."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.http = httpx.Client(base_url=sandbox.url, trust_env=False)
        self.token = ""
        self.refresh_token = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def ask_token(self, **form: str) -> httpx.Response:
        """Ask for a token by client credentials; ``form`` replaces or adds fields."""
        fields = {
            "client_id": self.sandbox.client_id,
            "client_secret": self.sandbox.client_secret,
            "grant_type": "client_credentials",
        }
        return self.http.post("/oauth2/token", data={**fields, **form})

    def sign_in(self, **form: str) -> Self:
        """Take a token along from now on."""
        self.token = self.ask_token(**form).json()["access_token"]
        return self

    def call(self, method: str, path: str, body: object = None, **headers: str) -> httpx.Response:
        """Call with the token, and ``body`` as JSON unless it is bytes."""
        sent = {
            "Authorization": f"Bearer {self.token}",
            **{k.replace("_", "-"): v for k, v in headers.items()},
        }
        if isinstance(body, bytes):
            return self.http.request(method, path, content=body, headers={"Content-Type": "application/json", **sent})
        return self.http.request(method, path, json=body, headers=sent)

    def create(self, name: str, *, advertiser: str = "1001", **attributes: object) -> httpx.Response:
        """Create one segment, a contact list unless another kind is given."""
        wanted = attributes or {"contactList": {}}
        resource = {
            "type": "AudienceSegment",
            "attributes": {"advertiserId": advertiser, "name": name, **wanted},
        }
        return self.call("POST", f"{SEGMENTS}/create", {"data": [resource]})

    def new_list(self, name: str = "VIP") -> str:
        """Create a contact list and return its id."""
        return str(self.create(name).json()["data"][0]["id"])

    def search(self, query: str = "", **filters: object) -> httpx.Response:
        """Search segments."""
        body = {"data": {"type": "AudienceSegment", "attributes": filters}}
        return self.call("POST", f"{SEGMENTS}/search{query}", body)

    def amend(self, segment_id: str, identifiers: list[Any], **attributes: Any) -> httpx.Response:
        """Add identifiers of type email, unless ``attributes`` say otherwise; a None leaves a member out."""
        wanted = {"operation": "add", "identifierType": "email", "identifiers": identifiers, **attributes}
        wanted = {member: value for member, value in wanted.items() if value is not None}
        body = {"data": {"type": "ContactlistAmendment", "attributes": wanted}}
        return self.call("PATCH", f"{SEGMENTS}/{segment_id}/contact-list", body)

    def statistics(self, segment_id: str) -> dict[str, Any]:
        """Return the statistics of a list."""
        answer = self.call("GET", f"{SEGMENTS}/{segment_id}/contact-list/statistics")
        return dict(answer.json()["data"]["attributes"])


def code_of(answer: httpx.Response) -> str:
    """Return the code of the first error in Criteo's envelope."""
    return str(answer.json()["errors"][0]["code"])
