"""JSON items: stored identifiers as the inside of a JSON array, as Criteo's bodies have them."""

from __future__ import annotations

import json
from binascii import hexlify
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from criteo_provider.core.identifiers import Form, decode


@dataclass(slots=True)
class JsonItems:
    """The values of a blob as the inside of a JSON array, written when they are sent: the text is twice as long.

    The blob is let go of as it is sent, because an answer may be long in coming; ``again`` reads it once more for a
    request that has to be repeated.
    """

    form: Form
    width: int
    again: Callable[[], bytes] = field(repr=False)
    _blob: bytes | None = field(default=None, repr=False)

    @property
    def _here(self) -> bytes:
        if self._blob is None:
            self._blob = self.again()
        return self._blob

    @property
    def _item_bytes(self) -> int:
        return len(_UUID_ITEM) if self.form is Form.MADID else 2 * self.width + len('"",')

    def __len__(self) -> int:
        """Return the length of the text in bytes."""
        return max(0, len(self._here) // self.width * self._item_bytes - len(","))

    def __bytes__(self) -> bytes:
        """Return all of the text."""
        return json_items(self._here, self.form)

    def stretches(self, most_bytes: int) -> Iterator[bytes]:
        """Yield the text in stretches of about so many bytes, at least one value each, and keep nothing of it."""
        blob, self._blob = self._here, None
        at_once = max(1, most_bytes // self._item_bytes)
        for first in range(0, len(blob) // self.width, at_once):
            yield (b"," if first else b"") + json_items(blob, self.form, first, first + at_once)


# What a body is made of: text, or what is written when it is sent.
Piece: TypeAlias = bytes | JsonItems


def as_piece(blob: bytes, form: Form, again: Callable[[], bytes]) -> Piece:
    """Return the values of a blob as a piece of a body, which ``again`` can read once more.

    What is not of one width is written at once, and kept.
    """
    return JsonItems(form, form.width, again, blob) if form.width else json_items(blob, form)


def json_items(blob: bytes, form: Form, first: int = 0, last: int | None = None) -> bytes:
    """Write the values [first:last) of a blob as the inside of a JSON array, without the brackets.

    Digests are lower-case hexadecimal, device ids lower-case UUIDs, other ids JSON strings in UTF-8.
    """
    if not (width := form.width):
        words = [word.decode() for word in decode(blob, form)[first:last]]
        return json.dumps(words, ensure_ascii=False, separators=(",", ":"))[1:-1].encode()
    piece = blob[first * width : None if last is None else last * width]
    if not piece:
        return b""
    if form is Form.MADID:
        return _uuid_items(piece)
    return b'"' + hexlify(piece, b",", width).replace(b",", b'","') + b'"'


_UUID_ITEM = b'"00000000-0000-0000-0000-000000000000",'
_UUID_PLACES = [place for place, sign in enumerate(_UUID_ITEM) if sign == ord("0")]


def _uuid_items(piece: bytes) -> bytes:
    """Fill a row of UUID templates place by place: 32 strided copies instead of a call per value."""
    digits = hexlify(piece)
    items = bytearray(_UUID_ITEM * (len(piece) // 16))
    for digit, place in enumerate(_UUID_PLACES):
        items[place :: len(_UUID_ITEM)] = digits[digit::32]
    return bytes(items[:-1])
