"""Wire: the bodies we send and the resources we read, in the shape of Criteo's contract.

Source: Criteo's OpenAPI of 2026-07 (equal in 2026-01 and 2027-01 but for the version in the path).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from criteo_provider.core.answer import Answer
from criteo_provider.core.json_items import Piece

SEARCH_LIMIT = 100
CONTACT_LIST = "ContactList"
NAME_TAKEN = "name-must-be-unique"
# Below this, neighbouring pieces are joined: a socket call each would cost more than the copy.
_JOIN_BELOW = 64 * 1024


@dataclass(frozen=True, slots=True)
class Application:
    """The application our client id belongs to."""

    application_id: str
    name: str


@dataclass(frozen=True, slots=True)
class AdAccount:
    """An advertiser that consented to the application."""

    ad_account: str
    name: str


@dataclass(frozen=True, slots=True)
class AudienceInfo:
    """An audience segment as Criteo shows it; people can be put into it when ``takes_people``."""

    criteo_id: str
    ad_account: str
    name: str
    kind: str = CONTACT_LIST
    read_only: bool = False

    @property
    def takes_people(self) -> bool:
        return self.kind == CONTACT_LIST and not self.read_only


@dataclass(frozen=True, slots=True)
class Statistics:
    """What Criteo tells of a contact list, hours late: identifiers, matches, match rate in percent."""

    identifiers: int | None
    matches: int | None
    match_rate_percent: float | None


def amendment_body(
    operation: str, identifier_type: str, gum_caller_id: int | None, items: Iterable[Piece]
) -> tuple[Piece, ...]:
    """Build the body of a contact-list PATCH, in pieces.

    ``items`` are insides of JSON arrays (``"aa","bb"``); large ones are used as they are, so that 3.4 MB never exist
    twice, and not even once where they are written when they are sent. ``gumCallerId`` goes with ``gum`` only.
    """
    caller = f',"gumCallerId":{gum_caller_id:d}' if identifier_type == "gum" and gum_caller_id is not None else ""
    head = (
        f'{{"data":{{"type":"ContactlistAmendment","attributes":{{"operation":"{operation}",'
        f'"identifierType":"{identifier_type}"{caller},"identifiers":['
    )
    pieces: list[Piece] = []
    small: list[bytes] = [head.encode()]
    small_bytes, comma = len(small[0]), b""
    for item in (item for item in items if item):
        small.append(comma)
        comma = b","
        if len(item) >= _JOIN_BELOW or small_bytes >= _JOIN_BELOW:
            pieces.append(b"".join(small))
            small, small_bytes = [], 0
        if len(item) >= _JOIN_BELOW:
            pieces.append(item)
        else:
            small.append(bytes(item))
            small_bytes += len(item)
    small.append(b"]}}}")
    pieces.append(b"".join(small))
    return tuple(pieces)


def search_body(ad_account: str) -> bytes:
    """Ask for every audience of an ad account; there is no filter by name."""
    return _data({"type": "AudienceSegment", "attributes": {"advertiserIds": [ad_account]}})


def lookup_body(criteo_ids: Sequence[str]) -> bytes:
    """Ask for audiences by their ids."""
    return _data({"type": "AudienceSegment", "attributes": {"audienceSegmentIds": list(criteo_ids)}})


def creation_body(ad_account: str, name: str, description: str) -> bytes:
    """Ask for one contact list; one for each call, so that an error can only mean this one."""
    attributes: dict[str, object] = {"advertiserId": ad_account, "name": name, "contactList": {}}
    if description:
        attributes["description"] = description
    return _data([{"type": "AudienceSegment", "attributes": attributes}])


def read_application(answer: Answer) -> Application | None:
    """Read the answer of ``marketing-solutions/me``."""
    attributes = _attributes(answer.data)
    if not attributes:
        return None
    return Application(str(attributes.get("applicationId") or "?"), str(attributes.get("name") or "unnamed"))


def read_ad_accounts(answer: Answer) -> tuple[AdAccount, ...]:
    """Read the answer of ``advertisers/me``; entries without an id are left out."""
    return tuple(
        AdAccount(entry_id, str(_attributes(entry).get("advertiserName") or "unnamed"))
        for entry in _entries(answer.data)
        if (entry_id := _id(entry))
    )


def read_audiences(answer: Answer) -> tuple[AudienceInfo, ...]:
    """Read a page of audiences, or what a creation made; entries without an id are left out."""
    return tuple(_audience(entry, entry_id) for entry in _entries(answer.data) if (entry_id := _id(entry)))


def read_statistics(answer: Answer) -> Statistics | None:
    """Read the statistics of a contact list."""
    if not isinstance(answer.data, dict):
        return None
    attributes = _attributes(answer.data)
    rate = _number(attributes.get("matchRate"))
    identifiers, matches = (_number(attributes.get(key)) for key in ("numberOfIdentifiers", "numberOfMatches"))
    return Statistics(
        None if identifiers is None else int(identifiers), None if matches is None else int(matches), rate
    )


def entries_received(answer: Answer) -> int:
    """Count the entries of a page, readable or not: the next offset counts them all."""
    return len(answer.data) if isinstance(answer.data, list) else 0


def total_items(answer: Answer) -> int | None:
    """Read how many entries a search has in all."""
    total = _number(answer.meta.get("totalItems"))
    return None if total is None else int(total)


def _audience(entry: Mapping[str, object], entry_id: str) -> AudienceInfo:
    attributes = _attributes(entry)
    contact_list = attributes.get("contactList")
    kind = attributes.get("type")
    return AudienceInfo(
        criteo_id=entry_id,
        ad_account=str(attributes.get("advertiserId") or ""),
        name=str(attributes.get("name") or ""),
        kind=kind if isinstance(kind, str) else CONTACT_LIST if isinstance(contact_list, dict) else "Unknown",
        read_only=isinstance(contact_list, dict) and contact_list.get("isReadOnly") is True,
    )


def _data(data: object) -> bytes:
    return json.dumps({"data": data}, ensure_ascii=False).encode()


def _entries(data: object) -> list[Mapping[str, object]]:
    return [entry for entry in data if isinstance(entry, dict)] if isinstance(data, list) else []


def _attributes(entry: object) -> Mapping[str, object]:
    attributes = entry.get("attributes") if isinstance(entry, dict) else None
    return attributes if isinstance(attributes, dict) else {}


def _id(entry: Mapping[str, object]) -> str:
    value = entry.get("id")
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _number(value: object) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
