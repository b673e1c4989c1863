"""A person's consent, through the whole house: exchanged, checked, put in force, spent sparingly and kept."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from criteo_provider.core.errors import AccessLost, Misconfigured
from criteo_provider.criteo_api.consent import new_request
from criteo_provider.sandbox.running import Sandbox, running_sandbox
from criteo_provider.sandbox.state import CLIENT_ID, CLIENT_SECRET
from criteo_provider.wiring import CriteoConnection, House, Surroundings
from tests.flow.shop import Person, Sealer, Shop, sync, write_canvas

REDIRECT = "https://airflow.example.com/criteo/callback"
CONN = "criteo_default"
BOTH = ("1001", "1002")


@pytest.fixture(params=["strict", "lenient"])
def criteo(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """A sandbox whose refresh tokens die at once when they are exchanged, and one where they work once more."""
    with running_sandbox(limit=60_000, limit_per_account=30_000, refresh_rotation=request.param) as sandbox:
        yield sandbox


Home = Callable[..., House]


@pytest.fixture
def home(ledger_url: str, shop: Shop, include: Path) -> Iterator[Home]:
    """Opens houses over one ledger, whose connection is of grant type authorization_code."""
    sealer, opened = Sealer(), []

    def open_it(sandbox: Sandbox, **more: object) -> House:
        cipher = more.pop("cipher", sealer)
        fast: dict[str, object] = {"requests_per_minute": 60_000, "grant_type": "authorization_code", **more}
        connection = CriteoConnection(CLIENT_ID, CLIENT_SECRET, sandbox.url, **fast)  # type: ignore[arg-type]
        house = House(Surroundings(include, ledger_url, lambda _: connection, shop.source, cipher))  # type: ignore[arg-type]
        opened.append(house)
        return house

    yield open_it
    for house in opened:
        house.close()


def come_back(house: House, sandbox: Sandbox, advertisers: tuple[str, ...] = BOTH, by: str = "ada") -> None:
    """Consent at Criteo and come back with the code."""
    sandbox.application(redirect_uris=[REDIRECT])
    code = sandbox.new_code(REDIRECT, advertisers)
    told = house.criteo.exchange(CONN, code, REDIRECT, new_request().verifier, by)
    assert (told.by, told.state) == (by, "ok")


def connect(house: House, sandbox: Sandbox, advertisers: tuple[str, ...] = BOTH) -> None:
    """Consent, and put it in force."""
    come_back(house, sandbox, advertisers)
    house.criteo.consents.promote(CONN)
    house.accounts.choose(CONN, dict.fromkeys(advertisers, "Example Shop"), by="ada")


def token_calls(sandbox: Sandbox) -> int:
    """How many token calls there were, of any grant."""
    return sum(call["operation"] == "token" for call in sandbox.requests())


def drain(house: House) -> None:
    """Let people go."""
    house.drain("fresh", stop=threading.Event(), max_s=60)
    assert house.prove() == []


def pending(house: House) -> int:
    """Everybody who waits."""
    return sum(one.pending for one in house.numbers())


def test_people_go_with_a_persons_consent(criteo: Sandbox, home: Home, shop: Shop, include: Path) -> None:
    """Connected by a person, a canvas is synced; the exchange is one token call, and nothing secret is logged."""
    write_canvas(include, "vip", sync("add", "Shoppers"))
    shop.add(Person(number) for number in range(1, 31))
    house = home(criteo)
    connect(house, criteo)
    drain(house)
    assert pending(house) == 0
    assert house.numbers()[0].synced > 10
    assert token_calls(criteo) == 1
    told = house.criteo.consents.current(CONN)
    assert told is not None
    assert told.by == "ada"


def test_a_candidate_is_checked_while_the_consent_in_force_goes_on(criteo: Sandbox, home: Home) -> None:
    """The new consent sees its own ad accounts; discarded, everything is as before; put in force, all see them."""
    house = home(criteo)
    connect(house, criteo, ("1001",))
    come_back(house, criteo, BOTH, by="grace")
    with house.criteo.candidate_client(CONN) as client:
        assert [one.ad_account for one in client.ad_accounts()] == list(BOTH)
    assert house.criteo.consents.candidate(CONN).ad_accounts == 2  # type: ignore[union-attr]
    assert [one.ad_account for one in house.ad_accounts(CONN)] == ["1001"]
    house.criteo.consents.promote(CONN)
    assert [one.ad_account for one in house.ad_accounts(CONN)] == list(BOTH)


def test_tokens_change_hands_and_nobody_loses_them(criteo: Sandbox, home: Home) -> None:
    """Token after token expires; each time one exchange renews it for a person at a page and for drains alike."""
    house = home(criteo)
    connect(house, criteo)
    for renewed in range(1, 5):
        criteo.advance(900)
        with house.criteo.client(CONN) as client:
            assert client.application().name
        pacer_and_client = home(criteo).criteo.open(CONN)
        with closing(pacer_and_client[1]) as client:
            assert client.application().name
        assert token_calls(criteo) == 1 + renewed
    assert house.criteo.consents.current(CONN).state == "ok"  # type: ignore[union-attr]


def test_a_code_that_is_used_up_keeps_nothing(criteo: Sandbox, home: Home) -> None:
    """A code from the browser's history is told as such: not as a lost consent, and the one in force goes on."""
    house = home(criteo)
    connect(house, criteo)
    with pytest.raises(AccessLost, match="Start again with Connect Criteo") as refusal:
        house.criteo.exchange(CONN, "used-up", REDIRECT, new_request().verifier, "ada")
    assert refusal.value.code == "code-refused"
    assert "used-up" not in str(refusal.value)
    assert house.criteo.consents.candidate(CONN) is None
    assert house.criteo.consents.current(CONN).state == "ok"  # type: ignore[union-attr]


