"""What we ask of Criteo: amendments, ad accounts, audiences."""

from __future__ import annotations

import json
import logging
import threading
from typing import Any

import httpx
import pytest
import stamina

from criteo_provider.core import outcome
from criteo_provider.core.errors import (
    AccessLost,
    AmbiguousAudience,
    Busy,
    CriteoSyncError,
    QuotaReached,
    Refused,
    Unavailable,
    UnsuitableAudience,
)
from criteo_provider.criteo_api.client import CriteoClient
from criteo_provider.criteo_api.wire import AdAccount, Application, Statistics, amendment_body
from tests.criteo_api.doubles import Criteo, accepted, page, problem, segment

NAME_TAKEN = [
    problem(400, "validation", "name-must-be-unique"),
    problem(200, "validation", "name-must-be-unique"),
    problem(200, "validation", "name-must-be-unique", "warnings"),
    httpx.Response(200, json={"data": [], "errors": [{"code": "name-must-be-unique"}], "warnings": None}),
]


@pytest.fixture(autouse=True)
def _no_waiting() -> Any:
    with stamina.set_testing(True, attempts=3, cap=True):
        yield


# ---- amendments -------------------------------------------------------------------------------------
def test_an_amendment_goes_to_its_list() -> None:
    """An amendment is a PATCH of the audience's contact list in the version of the connection, as built."""
    criteo = Criteo(amend=accepted(2, 1))
    pieces = amendment_body("remove", "madid", None, [b'"x"'])
    assert criteo.client().amend("7654", pieces) == outcome.Accepted(2, 1)
    (request,) = criteo.calls("amend")
    assert (request.method, request.url.path) == (
        "PATCH",
        "/2026-07/marketing-solutions/audience-segments/7654/contact-list",
    )
    assert json.loads(request.content)["data"]["attributes"]["operation"] == "remove"
    assert request.headers["Content-Length"] == str(len(request.content))


@pytest.mark.parametrize(("slot_taken", "slots"), [(True, 0), (False, 1)])
def test_each_call_takes_one_slot(slot_taken: bool, slots: int) -> None:
    """An amendment takes no slot when its caller is inside one, and one otherwise; its headers reach the pacer."""
    criteo = Criteo(amend=httpx.Response(429, headers={"x-ratelimit-remaining": "0"}))
    client = criteo.client()
    client.make_ready()
    before = len(criteo.slots.entered)
    got = client.amend("7", (b"{}",), slot_taken=slot_taken)
    assert len(criteo.slots.entered) - before == slots
    assert criteo.slots.seen[-1] == (429, "0")
    assert got == outcome.Busy(1.0)


def test_429s_in_a_row_wait_longer() -> None:
    """429s that name no time make the wait double."""
    client = Criteo(amend=httpx.Response(429)).client()
    waits = [outcome_wait(client.amend("7", (b"{}",))) for _ in range(3)]
    assert waits == [1, 2, 4]


def outcome_wait(got: outcome.Outcome) -> float:
    assert isinstance(got, outcome.Busy)
    return got.wait_s


