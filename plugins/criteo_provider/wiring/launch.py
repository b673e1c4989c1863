"""Launch: a canvas reads its first people only after a green preflight, with its audiences found or created once."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING

from criteo_provider.core.errors import Busy, CriteoSyncError
from criteo_provider.core.model import Operation
from criteo_provider.flow.resolve import RESOLVER_LEASE_S
from criteo_provider.settings.canvas import Canvas
from criteo_provider.store.launches import KnownAudience
from criteo_provider.wiring.desk import Desk
from criteo_provider.wiring.findings import Finding, of_error, to_json
from criteo_provider.wiring.preflight import Report, Survey

if TYPE_CHECKING:
    from criteo_provider.wiring.house import House

log = logging.getLogger(__name__)

# Whoever would be tried so soon is tried along: many canvases in trouble must not make a run each.
_TOGETHER_US = 30_000_000
# Canvases that are launched together share what Criteo said; nobody relies on an older word.
_SURVEY_LASTS_S = 10.0


class Launch:
    """Which canvases of a house are to be launched, and when."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._stamps: dict[str, str] = {}

    def unlaunched(self) -> set[str]:
        """Return the ids of canvases that were never launched."""
        return self._house.ledger.launches.unlaunched()

    def is_due(self, canvas: Canvas, *, early_us: int = 0) -> bool:
        """Tell whether the launch of an unlaunched canvas is to be tried now: reads the ledger only."""
        stamp = self.stamp(canvas)
        return self._house.ledger.launches.is_due(canvas.id, stamp, now_us=self._house.now_us() + early_us)

    def remember(self, canvas: Canvas, report: Report) -> None:
        """Keep a report for the page; a green one of a canvas that waits makes its launch due at once."""
        stamp = self.stamp(canvas) if report.failures else ""
        launches, now_us = self._house.ledger.launches, self._house.now_us()
        launches.remember(canvas.id, stamp, to_json(report.findings), now_us=now_us)

    def stamp(self, canvas: Canvas) -> str:
        """Return what changes when the file or a connection of the canvas does; looked up once for each house."""
        if canvas.id not in self._stamps:
            try:
                connection = self._house.around.criteo(canvas.connection)
                # Two bytes of a digest: enough to notice a change, too little to guess a secret from.
                secret = hashlib.sha256(connection.client_secret.encode()).digest()[:2].hex()
                ad_accounts = {step.sync.ad_account for step in canvas.audience_steps}
                refused = sorted(self._house.accounts.refusals(canvas.connection, ad_accounts))
                seen = f"{connection!r} {secret} {refused} {self._house.around.source_stamp(canvas)}"
            except CriteoSyncError as error:
                seen = str(error)
            meaning = f"{canvas.fingerprint} {seen} {self._house.around.guidelines_required}"
            self._stamps[canvas.id] = hashlib.sha256(meaning.encode()).hexdigest()[:16]
        return self._stamps[canvas.id]

    @contextmanager
    def begin(self, stop: threading.Event) -> Iterator[Launching]:
        """Launch canvases until the block is left; ``stop`` ends every wait."""
        launching = Launching(self._house, self, stop)
        try:
            yield launching
        finally:
            launching.close()


