"""Audiences, composed of segments, and their link to ad sets: what a contact list needs to be targeted."""

from __future__ import annotations

from criteo_provider.sandbox.answers import Answer, Json, Refusal, accepted, forbidden, invalid
from criteo_provider.sandbox.calls import Call, Operation
from criteo_provider.sandbox.contract import (
    AdSetLinkRequest,
    AudienceCreation,
    AudienceCreationRequest,
    AudienceCreationResource,
)
from criteo_provider.sandbox.routes_segments import stamp
from criteo_provider.sandbox.state import Audience

BASE = "/{version}/marketing-solutions"
DEEPEST = 20


def create(call: Call) -> Answer:
    """Create audiences; the name is unique in its advertiser, every segment in the algebra must be there."""

    def one(resource: AudienceCreationResource) -> Json:
        return resource_of(_create(call, resource.attributes))

    return call.each(call.read(AudienceCreationRequest).data, one)


def link(call: Call) -> Answer:
    """Point an ad set at an audience, or at none."""
    ad_set_id = call.path["ad_set_id"]
    audience_id = call.read(AdSetLinkRequest).data.attributes.audienceId
    chosen = None if audience_id is None else _of(call, audience_id)
    for audience in call.world.audiences.values():
        if ad_set_id in audience.ad_set_ids:
            audience.ad_set_ids.remove(ad_set_id)
    if chosen is not None:
        chosen.ad_set_ids.append(ad_set_id)
    return accepted({"type": "AdSetAudienceLink", "id": ad_set_id, "attributes": {"audienceId": audience_id}})


def resource_of(audience: Audience) -> Json:
    """Return an audience as the API shows it."""
    attributes: Json = {
        "advertiserId": audience.advertiser_id,
        "name": audience.name,
        "description": audience.description,
        "algebra": audience.algebra,
        "adSetIds": list(audience.ad_set_ids),
        "createdAt": stamp(audience.created_at),
        "updatedAt": stamp(audience.created_at),
    }
    return {"id": str(audience.number), "type": "Audience", "attributes": attributes}


def _create(call: Call, wanted: AudienceCreation) -> Audience:
    world = call.world
    if not call.may_touch(wanted.advertiserId):
        raise forbidden()
    if not wanted.name.strip():
        raise invalid("Audience name must not be empty", code="name-must-not-be-empty", field_path="attributes/name")
    for other in world.audiences.values():
        if (other.advertiser_id, other.name) == (wanted.advertiserId, wanted.name):
            raise invalid("Audience name must be unique", code="name-must-be-unique", field_path="attributes/name")
    _check_algebra(call, wanted.algebra, depth=0)
    audience = Audience(
        world.next_number(),
        wanted.advertiserId,
        wanted.name,
        wanted.description,
        wanted.algebra,
        world.clock.now(),
    )
    world.audiences[audience.number] = audience
    return audience


def _check_algebra(call: Call, node: object, *, depth: int) -> None:
    if not isinstance(node, dict) or len(node) != 1 or depth > DEEPEST:
        raise _wrong_algebra()
    operator, operand = next(iter(node.items()))
    if operator == "audienceSegmentId" and isinstance(operand, str):
        segment = call.world.segments.get(int(operand)) if operand.isdecimal() else None
        if segment is None or not call.may_touch(segment.advertiser_id):
            raise Refusal(400, "validation", "segment-not-found", "Segment is not found")
    elif operator in ("and", "or") and isinstance(operand, list) and operand:
        for child in operand:
            _check_algebra(call, child, depth=depth + 1)
    elif operator == "not":
        _check_algebra(call, operand, depth=depth + 1)
    else:
        raise _wrong_algebra()


def _wrong_algebra() -> Refusal:
    return invalid("An algebra node is one of audienceSegmentId, and, or, not", field_path="attributes/algebra")


def _of(call: Call, audience_id: str) -> Audience:
    audience = call.world.audiences.get(int(audience_id)) if audience_id.isdecimal() else None
    if audience is None:
        raise Refusal(404, "validation", "audience-not-found", "Audience is not found")
    if not call.may_touch(audience.advertiser_id):
        raise forbidden()
    return audience


OPERATIONS = (
    Operation("create-audience", "POST", f"{BASE}/audiences/create", "manage", create),
    Operation("link-ad-set", "PUT", f"{BASE}/ad-sets/{{ad_set_id}}/audience", "manage", link),
)
