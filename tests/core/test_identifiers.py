"""Identifiers: Criteo's published vectors, and what must hold for any column of any values."""

from __future__ import annotations

import hashlib
import random
import uuid
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from criteo_provider.core.addresses import normalise_address
from criteo_provider.core.errors import Misconfigured
from criteo_provider.core.identifiers import (
    FIELDS,
    EmailHash,
    Form,
    Unusable,
    cut,
    decode,
    distinct,
    encode,
    from_wire,
    normalise,
    to_wire,
    user_key,
)
from criteo_provider.core.source_values import is_missing

# Criteo's own vectors: docs.commercegrid.criteo.com, user id collection.
JOHN = "john.doe@gmail.com"
JOHN_SHA256 = "375320dd9ae7ed408002f3768e16cb5f28c861062fd50dff9a3bff62e9dce4ef"
JOHN_MD5 = "e13743a7f1db7f4246badd6fd6ff54ff"
JOHN_SHA256_MD5 = "000e3171a5110c35c69d060112bd0ba55d9631c7c2ec93f1840e4570095b263a"
DEVICE = "3f097372-f01e-4b64-984c-395ae5828ee6"

WIDE = [Form.GUM, Form.IDENTITY_LINK]
FIXED = [form for form in Form if form.width]

addresses = st.from_regex(r"[\w.+-]{1,20}@[\w-]{1,10}(\.[\w-]{1,10}){1,3}", fullmatch=True)
anything = st.one_of(
    st.none(), st.text(max_size=80), addresses, st.integers(), st.floats(), st.decimals(), st.uuids(), st.booleans(),
    st.binary(max_size=70), st.datetimes(), st.sampled_from([pd.NA, pd.NaT, Decimal("sNaN"), JOHN_SHA256]),
)  # fmt: skip


def hexed(field: str, value: object, **options: object) -> dict[str, str]:
    """Normalise one value and show what Criteo would see, by form."""
    found = normalise(field, [value], **options).values  # type: ignore[arg-type]
    return {form.value: to_wire(column.there[0], form) for form, column in found.items() if column.there}


def reason(field: str, value: object) -> Unusable | None:
    return normalise(field, [value]).unusable.get(0)


# --- e-mail ----------------------------------------------------------------------------------------------


def test_criteos_vectors_come_out_in_all_three_hashes() -> None:
    """One plain address gives Criteo's published SHA-256, MD5 and SHA-256 of MD5 at once."""
    assert hexed("email", JOHN, email_hashes=["sha256", "md5", "sha256_md5"]) == {
        "email_sha256": JOHN_SHA256,
        "email_md5": JOHN_MD5,
        "email_sha256_md5": JOHN_SHA256_MD5,
    }


def test_sha256_is_what_is_sent_unless_said_otherwise() -> None:
    """Without an option a plain address becomes its SHA-256 and nothing else."""
    assert hexed("email", JOHN) == {"email_sha256": JOHN_SHA256}


@pytest.mark.parametrize(
    "typed",
    ["John.Doe@Gmail.com", "  john.doe@gmail.com\t", "\u00a0JOHN.DOE@GMAIL.COM\u2003\n", b" John.Doe@gmail.com"],
)
def test_blanks_around_and_case_do_not_matter(typed: object) -> None:
    """An address is trimmed, of Unicode blanks too, and lower-cased before it is hashed."""
    assert hexed("email", typed) == {"email_sha256": JOHN_SHA256}


@pytest.mark.parametrize(
    ("typed", "normal"),
    [
        ("JÜRGEN@Müller.example.com", "jürgen@müller.example.com"),
        ("İpek@example.com", "i\u0307pek@example.com"),  # U+0130, on which engines disagree
        ("ΑΣΑΣ@example.com", "ασας@example.com"),  # final sigma, likewise
        ("志明@example.org", "志明@example.org"),
        ("a..b@example.com", "a..b@example.com"),  # real addresses have it, whatever the standard says
        ("a.b+c@example.com", "a.b+c@example.com"),  # dots and plus signs stay
    ],
)
def test_non_ascii_addresses_hash_as_python_lowers_them(typed: str, normal: str) -> None:
    """Non-ASCII letters are lower-cased by Python's rules and hashed as UTF-8; nothing else is changed."""
    assert hexed("email", typed) == {"email_sha256": hashlib.sha256(normal.encode()).hexdigest()}


