"""The index of people: which chunks may hold a user key or an identifier, built afterwards and never waited for.

A segment covers the chunks of one stretch of ids; its pages hold, in order, the first four bytes of the mark of every
key and identifier, and whose chunk that is: 8 bytes a name. Chunks behind the last segment are searched.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec
from sqlalchemy import Connection, Select, delete, func, insert, literal, literal_column, select, text, update

from criteo_provider.core import identifiers as forms
from criteo_provider.core.consent import USER_KEY, key_marks, value_marks
from criteo_provider.core.identifiers import Form
from criteo_provider.store.engine import AS_KEPT
from criteo_provider.store.schema import chunk, identifiers
from criteo_provider.store.schema_growth import people_page, people_segment
from criteo_provider.store.standings import slices

if TYPE_CHECKING:
    from numpy.typing import NDArray

Name = str | bytes  # a user key, or the stored bytes of an identifier
_Asked = TypeVar("_Asked", bound=Hashable)

# A segment is worth making from so many people or chunks on; until then they are searched, in a moment.
SEGMENT_PEOPLE = 500_000
SEGMENT_CHUNKS = 2_000
# With so few people every page would be almost empty.
_ONE_PAGE_PEOPLE = 20_000
_PAGES = 256
# Of a full segment, a page has about 16 kB: so many are asked for in one statement.
_PAGES_AT_ONCE = 1_000
# A transaction that may still bring a chunk with a lower id began long before those that are indexed.
_SETTLED_US = 60_000_000
# So few names are searched for by the database; for more it is cheaper to read the chunks.
_FEW = 20


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment ready to be kept."""

    first_chunk: int
    last_chunk: int
    pages: int
    rows: list[dict[str, Any]] = field(repr=False)
    chunks: frozenset[int] = frozenset()


def chunks_with(connection: Connection, kind: str, names: Collection[Name]) -> dict[Name, set[int]]:
    """Return, for each name, the chunks that may hold it: all that do, and by chance one in billions more.

    ``kind`` is ``user_key`` (names are text, as ``identifiers.user_key`` gives it) or an identifier form (bytes).
    """
    found: dict[Name, set[int]] = {name: set() for name in names}
    if not found:
        return found
    _look_up(connection, kind, _marks(kind, found), found)
    behind = _indexed_upto(connection)
    if len(found) <= _FEW:
        for name, chunk_ids in found.items():
            chunk_ids.update(_search(connection, kind, name, behind))
    else:
        _read_through(connection, kind, found, behind)
    return found


def indexed_with(connection: Connection, kind: str, names: Collection[Name]) -> tuple[set[int], int]:
    """Return the indexed chunks that may hold any of the names, and the last chunk that is indexed; searches none."""
    return indexed_marked(connection, {kind: _marks(kind, names)})


def indexed_marked(connection: Connection, marks: Mapping[str, Sequence[bytes]]) -> tuple[set[int], int]:
    """Return the indexed chunks that may hold anybody with one of these marks, by kind, and the last one indexed."""
    upto = _indexed_upto(connection)
    chunk_ids: set[int] = set()
    for kind, wanted in marks.items() if upto else ():
        found: dict[bytes, set[int]] = {mark: set() for mark in wanted}
        if found:
            _look_up(connection, kind, list(found), found)
        chunk_ids.update(*found.values())
    return chunk_ids, upto


def make_segment(connection: Connection) -> Segment | None:
    """Read the next stretch of chunks that deserves a segment, and sort its names; None when there is none."""
    behind = _indexed_upto(connection)
    query = select(chunk.c.id, chunk.c.people).where(chunk.c.id > behind).order_by(chunk.c.id).limit(SEGMENT_CHUNKS)
    settled_us = _settled_us(connection)
    if settled_us is not None:
        open_ids = select(func.min(chunk.c.id)).where(chunk.c.id > behind, chunk.c.sealed_us >= settled_us)
        query = query.where(chunk.c.id < func.coalesce(open_ids.scalar_subquery(), literal(2**62)))
    chosen: list[int] = []
    people = 0
    for row in connection.execute(query):
        if chosen and people + row.people > SEGMENT_PEOPLE:
            break
        chosen.append(row.id)
        people += row.people
    else:
        if people < SEGMENT_PEOPLE and len(chosen) < SEGMENT_CHUNKS:
            return None
    pages = 1 if people <= _ONE_PAGE_PEOPLE else _PAGES
    return Segment(chosen[0], chosen[-1], pages, list(_pages(connection, chosen, pages)), frozenset(chosen))


