"""Identifiers as Criteo sees them arrive: which are well formed, and which mean the same person."""

from __future__ import annotations

import binascii
import hashlib
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

IDENTIFIER_TYPES = ("email", "madid", "identityLink", "gum", "phoneNumber")

_ADDRESS = re.compile(r"[^@\s]+@[^@\s.]+(?:\.[^@\s.]+)+")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
_OPAQUE = re.compile(r"[!-~]{1,512}")
_E164 = re.compile(r"\+[1-9][0-9]{6,14}")
_HEX_WIDTHS = (64, 32)
_HEX_DIGITS = b"0123456789abcdefABCDEF"


def key_of(text: str, identifier_type: str, gum_caller_id: int | None = None) -> bytes | None:
    """Return the compact key of one identifier, or None where its form is invalid.

    A plain address and its SHA-256 have the same 32-byte key; an MD5 is 16 bytes. Only the form is judged:
    an address nobody has is valid.
    """
    if identifier_type == "email":
        return _digest(text) or _hashed(_ADDRESS, text.strip().lower())
    if identifier_type == "madid":
        return bytes.fromhex(text.replace("-", "")) if _UUID.fullmatch(text) else None
    if identifier_type == "gum":
        return f"{gum_caller_id}:{text}".encode() if _OPAQUE.fullmatch(text) else None
    if identifier_type == "phoneNumber":
        return (_digest(text) if len(text) == 64 else None) or _hashed(_E164, text.strip())
    return text.encode() if _OPAQUE.fullmatch(text) else None


def forms_of(address: str) -> tuple[bytes, bytes, bytes]:
    """Return the three keys one person's address may arrive under: SHA-256, MD5, SHA-256 of the MD5 hex."""
    plain = address.strip().lower().encode()
    md5 = hashlib.md5(plain, usedforsecurity=False)
    return hashlib.sha256(plain).digest(), md5.digest(), hashlib.sha256(md5.hexdigest().encode()).digest()


@dataclass(slots=True)
class Reading:
    """What one request holds: ``count`` identifiers, ``invalid`` of them, the first of those in ``sample``.

    The valid ones are either ``singles`` (their keys) or all of ``array``, hex digests of ``width`` digits.
    """

    count: int
    array: bytes = field(default=b"", repr=False)
    width: int = 64
    singles: list[bytes] = field(default_factory=list, repr=False)
    invalid: int = 0
    sample: list[str] = field(default_factory=list, repr=False)

    @property
    def valid(self) -> int:
        """How many have a valid form."""
        return self.count - self.invalid

    def keys(self) -> Iterable[bytes]:
        """Yield the keys of the valid ones, duplicates included."""
        if not self.array:
            return self.singles
        digests = binascii.unhexlify(self.array[2:-2].replace(b'","', b""))
        step = self.width // 2
        return [digests[at : at + step] for at in range(0, len(digests), step)]


def read_digests(array: bytes) -> Reading | None:
    """Read a compact JSON array of equally long hex digests; None if it is something else.

    No string is made of each: 50,000 SHA-256 take a few milliseconds, so that a stream at full rate leaves
    the machine to others.
    """
    for width in _HEX_WIDTHS:
        stride = width + 3  # two quotes and the comma (or the closing bracket)
        count, rest = divmod(len(array) - 1, stride)
        if rest or not count:
            continue
        quotes = b'"' * count
        # Quotes at their places and, the digits taken away, nothing but the punctuation: then each is hex.
        if array[1::stride] != quotes or array[width + 2 :: stride] != quotes:
            continue
        if array.translate(None, _HEX_DIGITS) == b'["' + b'","' * (count - 1) + b'"]':
            return Reading(count, array=array, width=width)
    return None


def read_each(
    array: bytes,
    identifier_type: str,
    gum_caller_id: int | None,
    *,
    sample_size: int,
    called_invalid: frozenset[bytes] = frozenset(),
    invalid_share: float = 0.0,
) -> Reading:
    """Read a JSON array of identifiers one by one.

    Keys in ``called_invalid``, and a fixed ``invalid_share`` of all, count as invalid however well formed.

    Raises ``msgspec.MsgspecError`` or ``UnicodeError`` where ``array`` is not a JSON array of strings.
    """
    texts = msgspec.json.decode(array, type=list[str])
    reading = Reading(len(texts))
    for text in texts:
        key = key_of(text, identifier_type, gum_caller_id)
        if key is not None and key not in called_invalid and zlib.crc32(key) >= invalid_share * 2**32:
            reading.singles.append(key)
            continue
        reading.invalid += 1
        if len(reading.sample) < sample_size:
            reading.sample.append(text)
    return reading


def _digest(text: str) -> bytes | None:
    return _unhex(text.encode()) if len(text) in _HEX_WIDTHS else None


def _hashed(form: re.Pattern[str], text: str) -> bytes | None:
    return hashlib.sha256(text.encode()).digest() if form.fullmatch(text) else None


def _unhex(digits: bytes) -> bytes | None:
    try:
        return binascii.unhexlify(digits)
    except binascii.Error:
        return None
