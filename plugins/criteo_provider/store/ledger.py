"""The ledger: each verb is one transaction. Enter and upload meet here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from sqlalchemy import Connection, Engine, Row, event, not_, select, update
from sqlalchemy.exc import DBAPIError

from criteo_provider.core import identifiers as forms
from criteo_provider.core.model import (
    CanvasDeclaration,
    ClaimedPart,
    ClaimedRequest,
    SealedPeople,
    Span,
    StepPlan,
)
from criteo_provider.core.outcome import Outcome
from criteo_provider.core.ports import CursorHold, Json, Look
from criteo_provider.core.spans import slots
from criteo_provider.store import (
    alarms,
    audiences,
    cursors,
    declare,
    earlier,
    gone,
    intents,
    laws,
    metrics,
    seal,
    settle,
    streams,
    troubles,
)
from criteo_provider.store import claim as claiming
from criteo_provider.store.backlogs import Backlogs
from criteo_provider.store.clock import caught_up, is_over
from criteo_provider.store.engine import looking, reading, writing
from criteo_provider.store.just_sealed import JustSealed
from criteo_provider.store.keeping import Keeping
from criteo_provider.store.launches import Launches
from criteo_provider.store.opt_out_verbs import OptOuts
from criteo_provider.store.requeue import Requeues
from criteo_provider.store.schema import audience, trouble

T = TypeVar("T")
_TRIES = 5
# PostgreSQL ends one of two transactions that wait for each other; doing it again is the cure.
_REPEATABLE = {"40P01", "40001"}


class Ledger:
    """All that is known of chunks, stages, uploads and cursors; thread-safe, one engine.

    Its only state is what it need not read back, because it was sealed here a moment ago.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._just_sealed = JustSealed()
        event.listen(engine, "connect", lambda *_: self._just_sealed.forget())
        self.opt_outs = OptOuts(engine, self._write)
        self.keeping = Keeping(engine, self._write)
        self.requeues = Requeues(engine, self._write)
        self.backlogs = Backlogs(engine, self._write)

    # --- canvases

    def declare(
        self, declarations: Sequence[CanvasDeclaration], *, broken: Collection[str] = (), now_us: int
    ) -> dict[str, tuple[StepPlan, ...]]:
        """Make the ledger agree with all canvas files there are; return the step plans per canvas."""
        return self._write(lambda connection: declare.declare(connection, declarations, broken=broken, now_us=now_us))

    @property
    def launches(self) -> Launches:
        """Which canvases were launched, and what stood in their way."""
        return Launches(self.engine)

    def drop(self, canvas_id: str, step_name: str, *, now_us: int) -> int:
        """Give up the people held in a step that is no longer declared; return how many parts were closed."""
        return self._write(lambda connection: declare.drop(connection, canvas_id, step_name, now_us=now_us))

    # --- enter

    def hold_cursor(self, canvas_id: str, owner: str, *, now_us: int, lease_s: float) -> CursorHold | None:
        """Take the right to read a source, None while another process has it; an expired lease may be taken."""
        return self._write(
            lambda connection: cursors.hold(connection, canvas_id, owner, now_us=now_us, lease_s=lease_s)
        )

    def release_cursor(self, hold: CursorHold) -> None:
        """Let another process read this source."""
        self._write(lambda connection: cursors.release(connection, hold))

    def source_failed(self, canvas_id: str, sentence: str, *, now_us: int) -> None:
        """Remember that a source cannot be read; its cursor stays, and it is tried again less and less often."""
        self.trouble("source", canvas_id, code="source-failed", sentence=sentence, now_us=now_us)

    def seal(
        self,
        hold: CursorHold,
        people: SealedPeople,
        steps: Sequence[StepPlan],
        *,
        position: Json,
        units: Sequence[str],
        looks: Sequence[Look],
        now_us: int,
    ) -> CursorHold:
        """Write a chunk, all that follows from it, and the cursor behind it; LostClaim when the cursor moved."""

        def verb(connection: Connection) -> tuple[CursorHold, int | None]:
            moved = cursors.move(connection, hold, position, now_us=now_us)
            cursors.complete_units(connection, hold.canvas_id, units, now_us=now_us)
            for wanted in looks:
                cursors.keep_look(connection, hold.canvas_id, wanted, now_us=now_us)
            return moved, seal.seal(connection, hold.canvas_id, people, steps, now_us=now_us, intent_us=hold.since_us)

        moved, chunk_id = self._write(verb)
        if chunk_id is not None:
            self._just_sealed.keep(chunk_id, people.forms)
        return moved

    def seal_late(
        self,
        look_id: int,
        canvas_id: str,
        people: SealedPeople,
        steps: Sequence[StepPlan],
        *,
        again: Look | None,
        now_us: int,
    ) -> None:
        """Write the people a second look has found, and end that look; LostClaim when another process did."""

        def verb(connection: Connection) -> None:
            cursors.end_look(connection, look_id)
            if again is not None:
                cursors.keep_look(connection, canvas_id, again, now_us=now_us)
            seal.seal(connection, canvas_id, people, steps, now_us=now_us)

        self._write(verb)

    def due_looks(self, canvas_id: str, *, now_us: int, limit: int = 20) -> list[tuple[int, Look]]:
        """Return stretches of a source that are to be read again now, oldest first."""
        with looking(self.engine) as connection:
            return cursors.due_looks(connection, canvas_id, now_us=now_us, limit=limit)

    def completed_units(self, canvas_id: str, units: Collection[str]) -> set[str]:
        """Return those of ``units`` that were read to their end before."""
        with looking(self.engine) as connection:
            return cursors.completed_units(connection, canvas_id, list(units))

    def position(self, canvas_id: str) -> Json:
        """Return where the cursor of a canvas stands."""
        with looking(self.engine) as connection:
            return cursors.position(connection, canvas_id)

    def enter_due_steps(self, *, now_us: int) -> int:
        """Let people reach the steps whose delays are over; return how many stages that were."""
        return self._write(lambda connection: seal.enter_due_steps(connection, now_us=now_us))

    # --- upload

    def claim(self, terms: claiming.ClaimTerms, *, now_us: int) -> ClaimedRequest | None:
        """Claim the next request, or None when nothing may be sent now."""

        def verb(connection: Connection) -> ClaimedRequest | None:
            to_look_up.extend(earlier.stages_to_look_up(connection, now_us=now_us))
            return None if to_look_up else claiming.claim(connection, terms, now_us=now_us)

        to_look_up: list[int] = []
        claimed = self._write(verb)
        if not to_look_up:
            return claimed
        with reading(self.engine) as connection:
            found = earlier.look_up(connection, to_look_up)
        self._write(lambda connection: earlier.keep(connection, found, now_us=now_us))
        return self._write(lambda connection: claiming.claim(connection, terms, now_us=now_us))

    def items(self, wanted: ClaimedPart) -> list[bytes]:
        """Return the stored values of one part, in order, duplicates included."""
        return forms.decode(self.packed(wanted), forms.Form(wanted.form))

    def packed(self, wanted: ClaimedPart) -> bytes:
        """Return the same values as one blob."""
        present, blob = self._kept(wanted)
        return forms.cut(blob, forms.Form(wanted.form), slots(present, wanted.spans))

    def _kept(self, wanted: ClaimedPart) -> tuple[Sequence[Span], bytes]:
        if wanted.earlier_id is None:
            sealed = self._just_sealed.take(wanted.chunk_id, wanted.form, wanted.identifiers)
            if sealed is not None:
                return sealed.present, sealed.blob
        with looking(self.engine) as connection:
            return intents.packed_of(connection, wanted.chunk_id, wanted.form, wanted.earlier_id)

    def settle(self, claimed: ClaimedRequest, outcome: Outcome, *, now_us: int, jitter: float) -> int:
        """Write what an answer means for everybody in the request; return how many parts were lost to others."""
        return self._write(lambda connection: settle.settle(connection, claimed, outcome, now_us=now_us, jitter=jitter))

    def release(self, claimed: ClaimedRequest, *, now_us: int) -> None:
        """Give a claim back unsent."""
        self._write(lambda connection: settle.release(connection, claimed, now_us=now_us))

    def sweep(self, *, now_us: int) -> int:
        """Take back expired claims and who was given up too early, start clocks, record who is past the deadline."""

        def verb(connection: Connection) -> int:
            at_us = caught_up(connection, now_us)
            claiming.reclaim_expired(connection, now_us=at_us)
            settle.set_right(connection, now_us=at_us)
            settle.revive(connection, now_us=at_us)
            settle.start_clocks(connection, now_us=at_us)
            return gone.give_up(connection, now_us=at_us) + settle.expire(connection, now_us=at_us)

        return self._write(verb)

    # --- audiences and troubles

    def unresolved_audiences(
        self, connection_id: str, ad_accounts: Collection[str], *, now_us: int, lease_s: float
    ) -> list[tuple[int, str, str, bool]]:
        """Lease the audiences with people waiting that have no Criteo id yet: (id, ad account, name, may create)."""
        return self._write(
            lambda connection: audiences.unresolved(
                connection, connection_id, ad_accounts, now_us=now_us, lease_s=lease_s
            )
        )

    def deleted_audiences(
        self, connection_id: str, ad_accounts: Collection[str], *, now_us: int
    ) -> list[tuple[int, str, str, bool, str]]:
        """Lease the deleted audiences to be looked for now: (id, ad account, name, may create, Criteo id of before)."""
        with looking(self.engine) as connection:
            if not gone.any_gone(connection, connection_id):
                return []
        return self._write(lambda connection: gone.to_look_for(connection, connection_id, ad_accounts, now_us=now_us))

    def give_back_audiences(self, audience_ids: Collection[int]) -> None:
        """Let others look for these audiences again at once."""
        self._write(lambda connection: audiences.give_back(connection, audience_ids))

    def resolved(self, audience_id: int, criteo_id: str, *, created: bool, now_us: int) -> None:
        """Remember under which id Criteo knows an audience."""
        self._write(
            lambda connection: audiences.resolved(connection, audience_id, criteo_id, created=created, now_us=now_us)
        )

    def trouble(self, scope: str, key: str, *, code: str, sentence: str, now_us: int, is_answer: bool = False) -> bool:
        """Remember a trouble; True when it is new.

        ``is_answer``: Criteo itself has blamed ``scope`` and nothing wider, so that works.
        """

        def verb(connection: Connection) -> bool:
            if is_answer:
                troubles.vouch_for_wider(connection, scope, key, now_us=now_us)
            new = troubles.open_trouble(connection, scope, key, code=code, sentence=sentence, now_us=now_us)
            if not new:
                troubles.put_off_probe(connection, scope, key, now_us=now_us)
            # The trouble holds these audiences back from now on; nobody is looking for them any more.
            held = troubles.audiences_of(scope, key)
            connection.execute(update(audience).where(audience.c.id.in_(held)).values(resolver_until_us=0))
            return new

        return self._write(verb)

    def healed(self, scope: str, key: str, *, now_us: int, is_unused: bool = False) -> None:
        """Forget a trouble that is over."""
        with looking(self.engine) as connection:
            found = select(trouble.c.key).where(trouble.c.scope == scope, trouble.c.key == key)
            if connection.execute(found).first() is None:
                return
        self._write(
            lambda connection: troubles.close_trouble(connection, scope, key, now_us=now_us, is_unused=is_unused)
        )

    def look_for_alarms(self, *, late_after_s: float, now_us: int) -> None:
        """Open and close the troubles that time makes."""
        late_after_us = round(late_after_s * 1e6)
        self._write(lambda connection: alarms.look(connection, late_after_us=late_after_us, now_us=now_us))

    def written_again(self, since: str, sentence: str, *, now_us: int) -> None:
        """Note that what has kept this ledger from being written is over."""
        self._write(lambda connection: alarms.written_again(connection, since, sentence, now_us=now_us))

    def is_untold(self) -> bool:
        """Tell whether there is a change of state nobody was told of yet."""
        with looking(self.engine) as connection:
            return alarms.is_untold(connection)

    def take_alarms(self, *, now_us: int) -> list[alarms.News]:
        """Return each change of state nobody was told of yet; each is returned once."""
        return self._write(lambda connection: alarms.take(connection, now_us=now_us))

    def take_news(self, *, now_us: int) -> list[str]:
        """Return one sentence for each change of state nobody was told of yet; each is returned once."""
        return [one.sentence for one in self.take_alarms(now_us=now_us)]

    def put_back_news(self, ids: Sequence[int]) -> None:
        """Let somebody else tell these changes."""
        self._write(lambda connection: alarms.put_back(connection, ids))

    def stopped_audiences(self, *, now_us: int) -> set[int]:
        """Return the audiences held back by a trouble whose next probe is not due."""
        with looking(self.engine) as connection:
            query = select(audience.c.id).where(metrics.stopped(now_us))
            return set(connection.execute(query).scalars())

    def may_probe(self, scope: str, key: str, *, now_us: int) -> bool:
        """Tell whether there is no such trouble, or it wants to be tried again now."""
        held = trouble.c.scope == scope, trouble.c.key == key, not_(is_over(trouble.c.next_probe_us, now_us))
        with looking(self.engine) as connection:
            return connection.execute(select(trouble.c.key).where(*held)).first() is None

    def connections(self) -> dict[str, set[str]]:
        """Return the Airflow connections that audiences are reached through, with the ad accounts behind each."""
        found: dict[str, set[str]] = {}
        with looking(self.engine) as connection:
            for row in connection.execute(select(audience.c.connection_id, audience.c.ad_account).distinct()):
                found.setdefault(row.connection_id, set()).add(row.ad_account)
        return found

    def troubles(self) -> Sequence[Row[tuple[object, ...]]]:
        """Return the open troubles."""
        with looking(self.engine) as connection:
            return connection.execute(select(trouble).order_by(trouble.c.since_us)).all()

    # --- reading

    def numbers(self, *, now_us: int) -> list[metrics.StepNumbers]:
        """Return the seven metrics of every step."""
        with reading(self.engine) as connection:
            return metrics.step_numbers(connection, now_us=now_us)

    def open_work(self, *, now_us: int) -> metrics.OpenWork:
        """Look, cheaply, at what is still open."""
        with reading(self.engine) as connection:
            return metrics.open_work(connection, now_us=now_us)

    def live_streams(self, connection_id: str, *, now_us: int) -> int:
        """Count the lanes of a connection that have people under way."""
        with reading(self.engine) as connection:
            return streams.live_streams(connection, connection_id, now_us=now_us)

    def first_attempts_wait(self, *, now_us: int) -> bool:
        """Tell whether first attempts are due."""
        with reading(self.engine) as connection:
            return metrics.full_requests_waiting(connection, now_us=now_us) > 0

    def broken_laws(self) -> list[str]:
        """Return one sentence for each law of the ledger that does not hold."""
        with reading(self.engine) as connection:
            return laws.broken_laws(connection)

    def _write(self, verb: Callable[[Connection], T]) -> T:
        for left in range(_TRIES - 1, -1, -1):
            try:
                with writing(self.engine) as connection:
                    return verb(connection)
            except DBAPIError as error:
                if not left or getattr(error.orig, "sqlstate", None) not in _REPEATABLE:
                    raise
        raise AssertionError("unreachable")
