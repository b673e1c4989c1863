"""Every fault of the catalogue, thrown at the two DAGs in a running Airflow: told, survived, drained with no click.

The tests stand in the order they run in; the last one reads everything that was written meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from criteo_provider.sandbox.catalogue import CATALOGUE
from tests.e2e import scan
from tests.e2e.live import RETRY, SYNC, Live, running

# One Airflow for all of them: starting one takes longer than most of these tests.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]

DENIED = r"denies this application the ad account .*ask its Criteo admin to consent again"


@dataclass(frozen=True)
class Ordeal:
    """A fault, whom it hits, and the sentence a user is to read; without one everything goes on while it lasts."""

    fault: str
    says: str = ""
    aim: dict[str, object] = field(default_factory=dict)
    people: int = 3
    patiently: bool = False
    """Let the pause of the breaker pass as it is: a minute."""
    also: tuple[str, ...] = ()

    def throw(self, live: Live, **aim: object) -> None:
        for fault in (self.fault, *self.also):
            live.sandbox.throw(fault, **({} if CATALOGUE[fault].kind == "event" else self.aim), **aim)


UPLOADS = [
    Ordeal("token-expired"),
    Ordeal("token-forgotten"),
    Ordeal("token-refused", r"refuses the access token .*check client id and secret"),
    Ordeal("wrong-secret", r"does not know this pair of client id and secret\. Check both", also=("token-forgotten",)),
    Ordeal("advertiser-not-consented", DENIED),
    Ordeal("read-only-application", DENIED),
    Ordeal("no-permission", DENIED),
    Ordeal("consent-revoked", DENIED, patiently=True),
    Ordeal("busy", r"rate limit is reached; the next call goes out in", {"times": 2}),
    Ordeal("busy-object", "", {"times": 1}, also=("busy-html", "busy-empty", "busy-retry-after")),
    Ordeal("limit-lowered", "", {"limit": 100}),
    Ordeal("internal-error", r"servers have trouble \(HTTP 500\).*tried again by themselves", {"times": 2}),
    Ordeal("unavailable", r"servers have trouble \(HTTP 503\)", {"times": 2}),
    Ordeal("error-after-applied", r"servers have trouble \(HTTP 500\)", {"times": 2}),
    Ordeal("dropped-before", r"connection broke before Criteo answered", {"times": 2}),
    Ordeal("dropped-after", r"connection broke before Criteo answered", {"times": 2}),
    Ordeal("slow-answer", r"did not answer in time", {"times": 1, "seconds": 65}),
    Ordeal("half-an-answer", r"not one of Criteo's API \(HTTP 200\)", {"times": 2}),
    Ordeal("version-deprecated", r"Criteo retires API version 2026-07 on 02 February 2027\. Set a newer one"),
    Ordeal("version-gone", r"retired this API version\. Check base URL and API version"),
    Ordeal("too-large", "", {"limit": 500}, people=12),
    Ordeal("too-many-identifiers", "", {"limit": 2}, people=6),
    Ordeal("identifier-type-refused", r"refuses the content of the call", {"times": 1}),
    Ordeal("nobody-matches", also=("statistics-lag", "sizes-hidden")),
    Ordeal("unknown-error-type", r"refuses the content .*\(never-heard-of\)", {"times": 1}),
    Ordeal("unknown-members"),
    Ordeal("no-content", r"not one of Criteo's API \(HTTP 204\)", {"times": 2}),
    Ordeal("missing-arrays"),
    Ordeal("null-arrays"),
]
CREATIONS = [
    Ordeal("name-race", "", {"times": 1}),
    Ordeal("name-ambiguous", r"has 2 audiences named .*Rename or delete all but one"),
    Ordeal("creation-fails-in-errors", r"refuses the content of the call"),
    Ordeal("creation-fails-in-warnings", r"refuses the content of the call"),
    Ordeal("creation-fails-with-400", r"refuses the content of the call"),
    Ordeal("creation-answers-nothing", r"answer lacks what was asked for"),
    Ordeal("audience-quota", r"unable to create new audiences .*Delete audiences nobody uses"),
    Ordeal("many-segments", "", {"limit": 120}),
    Ordeal("unknown-segment-type"),
    Ordeal("dropped-after", "", {"times": 1, "operation": "create"}),
    Ordeal("internal-error", "", {"times": 1, "operation": "search"}),
]
ELSEWHERE = {"segment-deleted", "identifiers-invalid", "identifiers-invalid-unnamed", "refresh-token-dead"}
"""Faults with a test of their own."""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with running(tmp_path_factory.mktemp("live") / "house") as live:
        yield live


@pytest.fixture
def well(live: Live) -> Iterator[Live]:
    """The house with nothing wrong before; whatever a test threw is taken back after it."""
    yield live
    live.sandbox.clear_faults()
    live.time_passes()
    live.drained("people", len(live.shop.people))
    live.drained("others", len(live.shop.people))


def test_no_fault_is_left_out() -> None:
    """Each name of the catalogue is thrown by a test of this file."""
    thrown = {fault for each in UPLOADS + CREATIONS for fault in (each.fault, *each.also)}
    assert thrown | ELSEWHERE == set(CATALOGUE)


def test_people_arrive(live: Live) -> None:
    """Before anything goes wrong, people get to both audiences by themselves."""
    people = live.shop.add(5)
    live.drained("people", 5)
    live.drained("others", 5)
    live.arrived("Everybody", people)
    live.arrived("Others", people, "1002")


def test_patience_begins(live: Live) -> None:
    """An outage of one list that outlasts the short retries keeps its people pending; other lists go on meanwhile."""
    live.declare("patient", "Patient people", where="customer_id <= 5")
    live.arrived("Patient people", live.shop.people[:5])
    (segment_id,) = (str(each["id"]) for each in live.sandbox.state()["segments"] if each["name"] == "Patient people")
    live.declare("patient", "Patient people", where="customer_id <= 8")
    live.sandbox.throw("internal-error", segment_id=segment_id)
    people = live.shop.add(3)
    live.drained("people", 8)
    live.until(lambda: live.numbers("patient")["pending"] == 3, "three wait")
    live.until(lambda: _failed_calls(live, segment_id) >= 3, "the short retries are over")
    live.sandbox.clear_faults()
    assert live.has("Patient people", people) == [False] * 3


@pytest.mark.parametrize("ordeal", UPLOADS, ids=lambda ordeal: f"{CATALOGUE[ordeal.fault].source}-{ordeal.fault}")
def test_an_upload_survives(well: Live, ordeal: Ordeal) -> None:
    """The user is told what to do, nobody is lost, and once the fault is over everybody arrives by themselves."""
    live, mark = well, well.task_logs()
    before, runs = live.numbers("people"), len(live.runs(SYNC))
    ordeal.throw(live)
    people = live.shop.add(ordeal.people)
    everybody = len(live.shop.people)
    if ordeal.says:
        live.sees(ordeal.says, since=mark)
        _nobody_is_lost(live.numbers("people"))
        if ordeal.fault == "wrong-secret":
            code, said = live.command("preflight", "people", "--output", "json")
            assert (code, bool(re.search(ordeal.says, said))) == (1, True), said
        live.sandbox.clear_faults()
        if not ordeal.patiently:
            live.time_passes()
    live.drained("people", everybody)
    live.drained("others", everybody)
    after = live.numbers("people")
    _nobody_is_lost(after)
    assert after["synced"] == before["synced"] + len(people)
    assert after["errored"] == before["errored"] == 0
    live.arrived("Everybody", people)
    live.arrived("Others", people, "1002")
    live.well_again()
    assert len(live.runs(SYNC)) - runs <= 6


@pytest.mark.parametrize(
    "ordeal",
    CREATIONS,
    ids=lambda ordeal: "-".join([CATALOGUE[ordeal.fault].source, ordeal.fault, *map(str, ordeal.aim.values())]),
)
def test_a_new_audience_survives(well: Live, ordeal: Ordeal, request: pytest.FixtureRequest) -> None:
    """A step whose audience cannot be found or created says why, and its people arrive in exactly one audience."""
    live, mark, first = well, well.task_logs(), len(well.shop.people) + 1
    canvas = f"new_{CREATIONS.index(ordeal)}"
    if ordeal.fault == "name-ambiguous":
        ordeal.throw(live, segment_id=live.sandbox.add_segment("1001", canvas))
    else:
        ordeal.throw(live)
    live.declare(canvas, canvas, where=f"customer_id BETWEEN {first} AND {first + 2}")
    people = live.shop.add(3)
    if ordeal.says:
        live.sees(ordeal.says, since=mark)
        live.drained("people", len(live.shop.people))  # the others go on
        _nobody_is_lost(live.numbers(canvas))
        live.sandbox.clear_faults()
        live.time_passes()
    live.drained(canvas, 3)
    live.drained("people", len(live.shop.people))
    live.arrived(canvas, people)
    assert [each["name"] for each in live.sandbox.state()["segments"]].count(canvas) == 1
    live.well_again()


@pytest.mark.parametrize("fault", ["identifiers-invalid", "identifiers-invalid-unnamed"])
def test_f15_invalid_identifiers(well: Live, fault: str) -> None:
    """Whoever has no valid identifier is Not Synced, named by Criteo or found by asking again; the others are."""
    live, before = well, well.numbers("people")
    live.sandbox.throw(fault, share=0.6)
    people = live.shop.add(12)
    live.drained("people", len(live.shop.people))
    after = live.numbers("people")
    _nobody_is_lost(after)
    by_email = live.has("Everybody", people)
    by_device = live.has("Everybody", people, identifier="maid")
    there = sum(map(any, zip(by_email, by_device, strict=True)))
    assert 0 < there < 12
    assert (after["synced"] - before["synced"], after["not_synced"] - before["not_synced"]) == (there, 12 - there)


def test_f6_a_deleted_audience(well: Live) -> None:
    """It is told at once, its people wait, and they arrive when the audience is there again."""
    live, mark = well, well.task_logs()
    (segment_id,) = (str(each["id"]) for each in live.sandbox.state()["segments"] if each["name"] == "Others")
    live.sandbox.throw("segment-deleted", segment_id=segment_id)
    people = live.shop.add(3)
    live.sees(r"audience is not at Criteo any more", since=mark)
    live.drained("people", len(live.shop.people))
    live.until(lambda: live.numbers("others")["pending"] == 3, "3 people of others wait")
    live.sandbox.add_segment("1002", "Others")
    live.time_passes()
    live.drained("others", len(live.shop.people))
    live.arrived("Others", people, "1002")


def test_f5_a_dead_consent(well: Live) -> None:
    """When the consent behind a connection has died, its step says Reconnect and the others go on; then all arrive."""
    live, first = well, len(well.shop.people) + 1
    live.connect("consented", grant_type="authorization_code", refresh_token=live.consent())
    live.choose("consented", "1001")
    live.declare("consented", "Consented people", where=f"customer_id >= {first}", connection="consented")
    people = live.shop.add(3)
    live.drained("consented", 3)
    mark = live.task_logs()
    live.sandbox.throw("refresh-token-dead")
    people += live.shop.add(3)
    live.sees(r"does not honour the consent of this connection any more.*Reconnect", since=mark)
    live.drained("people", len(live.shop.people))
    live.until(lambda: live.numbers("consented")["pending"] == 3, "3 people of consented wait")
    live.connect("consented", grant_type="authorization_code", refresh_token=live.consent())
    live.time_passes()
    live.drained("consented", 6)
    live.arrived("Consented people", people)


def test_a_consent_by_the_page(live: Live) -> None:
    """Somebody who goes to Criteo from the Accounts page comes back with a code, which is exchanged at once."""
    live.connect("by_page", grant_type="authorization_code")
    live.consent_by_the_page("by_page")
    forms = [exchange.body for exchange in live.exchanges if exchange.is_token_call]
    assert any(b"code_verifier=" in form for form in forms)


def test_patience_ends_well(live: Live) -> None:
    """People whose short retries were over are taken along by the retry DAG, at its own pace."""
    live.until(lambda: not live.numbers("patient")["pending"], "nobody waits any more", within_s=420)
    live.arrived("Patient people", live.shop.people[:8])
    assert any(run["state"] == "success" for run in live.runs(RETRY))


def test_runs_are_few_and_the_numbers_add_up(live: Live) -> None:
    """All of that took a few runs for each fault, hardly any of them failed, and the laws of the ledger hold."""
    code, said = live.command("db", "check")
    assert (code, "All laws hold" in said) == (0, True), said
    states = [run["state"] for run in live.runs(SYNC)]
    ordeals = len(UPLOADS) + len(CREATIONS) + len(ELSEWHERE)
    assert len(states) < 3 * ordeals
    assert states.count("failed") <= ordeals


def test_nothing_secret_was_written(live: Live) -> None:
    """No address, digest, device id, secret, token or code is in any log, database, page or output of all that."""
    assert len(live.shown) > 100
    needles = scan.needles(live)
    assert {needle.kind for needle in needles} == scan.KINDS
    assert scan.found(live, needles) == []


def test_the_scan_can_fail(live: Live) -> None:
    """Each kind of thing that must not be written is found wherever it is planted: a log, a database, a page."""
    for needle in scan.one_of_each_kind(scan.needles(live)):
        for plant in (scan.in_a_log, scan.in_the_database, scan.on_a_page):
            with plant(live, needle):
                assert [kind for _, kind in scan.found(live, [needle])] == [needle.kind], plant.__name__
            assert scan.found(live, [needle]) == []


def _nobody_is_lost(numbers: dict[str, int]) -> None:
    fates = ("synced", "not_synced", "pending", "errored")
    assert numbers["entered"] == sum(numbers[fate] for fate in fates)
    assert numbers["errored"] == 0


def _failed_calls(live: Live, segment_id: str) -> int:
    calls = live.sandbox.requests()
    return sum(call["segment_id"] == segment_id and call["status"] == 500 for call in calls)