def test_revoked_at_criteo_it_says_reconnect_and_heals_when_connected_anew(
    criteo: Sandbox, home: Home, shop: Shop, include: Path
) -> None:
    """A revoked consent is marked dead and told in one sentence; people wait, and go once somebody connects."""
    write_canvas(include, "vip", sync("add", "Shoppers"))
    house = home(criteo)
    connect(house, criteo)
    drain(house)  # launches the canvas
    criteo.application(revoked=True)
    criteo.advance(900)
    shop.add(Person(number) for number in range(1, 31))
    drain(house)
    assert pending(house) > 0
    (trouble,) = house.ledger.troubles()
    assert (trouble.scope, trouble.key, trouble.code) == ("connection", CONN, "consent-lost")
    assert "Reconnect on the Accounts page" in trouble.sentence
    assert house.criteo.consents.current(CONN).state == "dead"  # type: ignore[union-attr]
    criteo.application(revoked=False)
    connect(house, criteo)
    house.ledger.healed("connection", CONN, now_us=house._clock.now_us())
    drain(house)
    assert pending(house) == 0


def test_nobody_has_connected_yet(criteo: Sandbox, home: Home, shop: Shop, include: Path) -> None:
    """Without a consent nobody is read and no call is made; the sentence names the button, which is all it takes."""
    write_canvas(include, "vip", sync("add", "Shoppers"))
    shop.add(Person(number) for number in range(1, 31))
    house = home(criteo)
    house.accounts.choose(CONN, {"1001": "Example Shop"}, by="ada")
    drain(house)
    assert [one.entered for one in house.numbers()] == [0]
    assert [(row.scope, "Connect Criteo on the Accounts page" in row.sentence) for row in house.ledger.troubles()] == [
        ("launch", True)
    ]
    assert criteo.requests() == []
    connect(house, criteo)
    with closing(home(criteo)) as house:
        house.ledger.healed("launch", "vip", now_us=house._clock.now_us())
        drain(house)
        assert house.numbers()[0].synced > 10


