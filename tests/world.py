"""A small world around a ledger: a clock that stands still, crowds of made-up people, and every verb in one word."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from sqlalchemy import Engine, text, update

from criteo_provider.core.batching import pack
from criteo_provider.core.identifiers import Form, encode
from criteo_provider.core.model import (
    AudienceKey,
    CanvasDeclaration,
    ClaimedRequest,
    Operation,
    Reason,
    Role,
    SealedPeople,
    StepDeclaration,
)
from criteo_provider.core.outcome import Accepted, Outcome
from criteo_provider.store.claim import ClaimTerms
from criteo_provider.store.clock import DatabaseClock
from criteo_provider.store.engine import open_engine
from criteo_provider.store.ledger import Ledger
from criteo_provider.store.migrate import upgrade
from criteo_provider.store.schema import part

START_US = 4_000_000_000_000_000  # far ahead: by the database's own clock, which the view reads, nothing is overdue
HOUR_US = 3_600_000_000


def digest(number: int) -> bytes:
    """The identifier of the made-up person ``number``."""
    return sha256(f"person{number}@example.com".encode()).digest()


def crowd(numbers: Sequence[int], *, lacking: Sequence[int] = ()) -> SealedPeople:
    """People with an e-mail digest each, but for those in ``lacking``, who have none."""
    column = [None if number in lacking else digest(number) for number in numbers]
    reasons = [Reason.MISSING if value is None else None for value in column]
    return pack(
        [f"user-{number}" for number in numbers],
        {(Form.EMAIL_SHA256.value, None): column},
        {"email": reasons},
        lambda values, form: encode(values, Form(form)),
    )


def step(
    name: str,
    operation: Operation = Operation.ADD,
    *,
    audience: str = "Shoppers",
    fields: tuple[str, ...] = ("email",),
    delay_s: float = 0,
    position: int = 0,
    is_last: bool = True,
) -> StepDeclaration:
    """An audience-sync step on ad account 1001."""
    key = AudienceKey("criteo_default", "1001", audience)
    return StepDeclaration(name, position, key, operation, fields, delay_s, is_last)


def canvas(name: str, *steps: StepDeclaration, retry_for_s: float = 13 * 3600) -> CanvasDeclaration:
    """A canvas of these steps."""
    return CanvasDeclaration(
        name, name.title(), "growth-team", "criteo_default", retry_for_s, repr(steps), tuple(steps)
    )


def view_rows(engine: Engine, step_name: str, *, now_us: int) -> list[dict[str, Any]]:
    """The rows of ``user_status`` as they read at ``now_us``: the view knows no clock but the database's.

    For the length of a look, deadlines are as far from that clock as they are from ``now_us``.
    """
    ahead_us = now_us - DatabaseClock(engine).now_us()
    query = text("SELECT * FROM user_status WHERE step = :step")
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN")
        connection.execute(update(part).values(deadline_us=part.c.deadline_us - ahead_us))
        rows = [dict(row._mapping) for row in connection.execute(query, {"step": step_name})]
        connection.rollback()
    return rows


class World:
    """A ledger at a moment of your choice; ``now_us`` moves only when told to."""

    def __init__(self, url: str) -> None:
        self.engine: Engine = open_engine(url)
        upgrade(self.engine, now_us=START_US)
        self.ledger = Ledger(self.engine)
        self.now_us = START_US
        self.plans: dict[str, tuple] = {}

    def pass_time(self, seconds: float) -> None:
        """Let time pass."""
        self.now_us += round(seconds * 1e6)

    def declare(self, *canvases: CanvasDeclaration, resolve: bool = True, launch: bool = True) -> None:
        """Declare these canvases as all there are; launched, and their audiences known, unless told otherwise."""
        self.plans = self.ledger.declare(canvases, now_us=self.now_us)
        for canvas_id in self.ledger.launches.unlaunched() if launch else ():
            self.ledger.launches.launched(canvas_id, "", "[]", now_us=self.now_us)
        if resolve:
            for audience_id in {plan.audience_id for plans in self.plans.values() for plan in plans}:
                self.ledger.resolved(audience_id, str(7000 + audience_id), created=False, now_us=self.now_us)

    def enter(self, canvas_id: str, people: SealedPeople, *, position: object = None, owner: str = "me") -> None:
        """Seal one chunk."""
        hold = self.ledger.hold_cursor(canvas_id, owner, now_us=self.now_us, lease_s=30)
        assert hold is not None
        self.ledger.seal(
            hold,
            people,
            self.plans[canvas_id],
            position=position,
            units=(),
            looks=(),
            now_us=self.now_us,
        )
        self.ledger.release_cursor(hold)

    def claim(self, role: Role = Role.FRESH, *, owner: str = "me", lease_s: float = 120) -> ClaimedRequest | None:
        """Claim the next request."""
        return self.ledger.claim(
            ClaimTerms("criteo_default", frozenset({"1001"}), role, owner, lease_s), now_us=self.now_us
        )

    def claim_retry(self) -> ClaimedRequest | None:
        """Claim what the retry DAG would."""
        return self.claim(Role.RETRY)

    def sent(self, claimed: ClaimedRequest) -> list[bytes]:
        """The identifiers of a request."""
        return [value for part in claimed.parts for value in self.ledger.items(part)]

    def settle(self, claimed: ClaimedRequest, outcome: Outcome | None = None) -> int:
        """Settle a request, by default as accepted as a whole."""
        outcome = outcome or Accepted(claimed.identifiers, 0)
        return self.ledger.settle(claimed, outcome, now_us=self.now_us, jitter=0.5)

    def numbers(self, step_name: str) -> tuple[int, int, int, int, int]:
        """Entered, Synced, Not Synced, Pending, Errored of a step."""
        found = next(one for one in self.ledger.numbers(now_us=self.now_us) if one.step == step_name)
        return found.entered, found.synced, found.not_synced, found.pending, found.errored

    def statuses(self, step_name: str) -> dict[str, str]:
        """What the per-user view says, were the database's clock at this moment."""
        return {row["user_key"]: row["status"] for row in self.seen(step_name)}

    def seen(self, step_name: str) -> list[dict[str, Any]]:
        """The rows of the per-user view of a step, were the database's clock at this moment."""
        return view_rows(self.engine, step_name, now_us=self.now_us)

    def close(self) -> None:
        """Prove the laws, and let go."""
        broken = self.ledger.broken_laws()
        self.engine.dispose()
        assert broken == []
