"""What is not to be sent any more: fields no longer chosen, and steps a person has dropped.

Parts in flight cannot be closed at the moment of an edit, and a process that has not seen it yet may seal people under
the files of before; so whatever makes parts open asks here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

import msgspec
from sqlalchemy import Connection, bindparam, select, update

from criteo_provider.core.identifiers import Form
from criteo_provider.core.model import PartState, Reason
from criteo_provider.store.schema import part, step, step_version
from criteo_provider.store.standings import slices


def close_unwanted(connection: Connection, stage_ids: Collection[int]) -> int:
    """Close those waiting or open parts of these stages that nobody wants sent; the caller refolds the stages.

    What people were added under before is taken out whatever the fields of the removal are.
    """
    doomed: dict[Reason, list[int]] = defaultdict(list)
    for ids in slices(sorted(stage_ids)):
        for row in connection.execute(_STILL_TO_BE_SENT, {"stages": list(ids)}):
            if row.dropped_upto is not None and row.stage_id <= row.dropped_upto:
                doomed[Reason.DROPPED].append(row.id)
            elif row.earlier_id is None and Form(row.form).field not in msgspec.json.decode(row.fields):
                doomed[Reason.FIELD_NO_LONGER_CHOSEN].append(row.id)
    closed = 0
    for reason, part_ids in doomed.items():
        for ids in slices(sorted(part_ids)):
            # Whoever was claimed since they were looked at is in flight: their settlement asks here again.
            values = {"state": PartState.CLOSED, "reason": reason}
            closed += connection.execute(_STILL_HERE, {"parts": list(ids), **values}).rowcount
    return closed


_IS_TO_BE_SENT = part.c.state.in_((PartState.WAITING, PartState.OPEN))
_STILL_HERE = update(part).where(part.c.id.in_(bindparam("parts", expanding=True)), _IS_TO_BE_SENT)
_STILL_TO_BE_SENT = (
    select(part.c.id, part.c.stage_id, part.c.form, part.c.earlier_id, step.c.dropped_upto, step_version.c.fields)
    .join(step, step.c.id == part.c.step_id)
    .join(step_version, step_version.c.id == step.c.version_id)
    .where(part.c.stage_id.in_(bindparam("stages", expanding=True)), _IS_TO_BE_SENT)
)


def open_stages(connection: Connection, step_id: int) -> list[int]:
    """Return the stages of a step that hold waiting or open parts, also those that come back just now."""
    # Who gives a part back has it locked, and may have asked what is wanted before the edit: they end first.
    connection.execute(_IN_FLIGHT, {"step": step_id})
    return sorted(set(connection.execute(_STAGES_TO_BE_SENT, {"step": step_id}).scalars()))


_OF_STEP = part.c.step_id == bindparam("step")
_IN_FLIGHT = select(part.c.id).where(_OF_STEP, part.c.state == PartState.CLAIMED).order_by(part.c.id).with_for_update()
_STAGES_TO_BE_SENT = select(part.c.stage_id).where(_OF_STEP, _IS_TO_BE_SENT)