@dataclass
class Launching:
    """Launches canvases as their readers ask, each in its own thread; what Criteo says is shared."""

    house: House
    launch: Launch
    stop: threading.Event
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _waiting: set[str] | None = None
    _desks: dict[str, Desk] = field(default_factory=dict)
    _survey: Survey | None = None
    _surveyed_s: float = 0.0

    def is_launched(self, canvas: Canvas) -> bool:
        """Tell whether a canvas may read, after trying to launch it if that is due."""
        with self._lock:
            # Another process may have launched a canvas since somebody looked.
            if self._waiting is None or canvas.id in self._waiting:
                self._waiting = self.launch.unlaunched()
            if canvas.id not in self._waiting:
                return True
        if not self.launch.is_due(canvas, early_us=_TOGETHER_US):
            return False
        try:
            launched = self._try(canvas)
        except Busy as error:
            log.info("Canvas %s is launched later: %s", canvas.id, error)
            return False
        if launched:
            with self._lock:
                self._waiting.discard(canvas.id)
        return launched

    def close(self) -> None:
        """Close the connections to Criteo."""
        for desk in self._desks.values():
            desk.client.close()

    def _try(self, canvas: Canvas) -> bool:
        survey = self._fresh_survey()
        report = self.house.preflight.check(canvas, survey)
        failures = report.failures
        if not failures:
            done, failures = self._see_to_audiences(canvas, survey)
            if not done and not failures:
                return False  # another process, or another canvas, is at one of them
        launches, now_us, stamp = self.house.ledger.launches, self.house.now_us(), self.launch.stamp(canvas)
        if failures:
            findings = to_json(tuple(dict.fromkeys((*report.findings, *failures))))
            sentence = _sentence(failures)
            if launches.failed(canvas.id, stamp, findings, sentence, now_us=now_us):
                log.warning("Canvas %s is not launched, and nothing is read: %s", canvas.id, sentence)
            return False
        launches.launched(canvas.id, stamp, to_json(report.findings), now_us=now_us)
        log.info("Canvas %s is launched.", canvas.id)
        return True

    def _see_to_audiences(self, canvas: Canvas, survey: Survey) -> tuple[bool, tuple[Finding, ...]]:
        """Find or create each audience once; tell whether all are there, and what stood in the way."""
        added = {
            (step.sync.ad_account, step.sync.audience)
            for step in canvas.audience_steps
            if step.sync.operation is Operation.ADD
        }
        failures: list[Finding] = []
        # All go in one order, and who meets another at work leaves the rest to it: two that took one each would both
        # give up. What stands in the way is collected.
        for audience in sorted(self.house.ledger.launches.audiences(canvas.id), key=attrgetter("audience_id")):
            may_create = (audience.ad_account, audience.name) in added
            try:
                if not self._see_to(canvas, audience, survey, may_create=may_create):
                    return False, tuple(failures)
            except Busy:
                raise
            except CriteoSyncError as error:
                where = f"audience “{audience.name}”"
                failures.append(of_error(error, where, canvas.connection, audience.ad_account))
        return not failures, tuple(failures)

    def _see_to(self, canvas: Canvas, audience: KnownAudience, survey: Survey, *, may_create: bool) -> bool:
        ledger, now_us = self.house.ledger, self.house.now_us
        what = f"Canvas {canvas.id}: audience “{audience.name}” in ad account {audience.ad_account}"
        if audience.criteo_id is not None:
            log.info("%s: known, Criteo id %s.", what, audience.criteo_id)
            return True
        if not ledger.launches.lease(audience.audience_id, now_us=now_us(), lease_s=RESOLVER_LEASE_S):
            return False
        try:
            listing, desk = survey.listing(canvas.connection, audience.ad_account), survey.desk(canvas.connection)
            created = False
            if may_create:
                criteo_id, created = desk.ensure(audience.ad_account, audience.name, listing)
            else:
                there = listing.named(audience.name)
                if there is None:
                    log.info("%s: a draft; it is found once a step that adds people has created it.", what)
                    ledger.give_back_audiences([audience.audience_id])
                    return True
                criteo_id = there.criteo_id
        except BaseException:
            ledger.give_back_audiences([audience.audience_id])
            raise
        ledger.resolved(audience.audience_id, criteo_id, created=created, now_us=now_us())
        log.info("%s: %s, Criteo id %s.", what, "created" if created else "found", criteo_id)
        return True

    def _fresh_survey(self) -> Survey:
        with self._lock:
            if self._survey is None or time.monotonic() - self._surveyed_s > _SURVEY_LASTS_S:
                self._survey, self._surveyed_s = Survey(self._desk), time.monotonic()
            return self._survey

    def _desk(self, conn_id: str) -> Desk:
        with self._lock:
            if conn_id not in self._desks:
                _, client = self.house.criteo.open(conn_id, self.stop)
                self._desks[conn_id] = Desk(client, self.house.ledger.launches, conn_id, self.house.now_us)
            return self._desks[conn_id]


def _sentence(failures: tuple[Finding, ...]) -> str:
    """Tell all failures in one go."""
    if len(failures) == 1:
        return str(failures[0])
    return " ".join(f"({number}) {failure}" for number, failure in enumerate(failures, 1))
