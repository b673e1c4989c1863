"""What our client sends and what the sandbox answers, held against Criteo's own contracts, exchange by exchange.

`CRITEO_OPENAPI` may name Criteo's OpenAPI file, which is not part of this project; then it judges too.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qsl

import jsonschema
import pytest

from criteo_provider.core.errors import CriteoSyncError
from criteo_provider.core.outcome import Accepted
from criteo_provider.criteo_api import grants
from criteo_provider.criteo_api.client import CriteoClient
from criteo_provider.criteo_api.consent import new_request
from criteo_provider.criteo_api.line import ClientSettings, Line
from criteo_provider.criteo_api.wire import amendment_body
from criteo_provider.sandbox.app import create_app
from criteo_provider.sandbox.running import Sandbox, running_sandbox
from criteo_provider.sandbox.state import World
from tests.criteo_api.doubles import CountedSlots, MemoryTokens
from tests.sandbox.caller import Caller
from tests.sandbox.judges import ORACLES, Exchange, Judge, OpenApiJudge, SdkJudge, Wrong, recording, sdk
from tests.sandbox.test_identifiers import MADID
from tests.sandbox.test_oauth import REDIRECT
from tests.sandbox.test_official_sdk import Official, every_call, every_grant

SHOP = "1001"
OPENAPI = os.environ.get("CRITEO_OPENAPI")
JUDGES = [*ORACLES, *([OPENAPI] if OPENAPI else [])]
PEOPLE = [hashlib.sha256(f"person{n}@example.com".encode()).hexdigest() for n in range(300)]
KINDS = {
    "email": PEOPLE,
    "madid": [MADID, MADID.upper()],
    "identityLink": ["XY1000abc"],
    "gum": ["k-1", "k-2"],
}

TROUBLES = (
    "token-expired", "read-only-application", "advertiser-not-consented", "busy", "internal-error",
    "identifiers-invalid", "too-many-identifiers", "version-deprecated", "segment-deleted",
)  # fmt: skip


@pytest.fixture(params=JUDGES, ids=lambda judge: f"sdk-{judge}" if judge in ORACLES else "openapi")
def judge(request: pytest.FixtureRequest) -> Iterator[Judge]:
    if request.param not in ORACLES:
        yield OpenApiJudge(Path(request.param))
        return
    with sdk(request.param) as package:
        yield SdkJudge(request.param, package)


@pytest.fixture
def exchanges(monkeypatch: pytest.MonkeyPatch) -> list[Exchange]:
    """Every call from now on, as it went over the wire."""
    written: list[Exchange] = []
    monkeypatch.setattr("criteo_provider.sandbox.serve.create_app", lambda world: recording(create_app(world), written))
    return written


@pytest.fixture
def sandbox(exchanges: list[Exchange]) -> Iterator[Sandbox]:
    with running_sandbox(World.example()) as sandbox:
        yield sandbox


def client_of(sandbox: Sandbox, version: str) -> CriteoClient:
    settings = ClientSettings(sandbox.client_id, sandbox.client_secret, sandbox.url, api_version=version)
    return CriteoClient(settings, CountedSlots(), MemoryTokens())


def everything_our_client_says(sandbox: Sandbox, version: str) -> None:
    """Make every call the client has, with every operation and type, and meet every kind of refusal."""
    with client_of(sandbox, version) as client:
        client.application()
        client.ad_accounts()
        audience, _ = client.ensure_audience(SHOP, "VIP", "Made by a test")
        client.may_read_audiences(SHOP)
        for operation in ("add", "remove"):
            for kind, people in KINDS.items():
                quoted = ",".join(json.dumps(one) for one in people).encode()
                pieces = amendment_body(operation, kind, 7 if kind == "gum" else None, [quoted])
                assert client.amend(audience.criteo_id, pieces) == Accepted(len(people), 0)
        client.statistics(audience.criteo_id)
        client.create_audience(SHOP, "Another")
        client.listing(SHOP)
        assert set(client.look_up([audience.criteo_id])) == {audience.criteo_id}
        assert len(list(client.audiences(SHOP))) == 2
        sandbox.throw("many-segments", limit=101)
        assert client.find_audience(SHOP, "VIP") == audience
        sandbox.throw("name-race")
        client.ensure_audience(SHOP, "Raced")
        for trouble in ("audience-quota", "creation-fails-in-errors", "creation-fails-in-warnings"):
            sandbox.clear_faults()
            sandbox.throw(trouble)
            with pytest.raises(CriteoSyncError):
                client.ensure_audience(SHOP, "Refused")
        for trouble in TROUBLES:
            sandbox.clear_faults()
            sandbox.throw(trouble)
            client.amend(audience.criteo_id, amendment_body("add", "email", None, [_quoted(PEOPLE)]))
        with pytest.raises(CriteoSyncError):
            client.statistics(audience.criteo_id)


def _quoted(people: list[str]) -> bytes:
    return ",".join(f'"{one}"' for one in people).encode()


def test_check_02_what_our_client_sends_is_in_the_contract(
    sandbox: Sandbox, exchanges: list[Exchange], judge: Judge
) -> None:
    """Every request of our client, all operations and types, fits Criteo's models, and so does every answer."""
    everything_our_client_says(sandbox, judge.version)
    calls = [exchange for exchange in exchanges if not exchange.is_token_call]
    assert len(calls) > 30
    assert {exchange.status for exchange in calls} == {200, 400, 401, 403, 404, 429, 500}
    for exchange in calls:
        judge.request(exchange)
        judge.answer(exchange)
        assert exchange.headers["authorization"].startswith("Bearer ")
        if exchange.body:
            assert exchange.headers["content-type"] == "application/json"
            assert "content-encoding" not in exchange.headers
    sent = {(one["operation"], one["identifierType"]) for one in _amendments(calls)}
    assert sent == {(operation, kind) for operation in ("add", "remove") for kind in KINDS}
    assert all(("gumCallerId" in one) == (one["identifierType"] == "gum") for one in _amendments(calls))


