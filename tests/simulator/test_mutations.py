"""The simulator sees: what is made wrong on purpose goes wrong in a story."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.simulator.mutations import MUTATIONS, PACKAGE, PROJECT, Mutation, survives

A_FEW = ("a 429 counts as accepted", "the first intent wins", "both signs of an audience fly at once")


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_every_mutation_still_applies(tmp_path: Path, mutation: Mutation) -> None:
    """The line a mutation makes wrong is there, once, and what comes of it is Python."""
    room = tmp_path / PACKAGE / mutation.room
    room.parent.mkdir(parents=True)
    shutil.copy(PROJECT / PACKAGE / mutation.room, room)
    mutation.apply(tmp_path)
    compile(room.read_text(), str(room), "exec")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutation", [one for one in MUTATIONS if one.name in A_FEW], ids=lambda one: one.name)
def test_a_mutation_is_noticed(mutation: Mutation) -> None:
    """A story over the mutated ledger goes wrong; `make mutations` tries all of them."""
    assert survives(mutation) is not None
