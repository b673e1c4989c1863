"""The fifteen checks of a faithful sandbox, one test each; docs/sandbox.md lists them.

The first is in test_official_sdk.py, the second in test_judges.py."""

from __future__ import annotations

import hashlib
import time
from urllib.parse import parse_qs, urlsplit

from criteo_provider.sandbox.catalogue import CATALOGUE
from criteo_provider.sandbox.routes_oauth import challenge_of
from tests.sandbox.caller import SEGMENTS, Caller, code_of
from tests.sandbox.test_contact_list import body_of, hashes
from tests.sandbox.test_identifiers import MD5, SHA256, SHA256_OF_MD5
from tests.sandbox.test_oauth import REDIRECT, consent_url, exchanged, refreshed

ME = "/2026-07/advertisers/me"


def names(caller: Caller, query: str = "", **filters: object) -> list[str]:
    return [item["attributes"]["name"] for item in caller.search(query, **filters).json()["data"]]


def test_check_03_the_token_endpoint(caller: Caller) -> None:
    """Only forms, awkward signs in the secret decode, null refresh token, 900 s; a bad client gets OAuth's error."""
    assert all(sign in caller.sandbox.client_secret for sign in "+/=&")
    good, json = caller.ask_token(), caller.http.post("/oauth2/token", json={"grant_type": "client_credentials"})
    content = good.json()
    assert (content["refresh_token"], content["token_type"], content["expires_in"]) == (None, "Bearer", 900)
    bad = caller.ask_token(client_secret="wrong")
    assert set(bad.json()) == set(json.json()) == {"error", "error_description"}
    assert (bad.status_code, json.status_code) == (401, 400)


def test_check_04_the_life_of_a_token(caller: Caller) -> None:
    """Valid until 900 s of the movable clock, then expired; missing and garbage differ; a second leaves the first."""
    first = caller.token
    caller.sign_in()

    def code(**headers: str) -> str:
        answer = caller.http.get(ME, headers=headers)
        return "" if answer.is_success else code_of(answer)

    caller.sandbox.advance(899)
    assert code(Authorization=f"Bearer {first}") == ""
    caller.sandbox.advance(1)
    assert code(Authorization=f"Bearer {first}") == "authorization-token-expired"
    assert code() == "authorization-token-missing"
    assert code(Authorization="Bearer garbage") == "authorization-token-invalid"


def test_check_05_consent_codes_and_refresh_tokens(caller: Caller) -> None:
    """State comes back, undeclared redirects are blocked, codes work once and where they were for, refresh rotates."""
    caller.sandbox.application(redirect_uris=[REDIRECT])
    assert caller.http.get(consent_url(redirect_uri="https://evil.example.org/")).status_code == 400
    asked = consent_url(state="s 1&", code_challenge=challenge_of("v"), code_challenge_method="S256")
    location = caller.http.post(asked, data={"decision": "allow", "advertiser": ["1001"]}).headers["location"]
    back = parse_qs(urlsplit(location).query)
    assert (location.startswith(REDIRECT), back["state"]) == (True, ["s 1&"])

    def exchange(**more: str) -> int:
        form = {"grant_type": "authorization_code", "redirect_uri": REDIRECT, "code_verifier": "v", **more}
        return caller.ask_token(**form).status_code

    assert [exchange(code=back["code"][0]) for _ in range(2)] == [200, 400]
    other = caller.sandbox.new_code(REDIRECT, ["1001"])
    assert exchange(code=other, redirect_uri="https://other.example.com/") == 400
    caller.sandbox.rules(refresh_rotation="strict")
    old = exchanged(caller, caller.sandbox)
    new = refreshed(caller, old).json()["refresh_token"]  # sends code and redirect_uri again, as the SDK does
    assert refreshed(caller, old).json()["error"] == "invalid_grant"
    caller.token = refreshed(caller, new).json()["access_token"]
    caller.sandbox.throw("consent-revoked")
    assert caller.search().status_code == 403
    assert caller.call("GET", ME).status_code == 200


def test_check_06_only_consented_advertisers(caller: Caller) -> None:
    """Others are not listed, their segments not found by search, and 403 or 404 when addressed."""
    foreign = caller.sandbox.add_segment("1002", "foreign")
    caller.sandbox.throw("advertiser-not-consented", advertiser_id="1002")
    assert [item["id"] for item in caller.call("GET", ME).json()["data"]] == ["1001"]
    assert names(caller) == []
    assert caller.amend(foreign, hashes(1)).status_code == 403
    caller.sandbox.rules(foreign_segment_status=404)
    assert caller.amend(foreign, hashes(1)).status_code == 404


