"""Requests that reached Criteo after their claim was lost: whoever has a later intent by now is sent once more."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

from sqlalchemy import Connection, insert, select

from criteo_provider.core.model import ClaimedRequest, PartState
from criteo_provider.core.outcome import Accepted, Outcome, Unavailable
from criteo_provider.core.spans import from_ordinals, size
from criteo_provider.store.intents import people_of, values_in
from criteo_provider.store.schema import part
from criteo_provider.store.standings import spans_to_text


def may_have_arrived(outcome: Outcome) -> bool:
    """Tell whether a request with this outcome may have changed Criteo's list."""
    return isinstance(outcome, Accepted) or (isinstance(outcome, Unavailable) and outcome.maybe_applied)


def send_last_intents_again(
    connection: Connection, claimed: ClaimedRequest, still_ours: Collection[int], *, now_us: int
) -> int:
    """Open, once more, the later opposite intents of people whose claim was lost; return how many parts that are.

    What others sent meanwhile may have been undone by the request that came late. Their parts keep what they are,
    so nobody's status changes; the new ones go through claim and order like any others, and fall to a still later
    intent there.
    """
    lost = [one for one in claimed.parts if one.part_id not in still_ours]
    if not lost:
        return 0
    rivals = connection.execute(
        select(part).where(
            part.c.audience_id == claimed.audience_id,
            part.c.operation == claimed.operation.opposite.value,
            part.c.intent_us >= min(one.intent_us for one in lost),
            part.c.form.in_({one.form for one in lost}),
            part.c.state.in_((PartState.CLAIMED, PartState.ACCEPTED)),
            ~part.c.again,
        )
    ).all()
    if not rivals:
        return 0
    arrived: dict[str, set[bytes]] = defaultdict(set)
    for one in lost:
        arrived[one.form].update(values_in(connection, one.chunk_id, one.form, one.earlier_id, one.spans))
    opened = 0
    for rival in rivals:
        people = from_ordinals(people_of(connection, rival, arrived[rival.form]))
        if people:
            fresh = {
                **rival._mapping,
                "spans": spans_to_text(people),
                "identifiers": size(people),
                "state": PartState.OPEN,
                "reason": None,
                "request_id": None,
                "attempts": 0,
                "due_us": now_us,
                # What is in flight has a clock, and its users no more patience; who was settled is asked for anew.
                "deadline_us": rival.deadline_us if rival.state == PartState.CLAIMED else None,
                "narrow_level": 0,
                "narrow_root": None,
                "narrow_group": None,
                "again": True,
            }
            fresh.pop("id")
            connection.execute(insert(part).values(fresh))
            opened += 1
    return opened
