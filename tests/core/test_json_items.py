"""Identifiers as the inside of a JSON array, at once or a stretch at a time."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criteo_provider.core.identifiers import Form, encode, to_wire
from criteo_provider.core.json_items import JsonItems, as_piece, json_items
from tests.core.test_identifiers import some_values


@given(st.sampled_from(list(Form)), st.integers(0, 12), st.integers(0, 13), st.integers(0, 13))
def test_json_items_are_the_inside_of_an_array(form: Form, count: int, first: int, last: int) -> None:
    """The items of a stretch parse as JSON to exactly the wire text of its values."""
    values = some_values(form, count)
    items = json_items(encode(values, form), form, first, last)
    assert json.loads(b"[" + items + b"]") == [to_wire(value, form) for value in values[first:last]]


def test_json_items_default_to_all() -> None:
    """Without bounds the whole blob is written."""
    values = some_values(Form.MADID, 3)
    assert json_items(encode(values, Form.MADID), Form.MADID).count(b'"') == 6


@given(st.sampled_from(list(Form)), st.integers(0, 40), st.integers(1, 2_000))
def test_a_piece_is_the_same_text_in_stretches(form: Form, count: int, most_bytes: int) -> None:
    """Its length is known before it is written, and its stretches together are the whole, none much too long."""
    blob = encode(some_values(form, count), form)
    piece, whole = as_piece(blob, form, lambda: blob), json_items(blob, form)
    assert (len(piece), bytes(piece)) == (len(whole), whole)
    assert bool(piece) is bool(count)
    if isinstance(piece, JsonItems):
        stretches = list(piece.stretches(most_bytes))
        assert b"".join(stretches) == whole
        assert all(len(stretch) <= max(most_bytes, 70) + 1 for stretch in stretches)


@pytest.mark.parametrize("form", [form for form in Form if form.width])
def test_what_waits_to_be_sent_is_kept_as_it_is_stored(form: Form) -> None:
    """Values of one width are not text before they are sent, and show nobody when they are printed."""
    blob = encode(some_values(form, 10), form)
    piece = as_piece(blob, form, lambda: blob)
    assert isinstance(piece, JsonItems)
    assert piece._blob is blob
    assert str(blob) not in repr(piece)


@pytest.mark.parametrize("form", [form for form in Form if form.width])
def test_what_was_sent_is_let_go_of_and_read_again_if_it_is_sent_again(form: Form) -> None:
    """While an answer is waited for nothing is held; a repetition has the same text, and its length beforehand."""
    blob = encode(some_values(form, 10), form)
    reads: list[bytes] = []

    def again() -> bytes:
        reads.append(blob)
        return blob

    piece = as_piece(blob, form, again)
    assert isinstance(piece, JsonItems)
    for reads_before in (0, 1):
        assert len(piece) == len(json_items(blob, form))
        assert b"".join(piece.stretches(100)) == json_items(blob, form)
        assert piece._blob is None
        assert len(reads) == reads_before
