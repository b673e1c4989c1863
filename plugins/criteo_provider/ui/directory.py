"""Whose numbers they are: canvas, owner, connection and audience of each step, as the ledger knows them."""

from __future__ import annotations

from dataclasses import dataclass, field

from sqlalchemy import Engine, select

from criteo_provider.store.engine import reading
from criteo_provider.store.launches import LastPreflight, Launches
from criteo_provider.store.schema import audience, canvas, step, step_version


@dataclass(frozen=True, slots=True)
class Place:
    """Where a step stands; ``criteo_id`` is None until the audience was found or created at Criteo."""

    canvas_name: str
    owner: str
    canvas_declared: bool
    connection_id: str
    audience_id: int
    criteo_id: str | None
    launched: bool = True


@dataclass(frozen=True, slots=True)
class Directory:
    """The places of steps by (canvas id, step id), audiences (name, ad account) by ledger id, and last preflights."""

    places: dict[tuple[str, str], Place]
    audiences: dict[int, tuple[str, str]]
    preflights: dict[str, LastPreflight] = field(default_factory=dict)


def read_directory(engine: Engine) -> Directory:
    """Read the directory from the ledger."""
    steps = (
        select(
            step.c.canvas_id,
            step.c.name,
            canvas.c.name.label("canvas_name"),
            canvas.c.owner,
            canvas.c.declared,
            audience.c.connection_id,
            audience.c.id.label("audience_id"),
            audience.c.criteo_id,
            canvas.c.launched_us.is_not(None),
        )
        .join(canvas, canvas.c.id == step.c.canvas_id)
        .join(step_version, step_version.c.id == step.c.version_id)
        .join(audience, audience.c.id == step_version.c.audience_id)
    )
    with reading(engine) as connection:
        places = {(row.canvas_id, row.name): Place(*row[2:]) for row in connection.execute(steps)}
        named = connection.execute(select(audience.c.id, audience.c.name, audience.c.ad_account))
        audiences = {row.id: (row.name, row.ad_account) for row in named}
    return Directory(places, audiences, Launches(engine).last())
