"""Every fault of the catalogue can be thrown by its name, does what it says, and can be taken back."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable

import httpx
import pytest

from criteo_provider.sandbox.catalogue import CATALOGUE
from tests.sandbox.caller import SEGMENTS, Caller, code_of
from tests.sandbox.test_oauth import exchanged, refreshed

ANN = ["ann@example.com"]
PEOPLE = [hashlib.sha256(f"p{i}@example.com".encode()).hexdigest() for i in range(200)]
ME = "/2026-07/advertisers/me"
SOURCES = [f"F{n}" for n in range(1, 21)]

Proof = Callable[[Caller, str], None]
PROOFS: dict[str, Proof] = {}


def shows(*names: str) -> Callable[[Proof], Proof]:
    """Register how a fault shows; the proof is given a caller, and a contact list that is there before."""

    def add(proof: Proof) -> Proof:
        PROOFS.update(dict.fromkeys(names, proof))
        return proof

    return add


@pytest.mark.parametrize("name", [pytest.param(name, id=f"{each.source}-{name}") for name, each in CATALOGUE.items()])
def test_a_named_fault_shows_and_is_over_when_taken_back(caller: Caller, name: str) -> None:
    """Thrown by its name it does what the catalogue says; taken back, a new caller finds everything well."""
    segment_id = caller.new_list()
    THROWN_BEFORE.get(name, lambda _caller: None)(caller)
    caller.sandbox.throw(name)
    in_force = caller.sandbox.state()["faults_in_force"]
    assert in_force == ([] if CATALOGUE[name].kind == "event" else [name])
    PROOFS[name](caller, segment_id)
    caller.sandbox.take_back(name)
    assert caller.sandbox.state()["faults_in_force"] == []
    with Caller(caller.sandbox) as another:
        another.sign_in()
        fresh = another.new_list("After")
        assert another.amend(fresh, PEOPLE).json()["data"]["attributes"]["nbInvalidIdentifiers"] == 0
        assert another.statistics(fresh)["numberOfMatches"] == int(200 * 0.63)
        answer = another.search()
        assert set(answer.json()) == {"meta", "data", "errors", "warnings"}
        assert "sunset" not in answer.headers
        assert answer.headers["x-ratelimit-limit"] == "250"
        assert {item["attributes"]["type"] for item in answer.json()["data"]} == {"ContactList"}
        names = [item["attributes"]["name"] for item in answer.json()["data"]]
        assert len(names) == len(set(names))


def test_the_catalogue_has_all_twenty(caller: Caller) -> None:
    """F1 to F20 all have a name, each name says what happens, and no proof is left without a fault."""
    listed = caller.sandbox.catalogue()
    assert sorted({each["source"] for each in listed}, key=lambda source: int(source[1:])) == SOURCES
    assert [each["name"] for each in listed if not each["says"].endswith(".")] == []
    assert set(PROOFS) == {each["name"] for each in listed}
    assert all(re.fullmatch(r"[a-z0-9-]+", each["name"]) for each in listed)


def test_a_fault_may_hit_some_calls_of_one_list(caller: Caller) -> None:
    """times, operation and segment_id narrow a named fault; when its calls are over it is not in force."""
    one, two = caller.new_list("one"), caller.new_list("two")
    caller.sandbox.throw("busy", times=2, operation="amend", segment_id=one)
    statuses = [caller.amend(segment_id, ANN).status_code for segment_id in (two, one, one, one)]
    assert statuses == [200, 429, 429, 200]
    assert caller.sandbox.state()["faults_in_force"] == []


def test_what_cannot_be_thrown_is_refused(caller: Caller) -> None:
    """An unknown name, an unknown application and a count for what hits no calls are refused in a sentence."""
    for name, aim, sentence in (
        ("locusts", {}, "no fault named"),
        ("wrong-secret", {"client_id": "nobody"}, "no application"),
        ("consent-revoked", {"times": 3}, "takes no times"),
        ("busy", {"colour": "red"}, "colour"),
    ):
        with pytest.raises(ValueError, match=sentence):
            caller.sandbox.throw(name, **aim)
    assert caller.sandbox.state()["faults_in_force"] == []


def test_clearing_takes_back_the_latest_first(caller: Caller) -> None:
    """Two faults on one rule leave the first rule behind when all faults are cleared."""
    caller.sandbox.throw("limit-lowered", limit=7)
    caller.sandbox.throw("limit-lowered", limit=3)
    caller.sandbox.throw("too-large")
    caller.sandbox.fault(status=500)
    caller.sandbox.clear_faults()
    answer = caller.search()
    assert (answer.status_code, answer.headers["x-ratelimit-limit"]) == (200, "250")
    assert caller.sandbox.state()["rules"]["max_body_bytes"] == 10_000_000


def _connect(caller: Caller) -> None:
    caller.refresh_token = exchanged(caller, caller.sandbox)


def _fill(caller: Caller) -> None:
    caller.amend(caller.search().json()["data"][0]["id"], ANN)


THROWN_BEFORE: dict[str, Callable[[Caller], None]] = {
    "refresh-token-dead": _connect,
    "consent-revoked": _connect,
    "statistics-lag": _fill,
}
"""What has to be there before the fault is thrown."""


@shows("token-expired")
def _(caller: Caller, segment_id: str) -> None:
    stale = caller.search()
    assert (stale.status_code, code_of(stale)) == (401, "authorization-token-expired")
    assert caller.sign_in().search().is_success


@shows("token-forgotten")
def _(caller: Caller, segment_id: str) -> None:
    stale = caller.search()
    assert (stale.status_code, code_of(stale)) == (401, "authorization-token-invalid")
    assert caller.sign_in().search().is_success


@shows("token-refused")
def _(caller: Caller, segment_id: str) -> None:
    assert caller.ask_token().is_success
    assert caller.sign_in().search().status_code == 401


@shows("wrong-secret")
def _(caller: Caller, segment_id: str) -> None:
    answer = caller.ask_token()
    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")
    assert caller.search().is_success


@shows("advertiser-not-consented")
def _(caller: Caller, segment_id: str) -> None:
    assert caller.call("GET", ME).json()["data"] == []
    assert caller.search().json()["data"] == []
    assert caller.amend(segment_id, ANN).status_code == 403


@shows("read-only-application")
def _(caller: Caller, segment_id: str) -> None:
    assert (caller.search().status_code, caller.amend(segment_id, ANN).status_code) == (200, 403)
    assert caller.create("x").status_code == 403


@shows("no-permission")
def _(caller: Caller, segment_id: str) -> None:
    assert (caller.search().status_code, caller.amend(segment_id, ANN).status_code) == (403, 403)
    assert caller.call("GET", ME).is_success


@shows("consent-revoked")
def _(caller: Caller, segment_id: str) -> None:
    assert code_of(caller.search()) == "insufficient-advertiser-permissions"
    assert refreshed(caller, caller.refresh_token).json()["error"] == "invalid_grant"


@shows("refresh-token-dead")
def _(caller: Caller, segment_id: str) -> None:
    assert refreshed(caller, caller.refresh_token).json()["error"] == "invalid_grant"
    assert caller.search().is_success  # the application's own token lives


@shows("segment-deleted")
def _(caller: Caller, segment_id: str) -> None:
    answer = caller.amend(segment_id, ANN)
    assert (answer.status_code, code_of(answer)) == (404, "audience-invalid")
    assert caller.search().json()["data"] == []


@shows("name-race")
def _(caller: Caller, segment_id: str) -> None:
    assert code_of(caller.create("Raced")) == "name-must-be-unique"
    found = [item["attributes"]["name"] for item in caller.search().json()["data"]]
    assert found == ["VIP", "Raced"]


@shows("name-ambiguous")
def _(caller: Caller, segment_id: str) -> None:
    assert [item["attributes"]["name"] for item in caller.search().json()["data"]] == ["VIP", "VIP"]


@shows("creation-fails-in-errors", "creation-fails-in-warnings")
def _(caller: Caller, segment_id: str) -> None:
    (name,) = caller.sandbox.state()["faults_in_force"]
    answer = caller.create("x")
    assert (answer.status_code, answer.json()["data"]) == (200, [])
    assert answer.json()[name.rsplit("-", 1)[-1]][0]["code"] == "invalid"


@shows("creation-fails-with-400")
def _(caller: Caller, segment_id: str) -> None:
    answer = caller.create("x")
    assert (answer.status_code, code_of(answer)) == (400, "invalid")
    assert "data" not in answer.json()


@shows("creation-answers-nothing")
def _(caller: Caller, segment_id: str) -> None:
    assert caller.create("x").json() == {"data": [], "errors": [], "warnings": []}
    assert len(caller.search().json()["data"]) == 1


@shows("audience-quota")
def _(caller: Caller, segment_id: str) -> None:
    assert caller.create("x").json()["errors"][0]["type"] == "quota"
    assert caller.amend(segment_id, ANN).is_success


@shows("busy", "busy-object", "busy-html", "busy-empty", "busy-retry-after")
def _(caller: Caller, segment_id: str) -> None:
    bodies = {"busy": '{"errors"', "busy-object": "{}", "busy-html": "<html", "busy-empty": "", "busy-retry-after": ""}
    (name,) = caller.sandbox.state()["faults_in_force"]
    for answer in (caller.amend(segment_id, ANN), caller.ask_token()):
        assert answer.status_code == 429
        assert answer.text.startswith(bodies[name])
        assert (name == "busy-empty") == (answer.content == b"")
        assert answer.headers["x-ratelimit-remaining"] == "0"
        assert abs(int(answer.headers["x-ratelimit-reset"]) - time.time()) < 60
        assert ("retry-after" in answer.headers) == (name == "busy-retry-after")


@shows("limit-lowered")
def _(caller: Caller, segment_id: str) -> None:
    answers = [caller.search() for _ in range(9)]
    assert answers[0].headers["x-ratelimit-limit"] == "10"
    assert (answers[0].status_code, answers[-1].status_code) == (200, 429)


@shows("internal-error")
def _(caller: Caller, segment_id: str) -> None:
    answer = caller.amend(segment_id, ANN)
    assert (answer.status_code, code_of(answer)) == (500, "internal-error")
    assert caller.sandbox.size(segment_id) == 0


@shows("unavailable")
def _(caller: Caller, segment_id: str) -> None:
    answers = [caller.amend(segment_id, ANN), caller.ask_token()]
    assert [answer.status_code for answer in answers] == [503, 503]
    assert answers[0].text.startswith("<html>")


@shows("error-after-applied")
def _(caller: Caller, segment_id: str) -> None:
    assert caller.amend(segment_id, ANN).status_code == 500
    assert caller.sandbox.size(segment_id) == 1


@shows("dropped-before", "dropped-after")
def _(caller: Caller, segment_id: str) -> None:
    (name,) = caller.sandbox.state()["faults_in_force"]
    with pytest.raises(httpx.TransportError):
        caller.amend(segment_id, ANN)
    assert caller.sandbox.size(segment_id) == (name == "dropped-after")


@shows("slow-answer")
def _(caller: Caller, segment_id: str) -> None:
    caller.http.timeout = httpx.Timeout(0.3)
    with pytest.raises(httpx.ReadTimeout):
        caller.amend(segment_id, ANN)
    assert caller.sandbox.size(segment_id) == 1


@shows("half-an-answer")
def _(caller: Caller, segment_id: str) -> None:
    answer = caller.amend(segment_id, ANN)
    assert (answer.status_code, answer.text.endswith("}")) == (200, False)
    assert caller.sandbox.size(segment_id) == 1


@shows("version-deprecated")
def _(caller: Caller, segment_id: str) -> None:
    answer = caller.amend(segment_id, ANN)
    assert (answer.status_code, answer.headers["deprecation"]) == (200, "true")
    assert answer.headers["sunset"].endswith(" GMT")


@shows("version-gone")
def _(caller: Caller, segment_id: str) -> None:
    answer = caller.amend(segment_id, ANN)
    assert (answer.status_code, code_of(answer)) == (410, "endpoint-deprecated")
    assert caller.call("GET", ME.replace("2026-07", "2027-01")).is_success


@shows("too-large")
def _(caller: Caller, segment_id: str) -> None:
    assert caller.amend(segment_id, PEOPLE).status_code == 413
    assert caller.amend(segment_id, ANN).status_code == 200


@shows("too-many-identifiers")
def _(caller: Caller, segment_id: str) -> None:
    assert code_of(caller.amend(segment_id, PEOPLE)) == "exceeded-ids-cap"
    assert caller.amend(segment_id, PEOPLE[:100]).status_code == 200


@shows("identifier-type-refused")
def _(caller: Caller, segment_id: str) -> None:
    answer = caller.amend(segment_id, ANN)
    assert (answer.status_code, answer.json()["errors"][0]["type"]) == (400, "validation")
    wrong = caller.amend(segment_id, ANN, identifierType="gum")
    assert wrong.status_code == 400


@shows("identifiers-invalid", "identifiers-invalid-unnamed")
def _(caller: Caller, segment_id: str) -> None:
    (name,) = caller.sandbox.state()["faults_in_force"]
    first, again = (caller.amend(segment_id, PEOPLE).json()["data"]["attributes"] for _ in range(2))
    assert 10 < first["nbInvalidIdentifiers"] < 100
    assert first["nbInvalidIdentifiers"] + first["nbValidIdentifiers"] == 200
    assert len(first["sampleInvalidIdentifiers"]) == (10 if name == "identifiers-invalid" else 0)
    assert again["sampleInvalidIdentifiers"] == first["sampleInvalidIdentifiers"]
    assert caller.sandbox.size(segment_id) == first["nbValidIdentifiers"]


@shows("nobody-matches")
def _(caller: Caller, segment_id: str) -> None:
    accepted = caller.amend(segment_id, PEOPLE).json()["data"]["attributes"]
    assert accepted["nbValidIdentifiers"] == 200
    assert caller.statistics(segment_id) == {"numberOfIdentifiers": 200, "numberOfMatches": 0, "matchRate": 0.0}


@shows("statistics-lag")
def _(caller: Caller, segment_id: str) -> None:
    caller.amend(segment_id, PEOPLE)
    assert caller.statistics(segment_id)["numberOfIdentifiers"] == 1
    caller.sandbox.advance(43_200)
    assert caller.sign_in().statistics(segment_id)["numberOfIdentifiers"] == 201


@shows("sizes-hidden")
def _(caller: Caller, segment_id: str) -> None:
    caller.amend(segment_id, [f"{i:064x}" for i in range(2000)])
    answer = caller.call("POST", f"{SEGMENTS}/compute-sizes", {"data": [{"id": segment_id}]})
    assert answer.json()["data"][0]["attributes"]["size"] == 0


@shows("many-segments")
def _(caller: Caller, segment_id: str) -> None:
    pages = [caller.search(f"?limit=100&offset={offset}", advertiserIds=["1001"]).json() for offset in (0, 100, 200)]
    assert [len(page["data"]) for page in pages] == [100, 100, 51]
    assert pages[-1]["data"][-1]["id"] == segment_id
    assert caller.search("?limit=101").status_code == 400


@shows("unknown-segment-type")
def _(caller: Caller, segment_id: str) -> None:
    types = {item["attributes"]["type"] for item in caller.search().json()["data"]}
    assert types == {"ContactList", "Clairvoyant"}


@shows("unknown-error-type")
def _(caller: Caller, segment_id: str) -> None:
    answer = caller.amend(segment_id, ANN)
    assert (answer.status_code, answer.json()["errors"][0]["type"]) == (400, "novelty")


@shows("unknown-members")
def _(caller: Caller, segment_id: str) -> None:
    answer = caller.amend(segment_id, ANN).json()
    assert {"novelty", "data", "errors", "warnings"} == set(answer)
    assert answer["data"]["attributes"]["novelty"] == [None]
    assert caller.search().json()["data"][0]["attributes"]["novelty"] == "x"


@shows("no-content")
def _(caller: Caller, segment_id: str) -> None:
    answer = caller.amend(segment_id, ANN)
    assert (answer.status_code, answer.content) == (204, b"")
    assert caller.sandbox.size(segment_id) == 1


@shows("missing-arrays", "null-arrays")
def _(caller: Caller, segment_id: str) -> None:
    (name,) = caller.sandbox.state()["faults_in_force"]
    answer = caller.amend(segment_id, ANN).json()
    assert answer["data"]["attributes"]["nbValidIdentifiers"] == 1
    if name == "missing-arrays":
        assert set(answer) == {"data"}
    else:
        assert (answer["errors"], answer["warnings"]) == (None, None)
