"""Packing: from columns of a source to the people of a chunk; here, or in a process beside, which knows nothing else.

``python -m criteo_provider.flow.packing`` is that process: it packs what comes in on standard input until that ends.
Plain values go through the pipe and nothing that could run (marshal, between two of the same interpreter).
"""

from __future__ import annotations

import marshal
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from criteo_provider.core import identifiers
from criteo_provider.core.batching import Unnamed, pack_unnamed
from criteo_provider.core.columns import Column
from criteo_provider.core.identifiers import Form, Unusable
from criteo_provider.core.model import PackedForm, Reason, SealedPeople, Shortfall, Span
from criteo_provider.flow import side_process

_REASONS: Mapping[Unusable, Reason] = {
    Unusable.MISSING: Reason.MISSING,
    Unusable.BLANK: Reason.BLANK,
    Unusable.MALFORMED: Reason.MALFORMED,
}


@dataclass(frozen=True, slots=True)
class FieldColumn:
    """Which source column holds an identifier field, and how its values are to be read."""

    field: str
    column: str
    caller_id: int | None = None
    email_hashes: tuple[str, ...] = ("sha256",)
    email_input: str = "auto"


Columns = Mapping[str, Sequence[object]]


def packed(fields: Sequence[FieldColumn], keys: Sequence[str], columns: Columns) -> SealedPeople:
    """Normalise, hash and pack people; ``columns`` are as long as ``keys``."""
    return _unnamed(fields, len(keys), columns).named(keys)


def _unnamed(fields: Sequence[FieldColumn], people: int, columns: Columns) -> Unnamed:
    values: dict[tuple[str, int | None], Column[bytes]] = {}
    lacking: dict[str, dict[int, Reason]] = {}
    for chosen in fields:
        read = identifiers.normalise(
            chosen.field,
            columns.get(chosen.column, ()),
            email_hashes=chosen.email_hashes,
            email_input=chosen.email_input,
        )
        for form, column in read.values.items():
            values[(form.value, chosen.caller_id)] = column
        lacking[chosen.field] = {row: _REASONS[why] for row, why in read.unusable.items()}
    return pack_unnamed(people, values, lacking, lambda held, form: identifiers.encode(held, Form(form)))


def order_of(fields: Sequence[FieldColumn], people: int, columns: Columns) -> bytes | None:
    """Write what is to be packed; None for values of other than the plain types, which are packed here."""
    chosen = [
        (one.field, one.column, one.caller_id, tuple(map(str, one.email_hashes)), str(one.email_input))
        for one in fields
    ]
    try:
        plain = {name: column if type(column) is list else [*column] for name, column in columns.items()}
        return _message((chosen, people, plain))
    except ValueError:
        return None


def packed_order(order: bytes) -> Unnamed:
    """Pack what an order asks for."""
    fields, people, columns = marshal.loads(order)  # noqa: S302 - written by ``order_of``
    return _unnamed([FieldColumn(*chosen) for chosen in fields], people, columns)


def parcel_of(people: Unnamed) -> bytes:
    """Write packed people."""
    forms = [
        (one.form, one.gum_caller_id, [(span.first, span.last) for span in one.present], one.count, one.blob)
        for one in people.forms
    ]
    shortfalls = [(short.field, short.span.first, short.span.last, short.reason.value) for short in people.shortfalls]
    return _message((array("L", people.others).tobytes(), forms, shortfalls))


def people_of(parcel: bytes) -> Unnamed:
    """Read packed people back."""
    others, forms, shortfalls = marshal.loads(parcel)  # noqa: S302 - written by our own process beside
    return Unnamed(
        array("L", others).tolist(),
        tuple(
            PackedForm(form, caller_id, tuple(Span(first, last) for first, last in present), count, blob)
            for form, caller_id, present, count, blob in forms
        ),
        tuple(Shortfall(field, Span(first, last), Reason(reason)) for field, first, last, reason in shortfalls),
    )


def _message(content: tuple[Any, ...]) -> bytes:
    """Write plain values; from version 3 on the same value is looked for among those before, which takes longer."""
    return marshal.dumps(content, 2)


def main() -> None:
    """Pack whatever comes in, until nothing more does."""
    side_process.serve(lambda order: [parcel_of(packed_order(order))])


if __name__ == "__main__":
    main()
