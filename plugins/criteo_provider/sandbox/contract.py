"""The shapes of the requests Criteo takes; anything else is refused, unknown members included."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from criteo_provider.sandbox.answers import invalid

T = TypeVar("T")


class _Strict(msgspec.Struct, forbid_unknown_fields=True):
    """A JSON object whose members are all known."""


class AmendmentAttributes(_Strict):
    """Who to add or remove. ``identifierType`` is optional in Criteo's schema, and yet always to be sent."""

    operation: Literal["add", "remove"]
    identifierType: Literal["email", "madid", "identityLink", "gum", "phoneNumber"]
    identifiers: msgspec.Raw
    gumCallerId: int | UnsetType = UNSET


class Amendment(_Strict):
    """The resource around it."""

    type: Literal["ContactlistAmendment"]
    attributes: AmendmentAttributes


class AmendmentRequest(_Strict):
    """PATCH .../contact-list."""

    data: Amendment


class Nothing(_Strict):
    """An empty object."""


Definition = dict[str, Any]


class SegmentCreation(_Strict):
    """What a new segment is to be; exactly one of the six kinds."""

    advertiserId: str
    name: str
    description: str | None = None
    contactList: Nothing | UnsetType = UNSET
    inMarket: Definition | UnsetType = UNSET
    location: Definition | UnsetType = UNSET
    lookalike: Definition | UnsetType = UNSET
    prospecting: Definition | UnsetType = UNSET
    retargeting: Definition | UnsetType = UNSET


class SegmentCreationResource(_Strict):
    """Real callers leave ``type`` out."""

    attributes: SegmentCreation
    type: Literal["AudienceSegment"] | UnsetType = UNSET


class SegmentCreationRequest(_Strict):
    """POST .../audience-segments/create."""

    data: Annotated[list[SegmentCreationResource], msgspec.Meta(min_length=1)]


class Wrapped(_Strict):
    """A value that may be set to null."""

    value: str | None = None


class SegmentUpdate(_Strict):
    """What is to change."""

    name: str | UnsetType = UNSET
    description: Wrapped | UnsetType = UNSET


class SegmentUpdateResource(_Strict):
    """One segment to change."""

    id: str
    attributes: SegmentUpdate
    type: Literal["AudienceSegment"] | UnsetType = UNSET


class SegmentUpdateRequest(_Strict):
    """PATCH .../audience-segments."""

    data: Annotated[list[SegmentUpdateResource], msgspec.Meta(min_length=1)]


class SegmentReference(_Strict):
    """One segment to delete or to size."""

    id: str
    attributes: Nothing | UnsetType = UNSET
    type: Literal["AudienceSegment"] | UnsetType = UNSET


class SegmentReferenceRequest(_Strict):
    """POST .../audience-segments/delete and .../compute-sizes."""

    data: Annotated[list[SegmentReference], msgspec.Meta(min_length=1)]


SegmentKind = Literal[
    "Unknown", "InMarket", "Prospecting", "ContactList", "Location", "Behavioral", "Retargeting", "Lookalike"
]


class SegmentFilter(_Strict):
    """Filters are AND'ed, the values of one OR'ed. There is none by name."""

    audienceSegmentIds: list[str] | UnsetType = UNSET
    advertiserIds: list[str] | UnsetType = UNSET
    audienceSegmentTypes: list[SegmentKind] | UnsetType = UNSET


class SegmentSearch(_Strict):
    """The resource around them."""

    attributes: SegmentFilter = msgspec.field(default_factory=SegmentFilter)
    type: Literal["AudienceSegment"] | UnsetType = UNSET


class SegmentSearchRequest(_Strict):
    """POST .../audience-segments/search."""

    data: SegmentSearch = msgspec.field(default_factory=SegmentSearch)


class AudienceCreation(_Strict):
    """A new audience: algebra over segments."""

    advertiserId: str
    name: str
    algebra: dict[str, Any]
    description: str | None = None


class AudienceCreationResource(_Strict):
    """One audience to create."""

    attributes: AudienceCreation
    type: Literal["Audience"] | UnsetType = UNSET


class AudienceCreationRequest(_Strict):
    """POST .../audiences/create."""

    data: Annotated[list[AudienceCreationResource], msgspec.Meta(min_length=1)]


class AdSetLink(_Strict):
    """Which audience an ad set is to use; null unlinks."""

    audienceId: str | None


class AdSetLinkResource(_Strict):
    """The resource around it."""

    attributes: AdSetLink
    type: Literal["AdSetAudienceLink"] | UnsetType = UNSET


class AdSetLinkRequest(_Strict):
    """PUT .../ad-sets/{id}/audience."""

    data: AdSetLinkResource


_PLACE = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<where>.*)`)?$", re.DOTALL)


def decode(body: bytes, shape: type[T]) -> T:
    """Read a JSON body of this shape; raises a 400 Refusal that says what is wrong and where."""
    try:
        return msgspec.json.decode(body, type=shape)
    except msgspec.ValidationError as error:
        raise _refusal(str(error)) from None
    except (msgspec.DecodeError, UnicodeError):
        raise invalid("The body is not well-formed JSON") from None


def _refusal(sentence: str) -> Exception:
    found = _PLACE.match(sentence)
    what, where = (found["what"], found["where"] or "") if found else (sentence, "")
    path = where.replace("[...]", "/*").replace("[", "/").replace("]", "").replace(".", "/") or None
    return invalid(what, code="required-field" if "missing required" in what else "invalid", field_path=path)