@pytest.mark.parametrize(
    "broken",
    [
        "jkl@gmail", "nobody", "@example.com", "a@", "a@b@example.com", "a@.example.com", "a@example..com",
        "a@example.com.", "a b@example.com", "a@exam ple.com", "a\x00@example.com", "a\u200b@example.com",
        "a\ud800@example.com", "x" * 320 + "@example.com", "Ann <ann@example.com>", True, 12, 1.5, object(),
        b"\xff@example.com", "g" * 64, "0" * 63, "12 4" * 16,
    ],
)  # fmt: skip
def test_what_is_no_address_is_malformed(broken: object) -> None:
    """A value that is neither an address nor a hash is malformed; Criteo's own example jkl@gmail among them."""
    assert reason("email", broken) is Unusable.MALFORMED


@pytest.mark.parametrize(
    "nothing", [None, float("nan"), np.float64("nan"), pd.NA, pd.NaT, Decimal("NaN"), Decimal("sNaN")]
)
def test_null_in_any_dress_is_missing(nothing: object) -> None:
    """None, NaN, NaT and NA are missing in every field, and no user key."""
    assert is_missing(nothing)
    assert [reason(field, nothing) for field in FIELDS] == [Unusable.MISSING] * 4
    assert user_key([nothing]) == [None]


@pytest.mark.parametrize("blank", ["", "   ", "\t\u00a0", b" "])
def test_blank_is_blank(blank: object) -> None:
    """Nothing but blanks is blank in every field, and no user key."""
    assert [reason(field, blank) for field in FIELDS] == [Unusable.BLANK] * 4
    assert user_key([blank]) == [None]


@pytest.mark.parametrize("digest", [hashlib.sha256(b"").hexdigest(), "D41D8CD98F00B204E9800998ECF8427E"])
def test_the_hash_of_nothing_is_blank(digest: str) -> None:
    """A team that hashed its empty addresses does not send one identifier for all of them."""
    assert reason("email", digest) is Unusable.BLANK


@pytest.mark.parametrize("written", [JOHN_SHA256, JOHN_SHA256.upper(), f"  {JOHN_SHA256} "])
def test_sixty_four_digits_are_a_sha256_unless_the_canvas_says_sha256_md5(written: str) -> None:
    """64 hexadecimal digits in any case are kept as they are, under the form the canvas names."""
    assert hexed("email", written) == {"email_sha256": JOHN_SHA256}
    assert hexed("email", written, email_input="sha256_md5") == {"email_sha256_md5": JOHN_SHA256}


def test_thirty_two_digits_are_an_md5() -> None:
    """32 hexadecimal digits are kept as an MD5, whatever hash is chosen for plain addresses."""
    assert hexed("email", JOHN_MD5.upper(), email_hashes=["sha256_md5"]) == {"email_md5": JOHN_MD5}


def test_plain_and_hashed_rows_share_a_column() -> None:
    """Columns stay aligned with the input when plain, hashed and unusable rows alternate."""
    found = normalise("email", [JOHN, JOHN_MD5, None, JOHN_SHA256, "x"])
    assert {form: column.rows() for form, column in found.values.items()} == {
        Form.EMAIL_SHA256: [bytes.fromhex(JOHN_SHA256), None, None, bytes.fromhex(JOHN_SHA256), None],
        Form.EMAIL_MD5: [None, bytes.fromhex(JOHN_MD5), None, None, None],
    }
    assert found.unusable == {2: Unusable.MISSING, 4: Unusable.MALFORMED}


@given(addresses, st.sampled_from(list(EmailHash)))
def test_hashed_input_is_never_hashed_again(address: str, name: EmailHash) -> None:
    """What we send for an address comes out unchanged when it is put in again."""
    once = normalise("email", [address], email_hashes=[name]).values[name.form]
    again = normalise(
        "email", [to_wire(once.there[0], name.form)], email_input=name if name == "sha256_md5" else "auto"
    )
    assert again.values == {name.form: once}


@given(st.one_of(addresses, st.text()))
def test_normalising_an_address_twice_changes_nothing(text: str) -> None:
    """A normalised address is its own normal form."""
    normal = normalise_address(text)
    assert normal is None or normalise_address(normal) == normal


@given(st.lists(anything), st.sampled_from(FIELDS))
def test_every_row_has_a_value_or_a_reason(values: list[object], field: str) -> None:
    """Any value at all is either usable in some form or has a reason, and every column is as long as the input."""
    found = normalise(field, values, email_hashes=["sha256", "md5"])
    columns = [column.rows() for column in found.values.values()]
    assert all(len(column) == len(values) for column in columns)
    for row in range(len(values)):
        assert (row not in found.unusable) == any(column[row] is not None for column in columns)


