"""Agreement: what no single canvas can know, such as two steps of one audience that say different things of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from criteo_provider.settings.canvas import Canvas
from criteo_provider.settings.problems import Problem


def disagreements(canvases: Mapping[Path, Canvas]) -> Iterator[tuple[Canvas, Problem]]:
    """Find steps that say another ``when_deleted`` than an earlier step of the same audience; files by shown path."""
    said: dict[tuple[str, str, str], tuple[str, str]] = {}
    for file, canvas in canvases.items():
        for at, step in enumerate(canvas.steps):
            sync = step.audience_sync
            if sync is None or sync.when_deleted is None:
                continue
            key = canvas.connection, sync.ad_account, sync.audience
            policy, where = said.setdefault(key, (sync.when_deleted.value, f"step {step.id} of canvas {canvas.id}"))
            if policy != sync.when_deleted.value:
                place = f"steps[{at}].audience_sync.when_deleted (step {step.id})"
                what = f"disagrees with {where}, which says {policy} for the same audience."
                yield canvas, Problem(file, place, what, "Say the same in both, or in one of them only.")
