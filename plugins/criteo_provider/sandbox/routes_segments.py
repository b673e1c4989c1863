"""Audience segments: create, search, update, delete, size."""

from __future__ import annotations

from datetime import datetime

import msgspec

from criteo_provider.sandbox.answers import Answer, Json, Refusal, accepted, forbidden, invalid
from criteo_provider.sandbox.calls import Call, Operation
from criteo_provider.sandbox.contract import (
    SegmentCreation,
    SegmentCreationRequest,
    SegmentCreationResource,
    SegmentFilter,
    SegmentReference,
    SegmentReferenceRequest,
    SegmentSearchRequest,
    SegmentUpdateRequest,
    SegmentUpdateResource,
)
from criteo_provider.sandbox.state import Segment, World

BASE = "/{version}/marketing-solutions/audience-segments"

KINDS = {
    "contactList": "ContactList",
    "inMarket": "InMarket",
    "location": "Location",
    "lookalike": "Lookalike",
    "prospecting": "Prospecting",
    "retargeting": "Retargeting",
}
REQUIRED = {
    "inMarket": ("country",),
    "location": ("pointsOfInterest", "radiusInKm"),
    "lookalike": ("seedSegmentId",),
    "prospecting": ("usersType",),
    "retargeting": ("daysSinceLastVisitMax", "daysSinceLastVisitMin", "visitorsType"),
}
LARGEST_OFFSET = 2**31 - 1


def create(call: Call) -> Answer:
    """Create segments; each item succeeds or fails by itself."""

    def one(resource: SegmentCreationResource) -> Json:
        return resource_of(_create(call, resource.attributes))

    return call.each(call.read(SegmentCreationRequest).data, one)


def search(call: Call) -> Answer:
    """Page through the segments of consented advertisers, oldest first; those of others are not there."""
    limit = call.number("limit", default=50, least=0, most=100)
    offset = call.number("offset", default=0, least=0, most=LARGEST_OFFSET)
    if unknown := sorted(set(call.query) - {"limit", "offset"}):
        raise invalid(f"Unknown query parameter {unknown[0]}", field_path=unknown[0])
    wanted = call.read(SegmentSearchRequest).data.attributes
    found = [segment for segment in call.world.segments.values() if _matches(call, segment, wanted)]
    page = [resource_of(segment) for segment in found[offset : offset + limit]]
    return accepted(page, meta={"totalItems": len(found), "limit": limit, "offset": offset})


def update(call: Call) -> Answer:
    """Rename or describe segments."""

    def one(resource: SegmentUpdateResource) -> Json:
        segment = _of(call, resource.id)
        change = resource.attributes
        if isinstance(change.name, str) and change.name != segment.name:
            _check_name(call.world, segment.advertiser_id, change.name)
            segment.name = change.name
        if not isinstance(change.description, msgspec.UnsetType):
            segment.description = change.description.value
        segment.updated_at = call.world.clock.now()
        return resource_of(segment)

    return call.each(call.read(SegmentUpdateRequest).data, one)


def delete(call: Call) -> Answer:
    """Delete segments and the lists in them."""

    def one(reference: SegmentReference) -> Json:
        del call.world.segments[_of(call, reference.id).number]
        return {"id": reference.id, "type": "AudienceSegment", "attributes": {}}

    return call.each(call.read(SegmentReferenceRequest).data, one)


def compute_sizes(call: Call) -> Answer:
    """Size contact lists in matched users, 0 below a threshold; other kinds are reported as errors."""
    rules = call.world.rules

    def one(reference: SegmentReference) -> Json:
        segment = _of(call, reference.id)
        if segment.kind != "ContactList":
            raise Refusal(400, "validation", "unsupported-segment-type", "The size of this type is not computed")
        matches = matches_of(call.world, segment)
        size = 0 if matches < rules.hide_sizes_below else matches
        return {"id": reference.id, "type": "AudienceSegmentSize", "attributes": {"size": size}}

    return call.each(call.read(SegmentReferenceRequest).data, one)


