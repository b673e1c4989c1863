"""Stories: from a seed, as data that can be read, shortened and pasted into a test."""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random
from typing import Any
from unittest.mock import patch

from criteo_provider.core.model import MAX_IDENTIFIERS
from criteo_provider.store import claim
from tests.simulator.criteo import ANSWERS, WEATHERS, WIRE
from tests.simulator.databases import Database
from tests.simulator.hearing import Broken
from tests.simulator.surroundings import LATER
from tests.simulator.telling import Story, Telling

Event = tuple[Any, ...]
CANVASES = ("in", "in", "out", "tour")
ANSWERS_BUT_OK = tuple(name for name in (*ANSWERS, *WIRE) if name != "ok")
WHILES = (0.000001, 1, 7, 31, 41, 61, 101, 131, 700, 3601, 6 * 3600, 12.9 * 3600, 13 * 3600)
DATABASE = ("busy", "disk full", "serialization", "answer lost")
FIRST_SHAPES = ("slow", "lost after", "lost before", "503", "429 named")
# What a story may be about; each has a few of these, so that rare things meet.
FAULTS = ("answers", "slow", "weather", "kills", "freezes", "database", "edits", "jumps", "patience")
# What people decide meanwhile: every fourth story may be about this, too, for it takes twice as long to tell.
DECISIONS = ("opt-outs", "pauses", "re-queues")
WITH_DECISIONS = 4
# What becomes of lists: one of these is in every sixteenth story, which takes twice as long to tell, too.
LISTS = ("launches", "deletions")
WITH_LISTS = 16
# In every fifth story a request has room for three identifiers, so that chunks are cut.
WITH_SMALL_REQUESTS = 5
STEPS = ("add", "remove", "join", "leave")


def story_of(seed: int) -> list[Event]:
    """The story of a seed."""
    return _Teller(seed).tell()


