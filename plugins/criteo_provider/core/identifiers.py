"""Identifiers: the one place where they are normalised, hashed, stored and written to the wire.

Whole columns go in and out. Python's own ``strip`` and ``lower`` decide what a normalised address is: other
engines differ on non-ASCII letters, and a different hash is a person silently unmatched.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from typing import TypeGuard
from uuid import UUID

from criteo_provider.core.addresses import HASH_COLUMN, normalise_address, normalised_addresses
from criteo_provider.core.columns import Column
from criteo_provider.core.errors import Misconfigured
from criteo_provider.core.source_values import is_missing, text_of

FIELDS = ("email", "madid", "gum", "identity_link")
MAX_OPAQUE_BYTES = 512
MAX_KEY_CHARS = 255


class Form(StrEnum):
    """The shape in which an identifier is stored and sent; one upload carries one form."""

    EMAIL_SHA256 = "email_sha256"
    EMAIL_MD5 = "email_md5"
    EMAIL_SHA256_MD5 = "email_sha256_md5"
    MADID = "madid"
    GUM = "gum"
    IDENTITY_LINK = "identity_link"

    @property
    def field(self) -> str:
        """The field of a canvas this form comes from."""
        return "email" if self.startswith("email_") else self.value

    @property
    def identifier_type(self) -> str:
        """Criteo's ``identifierType`` for this form."""
        return "identityLink" if self is Form.IDENTITY_LINK else self.field

    @property
    def width(self) -> int | None:
        """Bytes of one stored value, or None where values differ in length."""
        return _WIDTHS.get(self)


_WIDTHS = {Form.EMAIL_SHA256: 32, Form.EMAIL_MD5: 16, Form.EMAIL_SHA256_MD5: 32, Form.MADID: 16}


class Unusable(StrEnum):
    """Why a value cannot be sent to Criteo."""

    MISSING = "missing"
    BLANK = "blank"
    MALFORMED = "malformed"


class EmailHash(StrEnum):
    """How a plain address is hashed before it is kept or sent."""

    SHA256 = "sha256"
    MD5 = "md5"
    SHA256_MD5 = "sha256_md5"

    @property
    def form(self) -> Form:
        """The form a plain address takes under this hash."""
        return Form(f"email_{self.value}")


class EmailInput(StrEnum):
    """What 64 hexadecimal digits in an e-mail column are; 32 digits are always an MD5."""

    AUTO = "auto"
    SHA256_MD5 = "sha256_md5"


@dataclass(frozen=True, slots=True)
class Normalised:
    """One column of a field, ready to be stored.

    ``values`` holds the forms that occur, each as long as the input.
    ``unusable`` holds the reason for each row without any value.
    """

    values: dict[Form, Column[bytes]] = field(repr=False)
    unusable: dict[int, Unusable] = field(repr=False)


def normalise(
    field: str,
    values: Sequence[object],
    *,
    email_hashes: Collection[str] = (EmailHash.SHA256,),
    email_input: str = EmailInput.AUTO,
) -> Normalised:
    """Turn one source column of a field into the bytes that are stored.

    A plain address takes one form per chosen hash. Input that is hashed already (32 or 64 hexadecimal digits,
    any case) is recognised and never hashed again; ``email_input`` says what 64 digits are.
    """
    if field == "email":
        long_form = Form.EMAIL_SHA256_MD5 if email_input == EmailInput.SHA256_MD5 else Form.EMAIL_SHA256
        return _emails(values, [EmailHash(name) for name in email_hashes], long_form)
    if field not in FIELDS:
        raise Misconfigured(f"{field!r} is not an identifier field. Use one of: {', '.join(FIELDS)}.")
    read = _madid if field == "madid" else _opaque
    there: list[bytes] = []
    unusable: dict[int, Unusable] = {}
    for row, value in enumerate(values):
        found = read(value)
        if isinstance(found, bytes):
            there.append(found)
        else:
            unusable[row] = found
    return Normalised({Form(field): Column(there, [*unusable])} if there else {}, unusable)


