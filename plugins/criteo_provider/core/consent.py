"""Consent withdrawn: whom an opt-out names, as marks that name nobody.

A mark is 16 bytes: the beginning of an e-mail digest, or of the SHA-256 of anything else. It finds a person in the
ledger exactly, and tells nobody who it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from criteo_provider.core.identifiers import Form

MARK_BYTES = 16
USER_KEY = "user_key"

# A feed keeps its cursor, steps and numbers like a canvas; no canvas file can have such a name.
FEED_PREFIX = "opt_outs/"


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """Somebody named by one key or identifier withdraws consent, or gives it anew (``taken_back``)."""

    kind: str
    mark: bytes = field(repr=False)
    taken_back: bool = False


@dataclass(frozen=True, slots=True)
class FeedDeclaration:
    """What the ledger has to know of an opt-out feed; ``canvases`` None means all."""

    feed_id: str
    name: str
    owner: str
    retry_for_s: float
    fingerprint: str
    canvases: tuple[str, ...] | None


def kind_of(form: str, gum_caller_id: int | None) -> str:
    """Name what a mark is of: an identifier form, for GUM ids with who issued them."""
    return form if gum_caller_id is None else f"{form}:{gum_caller_id}"


def form_of(kind: str) -> str:
    """Return the form of identifier a kind is of; a user key is its own."""
    return kind.partition(":")[0]


def key_marks(user_keys: Iterable[str]) -> list[bytes]:
    """Return the marks of user keys, as the ledger spells them."""
    return [sha256(key.encode("utf-8", "surrogatepass")).digest()[:MARK_BYTES] for key in user_keys]


def value_marks(form: str, values: Iterable[bytes]) -> list[bytes]:
    """Return the marks of stored values of one identifier form."""
    if Form(form).field == "email":
        return [value[:MARK_BYTES] for value in values]
    return [sha256(value).digest()[:MARK_BYTES] for value in values]


def withdrawals(
    user_keys: Sequence[str | None],
    values: Mapping[tuple[str, int | None], Sequence[bytes | None]],
    taken_back: Sequence[bool],
) -> list[Withdrawal]:
    """Turn rows of a feed, as columns, into withdrawals in the order of the rows."""
    columns: list[tuple[str, Sequence[bytes | None]]] = [(USER_KEY, _marked_keys(user_keys))]
    columns += [(kind_of(form, caller), _marked(form, column)) for (form, caller), column in values.items()]
    return [
        Withdrawal(kind, mark, back)
        for row, back in enumerate(taken_back)
        for kind, column in columns
        if (mark := column[row]) is not None
    ]


def _marked_keys(user_keys: Sequence[str | None]) -> list[bytes | None]:
    return [None if key is None else key_marks((key,))[0] for key in user_keys]


def _marked(form: str, column: Sequence[bytes | None]) -> list[bytes | None]:
    return [None if value is None else value_marks(form, (value,))[0] for value in column]
