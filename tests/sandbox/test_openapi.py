"""Requests and answers are what Criteo's OpenAPI file declares; run where CRITEO_OAS names that file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from tests.sandbox.caller import SEGMENTS, Caller

BASE = "/2026-07/marketing-solutions"


def nullable_as_json_schema(node: Any) -> Any:
    """Turn OpenAPI 3.0's `nullable` into JSON schema's own way to say it."""
    if isinstance(node, list):
        return [nullable_as_json_schema(item) for item in node]
    if not isinstance(node, dict):
        return node
    turned = {key: nullable_as_json_schema(value) for key, value in node.items()}
    return {"anyOf": [turned, {"type": "null"}]} if turned.pop("nullable", False) is True else turned


@pytest.fixture(scope="module")
def contract() -> dict[str, Any]:
    content = json.loads(Path(os.environ["CRITEO_OAS"]).read_text())
    return {"paths": content["paths"], "components": nullable_as_json_schema(content["components"])}


def check(contract: dict[str, Any], template: str, answer: httpx.Response) -> None:
    """Hold one exchange against the contract of its operation."""
    operation = contract["paths"][template][answer.request.method.lower()]

    def matches(content: object, described: dict[str, Any]) -> None:
        schema = nullable_as_json_schema(described["content"]["application/json"]["schema"])
        jsonschema.validate(content, {**schema, "components": contract["components"]})

    if answer.request.content and "requestBody" in operation:
        matches(json.loads(answer.request.content), operation["requestBody"])
    assert str(answer.status_code) in operation["responses"]
    matches(answer.json(), operation["responses"]["200"])


def test_every_operation_answers_as_declared(caller: Caller, contract: dict[str, Any]) -> None:
    """Each call of a list's life, its partial failures included, fits the contract in both directions."""
    created = caller.create("VIP")
    segment_id = created.json()["data"][0]["id"]
    reference = {"data": [{"id": segment_id, "type": "AudienceSegment", "attributes": {}}]}
    update = {"data": [{"id": segment_id, "type": "AudienceSegment", "attributes": {"name": "VIP2"}}]}
    attributes = {"advertiserId": "1001", "name": "a", "algebra": {"audienceSegmentId": segment_id}}
    audience = caller.call("POST", f"{BASE}/audiences/create", {"data": [{"attributes": attributes}]})
    link = {"data": {"attributes": {"audienceId": audience.json()["data"][0]["id"]}}}
    path = f"{BASE}/audience-segments"
    contact_list = f"{path}/{{audience-segment-id}}/contact-list"
    check(contract, "/2026-07/advertisers/me", caller.call("GET", "/2026-07/advertisers/me"))
    check(contract, f"{BASE}/me", caller.call("GET", f"{BASE}/me"))
    check(contract, f"{path}/create", created)
    check(contract, f"{path}/create", caller.create("VIP"))
    check(contract, f"{path}/create", caller.create("like", lookalike={"seedSegmentId": segment_id}))
    check(contract, f"{path}/search", caller.search("?limit=1", advertiserIds=["1001"]))
    check(contract, path, caller.call("PATCH", SEGMENTS, update))
    check(contract, contact_list, caller.amend(segment_id, ["a@example.com", "nonsense"]))
    check(
        contract, f"{contact_list}/statistics", caller.call("GET", f"{SEGMENTS}/{segment_id}/contact-list/statistics")
    )
    check(contract, contact_list, caller.call("DELETE", f"{SEGMENTS}/{segment_id}/contact-list"))
    check(contract, f"{path}/compute-sizes", caller.call("POST", f"{SEGMENTS}/compute-sizes", reference))
    check(contract, f"{BASE}/audiences/create", audience)
    check(contract, f"{BASE}/ad-sets/{{ad-set-id}}/audience", caller.call("PUT", f"{BASE}/ad-sets/5/audience", link))
    check(contract, f"{path}/delete", caller.call("POST", f"{SEGMENTS}/delete", reference))