def test_check_02_what_the_sandbox_answers_is_in_the_contract(
    sandbox: Sandbox, exchanges: list[Exchange], judge: Judge
) -> None:
    """Every answer to every call of the official SDK fits Criteo's models, partial failures in all shapes included."""
    with sdk("2026-07") as package:
        every_call(Official(sandbox, package), sandbox)
    with Caller(sandbox) as caller:
        caller.sign_in()
        for mode in ("errors200", "warnings200", "status400"):
            sandbox.rules(bulk_failure=mode)
            caller.create("twice")
            caller.create("like", lookalike={"seedSegmentId": "7001"})
        caller.amend(caller.search().json()["data"][0]["id"], ["a@example.com", "nonsense"])
    calls = [exchange for exchange in exchanges if not exchange.is_token_call]
    assert len({(exchange.method, exchange.path) for exchange in calls}) >= 12
    for exchange in calls:
        judge.answer(replace(exchange, path=exchange.path.replace("2026-07", judge.version)))


@pytest.mark.parametrize("version", ORACLES)
def test_our_token_calls_are_those_of_the_sdk(sandbox: Sandbox, exchanges: list[Exchange], version: str) -> None:
    """For each grant our client asks for a token with the fields, the form and the headers the official SDK uses."""
    with sdk(version) as package:
        every_grant(package, sandbox)
    theirs = _token_forms(exchanges)
    exchanges.clear()
    settings = ClientSettings(sandbox.client_id, sandbox.client_secret, sandbox.url, api_version=version)
    asked = new_request()
    code = sandbox.new_code(REDIRECT, [SHOP])
    with Line(settings, CountedSlots()) as line:
        granted = grants.exchange(line, grants.AuthorizationCode(settings, code, REDIRECT, asked.verifier))
        grants.fetch(line, grants.RefreshToken(settings, OneConsent(granted.refresh_token or "")))
        grants.fetch(line, grants.ClientCredentials(settings))
    ours = _token_forms(exchanges)
    assert set(theirs) == set(ours) == {"client_credentials", "authorization_code", "refresh_token"}
    for grant, (fields, headers) in ours.items():
        # RFC 7636 adds the verifier; the SDK knows no PKCE.
        assert (fields - {"code_verifier"}, headers) == theirs[grant]


