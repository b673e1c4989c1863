"""Troubles: what is known to be broken, how far it reaches, and when it is probed again."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Row,
    Select,
    Text,
    and_,
    bindparam,
    cast,
    delete,
    false,
    func,
    insert,
    literal,
    not_,
    or_,
    select,
    update,
)

from criteo_provider.store.clock import FURTHEST_US, is_over
from criteo_provider.store.engine import insert_into
from criteo_provider.store.schema import audience, news, trouble

FIRST_PROBE_US = 60_000_000
# An engine may carry another one (`[criteo] first_probe_s`); the last interval is 15 times the first.
FIRST_PROBE_OPTION = "criteo_first_probe_us"

# Troubles that people made by a decision: an answer of Criteo's neither ends nor renames them.
DISCONNECTED = "disconnected"
BY_CHOICE = frozenset({DISCONNECTED, "not-chosen", "not-allowed"})
# Troubles of users, by canvas: they hold nobody back.
PEOPLE, LATE = "people", "late"
# That the ledger itself takes no writes: it can only keep that this is over.
LEDGER = "ledger"
# Troubles that hold people back.
HOLDING = ("connection", "ad_account", "audience")
# So begins what is kept of a trouble that is over because nobody uses what it was about: it may not work at all.
_UNUSED = "Not used any more. "

_ALL = select(trouble)

# Nothing is probed until a person connects the ad account again.
NEVER_US = 253_370_764_800_000_000  # the year 9999


class Troubles:
    """The open troubles of a connection: what is stopped, and what may go through as a probe."""

    def __init__(self, connection: Connection, connection_id: str, now_us: int) -> None:
        self._connection_id = connection_id
        rows = connection.execute(_ALL).all()
        # A probe further ahead than any is put off was set before the clock stepped back.
        self._due = {
            (row.scope, row.key): row.code != DISCONNECTED and not now_us < row.next_probe_us <= now_us + FURTHEST_US
            for row in rows
        }

    def admits(self, audience_id: int, ad_account: str) -> bool:
        """Whether nothing stops this audience, or all that stops it wants a probe now."""
        return all(self._due.get(key, True) for key in self._keys(audience_id, ad_account))

    def is_probe(self, audience_id: int, ad_account: str) -> bool:
        """Whether a request of this audience is a probe."""
        return any(key in self._due for key in self._keys(audience_id, ad_account))

    def put_off(self, connection: Connection, audience_id: int, ad_account: str, now_us: int) -> None:
        """Let nobody else probe before the next time: a minute, falling to once in 15 minutes."""
        for scope, key in self._keys(audience_id, ad_account):
            put_off_probe(connection, scope, key, now_us=now_us)

    def _keys(self, audience_id: int, ad_account: str) -> Iterable[tuple[str, str]]:
        return keys_of(audience_id, self._connection_id, ad_account).items()


def put_off_probe(connection: Connection, scope: str, key: str, *, now_us: int) -> None:
    """Set the next probe of a trouble: one minute from now, doubling to fifteen."""
    least = func.min if connection.dialect.name == "sqlite" else func.least
    first_us = _first_probe_us(connection)
    wait_us = least(literal(first_us, BigInteger).bitwise_lshift(least(trouble.c.probes, 4)), 15 * first_us)
    connection.execute(
        update(trouble)
        .where(trouble.c.scope == scope, trouble.c.key == key, trouble.c.code != DISCONNECTED)
        .values(
            probes=trouble.c.probes + 1,
            next_probe_us=literal(now_us, BigInteger) + wait_us,
        )
    )


def give_probe_back(connection: Connection, keys: Mapping[str, str], *, now_us: int) -> None:
    """Let the next probe of these troubles go now: the last one has told nothing."""
    for scope, key in keys.items():
        connection.execute(_PROBE_BACK, {"of": scope, "about": key, "next_probe_us": now_us})


_PROBE_BACK = (
    update(trouble)
    .where(
        trouble.c.scope == bindparam("of"),
        trouble.c.key == bindparam("about"),
        trouble.c.code != DISCONNECTED,
        trouble.c.probes > 0,
    )
    .values(probes=trouble.c.probes - 1)
)


def _first_probe_us(connection: Connection) -> int:
    return int(connection.get_execution_options().get(FIRST_PROBE_OPTION, FIRST_PROBE_US))


def open_trouble(connection: Connection, scope: str, key: str, *, code: str, sentence: str, now_us: int) -> bool:
    """Remember a trouble of ``scope``; return True when it is new."""
    next_probe_us = NEVER_US if code == DISCONNECTED else now_us + _first_probe_us(connection)
    values = {"code": code, "sentence": sentence, "since_us": now_us, "probes": 0}
    # Two answers may tell of one new trouble at the same moment.
    added = connection.execute(
        insert_into(connection, trouble)
        .values(scope=scope, key=key, next_probe_us=next_probe_us, **values)
        .on_conflict_do_nothing()
        .returning(trouble.c.key)
    ).first()
    if added and not _is_covered(connection, scope, key):
        note(connection, scope, key, sentence, began=True, now_us=now_us)
    elif not added:
        found = trouble.c.scope == scope, trouble.c.key == key
        changed: dict[str, Any] = {"code": code, "sentence": sentence}
        if code == DISCONNECTED:
            changed["next_probe_us"] = next_probe_us
        connection.execute(update(trouble).where(*found, trouble.c.code != DISCONNECTED).values(**changed))
    return added is not None


def is_holding(now_us: int | ColumnElement[int]) -> ColumnElement[bool]:
    """The condition that a trouble wants no probe now."""
    return or_(trouble.c.code == DISCONNECTED, not_(is_over(trouble.c.next_probe_us, now_us)))


def troubled(*which: ColumnElement[bool]) -> ColumnElement[bool]:
    """The condition that there is a known trouble (one of ``which``) with an audience."""
    return select(trouble.c.scope).where(*which, concerns()).exists()


def concerns() -> ColumnElement[bool]:
    """The condition that a trouble is one with an audience, its ad account or its connection."""
    return or_(
        and_(trouble.c.scope == "connection", trouble.c.key == audience.c.connection_id),
        and_(
            trouble.c.scope == "ad_account",
            trouble.c.key == audience.c.connection_id + "/" + audience.c.ad_account,
        ),
        and_(trouble.c.scope == "audience", trouble.c.key == cast(audience.c.id, Text)),
    )


def close_trouble(
    connection: Connection, scope: str, key: str, *, now_us: int, but: Collection[str] = (), is_unused: bool = False
) -> None:
    """Forget a trouble that is over, and note that it is; one whose code is among ``but`` stays."""
    sentence = connection.execute(_CLOSE, {"scope": scope, "key": key, "but": list(but)}).scalar()
    if sentence is not None and _was_noted(connection, scope, key):
        sentence = _UNUSED + sentence if is_unused and scope != "launch" else sentence
        note(connection, scope, key, sentence, began=False, now_us=now_us)


_CLOSE = (
    delete(trouble)
    .where(
        trouble.c.scope == bindparam("scope"),
        trouble.c.key == bindparam("key"),
        trouble.c.code.not_in(bindparam("but", expanding=True)),
    )
    .returning(trouble.c.sentence)
)


def _is_covered(connection: Connection, scope: str, key: str) -> bool:
    """Whether everybody this trouble holds back is held back by troubles that were told already."""
    other = or_(trouble.c.scope != scope, trouble.c.key != key)
    here = audience.c.id.in_(audiences_of(scope, key))
    if connection.execute(select(audience.c.id).where(here).limit(1)).first() is None:
        return False
    return connection.execute(select(audience.c.id).where(here, ~troubled(other)).limit(1)).first() is None


def note_uncovered(connection: Connection, *, now_us: int) -> None:
    """Tell of troubles that others have covered, now that those are over."""
    for row in connection.execute(select(trouble).where(trouble.c.scope.in_(HOLDING))).all():
        if not _was_noted(connection, row.scope, row.key) and not _is_covered(connection, row.scope, row.key):
            note(connection, row.scope, row.key, row.sentence, began=True, now_us=now_us)


def _was_noted(connection: Connection, scope: str, key: str) -> bool:
    return bool(connection.execute(_LAST_TOLD, {"scope": scope, "key": key}).scalar())


_LAST_TOLD = (
    select(news.c.began)
    .where(news.c.scope == bindparam("scope"), news.c.key == bindparam("key"))
    .order_by(news.c.id.desc())
    .limit(1)
)


def note(connection: Connection, scope: str, key: str, sentence: str, *, began: bool, now_us: int) -> None:
    """Keep a change of state until somebody is told of it, once."""
    told = {"at_us": now_us, "scope": scope, "key": key, "began": began, "sentence": sentence}
    connection.execute(_NEWS, told)


_NEWS = insert(news)


def sentence_of(row: Row[Any], audiences: Mapping[str, str]) -> str:
    """Say what has changed; ``audiences`` are their names by the ledger's numbers."""
    kind = "ad account" if row.scope in ("ad_account", "quota") else row.scope
    where = f"audience {audiences.get(row.key, row.key)!r}" if row.scope == "audience" else f"{kind} {row.key}"
    if not row.began and row.sentence.startswith(_UNUSED):
        return f"Over, {where} is not used any more. It was: {row.sentence.removeprefix(_UNUSED)}"
    match row.scope, row.began:
        case (("people" | "late"), True):
            return str(row.sentence)
        case "people", _:
            return f"Over: nobody of canvas {row.key} was given up for an hour."
        case "late", _:
            return f"Over: the users of canvas {row.key} are on time again."
        case "quota", True:
            return str(row.sentence)
        case "quota", _:
            return f"Over: ad account {row.key.partition('/')[2]} has room for new audiences again."
        case "launch", True:
            return f"Canvas {row.key} is not launched: {row.sentence}"
        case "launch", _:
            return f"Canvas {row.key} does not wait for its launch any more. What stood in its way: {row.sentence}"
        case "ledger", _:
            return f"Over: the ledger is written again. Since {row.key} this stood in its way: {row.sentence}"
    return (
        f"Trouble with {where}: {row.sentence}" if row.began else f"Over, {where} works again. It was: {row.sentence}"
    )


