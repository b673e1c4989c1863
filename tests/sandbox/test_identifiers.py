"""Identifiers are judged by their form, and the forms of one person are one person."""

from __future__ import annotations

import hashlib
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from criteo_provider.sandbox.identifiers import forms_of, key_of, read_digests, read_each

SHA256 = "375320dd9ae7ed408002f3768e16cb5f28c861062fd50dff9a3bff62e9dce4ef"
MD5 = "e13743a7f1db7f4246badd6fd6ff54ff"
SHA256_OF_MD5 = "000e3171a5110c35c69d060112bd0ba55d9631c7c2ec93f1840e4570095b263a"
MADID = "3f097372-f01e-4b64-984c-395ae5828ee6"


def test_the_forms_of_an_address_are_those_criteo_publishes() -> None:
    """SHA-256, MD5 and SHA-256 of the MD5 of a plain address are Criteo's own vectors."""
    assert [form.hex() for form in forms_of("john.doe@gmail.com")] == [SHA256, MD5, SHA256_OF_MD5]


@pytest.mark.parametrize("text", ["john.doe@gmail.com", " John.Doe@GMAIL.com\t", SHA256, SHA256.upper()])
def test_plain_and_hashed_have_one_key(text: str) -> None:
    """A plain address, however written, and its SHA-256 are the same person."""
    assert key_of(text, "email") == bytes.fromhex(SHA256)


@pytest.mark.parametrize(
    ("identifier_type", "text"),
    [
        ("email", "jkl@gmail"),
        ("email", "a b@example.com"),
        ("email", ""),
        ("email", SHA256[:-1]),
        ("email", SHA256[:-1] + "g"),
        ("madid", MADID.replace("-", "")),
        ("madid", "not-a-uuid"),
        ("gum", ""),
        ("gum", "two words"),
        ("identityLink", " "),
        ("phoneNumber", "0049 30 1234"),
    ],
)
def test_malformed_identifiers_are_invalid(identifier_type: str, text: str) -> None:
    """What has not the form of its type has no key."""
    assert key_of(text, identifier_type, 1) is None


def test_other_types_have_keys_of_their_own() -> None:
    """An advertising id is read in any case, a gum belongs to its caller."""
    assert key_of(MADID.upper(), "madid") == key_of(MADID, "madid")
    assert key_of("cookie", "gum", 1) != key_of("cookie", "gum", 2)
    assert key_of("+4930123456", "phoneNumber") is not None
    assert key_of("XY1000abc", "identityLink") == b"XY1000abc"


@given(st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=20))
def test_the_quick_reading_of_digests_is_the_slow_one(digests: list[bytes]) -> None:
    """A compact array of SHA-256 is read to the same keys with and without making strings."""
    array = msgspec.json.encode([digest.hex() for digest in digests])
    quick, slow = read_digests(array), read_each(array, "email", None, sample_size=10)
    assert quick is not None
    assert (quick.count, quick.invalid, list(quick.keys())) == (slow.count, 0, slow.singles)


@given(
    st.lists(st.sampled_from([SHA256, MD5, SHA256[:-1] + "g", SHA256 + "a", "a@example.com", ""]), max_size=4),
    st.sampled_from([(",", ":"), (", ", ": ")]),
)
def test_the_quick_reading_never_takes_what_is_not_all_digests(texts: list[str], signs: tuple[str, str]) -> None:
    """It reads only arrays of equally long hex digests; everything else is left to the slow reading."""
    quick = read_digests(json.dumps(texts, separators=signs).encode())
    assert quick is None or {len(text) for text in texts} in ({64}, {32})
    assert quick is None or quick.count == len(texts)


def test_samples_are_few_and_the_rest_is_counted() -> None:
    """Only the first invalid identifiers are named; all are counted."""
    array = json.dumps(["x"] * 30 + ["a@example.org"]).encode()
    reading = read_each(array, "email", None, sample_size=10)
    assert (reading.count, reading.valid, reading.invalid, reading.sample) == (31, 1, 30, ["x"] * 10)


def test_a_person_may_be_called_invalid_though_well_formed() -> None:
    """Keys called invalid count as invalid, in the form they arrived in."""
    digest = hashlib.sha256(b"ann@example.com")
    array = json.dumps([digest.hexdigest(), "bob@example.com"]).encode()
    reading = read_each(array, "email", None, sample_size=10, called_invalid=frozenset([digest.digest()]))
    assert (reading.valid, reading.sample) == (1, [digest.hexdigest()])