def test_a_slot_lost_to_a_renewal_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a token had to be fetched first, the slot taken before is too old, and another one is taken."""
    monkeypatch.setattr("criteo_provider.criteo_api.client._SLOT_LASTS_S", -1.0)
    criteo = Criteo(amend=accepted())
    criteo.client().amend("7", (b"{}",), slot_taken=True)
    assert len(criteo.slots.entered) == 2  # the token call's and the amendment's


@pytest.mark.parametrize(
    ("trouble", "code", "maybe_applied"),
    [
        (httpx.ConnectError("x"), "unreachable", False),
        (httpx.ReadTimeout("x"), "no-answer", True),
        (httpx.RemoteProtocolError("x"), "cut-off", True),
        (httpx.PoolTimeout("x"), "not-sent", False),
    ],
)
def test_an_amendment_never_raises(trouble: Exception, code: str, maybe_applied: bool) -> None:
    """Trouble on the way of an amendment is an outcome that says whether it may have been applied; one try only."""
    criteo = Criteo(amend=trouble)
    got = criteo.client().amend("7", (b"{}",))
    assert isinstance(got, outcome.Unavailable)
    assert (got.code, got.maybe_applied, len(criteo.calls("amend"))) == (code, maybe_applied, 1)


def test_what_the_last_check_raises_passes_through() -> None:
    """What before_first_byte raises ends the amendment with nothing sent."""
    criteo = Criteo(amend=accepted())
    client = criteo.client()

    def check() -> None:
        raise LookupError("claim lost")

    with pytest.raises(LookupError):
        client.amend("7", (b"{}",), before_first_byte=check)
    assert criteo.calls("amend") == []


def test_exceptions_carry_no_request() -> None:
    """An error of a small call has no exception of httpx, which would hold the request, behind it."""
    with pytest.raises(Unavailable) as caught:
        Criteo(application=httpx.ReadTimeout("x")).client().application()
    behind: BaseException | None = caught.value
    while behind is not None:
        assert not isinstance(behind, httpx.HTTPError)
        behind = behind.__cause__ or behind.__context__


def test_an_id_cannot_leave_its_place_in_the_path() -> None:
    """An audience id with odd characters is encoded in the path."""
    criteo = Criteo(amend=accepted())
    criteo.client().amend("7/../8?x", (b"{}",))
    assert criteo.calls("amend")[0].url.raw_path.endswith(b"/audience-segments/7%2F..%2F8%3Fx/contact-list")


# ---- small calls ------------------------------------------------------------------------------------
def test_application_and_ad_accounts() -> None:
    """me and advertisers/me are read, each call in a slot; a person's calls ask for the next one."""
    criteo = Criteo(
        application={"data": {"type": "Application", "attributes": {"applicationId": 1, "name": "app"}}},
        advertisers={"data": [{"type": "advertiser", "id": "13", "attributes": {"advertiserName": "Shop"}}]},
    )
    client = criteo.client(interactive=True)
    assert client.application() == Application("1", "app")
    assert client.ad_accounts() == (AdAccount("13", "Shop"),)
    assert criteo.slots.entered == [True] * 3
    assert [request.url.path for request in criteo.requests[1:]] == [
        "/2026-07/marketing-solutions/me",
        "/2026-07/advertisers/me",
    ]


def test_a_200_with_errors_is_a_failure() -> None:
    """advertisers/me answering 200 with errors (no Marketing Solutions rights) is lost access, not an empty list."""
    answer = {"data": None, "errors": [{"type": "access_control", "code": "no-rights"}]}
    with pytest.raises(AccessLost):
        Criteo(advertisers=answer).client().ad_accounts()


def test_a_warning_beside_an_empty_list_is_no_failure() -> None:
    """A deprecation warning does not turn an empty list into a failure."""
    answer = {"data": [], "warnings": [{"type": "deprecation", "code": "soon-gone"}]}
    assert Criteo(advertisers=answer).client().ad_accounts() == ()


@pytest.mark.parametrize("failing", [httpx.Response(503), httpx.ReadTimeout("x"), httpx.Response(429)])
def test_small_calls_are_repeated(failing: Any) -> None:
    """A passing trouble of a small call is got over within seconds, each try in a slot of its own."""
    criteo = Criteo(advertisers=[failing, failing, {"data": []}])
    assert criteo.client().ad_accounts() == ()
    assert len(criteo.slots.entered) == 4


@pytest.mark.parametrize(
    ("answer", "kind", "calls"),
    [
        (httpx.Response(500), Unavailable, 3),
        (httpx.Response(410), Unavailable, 1),
        (httpx.Response(403), AccessLost, 1),
        (httpx.Response(400), Refused, 1),
        (httpx.Response(429, headers={"Retry-After": "60"}), Busy, 1),
        (httpx.Response(200, text="<html>"), Unavailable, 1),
        ({"data": []}, Unavailable, 1),
    ],
)
def test_small_calls_raise_what_a_failure_means(answer: Any, kind: type, calls: int) -> None:
    """A lasting failure of a small call raises its class without hammering."""
    criteo = Criteo(application=answer)
    with pytest.raises(kind):
        criteo.client().application()
    assert len(criteo.calls("application")) == calls


