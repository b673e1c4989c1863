"""Check 1: Criteo's own SDKs, unmodified, find in the sandbox the API they were generated for."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from criteo_provider.sandbox.running import Sandbox
from tests.sandbox.judges import ORACLES, sdk
from tests.sandbox.test_oauth import REDIRECT

MD5 = "23463b99b62a72f26ed677cc556c44e8"


class Official:
    """The SDK of one version: its APIs, and its models, read from dictionaries with every type checked."""

    def __init__(self, sandbox: Sandbox, package: str) -> None:
        self.package = package
        builder = importlib.import_module(f"{package}.api_client_builder").ApiClientBuilder
        client = builder.WithClientCredentials(sandbox.client_id, sandbox.client_secret, host=sandbox.url)
        self.audience = self._api("audience_api", "AudienceApi", client)
        self.advertiser = self._api("advertiser_api", "AdvertiserApi", client)
        self.gateway = self._api("gateway_api", "GatewayApi", client)
        self.campaign = self._api("campaign_api", "CampaignApi", client)

    def _api(self, module: str, name: str, client: object) -> Any:
        return getattr(importlib.import_module(f"{self.package}.api.{module}"), name)(client)

    def model(self, module: str, content: Mapping[str, Any]) -> Any:
        """Build a request model as the SDK would read it from the wire."""
        utils = importlib.import_module(f"{self.package}.model_utils")
        name = "".join(part.capitalize() for part in module.split("_"))
        found = importlib.import_module(f"{self.package}.model.{module}")
        cls = next(value for key, value in vars(found).items() if key.lower() == name.lower())
        configuration = importlib.import_module(f"{self.package}.configuration").Configuration()
        return utils.validate_and_convert_types(
            copy.deepcopy(content),
            (cls,),
            ["body"],
            spec_property_naming=True,
            _check_type=True,
            configuration=configuration,
        )


@pytest.fixture(params=ORACLES)
def package(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each SDK in turn: that of our default API version, and that of the next."""
    with sdk(request.param) as package:
        yield package


@pytest.fixture
def official(sandbox: Sandbox, package: str) -> Official:
    return Official(sandbox, package)


def new_segment(official: Official, name: str = "VIP") -> Any:
    attributes = {"advertiserId": "1001", "name": name, "description": "VIP customers", "contactList": {}}
    body = {"data": [{"type": "AudienceSegment", "attributes": attributes}]}
    answer = official.audience.create_audience_segments(
        audience_segment_bulk_create_input_v1=official.model("audience_segment_bulk_create_input_v1", body)
    )
    return answer.data[0]


def amend(official: Official, segment_id: str, **attributes: object) -> Any:
    wanted = {"operation": "add", "identifierType": "email", "identifiers": ["a@example.com", MD5], **attributes}
    body = {"data": {"type": "ContactlistAmendment", "attributes": wanted}}
    return official.audience.update_contact_list_by_audience_segment(
        segment_id, contactlist_amendment_request=official.model("contactlist_amendment_request", body)
    )


def every_call(official: Official, sandbox: Sandbox) -> None:
    """Make every call of a contact list's life, and of an audience that targets it."""
    assert [item.id for item in official.advertiser.list_advertisers().data] == ["1001", "1002"]
    assert official.gateway.get_current_application().data.attributes.name == "Sandbox application"
    segment_id = segment_calls(official)
    contact_list_calls(official, segment_id)
    targeting_calls(official, segment_id)
    reference = {"data": [{"id": segment_id, "type": "AudienceSegment", "attributes": {}}]}
    deleted = official.audience.delete_audience_segments(
        audience_segment_bulk_delete_input_v1=official.model("audience_segment_bulk_delete_input_v1", reference)
    )
    assert deleted.data[0].id == segment_id
    assert sandbox.state()["segments"] == []


