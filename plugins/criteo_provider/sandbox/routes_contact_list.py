"""Contact lists: add and remove people, empty the list, read its statistics."""

from __future__ import annotations

import msgspec

from criteo_provider.sandbox.answers import Answer, Refusal, accepted, audience_invalid, forbidden, invalid
from criteo_provider.sandbox.calls import Call, Operation
from criteo_provider.sandbox.contract import AmendmentAttributes, AmendmentRequest
from criteo_provider.sandbox.identifiers import Reading, key_of, read_digests, read_each
from criteo_provider.sandbox.routes_segments import matches_of
from criteo_provider.sandbox.state import Segment

BASE = "/{version}/marketing-solutions/audience-segments/{segment_id}/contact-list"


def amend(call: Call) -> Answer:
    """Add or remove people. The counts tell how many are well formed, never how many match."""
    segment = _list_of(call)
    wanted = call.read(AmendmentRequest).data.attributes
    caller_id = _caller_id(wanted)
    reading = _read(call, wanted, caller_id)
    call.entry.change, call.entry.identifier_type = wanted.operation, wanted.identifierType
    call.entry.valid, call.entry.invalid = reading.valid, reading.invalid
    _visible_size(call, segment)
    segment.members.amend(wanted.operation, wanted.identifierType, reading)
    call.entry.applied = True
    now = call.world.clock.now()
    attributes = {
        "contactListId": segment.number,
        "operation": wanted.operation,
        "requestDate": now.strftime("%Y-%m-%dT%H:%M:%S.%f0+00:00"),
        "identifierType": wanted.identifierType,
        "nbValidIdentifiers": reading.valid,
        "nbInvalidIdentifiers": reading.invalid,
        "sampleInvalidIdentifiers": reading.sample,
    }
    return accepted({"type": "ContactlistAmendment", "attributes": attributes})


def clear(call: Call) -> Answer:
    """Empty the list; the segment stays."""
    segment = _list_of(call)
    _visible_size(call, segment)
    segment.members.clear()
    call.entry.change, call.entry.applied = "clear", True
    return accepted({"id": str(segment.number), "type": "AudienceContactlist"})


def statistics(call: Call) -> Answer:
    """Tell the size of the list and its matches, as of the last processing run."""
    segment = _list_of(call, to_change=False)
    size = _visible_size(call, segment)
    matches = matches_of(call.world, segment)
    attributes = {
        "numberOfIdentifiers": size,
        "numberOfMatches": matches,
        "matchRate": round(100 * matches / size, 2) if size else 0.0,
    }
    return accepted({"id": str(segment.number), "type": "ContactListStatistics", "attributes": attributes})


def _list_of(call: Call, *, to_change: bool = True) -> Segment:
    segment_id = call.path["segment_id"]
    if not segment_id.isascii() or not segment_id.isdecimal():
        raise invalid("The audience segment id must be digits", field_path="audience-segment-id")
    segment = call.world.segments.get(int(segment_id))
    if segment is None:
        raise audience_invalid()
    if not call.may_touch(segment.advertiser_id):
        raise audience_invalid() if call.world.rules.foreign_segment_status == 404 else forbidden()
    if segment.kind != "ContactList":
        raise invalid("Only a segment of type ContactList holds a contact list")
    if to_change and segment.read_only:
        raise invalid("This contact list is read-only", code="contact-list-read-only")
    return segment


def _caller_id(wanted: AmendmentAttributes) -> int | None:
    path = "data/attributes/gumCallerId"
    if wanted.identifierType == "gum":
        if not isinstance(wanted.gumCallerId, int):
            raise invalid("gumCallerId is required for identifiers of type gum", code="required-field", field_path=path)
        return wanted.gumCallerId
    if isinstance(wanted.gumCallerId, int):
        raise invalid("gumCallerId goes with identifiers of type gum only", field_path=path)
    return None


def _read(call: Call, wanted: AmendmentAttributes, caller_id: int | None) -> Reading:
    world = call.world
    array = bytes(wanted.identifiers)
    path = "data/attributes/identifiers"
    marked = bool(world.called_invalid or world.refused or world.rules.invalid_share)
    reading = read_digests(array) if wanted.identifierType == "email" and not marked else None
    if reading is None:
        try:
            reading = read_each(
                array,
                wanted.identifierType,
                caller_id,
                sample_size=world.rules.sample_size,
                called_invalid=world.called_invalid,
                invalid_share=world.rules.invalid_share,
            )
        except (msgspec.MsgspecError, UnicodeError):
            raise invalid("identifiers must be an array of strings", field_path=path) from None
    if not reading.count:
        raise invalid("identifiers must not be empty", code="required-field", field_path=path)
    if reading.count > world.rules.max_identifiers:
        title = f"At most {world.rules.max_identifiers} identifiers are taken in one request"
        raise invalid(title, code="exceeded-ids-cap", field_path=path)
    if world.refused and not world.refused.isdisjoint(reading.keys()):
        raise Refusal(400, "validation", "invalid", "The request holds an identifier that cannot be processed")
    return reading


def mark(identifier_type: str, identifiers: list[str], gum_caller_id: int | None = None) -> frozenset[bytes]:
    """Return the keys of identifiers to treat specially (``World.called_invalid``, ``World.refused``)."""
    keys = (key_of(text, identifier_type, gum_caller_id) for text in identifiers)
    return frozenset(key for key in keys if key is not None)


def _visible_size(call: Call, segment: Segment) -> int:
    return segment.visible_size(call.world.clock.monotonic_s(), call.world.rules.statistics_lag_s)


OPERATIONS = (
    Operation("amend", "PATCH", BASE, "manage", amend),
    Operation("clear", "DELETE", BASE, "manage", clear),
    Operation("statistics", "GET", f"{BASE}/statistics", "read", statistics),
)
