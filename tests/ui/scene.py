"""A small deployment to look at: a real ledger in which everything a page can show is the case, and its include folder.

- ``high_value_targeting``: 55 people, 49 synced, 6 not synced for two reasons, 1,200 pending, all of them on their
  way to its second step
- ``retargeting``: 30 people pending, because two audiences at Criteo have the name of its audience
- ``suppression``: 3 people wait for their audience to be created; its source cannot be read
- ``lookalike_seed``: declared in a file, and not launched
- ``winter_offer``: 12 people held in a step no file declares any more
- ``broken.yaml``: cannot be loaded
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from criteo_provider.core.outcome import Accepted
from criteo_provider.settings.load import load_canvases
from tests.world import World, canvas, crowd, digest, step

EXAMPLES = Path(__file__).parents[2] / "include"
LAUNCHED = ("high_value_targeting", "retargeting", "suppression")
AMBIGUOUS = "Two audiences have this name in ad account 1001. Rename one of them at Criteo."
SOURCE_DOWN = "The database of connection example_shop cannot be reached. Check host and port."


def make_include_folder(folder: Path) -> Path:
    """Make an include folder of the example canvases and one broken file; return it."""
    for name in ("canvases", "segments"):
        shutil.copytree(EXAMPLES / name, folder / name)
    text = (folder / "canvases" / "retargeting.yaml").read_text()
    (folder / "canvases" / "broken.yaml").write_text(text.replace("operation: add", "operation: put"))
    return folder


def make_ledger(url: str, include: Path) -> None:
    """Make the ledger of the scene."""
    world = World(url)
    world.now_us = time.time_ns() // 1_000
    files = [each.declaration for each in load_canvases(include).canvases if each.id in LAUNCHED]
    winter_offer = canvas("winter_offer", step("add_winter", audience="Winter"))
    world.declare(*files, winter_offer, resolve=False)
    for number, name in enumerate(("high_value_targeting", "winter_offer")):
        for plan in world.plans[name]:
            world.ledger.resolved(plan.audience_id, str(7_001 + number), created=True, now_us=world.now_us)
    _sync_some(world)
    world.enter("high_value_targeting", crowd(range(100, 1_300)))
    world.enter("retargeting", crowd(range(2_000, 2_030)))
    world.enter("suppression", crowd(range(3_000, 3_003)))
    world.enter("winter_offer", crowd(range(4_000, 4_012)))
    world.declare(*files, resolve=False)
    quiet = world.plans["retargeting"][0].audience_id
    world.ledger.trouble("audience", str(quiet), code="ambiguous", sentence=AMBIGUOUS, now_us=world.now_us)
    world.ledger.source_failed("suppression", SOURCE_DOWN, now_us=world.now_us)
    world.close()


def enter_more(url: str, include: Path, people: int) -> None:
    """Let more people enter ``high_value_targeting``."""
    world = World(url)
    world.now_us = time.time_ns() // 1_000
    world.declare(*[each.declaration for each in load_canvases(include).canvases if each.id in LAUNCHED], resolve=False)
    world.enter("high_value_targeting", crowd(range(10_000, 10_000 + people)))
    world.close()


def _sync_some(world: World) -> None:
    """Send 55 people: five have nothing to be matched by, and Criteo calls one invalid."""
    world.enter("high_value_targeting", crowd(range(55), lacking=range(5)))
    claimed = world.claim()
    assert claimed is not None
    world.settle(claimed, Accepted(49, 1, sample=(digest(7).hex(),)))