def test_neither_values_nor_forms_show_in_a_repr() -> None:
    """A column printed by mistake shows nobody."""
    assert repr(normalise("gum", ["secret-id"])) == "Normalised()"


def test_an_unknown_field_is_named() -> None:
    """Asking for a field Criteo does not take says which there are."""
    with pytest.raises(Misconfigured, match=r"'phone' is not an identifier field. Use one of: email, madid, gum"):
        normalise("phone", [])


# --- other identifiers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("written", [DEVICE, DEVICE.upper(), f" {DEVICE}\n", f"{{{DEVICE}}}", uuid.UUID(DEVICE)])
def test_a_device_id_is_taken_in_any_dress(written: object) -> None:
    """A UUID in any case, with or without braces, or as an object, is one device."""
    assert hexed("madid", written) == {"madid": DEVICE}


@pytest.mark.parametrize(
    "written",
    [
        "00000000-0000-0000-0000-000000000000", uuid.UUID(int=0), DEVICE.replace("-", ""), DEVICE[:-1], DEVICE + "0",
        "{", "3f097372-f01e-4b64-984c-395ae582 ee6", "3f097372-f01e-4b64-984c-395ae582-ee6", 7, JOHN,
    ],
)  # fmt: skip
def test_what_is_no_device_is_malformed(written: object) -> None:
    """Anything else is malformed: no tracking (all zeros), and 32 bare digits, which may be a hash, included."""
    assert reason("madid", written) is Unusable.MALFORMED


@pytest.mark.parametrize("field", ["gum", "identity_link"])
def test_other_ids_are_one_printable_word_of_up_to_512_bytes(field: str) -> None:
    """A GUM id or identityLink is kept as it is, case included, if it is one short printable word."""
    assert hexed(field, '  Xy-"é"\\ ') == {field: 'Xy-"é"\\'}
    assert hexed(field, 12345) == hexed(field, 12345.0) == {field: "12345"}
    assert reason(field, "é" * 256) is None
    for broken in ("a b", "a\u00a0b", "a\x07b", "\ud800", "é" * 256 + "x", True):
        assert reason(field, broken) is Unusable.MALFORMED


# --- user keys -------------------------------------------------------------------------------------------


def test_user_keys_are_text_as_people_know_it() -> None:
    """Numbers, whole floats, UUIDs and text become the text a person would look for."""
    keys = [7, 7.0, Decimal("7.00"), Decimal("7.5"), " ab c ", uuid.UUID(DEVICE), np.int64(9), True, b"k", b"\xff\x00"]
    assert user_key(keys) == ["7", "7", "7", "7.5", "ab c", DEVICE, "9", "True", "k", "ff00"]


def test_a_key_that_looks_like_an_address_is_kept_as_its_hash() -> None:
    """An address as user key is its SHA-256 after normalising, so any spelling finds it again."""
    assert user_key([JOHN, " John.Doe@GMAIL.com"]) == [JOHN_SHA256, JOHN_SHA256]
    (key,) = user_key(["Ann <ann@example.com>"])
    assert key is not None
    assert "ann" not in key


@given(st.lists(anything))
def test_a_user_key_is_one_short_line_without_an_address(values: list[object]) -> None:
    """Whatever comes in, a key has 1 to 255 characters, no @, no line break or control character, and is stable."""
    keys = user_key(values)
    for key in filter(None, keys):
        assert len(key) <= 255
        assert "@" not in key
        assert len(key.splitlines()) == 1
        key.encode()
    assert user_key(keys) == keys


# --- stored bytes and the wire ---------------------------------------------------------------------------


def some_values(form: Form, count: int, seed: int = 1) -> list[bytes]:
    rng = random.Random(seed)
    if form.width:
        return [rng.randbytes(form.width) for _ in range(count)]
    return [f'k-"{rng.getrandbits(64)}"\\é'.encode() for _ in range(count)]


@given(st.sampled_from(FIXED), st.integers(0, 40))
def test_fixed_width_values_survive_storing(form: Form, count: int) -> None:
    """Digests and device ids come out of a blob as they went in, and take their width each."""
    values = some_values(form, count)
    blob = encode(values, form)
    assert len(blob) == count * (form.width or 0)
    assert decode(blob, form) == values


@given(st.sampled_from(WIDE), st.lists(st.binary(max_size=600)))
def test_values_of_any_length_survive_storing(form: Form, values: list[bytes]) -> None:
    """Other ids come out of a blob as they went in."""
    assert decode(encode(values, form), form) == values