def segment_calls(official: Official) -> str:
    segment = new_segment(official)
    assert segment.attributes.contact_list.is_read_only is False
    filters = {"advertiserIds": ["1001"], "audienceSegmentTypes": ["ContactList"]}
    search = official.model(
        "audience_segment_search_input_v1", {"data": {"type": "AudienceSegment", "attributes": filters}}
    )
    found = official.audience.search_audience_segments(limit=100, offset=0, audience_segment_search_input_v1=search)
    assert (found.meta.total_items, [item.id for item in found.data]) == (1, [segment.id])
    change = {"name": "VIP2", "description": {"value": "x"}}
    update = {"data": [{"id": segment.id, "type": "AudienceSegment", "attributes": change}]}
    renamed = official.audience.update_audience_segments(
        audience_segment_bulk_update_input_v1=official.model("audience_segment_bulk_update_input_v1", update)
    )
    assert renamed.data[0].attributes.name == "VIP2"
    reference = {"data": [{"id": segment.id, "type": "AudienceSegment", "attributes": {}}]}
    sizes = official.audience.compute_audience_segments_sizes(
        audience_segment_compute_sizes_input_v1=official.model("audience_segment_compute_sizes_input_v1", reference)
    )
    assert sizes.data[0].attributes.size == 0
    return str(segment.id)


def contact_list_calls(official: Official, segment_id: str) -> None:
    added = amend(official, segment_id).data.attributes
    assert (added.contact_list_id, added.nb_valid_identifiers) == (int(segment_id), 2)
    assert (added.operation, added.nb_invalid_identifiers) == ("add", 0)
    amend(official, segment_id, identifierType="gum", identifiers=["k-1"], gumCallerId=123)
    statistics = official.audience.get_audience_segment_contact_list_statistics(segment_id)
    assert statistics.data.attributes.number_of_identifiers == 3
    assert official.audience.delete_contact_list_by_audience_segment(segment_id).data.id == segment_id


def targeting_calls(official: Official, segment_id: str) -> None:
    attributes = {"advertiserId": "1001", "name": "aud", "algebra": {"or": [{"audienceSegmentId": segment_id}]}}
    create = {"data": [{"type": "Audience", "attributes": attributes}]}
    made = official.audience.create_audiences(
        audience_bulk_create_input_v1=official.model("audience_bulk_create_input_v1", create)
    )
    link = {"data": {"type": "AdSetAudienceLink", "attributes": {"audienceId": made.data[0].id}}}
    linked = official.campaign.update_ad_set_audience(
        "55", ad_set_audience_link_input_entity_v1=official.model("ad_set_audience_link_input_entity_v1", link)
    )
    assert linked.data.attributes.audience_id == made.data[0].id


def every_grant(package: str, sandbox: Sandbox) -> None:
    """Sign in by each of the three grants, and let the one of a code be refreshed when its token has ended."""
    builder = importlib.import_module(f"{package}.api_client_builder").ApiClientBuilder
    gateway = importlib.import_module(f"{package}.api.gateway_api").GatewayApi
    own, secret, url = sandbox.client_id, sandbox.client_secret, sandbox.url
    by_code = builder.WithAuthorizationCode(own, secret, sandbox.new_code(REDIRECT, ["1001"]), REDIRECT, host=url)
    gateway(by_code).get_current_application()
    first = by_code.get_refresh_token()
    by_refresh = builder.WithRefreshToken(own, secret, first, host=url)
    for client in (by_refresh, builder.WithClientCredentials(own, secret, host=url)):
        assert gateway(client).get_current_application().data.attributes.name == "Sandbox application"
    assert by_refresh.get_refresh_token() != first


def test_check_01_every_call_of_the_official_sdk(official: Official, sandbox: Sandbox) -> None:
    """Advertisers, application, segments, contact lists, statistics, audiences, ad sets: both SDKs are content."""
    every_call(official, sandbox)


def test_check_01_every_grant_of_the_official_sdk(package: str, sandbox: Sandbox) -> None:
    """Client credentials, a code, and refresh tokens that rotate, in the way both SDKs send them."""
    every_grant(package, sandbox)


def test_check_01_refusals_reach_the_sdk_as_its_exceptions(official: Official, sandbox: Sandbox) -> None:
    """A clash is an error in a 200, an expired token 401, a missing permission 403, a deleted list 404."""
    exceptions = importlib.import_module(f"{official.package}.exceptions")
    segment_id = new_segment(official).id
    with pytest.raises(IndexError):  # nothing at data[0]
        new_segment(official)
    sandbox.delete_segment(segment_id)
    with pytest.raises(exceptions.NotFoundException):
        amend(official, segment_id)
    sandbox.application(permission="read")
    with pytest.raises(exceptions.ForbiddenException):
        amend(official, segment_id)
    sandbox.advance(900)
    with pytest.raises(exceptions.UnauthorizedException):
        amend(official, segment_id)
