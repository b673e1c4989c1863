"""Contact lists: real membership, true counts, and refusal of every wrong request."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import httpx
import pytest

from criteo_provider.sandbox.running import running_sandbox
from tests.sandbox.caller import SEGMENTS, Caller, code_of
from tests.sandbox.test_identifiers import MADID, MD5, SHA256, SHA256_OF_MD5


def hashes(count: int) -> list[str]:
    return [hashlib.sha256(f"p{i}@example.com".encode()).hexdigest() for i in range(count)]


def body_of(identifiers: list[str]) -> bytes:
    attributes = {"operation": "add", "identifierType": "email", "identifiers": identifiers}
    content = {"data": {"type": "ContactlistAmendment", "attributes": attributes}}
    return json.dumps(content, separators=(",", ":")).encode()


def test_the_answer_counts_forms_and_names_a_sample(caller: Caller) -> None:
    """Valid and invalid add up to what was sent; contactListId is an integer; all three members are there."""
    segment_id = caller.new_list()
    content = caller.amend(segment_id, ["a@example.com", SHA256, "jkl@gmail"]).json()
    attributes = content["data"]["attributes"]
    assert attributes.pop("requestDate").endswith("+00:00")
    assert attributes == {
        "contactListId": int(segment_id),
        "operation": "add",
        "identifierType": "email",
        "nbValidIdentifiers": 2,
        "nbInvalidIdentifiers": 1,
        "sampleInvalidIdentifiers": ["jkl@gmail"],
    }
    assert (content["errors"], content["warnings"]) == ([], [])


def test_membership_is_a_set(caller: Caller) -> None:
    """A repeat changes nothing, removing somebody absent is fine, plain and hashed are one."""
    segment_id, ann = caller.new_list(), hashlib.sha256(b"ann@example.com").hexdigest()
    for _ in range(2):
        caller.amend(segment_id, ["ann@example.com", "bob@example.com"])
    assert caller.statistics(segment_id)["numberOfIdentifiers"] == 2
    removed = caller.amend(segment_id, [ann, hashes(1)[0]], operation="remove").json()["data"]["attributes"]
    assert removed["nbValidIdentifiers"] == 2
    assert caller.sandbox.is_member(segment_id, ["ann@example.com", " BOB@example.com", ann]) == [
        False,
        True,
        False,
    ]


def test_types_do_not_mix_and_a_gum_belongs_to_its_caller(caller: Caller) -> None:
    """An identifier is in the list under its type, a gum under its caller id too."""
    segment_id, sandbox = caller.new_list(), caller.sandbox
    caller.amend(segment_id, [MADID.upper()], identifierType="madid")
    caller.amend(segment_id, ["k-1"], identifierType="gum", gumCallerId=7)
    caller.amend(segment_id, ["XY1"], identifierType="identityLink")
    assert sandbox.is_member(segment_id, [MADID], "madid") == [True]
    assert sandbox.is_member(segment_id, ["k-1"], "gum", 7) == [True]
    assert sandbox.is_member(segment_id, ["k-1"], "gum", 8) == [False]
    assert sandbox.is_member(segment_id, ["XY1"], "email") == [False]
    assert sandbox.size(segment_id) == 3


def test_the_four_forms_of_a_known_address_are_one_person(caller: Caller) -> None:
    """Plain, MD5, SHA-256 and SHA-256 of MD5 are one; the hash of an unnormalised address matches nobody."""
    segment_id = caller.new_list()
    caller.sandbox.mark(known_addresses=["john.doe@gmail.com"])
    caller.amend(segment_id, ["john.doe@gmail.com", MD5, SHA256, SHA256_OF_MD5])
    assert caller.statistics(segment_id) == {
        "numberOfIdentifiers": 1,
        "numberOfMatches": 1,
        "matchRate": 100.0,
    }
    wrong = hashlib.sha256(b"John.Doe@gmail.com").hexdigest()
    caller.amend(segment_id, [wrong])
    assert caller.statistics(segment_id) == {
        "numberOfIdentifiers": 2,
        "numberOfMatches": 1,
        "matchRate": 50.0,
    }


@pytest.mark.parametrize(
    ("attributes", "code"),
    [
        ({"identifierType": "maid"}, "invalid"),
        ({"identifierType": "customerid"}, "invalid"),
        ({"identifierType": None}, "required-field"),
        ({"operation": "replace"}, "invalid"),
        ({"operation": None}, "required-field"),
        ({"identifierType": "gum"}, "required-field"),
        ({"gumCallerId": 7}, "invalid"),
        ({"internalIdentifiers": False}, "invalid"),
        ({"identifiers": None}, "required-field"),
        ({"identifiers": []}, "required-field"),
        ({"identifiers": "a@example.com"}, "invalid"),
        ({"identifiers": [1]}, "invalid"),
        ({"identifiers": [None]}, "invalid"),
    ],
)
def test_a_wrong_amendment_is_400_and_changes_nothing(caller: Caller, attributes: dict[str, object], code: str) -> None:
    """Wrong types, operations, caller ids and identifiers are refused, not guessed at."""
    segment_id = caller.new_list()
    wanted: dict[str, Any] = {"identifiers": ["a@example.com"], **attributes}
    answer = caller.amend(segment_id, **wanted)
    assert (answer.status_code, code_of(answer)) == (400, code)
    assert caller.sandbox.size(segment_id) == 0


@pytest.mark.parametrize("body", [b"", b"{", b'{"data":{}}', b"[]", b"\xff\xfe", b'{"data":{"type":"List"}}'])
def test_a_body_that_is_no_amendment_is_400(caller: Caller, body: bytes) -> None:
    """Broken JSON and other shapes get Criteo's envelope with both trace ids."""
    answer = caller.call("PATCH", f"{SEGMENTS}/{caller.new_list()}/contact-list", body)
    assert answer.status_code == 400
    (error,) = answer.json()["errors"]
    assert error["traceId"] == error["traceIdentifier"]
    assert error["instance"].endswith("/contact-list")


