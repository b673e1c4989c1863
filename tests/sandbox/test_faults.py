"""Faults: each call may be made to fail in every way a network and a server can."""

from __future__ import annotations

import httpx
import pytest

from tests.sandbox.caller import Caller, code_of

ANN = ["ann@example.com"]


@pytest.mark.parametrize(("drop", "size"), [("before", 0), ("after", 1)])
def test_a_connection_dropped_before_or_after_the_change(caller: Caller, drop: str, size: int) -> None:
    """The caller cannot tell the two apart; the list can."""
    segment_id = caller.new_list()
    caller.sandbox.fault(operation="amend", drop=drop)
    with pytest.raises(httpx.TransportError):
        caller.amend(segment_id, ANN)
    assert caller.sandbox.size(segment_id) == size
    (entry,) = [entry for entry in caller.sandbox.requests() if entry["operation"] == "amend"]
    assert (entry["dropped"], entry["status"], entry["applied"]) == (True, None, bool(size))
    assert caller.amend(segment_id, ANN).status_code == 200


@pytest.mark.parametrize(("applied", "size"), [(False, 0), (True, 1)])
def test_a_server_error_with_or_without_the_change(caller: Caller, applied: bool, size: int) -> None:
    """A 503 in Criteo's envelope; where asked for, the change took effect all the same."""
    segment_id = caller.new_list()
    caller.sandbox.fault(operation="amend", status=503, applied=applied, headers={"retry-after": "7"})
    answer = caller.amend(segment_id, ANN)
    assert (answer.status_code, code_of(answer), answer.headers["retry-after"]) == (
        503,
        "internal-error",
        "7",
    )
    assert caller.sandbox.size(segment_id) == size


def test_faults_hit_the_calls_they_name_and_no_more(caller: Caller) -> None:
    """By operation and list, after some are spared, so many times; then everything is well again."""
    one, two = caller.new_list("one"), caller.new_list("two")
    caller.sandbox.fault(operation="amend", segment_id=one, skip=1, times=2, status=500)
    statuses = [caller.amend(segment_id, ANN).status_code for segment_id in (two, one, one, two, one, one)]
    assert statuses == [200, 200, 500, 200, 500, 200]
    caller.sandbox.fault(times=None, status=500)
    assert [caller.search().status_code for _ in range(3)] == [500] * 3
    caller.sandbox.clear_faults()
    assert caller.search().status_code == 200


def test_faults_by_chance_repeat_with_the_same_world(caller: Caller) -> None:
    """A fault may hit a share of the calls only."""
    caller.sandbox.fault(times=None, chance=0.5, status=500)
    statuses = {caller.search().status_code for _ in range(40)}
    assert statuses == {200, 500}


def test_bodies_that_no_parser_likes(caller: Caller) -> None:
    """HTML, an empty body, data that is missing, and JSON cut in half can be had with any status."""
    segment_id = caller.new_list()
    caller.sandbox.fault(operation="amend", status=502, body="<html>Bad Gateway</html>", content_type="text/html")
    caller.sandbox.fault(operation="amend", status=204, body="")
    caller.sandbox.fault(operation="amend", body='{"errors":[],"warnings":[]}')
    caller.sandbox.fault(operation="amend", truncate=True)
    answers = [caller.amend(segment_id, ANN) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [502, 204, 200, 200]
    assert answers[0].headers["content-type"].startswith("text/html")
    assert answers[1].content == b""
    assert "data" not in answers[2].json()
    assert answers[3].text.startswith('{"data"')
    assert not answers[3].text.endswith("}")
    assert caller.sandbox.size(segment_id) == 1


def test_a_slow_answer(caller: Caller) -> None:
    """A delay longer than the caller's patience is a read time-out after the change."""
    segment_id = caller.new_list()
    caller.sandbox.fault(operation="amend", delay_s=5)
    caller.http.timeout = httpx.Timeout(0.3)
    with pytest.raises(httpx.ReadTimeout):
        caller.amend(segment_id, ANN)
    assert caller.sandbox.size(segment_id) == 1


def test_a_token_call_may_fail_too(caller: Caller) -> None:
    """The token endpoint has faults of its own, with a body of one's choice."""
    caller.sandbox.fault(operation="token", status=400, body='{"error":"invalid_grant"}')
    assert caller.ask_token().json() == {"error": "invalid_grant"}
    assert caller.ask_token().is_success


@pytest.mark.parametrize("wrong", [{"drop": "sometimes"}, {"status": 42}, {"colour": "red"}, {"times": 0}])
def test_a_wrong_fault_is_refused(caller: Caller, wrong: dict[str, object]) -> None:
    """A fault that cannot be meant is refused by the admin API, and none is in force."""
    with pytest.raises(ValueError, match="refuses this admin call"):
        caller.sandbox.fault(**wrong)
    assert caller.sandbox.state()["faults"] == []