# --- e-mail ----------------------------------------------------------------------------------------------


# A team that hashed its empty addresses has these for everybody without one.
_HASHES_OF_NOTHING = frozenset(digest for column in HASH_COLUMN.values() for digest in column([b""]))


def _emails(values: Sequence[object], hashes: Sequence[EmailHash], long_form: Form) -> Normalised:
    addresses = normalised_addresses(values)
    columns: dict[Form, Column[bytes]] = {}
    if addresses.there:
        columns = {name.form: Column(HASH_COLUMN[name.value](addresses.there), addresses.holes) for name in hashes}
    unusable: dict[int, Unusable] = {}
    hashed: dict[Form, dict[int, bytes]] = defaultdict(dict)
    for row in addresses.holes:
        found = _hashed(values[row])
        if isinstance(found, bytes):
            hashed[long_form if len(found) == 32 else Form.EMAIL_MD5][row] = found
        else:
            unusable[row] = found
    for form, by_row in hashed.items():
        rows: list[bytes | None] = columns[form].rows() if form in columns else [None] * len(values)
        for row, digest in by_row.items():
            rows[row] = digest
        columns[form] = Column.of(rows)
    return Normalised(columns, unusable)


def _hashed(value: object) -> bytes | Unusable:
    """Read the digest out of 32 or 64 hexadecimal digits."""
    text = text_of(value)
    if not text:
        return _nothing(value)
    digest = _unhex(text) if len(text) in (32, 64) else None
    if digest is None:
        return Unusable.MALFORMED
    return Unusable.BLANK if digest in _HASHES_OF_NOTHING else digest


# --- madid, gum, identityLink ----------------------------------------------------------------------------


_NO_DEVICE = bytes(16)  # what a phone reports once tracking is switched off


def _madid(value: object) -> bytes | Unusable:
    """Read a device id: a UUID with its dashes, any case, with or without braces."""
    if isinstance(value, UUID):
        device = value.bytes
    else:
        text = text_of(value)
        if not text:
            return _nothing(value)
        # 32 digits without dashes are refused: they cannot be told from the MD5 of a device id.
        device = _uuid_bytes(text[1:-1] if text[0] == "{" and text[-1] == "}" else text) or _NO_DEVICE
    return Unusable.MALFORMED if device == _NO_DEVICE else device


def _opaque(value: object) -> bytes | Unusable:
    """Read an id whose inside is known to its issuer only: one printable word."""
    text = text_of(value)
    if not text:
        return _nothing(value)
    if " " in text or not text.isprintable():
        return Unusable.MALFORMED
    word = text.encode()
    return word if len(word) <= MAX_OPAQUE_BYTES else Unusable.MALFORMED


# --- user keys -------------------------------------------------------------------------------------------


_PLAIN_KEY = re.compile(rf"[^@\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]{{1,{MAX_KEY_CHARS}}}")


# Without a blank or control character there is nothing to strip, and without an @ nothing to hash.
_PLAIN_SIGNS = bytes(sign for sign in range(0x21, 0x7F) if sign != ord("@"))


def user_key(values: Sequence[object]) -> Sequence[str | None]:
    """Return the name the ledger knows each user by: 1 to 255 characters on one line, or None.

    A key that holds an ``@`` is kept as its SHA-256 in hexadecimal digits, normalised where it is an address;
    so is a key that is too long or holds control characters. A later look-up goes through the same function.
    """
    if type(next(iter(values), None)) is int and set(map(type, values)) == {int}:
        values = [str(value) for value in values]
    return values if _are_plain_keys(values) else [_user_key(value) for value in values]