def test_50000_are_taken_and_50001_refused(caller: Caller) -> None:
    """The largest request has 50,000 identifiers; one more is 400, and none of them enters."""
    segment_id = caller.new_list()
    path = f"{SEGMENTS}/{segment_id}/contact-list"
    full, over = body_of(hashes(50_000)), body_of(hashes(50_001))
    assert 3_300_000 < len(full) < 3_500_000
    refused = caller.call("PATCH", path, over)
    assert (refused.status_code, code_of(refused)) == (400, "exceeded-ids-cap")
    assert caller.sandbox.size(segment_id) == 0
    taken = caller.call("PATCH", path, full).json()["data"]["attributes"]
    assert (taken["nbValidIdentifiers"], taken["nbInvalidIdentifiers"]) == (50_000, 0)
    assert caller.sandbox.is_member(segment_id, ["p0@example.com", "p49999@example.com"]) == [True, True]
    assert caller.sandbox.size(segment_id) == 50_000


def test_too_large_compressed_or_other_content_is_refused(caller: Caller) -> None:
    """413 above the byte limit, 415 for gzip and for anything but JSON; nothing of it is applied."""
    segment_id = caller.new_list()
    path, body = f"{SEGMENTS}/{segment_id}/contact-list", body_of(["a@example.com"])

    def status(content: bytes = body, **headers: str) -> int:
        return caller.call("PATCH", path, content, **headers).status_code

    assert status(Content_Encoding="gzip") == 415
    assert status(Content_Type="text/plain") == 415
    assert status(Content_Type="application/json; charset=latin-1") == 415
    assert caller.sandbox.size(segment_id) == 0
    assert status(Content_Type="application/json; charset=utf-8") == 200
    caller.sandbox.rules(max_body_bytes=100)
    assert status(body_of(hashes(10))) == 413
    assert caller.sandbox.size(segment_id) == 1


