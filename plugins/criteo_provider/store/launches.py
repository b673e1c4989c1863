"""Launches: which canvases were launched, what their last preflight found, and how full ad accounts are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, Table, func, select, update

from criteo_provider.core.quota import WARN_FROM, nearly_full
from criteo_provider.store.engine import insert_into, reading, writing
from criteo_provider.store.in_use import in_use
from criteo_provider.store.launch_tables import fullness, preflight
from criteo_provider.store.schema import audience, canvas, step, step_version, trouble
from criteo_provider.store.troubles import close_trouble, open_trouble, put_off_probe

SCOPE = "launch"
_IN_USE = in_use(canvas.c.launched_us.is_not(None))


@dataclass(frozen=True, slots=True)
class LastPreflight:
    """What was found when a canvas was last checked; ``findings`` is the JSON it was remembered as."""

    at_us: int
    stamp: str
    findings: str


@dataclass(frozen=True, slots=True)
class KnownAudience:
    """An audience as the ledger knows it; ``criteo_id`` is None until it was found or created."""

    audience_id: int
    connection_id: str
    ad_account: str
    name: str
    criteo_id: str | None


class Launches:
    """The part of the ledger that is about launches; each verb is one short transaction."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def unlaunched(self) -> set[str]:
        """Return the canvases that were declared and never launched."""
        with reading(self._engine) as connection:
            return set(connection.execute(select(canvas.c.id).where(canvas.c.launched_us.is_(None))).scalars())

    def is_due(self, canvas_id: str, stamp: str, *, now_us: int) -> bool:
        """Tell whether a launch is to be tried now: never tried, something has changed, or the next probe is due."""
        query = (
            select(preflight.c.stamp, trouble.c.next_probe_us)
            .outerjoin(trouble, (trouble.c.scope == SCOPE) & (trouble.c.key == preflight.c.canvas_id))
            .where(preflight.c.canvas_id == canvas_id)
        )
        with reading(self._engine) as connection:
            last = connection.execute(query).one_or_none()
        return last is None or last.stamp != stamp or (last.next_probe_us or 0) <= now_us

    def remember(self, canvas_id: str, stamp: str, findings: str, *, now_us: int) -> None:
        """Keep what a preflight has found, for who looks later."""
        with writing(self._engine) as connection:
            _keep(connection, canvas_id, stamp, findings, now_us)

    def failed(self, canvas_id: str, stamp: str, findings: str, sentence: str, *, now_us: int) -> bool:
        """Remember a launch that failed, and when it is tried again; True when that is new."""
        with writing(self._engine) as connection:
            known = select(canvas.c.launched_us).where(canvas.c.id == canvas_id)
            _keep(connection, canvas_id, stamp, findings, now_us)
            if connection.execute(known).scalar() is not None:
                return False  # another process has launched it meanwhile
            new = open_trouble(connection, SCOPE, canvas_id, code=SCOPE, sentence=sentence, now_us=now_us)
            if not new:
                put_off_probe(connection, SCOPE, canvas_id, now_us=now_us)
            return new

    def launched(self, canvas_id: str, stamp: str, findings: str, *, now_us: int) -> None:
        """Remember that a canvas is launched: from now on its people enter, whatever happens later."""
        with writing(self._engine) as connection:
            _keep(connection, canvas_id, stamp, findings, now_us)
            never = update(canvas).where(canvas.c.id == canvas_id, canvas.c.launched_us.is_(None))
            connection.execute(never.values(launched_us=now_us))
            close_trouble(connection, SCOPE, canvas_id, now_us=now_us)

    def last(self) -> dict[str, LastPreflight]:
        """Return the last preflight of each canvas that had one."""
        with reading(self._engine) as connection:
            return {row.canvas_id: LastPreflight(*row[1:]) for row in connection.execute(select(preflight))}

    def audiences(self, canvas_id: str) -> list[KnownAudience]:
        """Return the audiences the declared steps of a canvas name now, in the order of the steps."""
        with reading(self._engine) as connection:
            rows = connection.execute(
                select(*audience.c["id", "connection_id", "ad_account", "name", "criteo_id"])
                .join(step_version, step_version.c.audience_id == audience.c.id)
                .join(step, step.c.version_id == step_version.c.id)
                .where(step.c.canvas_id == canvas_id, step.c.declared)
                .order_by(step.c.position)
            ).all()
        return list(dict.fromkeys(KnownAudience(*row) for row in rows))

    def lease(self, audience_id: int, *, now_us: int, lease_s: float) -> bool:
        """Take the right to find or create one audience; False when it is known, or another process is at it."""
        with writing(self._engine) as connection:
            return bool(
                connection.execute(
                    update(audience)
                    .where(
                        audience.c.id == audience_id,
                        audience.c.criteo_id.is_(None),
                        audience.c.resolver_until_us <= now_us,
                    )
                    .values(resolver_until_us=now_us + round(lease_s * 1e6))
                ).rowcount
            )

    def ad_accounts_in_use(self) -> dict[str, set[str]]:
        """Return, by connection, the ad accounts that launched canvases' steps or people on their way need."""
        used: dict[str, set[str]] = {}
        query = select(audience.c.connection_id, audience.c.ad_account).where(_IN_USE).distinct()
        with reading(self._engine) as connection:
            for row in connection.execute(query):
                used.setdefault(row.connection_id, set()).add(row.ad_account)
        return used

    def last_used(self) -> dict[str, int]:
        """Return when each connection that is in use by launched canvases was last sent through."""
        query = (
            select(audience.c.connection_id, func.max(audience.c.served_us).label("used_us"))
            .where(_IN_USE)
            .group_by(audience.c.connection_id)
        )
        with reading(self._engine) as connection:
            # What was launched and never sent through was looked at when it was launched.
            launched_us = connection.execute(select(func.max(canvas.c.launched_us))).scalar() or 0
            return {row.connection_id: row.used_us or launched_us for row in connection.execute(query)}

    def seen_full(self, connection_id: str, ad_account: str, audiences: int, *, now_us: int) -> None:
        """Remember how many audiences an ad account has, as a search has just counted them."""
        key = {"connection_id": connection_id, "ad_account": ad_account}
        with writing(self._engine) as connection:
            _upsert(connection, fullness, key, {"audiences": audiences, "seen_us": now_us})
            place = f"{connection_id}/{ad_account}"
            if audiences >= WARN_FROM:
                sentence = nearly_full(ad_account, audiences)
                open_trouble(connection, "quota", place, code="quota", sentence=sentence, now_us=now_us)
            else:
                close_trouble(connection, "quota", place, now_us=now_us)

    def synced_since(self, connection_id: str, ad_account: str, since_us: int) -> set[str]:
        """Return the Criteo ids of the audiences of an ad account that people were sent to since then."""
        query = select(audience.c.criteo_id).where(
            audience.c.connection_id == connection_id,
            audience.c.ad_account == ad_account,
            audience.c.served_us >= since_us,
            audience.c.criteo_id.is_not(None),
        )
        with reading(self._engine) as connection:
            return {str(criteo_id) for criteo_id in connection.execute(query).scalars()}


def _keep(connection: Connection, canvas_id: str, stamp: str, findings: str, now_us: int) -> None:
    values = {"at_us": now_us, "stamp": stamp, "findings": findings}
    _upsert(connection, preflight, {"canvas_id": canvas_id}, values)


def _upsert(connection: Connection, table: Table, key: Mapping[str, object], values: Mapping[str, object]) -> None:
    row = insert_into(connection, table).values(**key, **values)
    connection.execute(row.on_conflict_do_update(index_elements=list(key), set_=dict(values)))
