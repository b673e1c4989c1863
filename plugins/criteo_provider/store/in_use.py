"""In use: what declared steps name, or people are still on their way to; troubles of anything else are over."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, Select, and_, func, or_, select

from criteo_provider.core.consent import FEED_PREFIX
from criteo_provider.core.model import PartState, StageState
from criteo_provider.store.schema import audience, canvas, part, stage, step, step_version, trouble
from criteo_provider.store.troubles import HOLDING, close_trouble, concerns


def in_use(*which: ColumnElement[bool]) -> ColumnElement[bool]:
    """The condition on audiences that a declared step (of canvases ``which``) names them, or people wait for them."""
    named = (
        select(step_version.c.audience_id)
        .join(step, step.c.version_id == step_version.c.id)
        .join(canvas, canvas.c.id == step.c.canvas_id)
        # The steps of a feed stay declared for ever; they need an audience while somebody is to be removed from it.
        .where(step.c.declared, ~canvas.c.id.startswith(FEED_PREFIX, autoescape=True), *which)
    )
    # Whoever entered under an older version, or is held by a step that is gone, is sent where that version says.
    pending = select(part.c.id).where(part.c.audience_id == audience.c.id, part.c.state == PartState.OPEN).exists()
    in_flight = select(part.c.audience_id).where(part.c.state == PartState.CLAIMED)
    delayed = (
        select(step_version.c.audience_id)
        .join(stage, stage.c.version_id == step_version.c.id)
        .join(step, step.c.id == stage.c.step_id)
        .where(stage.c.state == StageState.WAITING, stage.c.id > func.coalesce(step.c.dropped_upto, 0))
    )
    return or_(audience.c.id.in_(named), pending, audience.c.id.in_(in_flight), audience.c.id.in_(delayed))


def close_unused(connection: Connection, *, now_us: int) -> None:
    """Close the troubles of sources, connections, ad accounts and audiences that are not in use; nobody probes those.

    What time makes ends with time, and the troubles of feeds end with their files (``wiring.consent``).
    """
    for row in connection.execute(_UNUSED).all():
        close_trouble(connection, row.scope, row.key, now_us=now_us, is_unused=True)


def _unused() -> Select[tuple[str, str]]:
    declared = select(canvas.c.id).where(canvas.c.declared)
    of_canvas = and_(
        trouble.c.scope.in_(("source", "launch")),
        ~trouble.c.key.startswith(FEED_PREFIX, autoescape=True),
        trouble.c.key.not_in(declared),
    )
    nearly_full = and_(
        trouble.c.scope == "quota", trouble.c.key == audience.c.connection_id + "/" + audience.c.ad_account
    )
    needed = select(audience.c.id).where(or_(concerns(), nearly_full), in_use()).exists()
    of_audiences = and_(trouble.c.scope.in_((*HOLDING, "quota")), ~needed)
    return select(trouble.c.scope, trouble.c.key).where(or_(of_canvas, of_audiences))


_UNUSED = _unused()