class OneConsent(MemoryTokens):
    """A consent that is exchanged once."""

    def __init__(self, refresh_token: str) -> None:
        super().__init__()
        self._refresh_token = refresh_token

    def refresh_token(self) -> str:
        return self._refresh_token

    def refused(self) -> bool:
        return True


def test_no_call_of_the_client_is_left_out() -> None:
    """Whoever adds a call to the client adds it to what the judges hear."""
    calls = {name for name, value in vars(CriteoClient).items() if callable(value) and not name.startswith("_")}
    assert calls - {"close", "make_ready"} == {
        "amend", "application", "ad_accounts", "audiences", "may_read_audiences", "listing", "find_audience",
        "ensure_audience", "create_audience", "statistics", "look_up",
    }  # fmt: skip


def _token_forms(exchanges: list[Exchange]) -> dict[str, tuple[set[str], tuple[str | None, ...]]]:
    """By grant: the names of the fields, and the headers that matter."""
    forms = {}
    for exchange in filter(lambda one: one.is_token_call, exchanges):
        assert exchange.status == 200
        form = dict(parse_qsl(exchange.body.decode(), strict_parsing=True))
        headers = tuple(exchange.headers.get(name) for name in ("content-type", "authorization", "content-encoding"))
        forms[form["grant_type"]] = set(form), headers
    return forms


def _amendments(calls: list[Exchange]) -> list[dict[str, object]]:
    return [json.loads(call.body)["data"]["attributes"] for call in calls if call.path.endswith("/contact-list")]


@pytest.mark.parametrize(
    ("wrong", "in_answer"),
    [
        ({"path": "/2026-07/marketing-solutions/audiences/7/contactlist"}, False),
        ({"body": b'{"data":{"type":"ContactlistAmendment","attributes":{"operation":"ad","identifiers":[]}}}'}, False),
        ({"body": b'{"data":{"type":"ContactlistAmendment","attributes":{"identifiers":[]}}}'}, False),
        ({"answer": b'{"data":{"type":"x","attributes":{"contactListId":"7"}},"errors":[],"warnings":[]}'}, True),
        ({"answer": b'{"errors":[],"warnings":[]}'}, True),
    ],
)
def test_judges_do_judge(judge: Judge, wrong: dict[str, object], in_answer: bool) -> None:
    """A wrong path, a wrong value, a missing member, a wrong type in an answer: each judge says no."""
    attributes = {"operation": "add", "identifierType": "email", "identifiers": PEOPLE[:1]}
    path = f"/{judge.version}/marketing-solutions/audience-segments/7/contact-list"
    body = json.dumps({"data": {"type": "ContactlistAmendment", "attributes": attributes}}).encode()
    told = {"contactListId": 7, "operation": "add", "requestDate": "2026-11-23T10:00:50.0000000+00:00",
            "identifierType": "email", "nbValidIdentifiers": 1, "nbInvalidIdentifiers": 0,
            "sampleInvalidIdentifiers": []}  # fmt: skip
    answer = json.dumps({"data": {"type": "ContactlistAmendment", "attributes": told}, "errors": [], "warnings": []})
    good = Exchange("PATCH", path, "", {}, body, 200, answer.encode())
    judge.request(good)
    judge.answer(good)
    look = judge.answer if in_answer else judge.request
    with pytest.raises((Wrong, jsonschema.ValidationError, TypeError, ValueError, AttributeError)) as caught:
        look(replace(good, **wrong))
    assert type(caught.value).__name__ in ("Wrong", "ValidationError", "ApiTypeError", "ApiValueError",
                                           "ApiAttributeError", "TypeError")  # fmt: skip
