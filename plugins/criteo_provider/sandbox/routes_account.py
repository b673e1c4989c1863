"""Who calls, and for which advertisers."""

from __future__ import annotations

from criteo_provider.sandbox.answers import Answer, accepted
from criteo_provider.sandbox.calls import Call, Operation


def me(call: Call) -> Answer:
    """Describe the application of the token."""
    application = call.world.applications[call.grant.client_id]
    attributes = {
        "applicationId": application.number,
        "organizationId": 1,
        "name": application.name,
        "description": "An application of the sandbox",
        "criteoService": "MarketingSolutions",
    }
    return accepted({"type": "Application", "attributes": attributes})


def advertisers(call: Call) -> Answer:
    """List the advertisers that consented; nobody consented: an empty list."""
    names = call.world.advertisers
    return accepted(
        [
            {
                "type": "advertiser",
                "id": advertiser_id,
                "attributes": {"advertiserName": names[advertiser_id]},
            }
            for advertiser_id in call.grant.advertiser_ids
            if advertiser_id in names
        ]
    )


OPERATIONS = (
    Operation("me", "GET", "/{version}/marketing-solutions/me", "token", me),
    Operation("advertisers", "GET", "/{version}/advertisers/me", "token", advertisers),
)
