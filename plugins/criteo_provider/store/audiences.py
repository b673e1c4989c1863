"""Audiences that have to be found at Criteo: who looks for them, and under which id Criteo knows them."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import BigInteger, Connection, bindparam, select, update

from criteo_provider.core.model import PartState
from criteo_provider.store.clock import is_over
from criteo_provider.store.declare import creators
from criteo_provider.store.metrics import stopped
from criteo_provider.store.schema import audience, part
from criteo_provider.store.troubles import heal


def unresolved(
    connection: Connection, connection_id: str, ad_accounts: Collection[str], *, now_us: int, lease_s: float
) -> list[tuple[int, str, str, bool]]:
    """Lease the audiences with people waiting that have no Criteo id yet: (id, ad account, name, may create)."""
    wanted = {"connection": connection_id, "ad_accounts": list(ad_accounts), "now_us": now_us}
    rows = connection.execute(_LEASE, {**wanted, "resolver_until_us": now_us + round(lease_s * 1e6)}).all()
    return [(row.id, row.ad_account, row.name, creators(connection, row.id)) for row in rows]


def give_back(connection: Connection, audience_ids: Collection[int]) -> None:
    """Let others look for these audiences again at once."""
    connection.execute(_GIVE_BACK, {"audiences": list(audience_ids)})


def resolved(connection: Connection, audience_id: int, criteo_id: str, *, created: bool, now_us: int) -> None:
    """Remember under which id Criteo knows an audience."""
    values = {"criteo_id": criteo_id, "created_here": created, "resolved_us": now_us}
    row = connection.execute(_RESOLVED, {"audience": audience_id, **values}).one()
    heal(connection, audience_id, row.connection_id, row.ad_account, now_us=now_us)


_NOW = bindparam("now_us", type_=BigInteger)
_LEASE = (
    update(audience)
    .where(
        audience.c.connection_id == bindparam("connection"),
        audience.c.ad_account.in_(bindparam("ad_accounts", expanding=True)),
        audience.c.criteo_id.is_(None),
        is_over(audience.c.resolver_until_us, _NOW),
        audience.c.id.in_(select(part.c.audience_id).where(part.c.state == PartState.OPEN)),
        ~stopped(_NOW),
    )
    .returning(audience.c.id, audience.c.ad_account, audience.c.name)
)
_GIVE_BACK = (
    update(audience).where(audience.c.id.in_(bindparam("audiences", expanding=True))).values(resolver_until_us=0)
)
_RESOLVED = (
    update(audience)
    .where(audience.c.id == bindparam("audience"))
    .values(resolver_until_us=0, gone_us=None)
    .returning(audience.c.connection_id, audience.c.ad_account)
)
