"""What goes over the wire."""

from __future__ import annotations

import copy
import importlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criteo_provider.core.answer import Answer
from criteo_provider.core.identifiers import Form
from criteo_provider.core.json_items import as_piece
from criteo_provider.criteo_api import wire

SDK = "criteo_api_marketingsolutions_v2026_07"


def body(*items: bytes, kind: str = "email", caller: int | None = None) -> tuple[Any, int]:
    pieces = wire.amendment_body("add", kind, caller, items)
    return json.loads(b"".join(map(bytes, pieces))), len(pieces)


def test_amendment_has_the_shape_of_the_contract() -> None:
    """An amendment is exactly the document of Criteo's contract, with identifierType always there."""
    document, _ = body(b'"aa","bb"', b'"cc"')
    attributes = {"operation": "add", "identifierType": "email", "identifiers": ["aa", "bb", "cc"]}
    assert document == {"data": {"type": "ContactlistAmendment", "attributes": attributes}}


@pytest.mark.parametrize(("kind", "expected"), [("gum", 123), ("email", None)])
def test_caller_id_goes_with_gum_only(kind: str, expected: int | None) -> None:
    """gumCallerId is sent for gum and for nothing else."""
    document, _ = body(b'"x"', kind=kind, caller=123)
    assert document["data"]["attributes"].get("gumCallerId") == expected


@given(st.lists(st.lists(st.text(max_size=40), max_size=30).map(lambda group: group * 200), max_size=6))
def test_items_are_joined_whatever_their_sizes(groups: list[list[str]]) -> None:
    """Empty, small and large items, in any mixture, make one array with every identifier in order."""
    items = [",".join(json.dumps(text) for text in group).encode() for group in groups]
    document, _ = body(*items)
    assert document["data"]["attributes"]["identifiers"] == [text for group in groups for text in group]


def test_large_items_are_not_copied() -> None:
    """A large item is handed on as the very same object, and small ones do not become a piece each."""
    large = b'"' + b"a" * 100_000 + b'"'
    pieces = wire.amendment_body("add", "email", None, [large, *[b'"b"'] * 1_000, large])
    assert [piece is large for piece in pieces] == [False, True, False, True, False]


def test_items_written_when_they_are_sent_are_pieces_of_their_own() -> None:
    """Many stored values are handed on as they are; a few are text beside the other items."""
    many, few = (as_piece(bytes(32) * count, Form.EMAIL_SHA256, bytes) for count in (50_000, 1))
    pieces = wire.amendment_body("add", "email", None, [few, many, few])
    assert [piece is many for piece in pieces] == [False, True, False]
    text = b"".join(map(bytes, pieces))
    assert sum(map(len, pieces)) == len(text)
    assert json.loads(text)["data"]["attributes"]["identifiers"] == ["00" * 32] * 50_002


def test_official_models_take_our_bodies() -> None:
    """Criteo's own SDK models, with type checks on, accept the bodies we send."""
    pytest.importorskip(SDK)
    check = importlib.import_module(f"{SDK}.model_utils")
    settings = importlib.import_module(f"{SDK}.configuration").Configuration()
    plain = importlib.import_module(f"{SDK}.api_client").ApiClient
    gum, _ = body(b'"g-1"', kind="gum", caller=7)
    for document, room, model in (
        (body(b'"aa"')[0], "contactlist_amendment_request", "ContactlistAmendmentRequest"),
        (gum, "contactlist_amendment_request", "ContactlistAmendmentRequest"),
        (
            json.loads(wire.creation_body("13", "VIP", "x")),
            "audience_segment_bulk_create_input_v1",
            "AudienceSegmentBulkCreateInputV1",
        ),
        (
            json.loads(wire.search_body("13")),
            "audience_segment_search_input_v1",
            "AudienceSegmentSearchInputV1",
        ),
    ):
        kind = getattr(importlib.import_module(f"{SDK}.model.{room}"), model)
        read = check.validate_and_convert_types(copy.deepcopy(document), (kind,), ["body"], True, True, settings)
        assert plain.sanitize_for_serialization(read) == document


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "attributes", "type", "name", "contactList", "matchRate"]), inner)
    ),
    max_leaves=10,
)


@given(json_values)
def test_reading_never_raises(data: object) -> None:
    """Whatever stands in data, reading it gives what can be read and never raises."""
    answer = Answer(data, {})
    assert isinstance(wire.read_audiences(answer), tuple)
    assert isinstance(wire.read_ad_accounts(answer), tuple)
    assert isinstance(wire.read_application(answer), wire.Application | None)
    assert isinstance(wire.read_statistics(answer), wire.Statistics | None)
    assert wire.entries_received(answer) >= len(wire.read_audiences(answer))


def test_an_unknown_type_of_audience_is_read() -> None:
    """A type Criteo may invent tomorrow is kept as it is, and takes no people."""
    data = [{"id": "7", "attributes": {"name": "n", "type": "Brandnew", "contactList": None}}]
    (audience,) = wire.read_audiences(Answer(data, {}))
    assert (audience.kind, audience.takes_people) == ("Brandnew", False)
