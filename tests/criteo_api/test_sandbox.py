"""The client against a Criteo that runs here: real sockets, tokens that end, limits, faults."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator

import pytest

from criteo_provider.core.errors import AudienceGone, QuotaReached
from criteo_provider.core.outcome import Accepted, AccessLost, Busy, Refused, Unavailable
from criteo_provider.core.outcome import AudienceGone as Gone
from criteo_provider.criteo_api.check import check_access
from criteo_provider.criteo_api.client import CriteoClient
from criteo_provider.criteo_api.line import ClientSettings
from criteo_provider.criteo_api.wire import amendment_body
from criteo_provider.sandbox.running import Sandbox, running_sandbox
from tests.criteo_api.doubles import CountedSlots, MemoryTokens

SHOP = "1001"
PEOPLE = [hashlib.sha256(f"person{n}@example.com".encode()).hexdigest() for n in range(50_000)]


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with running_sandbox() as running:
        yield running


@pytest.fixture
def client(sandbox: Sandbox) -> Iterator[CriteoClient]:
    with client_of(sandbox) as made:
        yield made


def client_of(sandbox: Sandbox, **more: str) -> CriteoClient:
    settings = ClientSettings(**{"client_id": sandbox.client_id, "client_secret": sandbox.client_secret,
                                 "base_url": sandbox.url} | more)  # fmt: skip
    return CriteoClient(settings, CountedSlots(), MemoryTokens())


def pieces(
    people: list[str], operation: str = "add", kind: str = "email", caller: int | None = None
) -> tuple[bytes, ...]:
    return amendment_body(operation, kind, caller, [",".join(f'"{one}"' for one in people).encode()])


def test_the_whole_way(sandbox: Sandbox, client: CriteoClient) -> None:
    """Connect, create an audience, add 50,000 people in one request, remove one: the list is as told."""
    assert check_access(client, [SHOP]).ok
    audience, created = client.ensure_audience(SHOP, "VIP")
    assert (created, client.ensure_audience(SHOP, "VIP")) == (True, (audience, False))
    assert client.amend(audience.criteo_id, pieces(PEOPLE)) == Accepted(50_000, 0)
    assert client.amend(audience.criteo_id, pieces(PEOPLE[:1], "remove")) == Accepted(1, 0)
    assert sandbox.size(audience.criteo_id) == 49_999
    assert sandbox.is_member(audience.criteo_id, PEOPLE[:2]) == [False, True]
    assert client.statistics(audience.criteo_id).identifiers is not None


def test_invalid_identifiers_are_counted(client: CriteoClient) -> None:
    """Criteo's own verdict comes back: how many were invalid, and which."""
    audience = client.create_audience(SHOP, "VIP")
    got = client.amend(audience.criteo_id, pieces([PEOPLE[0], "jkl@gmail"]))
    assert got == Accepted(1, 1, ("jkl@gmail",))


def test_a_gum_request_carries_its_caller(client: CriteoClient) -> None:
    """gum identifiers are taken with a caller id, and refused without."""
    audience = client.create_audience(SHOP, "VIP")
    assert client.amend(audience.criteo_id, pieces(["gum-1"], kind="gum", caller=7)) == Accepted(1, 0)
    assert isinstance(client.amend(audience.criteo_id, pieces(["gum-1"], kind="gum")), Refused)


def test_a_token_that_ended_is_replaced(sandbox: Sandbox, client: CriteoClient) -> None:
    """When Criteo's clock runs past the token's life, the request goes through with a new token."""
    audience = client.create_audience(SHOP, "VIP")
    sandbox.advance(1_000)
    assert client.amend(audience.criteo_id, pieces(PEOPLE[:1])) == Accepted(1, 0)


def test_a_list_that_is_gone(sandbox: Sandbox, client: CriteoClient) -> None:
    """A list deleted at Criteo is AudienceGone, for uploads and for statistics."""
    audience = client.create_audience(SHOP, "VIP")
    sandbox.delete_segment(audience.criteo_id)
    assert isinstance(client.amend(audience.criteo_id, pieces(PEOPLE[:1])), Gone)
    with pytest.raises(AudienceGone):
        client.statistics(audience.criteo_id)