def test_statistics() -> None:
    """Statistics are read with their nulls."""
    attributes = {"numberOfIdentifiers": 100, "numberOfMatches": None, "matchRate": 63.5}
    criteo = Criteo(statistics={"data": {"id": "7", "attributes": attributes}})
    assert criteo.client().statistics("7") == Statistics(100, None, 63.5)


# ---- finding audiences ------------------------------------------------------------------------------
def pages_of(count: int, *, limit_served: int = 100) -> Any:
    everything = [segment(str(n), f"audience {n}") for n in range(count)]

    def answer(request: httpx.Request) -> dict[str, object]:
        offset = int(request.url.params["offset"])
        return page(*everything[offset : offset + limit_served], total=count)

    return answer


@pytest.mark.parametrize(("count", "calls"), [(0, 1), (1, 1), (99, 1), (100, 1), (101, 2), (1_000, 10)])
def test_all_pages_are_read(count: int, calls: int) -> None:
    """Every audience is seen once, in pages of 100, with no call too many."""
    criteo = Criteo(search=pages_of(count))
    assert len(list(criteo.client().audiences("13"))) == count
    assert len(criteo.calls("search")) == calls
    assert all(request.url.params["limit"] == "100" for request in criteo.calls("search"))
    body = json.loads(criteo.calls("search")[0].content)
    assert body["data"]["attributes"] == {"advertiserIds": ["13"]}


def test_short_pages_do_not_end_the_search() -> None:
    """A server that serves fewer than asked is read to the end: the offset grows by what was received."""
    criteo = Criteo(search=pages_of(95, limit_served=40))
    assert len({audience.criteo_id for audience in criteo.client().audiences("13")}) == 95


@pytest.mark.parametrize("total", [None, "many", 10_000])
def test_a_search_without_progress_ends(total: object) -> None:
    """An empty page ends the search whatever totalItems claims."""
    answers = [page(segment("1", "a")) | {"meta": {"totalItems": total}}, {"data": [], "meta": {"totalItems": total}}]
    assert len(list(Criteo(search=answers).client().audiences("13"))) == 1


def test_the_name_is_exact() -> None:
    """Only the very same name is found, not another spelling, on whatever page it is."""
    names = [segment(str(n), "vip") for n in range(100)] + [segment("x", "VIP"), segment("y", "VIP ")]
    criteo = Criteo(search=[page(*names[:100], total=102), page(*names[100:], total=102)])
    found = criteo.client().find_audience("13", "VIP")
    assert found is not None
    assert found.criteo_id == "x"


@pytest.mark.parametrize(
    ("there", "kind", "words"),
    [
        ([segment("1", "VIP"), segment("2", "VIP")], AmbiguousAudience, "2 audiences"),
        ([segment("1", "VIP", "Lookalike")], UnsuitableAudience, "Lookalike"),
        ([segment("1", "VIP", read_only=True)], UnsuitableAudience, "read-only"),
    ],
)
def test_an_audience_a_person_must_sort_out(there: list[Any], kind: type, words: str) -> None:
    """Several of that name, another type or a read-only list is refused with a sentence that names it."""
    with pytest.raises(kind, match=words) as caught:
        Criteo(search=page(*there)).client().ensure_audience("13", "VIP")
    assert "VIP" in str(caught.value)
    assert "13" in str(caught.value)


# ---- creating audiences -----------------------------------------------------------------------------
CREATED = {"data": [segment("7654", "VIP")], "errors": [], "warnings": []}


def test_an_audience_that_is_there_is_not_created() -> None:
    """ensure_audience finds what is there and makes no creation call."""
    criteo = Criteo(search=page(segment("7654", "VIP")))
    audience, created = criteo.client().ensure_audience("13", "VIP")
    assert (audience.criteo_id, created, criteo.calls("create")) == ("7654", False, [])


def test_an_audience_that_is_not_there_is_created() -> None:
    """ensure_audience creates one contact list in the ad account, with name and description."""
    criteo = Criteo(search=page(), create=CREATED)
    audience, created = criteo.client().ensure_audience("13", "VIP", "best customers")
    assert (audience.criteo_id, created, audience.takes_people) == ("7654", True, True)
    attributes = {"advertiserId": "13", "name": "VIP", "contactList": {}, "description": "best customers"}
    assert json.loads(criteo.calls("create")[0].content) == {
        "data": [{"type": "AudienceSegment", "attributes": attributes}]
    }