def test_lists_that_cannot_be_changed(caller: Caller) -> None:
    """A deleted list is 404 audience-invalid; another kind, a read-only list, a bad id are 400."""
    readonly = caller.sandbox.add_segment("1001", "crm", read_only=True)
    market = caller.sandbox.add_segment("1001", "market", kind="InMarket")
    gone = caller.new_list()
    caller.sandbox.delete_segment(gone)
    answers = [caller.amend(segment_id, ["a@example.com"]) for segment_id in (gone, readonly, market, "12x")]
    assert [answer.status_code for answer in answers] == [404, 400, 400, 400]
    assert [code_of(answer) for answer in answers[:2]] == ["audience-invalid", "contact-list-read-only"]
    assert caller.statistics(readonly)["numberOfIdentifiers"] == 0


def test_clearing_empties_the_list_and_keeps_the_segment(caller: Caller) -> None:
    """DELETE needs no body, tolerates a content type, and leaves an empty list behind."""
    segment_id = caller.new_list()
    caller.amend(segment_id, ["a@example.com"])
    answer = caller.call("DELETE", f"{SEGMENTS}/{segment_id}/contact-list", Content_Type="application/json")
    assert answer.json() == {
        "data": {"id": segment_id, "type": "AudienceContactlist"},
        "errors": [],
        "warnings": [],
    }
    assert caller.statistics(segment_id) == {"numberOfIdentifiers": 0, "numberOfMatches": 0, "matchRate": 0.0}


def test_statistics_may_lag(caller: Caller) -> None:
    """With a lag, statistics are those of the last processing run, whatever was sent since."""
    caller.sandbox.rules(statistics_lag_s=3600)
    segment_id = caller.new_list()
    caller.amend(segment_id, hashes(3))
    assert caller.statistics(segment_id)["numberOfIdentifiers"] == 0
    caller.sandbox.advance(3600)
    caller.sign_in()
    caller.amend(segment_id, hashes(5))
    assert caller.statistics(segment_id)["numberOfIdentifiers"] == 3
    caller.sandbox.advance(3600)
    caller.sign_in()
    assert caller.statistics(segment_id)["numberOfIdentifiers"] == 5


def test_people_may_be_called_invalid_or_make_a_request_refused(caller: Caller) -> None:
    """A test decides whose hash is called invalid (named or only counted), and whose spoils a request."""
    segment_id, (ann, bob, eve) = caller.new_list(), hashes(3)
    caller.sandbox.mark(invalid=[bob])
    caller.sandbox.rules(sample_size=0)
    answer = caller.amend(segment_id, [ann, bob]).json()["data"]["attributes"]
    assert (answer["nbValidIdentifiers"], answer["nbInvalidIdentifiers"]) == (1, 1)
    assert answer["sampleInvalidIdentifiers"] == []
    assert caller.sandbox.is_member(segment_id, [ann, bob]) == [True, False]
    caller.sandbox.mark(refused=[eve])
    assert caller.amend(segment_id, [ann, eve]).status_code == 400
    assert caller.amend(segment_id, [ann]).status_code == 200


def test_the_counting_mode_counts_and_still_judges(caller: Caller) -> None:
    """Counting remembers nobody, and yet refuses what is malformed and keeps the cap."""
    with running_sandbox(membership="count") as sandbox, Caller(sandbox) as counting:
        segment_id = counting.sign_in().new_list()
        counting.amend(segment_id, [*hashes(10), "jkl@gmail"])
        counting.amend(segment_id, hashes(4), operation="remove")
        assert sandbox.size(segment_id) == 6
        assert counting.amend(segment_id, ["a@example.com"], identifierType="maid").status_code == 400
        with pytest.raises(ValueError, match="membership=real"):
            sandbox.is_member(segment_id, hashes(1))


def test_answers_may_be_slow_and_the_change_is_there_before(caller: Caller) -> None:
    """With latency, a caller that gives up has changed the list all the same."""
    segment_id = caller.new_list()
    caller.sandbox.rules(latency_s=5)
    caller.http.timeout = httpx.Timeout(0.3)
    with pytest.raises(httpx.ReadTimeout):
        caller.amend(segment_id, ["a@example.com"])
    assert caller.sandbox.size(segment_id) == 1