def shortest(story: Story, goes_wrong: Callable[[Story], bool]) -> list[Event]:
    """Drop events as long as it goes wrong all the same: halves first, then smaller pieces, then single ones."""
    left, piece = list(story), max(1, len(story) // 2)
    while True:
        at, shortened = 0, False
        while at < len(left):
            shorter = left[:at] + left[at + piece :]
            if goes_wrong(shorter):
                left, shortened = shorter, True
            else:
                at += piece
        if piece == 1 and not shortened:
            return left
        piece = max(1, piece // 2)


def complaint(database: Database, story: Story, *, seed: int = 0, thorough: bool = True) -> str | None:
    """Tell a story; return what went wrong, None when all was well."""
    telling = Telling(database, seed, thorough=thorough)
    room = 3 if seed % WITH_SMALL_REQUESTS == 2 else MAX_IDENTIFIERS
    try:
        with patch.multiple(claim, MAX_IDENTIFIERS=room, WORTH_CUTTING=-(-room // 10)):
            telling.tell(story)
    except Broken as broken:
        return f"after event {telling.told} of {len(story)}: {broken}"
    return None


def report(database: Database, seed: int) -> str | None:
    """Tell the story of a seed; when it goes wrong, return it as short as it can be, ready to be pasted in a test."""
    found = complaint(database, story_of(seed), seed=seed, thorough=seed % THOROUGH_EVERY == 0)
    if found is None:
        return None
    story = shortest(story_of(seed), lambda shorter: law_of(complaint(database, shorter, seed=seed)) == law_of(found))
    lines = "".join(f"    {event!r},\n" for event in story)
    again = complaint(database, story, seed=seed)
    return f"Seed {seed} went wrong {found}\n\nIn short, {again}\n\nSTORY = [\n{lines}]  # told with seed {seed}\n"


_WHOSE = re.compile(r"\([^()]*\)|\[[^][]*\]|\{[^{}]*\}|'[^']*'|\d+")


def law_of(found: str | None) -> str | None:
    """The law a complaint is about, whoever and how many have broken it."""
    law, longer = (found or "").partition("\n")[0], None
    while law != longer:
        law, longer = _WHOSE.sub("", law), law
    return " ".join(law.split()) or None


# So many stories are also looked at through the ledger's own proof and the numbers of readers after every event.
THOROUGH_EVERY = 16


class _Teller:
    def __init__(self, seed: int) -> None:
        self.chance = Random(seed)
        chosen = (*FAULTS, *DECISIONS) if seed % WITH_DECISIONS == 0 else FAULTS
        self.faults = set(self.chance.sample(chosen, self.chance.randint(1, 4)))
        if seed % WITH_LISTS == 3:
            self.faults.add(self.chance.choice(LISTS))
        self.story: list[Event] = []

    def tell(self) -> list[Event]:
        chance, add = self.chance, self.story.append
        if chance.random() < 0.5:
            # A narrowing is ten times as many requests as a story has without it.
            add(("criteo", chance.choice(("all", "all", "one", "none")), chance.random() < 0.25))
        if "launches" in self.faults:
            add(("newcomers",))
        self._arrivals()
        for _ in range(chance.randint(1, 5)):
            if "weather" in self.faults and chance.random() < 0.6:
                add(("weather", chance.choice((*WEATHERS, None))))
            if "edits" in self.faults and chance.random() < 0.3:
                self._edit()
            if "pauses" in self.faults and chance.random() < 0.5:
                add(("pause", *chance.sample(STEPS, chance.randint(0, 2))))
            if chance.random() < 0.4:
                self._arrivals()
            if "opt-outs" in self.faults and chance.random() < 0.4:
                self._opt_outs()
            self._work()
            if "launches" in self.faults:
                self._launches()
            if "deletions" in self.faults and chance.random() < 0.6:
                self._deletion()
            if "opt-outs" in self.faults and chance.random() < 0.6:
                self._opt_outs()
            if "re-queues" in self.faults and chance.random() < 0.6:
                self._given_up()
            if chance.random() < 0.6:
                add(("pass", chance.choice(WHILES[-4:] if "patience" in self.faults else WHILES[:-3])))
            if "jumps" in self.faults and chance.random() < 0.2:
                add(("jump", chance.choice((-300, -30, 45, 600, 7200))))
        return self.story

    def _arrivals(self) -> None:
        chance = self.chance
        for canvas_id in chance.sample(("in", "out", "tour"), chance.randint(1, 2)):
            self.story.append(("rows", canvas_id, *(self._somebody() for _ in range(chance.randint(1, 5)))))
            self.story.append(("enter", chance.choice("ab"), canvas_id))
            if chance.random() < 0.5:
                self._on()

    def _somebody(self) -> int:
        """One of ten people, now and then under another address."""
        return self.chance.randrange(10) + 10 * (self.chance.random() < 0.2)

    def _work(self) -> None:
        """Some processes do something, and meet what the story is about."""
        chance, add = self.chance, self.story.append
        for _ in range(chance.randint(1, 2)):
            name = chance.choice("aabc")
            add((chance.choice(("upload", "upload", "upload", "keep", "resolve")), name))
            if "answers" in self.faults:
                self.story += [("answer", chance.choice(ANSWERS_BUT_OK)) for _ in range(chance.randint(0, 2))]
            if "slow" in self.faults and chance.random() < 0.6:
                add(("answer", chance.choice(FIRST_SHAPES)))
            if "database" in self.faults and chance.random() < 0.5:
                add(("database", chance.choice(DATABASE)))
            self._on()
            if "slow" in self.faults and chance.random() < 0.7:
                add(("deliver", chance.randrange(3)))
            if "kills" in self.faults and chance.random() < 0.4:
                add(("kill", name))
            if "freezes" in self.faults and chance.random() < 0.4:
                add(("freeze", name))
                add(("pass", chance.choice((41, 131, 700))))
                add((chance.choice(("upload", "keep")), chance.choice("abc")))
                self._on()
                add(("wake", name))
                self._on()

    def _on(self) -> None:
        """Threads go on: a few steps of any, or all of them until they wait."""
        chance = self.chance
        if chance.random() < 0.5:
            self.story.append(("run", chance.randrange(4)))
        else:
            self.story += [("step", chance.randrange(6)) for _ in range(chance.randint(1, 9))]

    def _launches(self) -> None:
        """Canvases that are not launched yet get people, and processes that launch them, perhaps two at once."""
        chance, add = self.chance, self.story.append
        for canvas_id in chance.sample(LATER, chance.randint(1, 2)):
            add(("rows", canvas_id, *(self._somebody() for _ in range(chance.randint(1, 3)))))
            for name in chance.sample("abc", chance.randint(1, 2)):
                add(("launch", name, canvas_id))
                if chance.random() < 0.4:
                    add(("answer", chance.choice(ANSWERS_BUT_OK)))
                if chance.random() < 0.2:
                    add(("database", chance.choice(DATABASE)))
                self._on()
                if chance.random() < 0.3:
                    add(("kill", name))
        add((chance.choice(("resolve", "upload")), chance.choice("abc")))
        self._on()

    def _deletion(self) -> None:
        """Somebody deletes a list at Criteo, and a file may say that it is made anew; a process may die over that."""
        chance, add = self.chance, self.story.append
        for work in ("resolve", "upload") if chance.random() < 0.7 else ():
            add((work, chance.choice("abc")))
            self._on()
        add(("recreate", chance.random() < 0.8))
        add(("delete", chance.choice(("Shoppers", "Shoppers", "Others"))))
        self._arrivals()
        for work in chance.choices(("upload", "resolve", "keep"), k=chance.randint(1, 4)):
            name = chance.choice("abc")
            add((work, name))
            self._on()
            if chance.random() < 0.3:
                add(("kill", name))
            if chance.random() < 0.4:
                add(("pass", chance.choice((61, 131, 700))))

    def _opt_outs(self) -> None:
        """Some people withdraw consent or give it anew, and a process reads so and takes out whom that is about."""
        chance, add = self.chance, self.story.append
        add(("asked", chance.random() < 0.25, *chance.sample(range(10), chance.randint(1, 3))))
        for work in ("withdraw", "follow"):
            if chance.random() < 0.7:
                add((work, chance.choice("abc")))
                if "database" in self.faults and chance.random() < 0.3:
                    add(("database", chance.choice(DATABASE)))
                self._on()

    def _given_up(self) -> None:
        """Criteo is out of reach for longer than anybody's patience; somebody asks for those people again."""
        chance, add = self.chance, self.story.append
        add(("weather", chance.choice(("401", "403", "503", "gone", "revoked"))))
        for work in ("resolve", "upload", "keep"):
            add((work, chance.choice("ab")))
            add(("run", 0))
        add(("pass", chance.choice(WHILES[-3:])))
        if chance.random() < 0.7:
            add(("keep", "c"))
            self._on()
        if chance.random() < 0.6:
            add(("weather", None))
        add(("requeue", chance.choice((None, *CANVASES))))

    def _edit(self) -> None:
        chance, add = self.chance, self.story.append
        fields = chance.choice((("email", "madid"), ("email",)))
        add(("edit", fields, chance.choice(("Shoppers", "Others")), chance.random() < 0.6, chance.random() < 0.6))
        if chance.random() < 0.3:
            add(("drop",))