@pytest.mark.parametrize("clash", NAME_TAKEN)
def test_a_taken_name_is_looked_up(clash: httpx.Response) -> None:
    """A name clash in any of its four shapes ends with the audience that has the name."""
    criteo = Criteo(search=[page(), page(segment("9", "VIP"))], create=clash)
    audience, created = criteo.client().ensure_audience("13", "VIP")
    assert (audience.criteo_id, created) == ("9", False)


@pytest.mark.parametrize("clash", NAME_TAKEN)
def test_a_taken_name_nobody_has_is_refused(clash: httpx.Response) -> None:
    """A name that is taken by nothing we can see is refused with a sentence, not created again and again."""
    criteo = Criteo(search=page(), create=clash)
    with pytest.raises(Refused, match="taken"):
        criteo.client().create_audience("13", "VIP")
    assert len(criteo.calls("create")) == 1


@pytest.mark.parametrize("lost", [httpx.ReadTimeout("x"), httpx.Response(500), httpx.Response(200, text="<")])
def test_after_a_lost_answer_look_first(lost: Any) -> None:
    """When the answer to a creation is lost, a search tells whether it took effect; nothing is created twice."""
    criteo = Criteo(search=[page(), page(segment("7654", "VIP"))], create=lost)
    audience, _ = criteo.client().ensure_audience("13", "VIP")
    assert (audience.criteo_id, len(criteo.calls("create"))) == ("7654", 1)
    with pytest.raises(Unavailable):
        Criteo(search=page(), create=lost).client().ensure_audience("13", "VIP")


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (problem(400, "quota", "too-many-audiences"), QuotaReached),
        (problem(200, "quota", "segment-limit"), QuotaReached),
        (problem(200, "validation", "too-many-audiences", "warnings"), QuotaReached),
        (problem(403, "access-control", "insufficient-advertiser-permissions"), AccessLost),
        (problem(200, "access-control", "insufficient-advertiser-permissions", "warnings"), AccessLost),
        (problem(200, "validation", "name-must-not-be-empty"), Refused),
        (httpx.Response(200, json={"data": []}), Unavailable),
        (httpx.Response(200, json={"data": [{"type": "AudienceSegment"}]}), Unavailable),
        (problem(429, "quota", "too-many-requests"), Busy),
    ],
)
def test_a_creation_that_made_nothing(answer: httpx.Response, kind: type[CriteoSyncError]) -> None:
    """Only data[0].id is success; every other answer raises its class, once."""
    criteo = Criteo(search=page(), create=answer)
    with pytest.raises(kind) as caught:
        criteo.client().ensure_audience("13", "VIP")
    assert len(criteo.calls("create")) == 1
    if kind is QuotaReached:
        assert "unable to create new audiences" in str(caught.value)


def test_two_who_race_end_with_one_audience() -> None:
    """Two clients that create the same name at the same moment get the same audience, one of them as creator."""
    both, lock, made = threading.Barrier(2, timeout=20), threading.Lock(), list[dict[str, object]]()

    def create(_: httpx.Request) -> object:
        with lock:
            if made:
                return NAME_TAKEN[0]
            made.append(segment("7654", "VIP"))
            return {"data": made}

    def search(_: httpx.Request) -> object:
        empty = page(*made)
        if not made:
            both.wait()
        return empty

    criteo = Criteo(search=search, create=create)
    got: list[tuple[str, bool]] = []

    def ensure(client: CriteoClient) -> None:
        audience, created = client.ensure_audience("13", "VIP")
        got.append((audience.criteo_id, created))

    threads = [threading.Thread(target=ensure, args=(criteo.client(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(got) == [("7654", False), ("7654", True)]


def test_no_identifier_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever Criteo says of a refused request, no identifier of it is in a log line or in the outcome."""
    body = {"errors": [{"type": "validation", "code": "x", "detail": "person@example.com is odd"}]}
    with caplog.at_level(logging.DEBUG):
        got = Criteo(amend=httpx.Response(400, json=body)).client().amend("7", (b'"person@example.com"',))
    assert isinstance(got, outcome.Refused)
    assert "person" not in f"{caplog.text} {got!r}"