def matches_of(world: World, segment: Segment) -> int:
    """Return how many of the processed identifiers match: the known people, or a fixed share."""
    size = segment.visible_size(world.clock.monotonic_s(), world.rules.statistics_lag_s)
    if not world.people or not world.rules.match_rate:
        return int(size * world.rules.match_rate)
    known = sum(key in world.people for key in segment.members.keys("email"))
    return min(size, known)


def resource_of(segment: Segment) -> Json:
    """Return a segment as the API shows it."""
    definition: object = segment.definition
    if segment.kind == "ContactList":
        definition = {"isReadOnly": segment.read_only}
    shapes: Json = {member: definition if kind == segment.kind else None for member, kind in KINDS.items()}
    attributes: Json = {
        "advertiserId": segment.advertiser_id,
        "name": segment.name,
        "description": segment.description,
        "type": segment.kind,
        **shapes,
        "behavioral": None,
        "createdAt": stamp(segment.created_at),
        "updatedAt": stamp(segment.updated_at),
    }
    return {"id": str(segment.number), "type": "AudienceSegment", "attributes": attributes}


def stamp(moment: datetime) -> str:
    """Write a time as Criteo's segments do."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def _create(call: Call, wanted: SegmentCreation) -> Segment:
    given = {member: getattr(wanted, member) for member in KINDS}
    given = {member: value for member, value in given.items() if value is not msgspec.UNSET}
    if not call.may_touch(wanted.advertiserId):
        raise forbidden()
    if len(given) != 1:
        raise invalid(f"Exactly one of {', '.join(KINDS)} is needed", field_path="attributes")
    if call.rival:
        call.world.new_segment(wanted.advertiserId, wanted.name)
    _check_name(call.world, wanted.advertiserId, wanted.name)
    member, definition = next(iter(given.items()))
    for key in REQUIRED.get(member, ()):
        if key not in definition:
            raise invalid(f"{key} is required", code="required-field", field_path=f"attributes/{member}/{key}")
    _check_quota(call.world, wanted.advertiserId)
    return call.world.new_segment(
        wanted.advertiserId,
        wanted.name,
        kind=KINDS[member],
        definition=msgspec.to_builtins(definition),
        description=wanted.description,
    )


def _check_name(world: World, advertiser_id: str, name: str) -> None:
    if not name.strip():
        raise invalid("Segment name must not be empty", code="name-must-not-be-empty", field_path="attributes/name")
    if any(other.advertiser_id == advertiser_id and other.name == name for other in world.segments.values()):
        raise Refusal(
            400, "validation", "name-must-be-unique", "Segment name must be unique",
            detail=f"Another Segment exists with the name: {name}", source={"name": "attributes/name"},
        )  # fmt: skip


def _check_quota(world: World, advertiser_id: str) -> None:
    there = sum(segment.advertiser_id == advertiser_id for segment in world.segments.values())
    if there >= world.rules.segment_cap:
        detail = f"The limit of {world.rules.segment_cap} is reached"
        raise Refusal(400, "quota", world.rules.quota_code, "Unable to create new audiences", detail=detail)


def _matches(call: Call, segment: Segment, wanted: SegmentFilter) -> bool:
    def within(values: object, value: str) -> bool:
        return not isinstance(values, list) or value in values

    return (
        call.may_touch(segment.advertiser_id)
        and within(wanted.audienceSegmentIds, str(segment.number))
        and within(wanted.advertiserIds, segment.advertiser_id)
        and within(wanted.audienceSegmentTypes, segment.kind)
    )


def _of(call: Call, segment_id: str) -> Segment:
    segment = call.world.segments.get(int(segment_id)) if segment_id.isdecimal() else None
    if segment is None:
        raise Refusal(400, "validation", "segment-not-found", "Segment is not found", source={"id": "id"})
    if not call.may_touch(segment.advertiser_id):
        raise forbidden()
    return segment


OPERATIONS = (
    Operation("create", "POST", f"{BASE}/create", "manage", create),
    Operation("search", "POST", f"{BASE}/search", "read", search),
    Operation("update", "PATCH", BASE, "manage", update),
    Operation("delete", "POST", f"{BASE}/delete", "manage", delete),
    Operation("compute-sizes", "POST", f"{BASE}/compute-sizes", "manage", compute_sizes),
)
