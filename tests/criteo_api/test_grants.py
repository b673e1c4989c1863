"""Refresh tokens and authorization codes: what is asked, what is kept, and when a consent is really lost."""

from __future__ import annotations

from urllib.parse import parse_qs

import httpx
import pytest

from criteo_provider.core.errors import AccessLost, CriteoSyncError
from criteo_provider.criteo_api.client import CriteoClient
from criteo_provider.criteo_api.grants import AuthorizationCode, RefreshToken, exchange
from criteo_provider.criteo_api.line import Line
from criteo_provider.criteo_api.own_tokens import OwnTokens
from tests.criteo_api.doubles import SETTINGS, Criteo, accepted

PIECES = (b'{"data":{}}',)
LOST = httpx.Response(400, json={"error": "invalid_grant"})


class MemoryConsent(OwnTokens):
    """The tokens of one consent in memory; ``meanwhile`` happens right before Criteo's refusal is looked into."""

    def __init__(self) -> None:
        super().__init__()
        self.chain = ["refresh-0"]
        self.dead = False
        self.meanwhile = lambda: None

    def refresh_token(self) -> str:
        return self.chain[-1]

    def refused(self) -> bool:
        before = len(self.chain)
        self.meanwhile()
        self.dead = len(self.chain) == before
        return self.dead

    def finish_renewal(self, value, *, ends_at_s, refresh_token=None):
        if refresh_token:
            self.chain.append(refresh_token)
        return super().finish_renewal(value, ends_at_s=ends_at_s)


def token(name: str, refresh: str | None, life_s: float = 900) -> dict[str, object]:
    return {"access_token": name, "token_type": "Bearer", "refresh_token": refresh, "expires_in": life_s}


def client_of(criteo: Criteo, store: MemoryConsent) -> CriteoClient:
    grant = RefreshToken(SETTINGS, store)
    return CriteoClient(SETTINGS, criteo.slots, store, grant=grant, transport=httpx.MockTransport(criteo))


def forms(criteo: Criteo) -> list[dict[str, list[str]]]:
    return [parse_qs(request.content.decode(), strict_parsing=True) for request in criteo.calls("token")]


def test_each_exchange_is_made_with_what_the_last_one_returned() -> None:
    """Refresh tokens go round in a form with the pair of the application, and each call takes a slot."""
    criteo = Criteo(token=[token("a", "refresh+/=1", 1.0), token("b", None, 1.0), token("c", "refresh-3")])
    client = client_of(criteo, MemoryConsent())
    for _ in range(3):
        client.make_ready()
    sent = forms(criteo)
    assert [form["refresh_token"] for form in sent] == [["refresh-0"], ["refresh+/=1"], ["refresh+/=1"]]
    assert {form["grant_type"][0] for form in sent} == {"refresh_token"}
    assert [form["client_secret"] for form in sent] == [[SETTINGS.client_secret]] * 3
    assert len(criteo.slots.entered) == 3


def test_a_dead_refresh_token_is_a_lost_consent() -> None:
    """invalid_grant, and nobody has renewed: the connection is lost with the sentence that mends it."""
    criteo, store = Criteo(token=LOST), MemoryConsent()
    with pytest.raises(AccessLost, match="Reconnect on the Accounts page") as lost:
        client_of(criteo, store).make_ready()
    assert (lost.value.code, lost.value.scope, store.dead) == ("consent-lost", "connection", True)
    assert len(criteo.calls("token")) == 1


def test_who_lost_the_race_takes_the_winners_token() -> None:
    """invalid_grant, but another process has exchanged it a moment ago: its token is used and nothing is lost."""
    criteo, store = Criteo(token=LOST, amend=accepted()), MemoryConsent()
    store.meanwhile = lambda: store.finish_renewal("theirs", ends_at_s=store.now_s() + 900, refresh_token="refresh-1")
    assert client_of(criteo, store).amend("7", PIECES).code == "accepted"
    assert criteo.calls("amend")[0].headers["Authorization"] == "Bearer theirs"
    assert (store.dead, len(criteo.calls("token"))) == (False, 1)


def test_a_newer_consent_is_found_while_the_token_of_the_old_one_is_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a person connects anew, a process at work goes over to the new token at its next look."""
    monkeypatch.setattr("criteo_provider.criteo_api.auth.NOTICE_EVERY_S", 0.0)
    criteo, store = Criteo(token=token("old", "refresh-1"), amend=accepted()), MemoryConsent()
    client = client_of(criteo, store)
    client.amend("7", PIECES)
    store.finish_renewal("new", ends_at_s=store.now_s() + 900, refresh_token="refresh-9")
    client.amend("7", PIECES)
    assert [one.headers["Authorization"] for one in criteo.calls("amend")] == ["Bearer old", "Bearer new"]


def trade(criteo: Criteo) -> object:
    """Exchange a code."""
    grant = AuthorizationCode(SETTINGS, "the-code", "https://airflow.example.com/callback", "the-verifier")
    with Line(SETTINGS, criteo.slots, transport=httpx.MockTransport(criteo)) as line:
        return exchange(line, grant)


def test_a_code_is_exchanged_with_its_verifier() -> None:
    """The form has code, redirect URI and verifier; the call takes the next slot; nothing of it can be printed."""
    criteo = Criteo(token=token("access-1", "refresh-1"))
    granted = trade(criteo)
    assert forms(criteo) == [
        {
            "grant_type": ["authorization_code"],
            "code": ["the-code"],
            "redirect_uri": ["https://airflow.example.com/callback"],
            "code_verifier": ["the-verifier"],
            "client_id": [SETTINGS.client_id],
            "client_secret": [SETTINGS.client_secret],
        }
    ]
    assert criteo.slots.entered == [True]
    assert (granted.value, granted.refresh_token) == ("access-1", "refresh-1")  # type: ignore[attr-defined]
    assert not [one for one in ("access-1", "refresh-1") if one in repr(granted)]
    grant = AuthorizationCode(SETTINGS, "the-code", "https://x.example.com", "the-verifier")
    assert not [one for one in ("the-code", "the-verifier") if one in repr(grant)]


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (LOST, "code-refused"),
        (httpx.Response(401, json={"error": "invalid_client"}), "wrong-client-pair"),
        (token("access-1", None), "no-refresh-token"),
        (httpx.Response(503), "http-503"),
        (httpx.ReadTimeout("x"), "no-answer"),
    ],
)
def test_trouble_with_a_code(answer: object, code: str) -> None:
    """Each trouble with a code has its sentence; none of them shows the code."""
    with pytest.raises(CriteoSyncError) as caught:
        trade(Criteo(token=answer))
    assert caught.value.code == code  # type: ignore[attr-defined]
    assert "the-code" not in str(caught.value)