def test_too_many_identifiers(client: CriteoClient) -> None:
    """50,001 identifiers are refused."""
    audience = client.create_audience(SHOP, "VIP")
    assert isinstance(client.amend(audience.criteo_id, pieces([*PEOPLE, "a" * 64])), Refused)


@pytest.mark.parametrize("drop", ["before", "after"])
def test_a_dropped_connection_may_have_been_applied(sandbox: Sandbox, client: CriteoClient, drop: str) -> None:
    """A connection dropped before or after the change looks the same to us: it may have been applied."""
    audience = client.create_audience(SHOP, "VIP")
    sandbox.fault(operation="amend", drop=drop)
    got = client.amend(audience.criteo_id, pieces(PEOPLE[:1]))
    assert isinstance(got, Unavailable)
    assert got.maybe_applied
    assert sandbox.size(audience.criteo_id) == (drop == "after")


def test_the_limit_of_criteo(sandbox: Sandbox, client: CriteoClient) -> None:
    """The answer beyond the limit says how long to wait."""
    audience = client.create_audience(SHOP, "VIP")
    sandbox.rules(limit=1)
    got = client.amend(audience.criteo_id, pieces(PEOPLE[:1]))
    assert isinstance(got, Busy)
    assert 0 < got.wait_s <= 61


def test_the_quota_of_audiences(sandbox: Sandbox, client: CriteoClient) -> None:
    """At the quota a new audience is refused in plain words, and existing ones go on."""
    sandbox.rules(segment_cap=1)
    audience = client.create_audience(SHOP, "first")
    with pytest.raises(QuotaReached, match="unable to create new audiences"):
        client.ensure_audience(SHOP, "second")
    assert client.amend(audience.criteo_id, pieces(PEOPLE[:1])) == Accepted(1, 0)


@pytest.mark.parametrize("mode", ["errors200", "warnings200", "status400"])
def test_two_creators_end_with_one_audience(sandbox: Sandbox, mode: str) -> None:
    """Eight who create the same name at once end with one audience, in every way Criteo may report a clash."""
    sandbox.rules(bulk_failure=mode)
    together, got = threading.Barrier(8, timeout=30), list[str]()

    def ensure() -> None:
        with client_of(sandbox) as one:
            together.wait()
            got.append(one.ensure_audience(SHOP, "VIP")[0].criteo_id)

    threads = [threading.Thread(target=ensure) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(got) == 8
    assert len(set(got)) == 1
    assert len(sandbox.state()["segments"]) == 1


def test_a_creation_whose_answer_was_lost(sandbox: Sandbox, client: CriteoClient) -> None:
    """When the connection drops after the creation, the audience is found and not created twice."""
    sandbox.fault(operation="create", drop="after")
    audience, _ = client.ensure_audience(SHOP, "VIP")
    assert [str(one["id"]) for one in sandbox.state()["segments"]] == [audience.criteo_id]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"client_secret": "wrong"}, "wrong-client-pair"),
        ({"client_id": "nobody"}, "wrong-client-pair"),
        ({"api_version": "2025-07"}, "api-version-gone"),
        ({"api_version": "1999-01"}, "unknown-address"),
        ({"base_url": "http://127.0.0.1:9"}, "unreachable"),
    ],
)
def test_wrong_connections_are_told_apart(sandbox: Sandbox, change: dict[str, str], code: str) -> None:
    """Each wrong setting of a connection has its own sentence."""
    with client_of(sandbox, **change) as one:
        assert check_access(one).code == code


def test_an_ad_account_of_somebody_else(sandbox: Sandbox, client: CriteoClient) -> None:
    """An ad account that has not consented is named, and a permission that is lacking too."""
    assert check_access(client, ["9999"]).code == "ad-account-not-consented"
    sandbox.application(permission="none")
    assert check_access(client, [SHOP]).code == "no-audiences-permission"


def test_a_permission_to_read_only(sandbox: Sandbox, client: CriteoClient) -> None:
    """With permission to read only, an upload is lost access to the ad account."""
    audience = client.create_audience(SHOP, "VIP")
    sandbox.application(permission="read")
    got = client.amend(audience.criteo_id, pieces(PEOPLE[:1]))
    assert isinstance(got, AccessLost)
    assert got.scope == "ad_account"
