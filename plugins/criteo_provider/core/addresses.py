"""E-mail addresses: one by one or a column at a time, with the same result to the bit.

Python's own ``strip`` and ``lower`` decide what a normalised address is: other engines differ on non-ASCII letters,
and a different hash is a person silently unmatched.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import md5
from importlib import import_module
from typing import Any

from criteo_provider.core.columns import Column
from criteo_provider.core.source_values import text_of

MAX_ADDRESS_CHARS = 320


def normalise_address(value: object) -> str | None:
    """Return the trimmed, lower-cased address, or None where the value is not an e-mail address.

    A light check: one ``@``, a local part, a domain of at least two labels, nothing blank or unprintable.
    Criteo documents no further rule (no dot or plus handling), and counts ``name@domain`` as invalid.
    """
    text = value.strip().lower() if type(value) is str else (text_of(value) or "").lower()
    local, _, domain = text.partition("@")
    if (
        local
        and "." in domain
        and "@" not in domain
        and domain[0] != "."
        and domain[-1] != "."
        and ".." not in domain
        and " " not in text
        and text.isprintable()  # no control or zero-width character, other blank, lone surrogate
        and len(text) <= MAX_ADDRESS_CHARS
    ):
        return text
    return None


# Deleted from a column of addresses, they leave its signs: dots, one @ an address, one blank between two of them, and
# whatever does not belong there.
_PLAIN = bytes(sign for sign in range(0x20, 0x7F) if sign not in b"@. ")
# One search for two of these signs in a row takes a fourth of the time of one search for each odd pair.
_SIGNS_ALIKE = bytes.maketrans(b"@. ", b"...")
_TWO_SIGNS = re.compile(rb"\.\.")  # in half the time `in` takes
# Small enough that one odd value costs the others of its block little, large enough that a block costs nothing.
_BLOCK = 2_000


def _plain_addresses(values: Sequence[object]) -> list[bytes] | None:
    """Return what ``normalise_address`` makes of each value, at a quarter of its cost; None: ask it one by one.

    Answers for columns of well-formed ASCII addresses only. One blank joins them: no address may hold one, so a
    blank too many tells of a value that has one, and every test below is one search of the whole column or its signs.
    """
    try:
        text = " ".join(values)  # type: ignore[arg-type]
    except TypeError:
        return None
    if not text.isascii():
        return None
    column = text.lower().encode()
    signs = column.translate(None, _PLAIN)
    if signs.translate(None, b".") != (b"@ " * len(values))[:-1]:
        return None
    if signs.count(b"@.") != len(values):
        return None  # a domain without a dot
    # An empty local part, a domain that begins or ends with a dot, or two dots. A local part may have these, and
    # begin or end with a dot: such a block is asked one by one, too.
    if column[:1] == b"@" or column[-1:] == b"." or _TWO_SIGNS.search(column.translate(_SIGNS_ALIKE)):
        return None
    addresses = column.split(b" ")
    return addresses if max(map(len, addresses)) <= MAX_ADDRESS_CHARS else None


def normalised_addresses(values: Sequence[object]) -> Column[bytes]:
    """Normalise a column of addresses, as bytes to be hashed; nothing is there where the value is none."""
    given = Column.of(values)
    found: list[bytes | None] = []
    all_plain = True
    for start in range(0, len(given.there), _BLOCK):
        block = given.there[start : start + _BLOCK]
        plain = _plain_addresses(block)
        all_plain = all_plain and plain is not None
        found += [_encoded(normalise_address(value)) for value in block] if plain is None else plain
    addresses = Column(found, given.holes)
    # Where all were plain, none of those found is None: what costs a pass over the column to see is known already.
    return addresses if all_plain else Column.of(addresses.rows())  # type: ignore[return-value]


def _encoded(address: str | None) -> bytes | None:
    return None if address is None else address.encode()


def _own_sha256() -> Any:
    """Return Python's own SHA-256: OpenSSL's, which hashlib gives, takes a quarter longer for so short a text."""
    for module in ("_sha2", "_sha256"):  # from Python 3.12 on, and before
        with suppress(ImportError):
            return import_module(module).sha256
    return hashlib.sha256


_sha256: Callable[[bytes], Any] = _own_sha256()


def _sha256_column(addresses: Sequence[bytes]) -> list[bytes]:
    return [digest.digest() for digest in map(_sha256, addresses)]


def _md5_column(addresses: Sequence[bytes]) -> list[bytes]:
    return [md5(address, usedforsecurity=False).digest() for address in addresses]


def _sha256_md5_column(addresses: Sequence[bytes]) -> list[bytes]:
    return _sha256_column([digest.hex().encode() for digest in _md5_column(addresses)])


# By the value of core.identifiers.EmailHash.
HASH_COLUMN: dict[str, Callable[[Sequence[bytes]], list[bytes]]] = {
    "sha256": _sha256_column,
    "md5": _md5_column,
    "sha256_md5": _sha256_md5_column,
}
