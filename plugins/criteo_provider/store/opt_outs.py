"""Opt-outs: who has withdrawn consent, kept as marks, and who of a chunk that is."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import msgspec
from sqlalchemy import Connection, Engine, Row, and_, func, insert, select, update

from criteo_provider.core import identifiers as forms
from criteo_provider.core.consent import (
    FEED_PREFIX,
    USER_KEY,
    FeedDeclaration,
    Withdrawal,
    form_of,
    key_marks,
    kind_of,
    value_marks,
)
from criteo_provider.core.model import Span
from criteo_provider.core.spans import ordinal_at
from criteo_provider.store.engine import DECLARE_LOCK, in_turn
from criteo_provider.store.schema import canvas, chunk, identifiers, source_cursor
from criteo_provider.store.schema_opt_outs import opt_out, opt_out_feed, opt_out_round
from criteo_provider.store.standings import slices, spans_from_text

# So few are looked up one by one; for more it pays to have read all opt-outs once.
FEW = 2_000
# Behind this id, below all others, the opt-outs of a round are that were followed before.
AGAIN = -1
_BITS = tuple(1 << (byte & 7) for byte in range(256))


class Withdrawn(NamedTuple):
    """One person of a chunk who has withdrawn consent: told by which feed, and when."""

    ordinal: int
    feed: str
    at_us: int


@dataclass(frozen=True, slots=True)
class _Named:
    """Everybody of one chunk under one kind of name, in order, with whose it is."""

    chunk_id: int
    kind: str
    marks: list[bytes]
    present: Sequence[Span]


def declare_feeds(connection: Connection, feeds: Sequence[FeedDeclaration], *, now_us: int) -> None:
    """Make the ledger agree with all feed files there are; what a feed has told stays told without its file."""
    in_turn(connection, DECLARE_LOCK)
    for one in feeds:
        values = {
            "name": one.name,
            "owner": one.owner,
            "connection_id": "",
            "retry_for_us": round(one.retry_for_s * 1e6),
            "fingerprint": one.fingerprint,
            "declared": True,
        }
        scope = None if one.canvases is None else msgspec.json.encode(sorted(one.canvases)).decode()
        known = connection.execute(
            select(canvas.c.fingerprint, canvas.c.declared, opt_out_feed.c.canvases)
            .join(opt_out_feed, opt_out_feed.c.canvas_id == canvas.c.id)
            .where(canvas.c.id == one.feed_id)
        ).one_or_none()
        if known is None:
            connection.execute(insert(canvas).values(id=one.feed_id, launched_us=now_us, **values))
            connection.execute(insert(source_cursor).values(canvas_id=one.feed_id, position="null", version=0))
            connection.execute(insert(opt_out_feed).values(canvas_id=one.feed_id, canvases=scope, kinds="[]"))
        elif known[:2] != (one.fingerprint, True):
            if _is_wider(scope, known.canvases):
                _follow_again(connection)
            connection.execute(update(canvas).where(canvas.c.id == one.feed_id).values(**values))
            connection.execute(
                update(opt_out_feed).where(opt_out_feed.c.canvas_id == one.feed_id).values(canvases=scope)
            )
    kept = [one.feed_id for one in feeds]
    gone = and_(canvas.c.id.startswith(FEED_PREFIX, autoescape=True), canvas.c.id.not_in(kept), canvas.c.declared)
    connection.execute(update(canvas).where(gone).values(declared=False))


def _is_wider(scope: str | None, before: str | None) -> bool:
    """Whether a feed is for canvases it was not for before."""
    if scope is None or before is None:
        return before is not None
    return not set(msgspec.json.decode(scope)) <= set(msgspec.json.decode(before))


def _follow_again(connection: Connection) -> None:
    """Have whoever has opted out so far looked for once more: a feed is for more of those who were sent."""
    # A claim either comes before this (and who was sent is followed) or knows what the feed is for.
    lock_claims(connection)
    begun = update(opt_out_round).where(opt_out_round.c.upto_id > 0)
    connection.execute(begun.values(after_id=0, upto_id=AGAIN, after_chunk=0, upto_chunk=0))


def record(connection: Connection, feed: str, told: Sequence[Withdrawal], *, now_us: int) -> int:
    """Keep what rows of a feed say, in their order; return how many opt-outs were new.

    A claim either comes before all of this (and who was sent is followed) or knows of it.
    """
    if not told:
        return 0
    # Ids are given out and committed in one order, so whoever has seen one has seen all before it.
    lock_claims(connection)
    stand: dict[tuple[str, bytes], tuple[int, int | None] | None] = _latest(connection, feed, told)
    fresh: dict[tuple[str, bytes], int | None] = {}
    ended: list[int] = []
    for one in told:
        key = one.kind, one.mark
        known = stand.get(key)
        is_out = (key in fresh and fresh[key] is None) or (key not in fresh and known is not None and known[1] is None)
        if one.taken_back and is_out:
            if key in fresh:
                fresh[key] = now_us
            elif known is not None:
                ended.append(known[0])
                stand[key] = known[0], now_us
        elif not one.taken_back and not is_out:
            fresh[key] = None
    for ids in slices(ended):
        connection.execute(update(opt_out).where(opt_out.c.id.in_(ids)).values(until_us=now_us))
    if fresh:
        rows = [
            {"feed": feed, "kind": kind, "mark": mark, "at_us": now_us, "until_us": until_us}
            for (kind, mark), until_us in fresh.items()
        ]
        connection.execute(insert(opt_out), rows)
        _keep_kinds(connection, feed, {kind for kind, _ in fresh})
    return len(fresh)


def lock_claims(connection: Connection) -> None:
    """Keep claims out until this transaction is over; SQLite does so by itself."""
    in_turn(connection, CLAIM_LOCK)


# Claims are serialised on PostgreSQL as SQLite serialises them by itself; the number is only a name.
CLAIM_LOCK = 0x43524954454F


def any_opt_outs(connection: Connection) -> bool:
    """Whether anybody has ever opted out."""
    return connection.execute(_LATEST).scalar() is not None


_LATEST = select(func.max(opt_out.c.id))


def withdrawn_in(
    connection: Connection, chunk_ids: Collection[int], *, after_id: int = 0, upto_id: int | None = None
) -> dict[int, list[Withdrawn]]:
    """Tell who of these chunks has withdrawn consent, by opt-outs behind ``after_id`` and up to ``upto_id``.

    A person is named by the user key or by any identifier of the entry; whoever entered after the opt-out was taken
    back is not meant by it.
    """
    feeds = {row.canvas_id: row for row in connection.execute(select(opt_out_feed))}
    kinds = {kind for row in feeds.values() for kind in msgspec.json.decode(row.kinds)}
    if not kinds:
        return {}
    scopes = {feed: row.canvases and set(msgspec.json.decode(row.canvases)) for feed, row in feeds.items()}
    chunks, named = _named(connection, chunk_ids, kinds)
    found = _found(connection, named, after_id, upto_id)
    withdrawn: dict[int, dict[int, Withdrawn]] = defaultdict(dict)
    for one in named:
        here = chunks[one.chunk_id]
        opted_out = found.get(one.kind)
        if not opted_out:
            continue
        for index, mark in enumerate(one.marks):
            for row in opted_out.get(mark, ()):
                scope = scopes[row.feed]
                if (scope is None or here.canvas_id in scope) and (row.until_us or here.sealed_us + 1) > here.sealed_us:
                    ordinal = ordinal_at(one.present, index)
                    known = withdrawn[one.chunk_id].get(ordinal)
                    if known is None or known.at_us > row.at_us:
                        withdrawn[one.chunk_id][ordinal] = Withdrawn(ordinal, row.feed, row.at_us)
    return {chunk_id: list(people.values()) for chunk_id, people in withdrawn.items()}


def _named(
    connection: Connection, chunk_ids: Collection[int], kinds: Collection[str]
) -> tuple[dict[int, Row[Any]], list[_Named]]:
    """Read everybody of these chunks under every kind of name that feeds use."""
    chunks: dict[int, Row[Any]] = {}
    named: list[_Named] = []
    wanted = [chunk.c.id, chunk.c.canvas_id, chunk.c.sealed_us, chunk.c.people]
    if USER_KEY in kinds:
        wanted.append(chunk.c.user_keys)
    wanted_forms = [form_of(kind) for kind in kinds if kind != USER_KEY]
    for ids in slices(sorted(chunk_ids)):
        for row in connection.execute(select(*wanted).where(chunk.c.id.in_(ids))):
            chunks[row.id] = row
            if USER_KEY in kinds:
                marks = key_marks(msgspec.json.decode(row.user_keys))
                named.append(_Named(row.id, USER_KEY, marks, (Span(0, row.people),)))
        query = select(identifiers).where(identifiers.c.chunk_id.in_(ids), identifiers.c.form.in_(wanted_forms))
        for row in connection.execute(query) if wanted_forms else ():
            kind = kind_of(row.form, row.gum_caller_id)
            if kind in kinds:
                values = forms.decode(bytes(row.packed), forms.Form(row.form))
                named.append(_Named(row.chunk_id, kind, value_marks(row.form, values), spans_from_text(row.present)))
    return chunks, named


def _found(
    connection: Connection, named: Sequence[_Named], after_id: int, upto_id: int | None
) -> dict[str, dict[bytes, list[Row[Any]]]]:
    """Look up which of these names have opted out, by kind and mark; exact."""
    asked: dict[str, set[bytes]] = defaultdict(set)
    many = sum(len(one.marks) for one in named) > FEW
    sieve = _sieve(connection.engine).refreshed(connection) if many else None
    for one in named:
        asked[one.kind].update(one.marks if sieve is None else sieve.pass_through(one.marks))
    found: dict[str, dict[bytes, list[Row[Any]]]] = defaultdict(lambda: defaultdict(list))
    for kind, marks in asked.items():
        for some in slices(list(marks)):
            query = select(opt_out).where(opt_out.c.kind == kind, opt_out.c.mark.in_(some), opt_out.c.id > after_id)
            if upto_id is not None:
                query = query.where(opt_out.c.id <= upto_id)
            for row in connection.execute(query):
                found[kind][bytes(row.mark)].append(row)
    return found


class _Sieve:
    """Lets through whoever may have opted out, and few others: 16 MB, and one in 130 of a crowd at a million opt-outs.

    Three bytes of a mark choose a place, three bits of the fourth one of the place's bits.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._places = bytearray(1 << 24)
        self._upto = 0

    def refreshed(self, connection: Connection) -> _Sieve:
        """Take in the opt-outs told since the last time; they come in the order of their ids."""
        with self._lock:
            query = select(opt_out.c.id, opt_out.c.mark).where(opt_out.c.id > self._upto).order_by(opt_out.c.id)
            for row_id, mark in connection.execute(query.execution_options(yield_per=20_000)):
                self._places[int.from_bytes(mark[:3])] |= _BITS[mark[3]]
                self._upto = row_id
        return self

    def pass_through(self, marks: Iterable[bytes]) -> list[bytes]:
        """Return the marks that may have opted out."""
        places, to_int = self._places, int.from_bytes
        return [mark for mark in marks if places[to_int(mark[:3])] & _BITS[mark[3]]]