@pytest.mark.parametrize("form", list(Form))
def test_what_criteo_echoes_is_found_again(form: Form) -> None:
    """The wire text of a value, in either case where case means nothing, leads back to it; other text does not."""
    for value in some_values(form, 5):
        assert from_wire(to_wire(value, form), form) == value
        if form.width:
            assert from_wire(to_wire(value, form).upper(), form) == value
            assert from_wire("jkl@gmail", form) is None


def test_forms_know_their_field_type_and_width() -> None:
    """Every form says which canvas field it comes from, Criteo's identifierType, and its width in bytes."""
    assert [(form.field, form.identifier_type, form.width) for form in Form] == [
        ("email", "email", 32),
        ("email", "email", 16),
        ("email", "email", 32),
        ("madid", "madid", 16),
        ("gum", "gum", None),
        ("identity_link", "identityLink", None),
    ]


# --- whole columns at once -------------------------------------------------------------------------------

# Signs that a column-wise test could trip over: what joins, what separates, what Python alone trims and lowers.
NASTY = st.text(st.sampled_from(list("aZ0@.@. \t\n\x1f\x7f\u0130\u00e9\u03a3\u2003\ud800+-_")), max_size=12)
well_formed = st.builds("{}@{}.{}".format, *[st.text(st.sampled_from("aBc9+-_"), min_size=1, max_size=4)] * 3)
mostly_good = st.lists(well_formed | st.none() | NASTY | st.just("a@" + "b" * 400 + ".de"), max_size=8)


@given(st.lists(well_formed, max_size=8) | mostly_good | st.lists(anything, max_size=5))
def test_a_column_of_addresses_is_read_as_each_of_them_alone(values: list[object]) -> None:
    """The quick look at a whole column ends with the digests, forms and reasons that one value at a time gives."""
    whole = normalise("email", values, email_hashes=["sha256", "md5", "sha256_md5"])
    columns = {form: column.rows() for form, column in whole.values.items()}
    for row, value in enumerate(values):
        alone = normalise("email", [value], email_hashes=["sha256", "md5", "sha256_md5"])
        assert {form: column[row] for form, column in columns.items() if column[row] is not None} == {
            form: column.there[0] for form, column in alone.values.items()
        }
        assert whole.unusable.get(row) == alone.unusable.get(0)
        address = normalise_address(value)
        if address is not None:
            assert alone.values[Form.EMAIL_SHA256].there == [hashlib.sha256(address.encode()).digest()]


@given(
    st.lists(st.text(st.sampled_from("aZ-9_"), min_size=1, max_size=9), max_size=6)
    | st.lists(st.integers(), max_size=6)
    | st.lists(NASTY | st.just("x" * 300), max_size=6)
    | st.lists(anything, max_size=6)
)
def test_a_column_of_keys_is_read_as_each_of_them_alone(values: list[object]) -> None:
    """The quick look at a whole column gives every user the key that one value at a time gives."""
    assert user_key(values) == [user_key([value, None])[0] for value in values]


@given(st.sampled_from(list(Form)), st.data())
def test_joined_pieces_hold_each_value_once(form: Form, data: st.DataObject) -> None:
    """Whatever is packed twice goes out once, at its first place; equal beginnings are not taken for equal values."""
    beginning = bytes(8)
    value = st.binary(min_size=1, max_size=5)
    if form.width:
        rest = form.width - len(beginning)
        value = st.binary(min_size=rest, max_size=rest).map(lambda tail: beginning + tail) | st.binary(
            min_size=form.width, max_size=form.width
        )
    pieces = data.draw(st.lists(st.lists(value, max_size=4), max_size=3))
    everything = [one for piece in pieces for one in piece]
    assert decode(distinct([encode(piece, form) for piece in pieces], form), form) == list(dict.fromkeys(everything))


@given(st.sampled_from(list(Form)), st.integers(0, 6), st.data())
def test_a_cut_holds_the_values_of_its_stretches(form: Form, count: int, data: st.DataObject) -> None:
    """Cutting stored bytes gives what packing those values would give."""
    values = [bytes([number]) * (form.width or number + 1) for number in range(count)]
    edges = sorted(data.draw(st.sets(st.integers(0, count), max_size=4)))
    stretches = list(zip(edges[::2], edges[1::2], strict=False))
    wanted = [value for first, last in stretches for value in values[first:last]]
    assert cut(encode(values, form), form, stretches) == encode(wanted, form)