def heal(connection: Connection, audience_id: int, connection_id: str, ad_account: str, *, now_us: int) -> None:
    """Forget the troubles of an audience, its ad account and its connection: all three have just worked."""
    for scope, key in keys_of(audience_id, connection_id, ad_account).items():
        close_trouble(connection, scope, key, now_us=now_us, but=BY_CHOICE)
    connection.execute(_THERE, {"audience": audience_id})


_THERE = (
    update(audience).where(audience.c.id == bindparam("audience"), audience.c.gone_us.is_not(None)).values(gone_us=None)
)


def vouch_for_wider(connection: Connection, scope: str, key: str, *, now_us: int) -> None:
    """Forget the troubles of what leads to ``scope``: Criteo, which blames no more than that, has just let us in."""
    if scope == "ad_account":
        close_trouble(connection, "connection", key.rpartition("/")[0], now_us=now_us, but=BY_CHOICE)
    elif scope == "audience":
        row = connection.execute(_PLACE, {"audience": int(key)}).one()
        for wider, its_key in keys_of(int(key), row.connection_id, row.ad_account).items():
            if wider != scope:
                close_trouble(connection, wider, its_key, now_us=now_us, but=BY_CHOICE)


_PLACE = select(audience.c.connection_id, audience.c.ad_account).where(audience.c.id == bindparam("audience"))


def keys_of(audience_id: int, connection_id: str, ad_account: str) -> dict[str, str]:
    """Name the troubles that would stop an audience, by scope."""
    return {
        "connection": connection_id,
        "ad_account": f"{connection_id}/{ad_account}",
        "audience": str(audience_id),
    }


def audiences_of(scope: str, key: str) -> Select[tuple[int]]:
    """Select the audiences a trouble holds back."""
    ids = select(audience.c.id)
    match scope:
        case "connection":
            return ids.where(audience.c.connection_id == key)
        case "ad_account":
            return ids.where(audience.c.connection_id + "/" + audience.c.ad_account == key)
        case "audience":
            return ids.where(audience.c.id == int(key))
        case _:  # a source's trouble holds nobody back who has entered
            return ids.where(false())
