"""Segments: created strictly, found by paging, and what goes wrong shows in the documented shapes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.sandbox.caller import SEGMENTS, Caller, code_of


def test_only_consented_advertisers_are_listed_and_seen(caller: Caller) -> None:
    """Advertisers and segments without consent are not listed, and refused when addressed."""
    own, foreign = caller.new_list("own"), caller.sandbox.add_segment("1002", "foreign")
    caller.sandbox.application(advertisers=["1001"])
    listed = caller.call("GET", "/2026-07/advertisers/me").json()["data"]
    assert listed == [{"type": "advertiser", "id": "1001", "attributes": {"advertiserName": "Example Shop"}}]
    assert [item["id"] for item in caller.search().json()["data"]] == [own]
    assert caller.search(advertiserIds=["1002"]).json()["meta"]["totalItems"] == 0
    assert caller.amend(foreign, ["a@example.com"]).status_code == 403
    caller.sandbox.rules(foreign_segment_status=404)
    assert code_of(caller.amend(foreign, ["a@example.com"])) == "audience-invalid"
    assert caller.create("x", advertiser="1002").status_code == 403


def test_a_new_contact_list_is_shown_whole(caller: Caller) -> None:
    """Create answers with the resource as search shows it: ContactList, not read-only, other kinds null."""
    created = caller.create("VIP", contactList={}, description="d").json()
    (resource,) = created["data"]
    assert (created["errors"], created["warnings"]) == ([], [])
    attributes = resource["attributes"]
    assert (attributes["name"], attributes["description"], attributes["type"]) == ("VIP", "d", "ContactList")
    assert attributes["contactList"] == {"isReadOnly": False}
    assert attributes["lookalike"] is None
    assert caller.search().json()["data"] == [resource]


@pytest.mark.parametrize(
    ("attributes", "code"),
    [
        ({"name": "x", "contactList": {}}, "required-field"),
        ({"advertiserId": "1001", "contactList": {}}, "required-field"),
        ({"advertiserId": 1001, "name": "x", "contactList": {}}, "invalid"),
        ({"advertiserId": "1001", "name": "x", "contactList": {"size": 3}}, "invalid"),
        ({"advertiserId": "1001", "name": "x", "contactList": {}, "colour": "red"}, "invalid"),
    ],
)
def test_a_creation_that_cannot_be_read_is_400(caller: Caller, attributes: dict[str, object], code: str) -> None:
    """Missing, misspelt and mistyped members are refused, none guessed at."""
    answer = caller.call("POST", f"{SEGMENTS}/create", {"data": [{"attributes": attributes}]})
    assert (answer.status_code, code_of(answer)) == (400, code)


@pytest.mark.parametrize(
    ("attributes", "code"),
    [
        ({"description": "no kind"}, "invalid"),
        ({"contactList": {}, "lookalike": {"seedSegmentId": "1"}}, "invalid"),
        ({"lookalike": {}}, "required-field"),
    ],
)
def test_a_segment_has_exactly_one_kind(caller: Caller, attributes: dict[str, Any], code: str) -> None:
    """No kind, two kinds, or a kind without its definition fail as items: 200 with an error."""
    answer = caller.create("x", **attributes)
    assert (answer.status_code, answer.json()["data"], code_of(answer)) == (200, [], code)


def test_names_are_unique_in_their_advertiser_only(caller: Caller) -> None:
    """The same name clashes in one advertiser, exactly and not by case, and not in another."""
    caller.new_list("VIP")
    clash = caller.create("VIP")
    assert (clash.status_code, clash.json()["data"], code_of(clash)) == (200, [], "name-must-be-unique")
    assert clash.json()["errors"][0]["source"] == {"name": "data/0/attributes/name"}
    assert caller.create("vip").json()["data"]
    assert caller.create("VIP", advertiser="1002").json()["data"]
    assert code_of(caller.create("  ")) == "name-must-not-be-empty"


def test_one_bad_item_does_not_stop_the_others(caller: Caller) -> None:
    """A bulk of three with one duplicate gives two resources and one error."""
    names = ["a", "a", "b"]
    items = [{"attributes": {"advertiserId": "1001", "name": name, "contactList": {}}} for name in names]
    answer = caller.call("POST", f"{SEGMENTS}/create", {"data": items}).json()
    assert [item["attributes"]["name"] for item in answer["data"]] == ["a", "b"]
    assert [error["source"] for error in answer["errors"]] == [{"name": "data/1/attributes/name"}]


@pytest.mark.parametrize(
    ("mode", "status", "where"),
    [("errors200", 200, "errors"), ("warnings200", 200, "warnings"), ("status400", 400, "errors")],
)
def test_a_failed_creation_has_three_shapes(caller: Caller, mode: str, status: int, where: str) -> None:
    """Errors in a 200, warnings in a 200, or a 400: Criteo documents all three."""
    caller.sandbox.rules(bulk_failure=mode)
    caller.new_list("VIP")
    answer = caller.create("VIP")
    assert answer.status_code == status
    assert answer.json()[where][0]["code"] == "name-must-be-unique"
    assert not answer.json().get("data")


def test_the_quota_is_kept_per_advertiser(caller: Caller) -> None:
    """At the cap creation fails as a quota, existing lists go on, and other advertisers too."""
    caller.sandbox.rules(segment_cap=1)
    segment_id = caller.new_list("a")
    (error,) = caller.create("b").json()["errors"]
    assert (error["type"], error["code"]) == ("quota", "too-many-audiences")
    assert "nable to create new audiences" in error["title"]
    assert caller.amend(segment_id, ["a@example.com"]).status_code == 200
    assert caller.create("b", advertiser="1002").json()["data"]


def test_search_pages_in_a_stable_order(caller: Caller) -> None:
    """120 segments come in pages of 50 by default and at most 100, each exactly once, with the true total."""
    made = [caller.sandbox.add_segment("1001", f"s{i}") for i in range(120)]
    first, rest = caller.search(), caller.search("?limit=100&offset=50")
    assert first.json()["meta"] == {"totalItems": 120, "limit": 50, "offset": 0}
    seen = [item["id"] for answer in (first, rest) for item in answer.json()["data"]]
    assert seen == made
    assert caller.search("?offset=500").json()["data"] == []


@pytest.mark.parametrize(
    "query", ["?limit=101", "?limit=-1", "?offset=-1", "?limit=x", "?limit=1&limit=2", "?name=VIP"]
)
def test_search_refuses_what_it_does_not_have(caller: Caller, query: str) -> None:
    """Limits outside 0-100, parameters given twice, and a filter by name are 400."""
    assert caller.search(query).status_code == 400


def test_filters_are_anded_and_their_values_ored(caller: Caller) -> None:
    """Ids, advertisers and types narrow each other; several values of one widen it."""
    one, two = caller.new_list("one"), caller.sandbox.add_segment("1002", "two")
    caller.sandbox.add_segment("1001", "other", kind="InMarket")
    found = caller.search(audienceSegmentIds=[one, two], audienceSegmentTypes=["ContactList"])
    assert [item["id"] for item in found.json()["data"]] == [one, two]
    assert caller.search(advertiserIds=["1002"], audienceSegmentIds=[one]).json()["data"] == []
    assert caller.search(audienceSegmentTypes=["Nonsense"]).status_code == 400


def test_segments_are_renamed_described_and_deleted(caller: Caller) -> None:
    """Update wraps the description, keeps names unique; delete takes the list with it."""
    one, two = caller.new_list("one"), caller.new_list("two")

    def update(**attributes: object) -> Any:
        item = {"id": one, "type": "AudienceSegment", "attributes": attributes}
        return caller.call("PATCH", SEGMENTS, {"data": [item]}).json()

    renamed = update(name="uno", description={"value": "d"})
    assert renamed["data"][0]["attributes"]["name"] == "uno"
    assert update(description={"value": None})["data"][0]["attributes"]["description"] is None
    assert update(name="two")["errors"][0]["code"] == "name-must-be-unique"
    reference = {"data": [{"id": two, "type": "AudienceSegment", "attributes": {}}]}
    deleted = caller.call("POST", f"{SEGMENTS}/delete", reference).json()
    assert deleted["data"] == reference["data"]
    assert code_of(caller.call("POST", f"{SEGMENTS}/delete", reference)) == "segment-not-found"
    assert code_of(caller.amend(two, ["a@example.com"])) == "audience-invalid"


def test_small_sizes_are_hidden_and_other_kinds_not_computed(caller: Caller) -> None:
    """compute-sizes answers 0 below a thousand matches, and an error for kinds it cannot size."""
    segment_id, market = caller.new_list(), caller.sandbox.add_segment("1001", "market", kind="InMarket")
    caller.amend(segment_id, [f"{i:064x}" for i in range(2000)])

    def sizes() -> Any:
        return caller.call("POST", f"{SEGMENTS}/compute-sizes", {"data": [{"id": segment_id}, {"id": market}]}).json()

    caller.sandbox.rules(match_rate=0.499)
    assert sizes()["data"][0]["attributes"] == {"size": 0}
    caller.sandbox.rules(match_rate=0.5)
    assert sizes()["data"][0]["attributes"] == {"size": 1000}
    assert sizes()["errors"][0]["code"] == "unsupported-segment-type"


def test_an_audience_is_composed_of_segments_and_linked(caller: Caller) -> None:
    """A one-segment audience can be made and linked to an ad set; wrong algebra and unknown segments fail."""
    base = "/2026-07/marketing-solutions"

    def create(name: str, algebra: object) -> dict[str, list[dict[str, str]]]:
        attributes = {"advertiserId": "1001", "name": name, "algebra": algebra}
        answer = caller.call("POST", f"{base}/audiences/create", {"data": [{"attributes": attributes}]})
        return dict(answer.json())

    node = {"audienceSegmentId": caller.new_list()}
    audience_id = create("a", {"or": [node, {"not": node}]})["data"][0]["id"]
    link = {"data": {"type": "AdSetAudienceLink", "attributes": {"audienceId": audience_id}}}
    assert caller.call("PUT", f"{base}/ad-sets/55/audience", link).json()["data"]["attributes"] == {
        "audienceId": audience_id
    }
    assert create("a", node)["errors"][0]["code"] == "name-must-be-unique"
    assert create("b", {"audienceSegmentId": "1"})["errors"][0]["code"] == "segment-not-found"
    assert create("b", {"xor": [node]})["errors"][0]["code"] == "invalid"