def _are_plain_keys(values: Sequence[object]) -> TypeGuard[Sequence[str]]:
    """Tell, by a few searches of the whole column, that every key is ASCII text which stays as it is."""
    try:
        text = "".join(values)  # type: ignore[arg-type]
    except TypeError:
        return False
    if not text.isascii() or text.encode().translate(None, _PLAIN_SIGNS):
        return False
    lengths = {*map(len, values)}  # type: ignore[arg-type]  # texts, or they could not have been joined
    return 0 not in lengths and max(lengths, default=0) <= MAX_KEY_CHARS


def _user_key(value: object) -> str | None:
    text = value.strip() if type(value) is str else text_of(value)
    if text is None:
        if is_missing(value):
            return None
        text = bytes(value).hex() if isinstance(value, (bytes, bytearray, memoryview)) else str(value).strip()
    if not text or _PLAIN_KEY.fullmatch(text):
        return text or None
    return sha256((normalise_address(text) or text).encode("utf-8", "surrogatepass")).hexdigest()


# --- stored bytes ----------------------------------------------------------------------------------------


def encode(values: Sequence[bytes], form: Form) -> bytes:
    """Pack values into one blob: end to end where the width is fixed, else each behind its 2-byte length."""
    if form.width:
        return b"".join(values)
    return b"".join(len(value).to_bytes(2, "big") + value for value in values)


def decode(blob: bytes, form: Form) -> list[bytes]:
    """Unpack what ``encode`` packed."""
    if width := form.width:
        return [blob[start : start + width] for start in range(0, len(blob), width)]
    values = []
    start = 0
    while start < len(blob):
        end = start + 2 + int.from_bytes(blob[start : start + 2], "big")
        values.append(blob[start + 2 : end])
        start = end
    return values


def cut(blob: bytes, form: Form, stretches: Sequence[tuple[int, int]]) -> bytes:
    """Return what ``encode`` would pack of the values in these stretches [first, last)."""
    if width := form.width:
        if len(stretches) == 1 and stretches[0] == (0, len(blob) // width):
            return blob
        return b"".join([blob[first * width : last * width] for first, last in stretches])
    values = decode(blob, form)
    return encode([value for first, last in stretches for value in values[first:last]], form)


def distinct(pieces: Iterable[bytes], form: Form) -> bytes:
    """Join packed pieces into one blob that holds each value once, at its first place."""
    blob = b"".join(pieces)
    if form.width and len(blob) % 8 == 0:
        # All digests differ where their first eight bytes do: no value has to be made to see that.
        beginnings = memoryview(blob).cast("Q")[:: form.width // 8].tolist()
        if len(set(beginnings)) == len(beginnings):
            return blob
    return encode(list(dict.fromkeys(decode(blob, form))), form)


def to_wire(value: bytes, form: Form) -> str:
    """Return the text Criteo sees for one stored value."""
    if form is Form.MADID:
        return str(UUID(bytes=value))
    return value.hex() if form.width else value.decode()


def from_wire(text: str, form: Form) -> bytes | None:
    """Return the stored value of a text Criteo echoed, or None where it is not one of this form."""
    text = text.strip()
    if form is Form.MADID:
        return _uuid_bytes(text)
    if not form.width:
        return text.encode() or None
    digest = _unhex(text)
    return digest if digest is not None and len(digest) == form.width else None


# --- values as sources hand them over --------------------------------------------------------------------


def _nothing(value: object) -> Unusable:
    if is_missing(value):
        return Unusable.MISSING
    return Unusable.BLANK if text_of(value) == "" else Unusable.MALFORMED


def _unhex(text: str) -> bytes | None:
    """Read hexadecimal digits, and nothing but them."""
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        return None
    return digest if len(digest) * 2 == len(text) else None  # fromhex skips blanks


def _uuid_bytes(text: str) -> bytes | None:
    if len(text) == 36 and text[8] == text[13] == text[18] == text[23] == "-":
        return _unhex(text.replace("-", "")) if text.count("-") == 4 else None
    return None