def keep_segment(connection: Connection, segment: Segment) -> bool:
    """Keep a segment; False when another process has covered its chunks meanwhile."""
    _alone(connection)
    if _indexed_upto(connection) >= segment.first_chunk:
        return False
    values = {"first_chunk": segment.first_chunk, "last_chunk": segment.last_chunk, "pages": segment.pages}
    segment_id = connection.execute(insert(people_segment).values(values).returning(people_segment.c.id)).scalar_one()
    if segment.rows:
        connection.execute(insert(people_page), [{"segment_id": segment_id, **row} for row in segment.rows])
    still_there = select(chunk.c.id).where(chunk.c.id.between(segment.first_chunk, segment.last_chunk))
    forget(connection, segment.chunks.difference(connection.execute(still_there).scalars()))
    return True


def forget(connection: Connection, chunk_ids: Collection[int]) -> None:
    """Take every trace of these chunks out of the index; nobody keeps a segment of theirs until this is committed."""
    import numpy as np

    _alone(connection)
    if not chunk_ids:
        return
    gone = np.array(sorted(chunk_ids), dtype=np.int64)
    overlapping = people_segment.c.first_chunk <= int(gone[-1]), people_segment.c.last_chunk >= int(gone[0])
    for segment in connection.execute(select(people_segment).where(*overlapping)).all():
        of_segment = people_page.c.segment_id == segment.id
        columns = people_page.c.kind, people_page.c.page, people_page.c.count, people_page.c.entries
        for kind, page, count, entries in connection.execute(select(*columns).where(of_segment)).all():
            prefixes, offsets = _entries(count, entries)
            stay = ~np.isin(offsets + np.int64(segment.first_chunk), gone)
            left = int(np.count_nonzero(stay))
            this = of_segment, people_page.c.kind == kind, people_page.c.page == page
            if not left:
                connection.execute(delete(people_page).where(*this))
            elif left < count:
                rest = prefixes[stay].tobytes() + offsets[stay].tobytes()
                connection.execute(update(people_page).where(*this).values(count=left, entries=rest))


