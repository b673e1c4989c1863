"""Growth: what numbers, the page, one user's story and 50,000 people more take in ledgers of several sizes.

A ledger of 100 million people has 2,000 chunks of 50,000. Its chunks are made once and copied row by row inside the
database, with other names in the index, so that disk and time stay bearable; what is looked up is real.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from sqlalchemy import Connection, insert, select, text

from bench.measure import Row
from criteo_provider.core.batching import pack
from criteo_provider.core.consent import USER_KEY, key_marks, value_marks
from criteo_provider.core.identifiers import Form, encode, normalise
from criteo_provider.core.model import (
    AudienceKey,
    CanvasDeclaration,
    Operation,
    Role,
    SealedPeople,
    StepDeclaration,
    StepPlan,
)
from criteo_provider.core.outcome import Accepted
from criteo_provider.store import people_index
from criteo_provider.store.claim import ClaimTerms
from criteo_provider.store.engine import looking, open_engine, reading, writing
from criteo_provider.store.ledger import Ledger
from criteo_provider.store.migrate import upgrade
from criteo_provider.store.outages import outages
from criteo_provider.store.people_index import Segment, keep_segment
from criteo_provider.store.schema import chunk, identifiers, part, stage, upload
from criteo_provider.ui.directory import read_directory

CHUNK = 50_000
NOW_US = 1_800_000_000_000_000
_PEOPLE_PER_SEGMENT = 500_000
# So many at once are looked up in the index of people; larger crowds are met by reading chunk by chunk.
FEW = 200


def growth(engine: str, url: str, people: int) -> Iterator[Row]:
    """Make a ledger of so many people and time the questions it is asked."""
    opened = open_engine(url)
    try:
        upgrade(opened, now_us=NOW_US)
        ledger = Ledger(opened)
        crowd = _crowd()
        plans = _make(ledger, crowd, people)
        ask: dict[str, Callable[[], Any]] = {
            "numbers": lambda: ledger.numbers(now_us=NOW_US),
            "look for work": lambda: ledger.open_work(now_us=NOW_US),
            "what the page Audiences reads": lambda: _page(ledger),
            "one user's story": lambda: ledger.keeping.person("customer-7", now_us=NOW_US),
            "nobody's story": lambda: ledger.keeping.person("somebody.else@example.com", now_us=NOW_US),
            f"in which chunks {FEW} opt-outs are": lambda: _where_opt_outs_are(ledger),
            f"in which chunks {FEW} who leave are": lambda: _where_leavers_are(ledger),
        }
        for what, question in ask.items():
            yield Row("growth", f"{what}, {people // 1_000_000} million", engine, _median_ms(question), "ms")
        more = f"50,000 more sealed, claimed, read back and settled, {people // 1_000_000} million"
        yield Row("growth", more, engine, _median_ms(lambda: _one_more(ledger, plans, crowd)), "ms")
    finally:
        opened.dispose()


def seconds_to_count_statuses(url: str) -> float:
    """Read the status of every user of a ledger through its view, and return how long that took."""
    opened = open_engine(url)
    try:
        with reading(opened) as connection:
            began_s = time.monotonic()
            connection.execute(text("SELECT status, count(*) FROM user_status GROUP BY status")).all()
            return time.monotonic() - began_s
    finally:
        opened.dispose()


def _median_ms(question: Callable[[], Any]) -> float:
    took = []
    for _ in range(3):
        began_s = time.monotonic()
        question()
        took.append((time.monotonic() - began_s) * 1e3)
    return sorted(took)[1]


def _page(ledger: Ledger) -> None:
    ledger.numbers(now_us=NOW_US)
    ledger.troubles()
    outages(ledger.engine, now_us=NOW_US)
    read_directory(ledger.engine)


def _where_opt_outs_are(ledger: Ledger) -> None:
    """Ask what following opt-outs asks of the index: some named by their key, some by their address."""
    addresses = [f"shopper.{number}@example.com" for number in range(FEW // 2)]
    digests = normalise("email", addresses).values[Form.EMAIL_SHA256].there
    named = {
        USER_KEY: key_marks([f"customer-{number}" for number in range(FEW // 2)]),
        Form.EMAIL_SHA256.value: value_marks(Form.EMAIL_SHA256.value, digests),
    }
    with looking(ledger.engine) as connection:
        people_index.indexed_marked(connection, named)


def _where_leavers_are(ledger: Ledger) -> None:
    """Ask what a removal asks of the index: under which identifiers these people were added before."""
    with looking(ledger.engine) as connection:
        people_index.indexed_with(connection, USER_KEY, [f"customer-{number}" for number in range(FEW)])


def _one_more(ledger: Ledger, plans: Sequence[StepPlan], crowd: SealedPeople) -> None:
    """Do for one chunk more what Enter and Upload do in the ledger."""
    hold = ledger.hold_cursor("vip", "bench", now_us=NOW_US, lease_s=30)
    assert hold is not None  # noqa: S101 - nobody else is here
    ledger.seal(hold, crowd, plans, position=None, units=(), looks=(), now_us=NOW_US)
    terms = ClaimTerms("criteo_default", frozenset({"1001"}), Role.FRESH, "bench", 120.0)
    claimed = ledger.claim(terms, now_us=NOW_US)
    assert claimed is not None  # noqa: S101 - the chunk that was just sealed
    for one in claimed.parts:
        ledger.packed(one)
    ledger.settle(claimed, Accepted(claimed.identifiers, 0), now_us=NOW_US, jitter=0.5)


def _canvas() -> CanvasDeclaration:
    key = AudienceKey("criteo_default", "1001", "Shoppers")
    step = StepDeclaration("add", 0, key, Operation.ADD, ("email",), 0.0, True)
    return CanvasDeclaration("vip", "Vip", "bench", "criteo_default", 46_800.0, "bench", (step,))


def _make(ledger: Ledger, crowd: SealedPeople, people: int) -> Sequence[StepPlan]:
    (plans,) = ledger.declare([_canvas()], now_us=NOW_US).values()
    ledger.launches.launched("vip", "", "[]", now_us=NOW_US)
    ledger.resolved(plans[0].audience_id, "7001", created=False, now_us=NOW_US)
    _one_more(ledger, plans, crowd)
    with writing(ledger.engine) as connection:
        _copy(connection, people // CHUNK)
        _index(connection, people // CHUNK)
    return plans


def _crowd() -> SealedPeople:
    keys = [f"customer-{number}" for number in range(CHUNK)]
    read = normalise("email", [f"shopper.{number}@example.com" for number in range(CHUNK)])
    return pack(
        keys, {(form.value, None): column.rows() for form, column in read.values.items()}, {},
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
        if (
            connection.dialect.name == "postgresql" and "id" in table.c
        ):  # whoever comes next gets a number behind the copies'
            connection.execute(text(f"SELECT setval(pg_get_serial_sequence('{table.name}', 'id'), {chunks})"))


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
    return normalise("email", ["shopper.7@example.com"]).values[Form.EMAIL_SHA256].there[0]


def _pages(kind: str, prefixes: Any, offsets: Any) -> list[dict[str, Any]]:
    edges = np.searchsorted(prefixes >> 24, np.arange(257)).tolist()
    return [
        {"kind": kind, "page": page, "count": last - first,
         "entries": prefixes[first:last].tobytes() + offsets[first:last].tobytes()}
        for page, (first, last) in enumerate(pairwise(edges)) if last > first
    ]  # fmt: skip