_sieves: WeakKeyDictionary[Engine, _Sieve] = WeakKeyDictionary()


def _sieve(engine: Engine) -> _Sieve:
    return _sieves.setdefault(engine, _Sieve())


def _latest(
    connection: Connection, feed: str, told: Sequence[Withdrawal]
) -> dict[tuple[str, bytes], tuple[int, int | None] | None]:
    """Return how the ledger knows these names by this feed: the id of the latest opt-out, and when it ended."""
    by_kind: dict[str, set[bytes]] = defaultdict(set)
    for one in told:
        by_kind[one.kind].add(one.mark)
    stand: dict[tuple[str, bytes], tuple[int, int | None] | None] = {}
    for kind, marks in by_kind.items():
        for some in slices(list(marks)):
            query = select(opt_out.c.id, opt_out.c.mark, opt_out.c.until_us).where(
                opt_out.c.kind == kind, opt_out.c.mark.in_(some), opt_out.c.feed == feed
            )
            for row in connection.execute(query.order_by(opt_out.c.id)):
                stand[kind, bytes(row.mark)] = row.id, row.until_us
    return stand


def _keep_kinds(connection: Connection, feed: str, kinds: set[str]) -> None:
    which = opt_out_feed.c.canvas_id == feed
    known = set(msgspec.json.decode(connection.execute(select(opt_out_feed.c.kinds).where(which)).scalar_one()))
    if not kinds <= known:
        both = msgspec.json.encode(sorted(known | kinds)).decode()
        connection.execute(update(opt_out_feed).where(which).values(kinds=both))


def counts(connection: Connection) -> dict[str, tuple[int, int]]:
    """Return, for each feed, how many opt-outs hold now and how many were taken back."""
    query = select(opt_out.c.feed, func.count().label("told"), func.count(opt_out.c.until_us).label("ended")).group_by(
        opt_out.c.feed
    )
    return {row.feed: (row.told - row.ended, row.ended) for row in connection.execute(query)}
