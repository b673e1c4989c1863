"""Mutations: one line of the ledger's logic made wrong at a time; each must make a story go wrong.

``make mutations`` tells stories over each; one that survives is a gap in the simulator, and one that does not apply any
more has to follow the line it mutates.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parent.parent.parent
PACKAGE = Path("plugins/criteo_provider")
STORIES = 600


@dataclass(frozen=True)
class Mutation:
    """In ``room``, ``line`` (a piece of one line that is there once) becomes ``wrong``."""

    name: str
    room: str
    line: str
    wrong: str

    def apply(self, project: Path) -> None:
        """Make the line wrong in a copy of the package."""
        room = project / PACKAGE / self.room
        text = room.read_text()
        if text.count(self.line) != 1:
            found = text.count(self.line)
            raise LookupError(f"{self.name}: {self.room} has {found} times, not once: {self.line}")
        room.write_text(text.replace(self.line, self.wrong))


MUTATIONS = (
    # settle
    Mutation(
        "an answer settles what others hold by now",
        "store/settle.py",
        'rows = connection.execute(_HELD, {"request": claimed.request_id}).all()\n    if len(rows)',
        "query = select(part).where(part.c.id.in_([one.part_id for one in claimed.parts]))\n"
        "    rows = connection.execute(query.order_by(part.c.id)).all()\n    if len(rows)",
    ),
    Mutation(
        "a 429 counts as accepted",
        "store/settle.py",
        "reopen(connection, rows, now_us, attempts_back=1)\n            _probe_again",
        'close(connection, rows, {"state": PartState.ACCEPTED, "reason": None})\n            _probe_again',
    ),
    Mutation(
        "one invalid identifier makes all invalid",
        "store/settle.py",
        "if outcome.invalid and not outcome.valid:",
        "if outcome.invalid:",
    ),
    Mutation(
        "invalid identifiers Criteo does not name count as valid",
        "store/settle.py",
        "outcome.sample, refused) < outcome.invalid:",
        "outcome.sample, refused) < 0:",
    ),
    Mutation(
        "a lost answer is not in flight any more",
        "store/settle.py",
        'state = "unknown"',
        'state = "failed"',
    ),
    Mutation(
        "an answer heals nothing",
        "store/settle.py",
        "if connection.execute(_TROUBLES).first() is not None:",
        "if connection is None:",
    ),
    # deadline
    Mutation(
        "people are given up an hour early",
        "store/settle.py",
        ".where(part.c.state == PartState.OPEN, part.c.deadline_us <= _NOW, at_work())",
        ".where(part.c.state == PartState.OPEN, part.c.deadline_us <= _NOW + 3_600_000_000, at_work())",
    ),
    Mutation(
        "each attempt begins the patience anew",
        "store/claim.py",
        "deadline_us=func.coalesce(part.c.deadline_us, _NOW + _PATIENCE),",
        "deadline_us=_NOW + _PATIENCE,",
    ),
    Mutation(
        "who is past the deadline is sent all the same",
        "store/claim.py",
        "not_over = or_(part.c.deadline_us.is_(None), part.c.deadline_us > now_us)",
        "not_over = or_(part.c.deadline_us.is_(None), part.c.deadline_us > 0)",
    ),
    # claim
    Mutation(
        "both signs of an audience fly at once",
        "store/claim.py",
        "if wanted.operation.opposite.value not in in_flight.get(wanted.audience_id, ()):",
        "if wanted.operation.value not in in_flight.get(-1, ()):",
    ),
    Mutation(
        "a request whose answer was lost is no barrier",
        "store/claim.py",
        'or_(request.c.state == "in_flight", request.c.state == "unknown"),',
        'request.c.state == "in_flight",',
    ),
    Mutation(
        "what no file declares is sent",
        "store/claim.py",
        "part.c.due_us <= now_us, at_work(), mine,",
        "part.c.due_us <= now_us, mine,",
    ),
    Mutation(
        "whose owner has died is given up",
        "store/claim.py",
        ".values(state=PartState.OPEN, request_id=None, due_us=_NOW)",
        ".values(state=PartState.ERRORED, request_id=None, due_us=_NOW)",
    ),
    Mutation(
        "attempts are not counted",
        "store/claim.py",
        "attempts=part.c.attempts + 1,",
        "attempts=part.c.attempts,",
    ),
    Mutation(
        "who went ahead in a fuller request is sent twice",
        "store/intents.py",
        "left = subtract(spans_from_text(row.spans), people)",
        "left = spans_from_text(row.spans)",
    ),
    # order
    Mutation(
        "the first intent wins",
        "store/intents.py",
        "and (rival.intent_us, rival.upload_id) > (row.intent_us, row.upload_id)",
        "and (rival.intent_us, rival.upload_id) < (row.intent_us, row.upload_id)",
    ),
    Mutation(
        "superseded people are sent",
        "store/claim.py",
        "rows = drop_superseded(connection, rows, now_us=now_us)",
        "rows = list(rows)",
    ),
    Mutation(
        "a removal that was given up does not count",
        "store/intents.py",
        "part.c.state.in_((PartState.OPEN, PartState.ERRORED))",
        "part.c.state.in_((PartState.OPEN,))",
    ),
    # rests, opt-outs and re-queues
    Mutation(
        "a paused step is sent",
        "store/holding.py",
        "return and_(step.c.declared, step.c.held_us.is_(None))",
        "return and_(step.c.declared)",
    ),
    Mutation(
        "a rest costs patience",
        "store/holding.py",
        ".values(deadline_us=part.c.deadline_us + rested_us)",
        ".values(deadline_us=part.c.deadline_us - rested_us)",
    ),
    Mutation(
        "a known trouble starts the clock of people at rest",
        "store/holding.py",
        "part.c.due_us < now_us).values(due_us=now_us)",
        "part.c.due_us < now_us).values(due_us=part.c.due_us)",
    ),
    Mutation(
        "who has opted out is sent",
        "store/claim.py",
        "rows = close_opted_out(connection, rows, now_us=now_us)",
        "rows = list(rows)",
    ),
    Mutation(
        "who was sent before opting out stays",
        "store/withdraw.py",
        "for chunk_id, people in sorted(stretch.withdrawn.items()):",
        "for chunk_id, people in ():",
    ),
    Mutation(
        "whoever is re-queued is out of patience",
        "store/requeue.py",
        "deadline_us=None,",
        "deadline_us=now_us + 1,",
    ),
    # narrowing
    Mutation(
        "a refused chunk is bad as a whole",
        "store/narrow.py",
        "is_lone = len(rows) == 1 and rows[0].identifiers == 1",
        "is_lone = len(rows) == 1",
    ),
    Mutation(
        "the second half of a narrowing is forgotten",
        "store/narrow.py",
        "reopen(connection, rows[middle:], due_us, attempts_back=1, narrow_group=back, **again)",
        "reopen(connection, rows[:middle], due_us, attempts_back=1, narrow_group=back, **again)",
    ),
    # breakers
    Mutation(
        "a breaker lets everybody through",
        "store/troubles.py",
        "return all(self._due.get(key, True) for key in self._keys(audience_id, ad_account))",
        "return any(self._due.get(key, True) for key in self._keys(audience_id, ad_account))",
    ),
    Mutation(
        "a probe is not put off",
        "store/claim.py",
        "troubles.put_off(connection, lane.audience_id, lane.ad_account, now_us)",
        "pass",
    ),
    Mutation(
        "an answer that blames the list leaves the token in doubt",
        "store/settle.py",
        "vouch_for_wider(connection, scope, key, now_us=now_us)",
        "pass",
    ),
    # launches and deleted lists
    Mutation(
        "a canvas whose audience another process is at is launched without it",
        "wiring/launch.py",
        "            if not done and not failures:",
        "            if done is None:",
    ),
    Mutation(
        "a step that only removes makes its audience",
        "wiring/launch.py",
        "may_create = (audience.ad_account, audience.name) in added",
        "may_create = bool(audience.name)",
    ),
    Mutation(
        "a list made anew is not taken",
        "flow/resolve.py",
        "if criteo_id is not None and (created or criteo_id != known_id):",
        "if criteo_id is not None and criteo_id == known_id:",
    ),
    # enter and upload
    Mutation(
        "a cursor somebody else has moved is moved again",
        "store/cursors.py",
        'source_cursor.c.version == bindparam("held")',
        'source_cursor.c.version >= bindparam("held")',
    ),
    Mutation(
        "a lease that ends in flight is no hindrance",
        "flow/upload.py",
        "if self._now_us() + self._request_timeout_s * 1e6 >= claimed.lease_until_us:",
        "if self._now_us() < 0:",
    ),
)


def survives(mutation: Mutation, stories: int = STORIES) -> str | None:
    """Tell stories over a mutated copy; return how the first one went wrong, None when the mutation survives."""
    with tempfile.TemporaryDirectory(prefix="criteo-mutation-") as folder:
        copy = Path(folder)
        unread = shutil.ignore_patterns("__pycache__", "static")
        shutil.copytree(PROJECT / PACKAGE, copy / PACKAGE, ignore=unread)
        mutation.apply(copy)
        places = os.pathsep.join(map(str, (copy / "plugins", PROJECT)))
        done = subprocess.run(
            [sys.executable, "-m", "tests.simulator.run", "0", str(stories), "--as-they-are"],
            cwd=copy, env={**os.environ, "PYTHONPATH": places}, capture_output=True, text=True,
        )  # fmt: skip
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{mutation.name}: the stories were not told.\n{done.stderr[-2000:]}")
    return done.stdout if done.returncode else None


def main(words: list[str]) -> int:
    """Try all mutations (or those whose names hold one of the words), and print what became of each."""
    survivors = 0
    for mutation in MUTATIONS:
        if words and not any(word in mutation.name for word in words):
            continue
        found = survives(mutation)
        survivors += found is None
        told = "SURVIVES" if found is None else " ".join(found.split())[:110]
        print(f"{mutation.room:18}  {mutation.name:58}  {told}", flush=True)
    return min(survivors, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
