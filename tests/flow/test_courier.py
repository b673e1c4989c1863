"""The courier carries a body to Criteo and keeps nothing of it."""

from __future__ import annotations

from typing import Any

import pytest

from criteo_provider.core.errors import LostClaim
from criteo_provider.core.model import ClaimedRequest, Operation
from criteo_provider.core.outcome import Accepted, Outcome
from criteo_provider.wiring.criteo import Courier
from tests.criteo_api.doubles import Criteo, accepted, problem

CLAIMED = ClaimedRequest(1, 1, "7001", "1001", Operation.ADD, "email", None, (), 0)


class Client:
    """Takes what it is given, or refuses to begin."""

    def __init__(self, *, lost: bool = False) -> None:
        self.lost, self.taken = lost, b""

    def amend(self, _criteo_id: str, pieces: list[bytes], **_more: Any) -> Outcome:
        if self.lost:
            raise LostClaim("The lease is too short.")
        self.taken = b"".join(pieces)
        return Accepted(1, 0)


@pytest.mark.parametrize("lost", [False, True])
def test_a_body_is_let_go_of_once_it_was_sent(lost: bool) -> None:
    """1.6 MB a request must not wait for the garbage collector: memory is flat however many are sent."""
    client = Client(lost=lost)
    courier: Any = Courier(client)  # type: ignore[arg-type]
    parcel = courier.pack(CLAIMED, lambda: {"email_sha256": bytes(32)})
    if lost:
        with pytest.raises(LostClaim):
            courier.send(CLAIMED, parcel, lambda: None)
    else:
        assert courier.send(CLAIMED, parcel, lambda: None) == Accepted(1, 0)
        assert client.taken.count(b"0" * 64) == 1
    assert parcel == []


def test_a_repeated_request_carries_the_same_people() -> None:
    """What was let go of is read once more when Criteo has refused the access token, and is the same text."""
    refused = problem(401, "authorization", "authorization-token-expired")
    tokens = [{"access_token": name, "token_type": "Bearer", "expires_in": 900} for name in ("dead", "live")]
    criteo = Criteo(token=tokens, amend=[refused, accepted(5_000)])
    stored = bytes(range(32)) * 5_000
    reads: list[bytes] = []

    def values() -> dict[str, bytes]:
        reads.append(stored)
        return {"email_sha256": stored}

    courier = Courier(criteo.client())
    parcel = courier.pack(CLAIMED, values)
    assert courier.send(CLAIMED, parcel, lambda: None) == Accepted(5_000, 0)
    first, second = (request.content for request in criteo.calls("amend"))
    assert first == second
    assert first.count(stored[:32].hex().encode()) == 5_000
    assert len(reads) == 2
