"""One access token for everybody, renewed early by one, and once more when it is refused."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qs

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from criteo_provider.core import outcome
from criteo_provider.core.errors import AccessLost, Busy, CriteoSyncError, Unavailable
from criteo_provider.criteo_api import auth
from criteo_provider.criteo_api.grants import read_grant
from criteo_provider.criteo_api.line import Reply
from criteo_provider.criteo_api.own_tokens import OwnTokens
from tests.criteo_api.doubles import Criteo, accepted

PIECES = (b'{"data":{}}',)


def token(name: str, life_s: float = 900) -> dict[str, object]:
    return {"access_token": name, "token_type": "Bearer", "refresh_token": None, "expires_in": life_s}


def expired() -> httpx.Response:
    entry = {"type": "authorization", "code": "authorization-token-expired", "instance": "/x"}
    return httpx.Response(401, json={"errors": [entry]})


def bearers(criteo: Criteo, name: str = "amend") -> list[str]:
    return [request.headers["Authorization"] for request in criteo.calls(name)]


def test_the_secret_survives_the_form() -> None:
    """A secret with + / = & % and a blank arrives as it is, in a form, with no Authorization header."""
    criteo = Criteo()
    criteo.client().make_ready()
    (request,) = criteo.calls("token")
    sent = parse_qs(request.content.decode(), strict_parsing=True)
    assert sent == {
        "grant_type": ["client_credentials"],
        "client_id": ["an-id"],
        "client_secret": ["s3cr+t/=&% x"],
    }
    assert request.headers["Content-Type"] == "application/x-www-form-urlencoded"
    assert "Authorization" not in request.headers


def test_one_token_serves_all_clients() -> None:
    """Two clients (processes) on one store make one token call, which takes a slot like any call."""
    criteo = Criteo(amend=accepted())
    for _ in range(2):
        criteo.client().amend("7", PIECES, slot_taken=True)
    assert len(criteo.calls("token")) == 1
    assert len(criteo.slots.entered) == 1
    assert bearers(criteo) == ["Bearer tok-1"] * 2


def test_a_token_near_its_end_is_renewed_early() -> None:
    """With less than a minute left the token is renewed by whoever comes next, and used by all from then on."""
    criteo = Criteo(token=[token("old", 30), token("new")], amend=accepted())
    client = criteo.client()
    for _ in range(3):
        client.amend("7", PIECES)
    assert bearers(criteo) == ["Bearer old", "Bearer new", "Bearer new"]


def test_a_failed_early_renewal_costs_nothing() -> None:
    """While the present token is good, trouble with the token call does not stop uploads."""
    criteo = Criteo(token=[token("old", 30), httpx.Response(503)], amend=accepted())
    client = criteo.client()
    assert [client.amend("7", PIECES).code for _ in range(3)] == ["accepted"] * 3
    assert len(criteo.calls("token")) == 2  # not again at once


def test_the_early_renewal_leaves_others_alone() -> None:
    """While one thread renews early, another goes on with the present token instead of waiting."""
    began, end = threading.Event(), threading.Event()

    def slow(_: httpx.Request) -> dict[str, object]:
        began.set()
        assert end.wait(10)
        return token("new")

    criteo = Criteo(token=[token("old", 30), slow], amend=accepted())
    client = criteo.client()
    client.make_ready()
    renewing = threading.Thread(target=client.make_ready)
    renewing.start()
    assert began.wait(10)
    client.amend("7", PIECES)
    end.set()
    renewing.join(10)
    client.amend("7", PIECES)
    assert bearers(criteo) == ["Bearer old", "Bearer new"]


def test_a_renewed_token_of_another_process_is_taken_over() -> None:
    """When another process has renewed in time, this one uses its token and makes no token call."""
    criteo = Criteo(token=[token("old", 30)], amend=accepted())
    client = criteo.client()
    client.make_ready()
    criteo.tokens.finish_renewal("theirs", ends_at_s=time.time() + 900)
    client.amend("7", PIECES)
    assert bearers(criteo) == ["Bearer theirs"]
    assert len(criteo.calls("token")) == 1


def test_a_refused_token_is_renewed_once() -> None:
    """After a 401 the request is repeated once with another token, in a slot of its own."""
    criteo = Criteo(token=[token("dead"), token("live")], amend=[expired(), accepted(3)])
    client = criteo.client()
    client.make_ready()
    before = len(criteo.slots.entered)
    assert client.amend("7", PIECES, slot_taken=True) == outcome.Accepted(3, 0)
    assert bearers(criteo) == ["Bearer dead", "Bearer live"]
    assert len(criteo.slots.entered) - before == 2  # the token call, and the second try


def test_a_second_401_is_lost_access() -> None:
    """When the new token is refused too, the connection is lost and nothing more is tried."""
    criteo = Criteo(amend=expired())
    got = criteo.client().amend("7", PIECES)
    assert isinstance(got, outcome.AccessLost)
    assert (got.scope, len(criteo.calls("amend")), len(criteo.calls("token"))) == ("connection", 2, 2)


def test_ten_threads_with_one_dead_token_renew_once() -> None:
    """Many threads refused with the same token make one token call between them."""
    together = threading.Barrier(10, timeout=20)

    def answer(request: httpx.Request) -> object:
        if request.headers["Authorization"] == "Bearer dead":
            together.wait()
            return expired()
        return accepted()

    criteo = Criteo(token=[token("dead"), token("live")], amend=answer)
    client = criteo.client()
    client.make_ready()
    with ThreadPoolExecutor(10) as threads:
        codes = list(threads.map(lambda _: client.amend("7", PIECES).code, range(10)))
    assert codes == ["accepted"] * 10
    assert len(criteo.calls("token")) == 2


def test_threads_that_waited_share_the_failure() -> None:
    """When the token call is refused while others wait for it, they get the same sentence without a call each."""
    waiting = threading.Barrier(5, timeout=20)

    def refuse(_: httpx.Request) -> httpx.Response:
        time.sleep(0.3)
        return httpx.Response(401, json={"error": "invalid_client"})

    criteo = Criteo(token=refuse, amend=accepted())
    client = criteo.client()

    def go(_: int) -> str:
        waiting.wait()
        return client.amend("7", PIECES).code

    with ThreadPoolExecutor(5) as threads:
        assert list(threads.map(go, range(5))) == ["wrong-client-pair"] * 5
    assert len(criteo.calls("token")) == 1


def test_a_lease_in_other_hands_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """While another process renews, this one waits for its token instead of fetching one."""
    monkeypatch.setattr(auth, "_LOOK_EVERY_S", 0.01)
    criteo = Criteo(amend=accepted())
    assert criteo.tokens.begin_renewal(dead_serial=None, lease_s=60)
    threading.Timer(0.2, criteo.tokens.finish_renewal, ["theirs"], {"ends_at_s": time.time() + 900}).start()
    assert criteo.client().amend("7", PIECES).code == "accepted"
    assert bearers(criteo) == ["Bearer theirs"]
    assert criteo.calls("token") == []
    assert len(criteo.slots.entered) <= 2  # waiting costs no slot per look


def test_a_renewer_that_died_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease whose owner was killed runs out, and the next one renews."""
    monkeypatch.setattr(auth, "_LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(auth, "_TRY_EVERY_S", 0.05)
    criteo = Criteo(amend=accepted())
    assert criteo.tokens.begin_renewal(dead_serial=None, lease_s=0.3)
    assert criteo.client().amend("7", PIECES).code == "accepted"
    assert len(criteo.calls("token")) == 1


def test_a_renewal_that_never_ends_has_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """When nobody ever finishes the renewal, the upload is Unavailable and was not sent."""
    monkeypatch.setattr(auth, "_LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(auth, "LEASE_S", 0.1)
    criteo = Criteo(amend=accepted())
    assert criteo.tokens.begin_renewal(dead_serial=None, lease_s=600)
    got = criteo.client().amend("7", PIECES)
    assert isinstance(got, outcome.Unavailable)
    assert (got.code, got.maybe_applied) == ("token-renewal-stuck", False)


def test_a_failed_renewal_gives_the_lease_back() -> None:
    """After a token call that failed, the next one need not wait for a lease to run out."""
    criteo = Criteo(token=[httpx.ConnectError("no"), token("live")], amend=accepted())
    client = criteo.client()
    assert [client.amend("7", PIECES).code for _ in range(2)] == ["unreachable", "accepted"]


def test_ends_are_told_by_the_shared_clock() -> None:
    """A store whose clock is hours ahead of this process's does not make tokens look older or younger."""
    criteo = Criteo(amend=accepted())
    criteo.tokens.ahead_s = 7_200
    client = criteo.client()
    for _ in range(3):
        client.amend("7", PIECES)
    assert len(criteo.calls("token")) == 1


def test_whoever_comes_second_at_a_cold_start_makes_no_call() -> None:
    """A process that found no token, and gets the lease after another has finished, uses that token."""
    criteo = Criteo(amend=accepted())
    enter = criteo.slots.enter

    def others_finish_while_we_wait(*, interactive: bool = False) -> None:
        enter(interactive=interactive)
        if criteo.tokens.current() is None:
            criteo.tokens.finish_renewal("theirs", ends_at_s=time.time() + 900)

    criteo.slots.enter = others_finish_while_we_wait  # type: ignore[method-assign]
    criteo.tokens.begin_renewal = lambda **_: True  # type: ignore[method-assign]
    assert criteo.client().amend("7", PIECES).code == "accepted"
    assert bearers(criteo) == ["Bearer theirs"]
    assert criteo.calls("token") == []


def test_a_check_of_its_own_does_not_borrow_a_token() -> None:
    """With a store of its own a client proves its own pair, even while everybody else has a good token."""
    tokens = OwnTokens()
    assert tokens.current() is None
    assert tokens.begin_renewal(dead_serial=None, lease_s=45)
    assert not tokens.begin_renewal(dead_serial=None, lease_s=45)
    tokens.abandon_renewal()
    assert tokens.begin_renewal(dead_serial=None, lease_s=45)
    first = tokens.finish_renewal("a", ends_at_s=tokens.now_s() + 900)
    assert tokens.current() == first
    assert not tokens.begin_renewal(dead_serial=first.serial - 1, lease_s=45)
    assert tokens.begin_renewal(dead_serial=first.serial, lease_s=45)
    assert tokens.finish_renewal("b", ends_at_s=tokens.now_s() + 900).serial > first.serial


@pytest.mark.parametrize(
    ("answer", "kind", "code"),
    [
        (httpx.Response(401, json={"error": "invalid_client"}), AccessLost, "wrong-client-pair"),
        (httpx.Response(400, json={"error": "invalid_client"}), AccessLost, "wrong-client-pair"),
        (httpx.Response(401), AccessLost, "wrong-client-pair"),
        (httpx.Response(400, json={"error": "invalid_grant"}), AccessLost, "consent-lost"),
        (httpx.Response(400, json={"error": "unsupported_grant_type"}), AccessLost, "token-call-refused"),
        (httpx.Response(400, text="<html>"), AccessLost, "token-call-refused"),
        (httpx.Response(403), AccessLost, "token-call-refused"),
        (httpx.Response(404), Unavailable, "unknown-address"),
        (httpx.Response(429), Busy, None),
        (httpx.Response(500), Unavailable, "http-500"),
        (httpx.Response(200, text="<html>"), Unavailable, "unreadable-answer"),
        (httpx.Response(200, json={"access_token": None}), Unavailable, "unreadable-answer"),
        (httpx.Response(200, json={"access_token": "a\r\nX: y"}), Unavailable, "unreadable-answer"),
        (httpx.ConnectTimeout("x"), Unavailable, "unreachable"),
    ],
)
def test_trouble_with_the_token_call(answer: Any, kind: type, code: str | None) -> None:
    """Each trouble with the token call has its class, its code and a sentence without the secret."""
    criteo = Criteo(token=answer)
    with pytest.raises(kind) as caught:
        criteo.client().make_ready()
    assert getattr(caught.value, "code", None) == code
    assert "s3cr" not in str(caught.value)
    assert str(caught.value).endswith(".")


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(
    status=st.integers(100, 599),
    body=st.binary(max_size=40)
    | st.fixed_dictionaries(
        {},
        optional={
            "access_token": st.text() | st.integers(),
            "expires_in": st.integers() | st.floats() | st.text() | st.booleans(),
            "refresh_token": st.text() | st.integers() | st.none(),
            "error": st.text() | st.integers() | st.none(),
        },
    ).map(lambda document: json.dumps(document).encode()),
)
def test_any_answer_to_the_token_call_is_read(status: int, body: bytes) -> None:
    """Any answer to the token call is a token with a life between 0 and a day, or one of our errors."""
    try:
        granted = read_grant(Reply(status, {}, body))
    except CriteoSyncError as error:
        said = str(error)
    else:
        said = "a token." if status == 200 and granted.value.isascii() and 0 < granted.life_s <= 86_400 else ""
        assert granted.refresh_token is None or granted.refresh_token == json.loads(body)["refresh_token"] != ""
    assert said.endswith(".")