def test_a_refresh_token_in_the_connection_is_enough(criteo: Sandbox, home: Home) -> None:
    """Who brings one through a secrets backend needs no page; each new one put there is taken over, once."""
    first, second = (brought(criteo) for _ in range(2))
    house = home(criteo, refresh_token=first)
    for _ in range(3):
        assert len(house.ad_accounts(CONN)) == 2
        criteo.advance(900)
    assert house.criteo.consents.current(CONN).by == "the connection"  # type: ignore[union-attr]
    before = house.criteo.consents.current(CONN)
    assert len(home(criteo, refresh_token=second).ad_accounts(CONN)) == 2
    assert house.criteo.consents.current(CONN).at_us > before.at_us  # type: ignore[union-attr]


def brought(sandbox: Sandbox) -> str:
    """A refresh token as somebody's own program has got it."""
    import httpx

    sandbox.application(redirect_uris=[REDIRECT])
    form = {
        "grant_type": "authorization_code", "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET,
        "redirect_uri": REDIRECT, "code": sandbox.new_code(REDIRECT, BOTH),
    }  # fmt: skip
    return str(httpx.post(f"{sandbox.url}/oauth2/token", data=form).json()["refresh_token"])


def test_another_fernet_key_is_told_and_costs_nothing(criteo: Sandbox, home: Home) -> None:
    """A process with a wrong or empty key spends no token of Criteo's; with the right one all goes on."""
    house = home(criteo)
    connect(house, criteo)
    criteo.advance(900)
    wrong = home(criteo, cipher=Sealer())
    with pytest.raises(AccessLost, match="another Fernet key") as lost:
        wrong.ad_accounts(CONN)
    assert lost.value.code == "another-fernet-key"
    with pytest.raises(Misconfigured, match="fernet_key"):
        home(criteo, cipher=None).criteo.exchange(CONN, "code", REDIRECT, "verifier", "ada")
    assert token_calls(criteo) == 1
    good, sentence = wrong.rotate_key()
    assert not good
    assert CONN in sentence
    assert len(house.ad_accounts(CONN)) == 2


def test_a_lost_answer_costs_a_lenient_consent_nothing(home: Home) -> None:
    """Criteo rotates and its answer is lost: where the old token works once more, the next try goes through."""
    with running_sandbox(limit_per_account=30_000, refresh_rotation="lenient") as sandbox:
        house = home(sandbox)
        connect(house, sandbox)
        sandbox.advance(900)
        sandbox.fault(operation="token", drop="after")
        with house.criteo.client(CONN) as client:
            assert len(client.ad_accounts()) == 2
        assert house.criteo.consents.current(CONN).state == "ok"  # type: ignore[union-attr]


def test_nothing_secret_is_logged(criteo: Sandbox, home: Home, caplog: pytest.LogCaptureFixture) -> None:
    """Codes, verifiers, access and refresh tokens appear in no log, whatever the level."""
    caplog.set_level(logging.DEBUG)
    house = home(criteo)
    connect(house, criteo)
    criteo.advance(900)
    house.ad_accounts(CONN)
    secrets = [*criteo.world.tokens, *criteo.world.refresh_tokens, *criteo.world.codes, CLIENT_SECRET]
    assert len(secrets) >= 4
    assert not [one for one in secrets if one in caplog.text]
    assert "code=" not in caplog.text


def test_the_budget_comes_from_the_consent(home: Home) -> None:
    """10 a minute for each consented ad account, unless the connection says otherwise; counted at the first look."""
    with running_sandbox() as sandbox:
        house = home(sandbox, requests_per_minute=None)
        assert house.criteo.limit(CONN) == 10
        connect(house, sandbox)
        assert (house.criteo.limit(CONN), house.criteo.budget(CONN)) == (10, 10)
        assert house.criteo.wants_count(CONN, every_s=900)
        house.ad_accounts(CONN)
        assert (house.criteo.limit(CONN), house.criteo.budget(CONN)) == (20, 20)
        assert not house.criteo.wants_count(CONN, every_s=900)
        assert home(sandbox, requests_per_minute=17).criteo.limit(CONN) == 17
        assert home(sandbox, requests_per_minute=None, grant_type="client_credentials").criteo.limit(CONN) == 250
