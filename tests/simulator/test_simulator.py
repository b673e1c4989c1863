"""Whatever happens in whatever order: nobody is lost or counted twice, and the lists end as the last intents say.

A seed is a story, the same each time it is told. One that goes wrong is printed as short as it can be, ready to be
pasted below; ``python -m tests.simulator.run 10000 20000`` tells others than CI does.
"""

from __future__ import annotations

import pytest

from tests.simulator.databases import Database, InMemory, OnPostgres
from tests.simulator.stories import complaint, law_of, report, shortest, story_of

# Stories that once went wrong.
ONCE_WRONG = {
    "an audience that is not named any more, and whose people were given up, is no trouble": [
        ("edit", ("email", "madid"), "Others", True, True),
        ("rows", "in", 1, 2),
        ("enter", "a", "in"),
        ("run", 0),
        ("resolve", "a"),
        ("run", 0),
        ("answer", "gone"),
        ("upload", "a"),
        ("run", 0),
        ("pass", 50_000),
        ("keep", "a"),
        ("run", 0),
        ("edit", ("email", "madid"), "Shoppers", True, True),
    ],
    "a COMMIT that fails leaves its transaction to nobody": [
        ("database", "disk full"),
        ("keep", "a"),
        ("run", 0),
        ("keep", "a"),
        ("run", 0),
    ],
    "who was sent in a request that is narrowed leaves the list when opting out": [
        ("criteo", "none", False),
        ("rows", "in", 2, 6, 5, 6, 9),
        ("enter", "a", "in"),
        ("step", 0),
        ("resolve", "a"),
        ("run", 3),
        ("asked", False, 5),
    ],
    "a trouble noted before the clock was set back lends nobody patience": [
        ("rows", "in", 6, 6, 19, 5),
        ("enter", "a", "in"),
        ("answer", "401"),
        ("run", 2),
        ("resolve", "a"),
        ("rows", "out", 17, 2, 6, 5),
        ("enter", "b", "out"),
        ("step", 0),
        ("upload", "a"),
        ("run", 3),
        ("jump", -30),
        ("rows", "out", 16, 7),
        ("enter", "a", "out"),
        ("keep", "a"),
    ],
    "whom a late request may have undone is sent once more, and taken, before the first try is settled": [
        ("rows", "out", 14, 4, 1),
        ("enter", "b", "out"),
        ("rows", "in", 4),
        ("enter", "b", "in"),
        ("run", 2),
        ("resolve", "a"),
        ("answer", "slow"),
        ("step", 3),
        ("step", 2),
        ("upload", "a"),
        ("rows", "tour", 8, 9),
        ("enter", "a", "tour"),
        ("run", 0),
        ("answer", "503"),
        ("pass", 46800),
        ("keep", "b"),
        ("run", 2),
    ],
    "who has left is not added back when the removal was given up unsent": [
        ("rows", "in", 6, 19, 3, 6),
        ("enter", "b", "in"),
        ("rows", "out", 5, 6, 7, 6, 2),
        ("enter", "a", "out"),
        ("run", 0),
        ("weather", "503"),
        ("resolve", "b"),
        ("run", 0),
        ("pass", 46440.0),
        ("pass", 46440.0),
        ("keep", "c"),
        ("run", 3),
        ("requeue", "in"),
    ],
    "a token that works again is not doubted because the list is gone, which is made anew in time": [
        ("criteo", "none", True),
        ("rows", "in", 6, 5),
        ("enter", "a", "in"),
        ("run", 1),
        ("resolve", "a"),
        ("run", 0),
        ("upload", "b"),
        ("run", 3),
        ("delete", "Shoppers"),
        ("pass", 700),
        ("answer", "401"),
        ("step", 0),
        ("step", 3),
        ("step", 4),
        ("step", 5),
        ("step", 3),
        ("step", 2),
        ("step", 5),
        ("step", 5),
        ("pass", 700),
        ("run", 1),
        ("pass", 700),
    ],
    "a trouble that stood while a step rested costs no patience": [
        ("rows", "in", 2),
        ("enter", "a", "in"),
        ("pause", "add"),
        ("rows", "tour", 1),
        ("enter", "a", "tour"),
        ("run", 0),
        ("weather", "gone"),
        ("resolve", "a"),
        ("run", 0),
        ("upload", "a"),
        ("run", 0),
        ("pass", 46800),
        ("pause",),
        ("keep", "a"),
        ("run", 0),
    ],
    "consent withdrawn and given anew closes what was entered before, also if the clock was set back since": [
        ("rows", "tour", 5, 14),
        ("enter", "a", "tour"),
        ("run", 0),
        ("jump", -30),
        ("asked", False, 4),
        ("withdraw", "b"),
        ("run", 0),
        ("follow", "b"),
        ("run", 0),
        ("asked", True, 4),
    ],
    "a deleted list no file names any more is looked for until whoever waits for it is given up": [
        ("edit", ("email", "madid"), "Others", True, True),
        ("rows", "in", 5, 5),
        ("enter", "a", "in"),
        ("edit", ("email", "madid"), "Shoppers", True, True),
        ("resolve", "c"),
        ("run", 2),
        ("delete", "Others"),
    ],
}


@pytest.mark.timeout(900)
def test_any_story_on_sqlite(in_memory: InMemory, seeds: range) -> None:
    """The laws hold after every event, and at the end numbers and lists are as the oracle says."""
    _tell(in_memory, seeds)


@pytest.mark.timeout(900)
def test_any_story_on_postgres(on_postgres: OnPostgres, postgres_seeds: range) -> None:
    """The same on PostgreSQL."""
    _tell(on_postgres, postgres_seeds)


@pytest.mark.parametrize("what", ONCE_WRONG)
def test_what_once_went_wrong(in_memory: InMemory, what: str) -> None:
    """A story that has found a bug is well now, and stays so."""
    assert complaint(in_memory, ONCE_WRONG[what]) is None


def test_a_seed_is_a_story(in_memory: InMemory) -> None:
    """A story told twice is the same to the letter, down to every row of the ledger."""
    tables = ("part", "request", "metric", "stage", "stage_exception", "audience", "news")
    ledgers = []
    for _ in range(2):
        assert complaint(in_memory, story_of(7), seed=7) is None
        ledgers.append([in_memory.rows(f"SELECT * FROM {table}") for table in tables])
    assert ledgers[0] == ledgers[1]


def test_a_story_is_told_in_short() -> None:
    """Of a long story, only what makes it go wrong is left."""
    story = [("pass", number) for number in range(50)]
    assert shortest(story, lambda told: {("pass", 7), ("pass", 31)} <= set(told)) == [("pass", 7), ("pass", 31)]


def test_a_story_keeps_to_what_it_is_about() -> None:
    """Two complaints are of one law whoever has broken it, and of two where the laws differ."""
    one = "after event 15 of 14: (3, 'madid', 0, 0) has more patience than its canvas.\nAnd more."
    other = "after event 2 of 7: (2, 'email_sha256', 1, 0) has more patience than its canvas."
    assert law_of(one) == law_of(other)
    assert law_of(one) not in (law_of("after event 2 of 7: (2, 'madid', 1, 0) is given up too early."), law_of(None))


def _tell(database: Database, seeds: range) -> None:
    for seed in seeds:
        found = report(database, seed)
        if found is not None:
            pytest.fail(found, pytrace=False)
