"""Growth: what numbers, the look for work and one user's story take in ledgers of several sizes.

A ledger of 100 million people has 2,000 chunks of 50,000. Its chunks are made once and copied row by row inside the
database, with other names in the index, so that disk and time stay bearable; what is looked up is real.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from sqlalchemy import Connection, insert, select

from bench.measure import Row
from criteo_provider.core.batching import pack
from criteo_provider.core.consent import USER_KEY
from criteo_provider.core.identifiers import Form, encode, normalise
from criteo_provider.core.model import AudienceKey, CanvasDeclaration, Operation, SealedPeople, StepDeclaration
from criteo_provider.store import people_index
from criteo_provider.store.engine import open_engine, writing
from criteo_provider.store.ledger import Ledger
from criteo_provider.store.migrate import upgrade
from criteo_provider.store.people_index import Segment, keep_segment
from criteo_provider.store.schema import chunk, identifiers, part, stage, upload

CHUNK = 50_000
NOW_US = 1_800_000_000_000_000
_PEOPLE_PER_SEGMENT = 500_000


def growth(engine: str, url: str, people: int) -> Iterator[Row]:
    """Make a ledger of so many people and time the questions it is asked."""
    opened = open_engine(url)
    try:
        upgrade(opened, now_us=NOW_US)
        ledger = Ledger(opened)
        _make(ledger, people)
        ask: dict[str, Callable[[], Any]] = {
            "numbers": lambda: ledger.numbers(now_us=NOW_US),
            "look for work": lambda: ledger.open_work(now_us=NOW_US),
            "one user's story": lambda: ledger.keeping.person("customer-7", now_us=NOW_US),
            "nobody's story": lambda: ledger.keeping.person("somebody.else@example.com", now_us=NOW_US),
        }
        for what, question in ask.items():
            yield Row("growth", f"{what}, {people // 1_000_000} million", engine, _median_ms(question), "ms")
    finally:
        opened.dispose()


def _median_ms(question: Callable[[], Any]) -> float:
    took = []
    for _ in range(3):
        began_s = time.monotonic()
        question()
        took.append((time.monotonic() - began_s) * 1e3)
    return sorted(took)[1]


def _make(ledger: Ledger, people: int) -> None:
    key = AudienceKey("criteo_default", "1001", "Shoppers")
    step = StepDeclaration("add", 0, key, Operation.ADD, ("email",), 0.0, True)
    canvas = CanvasDeclaration("vip", "Vip", "bench", "criteo_default", 46_800.0, "bench", (step,))
    plans = ledger.declare([canvas], now_us=NOW_US)
    hold = ledger.hold_cursor("vip", "bench", now_us=NOW_US, lease_s=30)
    assert hold is not None  # noqa: S101 - nobody else is here
    crowd = _crowd()
    ledger.seal(hold, crowd, plans["vip"], position=None, units=(), looks=(), now_us=NOW_US)
    with writing(ledger.engine) as connection:
        _copy(connection, people // CHUNK)
        _index(connection, people // CHUNK)


def _crowd() -> SealedPeople:
    keys = [f"customer-{number}" for number in range(CHUNK)]
    read = normalise("email", [f"shopper.{number}@example.com" for number in range(CHUNK)])
    return pack(
        keys, {(form.value, None): column for form, column in read.values.items()}, {"email": read.unusable},  # type: ignore[dict-item]
        lambda held, form: encode(held, Form(form)),
    )  # fmt: skip


def _copy(connection: Connection, chunks: int) -> None:
    """Copy the rows of the one chunk; the copies hold 10 people each, and their indexes tell of 50,000."""
    few = '["a","b","c","d","e","f","g","h","i","j"]'
    changed: dict[Any, dict[str, Any]] = {
        chunk: {"user_keys": few},
        identifiers: {"packed": bytes(320), "present": "[[0,10]]"},
        stage: {}, upload: {}, part: {"state": 3},
    }  # fmt: skip
    for table, values in changed.items():
        made = dict(connection.execute(select(table).limit(1)).one()._mapping)
        rows = [
            {**made, **values, **{name: number for name in ("id", "chunk_id", "stage_id", "upload_id") if name in made}}
            for number in range(2, chunks + 1)
        ]
        if rows:
            connection.execute(insert(table), rows)


def _index(connection: Connection, chunks: int) -> None:
    """Keep an index as large as that of so many people: the first segment is real, the others are drawn by lot."""
    rng = np.random.default_rng(7)
    per_segment = _PEOPLE_PER_SEGMENT // CHUNK
    for first in range(1, chunks + 1, per_segment):
        last = min(first + per_segment - 1, chunks)
        rows = []
        for kind in (USER_KEY, Form.EMAIL_SHA256.value):
            prefixes = np.sort(rng.integers(0, 2**32, (last - first + 1) * CHUNK, dtype="<u4"))
            if first == 1:
                known = people_index._prefixes(people_index._marks(kind, [_first_name(kind)]))
                prefixes = np.sort(np.append(prefixes, known).astype("<u4"))
            offsets = np.arange(len(prefixes), dtype="<u4") % (last - first + 1)
            offsets[:] = 0 if first == 1 else offsets
            rows += _pages(kind, prefixes, offsets)
        keep_segment(connection, Segment(first, last, 256, rows))


def _first_name(kind: str) -> str | bytes:
    if kind == USER_KEY:
        return "customer-7"
    column = normalise("email", ["shopper.7@example.com"]).values[Form.EMAIL_SHA256]
    return column[0] or b""


def _pages(kind: str, prefixes: Any, offsets: Any) -> list[dict[str, Any]]:
    edges = np.searchsorted(prefixes >> 24, np.arange(257)).tolist()
    return [
        {"kind": kind, "page": page, "count": last - first,
         "entries": prefixes[first:last].tobytes() + offsets[first:last].tobytes()}
        for page, (first, last) in enumerate(pairwise(edges)) if last > first
    ]  # fmt: skip