def _alone(connection: Connection) -> None:
    """Let nobody else change the index until the end of this transaction (SQLite has one writer)."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("LOCK TABLE people_segment IN EXCLUSIVE MODE"))


def _indexed_upto(connection: Connection) -> int:
    return int(connection.execute(_LAST).scalar() or 0)


_LAST = select(func.max(people_segment.c.last_chunk))


def _settled_us(connection: Connection) -> int | None:
    """Return the moment before which everything sealed is committed; None: it always is (SQLite has one writer)."""
    if connection.dialect.name != "postgresql":
        return None
    oldest = (
        "SELECT extract(epoch FROM coalesce(min(xact_start), clock_timestamp())) * 1000000 FROM pg_stat_activity "
        "WHERE datname = current_database() AND backend_xid IS NOT NULL AND pid <> pg_backend_pid()"
    )
    return int(connection.execute(text(oldest)).scalar_one()) - _SETTLED_US


# --- building


def _pages(connection: Connection, chunk_ids: Sequence[int], pages: int) -> Iterator[dict[str, Any]]:
    import numpy as np

    gathered: dict[str, list[tuple[int, NDArray[Any]]]] = defaultdict(list)
    first, last = chunk_ids[0], chunk_ids[-1]
    named = select(chunk.c.id, chunk.c.user_keys).where(chunk.c.id.between(first, last))
    for chunk_id, keys in connection.execute(named):
        gathered[USER_KEY].append((chunk_id, _prefixes(key_marks(msgspec.json.decode(keys)))))
    held = select(identifiers.c.chunk_id, identifiers.c.form, identifiers.c.packed).execution_options(**{AS_KEPT: True})
    for chunk_id, form, packed in connection.execute(held.where(identifiers.c.chunk_id.between(first, last))):
        gathered[form].append((chunk_id, _packed_prefixes(form, bytes(packed))))
    for kind, pieces in gathered.items():
        prefixes = np.concatenate([one for _, one in pieces])
        offsets = np.repeat([chunk_id - chunk_ids[0] for chunk_id, _ in pieces], [len(one) for _, one in pieces])
        order = np.argsort(prefixes, kind="stable")
        prefixes, offsets = prefixes[order], offsets[order].astype("<u4")
        edges = [0, len(prefixes)] if pages == 1 else np.searchsorted(prefixes >> 24, np.arange(_PAGES + 1)).tolist()
        for page in range(pages):
            first, last = edges[page], edges[page + 1]
            if last > first:
                entries = prefixes[first:last].tobytes() + offsets[first:last].tobytes()
                yield {"kind": kind, "page": page, "count": last - first, "entries": entries}


def _marks(kind: str, names: Collection[Name]) -> list[bytes]:
    if kind == USER_KEY:
        return key_marks(cast("Collection[str]", names))
    return value_marks(kind, cast("Collection[bytes]", names))


def _prefixes(marks: Sequence[bytes]) -> NDArray[Any]:
    import numpy as np

    return np.frombuffer(b"".join([mark[:4] for mark in marks]), dtype=">u4").astype("<u4")


def _packed_prefixes(form: str, packed: bytes) -> NDArray[Any]:
    import numpy as np

    width = Form(form).width
    if width and Form(form).field == "email":  # a digest begins with its mark
        return np.frombuffer(packed, dtype=">u4")[:: width // 4].astype("<u4")
    return _prefixes(value_marks(form, forms.decode(packed, Form(form))))


# --- looking up


def _look_up(connection: Connection, kind: str, marks: Sequence[bytes], found: dict[_Asked, set[int]]) -> None:
    """Add the indexed chunks of each who is asked for; marks are in the order of ``found``."""
    names, wanted = list(found), _prefixes(marks)
    pages = sorted({int(prefix) >> 24 for prefix in wanted})
    segments = connection.execute(select(people_segment).order_by(people_segment.c.id)).all()
    for of_page, alike in (
        ([0], [segment for segment in segments if segment.pages == 1]),
        (pages, [segment for segment in segments if segment.pages > 1]),
    ):
        at_once = max(1, _PAGES_AT_ONCE // len(of_page))
        for at in range(0, len(alike), at_once):
            first_chunk = {segment.id: segment.first_chunk for segment in alike[at : at + at_once]}
            for segment_id, count, entries in connection.execute(_entries_of(first_chunk, kind, of_page)):
                _match(found, names, wanted, first_chunk[segment_id], count, entries)


def _entries_of(segment_ids: Collection[int], kind: str, pages: Collection[int]) -> Select[int, int, bytes]:
    """Ask for these pages of these segments, as they are kept."""
    return (
        select(people_page.c.segment_id, people_page.c.count, people_page.c.entries)
        .where(people_page.c.segment_id.in_(segment_ids), people_page.c.kind == kind, people_page.c.page.in_(pages))
        .execution_options(**{AS_KEPT: True})
    )


def _match(
    found: dict[_Asked, set[int]],
    names: Sequence[_Asked],
    wanted: NDArray[Any],
    first_chunk: int,
    count: int,
    entries: bytes,
) -> None:
    """Take in what one page knows of the names."""
    import numpy as np

    prefixes, offsets = _entries(count, entries)
    begin, end = np.searchsorted(prefixes, wanted, "left"), np.searchsorted(prefixes, wanted, "right")
    for index in np.flatnonzero(end > begin).tolist():
        found[names[index]].update((offsets[begin[index] : end[index]] + first_chunk).tolist())


def _entries(count: int, entries: bytes) -> tuple[NDArray[Any], NDArray[Any]]:
    """Take a page apart: ascending prefixes, and in which chunk of the segment each stands."""
    import numpy as np

    return np.frombuffer(entries, dtype="<u4", count=count), np.frombuffer(entries, dtype="<u4", offset=4 * count)


def _search(connection: Connection, kind: str, name: Name, indexed: int) -> Sequence[int]:
    """Let the database search the chunks that no segment covers yet."""
    behind: Any = literal_column(str(indexed))  # the planner is to see how few those are
    if isinstance(name, str):
        needle: Any = msgspec.json.encode(name).decode()
        column: Any = chunk.c.user_keys
        query = select(chunk.c.id).where(chunk.c.id > behind)
    else:
        needle, column = name, identifiers.c.packed
        query = select(identifiers.c.chunk_id).where(identifiers.c.chunk_id > behind, identifiers.c.form == kind)
    where = func.instr(column, needle) if connection.dialect.name == "sqlite" else _position(column, needle)
    return connection.execute(query.where(where > 0)).scalars().all()


def _position(column: Any, needle: Any) -> Any:
    if isinstance(needle, bytes):
        return func.position(literal(needle).op("IN")(column))
    return func.strpos(column, needle)


def _read_through(connection: Connection, kind: str, found: dict[Name, set[int]], behind: int) -> None:
    query = select(chunk.c.id).where(chunk.c.id > behind).order_by(chunk.c.id)
    for chunk_ids in slices(connection.execute(query).scalars().all()):
        for chunk_id in chunk_ids:
            for name in _names_in(connection, kind, chunk_id) & found.keys():
                found[name].add(chunk_id)


def _names_in(connection: Connection, kind: str, chunk_id: int) -> set[Name]:
    if kind == USER_KEY:
        keys = connection.execute(select(chunk.c.user_keys).where(chunk.c.id == chunk_id)).scalar_one()
        return set(msgspec.json.decode(keys))
    query = select(identifiers.c.packed).where(identifiers.c.chunk_id == chunk_id, identifiers.c.form == kind)
    packed = connection.execute(query.execution_options(**{AS_KEPT: True})).scalar()
    return set(forms.decode(bytes(packed), Form(kind))) if packed else set()