def test_check_07_a_read_only_application(caller: Caller) -> None:
    """Search and statistics 200; create, PATCH and DELETE 403; wholly without token 401."""
    segment_id = caller.new_list()
    path = f"{SEGMENTS}/{segment_id}/contact-list"
    caller.sandbox.throw("read-only-application")
    assert [caller.search().status_code, caller.call("GET", f"{path}/statistics").status_code] == [200, 200]
    changes = [caller.create("x"), caller.amend(segment_id, hashes(1)), caller.call("DELETE", path)]
    assert [answer.status_code for answer in changes] == [403, 403, 403]
    assert caller.http.get(f"{path}/statistics").status_code == 401


def test_check_08_creation_in_bulk(caller: Caller) -> None:
    """Exactly one kind, missing members told, three with one duplicate give two and one error, in any of the shapes."""
    assert caller.create("two kinds", contactList={}, lookalike={"seedSegmentId": "1"}).json()["data"] == []
    assert caller.create("no kind", description="d").json()["data"] == []
    for member in ("name", "advertiserId"):
        attributes = {"advertiserId": "1001", "name": "x", "contactList": {}}
        del attributes[member]
        answer = caller.call("POST", f"{SEGMENTS}/create", {"data": [{"attributes": attributes}]})
        assert (answer.status_code, code_of(answer)) == (400, "required-field")
    for number, mode in enumerate(("errors200", "warnings200", "status400")):
        caller.sandbox.rules(bulk_failure=mode)
        wanted = [f"a{number}", f"a{number}", f"b{number}"]
        items = [{"attributes": {"advertiserId": "1001", "name": name, "contactList": {}}} for name in wanted]
        answer = caller.call("POST", f"{SEGMENTS}/create", {"data": items})
        told = answer.json()["warnings" if mode == "warnings200" else "errors"]
        assert (answer.status_code, len(answer.json()["data"])) == (200, 2)
        assert [problem["code"] for problem in told] == ["name-must-be-unique"]
        alone = caller.create(f"a{number}")
        assert alone.status_code == (400 if mode == "status400" else 200)


def test_check_09_search(caller: Caller) -> None:
    """Filters are AND'ed, 50 by default, 100 at most, a stable order and a true total over 100, and empty is 200."""
    caller.sandbox.throw("many-segments", limit=60)
    first, second = names(caller, "?limit=100"), names(caller, "?limit=100&offset=100")
    assert (len(first), len(second), len(names(caller))) == (100, 20, 50)
    assert names(caller, "?limit=100") == first
    assert caller.search().json()["meta"]["totalItems"] == 120
    assert caller.search("?limit=101").status_code == 400
    both = {"advertiserIds": ["1002"], "audienceSegmentTypes": ["ContactList"]}
    assert names(caller, "?limit=100", **both) == first[60:] + second
    empty = caller.search(advertiserIds=["1002"], audienceSegmentTypes=["Location"])
    assert (empty.status_code, empty.json()["data"], empty.json()["meta"]["totalItems"]) == (200, [], 0)


def test_check_10_amendments(caller: Caller) -> None:
    """Valid and invalid are what was sent, a sample, an integer id, all three members; repeats change nothing."""
    segment_id = caller.new_list()
    for _ in range(2):
        answer = caller.amend(segment_id, [*hashes(2), "jkl@gmail"]).json()
        told = answer["data"]["attributes"]
        assert (told["nbValidIdentifiers"], told["nbInvalidIdentifiers"]) == (2, 1)
        assert (told["sampleInvalidIdentifiers"], told["contactListId"]) == (["jkl@gmail"], int(segment_id))
        assert set(answer) == {"data", "errors", "warnings"}
        assert caller.statistics(segment_id)["numberOfIdentifiers"] == 2
    assert caller.amend(segment_id, ["absent@example.com"], operation="remove").status_code == 200


