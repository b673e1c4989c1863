"""Gone: audiences Criteo does not know any more, who waits for them, and who is given up because their file says so."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import BigInteger, Connection, and_, bindparam, func, or_, select, update

from criteo_provider.core.model import ClaimedRequest, PartState, WhenDeleted
from criteo_provider.store.clock import is_over
from criteo_provider.store.declare import creators
from criteo_provider.store.holding import at_work
from criteo_provider.store.schema import audience, part, step, step_version, trouble
from criteo_provider.store.standings import refold, slices
from criteo_provider.store.troubles import is_holding, troubled

# How often a name is looked for again: what is to be made anew soon, what somebody has to restore less often.
LOOK_AGAIN_US = {WhenDeleted.RECREATE: 120_000_000, WhenDeleted.WAIT: 900_000_000, WhenDeleted.FAIL: 900_000_000}


def any_gone(connection: Connection, connection_id: str) -> bool:
    """Tell whether a connection has deleted audiences."""
    return connection.execute(_GONE, {"connection": connection_id}).first() is not None


_GONE = (
    select(audience.c.id)
    .where(audience.c.connection_id == bindparam("connection"), audience.c.gone_us.is_not(None))
    .limit(1)
)


def to_look_for(
    connection: Connection, connection_id: str, ad_accounts: Collection[str], *, now_us: int
) -> list[tuple[int, str, str, bool, str]]:
    """Lease the deleted audiences that are to be looked for by name now."""
    wanted = {"connection": connection_id, "ad_accounts": list(ad_accounts), "now_us": now_us}
    found = []
    for row in connection.execute(_WANTED, wanted).all():
        policy = WhenDeleted(row.when_deleted)
        until_us = now_us + LOOK_AGAIN_US[policy]
        lease = {"audience": row.id, "now_us": now_us, "resolver_until_us": until_us}
        if not connection.execute(_LEASE, lease).rowcount:
            continue  # another process has just taken it
        may_create = policy is WhenDeleted.RECREATE and creators(connection, row.id)
        found.append((int(row.id), str(row.ad_account), str(row.name), may_create, str(row.criteo_id)))
    return found


_NOW = bindparam("now_us", type_=BigInteger)
_THIS = audience.c.id == bindparam("audience")
_FREE = and_(audience.c.gone_us.is_not(None), is_over(audience.c.resolver_until_us, _NOW))
_WANTED = select(audience).where(
    audience.c.connection_id == bindparam("connection"),
    audience.c.ad_account.in_(bindparam("ad_accounts", expanding=True)),
    _FREE,
    or_(
        audience.c.id.in_(select(part.c.audience_id).where(part.c.state == PartState.OPEN)),
        audience.c.id.in_(
            select(step_version.c.audience_id).join(step, step.c.version_id == step_version.c.id).where(at_work())
        ),
    ),
    ~troubled(is_holding(_NOW), trouble.c.scope != "audience"),
)
_LEASE = update(audience).where(_THIS, _FREE)


def is_another_by_now(connection: Connection, claimed: ClaimedRequest) -> bool:
    """Tell whether an audience was found under another id since a request was claimed."""
    known = connection.execute(_CRITEO_ID, {"audience": claimed.audience_id}).scalar()
    return bool(known != claimed.criteo_id)


def mark(connection: Connection, audience_id: int, now_us: int) -> dict[str, object] | None:
    """Remember that Criteo does not know an audience any more; return what becomes of parts given up for it."""
    row = connection.execute(_MARK, {"audience": audience_id, "now_us": now_us}).one()
    return _given_up(row.name, now_us) if WhenDeleted(row.when_deleted) is WhenDeleted.FAIL else None


_CRITEO_ID = select(audience.c.criteo_id).where(_THIS)
_MARK = (
    update(audience)
    .where(_THIS)
    .values(gone_us=func.coalesce(audience.c.gone_us, _NOW))
    .returning(audience.c.when_deleted, audience.c.name)
)


def _given_up(name: str, now_us: int) -> dict[str, object]:
    """What becomes of parts whose file says `when_deleted: fail`: their patience ends now."""
    reason = f"Audience “{name}” is not at Criteo any more, and its step says when_deleted: fail."
    return {"state": PartState.ERRORED, "reason": reason, "deadline_us": now_us, "request_id": None}


def give_up(connection: Connection, *, now_us: int) -> int:
    """Record as Errored who came to a deleted audience whose step says `fail`; return how many parts that were."""
    stage_ids: set[int] = set()
    parts = 0
    for row in connection.execute(_FAILING).all():
        for ids in slices(sorted(connection.execute(_OPEN, {"audience": row.id}).scalars())):
            ended = {"parts": list(ids), **_given_up(row.name, now_us)}
            touched = connection.execute(_END, ended).scalars().all()
            stage_ids.update(touched)
            parts += len(touched)
    refold(connection, stage_ids, cause="audience deleted", now_us=now_us)
    return parts


_OPEN = (
    select(part.c.id)
    .join(step, step.c.id == part.c.step_id)
    .where(part.c.state == PartState.OPEN, part.c.audience_id == bindparam("audience"), at_work())
    .limit(5_000)
)
_END = (
    update(part)
    .where(part.c.id.in_(bindparam("parts", expanding=True)), part.c.state == PartState.OPEN)
    .returning(part.c.stage_id)
)
_FAILING = select(audience.c.id, audience.c.name).where(
    audience.c.gone_us.is_not(None), audience.c.when_deleted == WhenDeleted.FAIL.value
)