def test_check_11_the_forms_of_an_address(caller: Caller) -> None:
    """Criteo's test vector is one person in all four forms; normalised when plain, lost when hashed unnormalised."""
    segment_id = caller.new_list()
    caller.sandbox.mark(known_addresses=["john.doe@gmail.com"])
    caller.amend(segment_id, ["john.doe@gmail.com", " JOHN.doe@gmail.com ", MD5, SHA256, SHA256_OF_MD5])
    assert caller.statistics(segment_id)["numberOfMatches"] == caller.sandbox.size(segment_id) == 1
    caller.amend(segment_id, [hashlib.sha256(b"JOHN.doe@gmail.com").hexdigest()])
    assert (caller.statistics(segment_id)["numberOfMatches"], caller.sandbox.size(segment_id)) == (1, 2)
    invalid = caller.amend(segment_id, ["jkl@gmail"]).json()["data"]["attributes"]
    assert invalid["nbInvalidIdentifiers"] == 1


def test_check_12_what_is_not_taken(caller: Caller) -> None:
    """50,000 yes, 50,001 no; 413 for size, 415 for gzip and other content, 400 for types and a missing caller id."""
    segment_id = caller.new_list()
    path = f"{SEGMENTS}/{segment_id}/contact-list"

    def status(body: bytes, **headers: str) -> int:
        return caller.call("PATCH", path, body, **headers).status_code

    assert (status(body_of(hashes(50_000))), status(body_of(hashes(50_001)))) == (200, 400)
    assert status(body_of(hashes(1)), Content_Encoding="gzip") == 415
    assert status(body_of(hashes(1)), Content_Type="text/plain") == 415
    for kind in ("maid", "customerid", "gum"):
        assert caller.amend(segment_id, ["x"], identifierType=kind).status_code == 400
    caller.sandbox.throw("too-large")
    assert status(body_of(hashes(100))) == 413


def test_check_13_statistics_and_sizes_lag(caller: Caller) -> None:
    """Unchanged until the processing run, sizes hidden below 1,000 matches, DELETE empties and the segment survives."""
    segment_id = caller.new_list()
    caller.sandbox.throw("statistics-lag", seconds=600)
    caller.amend(segment_id, hashes(1_500))
    assert caller.statistics(segment_id)["numberOfIdentifiers"] == 0
    caller.sandbox.advance(600)
    assert caller.statistics(segment_id)["numberOfIdentifiers"] == 1_500

    def size() -> int:
        answer = caller.call("POST", f"{SEGMENTS}/compute-sizes", {"data": [{"id": segment_id}]})
        return int(answer.json()["data"][0]["attributes"]["size"])

    assert size() == 0  # 945 of them match
    caller.sandbox.rules(match_rate=0.7)
    assert size() == 1_050
    caller.sandbox.take_back("statistics-lag")
    caller.call("DELETE", f"{SEGMENTS}/{segment_id}/contact-list")
    assert caller.statistics(segment_id)["numberOfIdentifiers"] == 0
    assert names(caller) == ["VIP"]


def test_check_14_the_rate_limit(caller: Caller) -> None:
    """250 a minute, or 10 for each consented account; three headers, reset in epoch seconds; then a bare 429."""
    tokens = caller.ask_token(
        grant_type="authorization_code", redirect_uri=REDIRECT, code=caller.sandbox.new_code(REDIRECT, ["1001", "1002"])
    )
    assert tokens.headers["x-ratelimit-limit"] == "20"
    answers = [caller.call("GET", ME) for _ in range(250)]
    assert [answer.status_code for answer in answers] == [200] * 249 + [429]
    last = answers[-1].headers
    assert (last["x-ratelimit-limit"], last["x-ratelimit-remaining"], "retry-after" in last) == ("250", "0", False)
    assert time.time() < int(last["x-ratelimit-reset"]) < time.time() + 62
    caller.sandbox.advance(60)
    assert caller.call("GET", ME).is_success


def test_check_15_versions_and_faults(caller: Caller) -> None:
    """Old versions say Deprecation and Sunset, dead ones 410, an unknown route 404; F1 to F20 can be thrown."""
    old, dead, unknown = (caller.call("GET", ME.replace("2026-07", version)) for version in ("2026-01", "2025-10", "x"))
    assert (old.status_code, old.headers["deprecation"], dead.status_code) == (200, "true", 410)
    assert "sunset" in old.headers
    (error,) = unknown.json()["errors"]
    assert (unknown.status_code, error["traceId"]) == (404, error["traceIdentifier"])
    assert {named.source for named in CATALOGUE.values()} == {f"F{n}" for n in range(1, 21)}
